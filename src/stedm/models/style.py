"""Style: each image of a style set -> vector (style encoder); set of vectors -> one style vector (aggregation)."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stedm.errors import UserError
from stedm.models.model_folder import FolderModel


class ConvStyleEncoder(nn.Module):
    """A small convolutional encoder from scratch: (B, 3, H, W) in [-1, 1] -> (B, dim).

    Pools mean and standard deviation over pixels at every scale, the colours themselves included: colour, texture
    strength and pattern are style; where things are is not. No normalisation layers, which would remove the colour.
    """

    def __init__(self, dim: int, channels: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        inputs = (12, *channels[:-1])  # 2 x 2 pixels folded into channels: nothing runs at full resolution
        self.stages = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip(inputs, channels, strict=True)
        )
        self.head = nn.Sequential(
            nn.Linear(2 * (3 + sum(channels)), 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, images: Tensor) -> Tensor:
        moments = list(_moments(images))  # 2 x (B, 3)
        h = F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)  # (B, 12, H / 2, W / 2)
        for stage in self.stages:
            h = F.silu(stage(h))  # (B, C, H / 2^k, W / 2^k)
            moments += _moments(h)
        return self.head(torch.cat(moments, dim=1))  # (B, dim)


def _moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over pixels: (B, C, h, w) -> twice (B, C)."""
    mean = h.mean((2, 3))
    variance = h.square().mean((2, 3)) - mean.square()
    return mean, (variance.clamp_min(0) + 1e-4).sqrt()


class TimmStyleEncoder(nn.Module):
    """Any timm backbone: (B, 3, H, W) in [-1, 1] -> (B, dim); resized and normalised as its weights expect.

    preprocessing: input_px, mean and std of the weights, as kept in a model folder; the backbone's own if not given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, dim: int, *, weights: str | None = None, preprocessing: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.backbone = timm_backbone(name, weights)
        data = timm.data.resolve_model_data_config(self.backbone)
        own = {"input_px": data["input_size"][-1], "mean": list(data["mean"]), "std": list(data["std"])}
        self.preprocessing: dict[str, Any] = preprocessing or own
        # Weights in a folder may be of another architecture than the name given beside them.
        self.name: str = getattr(self.backbone, "pretrained_cfg", {}).get("architecture") or name
        self.input_px: int = self.preprocessing["input_px"]
        self.register_buffer("mean", torch.tensor(self.preprocessing["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocessing["std"]).view(1, 3, 1, 1), persistent=False)
        num_features: int = self.backbone.num_features  # type: ignore[assignment]
        self.head = nn.Sequential(nn.Linear(num_features, dim), nn.LayerNorm(dim))

    def forward(self, images: Tensor) -> Tensor:
        x = ((images + 1) / 2 - self.mean) / self.std  # (B, 3, H, W)
        if x.shape[-1] != self.input_px:
            x = F.interpolate(x, size=(self.input_px, self.input_px), mode="bilinear", antialias=True)
        return self.head(self.backbone(x))  # (B, dim)


def timm_backbone(name: str, weights: str | None, *, key: str = "diffusion.style_encoder") -> nn.Module:
    """A backbone without its classifier: random weights by default; a local folder or a hub id when the user names one.

    Raises UserError naming `key` when timm cannot make it.
    """
    source = name
    if weights is not None:
        source = f"local-dir:{weights}" if Path(weights).is_dir() else f"hf-hub:{weights}"
    try:
        return timm.create_model(source, pretrained=weights is not None, num_classes=0)
    except Exception as error:
        raise UserError(
            f"{key}: timm cannot make {source!r} ({str(error).splitlines()[0]}); name a model of timm.list_models(), "
            "and its weights as a local folder or hub id"
        ) from error


class Aggregation(nn.Module):
    """Set of vectors (B, N, d) -> one vector (B, d). Memory is linear in N; only `linear` fixes N."""

    def __init__(self, kind: str, dim: int, set_size: int) -> None:
        super().__init__()
        self.kind = kind
        self.set_size = set_size
        if kind == "linear":
            self.project = nn.Linear(set_size * dim, dim)
        elif kind == "attention":
            # Pooling by one learned query (Lee 2019, Set Transformer, PMA with k = 1).
            self.query = nn.Parameter(torch.randn(dim) / dim**0.5)
            # The keys have no bias: softmax cancels what is the same for every member.
            self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        elif kind not in ("mean", "max"):
            raise ValueError(f"aggregation {kind!r}: use mean, max, linear or attention")

    def forward(self, vectors: Tensor) -> Tensor:
        if self.kind == "mean":
            return vectors.mean(1)  # (B, d)
        if self.kind == "max":
            return vectors.amax(1)  # (B, d)
        if self.kind == "linear":
            if vectors.shape[1] != self.set_size:
                raise ValueError(f"linear aggregation was trained for {self.set_size} style images a set")
            return self.project(vectors.flatten(1))  # (B, d)
        weights = (self.key(vectors) @ self.query / vectors.shape[-1] ** 0.5).softmax(1)  # (B, N)
        return (weights[..., None] * self.value(vectors)).sum(1)  # (B, d)


class StyleExtractor(FolderModel):
    """Style encoder and aggregation together: style sets (B, N, 3, H, W) in [-1, 1] -> style vectors (B, dim).

    encoder: `conv` or a timm name. weights: local folder or hub id of timm weights, used when training starts;
    a saved StyleExtractor carries its weights itself and never looks there again. preprocessing: see TimmStyleEncoder.
    """

    def __init__(
        self,
        *,
        dim: int,
        set_size: int,
        encoder: str = "conv",
        aggregation: str = "attention",
        weights: str | None = None,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "dim": dim,
            "set_size": set_size,
            "encoder": encoder,
            "aggregation": aggregation,
        }
        if encoder == "conv":
            self.encoder: nn.Module = ConvStyleEncoder(dim)
        else:
            backbone = TimmStyleEncoder(encoder, dim, weights=weights, preprocessing=preprocessing)
            self.config |= {"encoder": backbone.name, "preprocessing": backbone.preprocessing}
            self.encoder = backbone
        self.aggregation = Aggregation(aggregation, dim, set_size)

    def forward(self, style_images: Tensor) -> Tensor:
        B, N = style_images.shape[:2]
        vectors = self.encoder(style_images.flatten(0, 1))  # (B N, d)
        return self.aggregation(vectors.unflatten(0, (B, N)))  # (B, d)
