"""Hard sampling: hardness and weights computed by hand."""

import numpy as np
import pytest

from stedm.stages.hard_sampling import layout_hardness, sampling_weight, uncertainty
from stedm.training.batches import Pairs


def test_layout_is_as_hard_as_its_classes_weighted_by_their_pixels() -> None:
    layouts = np.array([[[0, 0], [0, 0]], [[0, 1], [1, 255]], [[255, 255], [255, 255]], [[2, 2], [2, 0]]], np.uint8)
    losses = np.array([0.1, 0.7, np.inf])  # no real image has class 2: it counts as the others do on average
    np.testing.assert_allclose(layout_hardness(layouts, losses), [0.1, 0.5, 0.4, (3 * 0.4 + 0.1) / 4])


def test_uncertainty_is_entropy_relative_to_not_knowing() -> None:
    p = np.full((2, 4, 3, 3), 0.25)
    assert uncertainty(p) == pytest.approx(1)
    p[:, 0], p[:, 1:] = 1, 0
    assert uncertainty(p) == pytest.approx(0, abs=1e-4)
    p[:, :2] = 0.5
    assert uncertainty(p) == pytest.approx(0.5, abs=1e-4)


def test_weight_has_mean_one_grows_with_either_hardness_and_is_flat_without_strength() -> None:
    layout, style = np.array([1.0, 2.0, 1.0, 2.0]), np.array([0.1, 0.1, 0.3, 0.3])
    np.testing.assert_allclose(sampling_weight(layout, style, strength=0), 1)
    weight = sampling_weight(layout, style, strength=1)
    assert weight.mean() == pytest.approx(1)
    np.testing.assert_allclose(weight / weight[0], [1, 2, 3, 6], rtol=1e-4)
    double = sampling_weight(layout, style, strength=2)
    np.testing.assert_allclose(double / double[0], [1, 4, 9, 36], rtol=1e-4)
    assert np.isfinite(sampling_weight(np.zeros(4), style, strength=1)).all()


def test_pairs_are_drawn_as_often_as_they_weigh() -> None:
    images = np.zeros((3, 2, 2, 3), np.uint8)
    rng = np.random.default_rng(0)
    counts = np.bincount(Pairs(images, images[..., 0], np.array([2.0, 1.0, 0.0])).draw(6000, rng), minlength=3)
    assert counts[2] == 0 and counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    counts = np.bincount(Pairs(images, images[..., 0]).draw(6000, rng), minlength=3)
    assert counts.min() > 0.9 * counts.max()
