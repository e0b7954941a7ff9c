"""Bands: drawn images get the octaves of their style set, class by class, and nothing else changes."""

import pytest
import torch
from torch import Tensor

from stedm.diffusion.bands import MOST_GAIN, OCTAVES, match_bands, measure_bands

PX = 64


def texture(strength: float, *, together: float = 0.0, n: int = 4, seed: int = 0) -> Tensor:
    """Coloured noise (n, 3, PX, PX) around grey; `together`: share of it that the three colours have in common."""
    made = torch.Generator().manual_seed(seed)
    own, common = torch.randn(n, 3, PX, PX, generator=made), torch.randn(n, 1, PX, PX, generator=made)
    return (strength * ((1 - together) ** 0.5 * own + together**0.5 * common) + 0.2).clamp(-0.9, 0.9)


def everywhere(n: int) -> Tensor:
    return torch.zeros(n, 1, PX // 8, PX // 8)


def halves(n: int = 1) -> Tensor:
    """Two regions, left and right, as a layout says (n, 2, PX, PX)."""
    regions = torch.zeros(n, 2, PX, PX)
    regions[:, 0, :, : PX // 2], regions[:, 1, :, PX // 2 :] = 1, 1
    return regions


def for_each(bands: Tensor, n: int) -> Tensor:
    return bands.expand(n, *bands.shape)


def test_matched_images_have_the_strength_and_the_colours_of_their_style() -> None:
    style, drawn = texture(0.15, together=0.8, seed=1), texture(0.08, together=0.1)
    wanted, before = measure_bands(style, everywhere(4)), measure_bands(drawn, everywhere(4))  # (1, OCTAVES, 3, 3)
    matched = match_bands(drawn, for_each(wanted, 4), torch.ones(4, 1, PX, PX), 1.0)
    found = measure_bands(matched, everywhere(4))
    left = (found - wanted).norm(dim=(2, 3)) / (before - wanted).norm(dim=(2, 3))  # (1, OCTAVES)
    assert left[0, :2].max() < 0.12 and left.max() < 0.8  # coarse octaves have few pixels to be measured by
    torch.testing.assert_close(matched.mean((2, 3)), drawn.mean((2, 3)), atol=0.02, rtol=0)  # its colour stays


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_is_the_share_of_the_way(strength: float) -> None:
    style, drawn = texture(0.15, seed=1), texture(0.08)
    wanted, before = measure_bands(style, everywhere(4)), measure_bands(drawn, everywhere(4))
    matched = match_bands(drawn, for_each(wanted, 4), torch.ones(4, 1, PX, PX), strength)
    assert torch.equal(matched, drawn) == (strength == 0)
    sd = [bands[0, 0].diagonal().sqrt().mean() for bands in (before, measure_bands(matched, everywhere(4)), wanted)]
    assert (sd[1] - sd[0]) / (sd[2] - sd[0]) == pytest.approx(strength, abs=0.06)


def test_each_class_gets_its_own_and_what_the_style_lacks_stays() -> None:
    drawn = texture(0.08, n=1)
    strong = measure_bands(texture(0.2, seed=1), everywhere(4))
    for known in (0, 1):
        bands = torch.full((1, 2, OCTAVES, 3, 3), torch.nan)
        bands[0, known] = strong[0]
        change = (match_bands(drawn, bands, halves(), 1.0) - drawn).abs().mean((0, 1, 2))  # (PX,)
        sides = change[: PX // 2 - 8].mean(), change[PX // 2 + 8 :].mean()
        assert sides[known] > 0.05 and sides[1 - known] < 1e-3


def test_regions_of_a_style_set_are_told_apart() -> None:
    images = torch.cat([texture(0.05), texture(0.2, seed=1)], dim=3)[..., PX // 2 : -PX // 2]
    found = torch.full((4, 3, PX // 8, PX // 8), -12.0)  # the third is nowhere
    found[:, 0, :, : PX // 16], found[:, 1, :, PX // 16 :] = 0, 0
    bands = measure_bands(images, found)
    assert bands[0, 0].trace().sqrt() < 0.5 * bands[1, 0].trace().sqrt() and bands[2].isnan().all()


def test_an_edge_between_classes_is_layout_and_stays() -> None:
    drawn = halves()[:, :1].expand(1, 3, PX, PX) * 0.8 - 0.4 + texture(0.01, n=1) - 0.2
    strong = measure_bands(texture(0.2, seed=1), everywhere(4)).expand(2, OCTAVES, 3, 3)[None]
    matched = match_bands(drawn, strong, halves(), 1.0)
    steps = [x.mean((0, 1, 2))[[PX // 2 - 1, PX // 2]].diff().abs() for x in (drawn, matched)]
    assert steps[1] / steps[0] == pytest.approx(1, abs=0.3)  # three times as much, were it texture
    inside = (slice(None), slice(None), slice(None), slice(4, 16))
    assert matched[inside].std((2, 3)).mean() > 2 * drawn[inside].std((2, 3)).mean()  # while texture becomes stronger


def test_gains_are_limited() -> None:
    drawn = texture(0.002, n=1)
    strong = measure_bands(texture(0.3, seed=1), everywhere(4))[None]
    spread = match_bands(drawn, strong, torch.ones(1, 1, PX, PX), 1.0).std() / drawn.std()
    assert 1.5 < spread <= 1.1 * MOST_GAIN


def test_faint_octaves_are_matched_as_well_as_strong_ones() -> None:
    """Variances of a thousandth: products of two of them must not count as nothing."""
    style, drawn = texture(0.02, together=0.8, seed=1), texture(0.015, together=0.1)
    wanted = measure_bands(style, everywhere(4))
    found = measure_bands(match_bands(drawn, for_each(wanted, 4), torch.ones(4, 1, PX, PX), 1.0), everywhere(4))
    torch.testing.assert_close(found[0, 0], wanted[0, 0], rtol=0.1, atol=0)


def test_image_depends_on_its_own_row() -> None:
    drawn = torch.cat([texture(0.05, n=1), texture(0.15, n=1, seed=2)])
    bands = torch.stack([measure_bands(texture(s, seed=3), everywhere(4)) for s in (0.1, 0.05)])
    both = match_bands(drawn, bands, torch.ones(2, 1, PX, PX), 0.7)
    alone = torch.cat([match_bands(drawn[k : k + 1], bands[k : k + 1], torch.ones(1, 1, PX, PX), 0.7) for k in (0, 1)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)
