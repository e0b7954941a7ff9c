"""Images to latents, and to features of a frozen backbone: what trainings, their watch and drawing keep."""

import hashlib
from collections import OrderedDict
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
KEPT_BYTES = 2**30
"""Of features that are kept while images are drawn, by each process."""
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


class KeptPlaces:
    """What a frozen backbone says of style images (N, H, W, 3) uint8: (N, h, w, F), asked about each image once.

    Each is asked about alone, so that it makes no difference to any bit which images come before it, or with it, as
    they do on one rank and on several, and after an interruption. Those last used are kept, KEPT_BYTES of them.
    """

    def __init__(self, read: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._read, self._device = read, device
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    @classmethod
    def of(cls, extractor: StyleExtractor, device: torch.device) -> "KeptPlaces | None":
        """Of the extractor's backbone; None where its encoder is none that is frozen."""
        read = extractor.frozen_backbone
        return None if read is None else cls(read, device)

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """See the class; on its device."""
        return torch.stack([self._of(image).to(self._device) for image in images])

    def _of(self, image: np.ndarray) -> Tensor:
        key = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()
        if key not in self._kept:
            with autocast(self._device):
                self._kept[key] = self._read(to_network(image[None], self._device))[0].cpu()
            self._bytes += self._kept[key].nbytes
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]


@torch.no_grad()
def _in_eight(read: Callable[[Tensor], Tensor], images: np.ndarray) -> Tensor:
    device = best_device()
    x = to_network(images, device)
    with autocast(device):
        turned = [read(dihedral(x, code)) for code in range(8)]
    return torch.stack([places.half().cpu() for places in turned], dim=1)
