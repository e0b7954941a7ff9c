"""Roles of patients: disjoint, complete, reproducible, only patients with masks measured."""

import dataclasses
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stedm.config import SplitConfig
from stedm.data.splits import ROLES, split_patients, usable_patients
from stedm.errors import UserError


def cohort(patients: int, *, unmasked: int = 0, split: list[str] | None = None, groups: int = 3) -> pd.DataFrame:
    """Two images a patient; the first `unmasked` patients have no masks."""
    rows = [
        {
            "patient": f"p{i:02d}",
            "mask": "" if i < unmasked else "m.png",
            "annotation": "",
            "split": split[i] if split else "",
            "group": f"g{i % groups}",
        }
        for i in range(patients)
        for _ in range(2)
    ]
    return pd.DataFrame(rows)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), unmasked=st.integers(0, 9), budget=st.integers(1, 5))
def test_roles_partition_the_patients(seed, unmasked, budget):
    table = cohort(24, unmasked=unmasked)
    config = SplitConfig(label_budget=budget, val_patients=3, test_patients=5, seed=seed)
    roles = split_patients(table, config)
    members = [patient for role in ROLES for patient in roles[role]]
    assert sorted(members) == sorted(set(table["patient"]))
    assert [len(roles[role]) for role in ("train_annotated", "val", "test")] == [budget, 3, 5]
    masked = set(table.loc[table["mask"] != "", "patient"])
    assert masked.issuperset(roles["train_annotated"] + roles["val"] + roles["test"])
    assert roles == split_patients(table.sample(frac=1, random_state=seed), config)


def test_unseen_patients_are_set_aside_from_the_unannotated_ones_and_move_nobody_else():
    table, config = cohort(40, unmasked=4), SplitConfig(label_budget=3, val_patients=3, test_patients=5)
    before, after = (split_patients(table, dataclasses.replace(config, unseen_patients=n)) for n in (0, 9))
    assert all(before[role] == after[role] for role in ("train_annotated", "val", "test")) and before["unseen"] == []
    assert sorted(after["train_unannotated"] + after["unseen"]) == before["train_unannotated"]
    masked = set(table.loc[table["mask"] != "", "patient"])
    assert len(after["unseen"]) == 9 and masked.issuperset(after["unseen"])
    group = table.groupby("patient")["group"].first()
    counts = pd.Series([group[name] for name in after["unseen"]]).value_counts()
    assert counts.max() - counts.min() <= 2
    with pytest.raises(UserError, match="unseen_patients asks for 29 of 29"):
        split_patients(table, dataclasses.replace(config, unseen_patients=29))


def test_table_may_name_unseen_patients_with_or_without_masks():
    table = cohort(7, split=["unseen", "train", "train", "val", "test", "unseen", "train"], unmasked=1)
    roles = split_patients(table, SplitConfig(label_budget=1, unseen_patients=1))
    assert {"p00", "p05"} < set(roles["unseen"]) and len(roles["unseen"]) == 3
    with pytest.raises(UserError, match="is in unseen"):
        split_patients(table, SplitConfig(annotated=["p05"]))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99), unmasked=st.integers(0, 9), unseen=st.integers(0, 8), fold=st.sampled_from([None, [1, 3]])
)
def test_a_label_budget_moves_nobody_but_the_annotated(seed, unmasked, unseen, fold):
    table = cohort(30, unmasked=unmasked, groups=4)
    table["may_annotate"] = table["patient"] != "p20"
    config = SplitConfig(val_patients=2, test_patients=5, unseen_patients=unseen, fold=fold, seed=seed)
    drawn = [split_patients(table, dataclasses.replace(config, label_budget=n)) for n in (1, 2, 3, None)]
    for smaller, larger in pairwise(drawn):
        assert set(smaller["train_annotated"]) < set(larger["train_annotated"])
        assert all(smaller[role] == larger[role] for role in ("val", "test", "unseen"))
    assert len(drawn[-1]["unseen"]) == unseen and not set(drawn[-1]["unseen"]) & set(drawn[-1]["train_annotated"])


