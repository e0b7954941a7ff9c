"""First stage: image <-> latent. A diffusers AutoencoderKL behind a space-to-depth fold and measured statistics."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from stedm.errors import UserError
from stedm.files import reason_of
from stedm.models.layers import groups_for
from stedm.models.model_folder import FolderModel, read_config, refuse_pickles

_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""What diffusers calls them."""


class FirstStage(FolderModel):
    """z = (E(x) - mean) / std, with the fold x (3, H, W) -> (3 s^2, H/s, W/s) before E and after the decoder.

    The fold keeps the network away from full resolution, where a convolutional autoencoder spends most of its time.
    `mean` and `std` are per channel, measured once on real images by `measure` and stored with the weights.

    kl: constructor arguments of the AutoencoderKL (JSON values).
    space_to_depth: fold size s in pixels; 1 for pretrained autoencoders.
    shortcut: add a linear path around encoder and decoder, which starts as mean colour and principal components
    (`start_linear`) and carries the colour from the first step on; the convolutions learn what it leaves (after Chen
    2024, DC-AE).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, kl: dict[str, Any], space_to_depth: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        self.config = {"kl": kl, "space_to_depth": space_to_depth, "shortcut": shortcut}
        self.kl = AutoencoderKL(**kl)
        self.space_to_depth = space_to_depth
        self.latent_channels: int = kl["latent_channels"]
        self.shortcut: LinearShortcut | None = LinearShortcut(self.factor, self.latent_channels) if shortcut else None
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
                "norm_num_groups": math.gcd(*(groups_for(c) for c in channels)),
                "mid_block_add_attention": False,
            },
            space_to_depth=space_to_depth,
            shortcut=True,
        )

    @classmethod
    def from_diffusers(cls, name: str) -> Self:
        """Wrap a pretrained AutoencoderKL from a local folder, or from the hub when `name` is a hub id.

        Weights are safetensors alone: of a folder with pickles (`.bin`) and nothing else, none is opened. Nor are
        weights in parts, whose list could name any file.
        """
        key, folder = "autoencoder.pretrained", Path(name)
        if folder.is_dir():
            refuse_pickles(folder, _WEIGHTS, key=key, fix="AutoencoderKL.save_pretrained(FOLDER) writes such a folder")
            if parts := sorted(folder.glob("*.index.json")):
                raise UserError(f"{key}: {parts[0]}: weights in parts are not read; save them as one {_WEIGHTS}")
            read_config(folder)  # refuses sizes that no network has
        try:
            kl, info = AutoencoderKL.from_pretrained(
                name, local_files_only=folder.is_dir(), use_safetensors=True, output_loading_info=True
            )
            if missing := [*info["missing_keys"], *info["mismatched_keys"]]:  # diffusers would make some up
                raise ValueError(f"no weights of {missing[0]}, which config.json has")
            stage = cls(kl={key: value for key, value in kl.config.items() if not key.startswith("_")})
        except Exception as error:
            fix = "name a local folder with config.json and safetensors"
            raise UserError(f"{key}: cannot load {name!r} ({reason_of(error)}); {fix}") from error
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
        mean = posterior.mean if self.shortcut is None else posterior.mean + self.shortcut.encode(images)
        return mean, posterior.logvar

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Raw (unstandardised) latent (B, C, h, w) -> images (B, 3, H, W), about [-1, 1], not clipped."""
        images = F.pixel_shuffle(self.kl.decode(raw).sample, self.space_to_depth)
        return images if self.shortcut is None else images + self.shortcut.decode(raw)

    @torch.no_grad()
    def start_linear(self, images: Tensor) -> None:
        """Set the shortcut to mean colour and main textures of f x f pixel blocks; images (B, 3, H, W) in [-1, 1]."""
        if self.shortcut is None:
            raise ValueError("this first stage has no shortcut")
        self.shortcut.fit(images)
        self.kl.decoder.conv_out.weight.zero_()
        self.kl.decoder.conv_out.bias.zero_()
        self.kl.quant_conv.weight[: self.latent_channels].mul_(0.1)
        self.kl.quant_conv.bias[: self.latent_channels].zero_()

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


class LinearShortcut(nn.Module):
    """Blocks of f x f pixels <-> C numbers, both ways linear."""

    def __init__(self, factor: int, latent_channels: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Conv2d(3 * factor**2, latent_channels, 1)
        self.expand = nn.Conv2d(latent_channels, 3 * factor**2, 1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / f, W / f)."""
        return self.project(F.pixel_unshuffle(images, self.factor))

    def decode(self, raw: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, h f, w f)."""
        return F.pixel_shuffle(self.expand(raw), self.factor)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """The three axes of a block's mean colour, then principal components of what is left; unit variance each.

        Colour has axes of its own because hue is little of the variance of a textured image and most of its style:
        plain principal components of such images leave it out.
        """
        blocks = F.pixel_unshuffle(images, self.factor).movedim(1, -1).flatten(0, 2)  # (n, 3 f^2)
        centre = blocks.mean(0)
        covariance = torch.cov((blocks - centre).T)  # (3 f^2, 3 f^2)
        colours = torch.eye(3).repeat_interleave(self.factor**2, dim=0) / self.factor  # (3 f^2, 3), orthonormal
        left = torch.eye(len(colours)) - colours @ colours.T  # projection on what has no mean colour
        tints = torch.linalg.eigh(colours.T @ covariance @ colours)
        textures = torch.linalg.eigh(left @ covariance @ left)
        kept = slice(-self.project.out_channels, None)  # eigenvalues ascend: the strongest textures, then the colours
        axes = torch.cat([textures.eigenvectors, colours @ tints.eigenvectors], 1)[:, kept]  # (3 f^2, C)
        values = torch.cat([textures.eigenvalues, tints.eigenvalues])[kept]  # (C,)
        scale = values.clamp_min(1e-6).sqrt()  # (C,)
        self.project.weight.copy_((axes / scale).T[:, :, None, None])
        self.project.bias.copy_(-(centre @ (axes / scale)))  # type: ignore[union-attr]
        self.expand.weight.copy_((axes * scale)[:, :, None, None])
        self.expand.bias.copy_(centre)  # type: ignore[union-attr]
