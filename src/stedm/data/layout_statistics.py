"""Statistics of label maps: how much of each class, in how large regions, beside what. And how far two sets differ."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

QUANTILES = (0.25, 0.5, 0.75)
"""Quantiles of the region sizes, over pixels."""
_WITHIN_MAPS = ndimage.generate_binary_structure(3, 1) & (np.arange(3) == 1)[:, None, None]
"""Pixels touch along the axes of their own map."""


@dataclass(frozen=True)
class LayoutStatistics:
    """What label maps look like, class by class; make it with `measure`.

    The size of a region is the area of a 4-connected component. Sizes are weighted by area, so that they are those of
    the region a random pixel of the class lies in, and crumbs do not count. Regions end where a map ends.
    """

    fractions: np.ndarray
    """(C,) mean over maps of the share of the labelled pixels, 0 to 1."""
    fractions_std: np.ndarray
    """(C,) standard deviation over maps."""
    region_px: np.ndarray
    """(C,) geometric mean of the region sizes over pixels, in pixels; NaN for a class that no map has."""
    region_quantiles_px: np.ndarray
    """(C, 3) quantiles of the region sizes over pixels, in pixels."""
    regions_per_map: np.ndarray
    """(C,) regions of a map, mean over maps."""
    adjacency: np.ndarray
    """(C, C) share of the borders between two classes, symmetric, diagonal 0, sum 1; all 0 without borders."""

    def as_json(self, classes: list[str]) -> dict[str, Any]:
        """By class name, with None for NaN."""
        return {
            name: {
                "fraction": float(self.fractions[c]),
                "fraction_std": float(self.fractions_std[c]),
                "region_px": _number(self.region_px[c]),
                "region_quantiles_px": [_number(value) for value in self.region_quantiles_px[c]],
                "regions_per_map": float(self.regions_per_map[c]),
                "adjacency": dict(zip(classes, self.adjacency[c].tolist(), strict=True)),
            }
            for c, name in enumerate(classes)
        }


@dataclass(frozen=True)
class LayoutDistance:
    """How far one set of label maps is from another; all 0 for the same statistics."""

    fraction_error: float
    """Mean over classes of the absolute difference of the mean fractions, 0 to 1."""
    region_log_ratio: np.ndarray
    """(C,) natural logarithm of the region sizes' ratio (geometric means); NaN for a class that one of them lacks."""
    adjacency_distance: float
    """Total variation distance of the adjacencies, 0 to 1: the share of the borders that would have to change."""

    @property
    def region_error(self) -> float:
        """Mean over classes of the absolute log-ratio of the region sizes; 0 when they share no class."""
        known = self.region_log_ratio[~np.isnan(self.region_log_ratio)]
        return float(np.abs(known).mean()) if len(known) else 0.0

    def as_json(self, classes: list[str]) -> dict[str, Any]:
        """With the log-ratios by class name, None for NaN."""
        return {
            "fraction_error": self.fraction_error,
            "region_error": self.region_error,
            "region_log_ratio": {name: _number(self.region_log_ratio[c]) for c, name in enumerate(classes)},
            "adjacency_distance": self.adjacency_distance,
        }


def measure(label_maps: np.ndarray, num_classes: int) -> LayoutStatistics:
    """Statistics of label maps (N, H, W) uint8; values >= num_classes (255) are ignored, as are maps without labels.

    Raises ValueError when no map has a labelled pixel.
    """
    counts = class_counts(label_maps, num_classes)  # (N, C)
    labelled = counts.sum(axis=1) > 0
    if not labelled.any():
        raise ValueError("no labelled pixel in the label maps; there is nothing to measure")
    shares = counts[labelled] / counts[labelled].sum(axis=1, keepdims=True)
    sizes = [region_sizes(label_maps == c) for c in range(num_classes)]
    return LayoutStatistics(
        fractions=shares.mean(axis=0),
        fractions_std=shares.std(axis=0),
        region_px=np.array([np.exp(np.average(np.log(s), weights=s)) if len(s) else np.nan for s in sizes]),
        region_quantiles_px=np.stack([_weighted_quantiles(s) for s in sizes]),
        regions_per_map=np.array([len(s) for s in sizes]) / labelled.sum(),
        adjacency=adjacency(label_maps, num_classes),
    )


def compare(drawn: LayoutStatistics, wanted: LayoutStatistics) -> LayoutDistance:
    """Distance of `drawn` from `wanted`; a positive log-ratio says that drawn regions are too large."""
    return LayoutDistance(
        fraction_error=float(np.abs(drawn.fractions - wanted.fractions).mean()),
        region_log_ratio=np.log(drawn.region_px / wanted.region_px),
        adjacency_distance=float(np.abs(drawn.adjacency - wanted.adjacency).sum() / 2),
    )


def class_counts(label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class in each map, (N, C)."""
    return np.stack([(label_maps == c).sum(axis=(1, 2)) for c in range(num_classes)], axis=1)


def region_sizes(regions: np.ndarray) -> np.ndarray:
    """Areas in pixels of the 4-connected components of regions (N, H, W) bool, all maps together."""
    components, _ = ndimage.label(regions, structure=_WITHIN_MAPS)
    return np.bincount(components.ravel())[1:]


def border_pairs(label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """Number (C, C) of neighbouring pixels of two different classes, symmetric: each pair counts in both places."""
    pairs = np.zeros(num_classes**2)
    for a, b in ((label_maps[:, 1:], label_maps[:, :-1]), (label_maps[:, :, 1:], label_maps[:, :, :-1])):
        border = (a != b) & (a < num_classes) & (b < num_classes)
        pairs += np.bincount(a[border].astype(int) * num_classes + b[border], minlength=num_classes**2)
    pairs = pairs.reshape(num_classes, num_classes)
    return pairs + pairs.T


def adjacency(label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """Share (C, C) of the borders between each two classes, symmetric, sum 1; all 0 without borders."""
    pairs = border_pairs(label_maps, num_classes)
    return pairs / max(pairs.sum(), 1)


def correlation_length(regions: np.ndarray) -> float:
    """Lag in pixels at which the autocorrelation of regions (N, H, H) bool falls to 1/e; at least 1, at most H / 2.

    Averaged over both axes and all maps.
    """
    centred = regions.astype(np.float64) - regions.mean()
    variance = (centred**2).mean()
    largest = regions.shape[1] // 2
    if variance == 0:
        return float(largest)
    previous = 1.0
    for lag in range(1, largest):
        along = (centred[:, lag:] * centred[:, :-lag]).mean() + (centred[:, :, lag:] * centred[:, :, :-lag]).mean()
        current = along / 2 / variance
        if current < np.exp(-1):
            return max(1.0, lag - 1 + (previous - np.exp(-1)) / (previous - current))
        previous = current
    return float(largest)


def _weighted_quantiles(sizes: np.ndarray) -> np.ndarray:
    """The `QUANTILES` of sizes weighted by themselves; NaN without any."""
    if len(sizes) == 0:
        return np.full(len(QUANTILES), np.nan)
    ordered = np.sort(sizes)
    below = np.cumsum(ordered) / ordered.sum()
    return ordered[np.minimum(np.searchsorted(below, QUANTILES), len(ordered) - 1)].astype(float)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
