"""What we claim: means, spread and paired comparisons over patients and seeds, with bootstrap intervals.

Every bootstrap here draws n - 1 of n units with replacement, which makes the variance of the resampled mean equal to
the unbiased estimate s^2 / n (Rao and Wu, 1988). Drawing n of n would be too sure of itself by (n - 1) / n: a third
with three seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Summary:
    """One arm over patients, in the units of the values."""

    mean: float
    """Mean over patients of the mean over seeds."""
    std: float
    """Sample standard deviation over patients; 0 for a single patient."""
    worst_decile: float
    """Mean of the lowest 10 % of the patients, at least one."""
    ci95: tuple[float, float]
    """95 % bootstrap interval of the mean, over patients."""


@dataclass(frozen=True)
class Comparison:
    """One arm against another on the same patients."""

    delta: float
    """Mean difference, first minus second."""
    ci95: tuple[float, float]
    """95 % bootstrap interval over patients and seeds."""
    p_value: float
    """Two-sided bootstrap p-value of "no difference"."""


def _weights(rng: np.random.Generator, units: int, resamples: int) -> np.ndarray:
    """Draw resampling weights, each row summing to 1: (resamples, units)."""
    draws = max(units - 1, 1)
    return rng.multinomial(draws, np.full(units, 1 / units), size=resamples) / draws


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summarise(values: np.ndarray, *, resamples: int = 5000, seed: int = 0) -> Summary:
    """Summarise scores over patients.

    Args:
        values: (seeds, patients); a patient that is NaN in any seed is left out.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if no patient has a score.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    scores = values.mean(axis=0)
    scores = np.sort(scores[np.isfinite(scores)])
    if scores.size == 0:
        raise ValueError("no patient has a score")
    weights = _weights(np.random.default_rng(seed), scores.size, resamples)
    worst = max(1, math.floor(0.1 * scores.size))
    return Summary(
        mean=float(scores.mean()),
        std=float(scores.std(ddof=1)) if scores.size > 1 else 0.0,
        worst_decile=float(scores[:worst].mean()),
        ci95=_interval(weights @ scores),
    )


def paired_bootstrap(a: np.ndarray, b: np.ndarray, *, resamples: int = 5000, seed: int = 0) -> Comparison:
    """Compare two arms scored on the same patients with the same seeds.

    Patients and seeds are crossed, and both are resampled (the pigeonhole bootstrap, Owen 2007): the interval speaks
    about other patients and other trainings. With one seed it speaks about other patients only.

    Args:
        a: (seeds, patients).
        b: the same shape, same patients and seeds in the same order.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if shapes differ or no patient is scored in both.
    """
    a, b = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_2d(np.asarray(b, dtype=float))
    if a.shape != b.shape:
        raise ValueError(f"arms differ in (seeds, patients): {a.shape} and {b.shape}")
    difference = a - b
    difference = difference[:, np.isfinite(difference).all(axis=0)]  # (S, P)
    if difference.size == 0:
        raise ValueError("no patient is scored in both arms")
    rng = np.random.default_rng(seed)
    of_seeds = _weights(rng, difference.shape[0], resamples)
    of_patients = _weights(rng, difference.shape[1], resamples)
    means = ((of_seeds @ difference) * of_patients).sum(axis=1)
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return Comparison(
        delta=float(difference.mean()),
        ci95=_interval(means),
        p_value=float(min(1.0, 2 * (tail + 1) / (resamples + 1))),
    )


def seeds_by_patients(per_patient: pd.DataFrame, arm: str, *, metric: str = "iou") -> pd.DataFrame:
    """Pivot the per-patient table to one arm's (seeds, patients) frame, both sorted; missing scores are NaN."""
    rows = per_patient[per_patient["arm"] == arm]
    return rows.pivot(index="seed", columns="patient", values=metric).sort_index(axis=0).sort_index(axis=1)


def default_comparisons(arms: Sequence[str]) -> list[tuple[str, str]]:
    """List (arm, baseline) pairs in which the arm has every ingredient of the baseline and more.

    Ingredients are what the plus signs join: `real+stain+synthetic` is compared with `real+stain`,
    `real+synthetic` and `real`.
    """
    pairs = [(arm, base) for base, arm in permutations(arms, 2) if set(base.split("+")) < set(arm.split("+"))]
    return sorted(pairs, key=lambda pair: (arms.index(pair[0]), -len(pair[1].split("+")), arms.index(pair[1])))


def _arm_entry(per_patient: pd.DataFrame, arm: str, **options: int) -> dict[str, Any]:
    iou = summarise(seeds_by_patients(per_patient, arm).to_numpy(), **options)
    dice = summarise(seeds_by_patients(per_patient, arm, metric="dice").to_numpy(), **options)
    return {
        "patient_iou_mean": iou.mean,
        "patient_iou_std": iou.std,
        "worst_decile_iou": iou.worst_decile,
        "patient_dice_mean": dice.mean,
        "ci95": list(iou.ci95),
    }


def _comparison_entry(scores: Mapping[str, pd.DataFrame], arm: str, baseline: str, **options: int) -> dict[str, Any]:
    a, b = scores[arm].align(scores[baseline], join="inner")
    found = paired_bootstrap(a.to_numpy(), b.to_numpy(), **options)
    return {
        "arm": arm,
        "baseline": baseline,
        "delta_iou": found.delta,
        "ci95": list(found.ci95),
        "p_value": found.p_value,
    }


def summary_table(
    per_patient: pd.DataFrame,
    arms: Sequence[str],
    *,
    label_budget: int,
    resamples: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Build the content of `evaluation/summary.json` from the per-patient table.

    Args:
        per_patient: columns arm, seed, patient, iou, dice.
        arms: the arms to summarise, in the order they are to be shown.
        label_budget: number of annotated patients.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.
    """
    scores = {arm: seeds_by_patients(per_patient, arm) for arm in arms}
    options = {"resamples": resamples, "seed": seed}
    return {
        "label_budget": label_budget,
        "n_test_patients": int(per_patient["patient"].nunique()),
        "seeds": sorted(int(value) for value in per_patient["seed"].unique()),
        "arms": {arm: _arm_entry(per_patient, arm, **options) for arm in arms},
        "comparisons": [
            _comparison_entry(scores, arm, baseline, **options) for arm, baseline in default_comparisons(list(arms))
        ],
    }
