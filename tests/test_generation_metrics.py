"""Style distance, kernel distance and layout agreement."""

import numpy as np
import pytest

from stedm.data.phantom import draw_layout, draw_style, render
from stedm.evaluation.features import (
    class_features,
    class_regions,
    kid_features,
    optical_density_statistics,
    style_features,
    texture_statistics,
)
from stedm.evaluation.generation import (
    Scale,
    colour_drift,
    colour_errors,
    energy_distance,
    kid,
    kid_over_patients,
    layout_agreement,
    matched_and_shuffled,
    region_colours,
    spread,
    style_distance,
)


def _tissue(rng: np.random.Generator, *, tint: tuple[float, float, float], grain_px: int, count: int) -> np.ndarray:
    """Blocky noise of a given grain, tinted: a style of colour and texture."""
    cells = -(-32 // grain_px)
    noise = rng.uniform(0, 1, (count, cells, cells, 1)).repeat(grain_px, 1).repeat(grain_px, 2)[:, :32, :32]
    return (255 * np.exp(-(0.2 + noise) * np.array(tint))).astype(np.uint8)


STYLES = {
    "violet": {"tint": (0.9, 1.4, 0.5), "grain_px": 4},
    "brown": {"tint": (0.5, 0.9, 1.5), "grain_px": 4},
    "violet-fine": {"tint": (0.9, 1.4, 0.5), "grain_px": 1},
}


def _set(name: str, seed: int, count: int = 12) -> np.ndarray:
    return _tissue(np.random.default_rng(seed), count=count, **STYLES[name])


@pytest.mark.parametrize("statistics", [optical_density_statistics, texture_statistics])
def test_statistics_are_finite_even_for_blank_images(statistics):
    images = np.stack([np.full((32, 48, 3), value, np.uint8) for value in (0, 128, 255)])
    features = statistics(images)
    assert features.shape[0] == 3 and np.isfinite(features).all()


def test_statistics_do_not_depend_on_the_other_images():
    images = _set("violet", 0, 9)
    assert np.allclose(style_features(images)[4:5], style_features(images[4:5]), atol=1e-4)


def test_style_statistics_do_not_know_content():
    """Flipping an image keeps its stain exactly, and its texture nearly."""
    images = _set("violet", 0)
    flipped = np.ascontiguousarray(images[:, :, ::-1])
    assert np.allclose(optical_density_statistics(images), optical_density_statistics(flipped), atol=1e-4)
    assert np.allclose(texture_statistics(images), texture_statistics(flipped), atol=0.05)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="32 px"):
        style_features(np.zeros((2, 16, 64, 3), np.uint8))


def _whole(images: np.ndarray) -> np.ndarray:
    """Class features of images that are all one class."""
    return class_features(images, np.zeros(images.shape[:3], np.uint8), 1)


def test_style_distance_separates_colour_and_texture():
    features = {name: _whole(_set(name, seed)) for seed, name in enumerate(STYLES)}
    scale = Scale.fit(np.concatenate(list(features.values())))
    standard = {name: scale(rows) for name, rows in features.items()}
    assert abs(style_distance(scale(_whole(_set("violet", 99))), standard["violet"])) < 0.5
    for other in ("brown", "violet-fine"):
        distance = style_distance(standard["violet"], standard[other])
        assert distance > 2
        assert distance == pytest.approx(style_distance(standard[other], standard["violet"]))


@pytest.mark.parametrize("statistics", [optical_density_statistics, texture_statistics])
def test_full_region_is_the_whole_image(statistics):
    images = _set("violet", 0)
    assert np.allclose(statistics(images, np.ones(images.shape[:3], bool)), statistics(images))


@pytest.mark.parametrize("statistics", [optical_density_statistics, texture_statistics])
def test_pixels_outside_a_region_have_no_part_in_it(statistics):
    images, region = _set("violet", 0), np.zeros((12, 32, 32), bool)
    region[:, 5:26, 3:20] = True
    changed = np.where(region[..., None], images, np.random.default_rng(1).integers(0, 256, images.shape, np.uint8))
    assert (changed != images).any()
    assert np.array_equal(statistics(images, region), statistics(changed, region))


def test_stain_of_a_region_is_that_of_its_pixels():
    image = _set("violet", 0, 1)
    region = np.zeros((1, 32, 32), bool)
    region[:, :, :11] = True
    density = np.log(256) - np.log1p(image[region].astype(float))
    found = optical_density_statistics(image, region)[0]
    assert np.allclose(found[:3], density.mean(0), atol=1e-5) and np.allclose(found[3:6], density.std(0), atol=1e-5)
    assert np.allclose(found[15:18], np.quantile(density, 0.5, axis=0, method="inverted_cdf"), atol=1e-5)
    assert found[21] == pytest.approx(np.corrcoef(density[:, 0], density[:, 1])[0, 1], abs=1e-4)


