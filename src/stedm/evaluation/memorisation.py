"""Does the generator copy its training images? Nearest real neighbours of synthetic images, against real ones'.

Images are compared as 16 x 16 thumbnails, under all eight flips and quarter turns (training flips and turns its images,
so a copy may come back turned). The distance is the root mean square difference of thumbnail pixels, 0 to 1.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

THUMBNAIL_PX = 16
GREY_LEVEL = 1 / 255
BLANK = 4 * GREY_LEVEL
"""An image whose thumbnail has less contrast shows nothing that could be copied."""
FARTHEST_COPY = 0.5
DUPLICATE = 0.2
"""Distances as shares of an image's contrast: a copy is nearer than the one, the same tissue again than the other."""


def thumbnails(images: np.ndarray) -> torch.Tensor:
    """Area-average uint8 (n, H, W, 3) to float (n, 3, 16, 16), 0 to 1; in chunks, so that memory stays small."""
    chunks = [
        adaptive_avg_pool2d(torch.from_numpy(images[i : i + 256]).movedim(-1, 1).float() / 255, THUMBNAIL_PX)
        for i in range(0, len(images), 256)
    ]
    return torch.cat(chunks)


def _dihedral(thumbnails: torch.Tensor) -> torch.Tensor:
    """All flips and quarter turns: (n, 3, s, s) -> (8, n, 3 * s * s)."""
    turned = [torch.rot90(thumbnails, quarter, (2, 3)) for quarter in range(4)]
    return torch.stack([view.flatten(1) for image in turned for view in (image, image.flip(3))])


def _pairwise(queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Distances (q, r) of thumbnails, smallest over the flips and turns of the query."""
    flat = references.flatten(1)
    views = _dihedral(queries)  # (8, q, d)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, and a turn does not change |a|: only the product depends on the view.
    # Double precision, because the difference of large squares is what tells a copy from a likeness.
    products = torch.stack([view.double() @ flat.double().T for view in views]).amax(0)
    squares = views[0].double().square().sum(1)[:, None] + flat.double().square().sum(1)[None] - 2 * products
    return (squares.clamp_min(0) / flat.shape[1]).sqrt()


def _nearest(
    queries: torch.Tensor, references: torch.Tensor, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest references; with `own`, the groups of queries and references alike, those of other groups alone."""
    distances, indices = [], []
    for start in range(0, len(queries), 128):
        block = _pairwise(queries[start : start + 128], references)
        if own is not None:
            block[torch.from_numpy(own[start : start + 128, None] == own[None])] = torch.inf
        nearest = block.min(dim=1)
        distances.append(nearest.values.numpy())
        indices.append(nearest.indices.numpy())
    return np.concatenate(distances), np.concatenate(indices)


def nearest_distances(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find each query's nearest reference image.

    Args:
        queries: uint8 (n, H, W, 3), n >= 1.
        references: uint8 (m, H', W', 3), m >= 1.

    Returns:
        Distances float (n,), 0 to 1, and the references' indices int (n,).
    """
    return nearest_thumbnails(queries, thumbnails(references))


def nearest_thumbnails(queries: np.ndarray, references: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same for references whose `thumbnails` are there already: to ask for some queries after others."""
    return _nearest(thumbnails(queries), references)


def nearest_others(images: np.ndarray, groups: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Find each image's nearest other image in the same set, as `nearest_distances`.

    Args:
        images: uint8 (n, H, W, 3).
        groups: group of each image, a patient for one: neighbours are then sought in other groups only.

    Raises:
        ValueError: if there is no other image, or no other group.
    """
    own = np.arange(len(images)) if groups is None else np.unique(np.asarray(groups, str), return_inverse=True)[1]
    if len(np.unique(own)) < 2:
        raise ValueError("an image needs at least one other to be compared with")
    small = thumbnails(images)
    return _nearest(small, small, own=own)


def copy_distance(training: np.ndarray, patients: Sequence[str]) -> float:
    """Return the distance below which an image counts as a copy of a training image, as a share of its own contrast.

    It is the first percentile of the distances from training images to their nearest one of another patient, half of
    the contrast at most: of independent images, about one in a hundred comes that close. With one patient only, of its
    other images. Left out are images that say nothing about likeness by chance: blank ones, and those that are nearer
    than a fifth of their contrast, because the same tissue stands under two patients.

    Args:
        training: uint8 (n, H, W, 3), n >= 2.
        patients: patient of each image.

    Returns:
        0.2 to 0.5; 0.5 where nothing is left.
    """
    several = len(set(patients)) > 1
    shares = nearest_others(training, patients if several else None)[0] / _contrast(thumbnails(training))
    telling = shares[np.isfinite(shares) & (shares >= DUPLICATE)]
    return min(FARTHEST_COPY, float(np.quantile(telling, 0.01))) if len(telling) else FARTHEST_COPY


def are_copies(queries: np.ndarray, references: np.ndarray, *, below: float) -> np.ndarray:
    """Which queries are copies of a reference: bool (n,).

    A copy is nearer to a reference than `below` times its own contrast. Blank images are none: bare glass looks like
    all other glass, which nobody has to memorise.

    Args:
        queries: uint8 (n, H, W, 3), n >= 1.
        references: uint8 (m, H', W', 3), m >= 1.
        below: share of the contrast; from `copy_distance`.
    """
    return _copies(thumbnails(queries), references, below)


def copied_share(queries: Iterable[np.ndarray], references: np.ndarray, *, below: float) -> float:
    """Share of `are_copies` among queries that come in portions (n, H, W, 3), 0 to 1; one portion is held at a time."""
    return float(_copies(torch.cat([thumbnails(images) for images in queries]), references, below).mean())


def _copies(small: torch.Tensor, references: np.ndarray, below: float) -> np.ndarray:
    return np.asarray(_nearest(small, thumbnails(references))[0] < below * _contrast(small))


def _contrast(thumbnails: torch.Tensor) -> np.ndarray:
    """Root mean square difference of (n, 3, s, s) from one colour, (n,), 0 to 1; NaN for blank ones, below `BLANK`."""
    centred = thumbnails - thumbnails.mean((2, 3), keepdim=True)
    contrast = centred.square().mean((1, 2, 3)).sqrt().numpy()
    return np.where(contrast < BLANK, np.nan, contrast)


def nearest_real_ratio(synthetic_to_real: np.ndarray, real_to_other_real: np.ndarray) -> float:
    """Return the median synthetic -> real training distance over the median real -> other real distance.

    About 1 or more: synthetic images keep as far from the training images as those keep from each other. Near 0: they
    are copies.

    Args:
        synthetic_to_real: distances from `nearest_distances(synthetic, real)`.
        real_to_other_real: distances from `nearest_others(real)`; their median is floored at half a grey level.
    """
    return float(np.median(synthetic_to_real) / max(float(np.median(real_to_other_real)), GREY_LEVEL / 2))