@settings(max_examples=25)
@given(seed=st.integers(0, 99), unseen=st.integers(0, 8), fold=st.sampled_from([None, [1, 3]]), shifted=st.booleans())
def test_another_draw_moves_nobody_but_the_annotated(seed, unseen, fold, shifted):
    table = cohort(40, groups=4)
    table["may_annotate"] = table["patient"] != "p20"
    if shifted:
        table["laboratory"] = np.where(np.arange(80) < 50, "source", "target")
    config = SplitConfig(val_patients=2, test_patients=5, unseen_patients=unseen, fold=fold, seed=seed)
    roles = {
        (draw, budget): split_patients(table, dataclasses.replace(config, draw=draw, label_budget=budget))
        for draw in range(4)
        for budget in (3, 6)
    }
    assert len({tuple(found["train_annotated"]) for found in roles.values()}) > 4
    for (draw, _), found in roles.items():
        assert all(found[role] == roles[0, 3][role] for role in ("val", "test", "unseen"))
        assert set(roles[draw, 3]["train_annotated"]) < set(roles[draw, 6]["train_annotated"])
        assert not set(found["train_annotated"]) & {"p20", *found["val"], *found["test"], *found["unseen"]}
        groups = table.set_index("patient").loc[roles[draw, 3]["train_annotated"], "group"]
        assert groups.nunique() == 3


@settings(max_examples=25)
@given(seed=st.integers(0, 99), unmasked=st.integers(0, 9), n=st.integers(2, 7))
def test_every_patient_with_masks_is_tested_in_one_fold(seed, unmasked, n):
    table, masked = cohort(30, unmasked=unmasked), [f"p{i:02d}" for i in range(unmasked, 30)]
    config = SplitConfig(val_patients=2, label_budget=2, seed=seed)
    folds = [split_patients(table, dataclasses.replace(config, fold=[j, n])) for j in range(n)]
    assert sorted(name for roles in folds for name in roles["test"]) == masked
    for roles in folds:
        members = [patient for role in ROLES for patient in roles[role]]
        assert (
            sorted(members) == sorted(set(table["patient"])) and len(roles["val"]) == len(roles["train_annotated"]) == 2
        )
    sizes = [len(roles["test"]) for roles in folds]
    assert max(sizes) - min(sizes) <= 1
    other = dataclasses.replace(config, val_patients=3, label_budget=1, test_patients=1, unseen_patients=2, fold=[0, n])
    assert split_patients(table, other)["test"] == folds[0]["test"]


def test_folds_hold_the_groups_in_proportion():
    table = cohort(60, groups=3)
    group = table.groupby("patient")["group"].first()
    for j in range(5):
        tested = split_patients(table, SplitConfig(fold=[j, 5]))["test"]
        counts = pd.Series([group[name] for name in tested]).value_counts()
        assert len(counts) == 3 and counts.max() - counts.min() <= 1


def laboratories(source: int, target: int, **changes: object) -> pd.DataFrame:
    """Two laboratories; the first three patients of the target have no masks."""
    second = cohort(target, unmasked=3, **changes).assign(laboratory="target")
    second["patient"] = "t" + second["patient"]
    return pd.concat([cohort(source).assign(laboratory="source"), second], ignore_index=True)


@settings(max_examples=15)
@given(seed=st.integers(0, 99), budget=st.integers(1, 9), unseen=st.integers(0, 3))
def test_target_lends_test_and_unannotated_patients_only(seed, budget, unseen):
    table = laboratories(16, 12)
    config = SplitConfig(label_budget=budget, val_patients=4, test_patients=5, unseen_patients=unseen, seed=seed)
    roles = split_patients(table, config)
    counts = {role: len(names) for role, names in roles.items()}
    unannotated = 12 - 5 - unseen
    assert list(counts.values()) == [budget, unannotated, 4, 5, unseen]
    for role, names in roles.items():
        assert all(name.startswith("t") == (role not in ("train_annotated", "val")) for name in names)
    kept = split_patients(table, dataclasses.replace(config, keep_source=True))
    assert len(kept["train_unannotated"]) == unannotated + 16 - 4 - budget
    assert all(kept[role] == roles[role] for role in ROLES if role != "train_unannotated")
    less = split_patients(laboratories(14, 12), dataclasses.replace(config, label_budget=1))
    assert less["test"] == roles["test"]  # whoever is annotated, and however many


