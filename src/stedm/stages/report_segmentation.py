"""The report on the arms: patients, spread, comparisons, classes and groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stedm.config import FULL_ARM
from stedm.stages import report_figures as figures
from stedm.stages.report_evidence import Evidence
from stedm.stages.report_text import synthesis_comparisons

BEST = {"patient_iou_mean": max, "patient_iou_std": min, "worst_decile_iou": max, "patient_dice_mean": max}
"""Figures of an arm, and which end of them is the good one."""
_MOST_PAIRS = 2


def segmentation(evidence: Evidence) -> dict[str, Any] | None:
    """What the template shows of the arms beside their table; None before they were evaluated."""
    summary, per_patient = evidence.summary, evidence.per_patient
    if summary is None or per_patient is None:
        return None
    arms, pairs = summary["arms"], synthesis_comparisons(summary)[:_MOST_PAIRS]
    return {
        "arms_figure": figures.arms_figure(per_patient, arms),
        "paired_figure": figures.paired_figure(per_patient, pairs) if pairs else None,
        "spread_figure": figures.spread_figure(arms) if len(arms) > 1 else None,
        "by_class": by_class(per_patient, list(arms)),
        "groups": groups_table(summary),
    }


def best_of(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Best value of each figure over the arms; the ceiling `full` is no contestant."""
    scores = [score for arm, score in arms.items() if arm != FULL_ARM] or list(arms.values())
    return {key: better(score[key] for score in scores) for key, better in BEST.items()}


def forest(comparisons: Sequence[Mapping[str, Any]], headline: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Add to each comparison where its interval, its difference and zero lie on a common scale, 0 to 100 %.

    The headline, if there is one, comes first and is marked.
    """
    ends = [0.0, *(end for found in comparisons for end in found["ci95"])]
    low, width = min(ends), max(max(ends) - min(ends), 1e-9)

    def place(value: float) -> float:
        return 100 * (value - low) / width

    rows = []
    for found in sorted(comparisons, key=lambda found: found != headline):
        left, right = map(place, found["ci95"])
        sign = "better" if found["ci95"][0] > 0 else "worse" if found["ci95"][1] < 0 else "unclear"
        places = {"left": left, "width": right - left, "dot": place(found["delta_iou"]), "zero": place(0.0)}
        rows.append({**found, **places, "sign": sign, "headline": found == headline})
    return rows


def by_class(per_patient: pd.DataFrame, arms: Sequence[str]) -> dict[str, Any]:
    """Mean IoU over seeds, then patients: {"columns": classes, "rows": {arm: [mean or None, ...]}}."""
    columns = [str(name) for name in per_patient if str(name).startswith("iou_")]
    rows = {}
    for arm in arms:
        of_arm = per_patient[per_patient["arm"] == arm]
        means = [of_arm.groupby("patient")[column].mean().mean() for column in columns]
        rows[arm] = [None if pd.isna(mean) else float(mean) for mean in means]
    return {"columns": [column.removeprefix("iou_") for column in columns], "rows": rows}


def groups_table(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean and std of each arm in each group: {"columns": names with sizes, "rows": {arm: [entry, ...]}}."""
    groups = summary.get("groups") or {}
    if len(groups) < 2:
        return None
    return {
        "columns": [f"{name} ({found['n_patients']})" for name, found in groups.items()],
        "rows": {arm: [found["arms"][arm] for found in groups.values()] for arm in summary["arms"]},
    }
