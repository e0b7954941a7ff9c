"""One laboratory's table or two: the source lends annotation, the target unannotated and test patients."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from stedm.config import CohortConfig, TargetConfig
from stedm.data.cohort import read_cohort, resolve_labels, same_name
from stedm.data.labels import LabelMap
from stedm.errors import UserError

SOURCE, TARGET = "source", "target"
"""Values of the column `laboratory`."""


@dataclass(frozen=True)
class Laboratory:
    """A laboratory's config section and the rows of its table: those of `read_cohort` and the column `laboratory`."""

    name: str
    section: str
    config: CohortConfig | TargetConfig
    cohort: pd.DataFrame


def sections_of(config: CohortConfig) -> list[tuple[str, str, CohortConfig | TargetConfig]]:
    """Name, config section and options of the source and, where there is one, of the target."""
    target = [] if config.target is None else [(TARGET, "cohort.target", config.target)]
    return [(SOURCE, "cohort", config), *target]


def read_laboratories(config: CohortConfig, *, read: Callable[..., pd.DataFrame] = read_cohort) -> list[Laboratory]:
    """The tables of the source and, where there is one, of the target, checked unless `read` is `read_table`.

    The target's patients get `patient_prefix`, and its slides `target/`, since names of files repeat. Raises UserError
    as `read_cohort` does, and for a patient or an image that is in both tables.
    """
    laboratories = []
    for name, section, options in sections_of(config):
        cohort = read(options, section=section).assign(laboratory=name)
        if isinstance(options, TargetConfig):
            cohort["patient"] = options.patient_prefix + cohort["patient"]
            cohort["slide"] = f"{TARGET}/" + cohort["slide"]
        laboratories.append(Laboratory(name, section, options, cohort))
    for target in laboratories[1:]:
        _refuse_shared(laboratories[0], target)
    return laboratories


def joined(laboratories: list[Laboratory]) -> pd.DataFrame:
    """The rows of all tables, the source's first."""
    cohort = pd.concat([laboratory.cohort for laboratory in laboratories], ignore_index=True)
    if "may_annotate" in cohort:  # a table without the column forbids nothing
        cohort["may_annotate"] = cohort["may_annotate"].fillna(True).astype(bool)
    return cohort


def resolve_label_maps(laboratories: list[Laboratory]) -> list[LabelMap]:
    """Label map of each table, all with the classes of the first in the same order.

    Raises UserError as `resolve_labels` does, and naming the classes that one laboratory has and the other has not.
    """
    source, *others = laboratories
    first = resolve_labels(source.config, source.cohort, section=source.section)
    found = [first]
    for other in others:
        options = other.config if other.config.labels else source.config
        labels = resolve_labels(other.config, other.cohort, labels=options.labels, section=other.section)
        if set(labels.classes) != set(first.classes):
            raise UserError(
                f"{other.section}.labels: the classes are {', '.join(labels.classes)}, but {source.section}.labels has"
                f" {', '.join(first.classes)} ({_difference(first, labels)}); give both the same class names"
            )
        found.append(labels.ordered(first.classes))
    return found


def _difference(first: LabelMap, second: LabelMap) -> str:
    """Which classes only one of the two has."""
    missing = [name for name in first.classes if name not in second.classes]
    surplus = [name for name in second.classes if name not in first.classes]
    parts = [("missing", missing), ("not in the first", surplus)]
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)


def _refuse_shared(source: Laboratory, target: Laboratory) -> None:
    """A patient or an image of both tables would be trained on and tested on."""
    for column, fix in (
        (
            "patient",
            f"if they are different people, set {target.section}.patient_prefix, e.g. b-; if they are one, take the"
            " rows out of one table",
        ),
        ("image", "remove it from one of them"),
    ):
        same = os.path.realpath if column == "image" else same_name  # two links to one file are one image
        known = set(map(same, source.cohort[column]))
        shared = sorted(name for name in set(target.cohort[column]) if same(name) in known)
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise UserError(
                f"{target.config.table}: {column} '{shared[0]}'{more} is in {source.config.table} too; {fix}"
            )