@settings(max_examples=15)
@given(seed=st.integers(0, 99), unseen=st.integers(0, 2), n=st.integers(2, 9), keep_source=st.booleans())
def test_budgets_and_folds_of_two_laboratories_do_not_touch_each_other(seed, unseen, n, keep_source):
    table = laboratories(14, 12)
    config = SplitConfig(val_patients=3, unseen_patients=unseen, keep_source=keep_source, seed=seed)
    drawn = {
        (budget, j): split_patients(table, dataclasses.replace(config, label_budget=budget, fold=[j, n]))
        for budget in (1, 3, None)
        for j in range(n)
    }
    assert sorted(name for j in range(n) for name in drawn[1, j]["test"]) == [f"tp{k:02d}" for k in range(3, 12)]
    for (budget, j), roles in drawn.items():
        assert roles["val"] == drawn[1, 0]["val"] and roles["train_annotated"] == drawn[budget, 0]["train_annotated"]
        assert all(roles[role] == drawn[1, j][role] for role in ("test", "unseen")) and len(roles["unseen"]) == unseen
        own = [[name for name in r["train_unannotated"] if name[0] == "t"] for r in (roles, drawn[1, j])]
        assert own[0] == own[1] and len(own[0]) == 12 - unseen - len(roles["test"])
        assert usable_patients(table, config).issuperset(name for names in roles.values() for name in names)
    sizes = [len(drawn[budget, 0]["train_annotated"]) for budget in (1, 3, None)]
    assert sizes == [1, 3, 14 - 3]  # `all`: every source patient but those of validation
    for smaller, larger in pairwise((1, 3, None)):
        assert set(drawn[smaller, 0]["train_annotated"]) < set(drawn[larger, 0]["train_annotated"])


def test_images_of_patients_who_can_have_no_role_are_not_needed():
    named = ["train", "val", "test", "unseen"] * 2  # the first four without masks
    one = cohort(8, unmasked=4, split=named)
    assert sorted(usable_patients(one, SplitConfig())) == ["p00", "p03", "p04", "p05", "p06", "p07"]
    both = pd.concat([one.assign(laboratory="source"), one.assign(laboratory="target", patient="t" + one["patient"])])
    usable = {keep: usable_patients(both, SplitConfig(keep_source=keep)) for keep in (False, True)}
    assert sorted(usable[False]) == ["p04", "p05", "tp00", "tp01", "tp03", "tp04", "tp05", "tp06", "tp07"]
    assert usable[True] - usable[False] == {"p00"}


def test_tables_of_two_laboratories_may_name_their_splits():
    named = ["train", "", "val", "test", "test", "unseen"]
    table = laboratories(8, 6, split=[name or "train" for name in named])
    roles = split_patients(table, SplitConfig(label_budget=2, val_patients=2))
    assert roles["test"] == ["tp03", "tp04"] and roles["unseen"] == ["tp05"]
    assert roles["train_unannotated"] == ["tp00", "tp01", "tp02"]
    source = table["laboratory"] == "source"
    table.loc[source, "split"] = table.loc[source, "patient"].map(lambda name: "val" if name < "p03" else "test")
    with pytest.raises(UserError, match=r"label_budget asks for 2 .* 0 training"):
        split_patients(table, SplitConfig(label_budget=2))


@pytest.mark.parametrize(
    ("table", "config", "expected"),
    [
        (laboratories(16, 6), SplitConfig(test_patients=4), "cohort.target has 3 patient"),
        (laboratories(16, 6, split=["train"] * 6), SplitConfig(), "no test patient with masks in the table of cohort"),
        (laboratories(16, 6), SplitConfig(test_patients=3, unseen_patients=3), "unseen_patients asks for 3 of 3"),
        (laboratories(16, 6), SplitConfig(test_patients=2, annotated=["tp04"]), "no patient 'tp04'"),
        (laboratories(9, 6), SplitConfig(test_patients=2), "9 patients with masks in the source table"),
        (laboratories(16, 6, split=["test"] * 6), SplitConfig(), "none is left to train on"),
        (laboratories(16, 6, split=["test"] * 6), SplitConfig(fold=[0, 2]), "'split' of cohort.target.table says who"),
        (laboratories(16, 6), SplitConfig(fold=[0, 4]), "cohort.target.table has 3 patients with masks for 4"),
    ],
)
def test_what_two_laboratories_lack_is_said(table, config, expected):
    with pytest.raises(UserError, match=expected):
        split_patients(table, config)


