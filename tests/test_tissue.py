"""Tissue is found in dark and pale stains, on tinted glass, and not where nothing was scanned."""

import numpy as np
import pytest

from stedm.data.tissue import tissue_fraction, tissue_mask, white_point

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
