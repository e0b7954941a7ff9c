"""Watch a training on validation patients: are the conditions used, what is drawn, how exact is the first stage?"""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stedm.config import RunConfig
from stedm.data.style_sets import Mode, StyleSets
from stedm.device import autocast
from stedm.diffusion.pipeline import StyleDiffusion, to_network
from stedm.diffusion.sampling import noise_from_seeds
from stedm.diffusion.validation import Validation, ValidationBatch, other_patient_rows, other_rows, validate
from stedm.files import write_json
from stedm.stages.grids import StyleGrid
from stedm.stages.latents import encode
from stedm.stages.report_warnings import ignored_conditions, unchecked_conditions
from stedm.stages.run_folder import RunFolder
from stedm.training.log import Observation
from stedm.training.tasks import AutoencoderTask, DiffusionTask

IMAGES = 24
"""Validation images, at most: taken from all patients in turn."""


class GeneratorWatch:
    """Validation losses of a generator in training, and a grid of what it draws.

    Images and layouts are those of annotated validation patients, never of test patients; a style set is other patches
    of the same patient, or the image itself where that patient has no others, or where the generator is trained so:
    another photograph of a class need not look like this one. Everything is encoded and drawn once.
    """

    def __init__(
        self,
        run: RunFolder,
        config: RunConfig,
        model: StyleDiffusion,
        *,
        grid: StyleGrid | None = None,
        num_images: int = IMAGES,
    ) -> None:
        self.model, self.grid = model, grid
        self.latest: Validation | None = None
        patches = run.patches()
        patches = patches[patches["split"] == "val"].reset_index(drop=True)
        rows = validation_rows(patches, num_images, seed=config.seed)
        self.patients: list[str] = patches["patient"].iloc[rows].tolist()
        if len(rows) == 0:
            return
        chosen = patches.iloc[rows]
        z = encode(model.first_stage, run.images(chosen))  # (n, C, h, w)
        self.batch = ValidationBatch(
            z=z,
            e=noise_from_seeds(range(len(z)), z.shape[1:]),
            layout=torch.from_numpy(run.label_maps(chosen)),
            other_layout=other_rows(len(z)),
            other_style=other_patient_rows(self.patients),
        )
        sets = _style_rows(patches, rows, config)  # (n, N)
        lent = run.images(patches.iloc[sets.ravel()])
        self.style_images = to_network(lent).unflatten(0, sets.shape)  # (n, N, 3, H, W)
        self.style_latents = encode(model.first_stage, lent).unflatten(0, sets.shape)  # (n, N, C, h, w)

    def __call__(self, task: DiffusionTask, step: int) -> Observation:
        """Losses and grid of the task as it is now."""
        values = {}
        if self.patients:
            self.latest = self._validate(task)
            values = {
                "val_loss": self.latest.loss,
                "val_style_gain": self.latest.style_gain,
                "val_layout_gain": self.latest.layout_gain,
            }
        if self.grid is None:
            return Observation(values)
        self.model.first_stage.to(task.device)
        return Observation(values, self.grid.draw(self.model))

    def _validate(self, task: DiffusionTask) -> Validation:
        batch, device = self.batch.to(task.device), task.device

        def velocity(z_t: Tensor, t: Tensor, layout: Tensor | None, style: Tensor | None) -> Tensor:
            given = torch.ones(len(z_t), dtype=torch.bool, device=device)
            return task.unet(
                z_t.contiguous(memory_format=torch.channels_last),
                t,
                layout=batch.layout if layout is None else layout,
                layout_given=given if layout is not None else ~given,
                style=own if style is None else style,
                style_given=given if style is not None else ~given,
            )

        with autocast(device):
            own = task.style_extractor(self.style_images.to(device), self.style_latents.to(device))  # (n, K, d + 2 C)
            return validate(velocity, batch, style=own)

    def save(self, folder: Path, *, name: str) -> None:
        """Write validation.json; say on stderr which conditions `name` ignores, and which could not be checked."""
        if self.patients and self.latest is None:  # no step was taken
            return
        latest = self.latest or Validation(*[math.nan] * 8, ignored=())
        found = {key: _finite(value) for key, value in dataclasses.asdict(latest).items()}
        history = _history(folder) if self.patients else []
        found |= {"images": len(self.patients), "patients": len(set(self.patients)), "history": history}
        write_json(folder / "validation.json", found)
        for sentence in ignored_conditions(found) + unchecked_conditions(found):
            print(f"{name}: {sentence}", file=sys.stderr)


class ReconstructionWatch:
    """Peak signal-to-noise ratio, dB, of the first stage on images of validation patients."""

    def __init__(self, run: RunFolder, *, seed: int) -> None:
        patches = run.patches()
        patches = patches[patches["split"] == "val"].reset_index(drop=True)
        rows = _in_turn(patches["patient"], IMAGES, seed=seed)
        self.x = to_network(run.images(patches.iloc[rows])) if len(rows) else torch.empty(0)  # (n, 3, H, W)

    def __call__(self, task: AutoencoderTask, step: int) -> Observation:
        """Mean over images."""
        if len(self.x) == 0:
            return Observation({})
        x = self.x.to(task.device).contiguous(memory_format=torch.channels_last)
        with autocast(task.device):
            mean, _ = task.first_stage.distribution(x)
            reconstructed = task.first_stage.reconstruct(mean).float().clamp(-1, 1)
        error = (reconstructed - x).square().mean((1, 2, 3))  # (n,)
        return Observation({"val_psnr": (10 * (4 / error).log10()).mean().item()})


def validation_rows(patches: pd.DataFrame, most: int, *, seed: int) -> np.ndarray:
    """Positions of up to `most` annotated patches, from all patients in turn; ascending."""
    annotated = np.flatnonzero(patches["annotated"].to_numpy(bool))
    return annotated[_in_turn(patches["patient"].iloc[annotated], most, seed=seed)]


def _in_turn(patients: pd.Series, most: int, *, seed: int) -> np.ndarray:
    """Positions of up to `most` rows: a random one of each patient, then a second one of each, ...; ascending."""
    shuffled = np.random.default_rng([seed, 7]).permutation(len(patients))
    turn = patients.iloc[shuffled].groupby(patients.iloc[shuffled].to_numpy()).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:most]])


def _style_rows(patches: pd.DataFrame, rows: np.ndarray, config: RunConfig) -> np.ndarray:
    """Style sets as positions (n, N): other patches of the patient, else, and with style sets `self`, the image."""
    size = config.diffusion.style_images
    patch_um = patches["mpp"].to_numpy() * config.prepare.patch_px
    mode: Mode = "self" if config.diffusion.style_set == "self" else "patient"
    sets = StyleSets(patches, mode=mode, size=size, nearby_um=config.diffusion.nearby_um, patch_um=patch_um)
    rng = np.random.default_rng([config.seed, 8])
    return np.stack([sets.draw(i, rng) if sets.has_candidates(i) else np.full(size, i) for i in map(int, rows)])


def _finite(value: object) -> object:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _history(folder: Path) -> list[dict[str, float | None]]:
    """The validation columns of metrics.csv, at the steps where they were measured."""
    table = pd.read_csv(folder / "metrics.csv")
    columns = ["step", *(name for name in table if name.startswith("val_"))]
    measured: list[dict[str, float | None]] = json.loads(
        table.loc[table["val_loss"].notna(), columns].to_json(orient="records", double_precision=15)
    )
    return measured
