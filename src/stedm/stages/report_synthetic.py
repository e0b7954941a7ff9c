"""The report on the synthetic set: what the filter kept, and whether anything was copied."""

from typing import Any

from stedm.stages import report_figures as figures
from stedm.stages import report_pictures as pictures
from stedm.stages.report_evidence import Evidence


def filtered(evidence: Evidence) -> dict[str, Any] | None:
    """Numbers, figure and dropped images of the filter; None without an agreement for each image."""
    manifest = evidence.manifest
    if manifest is None or not {"agreement", "keep"} <= set(manifest):
        return None
    keep = manifest["keep"].astype(bool)
    kinds = manifest.assign(keep=keep).groupby("layout_kind")["keep"].agg(["size", "sum"])
    ignored = manifest.get("ignored_fraction")
    threshold = (evidence.config.get("filter") or {}).get("min_agreement")
    return {
        "images": len(manifest),
        "kept": int(keep.sum()),
        "share": float(keep.mean()),
        "kinds": [
            {"kind": kind, "images": int(row["size"]), "kept": int(row["sum"])} for kind, row in kinds.iterrows()
        ],
        "spared": int((keep & (manifest["agreement"] < (threshold or 0))).sum()),
        "ignored": None if ignored is None else float(ignored[keep].mean()),
        "agreement_figure": figures.histogram_figure(
            manifest["agreement"].to_numpy(float),
            label="agreement of segmenter and layout, mean IoU",
            limits=(0.0, 1.0),
            threshold=threshold,
        ),
        "dropped": pictures.dropped_gallery(evidence.run, manifest),
    }


def memorised(evidence: Evidence) -> dict[str, Any] | None:
    """Distances to the nearest training image, and the closest pairs; None before they were measured."""
    manifest, patches = evidence.manifest, evidence.patches
    if manifest is None or patches is None or not {"nearest_real", "nearest_real_distance"} <= set(manifest):
        return None
    distances = manifest["nearest_real_distance"].to_numpy(float)
    return {
        "pairs": pictures.nearest_gallery(evidence.run, manifest, patches),
        "figure": figures.histogram_figure(
            distances,
            label="distance to the nearest training image",
            limits=(0.0, max(1e-6, 1.05 * float(manifest["nearest_real_distance"].max()))),
            threshold=None,
        ),
    }


def drawn(evidence: Evidence) -> pictures.Picture | None:
    """Kept pairs beside an image of their style sets; None before there are any."""
    manifest, patches = evidence.manifest, evidence.patches
    if manifest is None or patches is None or not {"keep", "style_patches"} <= set(manifest):
        return None
    return pictures.drawn_gallery(evidence.run, manifest, patches)
