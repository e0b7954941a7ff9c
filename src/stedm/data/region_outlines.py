"""Outlines of a label map: one polygon with holes per connected region of a class, traced band by band.

Regions are connected along pixel edges. While bands are read, only the corners of the outlines are collected: a pixel
grid outline is known from its corners, because along every line of the grid they pair up in order into edges. A region
is traced, handed out and forgotten as soon as a band ends without touching it.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from shapely import Polygon
from skimage.measure import label as connected

from stedm.config import IGNORE
from stedm.data.label_bands import LabelRows, Labels

_BLOCK_PX = 1024
# The pixels around a grid point: upper left, upper right, lower left, lower right. Of each: its neighbour across the
# vertical edge, across the horizontal edge, and across the point; and where the two edges of its corner lead, as
# (0 left, 1 right) and (0 up, 1 down).
_AROUND = ((0, 1, 2, 3, 0, 0), (1, 0, 3, 2, 1, 0), (2, 3, 0, 1, 0, 1), (3, 2, 1, 0, 1, 1))


@dataclass
class _Region:
    """A region while bands are read; corners: arrays (n, 4) of y, x and the directions of the two edges."""

    label: int
    area_px: int
    corners: list[NDArray[np.int32]] = field(default_factory=list)


def outlines(
    labels: LabelRows,
    *,
    tolerance_px: float = 0.4,
    min_area_px: float = 0.0,
    classes: Collection[int] | None = None,
    block_px: int = _BLOCK_PX,
) -> Iterator[tuple[int, Polygon]]:
    """Yield (class, polygon) of each region of at least `min_area_px`; pixel (y, x) covers x .. x + 1, y .. y + 1.

    tolerance_px: how far a polygon may be from the outline that takes half a pixel off every corner; 0 follows the
    edges of the pixels. Holes smaller than `min_area_px` are closed. classes: those that are traced; None: all.
    Memory: a band of `block_px` rows, and the corners of the regions it touches.
    """
    traced = np.full(256, IGNORE, np.uint8)
    kept = list(range(IGNORE) if classes is None else classes)
    traced[kept] = kept
    tracer = _Tracer(labels.width_px)
    for y in range(0, labels.height_px + 1, block_px):  # one row of nothing below the last, to close what is open
        rows = traced[labels.rows(y, min(y + block_px, labels.height_px))] if y < labels.height_px else None
        for region in tracer.closed_by(y, rows, block_px):
            if region.area_px >= min_area_px:
                yield region.label, _polygon(np.concatenate(region.corners), tolerance_px, min_area_px)


class _Tracer:
    """Regions that are open at the lower border of the rows seen so far."""

    def __init__(self, width_px: int) -> None:
        self._width_px = width_px
        self._regions: dict[int, _Region] = {}
        self._parent: dict[int, int] = {}
        self._above = np.full(width_px + 2, IGNORE, np.uint8)  # with a pixel of nothing on either side
        self._above_ids = np.zeros(width_px + 2, np.int64)
        self._next_id = 1

    def closed_by(self, y: int, rows: Labels | None, block_px: int) -> list[_Region]:
        """Take in a band of rows that begins at `y`, the last one shorter than `block_px` or None; regions it ends."""
        height = min(block_px, (0 if rows is None else len(rows)) + 1)
        band = np.full((height + 1, self._width_px + 2), IGNORE, np.uint8)
        band[0] = self._above
        if rows is not None:
            band[1 : len(rows) + 1, 1:-1] = rows
        bottom_ids, left_ids = np.zeros_like(self._above_ids), np.zeros(height, np.int64)
        for x in range(0, self._width_px + 1, block_px):
            pixels = band[:, x : x + block_px + 1]
            ids = np.zeros(pixels.shape, np.int64)
            ids[0], ids[1:, 0] = self._above_ids[x : x + block_px + 1], left_ids
            if (pixels != IGNORE).any():
                self._add_regions(pixels, ids)
                self._add_corners(pixels, ids, y, x)
            left_ids = ids[1:, -1]
            bottom_ids[x + 1 : x + block_px + 1] = ids[-1, 1:]
        self._above = band[-1]
        return self._close(bottom_ids)

    def _add_regions(self, pixels: Labels, ids: NDArray[np.int64]) -> None:
        """Number the regions of a block, whose first row and column are its neighbours', and join them with those."""
        inner = pixels[1:, 1:]
        numbers = connected(inner, background=IGNORE, connectivity=1)
        areas = np.bincount(numbers.ravel())
        classes = np.zeros(len(areas), np.uint8)
        classes[numbers] = inner
        for number in range(1, len(areas)):
            region = self._next_id + number - 1
            self._parent[region] = region
            self._regions[region] = _Region(int(classes[number]), int(areas[number]))
        ids[1:, 1:] = np.where(numbers > 0, numbers + (self._next_id - 1), 0)
        self._next_id += len(areas) - 1
        for mine, other in ((np.s_[1, 1:], np.s_[0, 1:]), (np.s_[1:, 1], np.s_[1:, 0])):
            touching = (pixels[mine] == pixels[other]) & (pixels[mine] != IGNORE)
            for a, b in np.unique(np.stack([ids[mine][touching], ids[other][touching]]), axis=1).T.tolist():
                self._join(a, b)

    def _add_corners(self, pixels: Labels, ids: NDArray[np.int64], y: int, x: int) -> None:
        """Collect the corners at the upper left of every pixel of a block that begins at (y, x)."""
        views = (np.s_[:-1, :-1], np.s_[:-1, 1:], np.s_[1:, :-1], np.s_[1:, 1:])
        first = pixels[views[0]]
        ys, xs = np.nonzero((first != pixels[views[1]]) | (first != pixels[views[2]]) | (first != pixels[views[3]]))
        around, owners = ([array[view][ys, xs] for view in views] for array in (pixels, ids))
        parts, names = [], []
        for q, beside, over, across, horizontal, vertical in _AROUND:
            outward = (around[q] != around[beside]) & (around[q] != around[over])
            inward = outward & (around[beside] == around[over]) & (around[beside] == around[across])
            for there, owner in ((outward & (around[q] != IGNORE), q), (inward & (around[beside] != IGNORE), beside)):
                corners = np.empty((int(there.sum()), 4), np.int32)
                corners[:, 0], corners[:, 1] = ys[there] + y, xs[there] + x
                corners[:, 2:] = horizontal, vertical
                parts.append(corners)
                names.append(owners[owner][there])
        corners, regions = np.concatenate(parts), np.concatenate(names)
        order = np.argsort(regions, kind="stable")
        present, starts = np.unique(regions[order], return_index=True)
        for region, group in zip(present.tolist(), np.split(corners[order], starts)[1:], strict=True):
            self._regions[self._root(region)].corners.append(group)

    def _root(self, region: int) -> int:
        while self._parent[region] != region:
            self._parent[region] = self._parent[self._parent[region]]
            region = self._parent[region]
        return region

    def _join(self, a: int, b: int) -> None:
        a, b = sorted((self._root(a), self._root(b)))
        if a != b:
            region = self._regions.pop(b)
            self._parent[b] = a
            self._regions[a].area_px += region.area_px
            self._regions[a].corners += region.corners

    def _close(self, bottom_ids: NDArray[np.int64]) -> list[_Region]:
        """Forget the regions that do not reach the lower border, and return them."""
        present, inverse = np.unique(bottom_ids, return_inverse=True)
        roots = [self._root(region) if region else 0 for region in present.tolist()]
        self._above_ids = np.array(roots, np.int64)[inverse]
        self._parent = {root: root for root in roots if root}
        return [self._regions.pop(root) for root in list(self._regions) if root not in self._parent]


