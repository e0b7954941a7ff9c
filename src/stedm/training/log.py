"""What a training shows while it runs: metrics.csv and sample pictures always, TensorBoard where it is installed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stedm.files import atomic_path, write_text

Rows = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Observation:
    """What was seen at a step: values by column name, NaN for not measured, and a picture (H, W, 3) uint8 if any."""

    values: Mapping[str, float]
    picture: np.ndarray | None = None


class TrainingLog:
    """Values by step. `folder` gets metrics.csv, samples/step_<step>.png, and tensorboard/ where it is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: Rows = {}
        self._tensorboard: Any = None

    def open(self, step: int) -> None:
        """Start TensorBoard's file; what an interrupted attempt wrote there after `step` is hidden."""
        writer = _summary_writer()
        if writer is not None:
            self._tensorboard = writer(str(self.folder / "tensorboard"), purge_step=step + 1)

    def record(self, step: int, observation: Observation) -> None:
        """Take in an observation; pictures are written at once, values by `write`."""
        self.rows.setdefault(step, {}).update(observation.values)
        self._show(step, observation)

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
        """Close TensorBoard's file."""
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
