"""What an image looks like in figures: stain, texture and fixed random features, of the whole image or of a region.

Style is measured by what a pathologist would call stain and texture, not by a network trained on photographs: moments
of optical density, band-pass energies, local orientation. Nothing is downloaded, and no library moves the figures.

Pixels outside a region have no part in its figures: local means are taken over the region alone (normalised
convolution, Knutsson and Westin, 1993), because the contrast at a border between classes is composition, not style.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, relu

MIN_COVER = 0.05
"""A class counts in an image that it covers at least this share of."""
_CHUNK_PIXELS = 2**20
MIN_PX = 32  # the coarsest of four octaves still has 4 x 4 pixels
_PAIRS = ((0, 1), (0, 2), (1, 2))
_LEVELS = 4
_QUANTILES = (0.1, 0.25, 0.5, 0.9)
_LITTLE = 1e-6


def _optical_density(pixels: Tensor) -> Tensor:
    """Pixel values 0 to 255 -> optical density, log(256) to 0 (white)."""
    return math.log(256) - torch.log1p(pixels.float())


def _covariance(x: Tensor, weight: Tensor) -> Tensor:
    """Covariance of three channels over weighted pixels: (n, 3, h, w) and (n, 1, h, w) -> (n, 3, 3)."""
    flat, share = x.flatten(2), weight.flatten(2)
    share = share / share.sum(2, keepdim=True).clamp_min(_LITTLE)
    centred = flat - (flat * share).sum(2, keepdim=True)
    return (centred * share) @ centred.mT


def _correlations(x: Tensor, weight: Tensor) -> Tensor:
    """Correlations of the three pairs of channels, (n, 3); 0 where a channel is constant."""
    covariance = _covariance(x, weight)
    variance = covariance.diagonal(dim1=1, dim2=2)
    pairs = [covariance[:, i, j] / (variance[:, i] * variance[:, j]).sqrt().clamp_min(_LITTLE) for i, j in _PAIRS]
    return torch.stack(pairs, 1)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over pixels: (n, c, h, w) and (n, 1, h, w) -> (n, c)."""
    return (x * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(_LITTLE)


def _stain(pixels: Tensor, weight: Tensor) -> Tensor:
    """Per-channel mean, deviation, skewness, quantiles, and correlations of optical density: (n, 3, H, W) -> (n, 24).

    A channel has 256 values: all but the correlations come from its histogram, exactly.
    """
    n = len(pixels)
    offsets = 256 * torch.arange(3 * n).view(n, 3, 1, 1)
    weights = weight.double().expand(-1, 3, -1, -1)
    counts = torch.bincount((pixels.long() + offsets).flatten(), weights=weights.flatten(), minlength=768 * n)
    counts = counts.view(n, 3, 256).flip(2)  # from dark to light is from high density to low
    share = counts / counts.sum(2, keepdim=True).clamp_min(_LITTLE)
    values = _optical_density(torch.arange(255, -1, -1)).double()
    mean = share @ values  # (n, 3)
    centred = values - mean[..., None]
    std = (share * centred.square()).sum(2).sqrt()
    skewness = (share * centred.pow(3)).sum(2) / (std.pow(3) + 1e-3)
    below = share.cumsum(2)
    quantiles = [values[(below < q - 1e-9).sum(2).clamp_max(255)] for q in _QUANTILES]
    correlations = _correlations(_optical_density(pixels), weight)
    return torch.cat([mean, std, skewness, *quantiles, correlations], 1).float()


def _coherence(grey: Tensor, weight: Tensor) -> list[Tensor]:
    """Mean and spread of the local structure tensor's coherence, 0 (no direction) to 1 (one direction), twice (n,)."""
    dy, dx = torch.gradient(grey, dim=(2, 3))
    local = avg_pool2d(weight, 3, stride=1)
    xx, yy, xy = (avg_pool2d(weight * product, 3, stride=1) for product in (dx * dx, dy * dy, dx * dy))
    coherence = ((xx - yy).square() + 4 * xy.square()).sqrt() / (xx + yy + 1e-4 * local).clamp_min(1e-12)
    inner = weight[:, :, 1:-1, 1:-1]
    mean = _mean(coherence, inner)
    spread = _mean((coherence - mean[..., None, None]).square(), inner).sqrt()
    return [mean[:, 0], spread[:, 0]]


def _texture(pixels: Tensor, weight: Tensor) -> Tensor:
    """Describe four octave bands, 9 figures each: (n, 3, H, W) -> (n, 36)."""
    features = []
    low = _optical_density(pixels)
    for _ in range(_LEVELS):
        covered = avg_pool2d(weight, 2, ceil_mode=True)
        total = avg_pool2d(low * weight, 2, ceil_mode=True)
        size = list(low.shape[2:])
        spread, around = (interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (total, covered))
        around = spread / around.clamp_min(_LITTLE)  # the region's local mean
        band = low - around
        energy = _mean(band.square(), weight)  # (n, 3)
        grey = band.mean(1, keepdim=True).square()
        peakedness = _mean(grey.square(), weight) / (_mean(grey, weight).square() + _LITTLE)
        features += [torch.log(energy + 1e-4), torch.log1p(peakedness), _correlations(band, weight)]
        filled = torch.where(weight > 0, low, around).mean(1, keepdim=True)
        features += [figure[:, None] for figure in _coherence(filled, weight)]
        low, weight = total / covered.clamp_min(_LITTLE), covered
    return torch.cat(features, 1)


def _random_kernels() -> list[Tensor]:
    """Fixed He-scaled kernels; NumPy's generator keeps its stream from version to version."""
    rng = np.random.default_rng(20240322)
    shapes = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
    return [torch.from_numpy(rng.normal(0, math.sqrt(2 / (s[1] * 9)), s).astype(np.float32)) for s in shapes]


def _random_features(pixels: Tensor, _weight: Tensor) -> Tensor:
    """Means and standard deviations of a fixed random network's last maps: (n, 3, H, W) -> (n, 128)."""
    maps = _optical_density(pixels) - 0.5
    for kernel in _random_kernels():
        maps = relu(conv2d(maps, kernel, stride=2, padding=1))
    return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1)


