"""Stain transfer: images of one patient in the stain statistics of another, after Reinhard and after Macenko.

Both are affine in optical density, and so each is a `StainChange`. Statistics belong to patients, not to images: a
patch of stroma must not be recoloured as if it were the patient's average.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stedm.diffusion.pipeline import to_images, to_network
from stedm.training.augment import StainChange

# Reinhard's axes l, alpha, beta (2001, eq. 6), rows, here on log R, G, B instead of log cone responses.
_AXES = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
_TISSUE_OD = 0.15
"""Mean optical density above which a pixel is tissue (Macenko 2009)."""
_FEWEST_PIXELS = 200
"""Tissue pixels a patient needs for stain vectors."""
_LEAST_ANGLE = 0.1
"""Radians between a patient's two stain vectors; below, there is only one stain."""
_MOST_GAIN = 4.0
"""Contrast and amounts change at most by this factor, and at least by its inverse: noise is not to become tissue."""
_CONTRASTS = (0.2, 3.0)
"""Least and most that an exchange of stain vectors may do to a contrast, whatever its colour."""
_AT_ONCE = 256
"""Images whose stain is changed at once."""
_MOST_PIXELS = 2**23
"""Of a patient that are measured: 128 images of 256 px, which take 800 MiB."""
UNCHANGED = 0.2
"""Share of annotated images that keep their stain; of the others half are transferred by either method."""


@dataclass(frozen=True)
class StainStatistics:
    """What is measured of a patient's images, in optical density.

    mean, std (3,): along Reinhard's axes, over all pixels. stains (2, 3): Macenko's unit stain vectors, the one with
    more red density (haematoxylin) first; amounts (2,): the 99th percentile of each over tissue. Both are None where
    there is too little tissue or one stain.
    """

    mean: np.ndarray
    std: np.ndarray
    stains: np.ndarray | None
    amounts: np.ndarray | None

    @classmethod
    def measure(cls, images: np.ndarray) -> "StainStatistics":
        """Measure a patient's images (n, H, W, 3) uint8; of very many, as many as fit, evenly spaced."""
        most = max(1, _MOST_PIXELS // max(1, images[0, ..., 0].size))
        images = images[np.linspace(0, len(images) - 1, min(len(images), most)).astype(int)]
        od = -np.log(np.maximum(images.reshape(-1, 3) / 255, 1 / 255))  # (pixels, 3)
        along = od @ _AXES.T
        tissue = od[od.mean(1) > _TISSUE_OD]
        stains = stain_vectors(tissue) if len(tissue) >= _FEWEST_PIXELS else None
        amounts = None if stains is None else np.percentile(tissue @ np.linalg.pinv(stains), 99, axis=0)
        if amounts is None or (amounts <= 0).any():
            stains = amounts = None
        return cls(along.mean(0), along.std(0), stains, amounts)


def stain_vectors(od: np.ndarray) -> np.ndarray | None:
    """Macenko's two stain vectors (2, 3) of tissue pixels' optical densities (n, 3); None where there is one stain.

    The densities lie near the plane of their first two singular vectors; the stains are the extreme directions in it,
    the 1st and the 99th percentile of the angle.
    """
    _, _, axes = np.linalg.svd(od.T @ od)
    plane = axes[:2] * np.sign(axes[:2].sum(1, keepdims=True) + 1e-12)
    angles = np.arctan2(od @ plane[1], od @ plane[0])
    low, high = np.percentile(angles, [1, 99])
    if high - low < _LEAST_ANGLE:
        return None
    stains = np.stack([np.cos([low, high]), np.sin([low, high])], 1) @ plane
    return stains[np.argsort(-stains[:, 0])]


def reinhard(source: StainStatistics, target: StainStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and offset (3,) that give source's densities the mean and deviation of target's (Reinhard 2001)."""
    matrix = _AXES.T @ np.diag(_gain(source.std, target.std)) @ _AXES
    return matrix, (target.mean @ _AXES) - (source.mean @ _AXES) @ matrix


def macenko(source: StainStatistics, target: StainStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and offset (3,) that exchange stain vectors and amounts (Macenko 2009), or else Reinhard's.

    What lies outside the plane of the stains is kept, along its normal. Reinhard's transfer takes over where a patient
    has no stains, and for a pair whose contrasts would vanish or become noise: two vectors that lie close together,
    as of a few images of one colour, tell the stains hardly apart, and other ones in their place make them garish.
    """
    if source.stains is None or target.stains is None or source.amounts is None or target.amounts is None:
        return reinhard(source, target)
    gain = np.append(_gain(source.amounts, target.amounts), 1.0)
    matrix = np.linalg.inv(_with_normal(source.stains)) @ np.diag(gain) @ _with_normal(target.stains)
    contrasts = np.linalg.svd(matrix, compute_uv=False)
    if contrasts.min() < _CONTRASTS[0] or contrasts.max() > _CONTRASTS[1]:
        return reinhard(source, target)
    return matrix, np.zeros(3)


def _gain(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.clip((target + 1e-6) / (source + 1e-6), 1 / _MOST_GAIN, _MOST_GAIN)


def _with_normal(stains: np.ndarray) -> np.ndarray:
    normal = np.cross(stains[0], stains[1])
    return np.stack([*stains, normal / np.linalg.norm(normal)])


class StainTransfer:
    """Random transfers of annotated images towards unannotated patients; every pair of patients is worked out once."""

    def __init__(self, sources: Sequence[StainStatistics], targets: Sequence[StainStatistics]) -> None:
        """sources: the patients of the images that will be changed. targets: the patients they are changed towards."""
        pairs = [[(reinhard(s, t), macenko(s, t)) for t in targets] for s in sources]
        self.matrix = torch.tensor(np.array([[[m for m, _ in both] for both in row] for row in pairs])).float()
        self.offset = torch.tensor(np.array([[[o for _, o in both] for both in row] for row in pairs])).float()

    def draw(self, sources: np.ndarray, rng: np.random.Generator, *, unchanged: float = UNCHANGED) -> StainChange:
        """One change for each image, given the position (n,) of its patient in `sources`; a share is left as it is."""
        target = rng.integers(self.matrix.shape[1], size=len(sources))
        method = rng.integers(2, size=len(sources))
        kept = torch.from_numpy(rng.random(len(sources)) < unchanged)
        still = StainChange.identity(len(sources))
        return StainChange(
            torch.where(kept[:, None, None], still.matrix, self.matrix[sources, target, method]),
            torch.where(kept[:, None], still.offset, self.offset[sources, target, method]),
        )


def restained(images: np.ndarray, patients: Sequence[str], towards: Sequence[StainStatistics]) -> np.ndarray:
    """Images (n, H, W, 3) uint8 of `patients` (n,), each in the stain of one of the others, whichever; always the same.

    What is annotated then looks as another laboratory's images do, as far as a linear map of stains can tell.
    """
    names = sorted(set(patients))
    position = np.searchsorted(names, patients)
    own = [StainStatistics.measure(images[position == k]) for k in range(len(names))]
    change = StainTransfer(own, towards).draw(position, np.random.default_rng(0), unchanged=0)
    parts = np.array_split(np.arange(len(images)), max(1, len(images) // _AT_ONCE))
    return np.concatenate([to_images(change[torch.from_numpy(rows)].apply(to_network(images[rows]))) for rows in parts])
