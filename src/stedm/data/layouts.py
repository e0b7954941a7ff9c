"""Layouts for generation: warped annotated label maps, and random fields that follow such maps in what is measured."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from stedm.data.layout_fields import cell_field, smooth_fields, solve_offsets
from stedm.data.layout_statistics import class_counts, compare, correlation_length, measure
from stedm.data.layout_structure import border_affinity, border_lengths, bulge, fill_ignored

_SIGMA_PER_LENGTH = 0.64
"""A field smoothed with sigma s has the autocorrelation r = exp(-d^2 / 4 s^2), and its sign 2 / pi asin(r), which is
1/e at d = 1.56 s: so s = 0.64 times the regions' correlation length."""
_SPACING_PER_LENGTH = 2.8
"""Distance of neighbouring cells over the correlation length, for cells that fill two thirds of the area."""
_CELLS_PER_BULGE = 3.0
"""Loading on the cells over the curvature of a class's borders (times the correlation length)."""
_MOST_CELLS = 4.0
_MOST_CORRECTION = 4.0
_MOST_MAPS = 128
_CALIBRATION_PX = 128
_ROUNDS = 8
_NEAREST = 8
"""How many maps, those nearest in composition, may lend the architecture when a user gives the composition."""


class RealLayouts:
    """Annotated label maps (N, H, H) uint8, drawn with random flips, rotations, scale and elastic warps."""

    def __init__(self, label_maps: np.ndarray, *, scale: float = 1.25, elastic_px: float = 3.0) -> None:
        """`scale`: largest zoom factor, in or out; `elastic_px`: standard deviation of the local displacement."""
        if len(label_maps) == 0:
            raise ValueError("no label map given; real layouts need at least one annotated patch")
        self._label_maps, self._scale, self._elastic_px = label_maps, scale, elastic_px

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A warped label map (H, H) uint8 and the position of its source."""
        source = int(rng.integers(len(self._label_maps)))
        return self.warp(source, rng), source

    def warp(self, source: int, rng: np.random.Generator) -> np.ndarray:
        """Label map number `source`, warped at random, (H, H) uint8. Outside of the source it is mirrored."""
        label_map = self._label_maps[source]
        if rng.random() < 0.5:
            label_map = label_map[::-1]
        size_px = len(label_map)
        angle, zoom = rng.uniform(0, 2 * np.pi), self._scale ** rng.uniform(-1, 1)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        centred = np.indices((size_px, size_px), np.float64) - (size_px - 1) / 2  # (2, H, H)
        local = self._elastic_px * smooth_fields(2, size_px, size_px / 8, rng)
        coordinates = np.tensordot(turn, centred, axes=1) + local + (size_px - 1) / 2
        # The value that interpolates highest wins: contours stay smooth where nearest-pixel look-up would fray them.
        values = np.unique(label_map)
        shares = [
            ndimage.map_coordinates((label_map == value).astype(np.float32), coordinates, order=1, mode="reflect")
            for value in values
        ]
        return values[np.argmax(shares, axis=0)]


@dataclass(frozen=True)
class PriorLayouts:
    """Layouts from random fields that match class fractions, region sizes and neighbourhoods; measure with `fit`.

    Every class has a field; a pixel gets the class whose field, plus an offset, is the largest, with offsets solved for
    the fractions wanted. A field is a smooth random one plus `cells` times a cellular one that all classes share, so
    that classes with a high value lie within cells, those with a low one between them, and those in the middle around
    the first: glands. Smooth fields of classes that share borders are correlated: where one is high the other is too,
    and so they meet. Each draw follows one of M measured maps in its fractions, borders, cells and scale.
    """

    fractions: np.ndarray
    """(M, C) class fractions of the maps."""
    mixing: np.ndarray
    """(M, C, C) square root of the correlation of the smooth fields."""
    cells: np.ndarray
    """(M, C) loading of the classes on the cellular field, in standard deviations of the smooth ones."""
    length_px: np.ndarray
    """(M,) correlation length of the regions, pixels: the lag at which their autocorrelation falls to 1/e."""
    size_px: int
    """Width and height of the layouts."""

    @classmethod
    def fit(cls, label_maps: np.ndarray, num_classes: int) -> "PriorLayouts":
        """Measure label maps (N, H, H) uint8 with classes below `num_classes`; ignore pixels are left out.

        What is measured is then corrected by what layouts drawn with it measure: the scale of each map until its
        borders are as long as wanted, the cells of each class until its regions are as large. Of more than 128 maps,
        evenly spaced ones are used. Raises ValueError when no map has a labelled pixel.
        """
        counts = class_counts(label_maps, num_classes)  # (N, C)
        labelled = np.flatnonzero(counts.sum(axis=1))
        if len(labelled) == 0:
            raise ValueError("no labelled pixel in the label maps; prior layouts are measured on annotated patches")
        used = labelled[np.linspace(0, len(labelled) - 1, min(len(labelled), _MOST_MAPS)).round().astype(int)]
        fractions = counts[used] / counts[used].sum(axis=1, keepdims=True)
        step = -(-label_maps.shape[1] // _CALIBRATION_PX)
        maps = fill_ignored(label_maps[used], num_classes)[:, ::step, ::step]
        small = _corrected(_measured(maps, fractions), maps)
        return replace(small, length_px=step * small.length_px, size_px=label_maps.shape[1])

    def draw(self, rng: np.random.Generator, *, fractions: np.ndarray | None = None) -> np.ndarray:
        """A layout (size_px, size_px) uint8 with every pixel in a class.

        fractions: (C,), sum 1, instead of a measured map's; the rest then follows a map of a similar composition.
        """
        if fractions is None:
            return self.follow(int(rng.integers(len(self.fractions))), rng)
        nearest = np.argsort(np.abs(self.fractions - fractions).sum(axis=1), kind="stable")[:_NEAREST]
        return self.follow(int(rng.choice(nearest)), rng, fractions=fractions)

    def follow(self, k: int, rng: np.random.Generator, *, fractions: np.ndarray | None = None) -> np.ndarray:
        """A layout (size_px, size_px) uint8 that follows map k in what is measured; `fractions` as in `draw`."""
        wanted = self.fractions[k] if fractions is None else fractions
        length_px = self.length_px[k]
        smooth = smooth_fields(len(wanted), self.size_px, _SIGMA_PER_LENGTH * length_px, rng)  # (C, H, H)
        fields = np.tensordot(self.mixing[k], smooth, axes=1)
        fields += self.cells[k][:, None, None] * cell_field(self.size_px, _SPACING_PER_LENGTH * length_px, rng)
        present = np.flatnonzero(wanted > 0)
        fields = fields.reshape(len(wanted), -1)[present]
        winner = present[np.argmax(fields + solve_offsets(fields, wanted[present])[:, None], axis=0)]
        return winner.reshape(self.size_px, self.size_px).astype(np.uint8)


def _measured(maps: np.ndarray, fractions: np.ndarray) -> PriorLayouts:
    """What maps (M, H, H) without ignored pixels, of these fractions (M, C), say directly."""
    num_classes = fractions.shape[1]
    lengths_px = [correlation_length(maps == c) for c in range(num_classes)]
    length_px = float(np.exp(np.average(np.log(lengths_px), weights=fractions.mean(axis=0))))
    curvature = length_px * bulge(maps, num_classes, sigma_px=max(1.0, 0.12 * length_px))
    present = fractions > 0
    curvature -= (curvature * present).sum(axis=1, keepdims=True) / present.sum(axis=1, keepdims=True)
    return PriorLayouts(
        fractions=fractions,
        mixing=np.stack([_root(border_affinity(lengths)) for lengths in border_lengths(maps, num_classes)]),
        cells=np.clip(_CELLS_PER_BULGE * curvature * present, -_MOST_CELLS, _MOST_CELLS),
        length_px=np.full(len(maps), length_px),
        size_px=maps.shape[1],
    )


def _corrected(prior: PriorLayouts, maps: np.ndarray) -> PriorLayouts:
    """Scale and cells corrected by what drawn layouts measure, in steps that shrink (Robbins and Monro 1951)."""
    num_classes, size_px = prior.fractions.shape[1], prior.size_px
    wanted, borders = measure(maps, num_classes), border_lengths(maps, num_classes).sum(axis=(1, 2)) / 2
    measured_cells, bounds_px = prior.cells, (0.3 * prior.length_px[0], 4 * prior.length_px[0])
    common = np.zeros(num_classes)
    for n in range(_ROUNDS):
        step = 1 / np.sqrt(1 + n / 3)
        drawn = np.stack([prior.follow(k, np.random.default_rng([n, k])) for k in range(len(maps))])
        lengths = border_lengths(drawn, num_classes).sum(axis=(1, 2)) / 2
        # A quarter of a side is added to both: maps with next to no border must not run away.
        longer = np.log((lengths + size_px / 4) / (borders + size_px / 4))  # (M,)
        larger = np.nan_to_num(compare(measure(drawn, num_classes), wanted).region_log_ratio)  # (C,)
        overall = (larger * wanted.fractions).sum()
        common = np.clip(common + 0.8 * step * (larger - overall), -_MOST_CORRECTION, _MOST_CORRECTION)
        prior = replace(
            prior,
            cells=np.clip(measured_cells + common, -_MOST_CELLS, _MOST_CELLS),
            length_px=np.clip(prior.length_px * np.exp(step * (0.5 * longer - 0.25 * overall)), *bounds_px),
        )
    return prior


def _root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a symmetric positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values) @ vectors.T
