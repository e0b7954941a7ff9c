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
    """True (H, W) on pen marks in an overview of optical densities (H, W, 3) over the glass.

    These are blue, green, yellow, orange and black ink, red ink that absorbs as blood does not, and grey and any red
    ink that lies mostly on bare glass.
    mpp: microns per pixel of the overview; from about 30 on, strokes of a fine pen are lost.
    """
    marks = np.zeros(density.shape[:2], bool)
    for body, edge, fringe_um in _inks(density):
        broad = _broad(body, mpp=mpp)
        if broad.any():
            stroke = ndimage.binary_propagation(broad, mask=body)
            near = ndimage.distance_transform_edt(~stroke) * mpp <= fringe_um
            marks |= ndimage.binary_dilation(ndimage.binary_propagation(stroke, mask=(edge & near) | stroke))
    return marks | _marks_on_glass(density, mpp=mpp)


def _broad(body: np.ndarray, *, mpp: float) -> np.ndarray:
    """The parts (H, W) of `body` that are as broad as a stroke."""
    radius_px = max(1, round(STROKE_UM / 2 / mpp))
    disc = np.hypot(*np.ogrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]) <= radius_px + 0.5
    core = ndimage.binary_erosion(body, disc, border_value=1)  # strokes may be cut off
    broad: np.ndarray = ndimage.binary_dilation(core, disc) & body if core.any() else core
    return broad


def _marks_on_glass(density: np.ndarray, *, mpp: float) -> np.ndarray:
    """True (H, W) on broad strokes of grey and of any red ink that have more glass than anything else around them.

    Grey absorbs all channels alike, and ink is even, as grey immunohistochemistry is not: a standard deviation below a
    tenth. Haematoxylin and DAB together, at their greyest, absorb green a seventh more. Red ink and blood may absorb
    alike, but blood lies in tissue.
    """
    level = density.mean(-1)
    mean, square = ndimage.uniform_filter(level, 3), ndimage.uniform_filter(level**2, 3)
    even = square < 1.01 * mean**2
    density = ndimage.uniform_filter(density, (3, 3, 1))  # noise hides of which channels there is least
    red, green, blue = np.moveaxis(density, -1, 0)
    strongest, weakest = density.max(-1), density.min(-1)
    glass = strongest <= _PALE
    grey = (weakest > 0.85 * strongest) & (red > 0.9 * blue) & (green < 0.55 * (red + blue))
    body = grey & even & (weakest > 0.25)
    marks = _if_on_glass(_broad(body, mpp=mpp), grey & ~glass, glass, reach_px=FRINGE_UM / 3 / mpp)
    body = (green > 0.5) & (red < 0.25 * green) & (blue > 0.5 * green)
    edge = (red < 0.4 * green) & (blue > 0.4 * green) & ~glass
    return marks | _if_on_glass(_broad(body, mpp=mpp), edge, glass, reach_px=FRINGE_UM / mpp)


def _if_on_glass(marks: np.ndarray, edge: np.ndarray, glass: np.ndarray, *, reach_px: float) -> np.ndarray:
    """Those pieces (H, W) of `marks`, with their edges up to `reach_px` off, that have mostly glass next to them."""
    if not marks.any():
        return marks
    near = ndimage.distance_transform_edt(~marks) <= reach_px
    marks = ndimage.binary_propagation(marks, mask=(near & edge) | marks)
    pieces, count = ndimage.label(ndimage.binary_dilation(marks))
    around = np.where(pieces > 0, 0, ndimage.grey_dilation(pieces, 5)).ravel()
    bare = np.bincount(around, glass.ravel(), count + 1)
    on_glass: np.ndarray = (pieces > 0) & (bare > np.bincount(around, minlength=count + 1) / 2)[pieces]
    return on_glass


def _inks(density: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Where (H, W) each ink may have the body and the pale edge of a stroke, and how far off: no stain absorbs so.

    Haematoxylin absorbs red and green about alike and blue half as much, eosin green most and red hardly, DAB blue most
    and red least. Green ink passes green best; blue ink passes far more blue than haematoxylin does; red ink absorbs
    blue about as much as green, eosin half as much, and less red than blood does; yellow and orange ink absorb blue
    alone, or hardly more; black ink absorbs everything alike, melanin red less than blue. An edge is ink seen beside
    glass, which brings the channels closer together.
    """
    red, green, blue = np.moveaxis(density, -1, 0)
    strongest, weakest = density.max(-1), density.min(-1)
    body, edge = strongest > 0.3, strongest > _PALE
    green_ink = body & (green < 0.75 * red) & (green < 0.9 * blue)
    blue_ink = body & (blue < 0.39 * red) & (red > 0.75 * green)
    red_ink = (green > 0.77) & (red < 0.165 * green) & (blue > 0.65 * green)
    yellow_ink = body & (red < 0.12 * blue) & (green < 0.2 * blue)
    orange_ink = (blue > 0.75) & (red < 0.12 * blue) & (green < 0.45 * blue)
    grey = (weakest > 0.75 * strongest) & (red > 0.9 * blue)
    return [
        (green_ink, edge & (green < 0.9 * red) & (green < blue), FRINGE_UM),
        (blue_ink, edge & (blue < 0.7 * red) & (red > 0.75 * green), FRINGE_UM),
        (red_ink, edge & (red < 0.35 * green) & (blue > 0.6 * green), FRINGE_UM),
        (yellow_ink | orange_ink, edge & (red < 0.2 * blue) & (green < 0.5 * blue), FRINGE_UM),
        (grey & (weakest > 0.5), edge & grey, FRINGE_UM / 3),
    ]
