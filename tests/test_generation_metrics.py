"""Style distance, kernel distance and layout agreement."""

import numpy as np
import pytest

from stedm.evaluation.generation import (
    Scale,
    energy_distance,
    kid,
    kid_of_images,
    layout_agreement,
    matched_and_shuffled,
    optical_density_statistics,
    style_distance,
    style_features,
    texture_statistics,
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


def test_style_distance_separates_colour_and_texture():
    images = {name: _set(name, seed) for seed, name in enumerate(STYLES)}
    scale = Scale.fit(style_features(np.concatenate(list(images.values()))))
    again = style_distance(_set("violet", 99), images["violet"], scale=scale)
    assert style_distance(images["violet"], images["violet"], scale=scale) == 0
    assert again < 0.5
    for other in ("brown", "violet-fine"):
        distance = style_distance(images["violet"], images[other], scale=scale)
        assert distance > 2
        assert distance == pytest.approx(style_distance(images[other], images["violet"], scale=scale))


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


def test_constant_features_do_not_blow_up():
    scale = Scale.fit(np.ones((5, 2)))
    assert np.allclose(scale(np.ones((3, 2))), 0)


def test_matched_styles_are_nearer_than_shuffled_ones():
    real = {name: _set(name, seed) for seed, name in enumerate(STYLES)}
    drawn = {name: _set(name, 50 + seed) for seed, name in enumerate(STYLES)}
    matched, shuffled = matched_and_shuffled(drawn, real, rng=np.random.default_rng(0))
    assert matched < 0.1 * shuffled


def test_an_ignored_style_condition_shows():
    real = {name: _set(name, seed) for seed, name in enumerate(STYLES)}
    drawn = {name: np.concatenate([_set(other, 50 + seed, 4) for other in STYLES]) for seed, name in enumerate(STYLES)}
    matched, shuffled = matched_and_shuffled(drawn, real, rng=np.random.default_rng(0))
    assert matched == pytest.approx(shuffled, rel=0.1)


def test_patients_with_one_image_are_left_out():
    real = {name: _set(name, seed) for seed, name in enumerate(STYLES)}
    drawn = {"violet": _set("violet", 9), "brown": _set("brown", 8, 1)}
    with pytest.raises(ValueError, match="two patients"):
        matched_and_shuffled(drawn, real, rng=np.random.default_rng(0))


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


def test_kid_of_images_tells_styles_apart():
    real = _set("violet", 0, 40)
    assert kid_of_images(_set("violet", 1, 40), real) < 0.1 * kid_of_images(_set("violet-fine", 1, 40), real)


def test_layout_agreement_leaves_out_unknown_layouts():
    right, half = np.diag([10, 10]), np.array([[10, 0], [10, 0]])
    assert layout_agreement(np.stack([right, half, np.zeros((2, 2), int)])) == pytest.approx((1 + 0.25) / 2)
    with pytest.raises(ValueError, match="known pixel"):
        layout_agreement(np.zeros((2, 2, 2), int))
