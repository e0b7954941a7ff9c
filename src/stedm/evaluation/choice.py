"""What an arm is chosen by: validation patients, never test patients.

Where there are two laboratories, validation patients are the first one's, and as they are they say little of the
second: on colon biopsies they prefer the arm that is worst on another laboratory's resections
(benchmarks/results/shift_earlier.md). Their images in the stains of the second laboratory's patients say more
(benchmarks/results/shift.md): their masks are true, and no mask of the second laboratory is needed. What they cannot
show is tissue of another kind.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stedm.arms import FULL_ARM

CRITERIA = {"restained_iou": "val_iou_restained", "validation_iou": "val_iou"}
"""Mean IoU over validation patients; with two laboratories, over their re-stained images. Columns of the per-patient
table and keys of an arm's summary, and the columns of a training's metrics.csv, which has one of the two. The first
that is known of every arm decides."""


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
    complete = [name for name in CRITERIA if known[name] and len(known[name]) == len(scores)]
    criterion = complete[0] if complete else "validation_iou"
    return criterion, known[criterion]
