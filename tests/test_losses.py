"""Losses against values computed by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from stedm.config import IGNORE
from stedm.training.losses import SegmentationLoss, kl_loss, reconstruction_loss, spectrum_loss


def test_kl_is_zero_for_the_standard_normal_and_the_closed_form_elsewhere() -> None:
    zero = torch.zeros(2, 4, 3, 3)
    assert kl_loss(zero, zero) == 0
    mean, std = 0.7, 0.5
    logvar = torch.full_like(zero, math.log(std**2))
    expected = 0.5 * (mean**2 + std**2 - 1 - math.log(std**2))
    torch.testing.assert_close(kl_loss(torch.full_like(zero, mean), logvar), torch.tensor(expected))


def test_reconstruction_loss_of_a_constant_error_is_its_size() -> None:
    """A constant error has no band above the mean, so that only the pixel term is left."""
    x = torch.rand(2, 3, 16, 16)
    assert reconstruction_loss(x, x) == 0
    torch.testing.assert_close(reconstruction_loss(x + 0.3, x), torch.tensor(0.3))


def test_reconstruction_loss_counts_fine_errors_twice() -> None:
    """A checkerboard lies wholly in the finest band."""
    checkerboard = torch.ones(1, 3, 16, 16)
    checkerboard[..., ::2, ::2] = checkerboard[..., 1::2, 1::2] = -1
    zero = torch.zeros_like(checkerboard)
    torch.testing.assert_close(reconstruction_loss(0.2 * checkerboard, zero), torch.tensor(0.4))


def test_spectrum_loss_sees_missing_grain_but_not_where_the_grain_is() -> None:
    generator = torch.Generator().manual_seed(0)
    grain, other = (0.3 * torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2))
    assert spectrum_loss(grain, grain) == 0
    assert spectrum_loss(torch.zeros_like(grain), grain) > 3 * spectrum_loss(other, grain)
    blurred = F.avg_pool2d(grain, 3, stride=1, padding=1)
    assert spectrum_loss(blurred, grain) > 1.5 * spectrum_loss(other, grain)


def logits_for(label_maps: torch.Tensor, classes: int, confidence: float) -> torch.Tensor:
    known = label_maps.clamp(max=classes - 1)
    return confidence * F.one_hot(known, classes).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_segmentation_loss_is_small_when_right_and_large_when_wrong(classes: int) -> None:
    truth = torch.randint(0, classes, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    loss = SegmentationLoss()
    assert loss(logits_for(truth, classes, 20.0), truth) < 1e-3
    assert loss(logits_for((truth + 1) % classes, classes, 20.0), truth) > 0.9


def test_segmentation_loss_is_a_tenth_cross_entropy_and_nine_tenths_dice() -> None:
    truth = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    p = logits.softmax(1).transpose(0, 1).flatten(1)  # (3, pixels)
    y = F.one_hot(truth, 3).permute(3, 0, 1, 2).flatten(1).float()
    dice = 1 - (2 * (p * y).sum(1) / (p + y).sum(1)).mean()
    expected = 0.1 * F.cross_entropy(logits, truth) + 0.9 * dice
    torch.testing.assert_close(SegmentationLoss()(logits, truth), expected, atol=1e-5, rtol=1e-5)


def test_ignore_pixels_neither_cost_nor_teach() -> None:
    truth = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    truth[:, :8] = IGNORE
    logits = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = SegmentationLoss()(logits, truth)
    loss.backward()
    assert (logits.grad[:, :, :8] == 0).all() and (logits.grad[:, :, 8:] != 0).any()
    other = logits.detach().clone()
    other[:, :, :8] = 50 * torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(SegmentationLoss()(other, truth), loss.detach())


def test_batch_of_ignore_alone_gives_zero_and_not_nan() -> None:
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    loss = SegmentationLoss()(logits, torch.full((1, 8, 8), IGNORE))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
