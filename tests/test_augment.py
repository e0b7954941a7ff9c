"""Augmentation: what must stay together stays together, and nothing leaves its range."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stedm.training.augment import STAINS, StainChange, dihedral, hide_part, random_affine, stain_and_focus


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tissue(n: int = 3, px: int = 16, seed: int = 0) -> torch.Tensor:
    """Images (n, 3, px, px) in [-1, 1] away from black, where optical density saturates."""
    return torch.rand(n, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.7


def density(images: torch.Tensor) -> torch.Tensor:
    return -((images.double() + 1) / 2).log()


def test_identity_changes_nothing() -> None:
    x = tissue()
    torch.testing.assert_close(StainChange.identity(3).apply(x), x, atol=1e-5, rtol=1e-5)


def test_stain_change_is_affine_in_optical_density() -> None:
    change, x = StainChange.draw(3, 0.3, rng()), tissue()
    changed = change.apply(x)
    inside = (changed.abs() < 0.98).all(1)
    expected = (
        torch.einsum("nchw,ncd->ndhw", density(x), change.matrix.double()) + change.offset.double()[..., None, None]
    )
    seen = density(changed)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(seen.movedim(1, -1)[inside], expected.movedim(1, -1)[inside], atol=1e-3, rtol=1e-3)


def test_pure_stain_keeps_its_hue_up_to_the_drawn_turn() -> None:
    """Strength 0 draws the identity; amounts alone scale a stain's optical density."""
    still = StainChange.draw(2, 0.0, rng())
    torch.testing.assert_close(still.matrix, torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)
    assert (still.offset == 0).all()
    amount = torch.tensor([2.0, 0.5, 1.0])
    matrix = torch.linalg.inv(STAINS) @ torch.diag(amount) @ STAINS
    scaled = STAINS @ matrix
    torch.testing.assert_close(scaled, amount[:, None] * STAINS, atol=1e-5, rtol=1e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), strength=st.floats(0, 5))
def test_stain_change_stays_in_range_and_finite(seed: int, strength: float) -> None:
    x = torch.cat([tissue(2), torch.full((1, 3, 16, 16), -1.0), torch.full((1, 3, 16, 16), 1.0)])
    changed = StainChange.draw(4, strength, rng(seed)).apply(x)
    assert torch.isfinite(changed).all() and changed.abs().max() <= 1


def test_image_and_its_style_set_get_the_same_change() -> None:
    """Joint stain augmentation: what ties an annotated image to its style set must not be undone by the stain."""
    change, x = StainChange.draw(3, 1.0, rng()), tissue()
    style_sets = torch.stack([x, x.flip(-1), tissue(seed=1)], dim=1)  # (3, 3, 3, H, W)
    changed = change.apply(style_sets)
    torch.testing.assert_close(changed[:, 0], change.apply(x))
    torch.testing.assert_close(changed[:, 1], change.apply(x).flip(-1))
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(change[rows].apply(x[rows]), change.apply(x)[rows])
    assert not torch.allclose(change.matrix[0], change.matrix[1])


def test_dihedral_gives_the_eight_symmetries_of_the_square() -> None:
    x = torch.arange(9).view(1, 3, 3)
    views = [dihedral(x, code) for code in range(8)]
    assert torch.equal(views[0], x)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    pair = tissue(2)
    for code in range(8):
        torch.testing.assert_close(dihedral(pair, code)[:, 0], dihedral(pair[:, 0], code))


def test_image_and_label_map_move_together() -> None:
    """Draw the label map's values into the image: after any warp they must still agree, borders of regions aside."""
    label_maps = torch.zeros(8, 64, 64, dtype=torch.uint8)
    label_maps[:, 12:40, 20:52], label_maps[:, 44:60, 4:24] = 1, 2
    images = label_maps[:, None].float().expand(-1, 3, -1, -1) / 2 * 2 - 1
    warped, maps = random_affine(images.contiguous(), label_maps, rng())
    agree = ((warped[:, 0] + 1) - maps.float()).abs() < 0.5
    assert agree.float().mean() > 0.97
    assert (maps != label_maps).float().mean() > 0.1
    assert len({tuple(m.flatten().tolist()) for m in maps}) == 8


def test_warping_invents_no_label() -> None:
    label_maps = torch.tensor([0, 3, 255], dtype=torch.uint8)[torch.randint(0, 3, (4, 32, 32))]
    _, maps = random_affine(tissue(4, 32), label_maps, rng())
    assert maps.dtype == torch.uint8 and set(maps.unique().tolist()) <= {0, 3, 255}


def test_stain_and_focus_stays_in_range_and_leaves_some_stains_alone() -> None:
    x = tissue(64)
    y = stain_and_focus(x, 1.0, rng())
    assert y.shape == x.shape and y.abs().max() <= 1 and torch.isfinite(y).all()
    shift = (y - x).mean((1, 2, 3)).abs()
    assert 0.05 < (shift < 0.02).float().mean() < 0.6


@pytest.mark.parametrize(
    "function", [lambda r: StainChange.draw(3, 1.0, r).apply(tissue()), lambda r: stain_and_focus(tissue(), 1.0, r)]
)
def test_augmentation_is_a_function_of_its_generator(function) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(function(rng(3)), function(rng(3)))
    assert not torch.equal(function(rng(3)), function(rng(4)))


def test_hiding_leaves_the_rest_of_the_layout() -> None:
    layout = torch.randint(0, 3, (32, 32), dtype=torch.uint8)
    hidden_shares = []
    for seed in range(40):
        hidden = hide_part(layout, 255, rng(seed))
        assert hidden.dtype == layout.dtype
        assert torch.equal(hidden[hidden != 255], layout[hidden != 255])
        hidden_shares.append(float((hidden == 255).float().mean()))
    assert min(hidden_shares) < 0.35 and max(hidden_shares) > 0.5 and max(hidden_shares) < 0.9
