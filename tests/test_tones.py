"""Tones: drawn images are no darker and no lighter than their style set, a few odd pixels of which do not count."""

import torch

from stedm.diffusion.tones import TAIL, keep_tones, measure_tones


def style_set(low: float, high: float, n: int = 3, px: int = 64) -> torch.Tensor:
    images = torch.rand(n, 3, px, px, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * images


def test_tones_are_the_range_without_odd_pixels() -> None:
    images = style_set(-0.6, 0.8)
    images[:, :, 0, :2], images[:, :, 1, :2] = -1, 1  # fewer than TAIL of the pixels
    tones = measure_tones(images)  # (2, 3)
    torch.testing.assert_close(tones, torch.tensor([[-0.6] * 3, [0.8] * 3]), atol=0.02, rtol=0)


def test_one_image_with_dark_tissue_is_enough() -> None:
    pale, dark = style_set(0.2, 0.8, n=4), style_set(-0.9, 0.8, n=1)
    assert measure_tones(torch.cat([pale, dark]))[0].max() < -0.85


def test_each_image_is_kept_within_its_own_tones() -> None:
    tones = torch.stack([measure_tones(style_set(-0.5, 0.5)), measure_tones(style_set(-0.9, 0.1))])  # (2, 2, 3)
    images = 3 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    kept = keep_tones(images, tones)
    torch.testing.assert_close(kept.amin((2, 3)), tones[:, 0])
    torch.testing.assert_close(kept.amax((2, 3)), tones[:, 1])
    inside = (images >= tones[:, 0, :, None, None]) & (images <= tones[:, 1, :, None, None])
    assert torch.equal(kept[inside], images[inside]) and 0 < inside.float().mean() < 1


def test_hardly_any_real_pixel_is_changed() -> None:
    images = style_set(-0.6, 0.8)
    changed = keep_tones(images, measure_tones(images).expand(len(images), 2, 3)) != images
    assert changed.float().mean() <= 2 * TAIL
