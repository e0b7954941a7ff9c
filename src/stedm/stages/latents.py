"""Images to latents, many at once: what trainings and their watch cache."""

import numpy as np
import torch
from torch import Tensor

from stedm.device import autocast, best_device
from stedm.diffusion.pipeline import to_network
from stedm.models.autoencoder import FirstStage
from stedm.training.augment import dihedral

_AT_ONCE = 64


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
