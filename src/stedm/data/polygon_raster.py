"""Polygons as pixels by the pixel-centre rule, the same in every tile."""

from dataclasses import dataclass, replace

import numpy as np
import shapely

_GRID = 2.0**20
"""Pixel centres are rounded to multiples of 1/_GRID: a tile and the whole image then compute the very same centres."""
_MANY, _RUN = 1024, 64
"""Vertices from which on a polygon's edges are kept in runs, and the edges of a run."""


def pixel_centres(start: float, *, count: int, step: float) -> np.ndarray:
    """Centres (count,) float64 of pixels `step` wide, the first of which begins at `start`; rounded to 2**-20."""
    return np.round((start + (np.arange(count) + 0.5) * step) * _GRID) / _GRID


@dataclass(frozen=True)
class Edges:
    """Edges of polygons: all of them, or at least those that cross certain rows."""

    low: np.ndarray
    """(E, 2) float64: the end with the smaller y, as x and y."""
    high: np.ndarray
    """(E, 2) float64: the other end."""
    owner: np.ndarray
    """(E,) position of each edge's polygon among those asked for."""

    @classmethod
    def of(cls, polygons: np.ndarray) -> "Edges":
        """All edges of polygons (n,)."""
        if not len(polygons):
            return cls(np.empty((0, 2)), np.empty((0, 2)), np.empty(0, int))
        _, vertices, (rings, parts) = shapely.to_ragged_array(polygons)
        first = np.flatnonzero(_in_ring(rings))
        return cls.from_ends(vertices, first, np.repeat(np.arange(len(polygons)), np.diff(rings[parts]))[first])

    @classmethod
    def from_ends(cls, vertices: np.ndarray, first: np.ndarray, owner: np.ndarray) -> "Edges":
        """Those from the vertices (V, 2 or more) at `first` (E,) to the ones behind them.

        The order of an edge's ends makes the two polygons at a common edge compute the same crossings.
        """
        start, end = vertices[first, :2], vertices[first + 1, :2]
        rises = (start[:, 1] < end[:, 1])[:, None]
        return cls(np.where(rises, start, end), np.where(rises, end, start), owner)


class EdgeTable:
    """Edges of many polygons, by row: of a polygon with many, only those near the rows that are asked for."""

    def __init__(self, polygons: np.ndarray) -> None:
        """polygons: (n,) shapely Polygons."""
        self._polygons = polygons
        self._large = shapely.get_num_coordinates(polygons) >= _MANY
        self._runs = {int(k): _Runs(polygons[k]) for k in np.flatnonzero(self._large)}

    def between(self, chosen: np.ndarray, *, top: float, bottom: float) -> Edges:
        """At least the edges of `chosen` (m,) polygons that cross rows with centres from `top` to `bottom`."""
        large = self._large[chosen]
        small = np.flatnonzero(~large)
        direct = Edges.of(self._polygons[chosen[small]])
        found = [replace(direct, owner=small[direct.owner])]
        found += [self._runs[int(chosen[at])].between(top, bottom, int(at)) for at in np.flatnonzero(large)]
        return Edges(*(np.concatenate([getattr(edges, name) for edges in found]) for name in ("low", "high", "owner")))


class _Runs:
    """One polygon's vertices, and from where to where runs of its edges reach."""

    def __init__(self, polygon: shapely.Polygon) -> None:
        _, vertices, (rings, _) = shapely.to_ragged_array([polygon])
        self._vertices, self._first = vertices[:, :2].copy(), np.flatnonzero(_in_ring(rings))
        y = self._vertices[:, 1]
        starts = np.arange(0, len(self._first), _RUN)
        self._lowest = np.minimum.reduceat(np.minimum(y[self._first], y[self._first + 1]), starts)
        self._highest = np.maximum.reduceat(np.maximum(y[self._first], y[self._first + 1]), starts)

    def between(self, top: float, bottom: float, owner: int) -> Edges:
        """See `EdgeTable.between`; neighbours along an outline are neighbours on the slide, so that few runs remain."""
        runs = np.flatnonzero((self._lowest <= bottom) & (self._highest > top))
        at = (runs[:, None] * _RUN + np.arange(_RUN)).ravel()
        first = self._first[at[at < len(self._first)]]
        return Edges.from_ends(self._vertices, first, np.full(len(first), owner))


def rasterise(edges: Edges, values: np.ndarray, *, x: np.ndarray, y: np.ndarray, fill: int) -> np.ndarray:
    """Label map (len(y), len(x)) uint8 of polygons, later ones on top of earlier ones, `fill` where there is none.

    A pixel belongs to a polygon exactly when its centre is inside: an odd number of edges cross the centre's row at or
    left of it. A centre on an edge belongs to the polygon right of or below that edge, and to that one only, so that
    polygons that share an edge neither overlap nor leave a gap. Whether a centre is inside depends on its position
    alone, so that tiles fit together.

    Args:
        edges: those of n valid Polygons, at least where they cross the rows; holes are respected.
        values: (n,) uint8, what each polygon is painted with.
        x: centres of the columns, rising.
        y: centres of the rows, rising.
        fill: value of pixels in no polygon.
    """
    label_map = np.full((len(y), len(x)), fill, np.uint8)
    if not len(edges.owner) or not label_map.size:
        return label_map
    low, high, owner = edges.low, edges.high, edges.owner
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


def _in_ring(rings: np.ndarray) -> np.ndarray:
    """Whether an edge goes from a vertex to the next (V,): not from the end of a ring to the start of the next one.

    rings: (R + 1,) position of each ring's first vertex, and the number of vertices V.
    """
    inside = np.ones(rings[-1], bool)
    inside[rings[1:] - 1] = False
    return inside
