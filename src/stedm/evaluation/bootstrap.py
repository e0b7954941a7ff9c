"""The bootstrap: resampling weights, and the intervals of what is resampled.

Every bootstrap here draws n - 1 of n units with replacement, which makes the variance of the resampled mean equal to
the unbiased estimate s^2 / n (Rao and Wu, 1988). Drawing n of n would be too sure of itself by (n - 1) / n: a third
with three seeds.
"""

import numpy as np


def weights_of(rng: np.random.Generator, units: int, resamples: int) -> np.ndarray:
    """Draw resampling weights, each row summing to 1: (resamples, units)."""
    draws = max(units - 1, 1)
    return rng.multinomial(draws, np.full(units, 1 / units), size=resamples) / draws


def interval_of(means: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled means (resamples,)."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def ratio_interval(a: np.ndarray, b: np.ndarray, *, resamples: int = 5000, seed: int = 0) -> tuple[float, float] | None:
    """95 % bootstrap interval over patients of mean(a) / mean(b).

    Args:
        a, b: a value of each patient (P,); patients in which either is NaN are left out.

    Returns:
        None for fewer than two patients, and where mean(b) is not above 0 for all that are drawn.
    """
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2:
        return None
    weights = weights_of(np.random.default_rng(seed), int(known.sum()), resamples)
    below = weights @ b[known]
    return interval_of((weights @ a[known]) / below) if below.min() > 0 else None
