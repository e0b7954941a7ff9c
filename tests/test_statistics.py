"""Means, intervals and paired comparisons: closed forms and coverage."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stedm.evaluation.bootstrap import ratio_interval
from stedm.evaluation.comparisons import default_comparisons, headline_comparison
from stedm.evaluation.statistics import (
    gap_closed,
    holm,
    paired_bootstrap,
    summarise,
    summary_table,
)
from stedm.evaluation.trainings import trainings_by_patients


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


@pytest.mark.parametrize("patients", [1, 2, 4])
def test_few_patients_are_no_certainty_however_they_agree(patients):
    found = paired_bootstrap(np.full((3, patients), 0.6) + np.arange(patients) / 100, np.full((3, patients), 0.5))
    assert found.ci95[0] > 0 and found.p_value == 0.5 ** (patients - 1)


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


def test_nothing_is_found_too_often_where_there_is_nothing():
    """24 patients, 3 seeds, crossed effects without a difference: p below 0.05 in about one of twenty tables."""
    rng, found, trials = np.random.default_rng(7), 0, 400
    for trial in range(trials):
        effects = rng.normal(0, 1, 24) + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 0.5, (3, 24))
        found += paired_bootstrap(effects, np.zeros((3, 24)), resamples=400, seed=trial).p_value < 0.05
    assert 0.01 <= found / trials <= 0.09


def test_holm_equals_a_table_computed_by_hand():
    # Sorted .01 .02 .03 .04 are multiplied by 4, 3, 2, 1; the last two may not fall below .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == [0.03] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_value_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= min(1, len(p_values) * p) + 1e-12 for p, a in zip(p_values, adjusted, strict=True))
    assert [adjusted[k] for k in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def test_gap_closed_is_exact_where_every_patient_closes_the_same_share():
    rng = np.random.default_rng(0)
    baseline, gap = rng.normal(0.7, 0.05, (3, 20)), rng.uniform(0.05, 0.2, (3, 20))
    found = gap_closed(baseline + 0.25 * gap, baseline, baseline + gap, resamples=500)
    assert found.value == pytest.approx(0.25) and found.ci95 == pytest.approx((0.25, 0.25))
    for arm, share in ((baseline, 0), (baseline + gap, 1), (baseline - gap, -1)):
        found = gap_closed(arm, baseline, baseline + gap, resamples=500)
        assert (found.value, *found.ci95) == pytest.approx((share, share, share))


def test_gap_that_may_not_be_there_has_no_share():
    rng = np.random.default_rng(0)
    baseline = rng.normal(0.7, 0.05, (3, 20))
    assert gap_closed(baseline, baseline, baseline) is None
    assert gap_closed(baseline, baseline, baseline - 0.1) is None
    assert gap_closed(baseline, baseline, baseline + rng.normal(0.001, 0.05, (3, 20))) is None
    with pytest.raises(ValueError, match="differ"):
        gap_closed(baseline, baseline, baseline[:, :5])
    with pytest.raises(ValueError, match="no patient"):
        gap_closed(np.full((1, 2), np.nan), np.zeros((1, 2)), np.ones((1, 2)))


def test_interval_of_the_gap_closed_covers_the_truth():
    """Patients differ in both the gap and what is gained of it; seeds add to either."""
    rng, covered, trials = np.random.default_rng(11), 0, 200
    for trial in range(trials):
        gap = 0.2 + rng.normal(0, 0.1, 30) + rng.normal(0, 0.02, (4, 30))
        gain = 0.1 + 0.3 * (gap - 0.2) + rng.normal(0, 0.05, 30) + rng.normal(0, 0.01, (4, 1))
        low, high = gap_closed(gain, np.zeros((4, 30)), gap, resamples=400, seed=trial).ci95
        covered += low <= 0.5 <= high
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
    assert default_comparisons(["real+stain", "full"]) == []  # the ceiling is no arm to beat


def test_ours_is_compared_with_what_could_take_its_place():
    others = ["unfiltered", "unstyled", "annotated-only", "consistency", "mean-teacher", "self-training", "transfer"]
    arms = [f"real+stain+{other}" for other in (*others, "synthetic")]
    assert default_comparisons(arms) == [("real+stain+synthetic", arm) for arm in arms[:-1]]
    assert default_comparisons(["real+stain+unfiltered", "real+synthetic", "real+stain"]) == [
        ("real+stain+unfiltered", "real+stain")
    ]
    both = ["real+stain+consistency", "real+stain+synthetic+consistency", "real+stain+unfiltered+consistency"]
    assert sorted(default_comparisons(both)) == [(both[1], both[0]), (both[1], both[2]), (both[2], both[0])]


def test_the_second_round_is_ours_and_is_compared_with_the_first():
    arms = ["real+stain", "real+stain+transfer", "real+stain+synthetic", "real+stain+second-round"]
    first, again = arms[2:]
    assert default_comparisons(arms) == [
        ("real+stain+transfer", "real+stain"),
        (first, "real+stain"),
        (again, "real+stain"),
        (first, "real+stain+transfer"),
        (again, "real+stain+transfer"),
        (again, first),
    ]
    assert headline_comparison({"real+stain": 0.7, first: 0.71, again: 0.72}) == (again, "real+stain")


def test_headline_is_chosen_among_ours_and_among_those_without_any_synthetic_images():
    scores = {"real": 0.6, "real+stain": 0.7, "real+synthetic": 0.65, "real+stain+synthetic": 0.64}
    assert headline_comparison(scores) == ("real+synthetic", "real+stain")
    assert headline_comparison(scores | {"real+stain+unstyled": 0.8}) == ("real+synthetic", "real+stain")
    assert headline_comparison({"real": 0.6, "real+stain": 0.7}) is None
    assert headline_comparison({}) is None


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


def test_summary_does_not_depend_on_the_order_of_the_patients():
    scores = np.random.default_rng(0).random(30)
    assert summarise(scores) == summarise(scores[::-1])


def test_pivot_is_sorted_and_keeps_gaps(per_patient):
    frame = trainings_by_patients(per_patient.drop(per_patient.index[0]), "real")
    assert frame.shape == (2, 12) and frame.index.tolist() == [0, 1] and frame.columns.is_monotonic_increasing


def test_of_several_draws_a_training_is_a_draw_with_the_mean_of_its_seeds(per_patient):
    draws = [per_patient.assign(draw=draw, iou=per_patient["iou"] + 0.1 * draw) for draw in range(3)]
    draws[2] = draws[2][(draws[2]["seed"] == 0) | (draws[2]["patient"] != draws[2]["patient"].iloc[0])]
    table = pd.concat(draws)
    one, frame = (trainings_by_patients(rows, "real") for rows in (per_patient, table))
    assert one.index.name == "seed" and frame.index.tolist() == [0, 1, 2]
    np.testing.assert_allclose(frame.loc[1], one.mean() + 0.1)
    assert frame.loc[2].isna().sum() == 1
    summary = summary_table(table, ["real", "real+stain"], label_budget=4, resamples=500)
    assert summary["draws"] == [0, 1, 2] and summary["seeds"] == [0, 1]
    by_draw = summary["arms"]["real"]["iou_by_draw"]
    assert by_draw["1"] - by_draw["0"] == pytest.approx(0.1)


def test_an_interval_over_draws_holds_what_the_draws_differ_by():
    """Seeds agree, draws do not: pooled as if all were seeds, the interval would be too sure of itself."""
    patients = np.random.default_rng(0).normal(size=40) * 0.01
    rows = [
        {"arm": arm, "seed": seed, "draw": draw, "patient": k, "iou": 0.5 + score + (arm == "b") * (0.05 * draw - 0.02)}
        for arm in "ab"
        for seed in range(5)
        for draw in range(3)
        for k, score in enumerate(patients)
    ]
    table = pd.DataFrame(rows)
    crossed = paired_bootstrap(*(trainings_by_patients(table, arm).to_numpy() for arm in "ba"))
    pooled = [table[table["arm"] == arm].pivot(index=["draw", "seed"], columns="patient", values="iou") for arm in "ba"]
    assert crossed.ci95[0] < 0 < crossed.ci95[1]
    assert crossed.delta == pytest.approx(0.03)
    assert paired_bootstrap(*(frame.to_numpy() for frame in pooled)).ci95[0] > 0


def test_summary_table_has_the_contracted_keys_and_no_nan(per_patient):
    summary = summary_table(per_patient, ["real", "real+stain"], label_budget=4, resamples=500)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["label_budget"] == 4 and summary["n_test_patients"] == 12 and summary["seeds"] == [0, 1]
    keys = {"patient_iou_mean", "patient_iou_std", "worst_decile_iou", "patient_dice_mean", "ci95"}
    keys |= {"iou_by_seed", "validation_iou", "restained_iou", "gap_closed", "gap_closed_ci95"}
    assert all(set(arm) == keys for arm in summary["arms"].values())
    (comparison,) = summary["comparisons"]
    assert set(comparison) == {"arm", "baseline", "delta_iou", "ci95", "p_value", "p_adjusted"}
    means = {arm: value["patient_iou_mean"] for arm, value in summary["arms"].items()}
    assert comparison["delta_iou"] == pytest.approx(means["real+stain"] - means["real"])
    assert comparison["ci95"][0] < comparison["delta_iou"] < comparison["ci95"][1]
    assert np.mean(list(summary["arms"]["real"]["iou_by_seed"].values())) == pytest.approx(means["real"])
    assert summary["headline"] is None and summary["groups"] == {}


def _levels(levels: dict[str, float]) -> pd.DataFrame:
    """Arms that differ by constants: patients 0 to 9, of which two are `ihc`, seeds 0 and 1."""
    noise = np.random.default_rng(0).normal(0, 0.05, 10)
    return pd.DataFrame(
        {"arm": arm, "seed": seed, "patient": f"p{p}", "group": "ihc" if p < 2 else "he", "iou": level + noise[p]}
        for arm, level in levels.items()
        for seed in (0, 1)
        for p in range(10)
    ).assign(dice=0.5)


def test_headline_follows_validation_not_test_patients_and_joins_the_table():
    levels = {"real+synthetic": 0.9, "real+stain+synthetic": 0.7, "real": 0.5, "real+stain+consistency": 0.6}
    validation = {"real+synthetic": 0.1, "real+stain+synthetic": 0.3, "real": 0.1, "real+stain+consistency": 0.2}

    def summary_of(*arms: str) -> dict:
        table = _levels(levels)
        return summary_table(
            table.assign(validation_iou=table["arm"].map(validation)), arms, label_budget=4, resamples=200
        )

    summary = summary_of(*levels)
    headline = summary["headline"]
    assert (headline["arm"], headline["baseline"]) == ("real+stain+synthetic", "real+stain+consistency")
    assert headline["delta_iou"] == pytest.approx(0.1) and headline in summary["comparisons"]
    joined = summary_of("real", "real+stain+synthetic")
    assert joined["headline"]["baseline"] == "real" and len(joined["comparisons"]) == 1
    assert joined["arms"]["real"]["validation_iou"] == pytest.approx(0.1) and joined["chosen_by"] == "validation_iou"
    # With another laboratory its stains decide:
    steady = _levels(levels).assign(validation_iou=0.5, restained_iou=lambda table: table["iou"])
    other = summary_table(steady, list(levels), label_budget=4, resamples=200)
    assert other["chosen_by"] == "restained_iou"
    assert (other["headline"]["arm"], other["headline"]["baseline"]) == ("real+synthetic", "real+stain+consistency")
    # A pair that no rule but the headline's asks for:
    lone = summary_of("real+synthetic", "real+stain+consistency")
    assert lone["comparisons"] == [lone["headline"]] and lone["headline"]["p_adjusted"] == lone["headline"]["p_value"]


def test_adjusted_p_values_are_holms_over_the_whole_table():
    levels = {"real": 0.5, "real+stain": 0.5, "real+synthetic": 0.6, "real+stain+synthetic": 0.7}
    comparisons = summary_table(_levels(levels), list(levels), label_budget=4, resamples=200)["comparisons"]
    assert [c["p_adjusted"] for c in comparisons] == holm([c["p_value"] for c in comparisons])
    assert any(c["p_adjusted"] > c["p_value"] for c in comparisons)


def test_gap_closed_of_an_arm_half_way_to_the_ceiling():
    levels = {"real+stain": 0.5, "real+stain+synthetic": 0.6, "full": 0.7}
    arms = summary_table(_levels(levels), list(levels), label_budget=4, resamples=200)["arms"]
    shares = {arm: arms[arm]["gap_closed"] for arm in arms}
    assert shares == pytest.approx({"real+stain": 0, "real+stain+synthetic": 0.5, "full": 1})
    assert arms["real+stain+synthetic"]["gap_closed_ci95"] == pytest.approx([0.5, 0.5])
    without = summary_table(_levels(levels), ["real+stain"], label_budget=4, resamples=200)["arms"]["real+stain"]
    assert without["gap_closed"] is None and without["gap_closed_ci95"] is None


def test_groups_are_summarised_over_their_own_patients():
    table = _levels({"real": 0.5})
    groups = summary_table(table, ["real"], label_budget=4, resamples=200)["groups"]
    assert {name: found["n_patients"] for name, found in groups.items()} == {"he": 8, "ihc": 2}
    of_group = table[(table["group"] == "he") & (table["seed"] == 0)]["iou"]
    found = groups["he"]["arms"]["real"]
    assert found["patient_iou_mean"] == pytest.approx(of_group.mean())
    assert found["patient_iou_std"] == pytest.approx(of_group.std(ddof=1)) and found["n_patients"] == 8
    assert found["worst_decile_iou"] == pytest.approx(of_group.min())  # a tenth of eight: one patient
    nameless = summary_table(table.assign(group=np.nan), ["real"], label_budget=4, resamples=200)
    assert nameless["groups"] == {}
    table.loc[table["patient"] != "p0", "iou"] = np.nan
    summary = summary_table(table, ["real"], label_budget=4, resamples=200)
    assert (summary["n_test_patients"], summary["n_unscored_patients"]) == (1, 9)
    lonely = summary["groups"]
    assert {name: found["n_patients"] for name, found in lonely.items()} == {"he": 0, "ihc": 1}
    keys = ("patient_iou_mean", "patient_iou_std", "worst_decile_iou")
    assert lonely["he"]["arms"]["real"] == {**dict.fromkeys(keys), "n_patients": 0}
    assert lonely["ihc"]["arms"]["real"]["patient_iou_std"] is None


def test_interval_of_a_ratio_is_that_of_the_means() -> None:
    b = np.array([1.0, 2.0, 4.0, 8.0])
    assert ratio_interval(0.5 * b, b) == pytest.approx((0.5, 0.5))
    rng = np.random.default_rng(0)
    far = rng.uniform(0.9, 1.1, 400)
    near = 0.4 * far + rng.normal(0, 0.1, 400)
    low, high = ratio_interval(near, far) or (0.0, 0.0)
    assert 0.38 < low < 0.4 < high < 0.42 and high - low == pytest.approx(4 * 0.1 / 20, rel=0.2)
    assert ratio_interval(np.array([0.4, np.nan, 0.6]), np.ones(3)) is not None
    assert ratio_interval(np.array([0.4, np.nan]), np.ones(2)) is None
    assert ratio_interval(np.ones(2), np.array([1.0, 0.0])) is None
