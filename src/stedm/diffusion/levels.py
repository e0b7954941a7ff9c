"""Levels: how dense the three colours of a style are, on average, in each class.

A patient whose epithelium is pale because its nuclei are few is drawn with as many nuclei as others, and too dark. Its
style set tells: the mean optical density of each class can be measured in it, where the style encoder finds the class,
and in the drawn image, where its layout says so. The drawn class is moved towards the style's by one number for each
colour; what it shows stays as it is.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stedm.diffusion.density import from_optical_density, optical_density

LEAST = 0.02
"""Share of the pixels that a class must have, in the style set and in the drawn image, to be measured."""
PURITY = 3
"""Power of the style encoder's probabilities: a doubtful place is of two classes, and its colour of neither."""
FADING_PX = 5
"""Width of the border between two classes over which one's move becomes the other's."""


def measure_levels(images: Tensor, found: Tensor) -> Tensor:
    """Mean optical density (K, 3) of each region of a style set; NaN for regions that it does not show.

    images: (N, 3, H, W) in [-1, 1]. found: log-probabilities (N, K, h, w) of the regions, as the style encoder says.
    One region that is everywhere (K = 1) has no level of its own: how dense an image is follows from its layout.
    """
    regions = F.interpolate(found.float().exp(), size=images.shape[2:], mode="bilinear")
    weights = _cores(regions) ** PURITY  # (N, K, H, W)
    totals = torch.einsum("nkhw,nihw->ki", weights, optical_density(images))
    shown = (weights.mean((0, 2, 3)) >= LEAST) & (found.shape[1] > 1)
    return torch.where(shown[:, None], totals / weights.sum((0, 2, 3)).clamp_min(1)[:, None], torch.nan)


def match_levels(images: Tensor, levels: Tensor, regions: Tensor, strength: float) -> Tensor:
    """images (B, 3, H, W) in [-1, 1], each region's mean moved by `strength` (0 to 1) of the way to its level.

    levels: (B, K, 3), from `measure_levels`. regions: (B, K, H, W), 0 or 1, where they hold. A region that either side
    shows too little of is left as it is.
    """
    if strength == 0:
        return images
    density, regions = optical_density(images), regions.float()
    weights = _cores(regions)
    area = weights.sum((2, 3))[..., None]  # (B, K, 1)
    own = torch.einsum("bkhw,bihw->bki", weights, density) / area.clamp_min(1)
    usable = (area >= LEAST * weights[0, 0].numel()) & levels.isfinite()
    change = torch.where(usable, strength * (levels.to(own) - own), 0.0)
    margin = FADING_PX // 2
    faded = F.avg_pool2d(F.pad(regions, [margin] * 4, mode="replicate"), FADING_PX, stride=1)
    return from_optical_density(density + torch.einsum("bkhw,bki->bihw", faded, change))


def _cores(regions: Tensor) -> Tensor:
    """Regions (B, K, H, W), 0 to 1, without their borders."""
    return -F.max_pool2d(-regions, 3, stride=1, padding=1)