def test_another_seed_draws_other_patients():
    drawn = {tuple(split_patients(cohort(30), SplitConfig(test_patients=5, seed=seed))["test"]) for seed in range(5)}
    assert len(drawn) > 1


def test_groups_are_spread():
    table = cohort(60, groups=3)
    roles = split_patients(table, SplitConfig(label_budget=3, val_patients=12, test_patients=24))
    group = table.groupby("patient")["group"].first()
    assert len({group[name] for name in roles["train_annotated"]}) == 3
    held_out = pd.Series([group[name] for name in roles["val"] + roles["test"]]).value_counts()
    assert held_out.max() - held_out.min() <= 2


def test_table_split_and_may_annotate_are_obeyed():
    table = cohort(8, split=["train"] * 4 + ["val"] * 2 + ["test"] * 2)
    table["may_annotate"] = table["patient"].isin(["p01", "p02"])
    roles = split_patients(table, SplitConfig(label_budget=2))
    assert roles["train_annotated"] == ["p01", "p02"] and roles["train_unannotated"] == ["p00", "p03"]
    assert roles["val"] == ["p04", "p05"] and roles["test"] == ["p06", "p07"]
    with pytest.raises(UserError, match="label_budget asks for 3"):
        split_patients(table, SplitConfig(label_budget=3))


def test_validation_patients_without_masks_are_left_out():
    table = cohort(6, split=["val", "train", "train", "test", "test", "val"], unmasked=1)
    roles = split_patients(table, SplitConfig(label_budget=1))
    assert roles["val"] == ["p05"] and all("p00" not in names for names in roles.values())


def test_named_patients_are_annotated_and_never_held_out():
    roles = split_patients(cohort(12), SplitConfig(annotated=["p03", "p07"], val_patients=5, test_patients=5))
    assert roles["train_annotated"] == ["p03", "p07"] and roles["train_unannotated"] == []


@pytest.mark.parametrize(
    ("table", "config", "expected"),
    [
        (cohort(8), SplitConfig(val_patients=4, test_patients=4), "too few"),
        (cohort(8), SplitConfig(val_patients=0), "val_patients"),
        (cohort(40), SplitConfig(label_budget=0), "label_budget"),
        (cohort(40), SplitConfig(annotated=["p99"]), "no patient 'p99'"),
        (cohort(40, unmasked=3), SplitConfig(annotated=["p01"]), "no mask"),
        (cohort(3, split=["train", "train", "test"]), SplitConfig(label_budget=1), "no val patient"),
        (cohort(3, split=["train", "val", "test"], unmasked=1), SplitConfig(label_budget=1), "label_budget"),
        (cohort(3, split=["train", "val", "test"]), SplitConfig(annotated=["p01"]), "is in val"),
        (
            cohort(3, split=["train", "val", "test"]),
            SplitConfig(fold=[0, 2]),
            "'split' of cohort.table says who",
        ),
        (cohort(4), SplitConfig(fold=[0, 5], val_patients=1), "lower experiment.folds"),
        (cohort(4), SplitConfig(fold=[0, 2], val_patients=0), "val_patients >= 1"),
        (cohort(6), SplitConfig(fold=[0, 2], val_patients=3), "fold 0 of 2 leaves 3 patients"),
        (cohort(8), SplitConfig(val_patients=2, test_patients=2, unseen_patients=2, label_budget=3), "unseen_patients"),
    ],
)
def test_what_is_lacking_is_said(table, config, expected):
    with pytest.raises(UserError, match=expected):
        split_patients(table, config)
