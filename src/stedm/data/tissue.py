"""Tissue and glass told apart by optical density, so that pale immunohistochemistry counts as tissue."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

DENSITY = 0.03
"""Optical density above the glass (largest of the three channels) from which a smoothed pixel is tissue."""
_PALE_DENSITY = 0.02
"""The same where the glass of a whole slide was found as a peak, and so is known better."""
_GLASS_SHARE = 0.01
_UNSCANNED = 20
"""Largest channel of the black that some scanners fill in, at most."""
_WHITE_FILL = 254
"""Smallest channel of the white that others fill in, at least: some compress it."""
_PEAK_SHARE = 0.02
"""Share of what was scanned that a peak of brightness must hold to be glass."""
_MOST_PX = 2048
"""Pixels across in which glass is looked for; of larger overviews, every second, third, ... pixel."""


class Glass(NamedTuple):
    """The glass of an image."""

    colour: np.ndarray
    """Its colour (3,) float, 0 to 255."""
    density: float
    """Optical density above it from which a smoothed pixel is tissue."""


def slide_glass(overview: np.ndarray) -> Glass:
    """Glass in an overview (H, W, 3) uint8 of a whole slide, dim and tinted glass too.

    Glass is flat: in a histogram of brightness it is a narrow peak, the brightest one in a colour that glass may have.
    Tissue is textured and makes a broad hill. What is quite without noise was filled in by the scanner, unless no
    other glass is found; smoothed noise is looked at last. Without a peak, `white_point` decides.
    """
    step = -(-max(overview.shape[:2]) // _MOST_PX)
    seen = overview[1:-1:step, 1:-1:step]  # the outermost pixels may lie half outside
    inner, sums = seen[1:-1, 1:-1].transpose(2, 0, 1), _box_sums(seen.transpose(2, 0, 1), 3)
    scanned = (sums.min(0) < 9 * _WHITE_FILL) & (sums.max(0) >= 9 * _UNSCANNED)
    noisy = scanned & ~ndimage.binary_dilation((sums == 9 * inner.astype(sums.dtype)).all(0), np.ones((3, 3)))
    least = _PEAK_SHARE * np.count_nonzero(scanned)
    for pixels in (inner[:, noisy], (sums[:, scanned] + 4) // 9):
        colour = _peak_colour(pixels, least)
        if colour is not None:
            return Glass(colour, _PALE_DENSITY)
    return Glass(white_point(overview), DENSITY)


def _peak_colour(pixels: np.ndarray, least: float) -> np.ndarray | None:
    """Colour (3,) of the brightest narrow peak of at least so many pixels that may be glass; pixels: (3, N), 0 to 255.

    Narrow is a standard deviation below about 3 grey levels: five to either side, a quarter of the height is left.
    """
    level = pixels.sum(0, dtype=np.uint16) // 3
    near = np.convolve(np.bincount(level, minlength=256), [1, 2, 3, 2, 1], "same")
    aside = np.pad(near, 5)
    is_peak = (near >= 3 * least) & (4 * np.maximum(aside[:-10], aside[10:]) < near)
    is_peak &= near == ndimage.maximum_filter1d(near, 5)
    for peak in np.flatnonzero(is_peak)[::-1]:
        colour = np.median(pixels[:, (level >= peak - 2) & (level <= peak + 2)], axis=1)
        if _may_be_glass(colour):
            return colour
    return None


def _may_be_glass(colour: np.ndarray) -> bool:
    """Whether glass may have a colour (3,): lamps tint it yellow or blue; stains as pale as that absorb green most."""
    red, green, blue = colour
    return bool(min(colour) >= 150 and min(colour) >= 0.8 * max(colour) and green >= 0.92 * min(red, blue))


def white_point(rgb: np.ndarray) -> np.ndarray:
    """Colour of the glass (3,) float in an image (H, W, 3) uint8: the median of its bright, colourless pixels.

    Bright is >= 215 in all channels, colourless a spread <= 20. Pure white (255) does not count, because scanners fill
    in what they left out with it; white is the answer when fewer than 1 % of the pixels are left.
    """
    red, green, blue = (rgb[..., channel] for channel in range(3))  # numpy is slow on runs of three
    darkest = np.minimum(np.minimum(red, green), blue)
    spread = np.maximum(np.maximum(red, green), blue) - darkest
    bright = (darkest >= 215) & (darkest < 255) & (spread <= 20)
    if bright.mean() < _GLASS_SHARE:
        return np.full(3, 255.0)
    glass = rgb[bright].astype(float)
    return np.median(glass[glass.sum(-1) >= np.median(glass.sum(-1))], axis=0)


def tissue_mask(
    rgb: np.ndarray, *, white: np.ndarray | None = None, smooth_px: int = 5, density: float = DENSITY
) -> np.ndarray:
    """True (H, W) where an image (H, W, 3) uint8 shows tissue: stained at all, and not the black of unscanned area.

    `white` is the colour of the glass (3,), measured on the image when not given; `smooth_px`, odd, is the width of
    the mean filter that takes out noise; `density` above the glass is tissue.
    """
    white = white_point(rgb) if white is None else white
    count, reach = smooth_px**2, smooth_px // 2
    sums = _box_sums(_edged(rgb, reach), smooth_px)
    # Sums are whole numbers: below a limit is below the next whole number.
    glass = np.ceil(np.maximum(white, 1.0) * 10.0**-density * count).astype(sums.dtype)
    found: np.ndarray = (sums[0] < glass[0]) | (sums[1] < glass[1]) | (sums[2] < glass[2])
    black = sums < sums.dtype.type(_UNSCANNED * count)
    if black.any():
        found &= ~black.all(0)
    return found


def optical_density(rgb: np.ndarray, *, white: np.ndarray) -> np.ndarray:
    """Optical density (H, W, 3) over glass of colour `white` (3,), base 10 as in pathology, of an image uint8."""
    return np.log10(np.maximum(white, 1.0) / np.maximum(rgb, 1.0))


def _edged(rgb: np.ndarray, reach: int) -> np.ndarray:
    """The image, outermost pixels repeated, (3, H + 2 reach, W + 2 reach): numpy is slow on runs of three.

    `np.pad` takes ten times as long for a patch.
    """
    height, width = rgb.shape[:2]
    edged = np.empty((3, height + 2 * reach, width + 2 * reach), rgb.dtype)
    inner = edged[:, reach : reach + height]
    inner[..., reach : reach + width] = rgb.transpose(2, 0, 1)
    inner[..., :reach] = inner[..., reach : reach + 1]
    inner[..., reach + width :] = inner[..., reach + width - 1 : reach + width]
    edged[:, :reach], edged[:, reach + height :] = inner[:, :1], inner[:, -1:]
    return edged


def _box_sums(planes: np.ndarray, width_px: int) -> np.ndarray:
    """Sums (3, H - width + 1, W - width + 1) over every square of `width_px`; whole numbers, so exact."""
    height, width = (size - width_px + 1 for size in planes.shape[1:])
    wide = planes.astype(np.uint16 if 255 * width_px**2 < 2**16 else np.uint32)
    if width_px == 1:
        return wide
    rows = wide[:, :height] + wide[:, 1 : 1 + height]
    for start in range(2, width_px):
        rows += wide[:, start : start + height]
    sums = rows[..., :width] + rows[..., 1 : 1 + width]
    for start in range(2, width_px):
        sums += rows[..., start : start + width]
    return sums


def tissue_fraction(rgb: np.ndarray, *, white: np.ndarray | None = None) -> float:
    """Share (0 to 1) of the pixels of an image (H, W, 3) uint8 that are tissue."""
    return float(tissue_mask(rgb, white=white).mean())
