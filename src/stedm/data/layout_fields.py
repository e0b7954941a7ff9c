"""Random fields that layouts are cut from: smooth ones, cellular ones, and the offsets that give wanted fractions."""

import numpy as np
from scipy import fft, ndimage, spatial

_SWEEPS = 12
_ELONGATION = 0.2
_JITTER = 0.2


def smooth_fields(count: int, size_px: int, sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """Independent Gaussian random fields (count, H, H) float32, unit variance, smoothed with a Gaussian of `sigma_px`.

    The Gaussian lives in Fourier space on a margin, so that opposite borders are independent.
    """
    padded = fft.next_fast_len(size_px + int(np.ceil(3 * sigma_px)), real=True)
    frequency = fft.fftfreq(padded)[:, None] ** 2 + fft.rfftfreq(padded)[None] ** 2
    gain = np.exp(-2 * (np.pi * sigma_px) ** 2 * frequency).astype(np.float32)
    weight = fft.irfft2(gain, s=(padded, padded))
    white = fft.rfft2(rng.standard_normal((count, padded, padded), dtype=np.float32))
    return fft.irfft2(white * (gain / np.sqrt((weight**2).sum())), s=(padded, padded))[:, :size_px, :size_px]


def cell_field(size_px: int, spacing_px: float, rng: np.random.Generator) -> np.ndarray:
    """A field (H, H) of packed cells, high inside, low between them; mean near 0, standard deviation near 1.

    Distance to the second nearest less that to the nearest of scattered points `spacing_px` apart (Worley 1996):
    whatever the threshold, cells stay apart and what is between them connected, which no Gaussian field does.
    """
    turn = np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)
    stretch = np.exp(rng.normal(0, _ELONGATION))
    at = np.indices((size_px, size_px)).reshape(2, -1) - (size_px - 1) / 2  # (2, H * H)
    at = np.array([[turn[0], -turn[1]], [turn[1], turn[0]]]) @ at * np.array([[stretch], [1 / stretch]])
    at += 0.1 * spacing_px * smooth_fields(2, size_px, spacing_px / 4, rng).reshape(2, -1)
    points = _scattered(np.abs(at).max(axis=1) + 2 * spacing_px, spacing_px, rng)
    distance, _ = spatial.cKDTree(points).query(at.T, k=2)  # (H * H, 2)
    inside = ((distance[:, 1] - distance[:, 0]) / spacing_px).reshape(size_px, size_px)
    return (ndimage.gaussian_filter(inside, 0.08 * spacing_px) - 0.277) / 0.162


def _scattered(reach_px: np.ndarray, spacing_px: float, rng: np.random.Generator) -> np.ndarray:
    """Points (K, 2) of a jittered hexagonal grid that covers -reach to +reach along both axes, at a random place."""
    steps = np.array([spacing_px * np.sqrt(0.75), spacing_px])
    rows, columns = (np.arange(int(2 * reach / step) + 2) for reach, step in zip(reach_px, steps, strict=True))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    points = np.stack([y, x + 0.5 * (y % 2)], axis=-1).reshape(-1, 2) * steps
    return points - reach_px - rng.uniform(0, steps) + rng.normal(0, _JITTER * spacing_px, points.shape)


def solve_offsets(fields: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Offsets (C,) that make argmax(fields + offsets) hold the `wanted` shares of the pixels: (C,), (C, pixels).

    All shares are above 0. Each class in turn gets the offset that is right given the others', until nearly all are.
    """
    pixels = fields.shape[1]
    counts = np.clip(np.rint(wanted * pixels).astype(int), 1, pixels - 1)
    offsets = np.zeros(len(wanted))
    for _ in range(_SWEEPS if len(wanted) > 1 else 0):
        for c in range(len(wanted)):
            shifted = fields + offsets[:, None]
            shifted[c] = -np.inf
            needed = np.partition(shifted.max(axis=0) - fields[c], [counts[c] - 1, counts[c]])
            offsets[c] = needed[counts[c] - 1 : counts[c] + 1].mean()
        held = np.bincount(np.argmax(fields + offsets[:, None], axis=0), minlength=len(wanted))
        if np.abs(held - counts).max() <= max(2, pixels // 2000):
            break
    return offsets
