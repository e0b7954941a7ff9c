"""Building blocks shared by the networks."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def time_features(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of t in [0, 1]: (B,) -> (B, dim); periods from 2 pi / 1000 to 2 pi (Vaswani 2017)."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000.0), dim // 2, device=t.device))  # (dim/2,)
    phase = t.float()[:, None] * frequencies[None]  # (B, dim/2)
    return torch.cat([phase.cos(), phase.sin()], dim=1)  # (B, dim)


def groups_for(channels: int) -> int:
    """Group-norm groups: about 16 channels a group, always a divisor of `channels`."""
    return math.gcd(channels, max(1, channels // 16))


def blend(vectors: Tensor, shares: Tensor) -> Tensor:
    """Lay vectors out where their regions are: vectors (B, K, C), shares (B, K, h, w) -> (B, C, h, w).

    A single vector (K = 1) is everywhere: (B, C, 1, 1), whatever the shares.
    """
    if vectors.shape[1] == 1:
        return vectors[:, 0, :, None, None]
    return torch.einsum("bkc,bkhw->bchw", vectors, shares.to(vectors.dtype))


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and shift come from conditioning vectors, one a region; almost plain at the start."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups_for(channels), channels, affine=False)
        self.modulation = nn.Linear(condition_dim, 2 * channels)
        nn.init.zeros_(self.modulation.bias)
        nn.init.normal_(self.modulation.weight, std=0.02)

    def forward(self, x: Tensor, condition: Tensor, shares: Tensor) -> Tensor:
        """x (B, C, h, w); condition (B, K, d); shares (B, K, h, w) of the regions in each cell -> (B, C, h, w)."""
        scale, shift = blend(self.modulation(condition), shares).chunk(2, dim=1)  # (B, C, h, w) or (B, C, 1, 1) each
        return self.norm(x) * (1 + scale) + shift  # (B, C, h, w)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with adaptive group norm, and a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm1 = AdaptiveGroupNorm(in_channels, condition_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaptiveGroupNorm(out_channels, condition_dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, condition: Tensor, shares: Tensor) -> Tensor:
        """x (B, C, h, w); condition (B, K, d); shares (B, K, h, w) -> (B, C', h, w)."""
        h = self.conv1(F.silu(self.norm1(x, condition, shares)))  # (B, C', h, w)
        h = self.conv2(F.silu(self.norm2(h, condition, shares)))  # (B, C', h, w)
        return self.skip(x) + h  # (B, C', h, w)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels of a feature map, with a residual connection."""

    def __init__(self, channels: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head_dim)
        self.norm = nn.GroupNorm(groups_for(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        B, C, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # (B, heads, h w, head_dim) each
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, h w, head_dim)
        return x + self.out(y.transpose(-1, -2).reshape(B, C, h, w))  # (B, C, h, w)
