"""Outlines as they come from a file, collected ring by ring and built into polygons all at once."""

from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np
import shapely


@dataclass
class Tally:
    """What a reader did to the shapes of a file."""

    repaired: int = 0
    """Polygons that crossed or touched themselves and were repaired."""
    without_area: int = 0
    """Polygons of fewer than three different points, or on one line: left out."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Shapes without area, such as points and lines, by the name of their kind: left out."""

    def notices(self) -> list[str]:
        """One sentence for each thing worth knowing."""
        found = [f"{self.repaired} invalid polygon(s) repaired"] if self.repaired else []
        found += [f"{self.without_area} polygon(s) without area left out"] if self.without_area else []
        return found + [f"{count} x {kind} left out, without area" for kind, count in self.skipped.items()]


class Outlines:
    """Collects polygons with a key each (what the file says of their class); flat arrays, so that millions fit."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._coordinates = array("d")
        self._ring_points = array("l")
        self._polygon_rings = array("l")
        self._polygon_keys = array("l")
        self._keys: dict[Hashable, int] = {}

    def add(self, key: Hashable, rings: Iterable[Sequence[Sequence[float]]]) -> None:
        """One polygon: its outer ring, then its holes, each a sequence of positions (x, y, ...), closed or not.

        Raises ValueError for what is no sequence of positions, and for numbers that are not finite.
        """
        count = 0
        try:
            for ring in rings:
                widths = set(map(len, ring))
                if min(widths, default=2) < 2:
                    raise ValueError("a position has fewer than two numbers")
                flat = chain.from_iterable(ring if widths == {2} else [position[:2] for position in ring])
                self._ring(flat, len(ring))
                count += 1
        except TypeError as error:
            raise ValueError(f"a coordinate is no number, or a ring no list of positions: {error}") from None
        self._polygon(key, count)

    def add_flat(self, key: Hashable, coordinates: Sequence[float]) -> None:
        """One polygon without holes: x1, y1, x2, y2, ... Raises TypeError or ValueError for anything else."""
        if len(coordinates) % 2:
            raise ValueError(f"{len(coordinates)} coordinates, which is no whole number of points")
        self._ring(coordinates, len(coordinates) // 2)
        self._polygon(key, 1)

    def skip(self, kind: str) -> None:
        """Count a shape that is left out because it has no area."""
        self.tally.skipped[kind] = self.tally.skipped.get(kind, 0) + 1

    def build(self) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Polygons (n,), the position of each one's key (n,), and the keys; valid, with area, in the order of the file.

        A polygon that crosses itself is repaired and may become several; the tally says how many.
        """
        points = np.frombuffer(self._coordinates, np.float64).reshape(-1, 2)
        ring_points, polygon_rings, key_of = (
            np.frombuffer(values, values.typecode)
            for values in (self._ring_points, self._polygon_rings, self._polygon_keys)
        )
        polygon_of_ring = np.repeat(np.arange(len(polygon_rings)), polygon_rings)
        encloses = _corners(points, ring_points) >= 3
        outer = np.zeros(len(polygon_rings), bool)
        outer[polygon_rings > 0] = encloses[(np.cumsum(polygon_rings) - polygon_rings)[polygon_rings > 0]]
        kept = encloses & outer[polygon_of_ring]
        self.tally.without_area += int((~outer).sum())
        if not kept.any():
            return np.empty(0, object), np.empty(0, int), list(self._keys)
        ring_of_point = np.repeat(np.cumsum(kept) - 1, np.where(kept, ring_points, 0))
        rings = shapely.linearrings(points[np.repeat(kept, ring_points)], indices=ring_of_point)
        polygons = shapely.polygons(rings, indices=(np.cumsum(outer) - 1)[polygon_of_ring[kept]])
        polygons, position = self._repaired(polygons)
        return polygons, key_of[outer][position], list(self._keys)

    def _repaired(self, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Valid polygons with area only, and which of `polygons` each one comes from."""
        wrong = np.flatnonzero(~shapely.is_valid(polygons))
        # What is enclosed twice stays enclosed: "structure" makes no hole where a hand-drawn line crosses itself.
        polygons[wrong] = shapely.make_valid(polygons[wrong], method="structure", keep_collapsed=False)
        areas = shapely.area(polygons)
        self.tally.repaired += int((areas[wrong] > 0).sum())
        self.tally.without_area += int((areas == 0).sum())
        parts, position = shapely.get_parts(polygons, return_index=True)
        with_area = shapely.area(parts) > 0
        return parts[with_area], position[with_area]

    def _ring(self, coordinates: Iterable[float], points: int) -> None:
        start = len(self._coordinates)
        self._coordinates.extend(coordinates)
        if len(self._coordinates) - start != 2 * points:
            raise ValueError("a position has fewer than two numbers")
        added = self._coordinates[start:]
        if not isfinite(sum(added)) and not all(map(isfinite, added)):  # the sum of large numbers may be infinite
            raise ValueError("a coordinate is not finite")
        self._ring_points.append(points)

    def _polygon(self, key: Hashable, rings: int) -> None:
        self._polygon_rings.append(rings)
        self._polygon_keys.append(self._keys.setdefault(key, len(self._keys)))


def _corners(points: np.ndarray, ring_points: np.ndarray) -> np.ndarray:
    """Points of each ring (R,), the last one not counted when it repeats the first."""
    end = np.cumsum(ring_points)
    corners = ring_points.copy()
    some = ring_points > 0
    corners[some] -= (points[(end - ring_points)[some]] == points[end[some] - 1]).all(axis=1)
    return corners
