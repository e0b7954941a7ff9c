"""Grain: the scanner's noise, a part of style that no latent can carry, measured on the style set and added at the end.

Noise cannot be compressed, so a first stage draws glass and flat tissue smoother than any scanner does. What is missing
is measured where the style images are flattest, with a mask that is blind to constant and linear brightness
(Immerkaer 1996, Fast noise variance estimation), and drawn anew for each image from its seed. Fine tissue passes that
mask too, but it darkens the three colours together, which noise does not: only what they do not share is counted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CELL_PX = 8
FLATTEST = 0.2
"""Share of the cells that noise is measured in."""
_MASK = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6  # unit gain for white noise


def measure_grain(images: Tensor) -> Tensor:
    """Standard deviation (3,) of the noise in each colour of a style set (N, 3, H, W) in [-1, 1]; sides of >= 16 px.

    Cells count as flat by how little their 2 x 2 means differ, not by the noise itself: choosing the quietest cells
    would measure too little. Clipped cells, which show no noise, are left out unless all are.
    """
    response = F.conv2d(images, _MASK.to(images).expand(3, 1, 3, 3), groups=3)  # (N, 3, H - 2, W - 2)
    products = torch.einsum("nchw,ndhw->ncdhw", response, response).flatten(1, 2)  # (N, 9, H - 2, W - 2)
    cells = F.avg_pool2d(products, CELL_PX).movedim(1, -1).flatten(0, 2)  # (M, 9)
    inner = images[..., 1:-1, 1:-1]
    means = F.avg_pool2d(inner, 2)
    spread = F.avg_pool2d(means.square(), CELL_PX // 2) - F.avg_pool2d(means, CELL_PX // 2).square()
    clipped = F.max_pool2d(inner.abs().amax(1, keepdim=True), CELL_PX).flatten() >= 1  # (M,)
    flatness = spread.sum(1).flatten() + 1e6 * clipped
    usable = len(cells) if clipped.all() else int((~clipped).sum())
    chosen = flatness.argsort()[: max(1, int(FLATTEST * usable))]
    return _unshared(cells[chosen].mean(0).view(3, 3))


def _unshared(covariance: Tensor) -> Tensor:
    """Standard deviations (3,) of what three variables do not share: covariance = l l^T + diag(sd^2), solved for sd.

    One-factor analysis of three variables has a closed form: l_r^2 = c_rg c_rb / c_gb, and so on.
    """
    rg, rb, gb = covariance[0, 1], covariance[0, 2], covariance[1, 2]
    shared = torch.stack([rg * rb / gb, rg * gb / rb, rb * gb / rg])  # negative or infinite where nothing is shared
    own = covariance.diagonal()
    shared = torch.where(torch.isfinite(shared), shared, 0).clamp_min(0)
    return (own - torch.minimum(shared, own)).sqrt()


def add_grain(images: Tensor, grain: Tensor, *, seeds: Sequence[int]) -> Tensor:
    """images (B, 3, H, W) plus noise of standard deviation grain (B, 3), drawn for each image from its own seed."""
    white = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(_other(seed))) for seed in seeds]
    return images + grain[:, :, None, None].to(images) * torch.stack(white).to(images)


def _other(seed: int) -> int:
    """Another seed of the same image: its latent noise has the first."""
    return int(seed) ^ 0x5DEECE66D
