"""Means, intervals and paired comparisons: closed forms and coverage."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stedm.evaluation.statistics import (
    default_comparisons,
    paired_bootstrap,
    seeds_by_patients,
    summarise,
    summary_table,
)


def test_summary_of_known_numbers():
    values = np.array([np.arange(20), np.arange(20) + 2.0])
    found = summarise(values)
    assert found.mean == pytest.approx(10.5)
    assert found.std == pytest.approx(np.arange(20).std(ddof=1))
    assert found.worst_decile == pytest.approx((1 + 2) / 2)


def test_interval_has_the_closed_form_width_of_the_mean():
    values = np.random.default_rng(0).normal(size=(1, 200))
    low, high = summarise(values, resamples=20000).ci95
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / math.sqrt(200), rel=0.03)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_one_patient_has_no_nan_and_unscored_patients_are_left_out():
    found = summarise(np.array([[0.5], [0.7]]))
    assert (found.mean, found.std, found.worst_decile) == pytest.approx((0.6, 0, 0.6))
    assert found.ci95 == pytest.approx((0.6, 0.6))
    assert summarise(np.array([[0.5, np.nan, 0.7]])).mean == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no patient"):
        summarise(np.array([[np.nan]]))


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 1000))
def test_comparison_is_antisymmetric_and_zero_with_itself(seeds, patients, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, seeds, patients))
    forth, back = paired_bootstrap(a, b, resamples=200), paired_bootstrap(b, a, resamples=200)
    assert forth.delta == pytest.approx(-back.delta)
    assert forth.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    assert forth.p_value == back.p_value and 0 < forth.p_value <= 1
    same = paired_bootstrap(a, a, resamples=200)
    assert (same.delta, same.ci95, same.p_value) == (0, (0, 0), 1)


def test_shifting_every_patient_alike_is_certain():
    b = np.random.default_rng(0).normal(size=(3, 10))
    found = paired_bootstrap(b + 0.1, b, resamples=1000)
    assert found.delta == pytest.approx(0.1) and found.ci95 == pytest.approx((0.1, 0.1))
    assert found.p_value == pytest.approx(2 / 1001)


def test_p_value_agrees_with_the_normal_test():
    rng = np.random.default_rng(3)
    difference = rng.normal(size=(1, 300))
    difference += 1.8 * difference.std(ddof=1) / math.sqrt(300) - difference.mean()
    found = paired_bootstrap(difference, np.zeros_like(difference), resamples=20000)
    assert found.p_value == pytest.approx(math.erfc(1.8 / math.sqrt(2)), abs=0.015)


@pytest.mark.parametrize("seed_std", [0.0, 0.3])
def test_interval_covers_the_truth(seed_std):
    """24 patients, 5 seeds, crossed effects: close to 95 % of the intervals hold the true difference."""
    rng, covered, trials = np.random.default_rng(5), 0, 300
    for trial in range(trials):
        effects = rng.normal(0, 1, 24) + rng.normal(0, seed_std, (5, 1)) + rng.normal(0, 0.5, (5, 24))
        low, high = paired_bootstrap(effects + 0.4, np.zeros((5, 24)), resamples=400, seed=trial).ci95
        covered += low <= 0.4 <= high
    assert 0.9 <= covered / trials <= 0.99


def test_seed_to_seed_variance_widens_the_interval():
    patients = np.random.default_rng(0).normal(0, 0.01, (1, 30))
    steady = paired_bootstrap(np.repeat(patients, 3, 0), np.zeros((3, 30)))
    shaky = paired_bootstrap(patients + np.array([[-0.1], [0.0], [0.1]]), np.zeros((3, 30)))
    assert shaky.ci95[1] - shaky.ci95[0] > 5 * (steady.ci95[1] - steady.ci95[0])


def test_unpaired_shapes_are_refused():
    with pytest.raises(ValueError, match="differ"):
        paired_bootstrap(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="no patient"):
        paired_bootstrap(np.full((1, 2), np.nan), np.zeros((1, 2)))


def test_arms_are_compared_with_those_they_extend():
    arms = ["real", "real+stain", "real+synthetic", "real+stain+synthetic"]
    assert default_comparisons(arms) == [
        ("real+stain", "real"),
        ("real+synthetic", "real"),
        ("real+stain+synthetic", "real+stain"),
        ("real+stain+synthetic", "real+synthetic"),
        ("real+stain+synthetic", "real"),
    ]
    assert default_comparisons(["real"]) == []


@pytest.fixture
def per_patient() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    skill = {"real": 0.6, "real+stain": 0.7}
    rows = [
        {"arm": arm, "seed": seed, "patient": f"p{p:02d}", "iou": level + noise, "dice": level + noise + 0.1}
        for arm, level in skill.items()
        for seed in (1, 0)
        for p, noise in enumerate(rng.normal(0, 0.05, 12))
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_pivot_is_sorted_and_keeps_gaps(per_patient):
    frame = seeds_by_patients(per_patient.drop(per_patient.index[0]), "real")
    assert frame.shape == (2, 12) and frame.index.tolist() == [0, 1] and frame.columns.is_monotonic_increasing


def test_summary_table_has_the_contracted_keys_and_no_nan(per_patient):
    summary = summary_table(per_patient, ["real", "real+stain"], label_budget=4, resamples=500)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["label_budget"] == 4 and summary["n_test_patients"] == 12 and summary["seeds"] == [0, 1]
    keys = {"patient_iou_mean", "patient_iou_std", "worst_decile_iou", "patient_dice_mean", "ci95"}
    assert all(set(arm) == keys for arm in summary["arms"].values())
    (comparison,) = summary["comparisons"]
    assert set(comparison) == {"arm", "baseline", "delta_iou", "ci95", "p_value"}
    means = {arm: value["patient_iou_mean"] for arm, value in summary["arms"].items()}
    assert comparison["delta_iou"] == pytest.approx(means["real+stain"] - means["real"])
    assert comparison["ci95"][0] < comparison["delta_iou"] < comparison["ci95"][1]
