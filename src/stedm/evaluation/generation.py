"""How generated images compare with real ones: style, colour, variety, likeness of the sets, obedience to the layout.

Styles are compared class region by class region (see `features.class_features`): arrays of features are (n, C, d), NaN
where an image lacks the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stedm.evaluation.features import class_regions
from stedm.evaluation.segmentation import confusion, mean_over_classes, patient_scores

_MOST = 4.0


@dataclass(frozen=True)
class Scale:
    """Standardisation measured once on reference images, so that distances can be compared with each other.

    Figures beyond 4 standard deviations count as 4: one exotic feature must not decide over all others.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> "Scale":
        """Measure mean and deviation over the images of (n, ..., d), NaN left out; constant features get scale 1."""
        known = np.isfinite(features)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, features, 0).sum(axis=0) / count
        std = np.sqrt(np.where(known, np.square(features - mean), 0).sum(axis=0) / count)
        return cls(mean, np.where(std > 1e-6, std, 1.0))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Standardise (n, ..., d), -4 to 4."""
        return np.clip((features - self.mean) / self.std, -_MOST, _MOST)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, m), exactly 0 between equal rows."""
    pairs = torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode="donot_use_mm_for_euclid_dist")
    return pairs.numpy()


def _within(a: np.ndarray) -> float:
    """Mean distance between different rows of (n, d), n >= 2."""
    return float(_distances(a, a).sum() / (len(a) * (len(a) - 1)))


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Estimate the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| without bias.

    Zero on average for samples of one distribution whatever their sizes, and so sometimes a little below, which the
    plain plug-in estimate is not: style sets are small, and its bias would hide whether a style was met. Székely and
    Rizzo, 2013.

    Args:
        a: (n, d), n >= 2.
        b: (m, d), m >= 2.

    Raises:
        ValueError: if a set has fewer than two rows.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"sets of {n} and {m}: two images at least are needed on both sides")
    return float(2 * _distances(a, b).mean() - _within(a) - _within(b))


def _of_class(features: np.ndarray, k: int) -> np.ndarray:
    """Features (n', d) of the images that have class k."""
    rows: np.ndarray = features[np.isfinite(features[:, k, 0]), k]
    return rows


def style_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the energy distance of two sets' styles in each class.

    Args:
        a: (n, C, d), standardised class features.
        b: (m, C, d), standardised with the same scale.

    Returns:
        float (C,); NaN for classes that fewer than two images show on either side.
    """
    pairs = [(_of_class(a, k), _of_class(b, k)) for k in range(a.shape[1])]
    return np.array([energy_distance(x, y) if min(len(x), len(y)) >= 2 else np.nan for x, y in pairs])


def style_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean of `style_distances` over the classes that both sets show; NaN where there is none."""
    return float(mean_over_classes(style_distances(a, b)))


