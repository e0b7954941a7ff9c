"""Label sources: whatever gives the label map of any square of a slide, a mask file for one."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stedm.data.labels import LabelMap, read_mask
from stedm.data.patches import extract_label_patch


class LabelSource(Protocol):
    """The annotation of one slide."""

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """Label map (size_px, size_px) uint8 of the square with its top-left corner at (x_um, y_um), at `mpp`.

        Classes 0..C-1; 255 where the pixel's class is unknown, outside of the slide for one.
        """
        ...


class MaskFile:
    """A label-map image as large as its slide, read whole; regions take the nearest pixel."""

    def __init__(self, path: str | Path, labels: LabelMap, *, mpp: float) -> None:
        """`mpp`: microns per pixel of the mask, those of its slide. Raises UserError as `read_mask` and `apply` do."""
        self._label_map = labels.apply(read_mask(path), source=path)
        self._mpp = mpp

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """See `LabelSource.read`."""
        left_px, top_px = (round(at_um / self._mpp, 6) for at_um in (x_um, y_um))
        scale = mpp / self._mpp  # mask pixels per patch pixel
        return extract_label_patch(self._label_map, left_px, top_px, scale=scale, patch_px=size_px)


def open_label_source(row: Any, labels: LabelMap, *, mpp: float) -> LabelSource | None:
    """The annotation that a row of the cohort table names, None without one; `mpp`: microns per pixel of its slide."""
    return MaskFile(row.mask, labels, mpp=mpp) if row.mask else None
