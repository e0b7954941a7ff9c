"""What an arm is chosen by: by validation patients or, for another laboratory, without any of its masks; never by test.

Validation patients are the first laboratory's where there are two, and say little of the second: on colon biopsies
they prefer the arm that is worst on another laboratory's resections (benchmarks/results/shift_earlier.md). What can be
had there is how little a segmenter's reading of the other laboratory's images changes with what must not matter. Such
an invariance goes along with accuracy on images of another kind (Deng, Gould & Zheng 2022, NeurIPS). It favours arms
that train on that laboratory's images as their segmenters read them (benchmarks/results/shift.md).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from stedm.arms import FULL_ARM
from stedm.evaluation.segmentation import confusion, patient_scores

CRITERIA = ("mirror_agreement", "validation_iou")
"""Columns of the per-patient table and keys of an arm's summary: the first that is known of every arm decides."""


def mirror_agreement(
    predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, *, patients: Sequence[str], classes: Sequence[str]
) -> float:
    """IoU (0 to 1) of the label maps of images and those of their mirror images, mirrored back; mean over patients.

    predict: images (n, H, W, 3) uint8 -> label maps (n, H, W). patients: of each image.
    """
    maps = predict(images)
    mirrored = predict(np.ascontiguousarray(images[:, :, ::-1]))[:, :, ::-1]
    confusions = [confusion(other, own, len(classes)) for other, own in zip(mirrored, maps, strict=True)]
    return float(patient_scores(patients, np.stack(confusions), classes=classes)["iou"].mean())


def means(table: pd.DataFrame) -> dict[str, float | None]:
    """Each criterion's mean over the rows of one arm; None where it is not known."""
    found = {name: float(table[name].mean()) for name in CRITERIA if name in table}
    return {name: found[name] if np.isfinite(found.get(name, np.nan)) else None for name in CRITERIA}


def merits(arms: Mapping[str, Mapping[str, float | None]]) -> tuple[str, dict[str, float]]:
    """The criterion, and by it the merit of every arm that has one, the ceiling `full` apart: it may not be had."""
    scores = {arm: score for arm, score in arms.items() if arm != FULL_ARM}
    known = {
        name: {arm: value for arm, score in scores.items() if (value := score.get(name)) is not None}
        for name in CRITERIA
    }
    criterion = next((name for name in CRITERIA if known[name] and len(known[name]) == len(scores)), CRITERIA[-1])
    return criterion, known[criterion]
