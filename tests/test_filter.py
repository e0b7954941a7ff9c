"""The filter: losses, limits and what becomes ignore, computed by hand."""

import numpy as np
import pandas as pd
import pytest

from stedm.config import IGNORE
from stedm.stages.filter import class_losses, ignore_unlikely, kept, loss_limits, pixel_losses

MAPS = np.array([[[0, 1], [2, IGNORE]]], np.uint8)  # (1, 2, 2)


def probabilities(true_class: float, maps: np.ndarray = MAPS, classes: int = 3) -> np.ndarray:
    """(n, classes, H, W) that give the true class `true_class` and share the rest."""
    labels = np.where(maps == IGNORE, 0, maps)
    onehot = np.moveaxis(np.eye(classes)[labels], -1, 1)
    return np.where(onehot > 0, true_class, (1 - true_class) / (classes - 1)).astype(np.float32)


def test_pixel_loss_is_the_cross_entropy_and_zero_on_ignore() -> None:
    losses = pixel_losses(probabilities(0.25), MAPS)
    np.testing.assert_allclose(losses, [[[-np.log(0.25)] * 2, [-np.log(0.25), 0]]], rtol=1e-6)


def test_impossible_pixel_has_a_finite_loss() -> None:
    assert np.isfinite(pixel_losses(probabilities(0.0), MAPS)).all()


def test_limit_is_tolerance_times_the_mean_loss_of_each_class() -> None:
    maps = np.array([[[0, 0], [1, 1]]], np.uint8)
    p = np.empty((1, 3, 2, 2), np.float32)
    p[0, :, 0, 0], p[0, :, 0, 1] = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    p[0, :, 1, 0], p[0, :, 1, 1] = [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]
    limits = loss_limits(class_losses([(p, maps)]), 1.5)
    np.testing.assert_allclose(limits[:2], [1.5 * (np.log(2) + np.log(4)) / 2, 1.5 * -np.log(0.8)], rtol=1e-6)
    assert limits[2] == np.inf  # a class never seen on real data cannot be judged


def test_only_pixels_beyond_their_class_limit_become_ignore() -> None:
    p = probabilities(0.25)
    loss = -np.log(0.25)
    kept = ignore_unlikely(MAPS, p, np.full(3, loss + 0.01))
    assert kept.dtype == np.uint8 and (kept == MAPS).all()
    assert (ignore_unlikely(MAPS, p, np.full(3, loss - 0.01)) == IGNORE).all()
    some = ignore_unlikely(MAPS, p, np.array([loss - 0.01, loss + 0.01, np.inf]))
    assert some.tolist() == [[[IGNORE, 1], [2, IGNORE]]]


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 4.0])
def test_larger_tolerance_ignores_less(tolerance: float) -> None:
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 3, (8, 16, 16)).astype(np.uint8)
    p = rng.dirichlet(np.ones(3), (8, 16, 16)).transpose(0, 3, 1, 2).astype(np.float32)
    ignored = [
        (ignore_unlikely(maps, p, loss_limits(class_losses([(p, maps)]), factor)) == IGNORE).mean()
        for factor in (tolerance, 2 * tolerance)
    ]
    assert ignored[0] > ignored[1]


def test_images_below_the_threshold_are_dropped_but_never_all_of_them() -> None:
    agreement = pd.Series([0.9, 0.2, 0.6, 0.2, 0.1, 0.3], index=[4, 5, 6, 7, 8, 9])
    assert kept(agreement, 0.5, least=0.1).tolist() == [True, False, True, False, False, False]
    assert kept(agreement, 0.95, least=0.1).tolist() == [True, False, False, False, False, False]
    assert kept(agreement, 0.95, least=0.5).tolist() == [True, False, True, False, False, True]
    assert not kept(agreement, 0.95, least=0.0).any()
    assert kept(agreement, 0.0, least=0.0).all()
    tied = kept(pd.Series([0.2] * 10), 0.5, least=0.2)
    assert tied.sum() == 2  # a tie does not let more through
