"""Optical density: what a stain adds to, and what colours are compared in."""

import math

import torch
from torch import Tensor


def optical_density(images: Tensor) -> Tensor:
    """[-1, 1] -> log(256) (black) to 0 (white)."""
    return math.log(256) - torch.log1p((images.float().clamp(-1, 1) + 1) * 127.5)


def from_optical_density(density: Tensor) -> Tensor:
    """The inverse; what would be whiter than white or blacker than black is clipped."""
    return (torch.expm1(math.log(256) - density) / 127.5 - 1).clamp(-1, 1)
