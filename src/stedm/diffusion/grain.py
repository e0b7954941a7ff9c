"""Grain: the scanner's noise, a part of style that no latent can carry, measured on the style set and added at the end.

Noise cannot be compressed, so a first stage draws glass and flat tissue smoother than any scanner does. What its
reconstructions of the style images lack is measured where these are flattest, with a mask that is blind to constant and
linear brightness (Immerkaer 1996, Fast noise variance estimation), and drawn anew for each image from its seed. Fine
tissue passes that mask too, but it darkens the three colours together, which noise does not: only what they do not
share is counted. A camera's noise depends on the light it gets (Foi 2008, Poissonian-Gaussian noise), so it is measured
for dark, middling and bright places.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stedm.diffusion.sampling import noise_from_seeds

CELL_PX = 8
FLATTEST = 0.3
"""Share of the cells of one brightness that noise is measured in."""
MIDDLE_PX = 128
"""Side of the part of a style image that noise is measured in."""
LEAST_PX = 16
"""Style images have sides of at least this many pixels."""
LEVELS = 3
"""Levels of brightness, each with the same number of cells of the style set."""
BY_CHANCE = 0.1
"""Correlation of two colours' noise that a few cells show without anything shared."""
_MASK = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6  # unit gain for white noise


def middle_of(images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Middles of images (N, 3, H, W) and of their latents (N, C, h, w), `MIDDLE_PX` wide and high at most.

    Noise can be measured in a part of each image, and decoding all of a large one costs more than drawing another.
    """
    factor = images.shape[2] // latents.shape[2]
    most = max(1, MIDDLE_PX // factor)
    top, left = (max(0, side - most) // 2 for side in latents.shape[2:])
    part = latents[..., top : top + most, left : left + most]
    y, x, height, width = (factor * cells for cells in (top, left, *part.shape[2:]))
    return images[..., y : y + height, x : x + width], part


def measure_grain(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Noise that `reconstructed` lacks: (LEVELS, 4), brightness and the standard deviation in each colour.

    images, reconstructed: a style set and what a first stage makes of it (N, 3, H, W) in [-1, 1]; sides of >= LEAST_PX.

    Cells count as flat by how little their 2 x 2 means differ, not by the noise itself: choosing the quietest cells
    would measure too little. Clipped cells, which show no noise, are left out unless all are.
    """
    lacking = _mask_covariances(images) - _mask_covariances(reconstructed)  # (M, 9)
    inner = images[..., 1:-1, 1:-1]
    means = F.avg_pool2d(inner, 2)
    spread = F.avg_pool2d(means.square(), CELL_PX // 2) - F.avg_pool2d(means, CELL_PX // 2).square()
    flatness = spread.sum(1).flatten()  # (M,)
    brightness = F.avg_pool2d(inner.mean(1, keepdim=True), CELL_PX).flatten()
    clipped = F.max_pool2d(inner.abs().amax(1, keepdim=True), CELL_PX).flatten() >= 1
    usable = torch.arange(len(flatness), device=flatness.device) if clipped.all() else torch.nonzero(~clipped)[:, 0]
    levels = []
    for cells in usable[brightness[usable].argsort()].tensor_split(LEVELS):
        cells = cells if len(cells) else usable  # fewer cells than levels
        flat = cells[flatness[cells].argsort()[: max(1, int(FLATTEST * len(cells)))]]
        noise = _unshared(lacking[flat].mean(0).view(3, 3))
        levels.append(torch.cat([brightness[flat].mean()[None], noise]))
    return torch.stack(levels)


def _mask_covariances(images: Tensor) -> Tensor:
    """Covariances (M, 9) of the three colours' responses to the mask, for each cell of (N, 3, H, W)."""
    response = F.conv2d(images, _MASK.to(images).expand(3, 1, 3, 3), groups=3)  # (N, 3, H - 2, W - 2)
    products = torch.einsum("nchw,ndhw->ncdhw", response, response).flatten(1, 2)  # (N, 9, H - 2, W - 2)
    return F.avg_pool2d(products, CELL_PX).movedim(1, -1).flatten(0, 2)


def _unshared(covariance: Tensor) -> Tensor:
    """Standard deviations (3,) of what three variables do not share: covariance = l l^T + diag(sd^2), solved for sd.

    One-factor analysis of three variables has a closed form: l_r^2 = c_rg c_rb / c_gb, and so on. With two colours
    correlated by chance alone it would divide by next to nothing, and nothing counts as shared.
    """
    own = covariance.diagonal().clamp_min(0)
    rg, rb, gb = covariance[0, 1], covariance[0, 2], covariance[1, 2]
    least = torch.stack([rg / (own[0] * own[1]).sqrt(), rb / (own[0] * own[2]).sqrt(), gb / (own[1] * own[2]).sqrt()])
    if not least.min() > BY_CHANCE:  # nor where a colour has no noise
        return own.sqrt()
    shared = torch.stack([rg * rb / gb, rg * gb / rb, rb * gb / rg])
    return (own - torch.minimum(shared, own)).sqrt()


def add_grain(images: Tensor, grain: Tensor, strength: float, *, seeds: Sequence[int]) -> Tensor:
    """images (B, 3, H, W) plus `strength` times the noise of grain (B, LEVELS, 4), from each image's own seed."""
    if strength == 0:
        return images
    white = noise_from_seeds([_other(seed) for seed in seeds], images.shape[1:]).to(images)
    return images + strength * _noise_at(images, grain.to(images)) * white


def _noise_at(images: Tensor, grain: Tensor) -> Tensor:
    """Standard deviations (B, 3, H, W), between the levels' by the brightness around a pixel, else the nearest's."""
    around = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    brightness = F.avg_pool2d(around, 3, stride=1)  # (B, 1, H, W)
    level, noise = grain[..., 0, None, None], grain[..., 1:, None, None]  # (B, LEVELS, 1, 1), (B, LEVELS, 3, 1, 1)
    found = noise[:, 0].expand(-1, -1, *images.shape[2:])
    for k in range(1, grain.shape[1]):
        gap = (level[:, k] - level[:, k - 1]).clamp_min(1e-6)[:, None]
        found = torch.lerp(found, noise[:, k], ((brightness - level[:, k - 1, None]) / gap).clamp(0, 1))
    return found


def _other(seed: int) -> int:
    """Another seed of the same image: its latent noise has the first."""
    return int(seed) ^ 0x5DEECE66D