def test_small_regions_do_not_count():
    label_maps = np.zeros((2, 40, 40), np.uint8)
    label_maps[0, :2, :39], label_maps[1, :2] = 1, 1  # 4.9 % and 5 %
    assert class_regions(label_maps, 3).tolist() == [[True, False, False], [True, True, False]]
    features = class_features(np.zeros((2, 40, 40, 3), np.uint8), label_maps, 3)
    assert np.isfinite(features[:, 0]).all() and np.isnan(features[0, 1]).all() and np.isfinite(features[1, 1]).all()


def _phantom(number: int, *, seed: int, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Images and label maps of one phantom patient."""
    style = draw_style(("he", "ihc")[number % 2], np.random.default_rng([7, number]), score=3)
    rngs = [np.random.default_rng([seed, k]) for k in range(count)]
    maps = [draw_layout(64, rng) for rng in rngs]
    return np.stack([render(m, style, rng) for m, rng in zip(maps, rngs, strict=True)]), np.stack(maps)


def test_phantom_patients_are_near_themselves_and_far_from_others():
    halves = {(n, half): class_features(*_phantom(n, seed=10 * n + half), 3) for n in range(4) for half in (0, 1)}
    scale = Scale.fit(np.concatenate(list(halves.values())))
    real = {str(n): scale(halves[n, 0]) for n in range(4)}
    drawn = {str(n): scale(halves[n, 1]) for n in range(4)}
    matched, shuffled = matched_and_shuffled(drawn, {str(n): drawn[str((n + 1) % 4)] for n in range(4)}, real)
    assert matched.shape == shuffled.shape == (4, 3)
    assert (np.nanmean(matched, 1) < 0.25 * np.nanmean(shuffled, 1)).all()


def test_composition_is_not_style():
    """Much gland or little gland, of one patient: near by regions, far by whole images."""
    rng, shares = np.random.default_rng(0), ((2, 12), (20, 30))
    images = rng.integers(150, 170, (24, 32, 32, 3), dtype=np.uint8)
    maps = np.zeros((24, 32, 32), np.uint8)
    for k in range(24):
        low, high = shares[k // 12]
        maps[k, :, : rng.integers(low, high)] = 1
    images[maps == 1] -= np.array([90, 40, 100], np.uint8)
    by_region, whole = class_features(images, maps, 2), _whole(images)
    near, far = (
        style_distance(scaled[:12], scaled[12:])
        for scaled in (Scale.fit(by_region)(by_region), Scale.fit(whole)(whole))
    )
    assert near < 0.2 * far


def test_colour_errors_are_differences_of_means_and_deviations():
    images, maps = _phantom(0, seed=1)
    own = region_colours(images, maps, 3)
    assert np.array_equal(colour_errors(own - own), [0, 0])
    darker = region_colours((images * 0.5).astype(np.uint8), maps, 3)
    mean, std = colour_errors(own - darker)
    assert mean == pytest.approx(np.nanmean(own[0]) / 2, abs=0.005) and 0 < std < mean
    assert np.nanmax(own) <= 1 and np.isnan(region_colours(images, np.full_like(maps, 255), 3)).all()


def test_drift_is_what_all_patients_have_in_common():
    off = np.full((1, 2, 3, 3), 0.1)
    assert colour_drift(np.concatenate([off, -off])) == pytest.approx([0, 0])
    assert colour_drift(np.concatenate([off, off / 2])) == pytest.approx([0.075, 0.075])
    lacking = off.copy()
    lacking[:, :, 0] = np.nan
    assert colour_drift(np.concatenate([lacking, 3 * off])) == pytest.approx([(0.3 + 0.2 + 0.2) / 3] * 2)
    assert np.isnan(colour_drift(np.full((2, 2, 3, 3), np.nan))).all()


def test_spread_is_zero_for_copies():
    features = _whole(_set("violet", 0))
    assert spread(np.repeat(features[:1], 4, axis=0)) == 0 < spread(features)
    assert np.isnan(spread(features[:1]))


def test_energy_distance_is_unbiased_for_small_samples():
    """Normal sets a mean apart: the average estimate does not depend on the sizes, and is small for equal means."""
    rng = np.random.default_rng(0)
    shifted = [
        np.mean([energy_distance(rng.normal(size=(n, 4)), rng.normal(1, 1, (n, 4))) for _ in range(300)])
        for n in (5, 40)
    ]
    assert shifted[0] == pytest.approx(shifted[1], rel=0.1)
    with pytest.raises(ValueError, match="two images"):
        energy_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def test_constant_missing_and_exotic_features_do_not_blow_up():
    scale = Scale.fit(np.ones((5, 2)))
    assert np.allclose(scale(np.ones((3, 2))), 0)
    rows = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    scale = Scale.fit(rows)
    assert scale.mean.tolist() == [2, 0] and scale.std.tolist() == [1, 1]
    assert scale(np.array([[1e9, np.nan]]))[0, 0] == 4


def _compared(drawn: dict[str, np.ndarray]) -> tuple[float, float]:
    """The other style is the next one of those drawn."""
    real = {name: _whole(_set(name, seed)) for seed, name in enumerate(STYLES)}
    scale = Scale.fit(np.concatenate(list(real.values())))
    features, names = {name: scale(_whole(images)) for name, images in drawn.items()}, list(drawn)
    elsewhere = {name: features[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}
    figures = matched_and_shuffled(features, elsewhere, {name: scale(rows) for name, rows in real.items()})
    return tuple(float(values.mean()) for values in figures)


def test_matched_styles_are_nearer_than_shuffled_ones():
    matched, shuffled = _compared({name: _set(name, 50 + seed) for seed, name in enumerate(STYLES)})
    assert matched < 0.1 * shuffled


def test_an_ignored_style_condition_shows():
    mixed = {name: np.concatenate([_set(other, 50 + k, 4) for other in STYLES]) for k, name in enumerate(STYLES)}
    matched, shuffled = _compared(mixed)
    assert matched == pytest.approx(shuffled, rel=0.1)


def test_patients_with_one_image_have_no_distance():
    matched, shuffled = _compared({"violet": _set("violet", 9), "brown": _set("brown", 8, 1)})
    assert np.isnan([matched, shuffled]).all()


def test_kid_is_unbiased_at_zero_and_grows_with_the_difference():
    rng = np.random.default_rng(0)
    same = [kid(rng.normal(size=(30, 8)), rng.normal(size=(30, 8))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    x = rng.normal(size=(200, 8))
    steps = [kid(x, rng.normal(shift, 1, (200, 8))) for shift in (0.0, 0.5, 1.0)]
    assert steps[0] < steps[1] < steps[2]


def test_kid_matches_the_definition():
    x, y = np.random.default_rng(0).normal(size=(2, 4, 3))
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    own = lambda z: np.mean([k(z[i], z[j]) for i in range(4) for j in range(4) if i != j])  # noqa: E731
    cross = np.mean([k(a, b) for a in x for b in y])
    assert kid(x, y) == pytest.approx(own(x) + own(y) - 2 * cross)


def test_kid_over_patients_is_zero_on_average_where_images_of_a_patient_are_alike():
    rng = np.random.default_rng(0)

    def pair() -> tuple[list[np.ndarray], list[np.ndarray]]:
        own = rng.normal(size=(8, 1, 20))  # what a patient's images have in common
        return tuple([patient + 0.3 * rng.normal(size=(n, 20)) for patient in own] for n in (24, 6))  # type: ignore[return-value]

    pairs = [pair() for _ in range(200)]
    over = [kid_over_patients(*sets) for sets in pairs]
    assert abs(np.mean(over)) < 3 * np.std(over) / np.sqrt(200)
    pooled = [kid(np.concatenate(a), np.concatenate(b)) for a, b in pairs]
    assert np.mean(pooled) < -5 * np.std(pooled) / np.sqrt(200)  # as of independent samples: below 0
    a, b = pairs[0]
    assert kid_over_patients([x + 1 for x in a], b) > kid_over_patients(a, b)
    with pytest.raises(ValueError, match="two at least"):
        kid_over_patients(a[:1], b[:1])


def test_kid_features_tell_styles_apart():
    real = kid_features(_set("violet", 0, 40))
    scale = Scale.fit(real)
    near, far = (kid(scale(kid_features(_set(name, 1, 40))), scale(real)) for name in ("violet", "violet-fine"))
    assert near < 0.1 * far


def test_layout_agreement_pools_a_patient_and_leaves_out_unknown_pixels():
    layouts = np.array([[[0, 0, 1, 1]], [[0, 0, 255, 255]], [[255] * 4]])
    readings = np.array([[[0, 0, 1, 1]], [[0, 1, 0, 0]], [[0, 0, 1, 1]]])
    found = layout_agreement(["a", "a", "b"], readings, layouts, num_classes=2)
    assert found[0] == pytest.approx((3 / 4 + 2 / 3) / 2) and np.isnan(found[1])
