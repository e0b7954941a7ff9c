"""What the report shows of the generator: seen and never-seen styles side by side, with what real images reach."""

from collections.abc import Mapping
from typing import Any

from stedm.stages import report_figures as figures

ROWS = (
    ("style_distance_matched", "style distance to the patient asked for", "style_distance_real", 2),
    ("style_distance_shuffled", "style distance, drawn in another style", None, 2),
    ("style_ratio", "matched / shuffled", None, 2),
    ("colour_mean_error", "error of the mean colour per class, 0 to 1", "colour_mean_error_real", 3),
    ("colour_std_error", "error of the colour's deviation per class, 0 to 1", "colour_std_error_real", 3),
    (
        "colour_mean_drift",
        "the same of all patients together: too dark cancels too bright",
        "colour_mean_drift_real",
        3,
    ),
    ("colour_std_drift", "the same of the deviation", "colour_std_drift_real", 3),
    ("layout_agreement", "layout agreement, mean IoU with the judge", "layout_agreement_real", 3),
    ("layout_sensitivity", "agreement lost when layouts are shuffled", None, 3),
    ("diversity", "diversity within a style and layout, relative to real images of one patient", None, 2),
    ("kid", "KID against the patients' real images", "kid_real", 3),
    ("memorised_rate", "copies: nearer to a training image than 1 in 100 real ones", "memorised_rate_real", 3),
)
"""Key, label, key of what real images reach, digits."""


def style_table(generation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows label, seen, unseen, real, digits of the figures that both groups have; empty without them."""
    if not generation or not generation.get("unseen"):
        return []
    groups = {name: generation.get(name) or {} for name in ("seen", "unseen")}

    def row(label: str, values: list[Any], real: Any, digits: int) -> dict[str, Any]:
        return {"label": label, "seen": values[0], "unseen": values[1], "real": real, "digits": digits}

    rows = []
    for key, label, floor, digits in ROWS:
        values = [group.get(key) for group in groups.values()]
        rows.append(row(label, values, generation.get(floor) if floor else None, digits))
        if key == "style_ratio":
            ratios = [group.get("style_ratio_by_class") or {} for group in groups.values()]
            for name in ratios[1] or ratios[0]:
                rows.append(row(f"{label}, {name}", [found.get(name) for found in ratios], None, digits))
    return rows


def figures_by_group(generation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number and name of `generation.json` as a row: figure, all, seen, unseen; None where there is none."""
    groups = [generation, generation.get("seen") or {}, generation.get("unseen") or {}]
    names = [key for key, value in generation.items() if isinstance(value, int | float | str)]
    return [
        {"figure": key, **dict(zip(("all", "seen", "unseen"), (group.get(key) for group in groups), strict=True))}
        for key in names
    ]


def style_counts(generation: Mapping[str, Any] | None) -> dict[str, str]:
    """Group -> how many patients and images were measured, in words."""
    groups = {name: (generation or {}).get(name) or {} for name in ("seen", "unseen")}
    numbers = {name: (len(group.get("patients") or []), group.get("images") or 0) for name, group in groups.items()}
    return {name: f"{patients} patients, {images} images" for name, (patients, images) in numbers.items()}


def kid_label(generation: Mapping[str, Any] | None) -> str:
    """What the KID was measured on, in words."""
    generation = generation or {}
    counts = "{} drawn, {} real images".format(*generation["kid_images"]) if generation.get("kid_images") else ""
    return f"KID ({', '.join(filter(None, [generation.get('kid_encoder') or 'stain+texture+random', counts]))})"


def style_plot(generation: Mapping[str, Any] | None) -> str | None:
    """Plot the style distances, matched and shuffled; None where they are not known."""
    matched, shuffled = ((generation or {}).get(f"style_distance_{key}") for key in ("matched", "shuffled"))
    return figures.style_figure(matched, shuffled) if matched is not None and shuffled is not None else None
