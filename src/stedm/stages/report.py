"""The report: one self-contained, printable HTML page and `summary.md`, from whatever a run folder holds."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml

from stedm import files
from stedm.config import ARMS
from stedm.errors import UserError
from stedm.stages import report_figures as figures
from stedm.stages import report_generation as generator
from stedm.stages import report_pictures as pictures
from stedm.stages import report_text as text
from stedm.stages.report_layouts import layouts_section

STAGES = ("data", "autoencoder", "diffusion", "control", "synthetic", "segmentation", "evaluation")
ROLES = (
    ("train", True, "training, annotated"),
    ("train", False, "training, unannotated"),
    ("val", None, "validation"),
    ("test", None, "test"),
    ("unseen", None, "never seen, for the generator's measures"),
)
SETTINGS = {
    "size": "size",
    "seed": "seed",
    "patch width, px": "prepare.patch_px",
    "label budget, patients": "split.label_budget",
    "unlabelled share": "diffusion.unlabelled_share",
    "style set": "diffusion.style_set",
    "images per style set": "diffusion.style_images",
    "style encoder": "diffusion.style_encoder",
    "aggregation": "diffusion.aggregation",
    "diffusion steps": "diffusion.steps",
    "layouts drawn": "generate.layouts",
    "styles drawn": "generate.styles",
    "solver": "generate.solver",
    "NFE": "generate.nfe",
    "guidance": "generate.guidance",
    "layout guidance": "generate.layout_guidance",
    "style guidance": "generate.style_guidance",
    "filter: least agreement": "filter.min_agreement",
    "segmenter encoder": "segmentation.encoder",
    "segmenter steps": "segmentation.steps",
    "synthetic share": "segmentation.synthetic_share",
}


def _json(path: Path) -> Any:
    return files.read_json(path) if path.is_file() else None


def _table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    # Patients named 0012 stay 0012.
    return (
        pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"patient": str, "group": str})
    )


def _pictures(folder: Path, pattern: str, *, most: int = 6) -> list[pictures.Picture]:
    """Inline the folder's pictures; of too many, evenly spaced ones with the first and the last."""
    paths = sorted(folder.glob(pattern))
    if len(paths) > most:
        paths = [paths[round(place)] for place in np.linspace(0, len(paths) - 1, most)]
    return pictures.inline_files(paths)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    def value(key: str) -> Any:
        found: Any = functools.reduce(lambda node, part: (node or {}).get(part), key.split("."), config)
        return f"{found:g}" if isinstance(found, float) else found

    return {label: value(key) for label, key in SETTINGS.items() if value(key) is not None}


def _cohort(patches: pd.DataFrame | None) -> list[dict[str, Any]] | None:
    """Count patients, slides, patches and groups by role."""
    if patches is None:
        return None
    rows = []
    for split, annotated, role in ROLES:
        members = patches[patches["split"] == split]
        if annotated is not None:
            members = members[members["annotated"] == annotated]
        if members.empty and split == "unseen":
            continue
        groups = members.groupby("group")["patient"].nunique() if "group" in members else pd.Series(dtype=int)
        rows.append(
            {
                "role": role,
                "patients": members["patient"].nunique(),
                "slides": len(members[["patient", "slide"]].drop_duplicates()),
                "patches": len(members),
                "groups": ", ".join(f"{name} {number}" for name, number in groups.items() if name),
            }
        )
    return rows


def _times(run: Path) -> list[dict[str, Any]]:
    """Sum the seconds each stage took; the parts of a stage (filter, arms and seeds) count towards it."""
    found = []
    for stage in STAGES:
        parts = [files.read_json(path).get("seconds") for path in sorted((run / stage).rglob("fingerprint.json"))]
        seconds = [float(part) for part in parts if part is not None]
        if seconds:
            found.append({"stage": stage, "seconds": sum(seconds)})
    longest = max((row["seconds"] for row in found), default=0.0)
    return [{**row, "share": row["seconds"] / longest if longest else 0.0} for row in found]


