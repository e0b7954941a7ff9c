"""Patients' roles: annotated, unannotated, validation, test, unseen. Always whole patients, drawn by a seed."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from stedm.config import SplitConfig
from stedm.data.labels import nearest_name
from stedm.data.laboratories import SOURCE, TARGET
from stedm.data.patches import main_group
from stedm.errors import UserError

ROLES = ("train_annotated", "train_unannotated", "val", "test", "unseen")


def split_patients(cohort: pd.DataFrame, config: SplitConfig) -> dict[str, list[str]]:
    """Patients of each role, sorted: train_annotated, train_unannotated, val, test, unseen.

    The table's `split` column decides where it is filled in; otherwise validation and test patients are drawn from
    those with masks, in proportion to the groups. With `split.fold`, the patients with masks are dealt into folds, and
    those of one fold are tested; the split column must not say who is. Annotated patients are drawn from the training
    patients with masks (and `may_annotate`, if the table has it), group after group, or are `split.annotated`.
    Patients of validation and test without masks are left out: nothing could be measured on them. Unseen patients,
    whose images no stage trains on, are those the table names and `unseen_patients` of the training patients.

    The label budget moves nobody but annotated patients: those of a larger one hold those of a smaller one, and
    validation, test and unseen patients stay. With a target laboratory (column `laboratory`), annotated and validation
    patients are the source's, all others the target's: see `_split_laboratories`. Raises UserError saying what is
    lacking.
    """
    patients = _patients(cohort)
    if (patients["laboratory"] == TARGET).any():
        return _split_laboratories(patients, config)
    rng = np.random.default_rng(config.seed)
    named = _named(patients, config)
    if config.fold is not None:
        patients["split"] = _fold_split(patients, config)
    elif (patients["split"] == "").all():
        patients["split"] = _drawn_split(patients, named, config, rng)
    parts = {split: patients[patients["split"] == split] for split in ("train", "val", "test", "unseen")}
    for split in ("val", "test"):
        parts[split] = parts[split][parts[split]["has_mask"]]
        if parts[split].empty:
            raise UserError(
                f"no {split} patient with masks; give some in the column 'split' or set split.{split}_patients >= 1"
            )
    train = parts["train"]
    order = named or _order(train, rng)
    budget = len(named) or config.label_budget or 1
    unseen = _unseen(train.drop(index=named), order, config, rng, spare=len(train) - budget)
    hint = ", or lower split.unseen_patients" if unseen else ""
    order = _redrawn(train.drop(index=unseen), [name for name in order if name not in unseen], config)
    annotated = named or _annotated(order, config, hint=hint)
    unannotated = train.index.difference([*annotated, *unseen])
    held_out = (parts["val"].index, parts["test"].index, [*parts["unseen"].index, *unseen])
    return _roles(annotated, unannotated, *held_out)


def usable_patients(cohort: pd.DataFrame, config: SplitConfig) -> set[str]:
    """Everyone who could get a role with other settings but `keep_source`: whose images are worth cutting.

    Left out are patients of validation and test without masks, and of the source of two laboratories those it names for
    test or unseen, and those without masks unless `keep_source`.
    """
    patients = _patients(cohort)
    split, masked, source = patients["split"], patients["has_mask"], patients["laboratory"] == SOURCE
    if source.all():
        return set(patients.index[masked | ~split.isin(["val", "test"])])
    lent = ~source & (masked | (split != "test"))
    ours = source & ~split.isin(["test", "unseen"]) & (masked | (config.keep_source & (split != "val")))
    return set(patients.index[lent | ours])


def _roles(*members: Iterable[str]) -> dict[str, list[str]]:
    return {role: sorted(names) for role, names in zip(ROLES, members, strict=True)}


def _split_laboratories(patients: pd.DataFrame, config: SplitConfig) -> dict[str, list[str]]:
    """Roles when a target laboratory lends the test patients: none of its annotation is used to train or to choose.

    Source: validation and annotated patients, as in a single cohort; its others are left out, its test and unseen
    patients always, unless `keep_source` makes its training patients unannotated ones. Target: test patients are those
    its table names, or `test_patients` drawn from those with masks, or a fold of them; its others are unannotated
    training patients, `unseen_patients` of them set aside. The draws of the two do not depend on each other: the
    source's patients are the same in every fold, and the target's for every label budget.
    """
    source, target = (patients[patients["laboratory"] == name] for name in (SOURCE, TARGET))
    rng = np.random.default_rng(config.seed)
    named = _named(source, config)
    if (source["split"] == "").all():
        source = source.assign(split=_drawn_validation(source, named, config, rng))
    val = source[(source["split"] == "val") & source["has_mask"]]
    if val.empty:
        raise UserError(f"no val patient with masks in the {SOURCE} table; give some in its column 'split'")
    train = source[source["split"] == "train"]
    annotated = named or _annotated(_redrawn(train, _order(train, rng), config), config)
    rng = np.random.default_rng([config.seed, 1])
    test = _target_test_patients(target, config, rng)
    named_test = target["split"] == "test"  # those without masks are left out, as in a single cohort
    others = target[~target.index.isin(test) & ~named_test & (target["split"] != "unseen")]
    if others.empty:
        raise UserError(
            f"cohort.target has {len(target)} patient(s) and {len(test)} of them test: none is left to train on"
            " unannotated; lower split.test_patients or add patients without masks to its table"
        )
    unseen = _unseen(others, [], config, rng, spare=len(others))
    kept = train.index.difference(annotated) if config.keep_source else []
    return _roles(
        annotated,
        [*others.index.difference(unseen), *kept],
        val.index,
        test,
        [*target.index[target["split"] == "unseen"], *unseen],
    )


def _target_test_patients(target: pd.DataFrame, config: SplitConfig, rng: np.random.Generator) -> list[str]:
    """Test patients of the target laboratory: those its table names, a fold, or a draw in proportion to the groups."""
    masked = target[target["has_mask"]]
    if config.fold is not None:
        return list(_tested_in_fold(target, config, rng, "cohort.target.table"))
    if (target["split"] != "").any():
        test = list(masked.index[masked["split"] == "test"])
        if not test:
            raise UserError("no test patient with masks in the table of cohort.target; give some in its column 'split'")
        return test
    if not 1 <= config.test_patients <= len(masked):
        raise UserError(
            f"split.test_patients asks for {config.test_patients} and cohort.target has {len(masked)} patient(s) with"
            " masks; set it between 1 and that number"
        )
    return list(_in_proportion(_ranks(masked, rng), rng)[: config.test_patients])


def _drawn_validation(
    source: pd.DataFrame, named: list[str], config: SplitConfig, rng: np.random.Generator
) -> "pd.Series[str]":
    """val or train of each patient of the source."""
    if config.val_patients < 1:
        raise UserError("split.val_patients must be 1 or more when the table has no column 'split'")
    free = source[source["has_mask"] & ~source.index.isin(named)]
    kept = 0 if named else config.label_budget or 1
    if len(free) < config.val_patients + kept:
        raise UserError(
            f"{len(free)} patients with masks in the {SOURCE} table are too few for {config.val_patients} validation +"
            f" {kept} annotated; lower split.val_patients or split.label_budget"
        )
    drawn = _in_proportion(_ranks(free, rng), rng)[: config.val_patients]
    return pd.Series(np.where(source.index.isin(drawn), "val", "train"), index=source.index)


def _patients(cohort: pd.DataFrame) -> pd.DataFrame:
    """One row per patient: laboratory, split, group (`main_group`), has_mask, may_annotate."""
    has_mask = (cohort["mask"] != "") | (cohort["annotation"] != "")
    allowed = cohort["may_annotate"] if "may_annotate" in cohort else pd.Series(True, index=cohort.index)
    rows = cohort.assign(has_mask=has_mask, may_annotate=has_mask & allowed).groupby("patient", sort=True)
    return pd.DataFrame(
        {
            "laboratory": rows["laboratory"].first() if "laboratory" in cohort else SOURCE,
            "split": rows["split"].first(),
            "group": rows["group"].agg(main_group),
            "has_mask": rows["has_mask"].any(),
            "may_annotate": rows["may_annotate"].any(),
        }
    )


def _named(patients: pd.DataFrame, config: SplitConfig) -> list[str]:
    """`split.annotated`, checked: known training patients with masks."""
    names = list(dict.fromkeys(str(name) for name in config.annotated or []))
    for name in names:
        if name not in patients.index:
            raise UserError(f"split.annotated: no patient '{name}'; nearest: {nearest_name(name, patients.index)}")
        if not patients.loc[name, "has_mask"]:
            raise UserError(f"split.annotated: patient '{name}' has no mask; annotate it or name another")
        if patients.loc[name, "split"] in ("val", "test", "unseen"):
            raise UserError(f"split.annotated: patient '{name}' is in {patients.loc[name, 'split']}; name another")
    return names


def _ranks(patients: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The patients in random order, with `rank` in their group and the group's `place` in a random order of groups."""
    shuffled = patients.iloc[rng.permutation(len(patients))]
    groups = sorted(set(patients["group"]))
    place = dict(zip(groups, rng.permutation(len(groups)).tolist(), strict=True))
    return shuffled.assign(rank=shuffled.groupby("group").cumcount(), place=shuffled["group"].map(place))


