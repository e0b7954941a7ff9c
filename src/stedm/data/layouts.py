"""Layouts for generation: warped annotated label maps, and random fields matched to them."""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

_OFFSET_STEPS = 40
_SIGMA_PER_LENGTH = 0.64
"""A field smoothed with sigma s has the autocorrelation r = exp(-d^2 / 4 s^2), and its sign 2 / pi asin(r), which is
1/e at d = 1.56 s: so s = 0.64 times the regions' correlation length."""


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
        local = self._elastic_px * np.stack([_smooth_field(size_px, size_px / 8, rng) for _ in range(2)])
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

    Each class has a Gaussian random field; a pixel gets the class whose field, plus an offset, is the largest. The
    offsets are solved for the fractions wanted. Fields of classes that often share a border are correlated: where one
    is high the other is too, and so they meet.
    """

    fractions: np.ndarray
    """(M, C) class fractions of M patches; a draw takes one of them."""
    length_px: np.ndarray
    """(C,) correlation length of each class's regions, pixels: the lag at which the autocorrelation falls to 1/e."""
    affinity: np.ndarray
    """(C, C) positive definite correlation of the fields, diagonal 1."""
    size_px: int
    """Width and height of the layouts."""

    @classmethod
    def fit(cls, label_maps: np.ndarray, num_classes: int) -> "PriorLayouts":
        """Measure label maps (N, H, H) uint8 with classes below `num_classes`; ignore pixels are left out.

        Raises ValueError when no map has a labelled pixel.
        """
        counts = np.stack([(label_maps == c).sum(axis=(1, 2)) for c in range(num_classes)], axis=1)  # (N, C)
        labelled = counts.sum(axis=1)
        if not labelled.any():
            raise ValueError("no labelled pixel in the label maps; prior layouts are measured on annotated patches")
        fractions = counts[labelled > 0] / labelled[labelled > 0, None]
        lengths = np.array([correlation_length(label_maps == c) for c in range(num_classes)])
        return cls(fractions, lengths, border_affinity(label_maps, num_classes), label_maps.shape[1])

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A layout (size_px, size_px) uint8 with every pixel in a class."""
        num_classes = self.fractions.shape[1]
        wanted = self.fractions[rng.integers(len(self.fractions))]
        sigmas_px = _SIGMA_PER_LENGTH * self.length_px
        white = np.stack([_smooth_field(self.size_px, sigma_px, rng) for sigma_px in sigmas_px])  # (C, H, H)
        fields = np.tensordot(np.linalg.cholesky(self.affinity), white, axes=1).reshape(num_classes, -1)
        present = np.flatnonzero(wanted > 0)
        offsets = _solve_offsets(fields[present], wanted[present])
        winner = present[np.argmax(fields[present] + offsets[:, None], axis=0)]
        return winner.reshape(self.size_px, self.size_px).astype(np.uint8)


def correlation_length(regions: np.ndarray) -> float:
    """Lag in pixels at which the autocorrelation of regions (N, H, H) bool falls to 1/e; at least 1, at most H / 2.

    Averaged over both axes and all patches, which is what the random fields reproduce on average.
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


def border_affinity(label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) correlation of classes by how much border they share, against chance given each class's border length.

    Positive definite with a diagonal of 1; pairs that meet more often than by chance are positive.
    """
    pairs = np.zeros((num_classes, num_classes))
    for a, b in ((label_maps[:, 1:], label_maps[:, :-1]), (label_maps[:, :, 1:], label_maps[:, :, :-1])):
        border = (a != b) & (a < num_classes) & (b < num_classes)
        np.add.at(pairs, (a[border], b[border]), 1)
    pairs += pairs.T
    share = pairs.sum(axis=1) / max(pairs.sum(), 1)
    chance = np.outer(share, share)
    np.fill_diagonal(chance, 0)
    expected = chance * pairs.sum() / max(chance.sum(), 1e-12)
    affinity = np.divide(pairs - expected, pairs + expected, out=np.zeros_like(pairs), where=pairs + expected > 0)
    # Halving keeps fields distinguishable; lifting the spectrum makes the matrix positive definite.
    affinity = 0.5 * affinity + np.eye(num_classes)
    lift = max(0.0, 0.1 - np.linalg.eigvalsh(affinity)[0])
    return (affinity + lift * np.eye(num_classes)) / (1 + lift)


def _smooth_field(size_px: int, sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random field (H, H), unit variance, smoothed with a Gaussian of `sigma_px`.

    The Gaussian lives in Fourier space on a margin, so that opposite borders are independent.
    """
    padded = fft.next_fast_len(size_px + int(np.ceil(3 * sigma_px)), real=True)
    frequency = np.fft.fftfreq(padded)[:, None] ** 2 + np.fft.rfftfreq(padded)[None] ** 2
    gain = np.exp(-2 * (np.pi * sigma_px) ** 2 * frequency)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((padded, padded))) * gain, s=(padded, padded))
    weight = np.fft.irfft2(gain, s=(padded, padded))
    return (field / np.sqrt((weight**2).sum()))[:size_px, :size_px]


def _solve_offsets(fields: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Offsets (C,) that make argmax(fields + offsets) hold the `wanted` shares of the pixels, (C, pixels)."""
    offsets = np.zeros(len(wanted))
    step = 1.0
    for _ in range(_OFFSET_STEPS):
        shares = np.bincount(np.argmax(fields + offsets[:, None], axis=0), minlength=len(wanted)) / fields.shape[1]
        offsets += step * (np.sqrt(wanted) - np.sqrt(shares)) * 2
        step *= 0.95
    return offsets - offsets.mean()
