"""Images to latents, and to features of a frozen backbone, many at once: what trainings and their watch cache."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stedm.device import autocast, best_device
from stedm.diffusion.pipeline import to_network
from stedm.models.autoencoder import FirstStage
from stedm.models.style import StyleExtractor
from stedm.training.augment import dihedral

_AT_ONCE = 64
MOST_BYTES = 2**32
"""Of kept features; a training with more lets the backbone look again in each step."""


@torch.no_grad()
def encode(first_stage: FirstStage, images: np.ndarray, *, symmetry: int = 0) -> Tensor:
    """Latents (n, C, h, w) of images (n, H, W, 3) uint8, turned by one of the eight symmetries; on the CPU."""
    device = best_device()
    first_stage.to(device)
    height, width = images.shape[1] // first_stage.factor, images.shape[2] // first_stage.factor
    z = torch.empty(len(images), first_stage.latent_channels, height, width)
    for start in range(0, len(images), _AT_ONCE):
        x = dihedral(to_network(images[start : start + _AT_ONCE], device), symmetry)
        with autocast(device):
            z[start : start + _AT_ONCE] = first_stage.encode(x.contiguous(memory_format=torch.channels_last))
    first_stage.cpu()
    return z


def frozen_places(extractor: StyleExtractor, images: np.ndarray) -> Tensor | None:
    """What a frozen backbone says of images (n, H, W, 3) uint8 in the eight symmetries: (n, 8, h, w, F), on the CPU.

    None for an encoder that learns, and where it would be more than `MOST_BYTES`.
    """
    read = extractor.frozen_backbone
    if read is None:
        return None
    extractor.to(best_device()).eval()
    first = _in_eight(read, images[:1])
    fits = first.nbytes * len(images) <= MOST_BYTES
    parts = [_in_eight(read, images[start : start + _AT_ONCE]) for start in range(0, len(images), _AT_ONCE) if fits]
    extractor.cpu().train()
    return torch.cat(parts) if fits else None


@torch.no_grad()
def _in_eight(read: Callable[[Tensor], Tensor], images: np.ndarray) -> Tensor:
    device = best_device()
    x = to_network(images, device)
    with autocast(device):
        turned = [read(dihedral(x, code)) for code in range(8)]
    return torch.stack([places.half().cpu() for places in turned], dim=1)
