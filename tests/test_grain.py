"""Grain: noise is measured where tissue does not pass for it, and drawn from the image's own seed."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stedm.diffusion.grain import LEVELS, add_grain, measure_grain, middle_of

GRAIN = torch.tensor([0.02, 0.05, 0.03])


def measured(images: Tensor) -> Tensor:
    """Noise (LEVELS, 3) that is lost if images become flat."""
    return measure_grain(images, torch.zeros_like(images))[:, 1:]


def of_all_levels(grain: Tensor, n: int = 1) -> Tensor:
    """The same noise (3,) at every brightness, for n images: (n, LEVELS, 4)."""
    brightness = torch.linspace(-0.5, 0.5, LEVELS)[:, None]
    return torch.cat([brightness, grain.expand(LEVELS, 3)], dim=1).expand(n, LEVELS, 4)


def noise(n: int, px: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, px, px, generator=torch.Generator().manual_seed(seed)) * GRAIN[:, None, None]


def tissue(n: int, px: int) -> Tensor:
    """Dark spots of one colour on a smooth ground, strong enough to drown the noise where they are."""
    generator = torch.Generator().manual_seed(5)
    spots = (torch.rand(n, 1, px, px, generator=generator) < 0.1).float()
    spots[:, :, : px // 3] = 0  # a third of the image is glass
    ramp = torch.linspace(-0.3, 0.3, px).view(1, 1, 1, px)
    return ramp - spots * torch.tensor([0.2, 0.4, 0.3]).view(1, 3, 1, 1)


def test_noise_is_measured_in_each_colour() -> None:
    torch.testing.assert_close(measured(noise(4, 64)), GRAIN.expand(LEVELS, 3), rtol=0.15, atol=0)


def test_what_the_first_stage_keeps_is_not_counted() -> None:
    images = noise(4, 64)
    assert measure_grain(images, images)[:, 1:].max() == 0
    half = measure_grain(images, images * 0.5**0.5)[:, 1:]  # half of the variance is kept
    torch.testing.assert_close(half, 0.5**0.5 * GRAIN.expand(LEVELS, 3), rtol=0.15, atol=0)


def test_noise_is_measured_and_added_by_brightness() -> None:
    """Noise that grows with the light, as a camera's: dark places get little of it."""
    dark_to_light = torch.linspace(-0.8, 0.8, 64).expand(4, 3, 64, 64)
    images = dark_to_light + noise(4, 64) * (1 + dark_to_light)
    grain = measure_grain(images, dark_to_light)
    assert (grain[0, 1:] < 0.7 * grain[1, 1:]).all() and (grain[1, 1:] < 0.8 * grain[2, 1:]).all()
    added = add_grain(dark_to_light, grain.expand(4, LEVELS, 4), 1.0, seeds=range(4)) - dark_to_light
    dark, light = added[..., :16].std((0, 2, 3)), added[..., 48:].std((0, 2, 3))
    torch.testing.assert_close(light, grain[2, 1:], rtol=0.1, atol=0)
    torch.testing.assert_close(dark, grain[0, 1:], rtol=0.25, atol=0)


def test_tissue_and_shading_do_not_pass_for_noise() -> None:
    torch.testing.assert_close(measured(tissue(4, 64) + noise(4, 64)).mean(0), GRAIN, rtol=0.15, atol=0)
    assert measured(tissue(4, 64)).max() < 1e-3


def test_texture_everywhere_that_all_colours_share_is_not_noise() -> None:
    """No flat place at all: what darkens the three colours together is tissue."""
    texture = 0.2 * torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    images = texture * torch.tensor([0.5, 1.0, 0.7]).view(1, 3, 1, 1)
    assert measured(images).max() < 2e-3
    torch.testing.assert_close(measured(images + noise(4, 64)).mean(0), GRAIN, rtol=0.4, atol=0)


def test_clipped_white_is_left_out() -> None:
    images = noise(4, 64)
    images[:, :, :, 32:] = 1.0
    torch.testing.assert_close(measured(images).mean(0), GRAIN, rtol=0.15, atol=0)
    assert (measured(torch.ones(1, 3, 32, 32)) == 0).all()


def test_smallest_images_have_a_measure() -> None:
    assert torch.isfinite(measured(noise(1, 16))).all()


def test_added_noise_is_the_one_measured() -> None:
    flat = torch.zeros(3, 3, 64, 64)
    noisy = add_grain(flat, of_all_levels(GRAIN, 3), 1.0, seeds=[1, 2, 3])
    torch.testing.assert_close(noisy.std((0, 2, 3)), GRAIN, rtol=0.05, atol=0)
    torch.testing.assert_close(measured(noisy).mean(0), GRAIN, rtol=0.1, atol=0)
    assert torch.equal(add_grain(flat, of_all_levels(GRAIN, 3), 0.0, seeds=[1, 2, 3]), flat)


@pytest.mark.parametrize("seeds", [[4, 9], [9, 4, 7]])
def test_an_images_grain_depends_on_its_seed_alone(seeds: list[int]) -> None:
    alone = add_grain(torch.zeros(1, 3, 16, 16), of_all_levels(GRAIN), 1.0, seeds=[9])
    together = add_grain(torch.zeros(len(seeds), 3, 16, 16), of_all_levels(GRAIN, len(seeds)), 1.0, seeds=seeds)
    assert torch.equal(together[seeds.index(9)], alone[0])
    assert not torch.equal(together[seeds.index(4)], alone[0])


@pytest.mark.parametrize(
    ("height", "width", "px"), [(96, 64, (96, 64)), (256, 128, (128, 128)), (200, 512, (128, 128))]
)
def test_noise_of_large_images_is_measured_in_their_middles(height: int, width: int, px: tuple[int, int]) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    part, latents = middle_of(images, F.avg_pool2d(images, 4))
    assert part.shape[2:] == px and torch.equal(F.avg_pool2d(part, 4), latents)
    top, left = ((side - small) // 2 for side, small in zip((height, width), px, strict=True))
    assert torch.equal(part, images[..., top : top + px[0], left : left + px[1]])


def test_no_grain_leaves_images_as_they_are() -> None:
    images = tissue(1, 32)
    assert add_grain(images, of_all_levels(torch.full((3,), 0.1)), 0.0, seeds=[0]) is images