def _in_proportion(ranked: pd.DataFrame, rng: np.random.Generator) -> pd.Index:
    """The patients in an order of which every beginning holds the groups in proportion, each group by `rank`."""
    relative = (ranked["rank"] + rng.random(len(ranked))) / ranked.groupby("group")["rank"].transform("size")
    return ranked.index[np.argsort(relative.to_numpy(), kind="stable")]


def _unseen(
    free: pd.DataFrame, order: list[str], config: SplitConfig, rng: np.random.Generator, *, spare: int
) -> list[str]:
    """`unseen_patients` of the training patients `free`, whatever the label budget, of whom `spare` are unannotated.

    Those with masks first, in proportion to the groups; of a group those who cannot be annotated, then the last to be.
    """
    if config.unseen_patients == 0:
        return []
    if config.unseen_patients >= spare:
        raise UserError(
            f"split.unseen_patients asks for {config.unseen_patients} of {spare} unannotated training patient(s),"
            " and one at least must be left to train on; lower it, or the label budget"
        )
    place = {name: k for k, name in enumerate(reversed(order), start=1)}
    masked, others = (_ranks(free[free["has_mask"] == has], rng) for has in (True, False))
    masked = masked.assign(place=[place.get(name, 0) for name in masked.index]).sort_values("place", kind="stable")
    masked = masked.assign(rank=masked.groupby("group").cumcount())
    return [*_in_proportion(masked, rng), *_in_proportion(others, rng)][: config.unseen_patients]


