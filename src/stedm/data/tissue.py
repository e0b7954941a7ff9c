"""Tissue and glass told apart by optical density, so that pale immunohistochemistry counts as tissue."""

import numpy as np
from scipy import ndimage

DENSITY = 0.03
"""Optical density above the glass (largest of the three channels) from which a smoothed pixel is tissue."""
_GLASS_SHARE = 0.01
_UNSCANNED = 20
"""Largest channel of the black that some scanners fill in, at most."""


def white_point(rgb: np.ndarray) -> np.ndarray:
    """Colour of the glass (3,) float in an image (H, W, 3) uint8: the median of its bright, colourless pixels.

    Bright is >= 215 in all channels, colourless a spread <= 20. Pure white (255) does not count, because scanners fill
    in what they left out with it; white is the answer when fewer than 1 % of the pixels are left.
    """
    darkest, spread = rgb.min(-1), rgb.max(-1) - rgb.min(-1)
    bright = (darkest >= 215) & (darkest < 255) & (spread <= 20)
    if bright.mean() < _GLASS_SHARE:
        return np.full(3, 255.0)
    glass = rgb[bright].astype(float)
    return np.median(glass[glass.sum(-1) >= np.median(glass.sum(-1))], axis=0)


def tissue_mask(rgb: np.ndarray, *, white: np.ndarray | None = None, smooth_px: int = 5) -> np.ndarray:
    """True (H, W) where an image (H, W, 3) uint8 shows tissue: stained at all, and not the black of unscanned area.

    `white` is the colour of the glass (3,), measured on the image when not given; `smooth_px` is the width of the
    mean filter that takes out noise.
    """
    white = white_point(rgb) if white is None else white
    smooth = _smoothed(rgb, smooth_px)
    unscanned = smooth.max(-1) < _UNSCANNED
    return (_density(smooth, white).max(-1) > DENSITY) & ~unscanned


def optical_density(rgb: np.ndarray, *, white: np.ndarray, smooth_px: int) -> np.ndarray:
    """Optical density (H, W, 3) over glass of colour `white` (3,), base 10 as in pathology, of an image uint8."""
    return _density(_smoothed(rgb, smooth_px), white)


def _smoothed(rgb: np.ndarray, smooth_px: int) -> np.ndarray:
    return ndimage.uniform_filter(rgb.astype(np.float32), size=(smooth_px, smooth_px, 1), mode="nearest")


def _density(smooth: np.ndarray, white: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(white, 1.0) / np.maximum(smooth, 1.0))


def tissue_fraction(rgb: np.ndarray, *, white: np.ndarray | None = None) -> float:
    """Share (0 to 1) of the pixels of an image (H, W, 3) uint8 that are tissue."""
    return float(tissue_mask(rgb, white=white).mean())
