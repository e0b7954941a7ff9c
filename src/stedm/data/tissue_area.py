"""Where on a slide there is tissue, asked for by pixels of a finer grid."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stedm.data.area import Area
from stedm.data.slide import Slide
from stedm.data.slide_tissue import clean_tissue, is_whole_slide
from stedm.data.tissue import tissue_mask

_OVERVIEW_MPP = 8.0
_OVERVIEW_PX = 2048
"""Longest side of an overview: what the mask needs in memory does not grow with the slide."""
_RIM_UM = 50.0
"""Tissue grows by this much: its edge is not cut, and narrow lumina and clefts belong to it."""


class TissueArea:
    """Tissue and its rim on an overview; indexed in pixels of `mpp` microns."""

    def __init__(self, mask: NDArray[np.bool_], *, step: float) -> None:
        """mask: (h, w); step: its pixels per pixel of the finer grid."""
        self._mask, self._step = mask, step

    @classmethod
    def measure(cls, slide: Slide, mpp: float) -> "TissueArea":
        """Find tissue, without pen marks and dust, on an overview of 8 microns per pixel; coarser for over 16 mm."""
        overview_mpp = _overview_mpp(slide, mpp)
        overview = slide.overview(overview_mpp)
        tissue = clean_tissue(overview, mpp=overview_mpp) if is_whole_slide(slide) else tissue_mask(overview)
        outside_um = ndimage.distance_transform_edt(~tissue) * overview_mpp if tissue.any() else np.inf
        return cls(tissue | (outside_um <= _RIM_UM), step=mpp / overview_mpp)

    @classmethod
    def given(cls, area: Area, slide: Slide, mpp: float) -> "TissueArea":
        """What the user marked, seen at the resolution of `measure` and not grown."""
        overview_mpp = _overview_mpp(slide, mpp)
        width, height = (math.ceil(px * slide.mpp / overview_mpp) for px in (slide.width_px, slide.height_px))
        mask = area.read(0, 0, size_px=max(width, height), mpp=overview_mpp)[:height, :width]
        return cls(mask, step=mpp / overview_mpp)

    @classmethod
    def everything(cls) -> "TissueArea":
        """All of a slide, glass too."""
        return cls(np.ones((1, 1), bool), step=0.0)

    def any(self, ys: slice, xs: slice) -> bool:
        """Whether there is tissue in a rectangle of the finer grid."""
        y, x = (slice(self._at(span.start), self._at(span.stop - 1) + 1) for span in (ys, xs))
        return bool(self._mask[y, x].any())

    def crop(self, ys: slice, xs: slice) -> NDArray[np.bool_]:
        """A rectangle (h, w) of the finer grid, true where there is tissue."""
        height, width = self._mask.shape
        y, x = (self._at(np.arange(span.start, span.stop)) for span in (ys, xs))
        rows: NDArray[np.bool_] = self._mask[np.minimum(y, height - 1)]
        return rows[:, np.minimum(x, width - 1)]

    def _at(self, pixel):  # type: ignore[no-untyped-def]
        return np.int64((np.asarray(pixel) + 0.5) * self._step)


def _overview_mpp(slide: Slide, mpp: float) -> float:
    longer_um = max(slide.width_px, slide.height_px) * slide.mpp
    return max(mpp, min(_OVERVIEW_MPP, longer_um / 64), longer_um / _OVERVIEW_PX)
