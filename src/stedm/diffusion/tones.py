"""Tones: how dark and how light a style gets, measured on the style set; decoded images are kept within.

A velocity network that is asked a few times, and guided, overshoots a little where tissue is darkest. On screen nobody
sees it, but optical density is a logarithm: a handful of pixels that are black in one colour give a patch a skewness
and a correlation between its colours that no tissue has. (The bands, matched afterwards, may go beyond a little.)
"""

import torch
from torch import Tensor

TAIL = 0.002
"""Share of an image's pixels, at either end, that may lie beyond its tones: dust, saturated pixels."""


def measure_tones(images: Tensor) -> Tensor:
    """Darkest and lightest value (2, 3) of each colour in a style set (N, 3, H, W); the widest range of its images."""
    ordered = images.flatten(2).sort(dim=2).values  # (N, 3, H W)
    last = ordered.shape[2] - 1
    left_out = int(TAIL * last)
    return torch.stack([ordered[..., left_out].amin(0), ordered[..., last - left_out].amax(0)])


def keep_tones(images: Tensor, tones: Tensor) -> Tensor:
    """images (B, 3, H, W) with each colour kept within its row's tones (B, 2, 3)."""
    low, high = tones[..., None, None].to(images).unbind(1)  # (B, 3, 1, 1) each
    return torch.minimum(torch.maximum(images, low), high)
