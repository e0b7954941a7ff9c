"""First stage: image <-> latent. A diffusers AutoencoderKL behind a space-to-depth fold and measured statistics."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from stedm.errors import UserError
from stedm.models.layers import groups_for
from stedm.models.model_folder import FolderModel


class FirstStage(FolderModel):
    """z = (E(x) - mean) / std, with the fold x (3, H, W) -> (3 s^2, H/s, W/s) before E and after the decoder.

    The fold keeps the network away from full resolution, where a convolutional autoencoder spends most of its time.
    `mean` and `std` are per channel, measured once on real images by `measure` and stored with the weights.

    kl: constructor arguments of the AutoencoderKL (JSON values).
    space_to_depth: fold size s in pixels; 1 for pretrained autoencoders.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, kl: dict[str, Any], space_to_depth: int = 1) -> None:
        super().__init__()
        self.config = {"kl": kl, "space_to_depth": space_to_depth}
        self.kl = AutoencoderKL(**kl)
        self.space_to_depth = space_to_depth
        self.latent_channels: int = kl["latent_channels"]
        self.register_buffer("mean", torch.zeros(self.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(self.latent_channels, 1, 1))

    @classmethod
    def new(cls, channels: list[int], *, latent_channels: int, space_to_depth: int) -> Self:
        """An untrained first stage with one residual block per level; every level after the first halves the size."""
        levels = len(channels)
        folded = 3 * space_to_depth**2
        return cls(
            kl={
                "in_channels": folded,
                "out_channels": folded,
                "down_block_types": ["DownEncoderBlock2D"] * levels,
                "up_block_types": ["UpDecoderBlock2D"] * levels,
                "block_out_channels": list(channels),
                "layers_per_block": 1,
                "latent_channels": latent_channels,
                "norm_num_groups": min(groups_for(c) for c in channels),
                "mid_block_add_attention": False,
            },
            space_to_depth=space_to_depth,
        )

    @classmethod
    def from_diffusers(cls, name: str) -> Self:
        """Wrap a pretrained AutoencoderKL from a local folder, or from the hub when `name` is a hub id."""
        try:
            kl = AutoencoderKL.from_pretrained(name, local_files_only=Path(name).is_dir())
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"autoencoder.pretrained: cannot load {name!r} ({reason}); name a local folder") from error
        config = {key: value for key, value in kl.config.items() if not key.startswith("_")}
        stage = cls(kl=config)
        stage.kl.load_state_dict(kl.state_dict())
        return stage

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return self.space_to_depth * 2 ** (len(self.config["kl"]["block_out_channels"]) - 1)

    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> mean and log variance of the raw latent, (B, C, h, w) each."""
        folded = F.pixel_unshuffle(images, self.space_to_depth)  # (B, 3 s^2, H/s, W/s)
        posterior = self.kl.encode(folded).latent_dist
        return posterior.mean, posterior.logvar

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Raw (unstandardised) latent (B, C, h, w) -> images (B, 3, H, W), about [-1, 1], not clipped."""
        return F.pixel_shuffle(self.kl.decode(raw).sample, self.space_to_depth)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> standardised latents (B, C, h, w); H and W multiples of `factor`."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height} x {width} pixels: sides must be multiples of {self.factor}")
        return (self.distribution(images)[0] - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """Standardised latents (B, C, h, w) -> images (B, 3, H, W) in [-1, 1]."""
        return self.reconstruct(z * self.std + self.mean).clamp(-1, 1)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Measure `mean` and `std` per channel over batches of images (B, 3, H, W) in [-1, 1]."""
        raw = torch.cat([self.distribution(images)[0].float().cpu() for images in batches])  # (N, C, h, w)
        self.mean.copy_(raw.mean(dim=(0, 2, 3))[:, None, None])
        self.std.copy_(raw.std(dim=(0, 2, 3)).clamp_min(1e-6)[:, None, None])


