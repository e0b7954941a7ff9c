"""Pictures: the same layouts in several styles, the style set beside each row."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stedm.config import RunConfig
from stedm.data.layouts import RealLayouts
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampling import Sampling
from stedm.evaluation.probe import StyleProbe
from stedm.files import atomic_path
from stedm.stages.report_pictures import colour_layout
from stedm.stages.run_folder import RunFolder, train_patches
from stedm.stages.sampling_settings import in_force

ROWS, COLUMNS, SHOWN = 6, 6, 3


class StyleGrid:
    """Layouts in the styles of patients whose annotation was never used: chosen once, drawn again by every model.

    In those of the annotated patients where there are no others.

    Rows: patients, some images of the style set at the left. Columns: layouts of the annotated patients.
    """

    def __init__(
        self, run: RunFolder, config: RunConfig, *, rows: int = ROWS, columns: int = COLUMNS, shown: int = SHOWN
    ) -> None:
        patches = run.patches()
        annotated = train_patches(patches, annotated=True)
        styles = train_patches(patches, annotated=False)
        styles = styles[~styles["patient"].isin(annotated["patient"])]
        styles = styles if len(styles) else annotated
        rng = np.random.default_rng([config.seed, 6])
        layouts = RealLayouts(run.label_maps(annotated))
        self.shown = shown
        self.layouts = np.stack([layouts.draw(rng)[0] for _ in range(columns)])  # (columns, H, W)
        names = sorted(styles["patient"].unique())
        chosen = [names[k] for k in np.linspace(0, len(names) - 1, min(rows, len(names))).round().astype(int)]
        self.style_sets = []
        for name in chosen:
            of_patient = styles[styles["patient"] == name]
            lent = rng.permutation(len(of_patient))[style_set_rows(len(of_patient), config)]
            self.style_sets.append(run.images(of_patient.iloc[lent]))

    def draw(self, model: StyleDiffusion, **sampling: Any) -> np.ndarray:
        """The picture (height, width, 3) uint8; the seeds belong to the columns, the same at every call.

        sampling: as in `StyleDiffusion`, which has its own settings.
        """
        rows = [_header(self.layouts, self.shown)]
        for style_set in self.style_sets:
            images = model(self.layouts, style_set, seeds=range(len(self.layouts)), **sampling)
            rows.append(_row(style_set, images, self.shown))
        return np.concatenate(rows)


def save_style_grid(run: RunFolder, config: RunConfig, model: StyleDiffusion, path: Path) -> None:
    """Draw with the model's own solver and guidance: the picture belongs to it, not to the `generate` section."""
    _save(StyleGrid(run, config).draw(model), path)


def save_probe_grid(probes: Sequence[StyleProbe], path: Path) -> None:
    """Rows: measured patients, images of the style set at the left; above each drawn image its layout."""
    rows = [
        np.concatenate(
            [_header(probe.layouts[:COLUMNS], SHOWN), _row(probe.style_images, probe.drawn[:COLUMNS], SHOWN)]
        )
        for probe in probes[:ROWS]
    ]
    _save(np.concatenate(rows), path)


def style_set_size(config: RunConfig) -> int:
    """Images per style set in sampling."""
    fixed = config.diffusion.aggregation == "linear"
    return config.diffusion.style_images if fixed else config.generate.style_images


def style_set_rows(available: int, config: RunConfig) -> np.ndarray:
    """Which of `available` images make a style set: all, if they are few; linear aggregation takes some twice then."""
    size = style_set_size(config)
    return np.arange(size) % available if config.diffusion.aggregation == "linear" else np.arange(min(size, available))


def sampling_of(model: StyleDiffusion, config: RunConfig) -> Sampling:
    """The model's own sampling settings, changed by what the `generate` section gives."""
    return Sampling(**in_force(dataclasses.asdict(model.sampling), dataclasses.asdict(config.generate)))


def _row(style_set: np.ndarray, images: np.ndarray, shown: int) -> np.ndarray:
    left = [style_set[n] if n < len(style_set) else np.full_like(images[0], 255) for n in range(shown)]
    return _row_of(left, list(images))


def _header(layouts: np.ndarray, shown: int) -> np.ndarray:
    size = layouts.shape[1]
    left = [np.full((size, size, 3), 255, np.uint8)] * shown
    return _row_of(left, [np.asarray(colour_layout(layout)) for layout in layouts])


def _row_of(left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    """Cells side by side with a thin gap between them, and a wide one between left and right."""
    size = right[0].shape[0]
    thin, wide = (np.full((size, width, 3), 255, np.uint8) for width in (2, size // 4))
    cells = [piece for cell in left for piece in (cell, thin)] + [wide]
    cells += [piece for cell in right for piece in (thin, cell)]
    return _below(np.concatenate(cells, axis=1))


def _below(row: np.ndarray) -> np.ndarray:
    return np.concatenate([row, np.full((4, *row.shape[1:]), 255, np.uint8)])


def _save(grid: np.ndarray, path: Path) -> None:
    scale = max(1, round(1100 / grid.shape[1]))
    image = Image.fromarray(grid).resize((grid.shape[1] * scale, grid.shape[0] * scale), Image.Resampling.NEAREST)
    with atomic_path(path) as temporary:
        image.save(temporary)


def overlay(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """Image (H, W, 3) with the outlines of a label map (H, W) drawn in the class colours."""
    edge = np.zeros(label_map.shape, bool)
    edge[1:] |= label_map[1:] != label_map[:-1]
    edge[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    return np.where(edge[..., None], np.asarray(colour_layout(label_map)), image)


def save_overlays(path: Path, images: np.ndarray, label_maps: np.ndarray, predictions: dict[str, np.ndarray]) -> None:
    """One row per patch: image, truth, then each arm's prediction."""
    rows = []
    for k, image in enumerate(images):
        cells = [image, overlay(image, label_maps[k]), *(overlay(image, maps[k]) for maps in predictions.values())]
        rows.append(_below(np.concatenate(cells, axis=1)))
    _save(np.concatenate(rows), path)


def best_and_worst(per_patient: pd.DataFrame, arm: str) -> tuple[str, str]:
    """Patients with the highest and the lowest IoU of `arm`, averaged over seeds."""
    means = per_patient[per_patient["arm"] == arm].groupby("patient")["iou"].mean().dropna()
    return str(means.idxmax()), str(means.idxmin())
