"""Layouts: warps keep classes, random fields keep the fractions and region sizes they were measured on."""

import numpy as np
import pytest

from stedm.config import IGNORE
from stedm.data.layouts import PriorLayouts, RealLayouts, border_affinity, correlation_length


def bands(period_px: int, *, count: int = 24, size_px: int = 48) -> np.ndarray:
    """Three classes in nested stripes 0 1 2 1 0 ..., each map at another offset, (count, size, size)."""
    at = np.arange(size_px)[None] + np.arange(count)[:, None] * 5
    stripes = np.array([0, 1, 2, 1])[at // (period_px // 4) % 4].astype(np.uint8)  # (count, size)
    maps = np.repeat(stripes[:, None], size_px, axis=1)
    maps[::2] = maps[::2].transpose(0, 2, 1)
    return maps


def test_real_layouts_hold_only_values_of_their_source():
    maps = bands(24)
    maps[3, :20] = IGNORE
    maps[5] = 2
    layouts, rng = RealLayouts(maps), np.random.default_rng(0)
    for _ in range(50):
        layout, source = layouts.draw(rng)
        assert layout.shape == (48, 48) and layout.dtype == np.uint8
        assert set(np.unique(layout)) <= set(np.unique(maps[source]))


def test_real_layouts_keep_fractions_on_average_and_differ():
    maps = bands(24)
    layouts, rng = RealLayouts(maps), np.random.default_rng(0)
    drawn = np.stack([layouts.draw(rng)[0] for _ in range(150)])
    for c in range(3):
        assert (drawn == c).mean() == pytest.approx((maps == c).mean(), abs=0.05)
    assert len({layout.tobytes() for layout in drawn}) == len(drawn)


@pytest.mark.parametrize("period_px", [16, 32])
def test_prior_layouts_match_fractions_and_region_sizes(period_px):
    maps = bands(period_px)
    prior, rng = PriorLayouts.fit(maps, 3), np.random.default_rng(0)
    drawn = np.stack([prior.draw(rng) for _ in range(80)])
    assert drawn.max() <= 2
    for c in range(3):
        assert (drawn == c).mean() == pytest.approx((maps == c).mean(), abs=0.04)
        measured = correlation_length(drawn == c)
        assert 0.5 * prior.length_px[c] < measured < 2 * prior.length_px[c]


def test_prior_layouts_vary_as_the_patches_do():
    maps = np.zeros((20, 32, 32), np.uint8)
    maps[:10] = 1
    maps[:10, :8] = IGNORE
    prior, rng = PriorLayouts.fit(maps, 2), np.random.default_rng(0)
    shares = [prior.draw(rng).mean() for _ in range(40)]
    assert set(shares) == {0.0, 1.0}


def test_draws_depend_on_the_generator_only():
    prior, real = PriorLayouts.fit(bands(16), 3), RealLayouts(bands(16))
    for draw in (prior.draw, lambda rng: real.draw(rng)[0]):
        assert (draw(np.random.default_rng(7)) == draw(np.random.default_rng(7))).all()
        assert (draw(np.random.default_rng(7)) != draw(np.random.default_rng(8))).any()


def test_correlation_length_of_random_fields_of_known_size():
    rng = np.random.default_rng(0)
    cells = np.kron(rng.random((40, 8, 8)) < 0.5, np.ones((1, 8, 8), bool))
    # Squares of width w at aligned places: autocorrelation 1 - lag / w, which is 1/e at lag 0.63 w.
    assert correlation_length(cells) == pytest.approx(0.63 * 8, abs=0.7)


def test_affinity_knows_who_meets_whom():
    affinity = border_affinity(bands(16), 3)
    assert affinity[0, 1] > affinity[0, 2] and affinity[1, 2] > affinity[0, 2]
    assert np.linalg.eigvalsh(affinity)[0] > 0 and np.diag(affinity) == pytest.approx(1)


def test_layouts_need_labels():
    with pytest.raises(ValueError, match="annotated"):
        RealLayouts(np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="labelled"):
        PriorLayouts.fit(np.full((2, 8, 8), IGNORE, np.uint8), 2)
