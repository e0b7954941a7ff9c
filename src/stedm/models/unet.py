"""The velocity network v(z_t, t, layout, style): a U-Net on latents, layout at the input, style in every block.

Style comes as K vectors: one for all (K = 1), or one for each layout class and a last one for unknown pixels
(K = N + 1), each of which modulates the cells of its class.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stedm.models.layers import AdaptiveGroupNorm, ResidualBlock, SelfAttention, blend, time_features
from stedm.models.model_folder import FolderModel


def one_hot_layout(layout: Tensor, given: Tensor, num_classes: int) -> Tensor:
    """Label maps (B, H, W), any integer type, 255 (or any value >= N) = unknown -> (B, N + 1, H, W), 0 or 1.

    given (B,) bool: where False, every pixel is unknown.
    """
    known = torch.where(given[:, None, None], layout.long().clamp(max=num_classes), num_classes)  # (B, H, W)
    return F.one_hot(known, num_classes + 1).permute(0, 3, 1, 2).float()


class LayoutEmbedding(nn.Module):
    """One-hot layout -> feature map on the latent grid, at full information.

    Folded space-to-depth onto the latent grid, then a 1x1 convolution. A sample whose layout is not given gets the
    learned null layout instead.
    """

    def __init__(self, num_classes: int, factor: int, channels: int) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Conv2d((num_classes + 1) * factor**2, channels, 1)
        self.null = nn.Parameter(0.02 * torch.randn(channels))

    def forward(self, onehot: Tensor, given: Tensor) -> Tensor:
        """onehot (B, N + 1, H, W); given (B,) bool -> (B, C, h, w)."""
        folded = F.pixel_unshuffle(onehot.to(self.project.weight.dtype), self.factor)  # (B, (N + 1) f^2, h, w)
        features = self.project(folded)  # (B, C, h, w)
        return torch.where(given[:, None, None, None], features, self.null.to(features.dtype)[None, :, None, None])


class StylePrior(nn.Module):
    """What style and layout alone say of a latent cell: independent Gaussians N(mu, sigma^2), one pair a region.

    The network learns what they leave: it sees z_t standardised, and its output corrects the best guess a Gaussian
    allows (the preconditioning of Karras 2022, EDM, with a mean and a variance that depend on the condition). With
    a = 1 - t and D = a^2 sigma^2 + t^2, for z ~ N(mu, sigma^2), e ~ N(0, 1) and v = e - z:

    E[v | z_t] = -mu + (t - a sigma^2) (z_t - a mu) / D,   Var[v | z_t] = sigma^2 / D.

    Mean and variance are those measured in the style set, as far as a learned gate trusts them (a region may be missing
    there), and learned otherwise. So a class is in its patient's colour in styles that were never seen too.
    """

    def __init__(self, style_dim: int, latent_channels: int) -> None:
        super().__init__()
        self.split = (style_dim, 2 * latent_channels)
        self.project = nn.Linear(style_dim, 2 * latent_channels)
        self.gate = nn.Linear(style_dim, 2 * latent_channels)
        for linear, bias in ((self.project, 0.0), (self.gate, 2.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(self, style: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """style (B, K, d + 2 C), shares (B, K, h, w) -> mu, sigma (B, C, h, w) each, or (B, C, 1, 1); sigma > 1/20.

        A cell at a border is of one class or the other: its Gaussian has the mean and the variance of their mixture.
        """
        with torch.autocast(style.device.type, enabled=False):  # colours want more than eight bits
            vector, measured = style.float().split(self.split, dim=2)
            trust = self.gate(vector).sigmoid()  # (B, K, 2 C)
            mean, log_std = (trust * measured + (1 - trust) * self.project(vector)).chunk(2, dim=2)  # (B, K, C) each
            square = (6 * torch.tanh(log_std / 3)).exp() + mean.square()  # (B, K, C)
            mu, square = blend(torch.cat([mean, square], dim=2), shares.float()).chunk(2, dim=1)
            return mu, (square - mu.square()).clamp_min(math.exp(-6)).sqrt()


class StandardPrior(nn.Module):
    """N(0, 1) whatever the style: the prior of plain flow matching."""

    def forward(self, style: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """mu = 0 and sigma = 1, (1, 1, 1, 1) each."""
        return style.new_zeros(1, 1, 1, 1), style.new_ones(1, 1, 1, 1)


class UNet(FolderModel):
    """v(z_t, t, layout, style).

    latent_channels: channels C of z_t. num_classes: layout classes N. factor: pixels per latent cell.
    channels, multipliers: width per level; every level after the first halves the grid. style_vectors: K, 1 or
    num_classes + 1. injection: `all` puts the style into every residual block by adaptive group norm; `bottleneck` adds
    it once as a bias (Oettl 2024). style_prior: `learned`, or `standard`, which stays at N(0, 1) for every style.
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
        style_vectors: int = 1,
        injection: str = "all",
        style_prior: str = "learned",
    ) -> None:
        super().__init__()
        self.config = {
            "latent_channels": latent_channels,
            "num_classes": num_classes,
            "factor": factor,
            "channels": channels,
            "multipliers": list(multipliers),
            "style_dim": style_dim,
            "style_vectors": style_vectors,
            "injection": injection,
            "style_prior": style_prior,
        }
        if injection not in ("all", "bottleneck"):
            raise ValueError(f"injection {injection!r}: use all or bottleneck")
        if style_prior not in ("learned", "standard"):
            raise ValueError(f"style_prior {style_prior!r}: use learned or standard")
        if style_vectors not in (1, num_classes + 1):
            raise ValueError(f"style_vectors {style_vectors}: use 1 or one a class and one more, {num_classes + 1}")
        widths = [channels * m for m in multipliers]
        cond = max(128, 2 * channels)
        self.levels = len(widths)
        self.layout = LayoutEmbedding(num_classes, factor, channels)
        numbers = style_dim + 2 * latent_channels
        self.null_style = nn.Parameter(0.02 * torch.randn(style_vectors, numbers))
        self.time = nn.Sequential(nn.Linear(channels, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.style = nn.Linear(numbers, cond if injection == "all" else widths[-1])
        self.prior = StylePrior(style_dim, latent_channels) if style_prior == "learned" else StandardPrior()
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
        """z_t (B, C, h, w); t (B,), 0 to 1; layout (B, H, W); style (B, K, d + 2 C); *_given (B,) bool -> v, as z_t."""
        style = torch.where(style_given[:, None, None], style, self.null_style.to(style.dtype))  # (B, K, d + 2 C)
        s = self.style(style)  # (B, K, cond) or (B, K, widest)
        c = self.time(time_features(t, self.config["channels"]))[:, None]  # (B, 1, cond)
        deep = self.config["injection"] == "all"
        c = F.silu(c + s if deep else c)  # (B, K or 1, cond)
        onehot = one_hot_layout(layout, layout_given, self.config["num_classes"])  # (B, N + 1, H, W)
        shares = self._shares(onehot)  # a level: (B, N + 1, h, w)
        mu, sigma = self.prior(style, shares[0])  # (B, C, h, w) each
        time = t[:, None, None, None]
        a, D = 1 - time, ((1 - time) * sigma) ** 2 + time**2
        x = (z_t - a * mu) / D.sqrt()  # (B, C, h, w), unit variance
        h = self.conv_in(torch.cat([x, self.layout(onehot, layout_given).to(x.dtype)], dim=1))  # (B, C0, h, w)
        skips = [h]
        for name, block in self.encoder.items():
            h = block(h, c, shares[_level(name)]) if isinstance(block, ResidualBlock) else block(h)
            skips.append(h)
        first, attention, second = self.middle
        h = attention(first(h, c, shares[-1]))  # (B, C_last, h', w')
        h = second(h if deep else h + blend(s, shares[-1]), c, shares[-1])  # (B, C_last, h', w')
        for name, block in self.decoder.items():
            if isinstance(block, ResidualBlock):
                h = block(torch.cat([h, skips.pop()], dim=1), c, shares[_level(name)])
            else:
                h = block(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        correction = self.conv_out(F.silu(self.norm_out(h, c, shares[0]))).float()  # (B, C, h, w)
        return -mu + ((time - a * sigma**2) * x + sigma * correction) / D.sqrt()  # (B, C, h, w)

    def _shares(self, onehot: Tensor) -> list[Tensor]:
        """Share of each class in the cells of every level's grid."""
        shares = [F.avg_pool2d(onehot, self.config["factor"])]
        for _ in range(self.levels - 1):
            shares.append(F.avg_pool2d(shares[-1], 2))
        return shares


def _level(name: str) -> int:
    """`level2_block` -> 2."""
    return int(name.removeprefix("level").partition("_")[0])
