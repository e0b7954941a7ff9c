"""What we claim: means, spread and paired comparisons over patients and trainings, with bootstrap intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stedm.config import FULL_ARM
from stedm.evaluation import choice
from stedm.evaluation.bootstrap import interval_of, weights_of
from stedm.evaluation.comparisons import STAIN_BASELINE, default_comparisons, headline_comparison
from stedm.evaluation.trainings import draws_of, trainings_by_patients


@dataclass(frozen=True)
class Summary:
    """One arm over patients, in the units of the values."""

    mean: float
    """Mean over patients of the mean over trainings."""
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
    """95 % bootstrap interval over patients and trainings."""
    p_value: float
    """Two-sided bootstrap p-value of "no difference"."""


@dataclass(frozen=True)
class Share:
    """How much of the gap between a baseline and a ceiling an arm closes."""

    value: float
    """0 at the baseline, 1 at the ceiling; below 0 and above 1 are possible."""
    ci95: tuple[float, float]
    """95 % bootstrap interval over patients and trainings."""


def worst_decile(scores: np.ndarray) -> float:
    """Mean of the lowest 10 % of the scores (patients,), at least one."""
    return float(np.sort(scores)[: max(1, math.floor(0.1 * scores.size))].mean())


def summarise(values: np.ndarray, *, resamples: int = 5000, seed: int = 0) -> Summary:
    """Summarise scores over patients.

    Args:
        values: (trainings, patients); a patient that is NaN in any training is left out.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if no patient has a score.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    scores = values.mean(axis=0)
    scores = np.sort(scores[np.isfinite(scores)])  # the interval does not depend on the order of the patients
    if scores.size == 0:
        raise ValueError("no patient has a score")
    weights = weights_of(np.random.default_rng(seed), scores.size, resamples)
    return Summary(
        mean=float(scores.mean()),
        std=float(scores.std(ddof=1)) if scores.size > 1 else 0.0,
        worst_decile=worst_decile(scores),
        ci95=interval_of(weights @ scores),
    )


def paired_bootstrap(a: np.ndarray, b: np.ndarray, *, resamples: int = 5000, seed: int = 0) -> Comparison:
    """Compare two arms scored on the same patients with the same trainings.

    Patients and trainings are crossed, and both are resampled (the pigeonhole bootstrap, Owen 2007): the interval
    speaks about other patients and other trainings. With one training it speaks about other patients only. The p-value
    of P patients is never below 2^(1 - P), the least that an exact test by their signs could give: resampling few
    patients that happen to agree would be sure of anything.

    Args:
        a: (trainings, patients).
        b: the same shape, same patients and trainings in the same order.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if shapes differ or no patient is scored in both.
    """
    a, b = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_2d(np.asarray(b, dtype=float))
    if a.shape != b.shape:
        raise ValueError(f"arms differ in (trainings, patients): {a.shape} and {b.shape}")
    difference = a - b
    difference = difference[:, np.isfinite(difference).all(axis=0)]  # (S, P)
    if difference.size == 0:
        raise ValueError("no patient is scored in both arms")
    (means,) = _crossed_means([difference], resamples=resamples, seed=seed)
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return Comparison(
        delta=float(difference.mean()),
        ci95=interval_of(means),
        p_value=float(min(1.0, max(2 * (tail + 1) / (resamples + 1), 2.0 ** (1 - difference.shape[1])))),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979): each is what it would take to claim it and all smaller ones.

    The k-th smallest of m is multiplied by m - k + 1, and is never below a smaller one's adjusted value nor above 1.
    The chance of a single false claim among all that are made at 0.05 is then at most 0.05, however they depend.
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return [float(value) for value in adjusted]


def gap_closed(
    arm: np.ndarray, baseline: np.ndarray, ceiling: np.ndarray, *, resamples: int = 5000, seed: int = 0
) -> Share | None:
    """Return (arm - baseline) / (ceiling - baseline) of the means, all three under the same resampling.

    Args:
        arm: (trainings, patients).
        baseline: the same shape, same patients and trainings in the same order.
        ceiling: likewise.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        None if the ceiling is not above the baseline in 97.5 % of the resamples: there is no telling what a share of
        a gap is that may not be there.

    Raises:
        ValueError: if shapes differ or no patient is scored in all three.
    """
    scores = [np.atleast_2d(np.asarray(values, dtype=float)) for values in (arm, baseline, ceiling)]
    if len({values.shape for values in scores}) > 1:
        raise ValueError(f"arms differ in (trainings, patients): {[values.shape for values in scores]}")
    known = np.isfinite(scores).all(axis=(0, 1))
    if not known.any():
        raise ValueError("no patient is scored in all three arms")
    gains = [(scores[k] - scores[1])[:, known] for k in (0, 2)]  # (S, P)
    gain, gap = _crossed_means(gains, resamples=resamples, seed=seed)
    if gains[1].mean() <= 0 or np.quantile(gap, 0.025) <= 0:
        return None
    there = gap > 0
    return Share(value=float(gains[0].mean() / gains[1].mean()), ci95=interval_of(gain[there] / gap[there]))


