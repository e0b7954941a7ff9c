"""Stage `filter`: a real-trained segmenter judges each synthetic pair (after FreeMask, Yang 2023)."""

import numpy as np
import pandas as pd
from PIL import Image

from stedm.config import IGNORE, RunConfig
from stedm.data.synthetic import SyntheticSet
from stedm.device import best_device
from stedm.evaluation.memorisation import nearest_distances
from stedm.evaluation.segmentation import confusion, iou, mean_over_classes
from stedm.files import atomic_path
from stedm.models.segmenter import Segmenter
from stedm.stages.run_folder import TEACHER_ARM, RunFolder, train_patches


def filter_synthetic(run: RunFolder, config: RunConfig) -> None:
    """Add agreement, ignored_fraction, keep and the nearest real neighbour to the manifest; write filtered masks.

    `layout` stays the label map as drawn, `mask` becomes the one to train with: `filtered/<id>.png`.
    """
    patches = run.patches()
    annotated = train_patches(patches, annotated=True)
    teacher = Segmenter.from_pretrained(run.segmenter(TEACHER_ARM, config.seed)).to(best_device())
    classes = len(run.classes())
    limits = loss_limits(
        teacher.probabilities(run.images(annotated), views=4), run.label_maps(annotated), config.filter.tolerance
    )
    limits = np.maximum(limits, config.filter.max_loss)
    synthetic = SyntheticSet(run.synthetic)
    manifest = synthetic.manifest.assign(mask="filtered/" + synthetic.manifest["id"] + ".png")
    training = train_patches(patches)
    columns = []
    for start in range(0, len(manifest), 256):
        part = manifest.iloc[start : start + 256]
        images = synthetic.images(np.arange(start, start + len(part)))
        layouts = _layouts(run, part)
        probabilities = teacher.probabilities(images, views=4)  # (n, N, H, W)
        masks = ignore_unlikely(layouts, probabilities, limits)
        for name, mask in zip(part["mask"], masks, strict=True):
            with atomic_path(run.synthetic / name) as temporary:
                Image.fromarray(mask).save(temporary, compress_level=1)
        agreements = [
            _agreement(p.argmax(0), layout, classes) for p, layout in zip(probabilities, layouts, strict=True)
        ]
        columns.append(_judged(part.index, agreements, layouts, masks, config, _nearest(run, images, training)))
    judged = pd.concat(columns)
    with atomic_path(run.synthetic / "manifest.parquet") as temporary:
        manifest.drop(columns=judged.columns, errors="ignore").join(judged).to_parquet(temporary)


def pixel_losses(probabilities: np.ndarray, label_maps: np.ndarray) -> np.ndarray:
    """Cross entropy in nats of each pixel: (n, N, H, W) and (n, H, W) -> (n, H, W); 0 where the label is ignore."""
    known = label_maps != IGNORE
    labels = np.where(known, label_maps, 0).astype(np.int64)
    likelihood = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    return np.where(known, -np.log(np.maximum(likelihood, 1e-6)), 0.0)


def loss_limits(probabilities: np.ndarray, label_maps: np.ndarray, tolerance: float) -> np.ndarray:
    """tolerance x mean loss of each class on real annotated data, (N,) nats."""
    losses = pixel_losses(probabilities, label_maps)
    means = [
        losses[label_maps == k].mean() if (label_maps == k).any() else np.inf for k in range(probabilities.shape[1])
    ]
    return tolerance * np.array(means)


def ignore_unlikely(layouts: np.ndarray, probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Layouts (n, H, W) with the pixels set to ignore whose loss exceeds their class's limit."""
    limit = np.append(limits, np.full(256 - len(limits), np.inf))[layouts]
    return np.where(pixel_losses(probabilities, layouts) > limit, np.uint8(IGNORE), layouts)


def _layouts(run: RunFolder, part: pd.DataFrame) -> np.ndarray:
    return np.stack([np.asarray(Image.open(run.synthetic / name)) for name in part["layout"]])


def _agreement(prediction: np.ndarray, layout: np.ndarray, classes: int) -> float:
    return float(mean_over_classes(iou(confusion(prediction, layout, classes))))


def _nearest(run: RunFolder, images: np.ndarray, training: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    distances, indices = nearest_distances(images, run.images(training))
    return distances, training["patch_id"].iloc[indices].tolist()


def _judged(
    index: pd.Index,
    agreements: list[float],
    layouts: np.ndarray,
    masks: np.ndarray,
    config: RunConfig,
    nearest: tuple[np.ndarray, list[str]],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "agreement": agreements,
            "ignored_fraction": (masks != layouts).mean((1, 2)),
            "keep": np.array(agreements) >= config.filter.min_agreement,
            "nearest_real": nearest[1],
            "nearest_real_distance": nearest[0],
        },
        index=index,
    )
