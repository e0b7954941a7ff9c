"""Bands: how much of each octave a style shows in its three colours, and how far they go together.

A velocity network that is trained briefly and asked a few times draws fine detail too weak and too grey: nuclei without
crisp edges, eosin and haematoxylin that rise and fall together. Octave by octave that is a covariance of three colours,
and a covariance can be measured: in the style set, where the style encoder finds each class, and in the drawn image,
where its layout says so. The drawn image's octaves are moved towards the style's, the rest of it stays as it is.

Octaves are those of a Laplacian pyramid of optical density (Burt and Adelson 1983); that textures are much alike once
their octaves are is Heeger and Bergen's (1995) observation; the map from one covariance to another that changes the
least is the linear Monge-Kantorovich one (Pitie and Kokaram 2007).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

OCTAVES = 4
LEAST = 0.02
"""Share of the pixels that a class must have, in the style set and in the drawn image, to be measured."""
MOST_GAIN = 3.0
"""No colour of an octave becomes stronger or weaker than by this factor."""
_FLOOR = 1e-6
"""Variance of optical density that counts as none: a quarter of a grey level in white."""


def measure_bands(images: Tensor, found: Tensor) -> Tensor:
    """Covariances (K, OCTAVES, 3, 3) of the colours in each octave of a style set; NaN for regions it does not show.

    images: (N, 3, H, W) in [-1, 1]. found: log-probabilities (N, K, h, w) of the regions, as the style encoder says.
    """
    regions = F.interpolate(found.float().exp(), size=images.shape[2:], mode="bilinear")
    octaves, _ = _pyramid(_optical_density(images))
    covariances, share = _covariances(octaves, _shrunk(regions))  # of each image
    weight = share / share.sum(0).clamp_min(_FLOOR)  # (N, K)
    pooled = torch.einsum("nk,nkoij->koij", weight, covariances)
    shown = share.mean(0) >= LEAST
    return torch.where(shown[:, None, None, None], pooled, torch.nan)


def match_bands(images: Tensor, bands: Tensor, regions: Tensor, strength: float) -> Tensor:
    """images (B, 3, H, W) in [-1, 1] with their octaves moved by `strength` (0 to 1) of the way to bands.

    bands: (B, K, OCTAVES, 3, 3), from `measure_bands`. regions: (B, K, H, W), 0 or 1, where they hold. A region that
    either side shows too little of is left as it is, and so is what lies across a border: an edge is layout, not style.
    """
    if strength == 0:
        return images
    octaves, rest = _pyramid(_optical_density(images))
    weights = _shrunk(regions.to(octaves[0]))
    own, share = _covariances(octaves, weights)  # (B, K, OCTAVES, 3, 3), (B, K)
    usable = (share >= LEAST)[..., None, None, None] & bands.isfinite().all((-1, -2), keepdim=True)
    identity = torch.eye(3).to(own)
    target = torch.where(usable, bands.to(own), identity)
    change = strength * (_transport(torch.where(usable, own, identity), target) - identity)  # (B, K, OCTAVES, 3, 3)
    moved = [
        octave + torch.einsum("bkhw,bkij,bjhw->bihw", _inside(weight), change[:, :, o], octave)
        for o, (octave, weight) in enumerate(zip(octaves, weights, strict=True))
    ]
    return _pixels(_collapse(moved, rest))


def _optical_density(images: Tensor) -> Tensor:
    """[-1, 1] -> log(256) (black) to 0 (white)."""
    return math.log(256) - torch.log1p((images.float().clamp(-1, 1) + 1) * 127.5)


def _pixels(density: Tensor) -> Tensor:
    """The inverse; what would be whiter than white or blacker than black is clipped."""
    return (torch.expm1(math.log(256) - density) / 127.5 - 1).clamp(-1, 1)


def _pyramid(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Octaves (B, 3, H / 2^o, W / 2^o), finest first, and what is coarser than all of them."""
    octaves = []
    for _ in range(OCTAVES):
        coarser = F.avg_pool2d(x, 2, ceil_mode=True)
        octaves.append(x - _enlarged(coarser, x))
        x = coarser
    return octaves, x


def _collapse(octaves: list[Tensor], rest: Tensor) -> Tensor:
    for octave in reversed(octaves):
        rest = octave + _enlarged(rest, octave)
    return rest


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def _shrunk(regions: Tensor) -> list[Tensor]:
    """Regions (B, K, H, W) on the grid of each octave."""
    weights = [regions]
    for _ in range(OCTAVES - 1):
        weights.append(F.avg_pool2d(weights[-1], 2, ceil_mode=True))
    return weights


def _inside(weight: Tensor) -> Tensor:
    """Weights (B, K, h, w) that have faded out where another region begins."""
    least = -F.max_pool2d(-weight, 3, stride=1, padding=1)
    return F.avg_pool2d(F.pad(least, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _covariances(octaves: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Covariances (B, K, OCTAVES, 3, 3) of octaves, whose mean is 0, and the regions' shares (B, K)."""
    found = [
        torch.einsum("bkhw,bihw,bjhw->bkij", weight, octave, octave)
        / weight.sum((2, 3)).clamp_min(_FLOOR)[..., None, None]
        for octave, weight in zip(octaves, weights, strict=True)
    ]
    return torch.stack(found, dim=2), weights[0].mean((2, 3))


def _transport(own: Tensor, target: Tensor) -> Tensor:
    """Symmetric maps T (..., 3, 3) with T own T = target, none of whose gains is beyond `MOST_GAIN`."""
    root, inverse = _power(own, 0.5, least=_FLOOR), _power(own, -0.5, least=_FLOOR)
    middle = _power(root @ target.double() @ root, 0.5, least=_FLOOR**2)
    return _power(inverse @ middle @ inverse, 1, least=1 / MOST_GAIN, most=MOST_GAIN).to(own)


def _power(matrix: Tensor, power: float, *, least: float, most: float | None = None) -> Tensor:
    """Power of symmetric positive matrices, whose eigenvalues are kept between `least` and `most`."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return vectors * values.clamp(least, most).pow(power)[..., None, :] @ vectors.mT
