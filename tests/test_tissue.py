"""Tissue is found in dark and pale stains, on dim and tinted glass, and not where nothing was scanned."""

import numpy as np
import pytest
from scipy import ndimage

from stedm.data.tissue import slide_glass, tissue_fraction, tissue_mask, white_point

GLASS = np.array([238, 240, 236])


def half_tissue(colour, *, noise: float = 2.0) -> np.ndarray:
    """Glass on the left half, tissue of one colour on the right half, (64, 64, 3) uint8."""
    image = np.where(np.arange(64)[None, :, None] < 32, GLASS, np.array(colour))
    image = image + noise * np.random.default_rng(0).standard_normal((64, 64, 3))
    return image.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("colour", [(150, 60, 130), (214, 216, 226), (205, 196, 180), (120, 80, 40)])
def test_stains_strong_and_pale_are_tissue(colour):
    mask = tissue_mask(half_tissue(colour))
    assert mask[:, 36:].mean() > 0.98 and mask[:, :28].mean() < 0.02


def test_white_point_is_the_glass():
    assert np.abs(white_point(half_tissue((150, 60, 130))) - GLASS).max() <= 3
    assert (white_point(np.full((32, 32, 3), 150, np.uint8)) == 255).all()


def test_fraction_of_plain_images():
    assert tissue_fraction(np.full((32, 32, 3), 255, np.uint8)) == 0
    assert tissue_fraction(np.full((32, 32, 3), 235, np.uint8)) == 0
    assert tissue_fraction(np.zeros((32, 32, 3), np.uint8)) == 0
    assert tissue_fraction(np.full((32, 32, 3), (180, 90, 160), np.uint8)) == 1


def noisy(image: np.ndarray, noise: float) -> np.ndarray:
    return (image + noise * np.random.default_rng(0).standard_normal(image.shape)).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("noise", [0, 1, 3])
@pytest.mark.parametrize("glass", [(243, 244, 243), (210, 210, 210), (200, 200, 202), (172, 170, 171), (243, 236, 212)])
@pytest.mark.parametrize("filled_in", [None, 255, 0])
def test_glass_of_a_slide_is_found_dim_and_tinted(glass, noise, filled_in):
    image = np.full((100, 100, 3), glass, float)
    image[:, 50:] *= (0.7, 0.35, 0.65)
    image = noisy(image, noise)
    if filled_in is not None:
        image[:40] = filled_in
    assert np.abs(slide_glass(image).colour - glass).max() <= 1


def test_a_constant_colour_that_was_filled_in_is_no_glass_beside_real_glass():
    image = noisy(np.full((100, 100, 3), (200, 199, 198), float), 1.0)
    image[:40] = 209
    assert np.abs(slide_glass(image).colour - (200, 199, 198)).max() <= 1


@pytest.mark.parametrize("colour", [(200, 170, 195), (190, 180, 195), (205, 190, 175), (150, 60, 130)])
def test_the_palest_of_tissue_without_glass_is_no_glass(colour):
    """Texture of 40 microns that differs by a tenth, as tissue's does at the least."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((120, 120, 1)), (2, 2, 0))
    image = noisy(np.array(colour) * (1 + 0.07 * texture / texture.std()), 1.0)
    assert (slide_glass(image).colour == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (4, 4), (5, 5)])
def test_a_tiny_overview_has_a_glass(shape):
    assert (slide_glass(np.full((*shape, 3), 230, np.uint8)).colour == 230).all()
