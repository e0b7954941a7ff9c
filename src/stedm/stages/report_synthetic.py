"""The report on the synthetic set: what the filter kept, and whether anything was copied."""

from typing import Any

import numpy as np
import pandas as pd

from stedm.arms import SECOND_ROUND, first_round, self_training_teacher
from stedm.stages import report_figures as figures
from stedm.stages import report_pictures as pictures
from stedm.stages.report_evidence import Evidence, table_of
from stedm.stages.run_folder import RunFolder


def filtered(evidence: Evidence) -> dict[str, Any] | None:
    """Numbers, figure and dropped images of the filter; None without an agreement for each image."""
    manifest = evidence.manifest
    if manifest is None or not {"agreement", "keep"} <= set(manifest):
        return None
    threshold = _threshold(evidence)
    return {
        **_verdict(manifest, threshold),
        "heeded": threshold is not None or (evidence.config.get("filter") or {}).get("tolerance") is not None,
        "second_round": second_round(evidence),
        "agreement_figure": figures.histogram_figure(
            manifest["agreement"].to_numpy(float),
            label="agreement of segmenter and layout, mean IoU",
            limits=(0.0, 1.0),
            threshold=threshold,
        ),
        "dropped": pictures.dropped_gallery(evidence.run, manifest),
    }


def second_round(evidence: Evidence) -> dict[str, Any] | None:
    """What became of the images drawn once more, and who judged them; None without an arm or a filter of theirs."""
    arm = first_round((evidence.config.get("segmentation") or {}).get("arms") or [])
    manifest = table_of(RunFolder(evidence.run).synthetic_set(SECOND_ROUND) / "manifest.parquet")
    if arm is None or manifest is None or not {"agreement", "keep", "nearest_real_distance"} <= set(manifest):
        return None
    nearest = manifest["nearest_real_distance"]
    found = _verdict(manifest, _threshold(evidence))
    return found | {"arm": arm, "nearest": float(nearest.min()), "usually_nearest": float(nearest.median())}


def self_labelled(evidence: Evidence) -> list[dict[str, Any]]:
    """Unannotated images that segmenters labelled for the arms with self-training, and what share of their pixels."""
    found = []
    for arm in (evidence.config.get("segmentation") or {}).get("arms") or []:
        teacher = self_training_teacher(arm)
        table = teacher and table_of(RunFolder(evidence.run).self_training / teacher / "manifest.parquet")
        if isinstance(table, pd.DataFrame) and len(table):
            known = float(table["known_fraction"].mean())
            found.append({"arm": arm, "teacher": teacher, "images": len(table), "known": known})
    return found


def _threshold(evidence: Evidence) -> float | None:
    """The agreement below which images are dropped; None where none is."""
    threshold: float | None = (evidence.config.get("filter") or {}).get("min_agreement")
    return threshold or None


def _verdict(manifest: pd.DataFrame, threshold: float | None) -> dict[str, Any]:
    """Images drawn and kept, in all and by kind of layout, and the share of pixels ignored in those kept."""
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
        "spared": int((keep & (manifest["agreement"] < (threshold or 0))).sum()),
        "ignored": None if ignored is None else float(ignored[keep].mean()),
    }


def memorised(evidence: Evidence) -> dict[str, Any] | None:
    """Distances to the nearest training image, and the closest pairs; None before they were measured."""
    manifest, patches = evidence.manifest, evidence.patches
    if manifest is None or patches is None or not {"nearest_real", "nearest_real_distance"} <= set(manifest):
        return None
    distances = manifest["nearest_real_distance"].to_numpy(float)
    generation = evidence.generation or {}
    between = [0.0, *generation.get("nearest_real_between", [])]
    again = second_round(evidence)
    return {
        "again": again and {key: again[key] for key in ("nearest", "usually_nearest")},
        "nearest": float(distances.min()),
        "usually_nearest": float(np.median(distances)),
        "copied": generation.get("memorised_rate_set"),
        "outlined": len(between) > 1,
        "pairs": pictures.nearest_gallery(evidence.run, manifest, patches),
        "figure": figures.histogram_figure(
            distances,
            label="distance to the nearest training image",
            limits=(0.0, max(1e-6, 1.05 * max(float(distances.max()), *between))),
            beside=between[1:],
        ),
    }


def drawn(evidence: Evidence) -> pictures.Picture | None:
    """Kept pairs beside an image of their style sets; None before there are any."""
    manifest, patches = evidence.manifest, evidence.patches
    if manifest is None or patches is None or not {"keep", "style_patches"} <= set(manifest):
        return None
    return pictures.drawn_gallery(evidence.run, manifest, patches)