@torch.no_grad()
def _describe(images: np.ndarray, regions: np.ndarray | None, *extractors) -> np.ndarray:  # type: ignore[no-untyped-def]
    height, width = images.shape[1:3]
    if min(height, width) < MIN_PX:
        raise ValueError(f"images of {width} x {height} px are too small: {MIN_PX} px at least")
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    rows = []
    for start in range(0, len(images), chunk):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + chunk])).movedim(-1, 1).contiguous()
        region = np.ones(images.shape[:3], bool)[:chunk] if regions is None else regions[start : start + chunk]
        weight = torch.from_numpy(np.asarray(region[: len(pixels)], np.float32))[:, None]  # (n, 1, H, W)
        rows.append(torch.cat([extract(pixels, weight) for extract in extractors], 1))
    return torch.cat(rows).double().numpy()


def optical_density_statistics(images: np.ndarray, regions: np.ndarray | None = None) -> np.ndarray:
    """Describe the stain of each image: moments, quantiles and channel correlations of optical density.

    Args:
        images: uint8 (n, H, W, 3), 32 px or more.
        regions: bool, or weights from 0 to 1, (n, H, W): the pixels described; all when not given.

    Returns:
        float (n, 24), always finite.
    """
    return _describe(images, regions, _stain)


def texture_statistics(images: np.ndarray, regions: np.ndarray | None = None) -> np.ndarray:
    """Describe the texture of each image: energy, peakedness, channel correlation and orientation in four octaves.

    Args:
        images: uint8 (n, H, W, 3), 32 px or more.
        regions: as in `optical_density_statistics`.

    Returns:
        float (n, 36), always finite.
    """
    return _describe(images, regions, _texture)


def style_features(images: np.ndarray, regions: np.ndarray | None = None) -> np.ndarray:
    """Stain and texture side by side: uint8 (n, H, W, 3), regions (n, H, W) or all pixels -> float (n, 60)."""
    return _describe(images, regions, _stain, _texture)


def kid_features(images: np.ndarray) -> np.ndarray:
    """Stain, texture and fixed random convolutional features: uint8 (n, H, W, 3) -> float (n, 188)."""
    return _describe(images, None, _stain, _texture, _random_features)


def class_regions(label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """Which classes count in which image: label maps (n, H, W) -> bool (n, C), at least `MIN_COVER` of the image."""
    shares = [(label_maps == k).mean((1, 2)) for k in range(num_classes)]
    return np.stack(shares, 1) >= MIN_COVER


def class_features(images: np.ndarray, label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """`style_features` of each class region, so that composition does not masquerade as style.

    Args:
        images: uint8 (n, H, W, 3), 32 px or more.
        label_maps: uint8 (n, H, W); values >= num_classes belong to no region.
        num_classes: C.

    Returns:
        float (n, C, 60); NaN where the class covers less than `MIN_COVER` of the image.
    """
    counts = class_regions(label_maps, num_classes)
    features = np.full((len(images), num_classes, 60), np.nan)
    for k in range(num_classes):
        rows = np.flatnonzero(counts[:, k])
        if len(rows):
            features[rows, k] = style_features(images[rows], label_maps[rows] == k)
    return features
