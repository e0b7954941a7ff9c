"""The architecture of single label maps: who borders whom, who bulges into whom, and how long the borders are."""

import numpy as np
from scipy import ndimage

from stedm.data.layout_statistics import border_pairs

_SMOOTHING_PX = 1.0
"""Borders are measured after this much smoothing: a border frayed by annotation is not a longer one."""
_STRENGTH = 0.9
"""Correlation of the fields of two classes that meet only each other, or never."""
_LEAST_EIGENVALUE = 0.02


def fill_ignored(label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """Label maps (N, H, W) uint8 with every value >= num_classes replaced by the nearest labelled pixel's class.

    Maps without a labelled pixel stay as they are.
    """
    filled = label_maps.copy()
    for label_map in filled:
        unknown = label_map >= num_classes
        if unknown.any() and not unknown.all():
            rows, columns = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
            label_map[...] = label_map[rows, columns]
    return filled


def border_lengths(label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """Neighbouring pixels of each two classes in each map, (N, C, C) symmetric, the borders smoothed before."""
    sigma = (0, _SMOOTHING_PX, _SMOOTHING_PX)
    shares = [
        ndimage.gaussian_filter((label_maps == c).astype(np.float32), sigma, mode="nearest") for c in range(num_classes)
    ]
    smooth = np.argmax(shares, axis=0).astype(np.uint8)
    return np.stack([border_pairs(label_map[None], num_classes) for label_map in smooth])


def border_affinity(lengths: np.ndarray) -> np.ndarray:
    """Correlation (C, C) of classes by the borders they share, given the border lengths (C, C) of a map.

    Against chance, given each class's border length: positive for pairs that meet more often. Positive definite, with a
    diagonal of 1; the identity without borders.
    """
    share = lengths.sum(axis=1) / max(lengths.sum(), 1)
    chance = np.outer(share, share)
    np.fill_diagonal(chance, 0)
    expected = chance * lengths.sum() / max(chance.sum(), 1e-12)
    total = lengths + expected
    affinity = _STRENGTH * np.divide(lengths - expected, total, out=np.zeros_like(total), where=total > 0)
    values, vectors = np.linalg.eigh(affinity + np.eye(len(affinity)))
    affinity = vectors * np.maximum(values, _LEAST_EIGENVALUE) @ vectors.T
    scale = np.sqrt(np.diag(affinity))
    return affinity / np.outer(scale, scale)


def bulge(label_maps: np.ndarray, num_classes: int, *, sigma_px: float) -> np.ndarray:
    """Mean curvature (N, C) of each class's borders, 1 / px: positive where the class bulges, negative where it yields.

    A disc of radius r has 1 / r, what surrounds it -1 / r, a stripe 0, as a class without borders. Measured on the
    level lines of the smoothed class, curvature = -div(grad u / |grad u|), weighted by |grad u|.
    """
    found = np.zeros((len(label_maps), num_classes))
    for c in range(num_classes):
        u = ndimage.gaussian_filter((label_maps == c).astype(np.float32), (0, sigma_px, sigma_px), mode="nearest")
        dy, dx = np.gradient(u, axis=(1, 2))
        steepness = np.hypot(dy, dx)
        divergence = np.gradient(dy / (steepness + 1e-4), axis=1) + np.gradient(dx / (steepness + 1e-4), axis=2)
        total = steepness.sum(axis=(1, 2))  # about the length of the border, in pixels
        found[:, c] = np.where(total > 3, -(divergence * steepness).sum(axis=(1, 2)) / np.maximum(total, 1e-9), 0)
    return found
