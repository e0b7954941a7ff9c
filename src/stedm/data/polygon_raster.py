"""Polygons as pixels by the pixel-centre rule, the same in every tile."""

import numpy as np
import shapely

_GRID = 2.0**20
"""Pixel centres are rounded to multiples of 1/_GRID: a tile and the whole image then compute the very same centres."""


def pixel_centres(start: float, *, count: int, step: float) -> np.ndarray:
    """Centres (count,) float64 of pixels `step` wide, the first of which begins at `start`; rounded to 2**-20."""
    return np.round((start + (np.arange(count) + 0.5) * step) * _GRID) / _GRID


def rasterise(polygons: np.ndarray, values: np.ndarray, *, x: np.ndarray, y: np.ndarray, fill: int) -> np.ndarray:
    """Label map (len(y), len(x)) uint8 of polygons, later ones on top of earlier ones, `fill` where there is none.

    A pixel belongs to a polygon exactly when its centre is inside: an odd number of edges cross the centre's row at or
    left of it. A centre on an edge belongs to the polygon right of or below that edge, and to that one only, so that
    polygons that share an edge neither overlap nor leave a gap. Whether a centre is inside depends on its position
    alone, so that tiles fit together.

    Args:
        polygons: (n,) valid shapely Polygons; holes are respected.
        values: (n,) uint8, what each polygon is painted with.
        x: centres of the columns, rising.
        y: centres of the rows, rising.
        fill: value of pixels in no polygon.
    """
    label_map = np.full((len(y), len(x)), fill, np.uint8)
    if not len(polygons) or not label_map.size:
        return label_map
    low, high, owner = _edges(polygons)
    first, last = np.searchsorted(y, low[:, 1]), np.searchsorted(y, high[:, 1])  # rows with low <= centre < high
    crossed = np.flatnonzero(last > first)
    edge = np.repeat(crossed, (last - first)[crossed])
    row = np.arange(len(edge)) - np.repeat(_before((last - first)[crossed]), (last - first)[crossed]) + first[edge]
    slope = (high[:, 0] - low[:, 0])[edge] / (high[:, 1] - low[:, 1])[edge]
    column = np.searchsorted(x, low[edge, 0] + (y[row] - low[edge, 1]) * slope)  # the first centre at or right of it
    # Closed rings cross a row an even number of times: sorted, crossings pair up to the spans that are inside.
    key = np.sort((owner[edge] * len(y) + row) * (len(x) + 1) + column)
    start, length = key[0::2], key[1::2] - key[0::2]
    owner_row, column = np.divmod(start, len(x) + 1)
    owners, row = np.divmod(owner_row, len(y))
    pixel = np.arange(length.sum()) + np.repeat(row * len(x) + column - _before(length), length)
    label_map.ravel()[pixel] = np.repeat(values[owners], length)  # of repeated pixels the last one stays
    return label_map


def _before(lengths: np.ndarray) -> np.ndarray:
    """Sum of the lengths before each one."""
    return np.cumsum(lengths) - lengths


def _edges(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends (E, 2) of every edge, that with the smaller y first, and the position of its polygon (E,).

    The order makes the two polygons at a common edge compute the same crossings.
    """
    _, vertices, (rings, parts) = shapely.to_ragged_array(polygons)
    owner = np.repeat(np.arange(len(polygons)), np.diff(rings[parts]))
    inside_ring = np.ones(len(vertices) - 1, bool)
    inside_ring[rings[1:-1] - 1] = False  # from the end of a ring to the start of the next
    start, end = vertices[:-1, :2][inside_ring], vertices[1:, :2][inside_ring]
    rises = (start[:, 1] < end[:, 1])[:, None]
    return np.where(rises, start, end), np.where(rises, end, start), owner[:-1][inside_ring]
