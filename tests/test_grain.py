"""Grain: noise is measured where tissue does not pass for it, and drawn from the image's own seed."""

import pytest
import torch
from torch import Tensor

from stedm.diffusion.grain import add_grain, measure_grain

GRAIN = torch.tensor([0.02, 0.05, 0.03])


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
    torch.testing.assert_close(measure_grain(noise(4, 64)), GRAIN, rtol=0.1, atol=0)


def test_tissue_and_shading_do_not_pass_for_noise() -> None:
    torch.testing.assert_close(measure_grain(tissue(4, 64) + noise(4, 64)), GRAIN, rtol=0.15, atol=0)
    assert measure_grain(tissue(4, 64)).max() < 1e-3


def test_texture_everywhere_that_all_colours_share_is_not_noise() -> None:
    """No flat place at all: what darkens the three colours together is tissue."""
    texture = 0.2 * torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    images = texture * torch.tensor([0.5, 1.0, 0.7]).view(1, 3, 1, 1)
    assert measure_grain(images).max() < 2e-3
    torch.testing.assert_close(measure_grain(images + noise(4, 64)), GRAIN, rtol=0.4, atol=0)


def test_clipped_white_is_left_out() -> None:
    images = noise(4, 64)
    images[:, :, :, 32:] = 1.0
    torch.testing.assert_close(measure_grain(images), GRAIN, rtol=0.15, atol=0)
    assert (measure_grain(torch.ones(1, 3, 32, 32)) == 0).all()


def test_smallest_images_have_a_measure() -> None:
    assert torch.isfinite(measure_grain(noise(1, 16))).all()


def test_added_noise_is_the_one_measured() -> None:
    flat = torch.zeros(3, 3, 64, 64)
    noisy = add_grain(flat, GRAIN.expand(3, 3), seeds=[1, 2, 3])
    torch.testing.assert_close(noisy.std((0, 2, 3)), GRAIN, rtol=0.05, atol=0)
    torch.testing.assert_close(measure_grain(noisy), GRAIN, rtol=0.1, atol=0)
    assert torch.equal(add_grain(flat, torch.zeros(3, 3), seeds=[1, 2, 3]), flat)


@pytest.mark.parametrize("seeds", [[4, 9], [9, 4, 7]])
def test_an_images_grain_depends_on_its_seed_alone(seeds: list[int]) -> None:
    alone = add_grain(torch.zeros(1, 3, 16, 16), GRAIN[None], seeds=[9])
    together = add_grain(torch.zeros(len(seeds), 3, 16, 16), GRAIN.expand(len(seeds), 3), seeds=seeds)
    assert torch.equal(together[seeds.index(9)], alone[0])
    assert not torch.equal(together[seeds.index(4)], alone[0])