def matched_and_shuffled(
    drawn: Mapping[str, np.ndarray], elsewhere: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Compare a patient's real images with images drawn in its style, and in another's under the same layouts.

    A style condition that is ignored makes both figures equal; one that works makes the first much smaller.

    Args:
        drawn: style patient -> standardised class features (n, C, d) of the images drawn in that style.
        elsewhere: the same of the images drawn in the style of another patient; (0, C, d) where there is none.
        real: the same (m, C, d) of real images.

    Returns:
        Style distances matched (P, C) and shuffled (P, C), in the sorted order of `drawn`; NaN where a class cannot be
        compared.
    """
    names = sorted(drawn)
    matched, shuffled = (
        np.array([style_distances(images[name], real[name]) for name in names]) for images in (drawn, elsewhere)
    )
    return matched, shuffled


def spread(features: np.ndarray) -> float:
    """Return the mean distance between different images' (n, C, d) features, mean over classes; NaN without a pair."""
    of_classes = [_of_class(features, k) for k in range(features.shape[1])]
    return float(mean_over_classes(np.array([_within(x) if len(x) >= 2 else np.nan for x in of_classes])))


def region_colours(images: np.ndarray, label_maps: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean and standard deviation of pixel values per class region and channel, pooled over the images of a set.

    Args:
        images: uint8 (n, H, W, 3).
        label_maps: uint8 (n, H, W).
        num_classes: C.

    Returns:
        float (2, C, 3), 0 to 1: means, then deviations; NaN for classes that count in no image.
    """
    colours = np.full((2, num_classes, 3), np.nan)
    counts = class_regions(label_maps, num_classes)
    for k in range(num_classes):
        pixels = images[counts[:, k]][label_maps[counts[:, k]] == k] / 255
        if len(pixels):
            colours[:, k] = pixels.mean(0), pixels.std(0)
    return colours


def colour_errors(difference: np.ndarray) -> np.ndarray:
    """Return (2,), the size of the difference (2, C, 3) of two `region_colours`: a mean over channels and classes."""
    return mean_over_classes(np.abs(difference).mean(2))


def colour_drift(differences: np.ndarray) -> np.ndarray:
    """Return (2,), the size of what the differences (P, 2, C, 3) of P patients' `region_colours` have in common.

    Patients that are too dark and patients that are too bright cancel: what is left is the generator's own colour.
    """
    known = np.isfinite(differences)
    total = np.where(known, differences, 0).sum(axis=0)
    return colour_errors(np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan))


def kid(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Return the kernel inception distance's estimator on any features: unbiased squared MMD, kernel (x y / d + 1)^3.

    Unbiased, so it may be slightly negative for samples of one distribution. Bińkowski et al., 2018.

    Args:
        features_a: (n, d), n >= 2: as they are, or on a scale that neither set had a part in.
        features_b: (m, d), m >= 2, alike.
    """
    n, m = len(features_a), len(features_b)
    if min(n, m) < 2:
        raise ValueError(f"sets of {n} and {m}: two images at least are needed on both sides")
    own_a, own_b = _kernel(features_a, features_a), _kernel(features_b, features_b)
    within = (own_a.sum() - np.trace(own_a)) / (n * (n - 1)) + (own_b.sum() - np.trace(own_b)) / (m * (m - 1))
    return float(within - 2 * _kernel(features_a, features_b).mean())


def kid_over_patients(features_a: Sequence[np.ndarray], features_b: Sequence[np.ndarray]) -> float:
    """Return `kid` of images that are drawn patient by patient, each patient counting alike: unbiased over patients.

    Images of one patient are no independent samples: with the same patients on both sides, pairs within a patient are
    more frequent between the sides than on one, and `kid` falls below 0. Only pairs of different patients are compared.

    Args:
        features_a: (n, d) of each patient, n >= 1, two patients at least; on no scale of their own, as in `kid`.
        features_b: the same patients in the same order.
    """
    if len(features_a) != len(features_b) or len(features_a) < 2:
        raise ValueError(f"{len(features_a)} and {len(features_b)} patients: two at least, the same, on both sides")
    apart = ~np.eye(len(features_a), dtype=bool)

    def between(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
        return float(np.array([[_kernel(x, y).mean() for y in b] for x in a])[apart].mean())

    return between(features_a, features_a) + between(features_b, features_b) - 2 * between(features_a, features_b)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def layout_agreement(
    patients: Sequence[str], readings: np.ndarray, layouts: np.ndarray, *, num_classes: int
) -> np.ndarray:
    """Return each patient's mean IoU (0 to 1) between layouts and a segmenter's reading, pooled over its images.

    Args:
        patients: style patient of each image, length n.
        readings: the segmenter's label maps (n, H, W).
        layouts: label maps (n, H, W), 255 = not counted.
        num_classes: C.

    Returns:
        float (P,), patients sorted; NaN for a patient without a known pixel.
    """
    confusions = np.stack([confusion(r, y, num_classes) for r, y in zip(readings, layouts, strict=True)])
    classes = [str(k) for k in range(num_classes)]
    scores: np.ndarray = patient_scores(patients, confusions, classes=classes)["iou"].to_numpy()
    return scores
