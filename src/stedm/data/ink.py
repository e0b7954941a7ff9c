"""Pen marks on slides, told from stained tissue by what they absorb and how broad they are."""

import numpy as np
from scipy import ndimage

STROKE_UM = 80.0
"""Ink narrower than this everywhere is no pen mark: vessels full of blood and pigment are not as broad."""
FRINGE_UM = 120.0
"""How far from the body of a stroke its pale edge may reach; a third of it for black, whose edge is grey as pale
immunohistochemistry may be."""
_PALE = 0.03
"""Optical density (largest channel) from which a pixel may be the edge of a stroke."""


def ink_mask(density: np.ndarray, *, mpp: float) -> np.ndarray:
    """True (H, W) on blue, green, red and black pen marks in an overview of optical densities (H, W, 3) over the glass.

    mpp: microns per pixel of the overview; from about 30 on, strokes of a fine pen are lost.
    """
    radius_px = max(1, round(STROKE_UM / 2 / mpp))
    disc = np.hypot(*np.ogrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]) <= radius_px + 0.5
    marks = np.zeros(density.shape[:2], bool)
    for body, edge, fringe_um in _inks(density):
        core = ndimage.binary_erosion(body, disc, border_value=1)  # strokes may be cut off
        if core.any():
            stroke = ndimage.binary_propagation(ndimage.binary_dilation(core, disc) & body, mask=body)
            near = ndimage.distance_transform_edt(~stroke) * mpp <= fringe_um
            marks |= ndimage.binary_dilation(ndimage.binary_propagation(stroke, mask=(edge & near) | stroke))
    return marks


def _inks(density: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Where (H, W) each ink may have the body and the pale edge of a stroke, and how far off: no stain absorbs so.

    Haematoxylin absorbs red and green about alike and blue half as much, eosin green most and red hardly, DAB blue most
    and red least. Green ink passes green best; blue ink passes far more blue than haematoxylin does; red ink absorbs
    blue about as much as green, eosin half as much; black ink absorbs everything. An edge is ink seen beside glass,
    which brings the channels closer together.
    """
    red, green, blue = np.moveaxis(density, -1, 0)
    strongest, weakest = density.max(-1), density.min(-1)
    body, edge = strongest > 0.3, strongest > _PALE
    green_ink = body & (green < 0.75 * red) & (green < 0.9 * blue)
    blue_ink = body & (blue < 0.39 * red) & (red > 0.75 * green)
    red_ink = body & (red < 0.25 * green) & (blue > 0.65 * green) & (green > 0.6)
    grey = weakest > 0.75 * strongest
    return [
        (green_ink, edge & (green < 0.9 * red) & (green < blue), FRINGE_UM),
        (blue_ink, edge & (blue < 0.7 * red) & (red > 0.75 * green), FRINGE_UM),
        (red_ink, edge & (red < 0.35 * green) & (blue > 0.6 * green), FRINGE_UM),
        (grey & (weakest > 0.5), edge & grey, FRINGE_UM / 3),
    ]
