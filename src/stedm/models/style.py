"""Style: each image of a style set -> K vectors (style encoder); set of images -> one style (aggregation).

K = 1: one vector an image. K = N + 1: one for each layout class, and a last one of the whole image, for unknown pixels.
"""

import math
from collections.abc import Callable
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stedm.errors import UserError
from stedm.files import reason_of
from stedm.models.model_folder import FolderModel
from stedm.models.timm_backbone import timm_backbone

_MOST_INPUT_PX = 4096
CELL_PX = 8
"""Side of the cells whose moments the convolutional encoder looks at, pixels."""


class RegionPooling(nn.Module):
    """Local features of an image -> K vectors: (B, P, F) means and mean squares of P places -> (B, K, dim).

    K = 1: one vector, of all places. K = N + 1: one for each class, of the places where a small classifier finds it,
    and a last one of all places. A region is described by mean and standard deviation of the features there, and by its
    share of the image, so that the aggregation can pass over images that lack it. No mask of the style images is
    needed; in training, what is known of their layouts teaches the classifier.
    """

    def __init__(self, num_features: int, dim: int, regions: int, hidden: int = 64) -> None:
        super().__init__()
        self.classify = (
            nn.Sequential(nn.Linear(2 * num_features, hidden), nn.SiLU(), nn.Linear(hidden, regions - 1))
            if regions > 1
            else None
        )
        self.head = nn.Sequential(
            nn.Linear(2 * num_features + 1, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.LayerNorm(dim)
        )
        self.region = nn.Parameter(0.02 * torch.randn(regions, dim))

    def forward(self, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, K, dim), and the log-probability of each region at each place (B, K, P), 0 for the last."""
        found = self._found(torch.cat([mean, _std(mean, square)], dim=2))
        share = found.logsumexp(2, keepdim=True) - math.log(found.shape[2])  # (B, K, 1), log
        with torch.autocast(mean.device.type, enabled=False):  # a difference of squares wants more than eight bits
            weights = found.softmax(2)  # (B, K, P)
            mean, square = weights @ mean.float(), weights @ square.float()  # (B, K, F) each
        return self.head(torch.cat([mean, _std(mean, square), share], dim=2)) + self.region, found  # (B, K, dim)

    def _found(self, features: Tensor) -> Tensor:
        everywhere = features.new_zeros(len(features), 1, features.shape[1]).float()  # (B, 1, P)
        if self.classify is None:
            return everywhere
        classes = self.classify(features).float().log_softmax(2).clamp_min(-12).transpose(1, 2)  # (B, N, P)
        return torch.cat([classes, everywhere], dim=1)


def _std(mean: Tensor, square: Tensor) -> Tensor:
    return ((square - mean.square()).clamp_min(0) + 1e-4).sqrt()


class ConvStyleEncoder(nn.Module):
    """A small convolutional encoder from scratch: (B, 3, H, W) in [-1, 1] -> vectors and regions, see `RegionPooling`.

    Looks at first and second moments of cells of 8 x 8 pixels at every scale, the colours themselves included: colour,
    texture strength and pattern are style. No normalisation layers, which would remove the colour.
    """

    def __init__(self, dim: int, regions: int, channels: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        inputs = (12, *channels[:-1])  # 2 x 2 pixels folded into channels: nothing runs at full resolution
        self.stages = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip(inputs, channels, strict=True)
        )
        self.pool = RegionPooling(3 + sum(channels), dim, regions)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, dim), and log-probabilities (B, K, h, w) of the regions in cells of 8 x 8 pixels."""
        H, W = images.shape[-2] // CELL_PX, images.shape[-1] // CELL_PX
        images = images[..., : H * CELL_PX, : W * CELL_PX]
        maps = [images]
        h = F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)  # (B, 12, H / 2, W / 2)
        for stage in self.stages:
            h = F.silu(stage(h))  # (B, C, H / 2^k, W / 2^k)
            maps.append(h.float())
        mean = torch.cat([F.adaptive_avg_pool2d(m, (H, W)) for m in maps], dim=1)  # (B, F, H / 8, W / 8)
        square = torch.cat([F.adaptive_avg_pool2d(m.square(), (H, W)) for m in maps], dim=1)
        vectors, found = self.pool(mean.flatten(2).transpose(1, 2), square.flatten(2).transpose(1, 2))
        return vectors, found.unflatten(2, (H, W))


