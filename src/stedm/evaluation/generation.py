"""How generated images compare with real ones: style, likeness of the sets, obedience to the layout.

Style is measured by what a pathologist would call stain and texture, not by a network trained on photographs: moments
of optical density, band-pass energies, local orientation. Nothing is downloaded, and no library moves the figures.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, relu

from stedm.evaluation.segmentation import iou, mean_over_classes

_CHUNK_PIXELS = 2**20
_MIN_PX = 32  # the coarsest of four octaves still has 4 x 4 pixels
_PAIRS = ((0, 1), (0, 2), (1, 2))
_LEVELS = 4


def _optical_density(images: np.ndarray) -> Tensor:
    """uint8 (n, H, W, 3) -> optical density float (n, 3, H, W), 0 (white) to log(256)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).float()
    return math.log(256) - torch.log1p(pixels)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlate (n, pixels) row by row; 0 where a row is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).mean(1) / (a.square().mean(1) * b.square().mean(1)).sqrt().clamp_min(1e-6)


def _channel_correlations(channels: Tensor) -> list[Tensor]:
    flat = channels.flatten(2)
    return [_correlation(flat[:, i], flat[:, j]) for i, j in _PAIRS]


def _stain(density: Tensor) -> Tensor:
    """Per-channel mean, standard deviation, skewness, quantiles, and channel correlations: (n, 3, H, W) -> (n, 24)."""
    flat = density.flatten(2)  # (n, 3, H W)
    centred = flat - flat.mean(2, keepdim=True)
    std = centred.square().mean(2).sqrt()
    skewness = centred.pow(3).mean(2) / (std.pow(3) + 1e-3)
    quantiles = torch.quantile(flat, torch.tensor([0.1, 0.25, 0.5, 0.9]), dim=2)  # (4, n, 3)
    return torch.cat([flat.mean(2), std, skewness, *quantiles, torch.stack(_channel_correlations(density), 1)], 1)


def _coherence(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the local structure tensor's coherence, 0 (no direction) to 1 (one direction)."""
    dy, dx = torch.gradient(grey, dim=(2, 3))
    xx, yy, xy = (avg_pool2d(product, 3, stride=1) for product in (dx * dx, dy * dy, dx * dy))
    coherence = ((xx - yy).square() + 4 * xy.square()).sqrt() / (xx + yy + 1e-4)
    return coherence.mean((1, 2, 3)), coherence.std((1, 2, 3))


def _texture(density: Tensor) -> Tensor:
    """Describe four octave bands, 9 figures each: (n, 3, H, W) -> (n, 36)."""
    features = []
    low = density
    for _ in range(_LEVELS):
        lower = avg_pool2d(low, 2, ceil_mode=True)
        band = low - interpolate(lower, size=low.shape[2:], mode="bilinear", align_corners=False)
        grey = band.mean(1)
        energy = band.square().mean((2, 3))  # (n, 3)
        peakedness = grey.pow(4).mean((1, 2)) / (grey.square().mean((1, 2)).square() + 1e-6)
        features += [*torch.log(energy + 1e-4).unbind(1), torch.log1p(peakedness)]
        features += [*_channel_correlations(band), *_coherence(low.mean(1, keepdim=True))]
        low = lower
    return torch.stack(features, 1)


def _random_kernels() -> list[Tensor]:
    """Fixed He-scaled kernels; NumPy's generator keeps its stream from version to version."""
    rng = np.random.default_rng(20240322)
    shapes = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
    return [torch.from_numpy(rng.normal(0, math.sqrt(2 / (s[1] * 9)), s).astype(np.float32)) for s in shapes]


def _random_features(density: Tensor) -> Tensor:
    """Means and standard deviations of a fixed random network's last maps: (n, 3, H, W) -> (n, 128)."""
    maps = density - 0.5
    for kernel in _random_kernels():
        maps = relu(conv2d(maps, kernel, stride=2, padding=1))
    return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1)


@torch.no_grad()
def _describe(images: np.ndarray, *extractors: Callable[[Tensor], Tensor]) -> np.ndarray:
    height, width = images.shape[1:3]
    if min(height, width) < _MIN_PX:
        raise ValueError(f"images of {width} x {height} px are too small: {_MIN_PX} px at least")
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    rows = []
    for start in range(0, len(images), chunk):
        density = _optical_density(images[start : start + chunk])
        rows.append(torch.cat([extract(density) for extract in extractors], 1))
    return torch.cat(rows).double().numpy()


def optical_density_statistics(images: np.ndarray) -> np.ndarray:
    """Describe the stain of each image: moments, quantiles and channel correlations of optical density.

    Args:
        images: uint8 (n, H, W, 3), 32 px or more.

    Returns:
        float (n, 24), always finite.
    """
    return _describe(images, _stain)


def texture_statistics(images: np.ndarray) -> np.ndarray:
    """Describe the texture of each image: energy, peakedness, channel correlation and orientation in four octaves.

    Args:
        images: uint8 (n, H, W, 3), 32 px or more.

    Returns:
        float (n, 36), always finite.
    """
    return _describe(images, _texture)


def style_features(images: np.ndarray) -> np.ndarray:
    """Stain and texture side by side: uint8 (n, H, W, 3) -> float (n, 60)."""
    return _describe(images, _stain, _texture)


