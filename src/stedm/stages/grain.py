"""How much of the measured grain a generator adds: as much as makes reconstructions look most like real images.

Where glass and flat tissue are to be seen, the scanner's noise is measured well (diffusion/grain.py), and
reconstructions lack it. Where tissue fills every image, its own fine texture is taken for noise, and none should be
added. Training images tell which is the case.
"""

import numpy as np
import pandas as pd
import torch

from stedm.device import autocast, best_device
from stedm.diffusion.grain import add_grain, measure_grain
from stedm.diffusion.pipeline import to_images, to_network
from stedm.evaluation.features import style_features
from stedm.evaluation.generation import Scale, energy_distance
from stedm.models.autoencoder import FirstStage
from stedm.stages.run_folder import RunFolder

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PATIENTS, IMAGES = 16, 8
"""At most so many training patients are looked at, and so many images of each."""


def best_grain(run: RunFolder, first_stage: FirstStage, patches: pd.DataFrame, *, seed: int) -> float:
    """The strength of `STRENGTHS` with the least style distance between training images and their reconstructions."""
    rng = np.random.default_rng([seed, 9])
    sizes = patches.groupby("patient").size()
    names = sorted(rng.permutation(sorted(sizes[sizes >= 2].index))[:PATIENTS])
    sets = []
    for name in names:
        rows = patches[patches["patient"] == name]
        sets.append(run.images(rows.iloc[np.sort(rng.permutation(len(rows))[:IMAGES])]))
    return least_distance(first_stage, sets) if sets else 1.0


@torch.no_grad()
def least_distance(first_stage: FirstStage, sets: list[np.ndarray]) -> float:
    """The same for given sets of images (n, H, W, 3) uint8, one a patient, each of at least two."""
    real = [style_features(images) for images in sets]
    scale = Scale.fit(np.concatenate(real))
    distances, device = np.zeros(len(STRENGTHS)), best_device()
    first_stage.to(device)
    for images, features in zip(sets, real, strict=True):
        x = to_network(images, device)
        with autocast(device):
            reconstructed = first_stage.decode(first_stage.encode(x)).float()  # (n, 3, H, W)
        grain = measure_grain(x, reconstructed).expand(len(x), -1, -1)
        for k, strength in enumerate(STRENGTHS):
            grained = to_images(add_grain(reconstructed, grain, strength, seeds=range(len(x))))
            distances[k] += energy_distance(scale(style_features(grained)), scale(features))
    first_stage.cpu()
    return STRENGTHS[int(distances.argmin())]
