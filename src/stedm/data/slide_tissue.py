"""Where a slide has tissue to cut patches from: found on an overview, or given by the user; regions of interest."""

import numpy as np
from scipy import ndimage

from stedm.data.area import Area
from stedm.data.ink import ink_mask
from stedm.data.slide import Slide
from stedm.data.tissue import DENSITY, Glass, optical_density, slide_glass, tissue_mask, white_point

OVERVIEW_PX = 8
"""Overview pixels per patch width: enough to see which patches are bare glass."""
_MOST_OVERVIEW_PX = 4096
"""Width or height of an overview, at most."""
_SLIDE_UM = 1000.0
"""From this width and height on, an image of one level can hold pen marks and dust that are not part of the tissue."""
_SAMPLES = 64
"""Pixels across that a patch of a slide is judged by."""
_SPECK_UM2 = 5000.0
"""Smaller pieces are dust; a square of 70 microns."""


def is_whole_slide(slide: Slide) -> bool:
    """Whether an image can hold pen marks and dust: a pyramid of any size, or a large image of one level."""
    return slide.is_pyramid or min(slide.width_px, slide.height_px) * slide.mpp >= _SLIDE_UM


def clean_tissue(rgb: np.ndarray, *, mpp: float) -> np.ndarray:
    """Tissue (H, W) bool in an overview (H, W, 3) uint8 of a whole slide: stained, no pen mark, no dust."""
    glass = slide_glass(rgb)
    return _cleaned(_stained(rgb, glass), rgb, glass, mpp=mpp)


def _cleaned(stained: np.ndarray, rgb: np.ndarray, glass: Glass, *, mpp: float) -> np.ndarray:
    """What is stained (H, W) without pen marks and dust."""
    ink = ink_mask(optical_density(rgb, white=glass.colour), mpp=mpp)
    return _without_small(stained & ~ink, _SPECK_UM2 / mpp**2)


def _stained(rgb: np.ndarray, glass: Glass) -> np.ndarray:
    """Stained pixels (H, W) bool of an overview (H, W, 3) uint8: in the mean with their neighbours, and themselves.

    The mean tells pale tissue from noise; by itself it would widen all tissue by a pixel.
    """
    by_itself, smoothed = (
        tissue_mask(rgb, white=glass.colour, smooth_px=smooth_px, density=glass.density) for smooth_px in (1, 3)
    )
    return by_itself & smoothed


def _without_small(mask: np.ndarray, least_px: float) -> np.ndarray:
    """The mask (H, W) without connected pieces of fewer pixels."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= least_px)[pieces]


class SlideTissue:
    """A slide's tissue, seen from afar and patch by patch."""

    def __init__(
        self,
        slide: Slide,
        *,
        patch_um: float,
        tissue: Area | None = None,
        roi: Area | None = None,
        threads: int = 1,
    ) -> None:
        """`tissue` takes the place of what is found here; outside of `roi` nothing is tissue.

        threads: that read the overview.
        """
        size_um = [px * slide.mpp for px in (slide.width_px, slide.height_px)]
        self.mpp = max(patch_um / OVERVIEW_PX, slide.mpp, max(size_um) / _MOST_OVERVIEW_PX)
        self.overview = slide.overview(self.mpp, threads=threads)  # (H, W, 3)
        self._given, self._roi = tissue, roi
        self.is_slide = is_whole_slide(slide)
        self._glass = slide_glass(self.overview) if self.is_slide else Glass(white_point(self.overview), DENSITY)
        self.white = self._glass.colour
        if self.is_slide:
            stained = _stained(self.overview, self._glass)
            found = _cleaned(stained, self.overview, self._glass, mpp=self.mpp)
        else:
            stained = found = tissue_mask(self.overview, white=self.white, smooth_px=1)
        self.mask = found if tissue is None else self._seen(tissue)
        """Tissue in the overview (H, W)."""
        self.left_out = stained & ~found if tissue is None else np.zeros_like(found)
        """Stained, but no tissue: pen marks, dust (H, W)."""
        self._left_out_edged = ndimage.binary_dilation(self.left_out, np.ones((3, 3))) & ~self.mask
        self.roi = None if roi is None else self._seen(roi)
        """Region of interest in the overview (H, W), None without one."""

    def _seen(self, area: Area) -> np.ndarray:
        height, width = self.overview.shape[:2]
        return area.read(0, 0, size_px=max(height, width), mpp=self.mpp)[:height, :width]

    def may_hold(self, x_um: float, y_um: float, *, width_um: float) -> bool:
        """Whether the overview shows tissue to cut anywhere in a square."""
        place = self._seen_in(x_um, y_um, width_um=width_um)
        return bool((self.mask[place] if self.roi is None else self.mask[place] & self.roi[place]).any())

    def _seen_in(self, x_um: float, y_um: float, *, width_um: float) -> tuple[slice, slice]:
        """The pixels of the overview that a square touches."""
        starts, stops = (
            [int(round(at / self.mpp, 6)) for at in corner]
            for corner in ((y_um, x_um), (y_um + width_um, x_um + width_um))
        )
        return slice(starts[0], stops[0] + 1), slice(starts[1], stops[1] + 1)

    def of_patch(self, image: np.ndarray, x_um: float, y_um: float, *, mpp: float) -> tuple[float, np.ndarray | None]:
        """Share of tissue to cut, and region of interest (H, W) bool, None without one, in a patch (H, W, 3) uint8."""
        # A slide has many patches: of large ones fewer pixels say enough.
        step = max(1, len(image) // _SAMPLES) if self.is_slide else 1
        found = self._found(image, x_um, y_um, mpp=mpp, step=step)
        roi = None if self._roi is None else self._roi.read(x_um, y_um, size_px=len(image), mpp=mpp)
        if roi is not None:
            found = _enlarged(found, roi.shape) & roi
        return np.count_nonzero(found) / found.size, roi

    def glass(self, image: np.ndarray, x_um: float, y_um: float, *, mpp: float) -> np.ndarray:
        """Which pixels (H, W) bool of a patch (H, W, 3) uint8 are no tissue, in a region of interest or not."""
        return ~self._found(image, x_um, y_um, mpp=mpp, step=1)

    def _found(self, image: np.ndarray, x_um: float, y_um: float, *, mpp: float, step: int) -> np.ndarray:
        """Tissue in a patch (H, W, 3); where every pixel of a coarser mask stands for as many, the coarser mask."""
        square = {"size_px": len(image), "mpp": mpp}
        if self._given is not None:
            return self._given.read(x_um, y_um, **square)
        smooth_px = 5 if step == 1 else 3
        found = tissue_mask(image[::step, ::step], white=self.white, smooth_px=smooth_px, density=self._glass.density)
        if len(image) % step:
            found = _enlarged(found, image.shape[:2])
        if self._left_out_edged[self._seen_in(x_um, y_um, width_um=len(image) * mpp)].any():
            found = _enlarged(found, image.shape[:2]) & ~self._near_left_out(x_um, y_um, **square)
        return found

    def _near_left_out(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """What is left out of a patch, with the blurred edge it has there."""
        centres_um = (np.arange(size_px) + 0.5) * mpp
        rows, columns = (
            np.floor((at + centres_um) / self.mpp).astype(int).clip(0, size - 1)
            for at, size in zip((y_um, x_um), self.left_out.shape, strict=True)
        )
        return self._left_out_edged[np.ix_(rows, columns)]


def _enlarged(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of every n-th pixel of a patch (H, W) as one of all its pixels."""
    step = -(-shape[0] // len(mask))
    return mask.repeat(step, axis=0).repeat(step, axis=1)[: shape[0], : shape[1]]
