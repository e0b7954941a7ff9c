"""Stage `self-training`: what the segmenters of an arm read in unannotated images, together, labels these images.

The segmenters that train with them are those of the arm with `self-training` (Lee 2013; Xie 2020, "Noisy Student").
"""

import numpy as np
import pandas as pd

from stedm.config import IGNORE, RunConfig
from stedm.data.patches import LabelMaps
from stedm.data.tables import read_parquet
from stedm.device import best_device
from stedm.files import atomic_path
from stedm.models.ensemble import Ensemble
from stedm.png import write_png_atomically
from stedm.ranks import is_first, pooled, portions
from stedm.stages.run_folder import RunFolder, together, train_patches
from stedm.training.batches import Pairs

_MANIFEST = "manifest.parquet"


def label_unannotated(run: RunFolder, config: RunConfig, *, arm: str) -> None:
    """Write `self-training/<arm>/`: label maps of the unannotated training patches, `masks/<patch_id>.png`.

    And `manifest.parquet`, a row a patch: patch_id, image, mask, known_fraction (0 to 1). Pixels of which the mean of
    the segmenters is less sure than `segmentation.self_training_confidence` are ignore.
    """
    patches = train_patches(run.patches(), annotated=False)
    folder = run.self_training / arm
    teachers = [run.segmenter(*teacher) for teacher in together(config, arm)]
    segmenters = Ensemble.from_pretrained(teachers).to(best_device())
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    parts = []
    for portion in portions(len(patches)):
        rows = patches.iloc[portion][["patch_id", "image"]]
        probabilities = segmenters.probabilities(run.images(rows), views=4)  # (n, N, H, W)
        masks = sure_labels(probabilities, config.segmentation.self_training_confidence)
        rows = rows.assign(mask="masks/" + rows["patch_id"] + ".png", known_fraction=(masks != IGNORE).mean((1, 2)))
        for path, mask in zip(rows["mask"], masks, strict=True):
            write_png_atomically(folder / path, mask)
        parts.append(rows)
    every = pooled(parts)
    if is_first():
        table = pd.concat(every).sort_index() if every else patches[["patch_id", "image"]].assign(mask="")
        with atomic_path(folder / _MANIFEST) as temporary:
            table.to_parquet(temporary)


def sure_labels(probabilities: np.ndarray, confidence: float) -> np.ndarray:
    """Class probabilities (n, N, H, W) -> label maps (n, H, W) uint8; ignore where no class is as sure as that."""
    return np.where(probabilities.max(1) >= confidence, probabilities.argmax(1), IGNORE).astype(np.uint8)


def self_labelled(run: RunFolder, arm: str) -> Pairs | None:
    """The pairs that the segmenters of `arm` labelled; None where every training patient is annotated."""
    folder = run.self_training / arm
    table = read_parquet(folder / _MANIFEST, needs=("image", "mask"))
    if table.empty:
        return None
    label_maps = LabelMaps(folder, table["mask"].tolist(), cache_bytes=0).label_maps(range(len(table)))
    return Pairs(run.images(table), label_maps)
