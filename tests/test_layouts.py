"""Layouts: warps keep classes, random fields keep the fractions and region sizes they were measured on."""

import numpy as np
import pytest

from stedm.config import IGNORE
from stedm.data.layout_fields import cell_field, smooth_fields, solve_offsets
from stedm.data.layout_statistics import compare, correlation_length, measure
from stedm.data.layouts import PriorLayouts, RealLayouts
from stedm.data.phantom import draw_layout


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
        assert (drawn == c).mean() == pytest.approx((maps == c).mean(), abs=0.02)
        assert 0.5 < correlation_length(drawn == c) / correlation_length(maps == c) < 2


def test_prior_layouts_look_like_the_phantom_by_its_statistics():
    """Fractions, region sizes and borders, about as near as two halves of the annotated patients are to each other."""
    slides = [draw_layout(192, np.random.default_rng([0, k])) for k in range(4)]
    maps = np.stack([slide[y : y + 64, x : x + 64] for slide in slides for y in (0, 64, 128) for x in (0, 64, 128)])
    prior, rng = PriorLayouts.fit(maps, 3), np.random.default_rng(0)
    drawn = np.stack([prior.follow(k % len(maps), rng) for k in range(4 * len(maps))])
    distance = compare(measure(drawn, 3), measure(maps, 3))
    assert distance.fraction_error < 0.002  # followed one by one, the fractions are exact but for rounding
    assert np.abs(distance.region_log_ratio).max() < 0.35
    assert distance.adjacency_distance < 0.12
    some = measure(np.stack([prior.draw(rng) for _ in range(64)]), 3)
    assert compare(some, measure(maps, 3)).fraction_error < 0.05  # 64 maps drawn with repetition


def test_packed_cells_stay_apart():
    """Six tenths of a map in cells with gaps between them: smooth Gaussian fields would run them together."""
    y, x = np.indices((8, 64, 64))[1:] % 16 - 7.5
    maps = (np.hypot(y, x) < 7.0).astype(np.uint8)
    prior = PriorLayouts.fit(maps, 2)
    drawn = np.stack([prior.draw(np.random.default_rng(k)) for k in range(16)])
    found = measure(drawn, 2)
    assert found.fractions[1] == pytest.approx((maps == 1).mean(), abs=0.02)
    assert found.region_px[0] > 4 * found.region_px[1]
    assert found.regions_per_map[1] > 2 * found.regions_per_map[0]
    assert (prior.cells[:, 1] > prior.cells[:, 0]).all()


def test_nested_classes_stay_nested():
    """A core within a ring within the rest: the core and the rest meet less than either meets the ring by chance."""
    y, x = np.indices((12, 64, 64))[1:] - 31.5 + 6 * np.random.default_rng(0).standard_normal((2, 12, 1, 1))
    radius_px = np.hypot(y, x)
    maps = (radius_px < 24).astype(np.uint8) + (radius_px < 12).astype(np.uint8)
    prior = PriorLayouts.fit(maps, 3)
    adjacency = measure(np.stack([prior.draw(np.random.default_rng(k)) for k in range(24)]), 3).adjacency
    assert adjacency[0, 2] < 0.5 * adjacency[0, 1]


def test_six_classes_most_of_them_rare_and_ignored_pixels():
    rng = np.random.default_rng(0)
    maps = np.zeros((12, 48, 48), np.uint8)
    for k, label_map in enumerate(maps):
        label_map[:, 24:] = 1
        label_map[10:20, 10:20] = 2 + k % 4
    maps[rng.random(maps.shape) < 0.02] = IGNORE
    maps[:, :4] = IGNORE
    prior = PriorLayouts.fit(maps, 6)
    drawn = np.stack([prior.follow(k, rng) for k in range(12)])
    assert drawn.max() == 5
    for k, label_map in enumerate(drawn):
        assert set(np.unique(label_map)) == {0, 1, 2 + k % 4}
    assert compare(measure(drawn, 6), measure(maps, 6)).fraction_error < 0.003


def test_given_fractions_are_kept_whatever_was_measured():
    prior, wanted = PriorLayouts.fit(bands(16), 3), np.array([0.8, 0.0, 0.2])
    for seed in range(6):
        layout = prior.draw(np.random.default_rng(seed), fractions=wanted)
        assert np.bincount(layout.ravel(), minlength=3) / layout.size == pytest.approx(wanted, abs=0.003)


def test_large_maps_are_measured_small_and_drawn_large():
    prior = PriorLayouts.fit(bands(96, count=6, size_px=192), 3)
    assert prior.draw(np.random.default_rng(0)).shape == (192, 192)
    small = PriorLayouts.fit(bands(96, count=6, size_px=192)[:, ::2, ::2], 3)
    assert np.median(prior.length_px / small.length_px) == pytest.approx(2, rel=0.01)


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


def test_layouts_need_labels():
    with pytest.raises(ValueError, match="annotated"):
        RealLayouts(np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="labelled"):
        PriorLayouts.fit(np.full((2, 8, 8), IGNORE, np.uint8), 2)


def test_offsets_give_the_shares_wanted():
    rng = np.random.default_rng(0)
    fields, wanted = (
        rng.standard_normal((6, 4096)) * np.arange(1, 7)[:, None],
        np.array([0.5, 0.2, 0.1, 0.1, 0.09, 0.01]),
    )
    winner = np.argmax(fields + solve_offsets(fields, wanted)[:, None], axis=0)
    assert np.bincount(winner) / 4096 == pytest.approx(wanted, abs=0.002)


def test_fields_are_standardised_and_cells_are_closed_at_any_threshold():
    rng = np.random.default_rng(0)
    for field in (lambda: smooth_fields(1, 96, 4.0, rng)[0], lambda: cell_field(96, 16.0, rng)):
        values = np.stack([field() for _ in range(16)])
        assert abs(values.mean()) < 0.2 and values.std() == pytest.approx(1, abs=0.2)
    cells = np.stack([cell_field(96, 16.0, rng) for _ in range(8)])
    gaps = measure((cells < np.quantile(cells, 0.35)).astype(np.uint8), 2)
    assert gaps.region_px[1] > 10 * gaps.region_px[0]  # 35 % of the area, and yet connected: the cells are apart
