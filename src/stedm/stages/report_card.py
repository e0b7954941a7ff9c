"""The model card: what generator and segmenter of a run were made from, what they are for, and how good they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from stedm.config import FULL_ARM, ingredients
from stedm.evaluation import choice
from stedm.stages.report_evidence import Evidence, json_of
from stedm.stages.report_generation import style_counts, style_table
from stedm.stages.report_run import data_source, settings
from stedm.stages.report_tables import in_markdown, markdown_table
from stedm.stages.report_text import CHOSEN, UNKNOWN
from stedm.stages.roles import cohort


def model_card(template: jinja2.Template, evidence: Evidence, cautions: Sequence[str]) -> str:
    """Write the card of the generator and of the segmenter to ship, as Markdown.

    Args:
        template: `model_card.md.j2`.
        evidence: what the run holds; what it does not is named as not measured.
        cautions: the report's warnings, which are limits of the models.
    """
    summary = evidence.summary
    arm = shipped_arm(summary)
    part = "." if evidence.run == evidence.root else evidence.run.name
    seeds = summary["seeds"] if summary else []
    return template.render(
        name=in_markdown(evidence.name),
        prefix="" if part == "." else f"{part}/",
        runs=len(evidence.parts),
        own=_own_score(evidence, arm),
        classes=list(map(in_markdown, evidence.classes)),
        source={key: in_markdown(text) for key, text in data_source(evidence.config).items()},
        roles=_roles(evidence),
        settings=settings(evidence),
        generation=evidence.generation,
        generator_table=_generator_table(evidence.generation),
        generator_folder="few_step" if _is_few_step(evidence.config) else "diffusion",
        arm=arm,
        seed=seeds[0] if seeds else None,
        score=summary["arms"][arm] if summary and arm else None,
        summary=summary,
        chosen=" ".join(CHOSEN[(summary or {}).get("chosen_by", "validation_iou")]),
        restained=(summary or {}).get("chosen_by") == "restained_iou",
        trained_on=trained_on(arm) if arm else "",
        group_rows=_group_table(summary, arm),
        cautions=list(map(in_markdown, cautions)),
        environment=evidence.environment,
    )


def _own_score(evidence: Evidence, arm: str | None) -> dict[str, Any] | None:
    """Test patients and mean IoU of `arm` in the run whose weights the card names; None before it was evaluated."""
    own = json_of(evidence.run / "evaluation" / "summary.json")
    if own is None or arm not in own["arms"]:
        return None
    return {"patients": own["n_test_patients"], "iou": own["arms"][arm]["patient_iou_mean"]}


def shipped_arm(summary: Mapping[str, Any] | None) -> str | None:
    """The arm that `choice.merits` likes best; the ceiling `full` only if it is alone; None before an evaluation."""
    arms = (summary or {"arms": {}})["arms"]
    _, merits = choice.merits(arms)
    last = next((arm for arm in reversed(arms) if arm != FULL_ARM), next(iter(arms), None))
    return max(merits, key=merits.__getitem__) if merits else last


def trained_on(arm: str) -> str:
    """Say in words what a segmenter of an arm sees in training."""
    words = {
        "stain": "stain augmentation",
        "transfer": "annotated images re-stained towards unannotated training patients",
        "self-training": "unannotated training images labelled by segmenters trained without them",
        "mean-teacher": "a mean teacher on unannotated training images",
        "consistency": "consistency on unannotated training images",
        "synthetic": "synthetic images in the styles of unannotated training patients",
        "second-round": "synthetic images drawn once more, read and judged by segmenters trained with the first ones",
        "unfiltered": "the synthetic images without the filter",
        "unstyled": "synthetic images drawn without a style",
        "annotated-only": "synthetic images in the same styles by a generator trained on annotated patients only",
    }
    parts = ["annotated training images", *(text for name, text in words.items() if name in ingredients(arm))]
    return ", ".join(parts)


def _roles(evidence: Evidence) -> str:
    rows = cohort(evidence.patches) or []
    keys = ("patients", "slides", "patches")
    cells = [[row["role"], *(f"{row[key]:,}" for key in keys), row["groups"]] for row in rows]
    return markdown_table(["role", *keys, "groups"], cells) if rows else ""


def _generator_table(generation: Mapping[str, Any] | None) -> str:
    def cell(value: Any, digits: int) -> str:
        return UNKNOWN if value is None else f"{value:.{digits}f}"

    rows = style_table(generation)
    counts = style_counts(generation)
    header = ["figure", *(f"{name} styles ({counts[name]})" for name in ("seen", "unseen")), "real images"]
    keys = ("seen", "unseen", "real")
    cells = [[row["label"], *(cell(row[key], row["digits"]) for key in keys)] for row in rows]
    return markdown_table(header, cells) if rows else ""


def _group_table(summary: Mapping[str, Any] | None, arm: str | None) -> str:
    groups = (summary or {}).get("groups") or {}
    rows = []
    for name, found in groups.items():
        score = found["arms"][arm]
        values = (score[key] for key in ("patient_iou_mean", "patient_iou_std", "worst_decile_iou"))
        rows.append(
            [name, str(score["n_patients"]), *(UNKNOWN if value is None else f"{value:.3f}" for value in values)]
        )
    return markdown_table(["group", "test patients", "mean IoU", "std", "worst decile"], rows) if rows else ""


def _is_few_step(config: Mapping[str, Any]) -> bool:
    return (config.get("generate") or {}).get("generator") == "few-step"
