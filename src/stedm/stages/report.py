"""The report: one self-contained, printable HTML page, `summary.md`, tables and a model card, from a run's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from stedm import files
from stedm.arms import ARMS, OUR_SETS, SECOND_ROUND, synthetic_set
from stedm.errors import UserError
from stedm.stages import report_figures as figures
from stedm.stages import report_generation as generator
from stedm.stages import report_pictures as pictures
from stedm.stages import report_run, report_segmentation, report_synthetic, roles
from stedm.stages import report_text as text
from stedm.stages.report_alignment import alignments
from stedm.stages.report_budgets import budgets_section
from stedm.stages.report_card import model_card
from stedm.stages.report_evidence import Evidence, config_of, json_of, read_evidence, table_of
from stedm.stages.report_layouts import layouts_section
from stedm.stages.report_leaks import leaks
from stedm.stages.report_slides import slide_warnings, slides_section
from stedm.stages.report_tables import summary_markdown, write_tables
from stedm.stages.report_warnings import (
    folds_warning,
    ignored_conditions,
    unchecked_conditions,
    unlearned_classes,
    warnings,
)
from stedm.stages.run_folder import RunFolder


def report(run: Path) -> None:
    """Write `summary.md` and `report/`: index.html (self-contained), tables/*.csv, model_card.md.

    Args:
        run: a run folder, or an experiment's. What its stages have not written yet is left out, with the reason in its
            place.

    Raises:
        UserError: if the folder is not a run folder, or a file of it is damaged.
    """
    try:
        evidence = read_evidence(Path(run))
        cautions = _cautions(evidence)
        context = _context(evidence) | {"warnings": cautions}
        page = _templates(autoescape=True).get_template("report.html.j2").render(context)
        card = model_card(_templates(autoescape=False).get_template("model_card.md.j2"), evidence, cautions)
    except UserError:
        raise
    except Exception as error:  # all files of a run are read, and any of them may be damaged or gone
        reason = f"{type(error).__name__}: {files.reason_of(error)}"
        raise UserError(f"{run}: a file of the run is damaged or missing ({reason}); run the stage again") from error
    folder = evidence.root / "report"
    files.write_text(folder / "index.html", page)
    files.write_text(folder / "model_card.md", card)
    write_tables(folder / "tables", evidence)
    files.write_text(evidence.root / "summary.md", summary_markdown(evidence, cautions))


def _templates(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "signed": text.signed,
        "interval": text.interval,
        "p_text": text.p_text,
        "duration": text.duration,
        "closed_gap": text.closed_gap,
        "chosen_on": text.chosen_on,
        "trainings": text.trainings,
        "resampled": text.resampled,
        "forest": report_segmentation.forest,
        "best_of": report_segmentation.best_of,
    }
    return environment


def _cautions(evidence: Evidence) -> list[str]:
    """Every warning, leaks first; those of several runs once each, a generator's with the name of its run."""
    found = [
        caution
        for part in evidence.parts
        for caution in leaks(part / "data", table_of(part / "data" / "patches.parquet"))
    ]
    found += [caution for part in evidence.parts for caution in slide_warnings(part / "data")]
    found += unlearned_classes(evidence.patches, evidence.classes)
    if evidence.config.get("size") == "smoke":
        found.append("A run of size smoke: trained for a few steps, to see that all works. Its figures mean nothing.")
    found += warnings(evidence.summary, None, None)
    found += folds_warning(evidence.config, evidence.summary) if len(evidence.parts) > 1 else []
    for part in evidence.parts:
        which = "" if len(evidence.parts) == 1 else f"{part.name}: "
        found += [which + caution for caution in _generator_cautions(part)]
    return list(dict.fromkeys(found))


def _generator_cautions(run: Path) -> list[str]:
    asked = _sets_asked_for(config_of(run))
    sets = [name for name in OUR_SETS if name != SECOND_ROUND or name in asked]
    manifests = [table_of(RunFolder(run).synthetic_set(name) / "manifest.parquet") for name in sets]
    kept = [float(table["keep"].mean()) for table in manifests if table is not None and "keep" in table]
    validation = json_of(run / "diffusion" / "validation.json")
    return [
        *warnings(None, json_of(run / "evaluation" / "generation.json"), min(kept, default=None)),
        *ignored_conditions(validation),
        *unchecked_conditions(validation),
    ]


def _sets_asked_for(config: Mapping[str, Any]) -> set[str | None]:
    """The synthetic sets of a run's arms: what an earlier config drew beside them is no part of the run."""
    return {synthetic_set(arm) for arm in (config.get("segmentation") or {}).get("arms") or []}


def _has_control(config: Mapping[str, Any]) -> bool:
    asked = (config.get("diffusion") or {}).get("annotated_only_control")
    return bool(asked) or "annotated-only" in _sets_asked_for(config)


def _context(evidence: Evidence) -> dict[str, Any]:
    """Collect everything the template shows; what a run does not hold is None or empty."""
    run, summary, generation = evidence.run, evidence.summary, evidence.generation
    overlays = run / "evaluation" / "overlays"
    return {
        "name": evidence.name,
        "answer": text.answer(summary),
        "more": text.second_sentence(summary),
        "validation": evidence.validation,
        "summary": summary,
        "generation": generation,
        "environment": evidence.environment,
        "config_text": evidence.config_text,
        "settings": report_run.settings(evidence),
        "source": report_run.data_source(evidence.config),
        "cohort": roles.cohort(evidence.patches),
        "alignments": alignments(run),
        "slides": slides_section(run / "data"),
        "times": report_run.times(evidence.parts),
        "colours": pictures.class_colours(evidence.classes),
        "budgets": budgets_section(evidence),
        "shown_run": None if run == evidence.root else run.name,
        "segmentation": report_segmentation.segmentation(evidence),
        "grid": _pictures(run / "diffusion" / "samples", "style_by_layout.png"),
        "control_grid": _pictures(run / "control" / "samples", "style_by_layout.png")
        if _has_control(evidence.config)
        else [],
        "unannotated_styles": roles.has_unannotated(evidence.patches),
        "drawn": report_synthetic.drawn(evidence),
        "layouts": layouts_section(json_of(run / "synthetic" / "layouts.json")),
        "filtered": report_synthetic.filtered(evidence),
        "self_labelled": report_synthetic.self_labelled(evidence),
        "memorised": report_synthetic.memorised(evidence),
        "style_figure": generator.style_plot(generation),
        "style_table": generator.style_table(generation),
        "few_slides": pictures.FEW_SLIDES,
        "kid_label": generator.kid_label(generation),
        "style_counts": generator.style_counts(generation),
        "never_seen": _pictures(run / "evaluation" / "samples", "never_seen.png"),
        "reconstructions": _pictures(run / "autoencoder" / "samples", "*.png", most=2)[-1:],
        "samples": _pictures(run / "diffusion" / "samples", "step*.png"),
        "curves": _curves(run),
        "best_patients": _pictures(overlays, "best_*.png"),
        "worst_patients": _pictures(overlays, "worst_*.png"),
        "pictured_arms": json_of(overlays / "arms.json") or (list(summary["arms"]) if summary else []),
    }


def _pictures(folder: Path, pattern: str, *, most: int = 6) -> list[pictures.Picture]:
    """Inline the folder's pictures; of too many, evenly spaced ones with the first and the last."""
    return pictures.inline_files(pictures.evenly(sorted(folder.glob(pattern)), most))


def _curves(run: Path) -> dict[str, str | None]:
    """Plot each training's curves; empty where nothing was trained (a pretrained first stage), None without a table."""
    found = {}
    for stage in ("autoencoder", "diffusion"):
        table = table_of(run / stage / "metrics.csv")
        found[stage] = figures.curves_figure({stage: [table]}) or "" if table is not None else None
    trainings: dict[str, list[pd.DataFrame]] = {}
    for path in sorted((run / "segmentation").glob("*/seed*/metrics.csv")):
        trainings.setdefault(path.parent.parent.name, []).append(pd.read_csv(path))
    found["segmentation"] = figures.curves_figure({arm: trainings[arm] for arm in _in_order(list(trainings))})
    return found


def _in_order(arms: Sequence[str]) -> list[str]:
    return sorted(arms, key=lambda arm: (arm not in ARMS, ARMS.index(arm) if arm in ARMS else arm))