def _polygon(corners: NDArray[np.int32], tolerance_px: float, min_area_px: float) -> Polygon:
    """The polygon of a region; where simplified outlines would cross, half of the tolerance, and so on."""
    shell, *holes = (ring if tolerance_px == 0 else _bevelled(ring) for ring in _rings(corners))
    polygon = Polygon(shell, [hole for hole in holes if _area(hole) >= min_area_px])
    for tolerance in (tolerance_px, tolerance_px / 2, tolerance_px / 4) if tolerance_px else ():
        simple = polygon.simplify(tolerance, preserve_topology=False)
        if simple.geom_type == "Polygon" and simple.is_valid and not simple.is_empty:
            return simple
    return polygon


def _area(ring: NDArray[np.float64]) -> float:
    ahead = np.roll(ring, -1, 0)
    return abs(float((ring[:, 0] * ahead[:, 1] - ring[:, 1] * ahead[:, 0]).sum())) / 2


def _rings(corners: NDArray[np.int32]) -> Iterable[NDArray[np.float64]]:
    """The closed outlines (n, 2), as x and y, of a region with these corners: the outer one first, then its holes.

    Along a row of the grid the corners pair up, first with second and so on, and so they do along a column. Where a
    region touches itself at a point, the two corners there are turned so that the outlines do not cross.
    """
    corners = corners[np.lexsort((corners[:, 2], corners[:, 1], corners[:, 0]))]
    twin = np.flatnonzero((corners[1:, :2] == corners[:-1, :2]).all(1))
    corners[twin, 3], corners[twin + 1, 3] = corners[twin + 1, 3], corners[twin, 3]
    by_column = np.lexsort((corners[:, 3], corners[:, 0], corners[:, 1]))
    across = np.empty(len(corners), np.intp)
    across[by_column[::2]], across[by_column[1::2]] = by_column[1::2], by_column[::2]
    # From edge to edge along rows: corner k leads to its pair k ^ 1, and from there down or up its column.
    following = across[np.arange(len(corners)) ^ 1].tolist()
    seen = bytearray(len(corners) // 2)
    points = corners[:, 1::-1].astype(np.float64)
    for start in range(0, len(corners), 2):
        if not seen[start >> 1]:
            ring, at = [], start
            while not seen[at >> 1]:
                seen[at >> 1] = 1
                ring.append(at)
                at = following[at]
            at_edges = np.array(ring)
            yield points[np.stack([at_edges, at_edges ^ 1], 1).ravel()]


def _bevelled(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring with half a pixel taken off every corner: a staircase becomes the line that it stands for."""
    ahead, behind = np.roll(ring, -1, 0), np.roll(ring, 1, 0)
    cut = np.stack([ring + np.sign(behind - ring) / 2, ring + np.sign(ahead - ring) / 2], 1).reshape(-1, 2)
    return cut[(cut != np.roll(cut, 1, 0)).any(1)]
