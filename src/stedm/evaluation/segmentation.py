"""IoU and Dice of label maps, pooled over the patches of a patient: the patient is the unit of every statistic."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stedm.config import IGNORE
from stedm.data.patches import counted_once, main_group


def confusion(prediction: np.ndarray, label_map: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by (true class, predicted class).

    Args:
        prediction: integers 0 .. num_classes - 1, any shape.
        label_map: integers 0 .. num_classes - 1, same shape; 255 = ignore, not counted.
        num_classes: C.

    Returns:
        int64 (C, C); rows are the truth, columns the prediction.

    Raises:
        ValueError: if shapes differ or a counted value is not a class.
    """
    if prediction.shape != label_map.shape:
        raise ValueError(f"prediction {prediction.shape} and label map {label_map.shape} differ in shape")
    counted = label_map != IGNORE
    truth, guess = label_map[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for name, values in (("label map", truth), ("prediction", guess)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"{name} holds values outside 0 .. {num_classes - 1}")
    pairs = np.bincount(truth * num_classes + guess, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, present: np.ndarray) -> np.ndarray:
    return np.where(present, numerator / np.maximum(denominator, 1), np.nan)


def iou(conf: np.ndarray) -> np.ndarray:
    """Return intersection over union per class, 0 to 1; NaN for a class the truth does not contain.

    False positives of an absent class count against the class they were taken from, so that one stray pixel cannot
    turn "nothing to find" into a score of 0.

    Args:
        conf: (..., C, C) as from `confusion`.

    Returns:
        float (..., C).
    """
    hits = np.diagonal(conf, axis1=-2, axis2=-1)
    true, predicted = conf.sum(-1), conf.sum(-2)
    return _ratio(hits, true + predicted - hits, true > 0)


def dice(conf: np.ndarray) -> np.ndarray:
    """Return the Dice coefficient per class, 0 to 1; NaN for a class the truth does not contain.

    Args:
        conf: (..., C, C) as from `confusion`.

    Returns:
        float (..., C).
    """
    hits = np.diagonal(conf, axis1=-2, axis2=-1)
    true, predicted = conf.sum(-1), conf.sum(-2)
    return _ratio(2 * hits, true + predicted, true > 0)


def mean_over_classes(scores: np.ndarray) -> np.ndarray:
    """Average (..., C) over the classes present; NaN only where every class is absent."""
    present = np.isfinite(scores)
    return _ratio(np.where(present, scores, 0.0).sum(-1), present.sum(-1), present.any(-1))


def patch_scores(
    predictions: np.ndarray, label_maps: np.ndarray, patches: pd.DataFrame, *, classes: Sequence[str]
) -> pd.DataFrame:
    """Score the patients of predicted patches, each pixel of an image once, however many patches show it.

    Args:
        predictions: label maps (n, H, W).
        label_maps: the truth (n, H, W), 255 = ignore.
        patches: rows of the patches table, length n.
        classes: the C class names.

    Returns:
        See `patient_scores`.
    """
    once = counted_once(label_maps, patches)
    confusions = [confusion(p, y, len(classes)) for p, y in zip(predictions, once, strict=True)]
    groups = patches["group"].tolist()
    return patient_scores(patches["patient"].tolist(), np.stack(confusions), classes=classes, groups=groups)


def patient_scores(
    patients: Sequence[str],
    confusions: np.ndarray,
    *,
    classes: Sequence[str],
    groups: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Pool the patches of each patient and score the patient.

    Args:
        patients: patient of each patch, length n.
        confusions: (n, C, C), one per patch.
        classes: the C class names.
        groups: group of each patch, of which the patient gets the `main_group`; empty strings when not given.

    Returns:
        One row per patient, sorted: patient, group, patches, iou, dice (means over the classes present),
        iou_<class>, dice_<class>.
    """
    confusions = np.asarray(confusions)
    names, row_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    group_of = pd.Series([""] * len(row_of) if groups is None else groups, dtype=object).groupby(row_of).agg(main_group)
    pooled = np.zeros((len(names), len(classes), len(classes)), dtype=np.int64)
    np.add.at(pooled, row_of, confusions)
    class_iou, class_dice = iou(pooled), dice(pooled)  # (P, C)
    table = pd.DataFrame(
        {
            "patient": names.astype(object),
            "group": group_of.tolist(),
            "patches": np.bincount(row_of, minlength=len(names)),
            "iou": mean_over_classes(class_iou),
            "dice": mean_over_classes(class_dice),
        }
    )
    for metric, scores in (("iou", class_iou), ("dice", class_dice)):
        for column, name in enumerate(classes):
            table[f"{metric}_{name}"] = scores[:, column]
    return table
