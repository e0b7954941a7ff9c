"""Stage `filter`: a real-trained segmenter, or for the second round several together, judges each synthetic pair.

After FreeMask (Yang 2023).
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from PIL import Image

from stedm.config import IGNORE, RunConfig
from stedm.data.synthetic import SyntheticSet
from stedm.device import best_device
from stedm.evaluation.memorisation import nearest_thumbnails, thumbnails
from stedm.evaluation.segmentation import confusion, iou, mean_over_classes
from stedm.files import atomic_path
from stedm.models.ensemble import Ensemble
from stedm.png import write_png_atomically
from stedm.ranks import PORTION, is_first, pooled, portions
from stedm.stages.hard_sampling import layout_hardness, sampling_weight, style_hardness
from stedm.stages.run_folder import RunFolder, train_patches


def filter_synthetic(run: RunFolder, config: RunConfig, *, name: str = "synthetic") -> None:
    """Add agreement, ignored_fraction, keep, weight and the nearest real neighbour to a synthetic set's manifest.

    `layout` stays the label map as drawn, `mask` becomes the one to train with: `filtered/<id>.png`. `weight` (mean 1)
    says how often the image is to be drawn in training.
    """
    folder = run.synthetic_set(name)
    patches = run.patches()
    annotated = train_patches(patches, annotated=True)
    teacher = Ensemble.from_pretrained(run.teachers(config, name)).to(best_device())
    some = (annotated.iloc[start : start + PORTION] for start in range(0, len(annotated), PORTION))
    losses = class_losses((teacher.probabilities(run.images(rows), views=4), run.label_maps(rows)) for rows in some)
    limits = loss_limits(losses, config.filter.tolerance, least=config.filter.max_loss)
    synthetic = SyntheticSet(folder)
    manifest = synthetic.manifest.assign(mask="filtered/" + synthetic.manifest["id"] + ".png")
    training = train_patches(patches)
    real = thumbnails(run.images(training))
    columns, hardness = [], []
    for rows in portions(len(manifest)):
        part = manifest.iloc[rows]
        images = synthetic.images(np.arange(rows.start, rows.start + len(part)))
        layouts = np.stack([np.asarray(Image.open(folder / path)) for path in part["layout"]])
        probabilities = teacher.probabilities(images, views=4)  # (n, N, H, W)
        masks = ignore_unlikely(layouts, probabilities, limits)
        for path, mask in zip(part["mask"], masks, strict=True):
            write_png_atomically(folder / path, mask)
        agreements = [_agreement(p.argmax(0), y, len(losses)) for p, y in zip(probabilities, layouts, strict=True)]
        columns.append(_judged(part.index, agreements, layouts, masks, _nearest(images, real, training)))
        hardness.append(pd.Series(layout_hardness(layouts, losses), part.index))
    judged, of_layouts = pd.concat(pooled(columns)).sort_index(), pd.concat(pooled(hardness)).sort_index()
    if not is_first():
        return
    judged["keep"] = kept(judged["agreement"], config.filter.min_agreement, least=config.filter.least_kept)
    judged["weight"] = 1.0
    if config.filter.hard_sampling > 0:
        of_styles = style_hardness(run, teacher, manifest["style_patient"])
        judged["weight"] = sampling_weight(of_layouts.to_numpy(), of_styles, strength=config.filter.hard_sampling)
    with atomic_path(folder / "manifest.parquet") as temporary:
        manifest.drop(columns=judged.columns, errors="ignore").join(judged).to_parquet(temporary)


def kept(agreement: pd.Series, min_agreement: float, *, least: float) -> pd.Series:
    """Which images stay: those that agree enough, and the `least` share (0 to 1) that agrees best, come what may.

    A segmenter that fails on the styles drawn (another laboratory's, say) judges every image badly; the best of them
    are then worth more than a run that stops.
    """
    best = agreement.rank(method="first", ascending=False) <= np.ceil(least * len(agreement))
    return (agreement >= min_agreement) | best


def pixel_losses(probabilities: np.ndarray, label_maps: np.ndarray) -> np.ndarray:
    """Cross entropy in nats of each pixel: (n, N, H, W) and (n, H, W) -> (n, H, W); 0 where the label is ignore."""
    known = label_maps != IGNORE
    labels = np.where(known, label_maps, 0).astype(np.int64)
    likelihood = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    return np.where(known, -np.log(np.maximum(likelihood, 1e-6)), 0.0)


def class_losses(portions: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mean loss of each class, (N,) nats, over portions: probabilities (n, N, H, W) and label maps (n, H, W) each.

    Infinite for a class that no label map has.
    """
    sums, pixels = np.zeros(256), np.zeros(256)
    num_classes = 0
    for probabilities, label_maps in portions:
        num_classes, labels = probabilities.shape[1], label_maps.ravel()
        sums += np.bincount(labels, pixel_losses(probabilities, label_maps).ravel(), minlength=256)
        pixels += np.bincount(labels, minlength=256)
    with np.errstate(invalid="ignore"):
        return np.where(pixels > 0, sums / pixels, np.inf)[:num_classes]


def loss_limits(losses: np.ndarray, tolerance: float | None, *, least: float = 0.0) -> np.ndarray:
    """tolerance x mean loss of each class on real annotated data, but `least` at least, (N,) nats; None: no limit."""
    return np.full(len(losses), np.inf) if tolerance is None else np.maximum(tolerance * losses, least)


def ignore_unlikely(layouts: np.ndarray, probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Layouts (n, H, W) with the pixels set to ignore whose loss exceeds their class's limit."""
    limit = np.append(limits, np.full(256 - len(limits), np.inf))[layouts]
    return np.where(pixel_losses(probabilities, layouts) > limit, np.uint8(IGNORE), layouts)


def _agreement(prediction: np.ndarray, layout: np.ndarray, classes: int) -> float:
    return float(mean_over_classes(iou(confusion(prediction, layout, classes))))


def _nearest(images: np.ndarray, real: torch.Tensor, training: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    distances, indices = nearest_thumbnails(images, real)
    return distances, training["patch_id"].iloc[indices].tolist()


def _judged(
    index: pd.Index,
    agreements: list[float],
    layouts: np.ndarray,
    masks: np.ndarray,
    nearest: tuple[np.ndarray, list[str]],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "agreement": agreements,
            "ignored_fraction": (masks != layouts).mean((1, 2)),
            "nearest_real": nearest[1],
            "nearest_real_distance": nearest[0],
        },
        index=index,
    )
