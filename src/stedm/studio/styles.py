"""Style sets that a person picks: a patient, a slide of the run or of the disk, or images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import UnidentifiedImageError

from stedm.data.images import NotUpright, TooLarge, open_image
from stedm.data.patches import main_group
from stedm.data.slide import Slide
from stedm.data.style_pool import find_style_patches, read_style_set
from stedm.errors import UserError
from stedm.stages.run_folder import RunFolder, train_patches

MOST_PIXELS = 50_000_000
"""Pixels of an uploaded image, at most: a small file can unpack to more than the memory holds."""


@dataclass(frozen=True)
class Style:
    """A style set and what to call it."""

    name: str
    images: np.ndarray
    """(N, patch_px, patch_px, 3) uint8."""


@dataclass(frozen=True)
class Patient:
    """A patient of the run, as a list offers it."""

    name: str
    role: str
    """`annotated`, `unannotated`, `val`, `test` or `unseen`."""
    group: str
    slides: tuple[str, ...]
    patches: int

    @property
    def label(self) -> str:
        """Name, role and group in one line."""
        return " · ".join(filter(None, (self.name, self.role, self.group)))


class StyleBook:
    """Style sets for one generator."""

    def __init__(self, run: RunFolder, patches: pd.DataFrame, *, patch_px: int, mpp: float) -> None:
        self._run, self._patches = run, patches
        self.patch_px, self.mpp = patch_px, mpp

    def patients(self) -> list[Patient]:
        """Every patient of the run, training patients first."""
        rows = [_patient(str(name), rows) for name, rows in self._patches.groupby("patient", sort=True)]
        roles = ["unannotated", "annotated", "val", "test", "unseen"]
        return sorted(
            rows, key=lambda patient: (roles.index(patient.role) if patient.role in roles else 9, patient.name)
        )

    def spread(self, count: int) -> list[str]:
        """Up to `count` patients, evenly spaced among the training patients whose annotation is not used."""
        rows = train_patches(self._patches, annotated=False)
        rows = rows if len(rows) else train_patches(self._patches)
        names = sorted(map(str, rows["patient"].unique()))
        return [names[k] for k in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]

    def of_patient(self, patient: str, *, slide: str | None = None, size: int = 4, seed: int = 0) -> Style:
        """`size` images of a patient, or of one slide; some repeated where there are fewer. Raises UserError."""
        rows = self._patches[self._patches["patient"].astype(str) == patient]
        if slide:
            rows = rows[rows["slide"].astype(str) == slide]
        if rows.empty:
            raise UserError(f"{slide or patient}: no such patient or slide in the run; pick another")
        chosen = np.random.default_rng([seed, 7]).permutation(len(rows))
        return Style(slide or patient, self._run.images(rows.iloc[np.resize(chosen, size)]))

    def of_slide(
        self, path: str | Path, *, mpp: float | None = None, size: int = 4, seed: int = 0, min_tissue: float = 0.5
    ) -> Style:
        """`size` patches of tissue of a slide on this machine; mpp: its microns per pixel, if the file does not say."""
        with Slide.open(path, mpp=mpp) as slide:
            slide.mpp  # noqa: B018 (asked whether it is known, before anything is read)
        return self._cut([path], Path(path).name, mpp, size, seed, min_tissue)

    def of_images(
        self, paths: Sequence[str | Path], *, mpp: float | None = None, size: int = 4, seed: int = 0
    ) -> Style:
        """`size` patches of these images, at any place; mpp: their microns per pixel (default: the generator's)."""
        if not paths:
            raise UserError("no image; drop one or more PNG, JPEG or TIFF files")
        for path in paths:
            refuse_oversized(path)
        names = ", ".join(Path(path).name for path in paths[:2]) + (", ..." if len(paths) > 2 else "")
        return self._cut(paths, names, mpp or self.mpp, size, seed, 0.0)

    def _cut(
        self, paths: Sequence[str | Path], name: str, mpp: float | None, size: int, seed: int, min_tissue: float
    ) -> Style:
        shape = {"patch_px": self.patch_px, "mpp": self.mpp}
        found = find_style_patches(
            paths,
            **shape,
            source_mpp=mpp,
            min_tissue=min_tissue,
            wanted=size,
            seed=seed,  # type: ignore[arg-type]
        )
        chosen = [found[k % len(found)] for k in range(size)]
        return Style(name, read_style_set(chosen, **shape, source_mpp=mpp))  # type: ignore[arg-type]


def refuse_oversized(path: str | Path) -> None:
    """Raise UserError for an image of more than MOST_PIXELS, or a file that is no image; the header is read only."""
    try:
        with open_image(path) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        reasons = {TooLarge: "too large", NotUpright: str(error).split("; ")[0]}
        reason = reasons.get(type(error), "not a readable image")
        raise UserError(f"{Path(path).name}: {reason}; drop a PNG, JPEG or TIFF file, or name a slide") from None
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{Path(path).name}: {width} x {height} px are too many for an upload; name its path as a slide instead"
        )


def _patient(name: str, rows: pd.DataFrame) -> Patient:
    split = str(rows["split"].iloc[0])
    annotated = bool(rows["annotated"].any())
    role = ("annotated" if annotated else "unannotated") if split == "train" else split
    group = main_group(rows["group"]) if "group" in rows else ""
    slides = tuple(sorted(map(str, rows["slide"].unique())))
    return Patient(name, role, group, slides, len(rows))