def _tested_in_fold(patients: pd.DataFrame, config: SplitConfig, rng: np.random.Generator, table: str) -> pd.Index:
    """Those of the patients with masks who are tested in fold j of n; only `rng` decides on the folds."""
    j, n = config.fold or (0, 1)
    if patients["split"].isin(["train", "val", "test"]).any():
        raise UserError(
            f"the column 'split' of {table} says who is tested: there is nothing to fold; remove it, or the folds"
        )
    free = patients[patients["has_mask"] & (patients["split"] == "")]
    if len(free) < n:
        raise UserError(f"{table} has {len(free)} patients with masks for {n} test folds; lower experiment.folds")
    return _ranks(free, rng).sort_values(["place", "rank"]).index[j::n]  # dealt out group after group


def _fold_split(patients: pd.DataFrame, config: SplitConfig) -> "pd.Series[str]":
    """train, val, test or unseen of each patient when fold j of n is tested; only `split.seed` decides on the folds."""
    j, n = config.fold or (0, 1)
    rng = np.random.default_rng([config.seed, n])
    test = _tested_in_fold(patients, config, rng, "cohort.table")
    rest = patients[patients["has_mask"] & (patients["split"] == "")].drop(index=test)
    if config.val_patients < 1:
        raise UserError("each fold needs a validation patient with masks; set split.val_patients >= 1")
    if len(rest) < config.val_patients + 1:
        raise UserError(
            f"fold {j} of {n} leaves {len(rest)} patients with masks, too few for {config.val_patients} validation"
            " patients and 1 annotated; lower split.val_patients or set more experiment.folds"
        )
    val = _in_proportion(_ranks(rest, rng), rng)[: config.val_patients]
    roles = patients["split"].replace("", "train")
    roles[test], roles[val] = "test", "val"
    return roles


def _drawn_split(
    patients: pd.DataFrame, named: list[str], config: SplitConfig, rng: np.random.Generator
) -> "pd.Series[str]":
    """train, val or test of each patient, validation and test in proportion to the groups."""
    if config.val_patients < 1 or config.test_patients < 1:
        raise UserError(
            "split.val_patients and split.test_patients must be 1 or more when the table has no column 'split'"
        )
    free = patients[patients["has_mask"] & ~patients.index.isin(named)]
    held_out = config.val_patients + config.test_patients
    kept = 0 if named else config.label_budget or 1
    if len(free) < held_out + kept:
        raise UserError(
            f"{len(free)} patients with masks are too few for {config.val_patients} validation +"
            f" {config.test_patients} test + {kept} annotated; lower split.val_patients, split.test_patients or"
            " split.label_budget"
        )
    drawn = _in_proportion(_ranks(free, rng), rng)[:held_out]
    roles = rng.permutation(["val"] * config.val_patients + ["test"] * config.test_patients)
    return pd.Series("train", index=patients.index).where(
        ~patients.index.isin(drawn), pd.Series(roles, index=drawn).reindex(patients.index)
    )


def _order(train: pd.DataFrame, rng: np.random.Generator) -> list[str]:
    """Who is annotated first, second, ...: group after group."""
    candidates = train[train["may_annotate"]]
    return list(_ranks(candidates, rng).sort_values(["rank", "place"], kind="stable").index)


def _redrawn(train: pd.DataFrame, order: list[str], config: SplitConfig) -> list[str]:
    """The first draw's `order`, or that of `split.draw`: no other role depends on it."""
    return _order(train, np.random.default_rng([config.seed, config.draw])) if config.draw else order


def _annotated(order: list[str], config: SplitConfig, *, hint: str = "") -> list[str]:
    """The first `label_budget` of `order`."""
    budget = len(order) if config.label_budget is None else config.label_budget
    if budget < 1 or len(order) < budget:
        raise UserError(
            f"split.label_budget asks for {budget} annotated patient(s), and {len(order)} training patient(s) have"
            " masks and may be annotated; annotate more patients or set split.label_budget between 1 and that number"
            + hint
        )
    return order[:budget]
