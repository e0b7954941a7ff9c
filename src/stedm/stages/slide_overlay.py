"""A small picture of a slide: what was found to be tissue, what was left out, and where patches were cut."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from stedm.data.slide_tissue import SlideTissue

WIDTH_PX = 480
"""Width or height of the picture, whichever is larger."""
TISSUE, LEFT_OUT, ROI = (0, 89, 143), (200, 80, 10), (20, 130, 70)
"""Colours of the outline of the tissue, of what looks stained and is no tissue, and of the region of interest."""
_FADED = 0.6
"""How much of its colour an area without patches loses."""


def overlay(tissue: SlideTissue, places_um: Sequence[tuple[float, float]], *, patch_um: float) -> Image.Image:
    """Picture of a slide; areas without patches are faded. places_um: top-left corners (x, y) of the patches."""
    height, width = tissue.mask.shape
    cut = np.zeros((height, width), bool)
    for x_um, y_um in places_um:
        rows, columns = (slice(round(at / tissue.mpp), round((at + patch_um) / tissue.mpp)) for at in (y_um, x_um))
        cut[rows, columns] = True
    scale = WIDTH_PX / max(height, width)
    size_px = max(1, round(width * scale)), max(1, round(height * scale))

    def scaled(mask: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size_px, Image.Resampling.BOX)) >= 128

    smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    image = Image.fromarray(tissue.overview).resize(size_px, smooth)
    pixels = np.asarray(image).astype(float)
    pixels = np.where(scaled(cut)[..., None], pixels, 255 - (1 - _FADED) * (255 - pixels))
    pixels[scaled(tissue.left_out)] = LEFT_OUT
    for mask, colour in ((tissue.mask, TISSUE), (tissue.roi, ROI)):
        if mask is not None:
            pixels[_outline(scaled(mask))] = colour
    return Image.fromarray(pixels.round().astype(np.uint8))


def _outline(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)
