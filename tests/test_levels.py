"""Levels: each class of a drawn image gets the mean colour that its style set shows of it, and keeps what it shows."""

import pytest
import torch
from torch import Tensor

from stedm.diffusion.density import from_optical_density, optical_density
from stedm.diffusion.levels import FADING_PX, match_levels, measure_levels

PX = 64
SURE = 0.0
NOWHERE = -20.0


def halves(n: int = 1) -> Tensor:
    """Two regions, left and right, as a layout says (n, 2, PX, PX)."""
    regions = torch.zeros(n, 2, PX, PX)
    regions[:, 0, :, : PX // 2], regions[:, 1, :, PX // 2 :] = 1, 1
    return regions


def found(n: int, *, right: float = SURE) -> Tensor:
    """The same as a style encoder says it (n, 3, PX / 8, PX / 8), with a third region that is nowhere."""
    logs = torch.full((n, 3, PX // 8, PX // 8), NOWHERE)
    logs[:, 0, :, : PX // 16], logs[:, 1, :, PX // 16 :] = SURE, right
    return logs


def tissue(left: float, right: float, *, n: int = 1, seed: int = 0) -> Tensor:
    """Images (n, 3, PX, PX) of a mean optical density left and right, with noise."""
    density = 0.05 * torch.randn(n, 3, PX, PX, generator=torch.Generator().manual_seed(seed)) + 1
    density[..., : PX // 2] += left - 1
    density[..., PX // 2 :] += right - 1
    return from_optical_density(density)


def test_density_and_back() -> None:
    images = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    torch.testing.assert_close(from_optical_density(optical_density(images)), images, atol=1e-5, rtol=0)
    assert optical_density(torch.ones(1)) == pytest.approx(0, abs=1e-6)


def test_levels_are_the_means_of_regions_and_nan_where_there_is_none() -> None:
    levels = measure_levels(tissue(0.5, 1.5, n=4), found(4))
    torch.testing.assert_close(levels[:2], torch.tensor([[0.5] * 3, [1.5] * 3]), atol=0.02, rtol=0)
    assert levels[2].isnan().all()


def test_doubtful_places_count_little() -> None:
    """Half of what is found at the left is a third class's, which the encoder takes for either with the same odds."""
    logs = found(1)
    logs[:, :, : PX // 16, : PX // 16] = torch.tensor([0.5, NOWHERE, 0.5]).clamp_min(0.02).log()[:, None, None]
    images = tissue(0.5, 1.5)
    images[..., : PX // 2, : PX // 2] = tissue(1.5, 1.5)[..., : PX // 2, : PX // 2]
    level = float(measure_levels(images, logs)[0].mean())
    assert 0.5 < level < 0.65  # 0.83 for plain probabilities


def test_one_region_everywhere_has_no_level() -> None:
    assert measure_levels(tissue(0.5, 1.5), torch.zeros(1, 1, 8, 8)).isnan().all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_strength_is_the_share_of_the_way(strength: float) -> None:
    drawn = tissue(1.0, 1.5)
    levels = torch.tensor([[[0.6] * 3, [2.0] * 3]])
    matched = match_levels(drawn, levels, halves(), strength)
    assert torch.equal(matched, drawn) == (strength == 0)
    density = optical_density(matched)[..., 4:-4]
    means = [part.mean().item() for part in density.split(density.shape[-1] // 2, dim=-1)]
    assert means == pytest.approx([1 - 0.4 * strength, 1.5 + 0.5 * strength], abs=0.04)
    inside = (..., slice(4, PX // 2 - 4))
    kept = optical_density(matched)[inside].std() / optical_density(drawn)[inside].std()
    assert kept == pytest.approx(1, abs=0.02)  # texture is left alone


def test_colours_move_apart() -> None:
    levels = torch.tensor([[[0.8, 1.0, 1.2], [1.0, 1.0, 1.0]]])
    left = optical_density(match_levels(tissue(1.0, 1.0), levels, halves(), 1.0))[0, :, :, 4 : PX // 2 - 4]
    torch.testing.assert_close(left.mean((1, 2)), levels[0, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize("unknown", ["in the style set", "in the layout"])
def test_what_either_side_lacks_is_left_as_it_is(unknown: str) -> None:
    drawn = tissue(1.0, 1.5)
    levels, regions = torch.tensor([[[0.6] * 3, [2.0] * 3]]), halves()
    if unknown == "in the style set":
        levels[:, 1] = torch.nan
    else:
        regions[:, 1] = 0
    change = (match_levels(drawn, levels, regions, 1.0) - drawn).abs().mean((0, 1, 2))
    assert change[: PX // 2 - 4].mean() > 0.05
    assert change[PX // 2 + FADING_PX :].max() < 1e-6


def test_a_few_pixels_of_a_class_are_no_sample_of_it() -> None:
    drawn, regions = tissue(1.0, 1.0), torch.zeros(1, 2, PX, PX)
    regions[0, 1, 8:14, 8:14] = 1
    regions[:, 0] = 1 - regions[:, 1]
    levels = torch.tensor([[[torch.nan] * 3, [2.0] * 3]])
    torch.testing.assert_close(match_levels(drawn, levels, regions, 1.0), drawn, atol=1e-6, rtol=0)


def test_there_is_no_step_at_a_border_that_was_none() -> None:
    levels = torch.tensor([[[0.6] * 3, [1.4] * 3]])
    density = optical_density(match_levels(tissue(1.0, 1.0), levels, halves(), 1.0)).mean((0, 1, 2))
    assert density.diff().abs().max() < 0.25  # 0.8 in one step, did it not fade


def test_image_depends_on_its_own_row() -> None:
    drawn = torch.cat([tissue(1.0, 1.5), tissue(0.5, 1.0, seed=1)])
    levels = torch.tensor([[[0.6] * 3, [2.0] * 3], [[1.0] * 3, [0.4] * 3]])
    both = match_levels(drawn, levels, halves(2), 0.7)
    alone = torch.cat([match_levels(drawn[k : k + 1], levels[k : k + 1], halves(), 0.7) for k in (0, 1)])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=0)
