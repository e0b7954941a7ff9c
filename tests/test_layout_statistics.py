"""Layout statistics of patterns whose statistics are known."""

import numpy as np
import pytest

from stedm.config import IGNORE
from stedm.data.layout_statistics import compare, correlation_length, measure, region_sizes
from stedm.data.layout_structure import border_affinity, border_lengths, bulge, fill_ignored

NAMES = ["a", "b", "c"]


def disc(radius_px: float, *, size_px: int = 64) -> np.ndarray:
    """A disc (1) of this radius in the middle of 0, one map (1, H, H)."""
    y, x = np.indices((size_px, size_px)) - (size_px - 1) / 2
    return (np.hypot(y, x) < radius_px).astype(np.uint8)[None]


def rings(*, size_px: int = 64) -> np.ndarray:
    """A disc of 2 within a ring of 1 within 0: 2 never meets 0."""
    return disc(22, size_px=size_px) + disc(11, size_px=size_px)


def stripes(width_px: int, *, size_px: int = 48) -> np.ndarray:
    """Stripes 0 1 2 1 0 ... of this width, one map."""
    row = np.array([0, 1, 2, 1], np.uint8)[np.arange(size_px) // width_px % 4]
    return np.repeat(row[None, None], size_px, axis=1)


def test_statistics_of_two_halves():
    maps = np.zeros((2, 8, 8), np.uint8)
    maps[:, :, 6:] = 1
    maps[1, :, 4:6] = 1
    found = measure(maps, 3)
    assert found.fractions.tolist() == [0.625, 0.375, 0]
    assert found.fractions_std.tolist() == [0.125, 0.125, 0]
    assert found.region_quantiles_px[0].tolist() == [32, 48, 48]  # 48 of the class's 80 pixels lie in the larger region
    assert found.region_px[0] == pytest.approx(np.exp((48 * np.log(48) + 32 * np.log(32)) / 80))
    assert np.isnan(found.region_px[2]) and np.isnan(found.region_quantiles_px[2]).all()
    assert found.regions_per_map.tolist() == [1, 1, 0]
    assert found.adjacency.tolist() == [[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]


def test_regions_do_not_cross_maps_and_touch_at_sides_only():
    regions = np.zeros((2, 4, 4), bool)
    regions[:, 0, 0] = regions[0, 1, 1] = regions[0, 1, 2] = True
    assert sorted(region_sizes(regions)) == [1, 1, 2]


def test_crumbs_hardly_change_the_size_of_regions():
    maps = np.zeros((1, 64, 64), np.uint8)
    maps[:, 16:48, 16:48] = 1
    crumbs = maps.copy()
    crumbs[0, 2:12:3, 2:62:3] = 1
    assert measure(crumbs, 2).regions_per_map[1] > 50
    assert compare(measure(crumbs, 2), measure(maps, 2)).region_error == pytest.approx(0, abs=0.5)
    assert measure(crumbs, 2).region_quantiles_px[1].tolist() == [1024] * 3


def test_ignored_pixels_and_maps_do_not_count():
    maps = np.zeros((3, 8, 8), np.uint8)
    maps[:, :, 4:] = 1
    hidden = maps.copy()
    hidden[0, :4] = IGNORE
    hidden[2] = IGNORE
    assert measure(hidden, 2).fractions.tolist() == [0.5, 0.5]
    assert compare(measure(hidden, 2), measure(maps, 2)).adjacency_distance == 0
    hidden[:2, :, 4:] = IGNORE
    assert measure(hidden, 2).adjacency.sum() == 0
    with pytest.raises(ValueError, match="labelled"):
        measure(np.full((2, 8, 8), IGNORE, np.uint8), 2)


def test_distance_is_zero_for_the_same_and_one_for_disjoint_borders():
    maps = stripes(4)
    same = compare(measure(maps, 3), measure(np.concatenate([maps, maps]), 3))
    assert (same.fraction_error, same.region_error, same.adjacency_distance) == (0, 0, 0)
    ab, ac = (np.where(np.arange(8) < 4, 0, other).astype(np.uint8)[None, None].repeat(8, 1) for other in (1, 2))
    far = compare(measure(ab, 3), measure(ac, 3))
    assert far.adjacency_distance == 1
    assert far.fraction_error == pytest.approx(1 / 3)
    assert np.isnan(far.region_log_ratio[1:]).all() and far.region_error == 0


def test_log_ratio_of_regions_twice_as_wide():
    small, large = np.kron(np.eye(2, dtype=np.uint8), np.ones((8, 8), np.uint8))[None], None
    large = small.repeat(2, 1).repeat(2, 2)
    ratio = compare(measure(large, 2), measure(small, 2)).region_log_ratio
    assert ratio == pytest.approx(np.log([4, 4]))


def test_json_has_names_and_no_nan():
    found = measure(stripes(4)[:, :, :8], 3)  # no class 2 there
    content = found.as_json(NAMES)
    assert content["c"]["region_px"] is None and content["c"]["region_quantiles_px"] == [None] * 3
    assert content["a"]["adjacency"] == {"a": 0, "b": 0.5, "c": 0}
    assert compare(found, found).as_json(NAMES)["region_log_ratio"] == {"a": 0, "b": 0, "c": None}


def test_correlation_length_of_random_fields_of_known_size():
    rng = np.random.default_rng(0)
    cells = np.kron(rng.random((40, 8, 8)) < 0.5, np.ones((1, 8, 8), bool))
    # Squares of width w at aligned places: autocorrelation 1 - lag / w, which is 1/e at lag 0.63 w.
    assert correlation_length(cells) == pytest.approx(0.63 * 8, abs=0.7)


def test_affinity_knows_who_meets_whom():
    affinity = border_affinity(border_lengths(rings(), 3)[0])
    assert affinity[0, 2] < -0.4 < 0.05 < min(affinity[0, 1], affinity[1, 2])
    assert np.linalg.eigvalsh(affinity)[0] > 0 and np.diag(affinity) == pytest.approx(1)
    assert border_affinity(np.zeros((3, 3))) == pytest.approx(np.eye(3))


def test_frayed_borders_are_not_longer():
    straight = np.zeros((1, 64, 64), np.uint8)
    straight[:, :, 32:] = 1
    frayed = straight.copy()
    frayed[:, ::4, 31] = 1
    assert border_lengths(frayed, 2)[0, 0, 1] <= 1.1 * border_lengths(straight, 2)[0, 0, 1]


@pytest.mark.parametrize("radius_px", [10, 20])
def test_bulge_of_a_disc_is_its_curvature(radius_px: int):
    outside, inside = bulge(disc(radius_px), 2, sigma_px=2.0)[0]
    assert inside == pytest.approx(1 / radius_px, rel=0.15)
    assert outside == pytest.approx(-inside, rel=1e-3)


def test_bulge_orders_nested_classes_and_is_zero_without_curvature():
    surrounding, ring, core = bulge(rings(), 3, sigma_px=1.5)[0]
    assert surrounding < ring < core
    assert bulge(stripes(12), 3, sigma_px=1.5) == pytest.approx(0, abs=1e-3)
    assert (bulge(np.zeros((1, 32, 32), np.uint8), 2, sigma_px=1.5) == 0).all()


def test_ignored_pixels_take_the_nearest_class():
    maps = np.zeros((2, 8, 8), np.uint8)
    maps[0, :, 4:] = 1
    hidden = maps.copy()
    hidden[0, 2:5] = IGNORE
    hidden[1] = IGNORE
    assert (fill_ignored(hidden, 2)[0] == maps[0]).all()
    assert (fill_ignored(hidden, 2)[1] == IGNORE).all()
