"""The velocity network v(z_t, t, layout, style): a U-Net on latents, layout at the input, style in every block."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stedm.models.layers import AdaptiveGroupNorm, ResidualBlock, SelfAttention, time_features
from stedm.models.model_folder import FolderModel


class LayoutEmbedding(nn.Module):
    """Label map -> feature map on the latent grid, at full information.

    One-hot over N classes + unknown, folded space-to-depth onto the latent grid, then a 1x1 convolution. A sample whose
    layout is not given gets the learned null layout instead.
    """

    def __init__(self, num_classes: int, factor: int, channels: int) -> None:
        super().__init__()
        self.num_classes, self.factor = num_classes, factor
        self.project = nn.Conv2d((num_classes + 1) * factor**2, channels, 1)
        self.null = nn.Parameter(0.02 * torch.randn(channels))

    def forward(self, layout: Tensor, given: Tensor) -> Tensor:
        """layout (B, H, W), any integer type, 255 (or any value >= N) = unknown; given (B,) bool -> (B, C, h, w)."""
        known = layout.long().clamp(max=self.num_classes)  # (B, H, W)
        onehot = F.one_hot(known, self.num_classes + 1).permute(0, 3, 1, 2).to(self.project.weight.dtype)
        folded = F.pixel_unshuffle(onehot, self.factor)  # (B, (N + 1) f^2, h, w)
        features = self.project(folded)  # (B, C, h, w)
        return torch.where(given[:, None, None, None], features, self.null.to(features.dtype)[None, :, None, None])


class UNet(FolderModel):
    """v(z_t, t, layout, style).

    latent_channels: channels C of z_t. num_classes: layout classes N. factor: pixels per latent cell.
    channels, multipliers: width per level; every level after the first halves the grid. injection: `all` puts the style
    into every residual block by adaptive group norm; `bottleneck` adds it once as a bias (Oettl 2024).
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        num_classes: int,
        factor: int,
        channels: int,
        multipliers: list[int],
        style_dim: int,
        injection: str = "all",
    ) -> None:
        super().__init__()
        self.config = {
            "latent_channels": latent_channels,
            "num_classes": num_classes,
            "factor": factor,
            "channels": channels,
            "multipliers": list(multipliers),
            "style_dim": style_dim,
            "injection": injection,
        }
        if injection not in ("all", "bottleneck"):
            raise ValueError(f"injection {injection!r}: use all or bottleneck")
        widths = [channels * m for m in multipliers]
        cond = 4 * channels
        self.levels = len(widths)
        self.layout = LayoutEmbedding(num_classes, factor, channels)
        self.null_style = nn.Parameter(0.02 * torch.randn(style_dim))
        self.time = nn.Sequential(nn.Linear(channels, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.style = nn.Linear(style_dim, cond if injection == "all" else widths[-1])
        self.conv_in = nn.Conv2d(latent_channels + channels, widths[0], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        skips = self._add_encoder(widths, cond)
        width = widths[-1]
        self.middle = nn.ModuleList(
            [ResidualBlock(width, width, cond), SelfAttention(width), ResidualBlock(width, width, cond)]
        )
        self._add_decoder(widths, skips, cond)
        self.norm_out = AdaptiveGroupNorm(widths[0], cond)
        self.conv_out = nn.Conv2d(widths[0], latent_channels, 3, padding=1)
        # Almost zero, not zero: behind zeros the residual branches would get no gradient before the third step.
        nn.init.normal_(self.conv_out.weight, std=1e-3)

    def _add_encoder(self, widths: list[int], cond: int) -> list[int]:
        """One block a level, and a strided convolution before every level but the first; widths of the skips."""
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            if level > 0:
                self.encoder[f"level{level}_down"] = nn.Conv2d(width, width, 3, stride=2, padding=1)
                skips.append(width)
            self.encoder[f"level{level}_block"] = ResidualBlock(width, out, cond)
            skips.append(width := out)
        return skips

    def _add_decoder(self, widths: list[int], skips: list[int], cond: int) -> None:
        """Two blocks a level, each with the skip of its mirror image; a convolution after every enlargement."""
        width, skips = widths[-1], list(skips)
        for level, out in reversed(list(enumerate(widths))):
            for k in range(2):
                self.decoder[f"level{level}_block{k}"] = ResidualBlock(width + skips.pop(), out, cond)
                width = out
            if level > 0:
                self.decoder[f"level{level}_up"] = nn.Conv2d(width, width, 3, padding=1)

    @property
    def grid_multiple(self) -> int:
        """Image sides must be multiples of this many pixels."""
        factor: int = self.config["factor"]
        return factor * 2 ** (self.levels - 1)

    def forward(
        self, z_t: Tensor, t: Tensor, *, layout: Tensor, layout_given: Tensor, style: Tensor, style_given: Tensor
    ) -> Tensor:
        """z_t (B, C, h, w); t (B,) in [0, 1]; layout (B, H, W); style (B, d); *_given (B,) bool -> v (B, C, h, w)."""
        style = torch.where(style_given[:, None], style, self.null_style.to(style.dtype))  # (B, d)
        s = self.style(style)  # (B, cond) or (B, widest)
        c = self.time(time_features(t, self.config["channels"]))  # (B, cond)
        deep = self.config["injection"] == "all"
        c = F.silu(c + s if deep else c)  # (B, cond)
        h = self.conv_in(torch.cat([z_t, self.layout(layout, layout_given).to(z_t.dtype)], dim=1))  # (B, C0, h, w)
        skips = [h]
        for block in self.encoder.values():
            h = block(h, c) if isinstance(block, ResidualBlock) else block(h)
            skips.append(h)
        first, attention, second = self.middle
        h = attention(first(h, c))  # (B, C_last, h', w')
        h = second(h if deep else h + s[:, :, None, None], c)  # (B, C_last, h', w')
        for block in self.decoder.values():
            if isinstance(block, ResidualBlock):
                h = block(torch.cat([h, skips.pop()], dim=1), c)
            else:
                h = block(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h, c)))  # (B, C, h, w)