def _means_by(per_patient: pd.DataFrame, arms: Sequence[str], columns: Mapping[str, pd.Series]) -> dict[str, Any]:
    """Average over seeds, then over patients: {"columns": [...], "rows": {arm: [mean or None, ...]}}."""
    rows = {}
    for arm in arms:
        of_arm = per_patient["arm"] == arm
        means = [values[of_arm].groupby(per_patient["patient"]).mean().mean() for values in columns.values()]
        rows[arm] = [None if pd.isna(mean) else float(mean) for mean in means]
    return {"columns": list(columns), "rows": rows}


def _breakdowns(per_patient: pd.DataFrame, arms: Sequence[str]) -> dict[str, Any]:
    """Mean IoU of each arm by class and by group."""
    by_class = {name.removeprefix("iou_"): per_patient[name] for name in per_patient if str(name).startswith("iou_")}
    groups = per_patient["group"].fillna("") if "group" in per_patient else pd.Series("", index=per_patient.index)
    sizes = per_patient.groupby(groups)["patient"].nunique()
    by_group = {f"{name} ({sizes[name]})": per_patient["iou"].where(groups == name) for name in sizes.index if name}
    return {
        "by_class": _means_by(per_patient, arms, by_class),
        "by_group": _means_by(per_patient, arms, by_group) if len(by_group) > 1 else None,
    }