def _crossed_means(tables: Sequence[np.ndarray], *, resamples: int, seed: int) -> list[np.ndarray]:
    """Means (resamples,) of each table (trainings, patients), all of them under the same resampling of both."""
    rng = np.random.default_rng(seed)
    of_trainings = weights_of(rng, tables[0].shape[0], resamples)
    of_patients = weights_of(rng, tables[0].shape[1], resamples)
    return [((of_trainings @ table) * of_patients).sum(axis=1) for table in tables]


def _arm_entry(per_patient: pd.DataFrame, arm: str, **options: int) -> dict[str, Any]:
    scores = trainings_by_patients(per_patient, arm)
    iou = summarise(scores.to_numpy(), **options)
    dice = summarise(trainings_by_patients(per_patient, arm, metric="dice").to_numpy(), **options)
    by_seed = per_patient[per_patient["arm"] == arm].groupby("seed")["iou"].mean().dropna()
    by_draw = scores.mean(axis=1).dropna() if scores.index.name == "draw" else None
    return {
        "patient_iou_mean": iou.mean,
        "patient_iou_std": iou.std,
        "worst_decile_iou": iou.worst_decile,
        "patient_dice_mean": dice.mean,
        "ci95": list(iou.ci95),
        "iou_by_seed": {str(seed): float(mean) for seed, mean in by_seed.items()},
    } | ({} if by_draw is None else {"iou_by_draw": {str(draw): float(mean) for draw, mean in by_draw.items()}})


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


def _gap_entry(scores: Mapping[str, pd.DataFrame], arm: str, **options: int) -> dict[str, Any]:
    """`gap_closed` and its interval, both None without baseline, ceiling, or a gap between them."""
    names = (arm, STAIN_BASELINE, FULL_ARM)
    if not set(names) <= set(scores):
        return {"gap_closed": None, "gap_closed_ci95": None}
    first, *others = [scores[name] for name in names]
    trainings, patients = first.index, first.columns
    for other in others:
        trainings, patients = trainings.intersection(other.index), patients.intersection(other.columns)
    tables = [scores[name].loc[trainings, patients].to_numpy() for name in names]
    found = gap_closed(tables[0], tables[1], tables[2], **options)
    return {"gap_closed": found and found.value, "gap_closed_ci95": found and list(found.ci95)}


def _groups(per_patient: pd.DataFrame, scores: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Mean and spread of each arm over the patients of each group that has a name."""
    if "group" not in per_patient:
        return {}
    group_of = per_patient.drop_duplicates("patient").set_index("patient")["group"].astype(object).fillna("")
    scored = _scored(per_patient)
    found: dict[str, Any] = {}
    for name in sorted(set(group_of) - {""}):
        members = group_of.index[group_of == name]
        arms = {}
        for arm, frame in scores.items():
            values = frame[frame.columns.intersection(members)].mean(axis=0, skipna=False).dropna()
            arms[arm] = {
                "patient_iou_mean": float(values.mean()) if len(values) else None,
                "patient_iou_std": float(values.std(ddof=1)) if len(values) > 1 else None,
                "worst_decile_iou": worst_decile(values.to_numpy()) if len(values) else None,
                "n_patients": len(values),
            }
        found[name] = {"n_patients": len(scored.intersection(members)), "arms": arms}
    return found


def _scored(per_patient: pd.DataFrame) -> set[str]:
    """Patients with a score: those without a labelled pixel have none."""
    return set(per_patient.loc[per_patient["iou"].notna(), "patient"])


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
        per_patient: columns arm, seed, patient, iou, dice; draw where annotated patients were drawn several times;
            group where patients have one; and `choice.CRITERIA` of the segmenter that the scores are of, the same for
            all its patients: the headline's two arms are chosen by them.
        arms: the arms to summarise, in the order they are to be shown.
        label_budget: number of annotated patients.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.
    """
    scores = {arm: trainings_by_patients(per_patient, arm) for arm in arms}
    criteria = {arm: choice.means(per_patient[per_patient["arm"] == arm]) for arm in arms}
    criterion, merits = choice.merits(criteria)
    options = {"resamples": resamples, "seed": seed}
    headline = headline_comparison(merits)
    pairs = default_comparisons(list(arms))
    pairs += [headline] if headline and headline not in pairs else []
    scored = len(_scored(per_patient))
    comparisons = [_comparison_entry(scores, arm, baseline, **options) for arm, baseline in pairs]
    for found, p_adjusted in zip(comparisons, holm([found["p_value"] for found in comparisons]), strict=True):
        found["p_adjusted"] = p_adjusted
    return {
        "label_budget": label_budget,
        "n_test_patients": scored,
        "n_unscored_patients": int(per_patient["patient"].nunique()) - scored,
        "seeds": sorted(int(value) for value in per_patient["seed"].unique()),
        "draws": draws_of(per_patient),
        "arms": {
            arm: _arm_entry(per_patient, arm, **options) | criteria[arm] | _gap_entry(scores, arm, **options)
            for arm in arms
        },
        "comparisons": comparisons,
        "headline": comparisons[pairs.index(headline)] if headline else None,
        "chosen_by": criterion,
        "groups": _groups(per_patient, scores),
    }
