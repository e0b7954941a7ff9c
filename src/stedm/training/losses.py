"""Losses of the first stage and of the segmenter. (The diffusion loss is diffusion/flow.py.)"""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional as F

from stedm.config import IGNORE
from stedm.ranks import place, total

_DARK = 5.0


def reconstruction_loss(reconstructed: Tensor, images: Tensor, levels: int = 3) -> Tensor:
    """L1 on pixels plus L1 on the bands of a Laplacian pyramid, (B, 3, H, W); keeps edges and fine texture."""
    error = reconstructed - images
    loss = error.abs().mean()
    for level in range(levels):
        coarse = F.avg_pool2d(error, 2)
        band = error - F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        loss = loss + band.abs().mean() / 2**level
        error = coarse
    return loss


def spectrum_loss(reconstructed: Tensor, images: Tensor) -> Tensor:
    """L1 between log local contrast at fine scales: an L1 decoder draws grey where it is unsure, tissue has grain."""
    loss = reconstructed.new_zeros(())
    for window in (4, 8):
        contrasts = []
        for x in (reconstructed, images):
            local = F.avg_pool2d(x.square(), window, window // 2) - F.avg_pool2d(x, window, window // 2).square()
            contrasts.append((local + 1e-3).log())
        loss = loss + (contrasts[0] - contrasts[1]).abs().mean()
    return loss


def optical_density(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> -log of their brightness, about -0.02 to 4: what a stain adds up in.

    A twentieth of full brightness is nothing in pixel values and a stain in optical density. `_DARK` levels are added,
    so that the darkest pixels, a matter of rounding, do not rule.
    """
    brightness = (images.clamp(-1, 1.05) + 1) / 2 + _DARK / 255
    return -brightness.log()


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) per latent value."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def regions_loss(found: Tensor, layouts: Tensor) -> Tensor:
    """Cross entropy of the classes found in style images, against what is known of their layouts; a scalar.

    found: log-probabilities (B, N, K, h, w), of the classes and a last one that is left out. layouts: (B, N, H, W),
    label maps whose values of K - 1 and more are unknown. 0 where nothing is known, or K = 1.
    """
    classes = found.flatten(0, 1)[:, :-1].float()  # (B N, classes, h, w)
    labels = layouts.flatten(0, 1).long().clamp(max=classes.shape[1])
    onehot = F.one_hot(labels, classes.shape[1] + 1)[..., :-1].movedim(-1, 1).float()  # (B N, classes, H, W)
    shares = F.adaptive_avg_pool2d(onehot, classes.shape[-2:])
    known = total(shares.sum()).clamp_min(1.0) / place().world  # ranks' losses are averaged
    return -(shares * classes).sum() / known


class SegmentationLoss(torch.nn.Module):
    """0.1 cross entropy + 0.9 Dice, ignore pixels (255) left out of both (the weights of Oettl 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)

    def forward(self, logits: Tensor, label_maps: Tensor) -> Tensor:
        """logits (B, N, H, W), label_maps (B, H, W) int64 -> scalar."""
        if not (label_maps != IGNORE).any():
            return logits.sum() * 0.0
        cross_entropy = F.cross_entropy(logits, label_maps, ignore_index=IGNORE)
        return 0.1 * cross_entropy + 0.9 * self.dice(logits, label_maps)