def _segmentation(run: Path, summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    per_patient = _table(run / "evaluation" / "per_patient.csv")
    if summary is None or per_patient is None:
        return None
    if "budget" in per_patient:  # of several label budgets, the main one
        per_patient = per_patient[per_patient["budget"] == summary["label_budget"]]
    arms, pairs = list(summary["arms"]), text.synthesis_comparisons(summary)
    best = {
        key: operator_(arm[key] for arm in summary["arms"].values())
        for key, operator_ in (
            ("patient_iou_mean", max),
            ("patient_iou_std", min),
            ("worst_decile_iou", max),
            ("patient_dice_mean", max),
        )
    }
    comparisons = summary["comparisons"]
    return {
        "best": best,
        "arms_figure": figures.arms_figure(per_patient, summary["arms"]),
        "paired_figure": figures.paired_figure(per_patient, pairs) if pairs else None,
        "comparisons_figure": figures.comparisons_figure(comparisons) if comparisons else None,
        **_breakdowns(per_patient, arms),
    }


def _filtered(run: Path, manifest: pd.DataFrame | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    if manifest is None or not {"agreement", "keep"} <= set(manifest):
        return None
    keep = manifest["keep"].astype(bool)
    kinds = manifest.assign(keep=keep).groupby("layout_kind")["keep"].agg(["size", "sum"])
    ignored = manifest.get("ignored_fraction")
    return {
        "images": len(manifest),
        "kept": int(keep.sum()),
        "share": float(keep.mean()),
        "kinds": [
            {"kind": kind, "images": int(row["size"]), "kept": int(row["sum"])} for kind, row in kinds.iterrows()
        ],
        "ignored": None if ignored is None else float(ignored[keep].mean()),
        "agreement_figure": figures.histogram_figure(
            manifest["agreement"].to_numpy(float),
            label="agreement of segmenter and layout, mean IoU",
            limits=(0.0, 1.0),
            threshold=(config.get("filter") or {}).get("min_agreement"),
        ),
        "dropped": pictures.dropped_gallery(run, manifest),
    }


def _memorised(run: Path, manifest: pd.DataFrame | None, patches: pd.DataFrame | None) -> dict[str, Any] | None:
    if manifest is None or patches is None or not {"nearest_real", "nearest_real_distance"} <= set(manifest):
        return None
    distances = manifest["nearest_real_distance"].to_numpy(float)
    return {
        "pairs": pictures.nearest_gallery(run, manifest, patches),
        "figure": figures.histogram_figure(
            distances,
            label="distance to the nearest training image",
            limits=(0.0, max(1e-6, 1.05 * float(pd.Series(distances).max()))),
            threshold=None,
        ),
    }


def _curves(run: Path) -> dict[str, str | None]:
    """Plot each training's curves; empty where nothing was trained (a pretrained first stage), None without a table."""
    found = {}
    for stage in ("autoencoder", "diffusion"):
        table = _table(run / stage / "metrics.csv")
        found[stage] = figures.curves_figure({stage: [table]}) or "" if table is not None else None
    trainings: dict[str, list[pd.DataFrame]] = {}
    for path in sorted((run / "segmentation").glob("*/seed*/metrics.csv")):
        trainings.setdefault(path.parent.parent.name, []).append(pd.read_csv(path))
    in_order = sorted(trainings, key=lambda arm: (arm not in ARMS, ARMS.index(arm) if arm in ARMS else arm))
    found["segmentation"] = figures.curves_figure({arm: trainings[arm] for arm in in_order})
    return found


def _context(run: Path) -> dict[str, Any]:
    """Collect everything the template shows; what a run does not hold is None or empty."""
    config_text = (run / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(config_text) or {}
    summary, generation = (_json(run / "evaluation" / name) for name in ("summary.json", "generation.json"))
    validation = _json(run / "diffusion" / "validation.json")
    patches = _table(run / "data" / "patches.parquet")
    manifest = _table(run / "synthetic" / "manifest.parquet")
    labels = _json(run / "data" / "classes.json") or {"classes": []}
    filtered = _filtered(run, manifest, config)
    drawable = manifest is not None and patches is not None and {"keep", "style_patches"} <= set(manifest)
    return {
        "name": run.resolve().name,
        "answer": text.answer(summary),
        "more": text.second_sentence(summary),
        "warnings": [
            *text.warnings(summary, generation, filtered["share"] if filtered else None),
            *text.ignored_conditions(validation),
        ],
        "validation": validation,
        "summary": summary,
        "generation": generation,
        "environment": _json(run / "environment.json"),
        "config_text": config_text,
        "settings": _settings(config),
        "cohort": _cohort(patches),
        "times": _times(run),
        "colours": pictures.class_colours(labels["classes"]),
        "segmentation": _segmentation(run, summary),
        "grid": _pictures(run / "diffusion" / "samples", "style_by_layout.png"),
        "control_grid": _pictures(run / "control" / "samples", "style_by_layout.png"),
        "drawn": pictures.drawn_gallery(run, manifest, patches) if drawable else None,
        "layouts": layouts_section(_json(run / "synthetic" / "layouts.json")),
        "filtered": filtered,
        "memorised": _memorised(run, manifest, patches),
        "style_figure": generator.style_plot(generation),
        "style_table": generator.style_table(generation),
        "kid_label": generator.kid_label(generation),
        "style_counts": generator.style_counts(generation),
        "never_seen": _pictures(run / "evaluation" / "samples", "never_seen.png"),
        "reconstructions": _pictures(run / "autoencoder" / "samples", "*.png", most=2)[-1:],
        "samples": _pictures(run / "diffusion" / "samples", "step*.png"),
        "curves": _curves(run),
        "best_patients": _pictures(run / "evaluation" / "overlays", "best_*.png"),
        "worst_patients": _pictures(run / "evaluation" / "overlays", "worst_*.png"),
    }


def report(run: Path) -> None:
    """Write `report/index.html` (self-contained) and `summary.md` into a run folder.

    Args:
        run: a run folder. What its stages have not written yet is left out, with the reason in its place.

    Raises:
        UserError: if the folder is not a run folder.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml; name the folder given to `stedm run`")
    context = _context(run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": text.signed,
        "interval": text.interval,
        "p_text": text.p_text,
        "duration": text.duration,
    }
    page = environment.get_template("report.html.j2").render(context)
    files.write_text(run / "report" / "index.html", page)
    files.write_text(
        run / "summary.md", text.summary_markdown(context["name"], context["summary"], context["warnings"])
    )
