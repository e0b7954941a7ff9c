"""What a training shows while it runs: metrics.csv and pictures, TensorBoard where it is installed, W&B if asked."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stedm.errors import UserError
from stedm.files import atomic_path, reason_of, write_text

WANDB = "STEDM_WANDB"
"""Environment variable: the project of W&B that trainings send their values to. Without it nothing is sent."""
Rows = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Observation:
    """What was seen at a step: values by column name, NaN for not measured, and a picture (H, W, 3) uint8 if any."""

    values: Mapping[str, float]
    picture: np.ndarray | None = None


class TrainingLog:
    """Values by step. `folder` gets metrics.csv, samples/step_<step>.png, and tensorboard/ where it is installed.

    Where STEDM_WANDB names a project, W&B gets the values too, and never a picture: they show patients.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: Rows = {}
        self._tensorboard: Any = None
        self._wandb: Any = None

    def open(self, step: int) -> None:
        """Start TensorBoard's file, and the run of W&B if asked for.

        What an interrupted attempt wrote to TensorBoard after `step` is hidden; W&B shows it beside what comes again.
        """
        if project := os.environ.get(WANDB):
            self._wandb = _wandb_run(project, self.folder)
        writer = _summary_writer()
        if writer is not None:
            self._tensorboard = writer(str(self.folder / "tensorboard"), purge_step=step + 1)

    def record(self, step: int, observation: Observation) -> None:
        """Take in an observation; pictures are written at once, values by `write`."""
        self.rows.setdefault(step, {}).update(observation.values)
        self._show(step, observation)
        if self._wandb is not None:
            finite = {name: value for name, value in observation.values.items() if math.isfinite(value)}
            self._wandb.log({"step": step, **finite})

    def _show(self, step: int, observation: Observation) -> None:
        if observation.picture is not None:
            with atomic_path(self.folder / "samples" / f"step_{step:06d}.png") as temporary:
                Image.fromarray(observation.picture).save(temporary)
        if self._tensorboard is not None:
            for name, value in observation.values.items():
                if math.isfinite(value):
                    self._tensorboard.add_scalar(name, value, step)
            if observation.picture is not None:
                self._tensorboard.add_image("samples", observation.picture, step, dataformats="HWC")

    def write(self) -> None:
        """Write metrics.csv: step, then the columns in the order they first came; empty where not measured."""
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [",".join(["step", *columns])]
        for step, row in sorted(self.rows.items()):
            values = (row.get(name, math.nan) for name in columns)
            lines.append(",".join([str(step), *("" if math.isnan(value) else f"{value:.6g}" for value in values)]))
        write_text(self.folder / "metrics.csv", "\n".join(lines) + "\n")
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Close TensorBoard's file and W&B's run."""
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


class UnwrittenLog(TrainingLog):
    """The same values, for a checkpoint's sake, and no files: that of the ranks after the first."""

    def open(self, step: int) -> None:
        """Nothing to open."""

    def write(self) -> None:
        """The first rank does."""

    def _show(self, step: int, observation: Observation) -> None:
        pass


def _summary_writer() -> Any:
    """TensorBoard's writer class, or None: it is optional, and a broken installation of it must not stop a training."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception:
        return None
    return SummaryWriter


def _wandb_run(project: str, folder: Path) -> Any:
    """The run of W&B that stands for `folder`, continued if it was begun; its steps may come in any order.

    It is told nothing of code, command and terminal; host name and packages it adds itself.
    Raises UserError when W&B is missing or does not start.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"{WANDB} is set, and W&B is not installed: pip install 'stedm[tracking]', or unset it"
        ) from None
    where = folder.resolve()
    private = {"disable_git": True, "disable_code": True, "console": "off", "x_disable_meta": True}
    try:
        run = wandb.init(
            project=project,
            name="/".join(folder.parts[-4:]),
            id=hashlib.sha256(str(where).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(where),
            settings=wandb.Settings(**private, x_disable_stats=True),
        )
    except Exception as error:
        raise UserError(
            f"{WANDB}: W&B did not start ({reason_of(error)}); `wandb login`, or WANDB_MODE=offline, or unset it"
        ) from None
    run.define_metric("*", step_metric="step")
    return run