class TimmStyleEncoder(nn.Module):
    """A timm backbone: (B, 3, H, W) in [-1, 1] -> vectors and regions; resized, normalised as its weights expect.

    Its last feature map, or its patch tokens, are the places that `RegionPooling` looks at.
    preprocessing: input_px, mean and std of the weights, as kept in a model folder; the backbone's own if not given.
    model_args: the settings of the network, as kept in a model folder; those of the weights, or the name, if not given.
    trainable: whether the backbone learns; the pooling always does.
    Raises UserError for a name, weights or settings that timm makes no such backbone of.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        dim: int,
        regions: int,
        *,
        weights: str | None = None,
        preprocessing: dict[str, Any] | None = None,
        model_args: dict[str, Any] | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.model_args = timm_backbone(name, weights, model_args=model_args)
        self.backbone.requires_grad_(trainable)
        data = timm.data.resolve_model_data_config(self.backbone)
        own = {"input_px": data["input_size"][-1], "mean": list(data["mean"]), "std": list(data["std"])}
        self.preprocessing: dict[str, Any] = preprocessing or own
        self.trainable = trainable
        # Weights may be of another architecture than the name beside them.
        self.name: str = getattr(self.backbone, "pretrained_cfg", {}).get("architecture") or name
        self.input_px: int = self.preprocessing["input_px"]
        if not 1 <= self.input_px <= _MOST_INPUT_PX:
            raise ValueError(f"input_px {self.input_px}: use 1 to {_MOST_INPUT_PX}")
        self.register_buffer("mean", torch.tensor(self.preprocessing["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocessing["std"]).view(1, 3, 1, 1), persistent=False)
        self.pool = RegionPooling(self.backbone.num_features, dim, regions)  # type: ignore[arg-type]
        if preprocessing is None:  # one from a model folder was tried when it was first made
            self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Raises UserError unless the backbone says something of places in an image."""
        self.backbone.eval()
        try:
            places = self.places(torch.zeros(1, 3, self.input_px, self.input_px))
            if places.ndim != 4 or places.shape[-1] != self.backbone.num_features:
                raise ValueError(f"features {list(places.shape)}")
        except Exception as error:  # backbones that return something else fail in as many ways
            raise UserError(
                f"diffusion.style_encoder: {self.name} gives neither a feature map nor the tokens of a square image"
                f" ({reason_of(error)}); take another, for instance of the resnet, convnext, vit or swin families"
            ) from error
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """A frozen backbone keeps its running statistics too."""
        super().train(mode)
        self.backbone.train(mode and self.trainable)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, dim), and log-probabilities (B, K, h, w) of the regions in the backbone's places."""
        return self.pooled(self.places(images))

    def places(self, images: Tensor) -> Tensor:
        """What the backbone says of images (B, 3, H, W) in [-1, 1]: (B, h, w, F)."""
        x = ((images + 1) / 2 - self.mean) / self.std  # (B, 3, H, W)
        if x.shape[-2:] != (self.input_px, self.input_px):
            x = F.interpolate(x, size=(self.input_px, self.input_px), mode="bilinear", antialias=True)
        return self._places(self.backbone.forward_features(x))  # type: ignore[operator]

    def pooled(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of `forward`, which always learns."""
        flat = places.flatten(1, 2)  # (B, P, F)
        vectors, found = self.pool(flat, flat.float().square())
        return vectors, found.unflatten(2, places.shape[1:3])

    def _places(self, features: Tensor) -> Tensor:
        """Feature map (B, F, h, w), or (B, h, w, F), or tokens (B, T, F) of a square of places -> (B, h, w, F)."""
        if features.ndim == 3:
            tokens = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            return tokens.unflatten(1, (math.isqrt(tokens.shape[1]), -1))
        return features.movedim(1, -1) if features.shape[1] == self.backbone.num_features else features


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
    """Style encoder and aggregation together: style sets -> styles (B, K, dim + 2 C).

    The first `dim` numbers are learned. The others are measured: mean and log standard deviation of the C latent
    channels of the set, region by region, which say exactly what colours the regions have, in styles never seen too.

    latent_channels: C. regions: K. encoder: `conv` or a timm name. weights: local folder or hub id of timm weights,
    used when training starts; a saved StyleExtractor carries its weights itself and never looks there again.
    preprocessing, model_args, trainable: see TimmStyleEncoder.
    """

    not_in_folder = ("weights",)

    def __init__(
        self,
        *,
        dim: int,
        set_size: int,
        latent_channels: int,
        regions: int = 1,
        encoder: str = "conv",
        aggregation: str = "attention",
        weights: str | None = None,
        preprocessing: dict[str, Any] | None = None,
        model_args: dict[str, Any] | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "dim": dim,
            "set_size": set_size,
            "latent_channels": latent_channels,
            "regions": regions,
            "encoder": encoder,
            "aggregation": aggregation,
        }
        if encoder == "conv":
            self.encoder: nn.Module = ConvStyleEncoder(dim, regions)
        else:
            saved = {"preprocessing": preprocessing, "model_args": model_args}
            backbone = TimmStyleEncoder(encoder, dim, regions, weights=weights, trainable=trainable, **saved)
            made = {"preprocessing": backbone.preprocessing, "model_args": backbone.model_args}
            self.config |= {"encoder": backbone.name, "trainable": trainable, **made}
            self.encoder = backbone
        self.aggregation = Aggregation(aggregation, dim, set_size)

    def forward(self, style_images: Tensor, style_latents: Tensor) -> Tensor:
        """style_images (B, N, 3, H, W) in [-1, 1], their latents (B, N, C, h, w) -> (B, K, dim + 2 C)."""
        return self.describe(style_images, style_latents)[0]

    @property
    def frozen_backbone(self) -> Callable[[Tensor], Tensor] | None:
        """`places` of a backbone that does not learn: what it says can be kept. None where the encoder learns."""
        return (
            self.encoder.places if isinstance(self.encoder, TimmStyleEncoder) and not self.encoder.trainable else None
        )

    def describe(
        self, style_images: Tensor | None, style_latents: Tensor, *, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, and the log-probabilities (B, N, K, h', w') of the regions in the style images.

        places: what `frozen_backbone` said of the style images (B, N, h', w', F), which are then not needed.
        """
        B, N = style_latents.shape[:2]
        read, x = (self.encoder, style_images) if places is None else (self.encoder.pooled, places)
        vectors, found = read(x.flatten(0, 1))  # type: ignore[operator, union-attr]  # (B N, K, d), (B N, K, h', w')
        of_region = vectors.unflatten(0, (B, N)).transpose(1, 2).flatten(0, 1)  # (B K, N, d)
        learned = self.aggregation(of_region).unflatten(0, (B, -1))  # (B, K, d)
        found = found.unflatten(0, (B, N))  # (B, N, K, h', w')
        measured = region_moments(style_latents, found)  # (B, K, 2 C)
        return torch.cat([learned.float(), measured], dim=2), found


def region_moments(latents: Tensor, found: Tensor) -> Tensor:
    """Mean and log standard deviation of latents (B, N, C, h, w) where regions are: (B, K, 2 C).

    found: log-probabilities (B, N, K, h', w') of the regions; latents are averaged to their grid first.
    """
    with torch.autocast(latents.device.type, enabled=False):  # colours want more than eight bits
        z, grid = latents.float().flatten(0, 1), (found.shape[-2], found.shape[-1])
        moments = torch.cat([F.adaptive_avg_pool2d(x, grid) for x in (z, z.square())], dim=1)  # (B N, 2 C, h', w')
        moments = moments.unflatten(0, latents.shape[:2]).movedim(2, -1).flatten(1, 3)  # (B, N P, 2 C)
        weights = found.float().movedim(2, 1).flatten(2).softmax(2)  # (B, K, N P)
        mean, square = (weights @ moments).chunk(2, dim=2)  # (B, K, C) each
        return torch.cat([mean, _std(mean, square).log()], dim=2)