def kid_features(images: np.ndarray) -> np.ndarray:
    """Stain, texture and fixed random convolutional features: uint8 (n, H, W, 3) -> float (n, 188)."""
    return _describe(images, _stain, _texture, _random_features)


@dataclass(frozen=True)
class Scale:
    """Standardisation measured once on reference images, so that distances can be compared with each other."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> "Scale":
        """Measure mean and standard deviation of each feature over (n, d); constant features get scale 1."""
        std = features.std(axis=0)
        return cls(features.mean(axis=0), np.where(std > 1e-6, std, 1.0))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Standardise (n, d)."""
        return (features - self.mean) / self.std


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(torch.cdist(torch.from_numpy(a), torch.from_numpy(b)).mean())


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Estimate the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| without bias, floored at 0.

    Zero for samples of one distribution whatever their sizes, which the plain plug-in estimate is not: style sets are
    small, and its bias would hide whether a style was met. Székely and Rizzo, 2013.

    Args:
        a: (n, d), n >= 2.
        b: (m, d), m >= 2.

    Raises:
        ValueError: if a set has fewer than two rows.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"sets of {n} and {m}: two images at least are needed on both sides")
    within = _mean_distance(a, a) * n / (n - 1) + _mean_distance(b, b) * m / (m - 1)
    return max(0.0, 2 * _mean_distance(a, b) - within)


def style_distance(a_images: np.ndarray, b_images: np.ndarray, *, scale: Scale) -> float:
    """Return the energy distance of two image sets' standardised style features: >= 0, 0 for identical sets.

    Args:
        a_images: uint8 (n, H, W, 3), n >= 2.
        b_images: uint8 (m, H, W, 3), m >= 2.
        scale: fitted on `style_features` of the real images.
    """
    return energy_distance(scale(style_features(a_images)), scale(style_features(b_images)))


def matched_and_shuffled(
    generated_by_patient: Mapping[str, np.ndarray],
    real_by_patient: Mapping[str, np.ndarray],
    *,
    rng: np.random.Generator,
    max_others: int = 16,
) -> tuple[float, float]:
    """Compare images drawn in a patient's style with that patient's real images, and with other patients'.

    A style condition that is ignored makes both figures equal; one that works makes the first much smaller.

    Args:
        generated_by_patient: style patient -> uint8 (n, H, W, 3).
        real_by_patient: patient -> uint8 (m, H, W, 3). Patients with fewer than two images on a side are left out.
        rng: draws the other patients.
        max_others: other patients each patient is compared with, at most.

    Returns:
        Mean style distance (matched, shuffled) over patients.

    Raises:
        ValueError: if fewer than two patients remain.
    """
    names = sorted(
        name
        for name in generated_by_patient.keys() & real_by_patient.keys()
        if min(len(generated_by_patient[name]), len(real_by_patient[name])) >= 2
    )
    if len(names) < 2:
        raise ValueError("styles can be compared with two patients at least, each with two images on both sides")
    real = {name: style_features(real_by_patient[name]) for name in names}
    scale = Scale.fit(np.concatenate(list(real.values())))
    matched, shuffled = [], []
    for name in names:
        drawn = scale(style_features(generated_by_patient[name]))
        others = rng.permutation([other for other in names if other != name])[:max_others]
        matched.append(energy_distance(drawn, scale(real[name])))
        shuffled.append(np.mean([energy_distance(drawn, scale(real[str(other)])) for other in others]))
    return float(np.mean(matched)), float(np.mean(shuffled))


def kid(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Return the kernel inception distance's estimator on any features: unbiased squared MMD, kernel (x y / d + 1)^3.

    Unbiased, so it may be slightly negative for samples of one distribution. Bińkowski et al., 2018.

    Args:
        features_a: (n, d), n >= 2, standardised.
        features_b: (m, d), m >= 2, standardised with the same scale.
    """
    n, m = len(features_a), len(features_b)
    if min(n, m) < 2:
        raise ValueError(f"sets of {n} and {m}: two images at least are needed on both sides")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    own_a, own_b = kernel(features_a, features_a), kernel(features_b, features_b)
    within = (own_a.sum() - np.trace(own_a)) / (n * (n - 1)) + (own_b.sum() - np.trace(own_b)) / (m * (m - 1))
    return float(within - 2 * kernel(features_a, features_b).mean())


def kid_of_images(generated: np.ndarray, real: np.ndarray) -> float:
    """Return `kid` of two image sets, on `kid_features` standardised by the real set."""
    real_features = kid_features(real)
    scale = Scale.fit(real_features)
    return kid(scale(kid_features(generated)), scale(real_features))


def layout_agreement(confusions: np.ndarray) -> float:
    """Return the mean over images of the mean IoU (0 to 1) between layouts and a segmenter's reading of the images.

    Args:
        confusions: (n, C, C), rows the layout, columns the prediction; images without a known pixel are left out.

    Raises:
        ValueError: if no image has a known pixel.
    """
    per_image = mean_over_classes(iou(np.asarray(confusions)))
    if not np.isfinite(per_image).any():
        raise ValueError("no layout has a known pixel")
    return float(np.nanmean(per_image))
