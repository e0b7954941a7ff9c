"""The report on what was run: patients by role, time a stage, and the settings that were in force."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stedm import files
from stedm.stages.report_evidence import Evidence, json_of
from stedm.stages.sampling_settings import in_force

STAGES = ("data", "autoencoder", "diffusion", "control", "few_step", "synthetic", "segmentation", "evaluation")
MARKERS = ("fingerprint.json", "filter.json", "measure.json")
"""What a stage leaves when it is done; filter and measures have their own, for they share a folder."""
SETTINGS = {
    "size": "size",
    "seed": "seed",
    "patch width, px": "prepare.patch_px",
    "label budget, patients": "split.label_budget",
    "label budgets": "experiment.budgets",
    "draws of annotated patients": "experiment.draws",
    "folds": "experiment.folds",
    "unlabelled share": "diffusion.unlabelled_share",
    "style set": "diffusion.style_set",
    "images per style set": "diffusion.style_images",
    "style encoder": "diffusion.style_encoder",
    "aggregation": "diffusion.aggregation",
    "diffusion steps": "diffusion.steps",
    "synthetic images": "generate.images",
    "layouts drawn": "generate.layouts",
    "styles drawn": "generate.styles",
    "generator": "generate.generator",
    "solver": "generate.solver",
    "NFE": "generate.nfe",
    "guidance": "generate.guidance",
    "layout guidance": "generate.layout_guidance",
    "style guidance": "generate.style_guidance",
    "grain": "generate.grain",
    "bands": "generate.bands",
    "filter: least agreement": "filter.min_agreement",
    "segmenter encoder": "segmentation.encoder",
    "segmenter steps": "segmentation.steps",
    "synthetic share": "segmentation.synthetic_share",
    "segmenter seeds": "segmentation.seeds",
}
"""Label in the report -> key of the config."""


def settings(evidence: Evidence) -> dict[str, str]:
    """Settings in force by their labels; what `generate` leaves to the generator comes from its model folder."""
    generate = evidence.config.get("generate") or {}
    folder = "few_step" if generate.get("generator") == "few-step" else "diffusion"
    own = (json_of(evidence.run / folder / "model_index.json") or {}).get("sampling") or {}
    config = {**evidence.config, "generate": {**generate, **in_force(own, generate)}, "experiment": evidence.experiment}
    if evidence.budgets:
        config["split"] = None  # the budgets stand in its place
        config["experiment"] = {**evidence.experiment, "budgets": list(evidence.budgets)}

    def value(key: str) -> Any:
        return functools.reduce(lambda node, part: (node or {}).get(part), key.split("."), config)

    found = {label: value(key) for label, key in SETTINGS.items()}
    return {label: _worded(setting) for label, setting in found.items() if setting not in (None, [])}


def _worded(setting: Any) -> str:
    if isinstance(setting, list):
        return ", ".join(map(_worded, setting))
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def data_source(config: Mapping[str, Any]) -> dict[str, str]:
    """Names of the cohort's table, or of both laboratories', and the licence of the images, in words."""
    section = config.get("cohort") or {}
    tables = [Path(part["table"]).name for part in (section, section.get("target") or {}) if part.get("table")]
    return {
        "table": " and ".join(tables) or "the procedural cohort that stedm draws itself",
        "licence": section.get("licence") or "not stated",
    }


def times(parts: Sequence[Path]) -> list[dict[str, Any]]:
    """Sum the seconds each stage took; the parts of a stage (filter, arms and seeds) count towards it.

    What several parts share was done once, and counts once.
    """
    found = []
    others = sorted({path.name for part in parts for path in part.iterdir() if path.is_dir()} - {*STAGES, "report"})
    for stage in (*STAGES, *others):
        markers = [path for part in parts for name in MARKERS for path in sorted((part / stage).rglob(name))]
        done = {content.get("fingerprint"): content.get("seconds") for content in map(files.read_json, markers)}
        known = [float(value) for value in done.values() if value is not None]
        if known:
            found.append({"stage": stage.replace("_", "-"), "seconds": sum(known)})
    longest = max((row["seconds"] for row in found), default=0.0)
    return [{**row, "share": row["seconds"] / longest if longest else 0.0} for row in found]
