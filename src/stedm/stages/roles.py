"""Who has which role in a run: patients, slides and patches, counted for the terminal, the report and its card."""

from typing import Any

import pandas as pd

ROLES = (
    ("train", True, "training, annotated"),
    ("train", False, "training, unannotated"),
    ("val", None, "validation"),
    ("test", None, "test"),
    ("unseen", None, "never seen, for the generator's measures"),
)


def cohort(patches: pd.DataFrame | None) -> list[dict[str, Any]] | None:
    """Count patients, slides, patches and groups by role, and by laboratory where there are two."""
    if patches is None:
        return None
    rows = []
    for split, annotated, role in ROLES:
        members = patches[patches["split"] == split]
        if annotated is not None:  # of whole patients: an annotated one may have images without masks, too
            has_masks = members["patient"].isin(members.loc[members["annotated"], "patient"])
            members = members[has_masks == annotated]
        if members.empty and split == "unseen":
            continue
        if "laboratory" in patches and patches["laboratory"].nunique() > 1:
            rows += [_counts(f"{role}, {name} laboratory", part) for name, part in members.groupby("laboratory")]
        else:
            rows.append(_counts(role, members))
    return rows


def has_unannotated(patches: pd.DataFrame | None) -> bool:
    """Whether there is a training patient of whom no annotation was used: not yet known counts as yes."""
    if patches is None:
        return True
    training = patches[patches["split"] == "train"]
    return not training["patient"].isin(training.loc[training["annotated"], "patient"]).all()


def _counts(role: str, members: pd.DataFrame) -> dict[str, Any]:
    groups = members.groupby("group")["patient"].nunique() if "group" in members else pd.Series(dtype=int)
    return {
        "role": role,
        "patients": members["patient"].nunique(),
        "slides": len(members[["patient", "slide"]].drop_duplicates()),
        "patches": len(members),
        "groups": ", ".join(f"{name} {number}" for name, number in groups.items() if name),
    }
