"""The trainings that an arm's scores are of: one for each seed, or one for each draw of annotated patients.

With several draws a training is a draw, with the mean of its seeds: who was annotated matters more than a random start,
and of units within units it is the larger that a bootstrap has to resample.
"""

import pandas as pd


def draws_of(per_patient: pd.DataFrame) -> list[int]:
    """The draws of annotated patients that the rows of a per-patient table are of."""
    return sorted(int(draw) for draw in per_patient["draw"].unique()) if "draw" in per_patient else [0]


def trainings_by_patients(per_patient: pd.DataFrame, arm: str, *, metric: str = "iou") -> pd.DataFrame:
    """Pivot the per-patient table to one arm's (trainings, patients) frame, both sorted; missing scores are NaN.

    A row is a seed or, of a table with several draws of annotated patients, a draw: the mean of its seeds, NaN where
    one of them is.
    """
    index = ["draw", "seed"] if len(draws_of(per_patient)) > 1 else ["seed"]
    rows = per_patient[per_patient["arm"] == arm]
    frame = rows.pivot(index=index, columns="patient", values=metric).sort_index(axis=0).sort_index(axis=1)
    return frame if index == ["seed"] else frame.groupby("draw").agg(lambda scores: scores.mean(skipna=False))
