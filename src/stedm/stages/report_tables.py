"""The figures as tables: CSV files for a spreadsheet, and `summary.md` for a terminal."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.data.tables import write_csv
from stedm.files import atomic_folder
from stedm.stages.report_evidence import Evidence
from stedm.stages.report_generation import figures_by_group
from stedm.stages.report_text import (
    UNKNOWN,
    answer,
    budgets_sentence,
    count,
    interval,
    resampled,
    second_sentence,
    signed,
    trainings,
)


def write_tables(folder: Path, evidence: Evidence) -> None:
    """Write every table there is as `<name>.csv` into `folder`, which holds nothing else afterwards."""
    with atomic_folder(folder) as temporary:
        for name, table in tables(evidence).items():
            write_csv(table, temporary / f"{name}.csv")


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Tables arms, comparisons, groups, per_patient, generator, as far as the run holds what they show.

    The first three have a row for each label budget; per_patient is of the main one, IoU as the mean over seeds.
    """
    summary = evidence.summary
    found: dict[str, pd.DataFrame] = {}
    if summary is not None:
        by_budget = evidence.budgets or {summary["label_budget"]: summary}
        found["arms"] = pd.DataFrame([row for budget, part in by_budget.items() for row in _arm_rows(budget, part)])
        found["comparisons"] = pd.DataFrame(
            [
                {"label_budget": budget, **_flat(row)}
                for budget, part in by_budget.items()
                for row in part["comparisons"]
            ]
        )
        found["groups"] = pd.DataFrame([row for budget, part in by_budget.items() for row in _group_rows(budget, part)])
    if evidence.per_patient is not None:
        found["per_patient"] = _patients(evidence.per_patient, list(summary["arms"]) if summary else None)
    if evidence.generation is not None:
        found["generator"] = pd.DataFrame(figures_by_group(evidence.generation))
    return {name: table for name, table in found.items() if len(table)}


def _arm_rows(budget: int, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"label_budget": budget, "arm": arm, "n_test_patients": summary["n_test_patients"], **_flat(score)}
        for arm, score in summary["arms"].items()
    ]


def _group_rows(budget: int, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = summary.get("groups") or {}
    return [
        {"label_budget": budget, "group": name, "arm": arm, **score}
        for name, found in groups.items()
        for arm, score in found["arms"].items()
    ]


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Give both ends of an interval, and each seed, a column of its own."""
    row: dict[str, Any] = {}
    for key, value in entry.items():
        if key.endswith("ci95"):
            row[f"{key}_low"], row[f"{key}_high"] = value or (None, None)
        elif isinstance(value, Mapping):
            row |= {f"{key}_{name}": item for name, item in value.items()}
        else:
            row[key] = value
    return row


def _patients(per_patient: pd.DataFrame, arms: Sequence[str] | None) -> pd.DataFrame:
    """A row a patient, a column an arm."""
    means = per_patient.groupby(["patient", "arm"])["iou"].mean().unstack("arm")
    means = means.reindex(columns=list(arms or means.columns)).add_prefix("iou_")
    if "group" in per_patient:
        means.insert(0, "group", per_patient.groupby("patient")["group"].first())
    return means.rename_axis(columns=None).reset_index()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [list(map(in_markdown, header)), ["---"] * len(header), *(list(map(in_markdown, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def in_markdown(text: str) -> str:
    """The text with what would be HTML, or the border of a cell, written out."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("|", "\\|")


def arms_markdown(summary: Mapping[str, Any]) -> str:
    """Write the arms of a summary as a Markdown table."""
    rows = [
        [
            arm,
            f"{score['patient_iou_mean']:.3f}",
            f"{score['ci95'][0]:.3f} to {score['ci95'][1]:.3f}",
            f"{score['patient_iou_std']:.3f}",
            f"{score['worst_decile_iou']:.3f}",
            f"{score['patient_dice_mean']:.3f}",
        ]
        for arm, score in summary["arms"].items()
    ]
    return markdown_table(["arm", "mean IoU", "95 % interval", "std", "worst decile", "mean Dice"], rows)


def _comparisons_markdown(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{c['baseline']} → {c['arm']}",
            signed(c["delta_iou"]),
            interval(c["ci95"]),
            f"{c['p_value']:.4f}",
            f"{c['p_adjusted']:.4f}" if c.get("p_adjusted") is not None else UNKNOWN,
        ]
        for c in summary["comparisons"]
    ]
    return markdown_table(["comparison", "IoU difference", "95 % interval", "p", "p, corrected"], rows)


def summary_markdown(evidence: Evidence, cautions: Sequence[str]) -> str:
    """Write the short summary: answer, warnings, arms, comparisons; of each label budget where there are several."""
    summary, budgets = evidence.summary, evidence.budgets
    sentences = [answer(summary), second_sentence(summary), budgets_sentence(budgets)]
    parts = [f"# {in_markdown(evidence.name)}", " ".join(filter(None, sentences))]
    if cautions:
        parts.append("\n".join(f"- Warning: {in_markdown(caution)}" for caution in cautions))
    if summary is not None:
        for budget, of_budget in (budgets or {None: summary}).items():
            parts += [] if budget is None else ["## " + count(budget, "annotated patient")]
            parts.append(arms_markdown(of_budget))
            parts += [_comparisons_markdown(of_budget)] if of_budget["comparisons"] else []
        parts.append(
            f"Over patients, {trainings(summary)}; the intervals of comparisons are over {resampled(summary)}, the "
            "corrected p-values Holm's over the comparisons of a table."
        )
    return "\n\n".join(parts) + "\n"
