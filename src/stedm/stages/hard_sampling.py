"""How often a synthetic image is drawn: oftener when its layout or its style is hard for a real-trained segmenter.

No label map of an unannotated patient is read: layouts are judged by the losses of their classes on annotated images
(FreeMask, Yang 2023), styles by how unsure the segmenter is on real images of the patient that lent them.
"""

import numpy as np
import pandas as pd

from stedm.models.ensemble import Ensemble
from stedm.stages.run_folder import RunFolder, train_patches

_MOST_IMAGES = 32
"""Real images of a style patient that the segmenter reads, at most."""


def layout_hardness(layouts: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Mean over the known pixels of each layout (n, H, W) of their class's loss (N,) on real images: (n,) nats."""
    seen = np.isfinite(losses)
    losses = np.where(seen, losses, losses[seen].mean() if seen.any() else 1.0)
    counts = np.stack([(layouts == k).sum((1, 2)) for k in range(len(losses))], 1)  # (n, N)
    return np.where(counts.sum(1) > 0, counts @ losses / np.maximum(counts.sum(1), 1), losses.mean())


def uncertainty(probabilities: np.ndarray) -> float:
    """Mean entropy over pixels of class probabilities (n, N, H, W), divided by log N: 0 (sure) to 1."""
    p = np.clip(probabilities, 1e-6, 1)
    return float(-(p * np.log(p)).sum(1).mean() / np.log(p.shape[1]))


def style_hardness(run: RunFolder, segmenter: Ensemble, patients: pd.Series) -> np.ndarray:
    """Uncertainty (n,) of the segmenter on real images of each row's style patient; 1 for rows without a style."""
    training = train_patches(run.patches())
    found = {"": 1.0}
    for name in sorted(set(patients) - {""}):
        images = run.images(training[training["patient"] == name].iloc[:_MOST_IMAGES])
        found[name] = uncertainty(segmenter.probabilities(images, views=4))
    return patients.map(found).to_numpy(float)


def sampling_weight(*hardness: np.ndarray, strength: float) -> np.ndarray:
    """How often each row is drawn, with mean 1: the product of its kinds of hardness (n,), each relative to its mean,
    to the power of `strength`; 0 draws all alike."""
    relative = [(values + 1e-6) / (values + 1e-6).mean() for values in hardness]
    weight = np.prod(relative, axis=0) ** strength
    return weight / weight.mean()
