"""What the report says in words: the answer, and how figures are written. They come from the run's files only."""

from collections.abc import Iterable, Mapping
from typing import Any

from stedm.arms import OUR_SETS, synthetic_set
from stedm.config import FULL_ARM, ingredients
from stedm.evaluation import choice
from stedm.evaluation.comparisons import STAIN_BASELINE

UNKNOWN = "\N{EN DASH}"
"""Stands in a table where a figure is not known."""
SURE = 0.05
"""Adjusted p-value up to which a difference is claimed."""
CHOSEN = {
    "validation_iou": ("best", "on validation patients"),
    "restained_iou": ("best", "on validation patients in the target's stains"),
}
"""How the arms of the headline were chosen, by `choice.CRITERIA`."""


def chosen_on(summary: Mapping[str, Any]) -> str:
    """Say where the arms of the headline were chosen."""
    return CHOSEN[summary.get("chosen_by", "validation_iou")][1]


def signed(value: float) -> str:
    """Format a difference with its sign and three decimals."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval(ci95: list[float]) -> str:
    """Format a 95 % interval of differences."""
    return f"{signed(ci95[0])} to {signed(ci95[1])}"


def percent(share: float) -> str:
    """Format a share as whole percent."""
    return f"{100 * share:.0f} %".replace("-", "\N{MINUS SIGN}")


def closed_gap(score: Mapping[str, Any]) -> str:
    """Write the share of the gap to the ceiling that an arm closes, with its interval, if it is known."""
    if score.get("gap_closed") is None:
        return UNKNOWN
    low, high = map(percent, score["gap_closed_ci95"])
    return f"{percent(score['gap_closed'])} ({low.removesuffix(' %')} to {high})"


def p_text(p_value: float) -> str:
    """Format a p-value with its relation: `= 0.012`, `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def duration(seconds: float) -> str:
    """Format a time: `4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str) -> str:
    """Count a noun: `1 seed`, `24 patients`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def draws(summary: Mapping[str, Any]) -> list[int]:
    """The draws of annotated patients that a summary is over; those of before there were any had one."""
    return summary.get("draws") or [0]


def trainings(summary: Mapping[str, Any]) -> str:
    """Count what a patient's score is the mean of: `5 seeds`, `5 seeds for each of 3 draws of annotated patients`."""
    seeds, number = count(len(summary["seeds"]), "seed"), len(draws(summary))
    return seeds if number == 1 else f"{seeds} for each of {number} draws of annotated patients"


def resampled(summary: Mapping[str, Any]) -> str:
    """Name what the intervals of comparisons are over."""
    return f"patients and {'draws of annotated patients' if len(draws(summary)) > 1 else 'seeds'}"


def synthesis_comparisons(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pick the comparisons that say what synthetic images are worth, the headline first.

    The headline is the best arm with them against the best without, as `choice.merits` chooses them. The others
    differ by synthetic images alone, those with most ingredients first: synthetic images have to earn their place on
    top of stain augmentation, not instead of it.
    """
    headline = summary.get("headline")
    alone = [c for c in summary["comparisons"] if _is_synthesis_alone(c["arm"], c["baseline"])]
    alone.sort(key=lambda c: -len(ingredients(c["arm"])))
    return [headline, *(c for c in alone if c != headline)] if headline else alone


def _is_synthesis_alone(arm: str, baseline: str) -> bool:
    name = synthetic_set(arm)
    return name in OUR_SETS and ingredients(baseline) | {name} == ingredients(arm)


def is_clear(comparison: Mapping[str, Any]) -> bool:
    """Whether a difference is claimed: zero outside its interval, and the p-value small after correction."""
    low, high = comparison["ci95"]
    return (low > 0 or high < 0) and comparison.get("p_adjusted", comparison["p_value"]) <= SURE


def verdict(comparison: Mapping[str, Any]) -> str:
    """Say in words what a comparison shows of synthetic images, and of what else its arms differ by."""
    subject = f"Synthetic images{_also_changed(comparison)}"
    low, high = comparison["ci95"]
    if low <= 0 <= high or comparison["p_value"] > SURE:
        return f"{subject} made no clear difference"
    seemingly = "" if is_clear(comparison) else "seemingly "
    return f"{subject} {seemingly}{'helped' if low > 0 else 'hurt'}"


def _also_changed(comparison: Mapping[str, Any]) -> str:
    """Name what a synthesis comparison adds beside synthetic images, and what it takes away; empty for neither."""
    arm, baseline = ingredients(comparison["arm"]), ingredients(comparison["baseline"])
    added, taken = _listed(arm - baseline - set(OUR_SETS)), _listed(baseline - arm)
    return (f" together with {added}" if added else "") + (f" in the place of {taken}" if taken else "")


def _listed(parts: Iterable[str]) -> str:
    return " and ".join("stain augmentation" if name == "stain" else name for name in sorted(parts))


def measured(comparison: Mapping[str, Any], family: int) -> str:
    """Write interval, p-value and, of several comparisons, the p-value corrected for their number (`family`)."""
    p = f"p {p_text(comparison['p_value'])}"
    if family > 1 and comparison.get("p_adjusted") is not None:
        corrected = p_text(comparison["p_adjusted"]).removeprefix("= ")
        p += f", corrected for {family} comparisons {corrected}"
    return f"95 % interval {interval(comparison['ci95'])}, {p}"


def answer(summary: Mapping[str, Any] | None) -> str:
    """Answer in one sentence, with its interval, what synthetic images were worth."""
    if summary is None:
        return "There is no answer yet: this run has not been evaluated."
    scope = (
        f"{count(summary['n_test_patients'], 'test patient')}, {trainings(summary)}, "
        f"{count(summary['label_budget'], 'annotated patient')}"
    )
    pairs = synthesis_comparisons(summary)
    if not pairs:
        return _reached(summary, scope)
    first = pairs[0]
    what, where = CHOSEN[summary.get("chosen_by", "validation_iou")]
    chosen = f", each the {what} of its kind {where}," if summary.get("headline") else ","
    before, after = (summary["arms"][first[key]]["patient_iou_mean"] for key in ("baseline", "arm"))
    return (
        f"{verdict(first)}: from {first['baseline']} to {first['arm']}{chosen} the mean patient IoU went from "
        f"{before:.3f} to {after:.3f}, a difference of {signed(first['delta_iou'])} "
        f"({measured(first, len(summary['comparisons']))}; {scope})."
    )


def _reached(summary: Mapping[str, Any], scope: str) -> str:
    """Say what the chosen arm reaches, where none has our synthetic images; the ceiling is chosen only if alone."""
    _, merits = choice.merits(summary["arms"])
    best = max(merits, key=merits.__getitem__) if merits else next(iter(summary["arms"]))
    what, where = CHOSEN[summary.get("chosen_by", "validation_iou")]
    chosen = f", the {what} {where}," if merits else ""
    score = summary["arms"][best]
    low, high = score["ci95"]
    return (
        f"Whether synthetic images help was not asked: the arm {best}{chosen} reaches a mean patient IoU of "
        f"{score['patient_iou_mean']:.3f} (95 % interval {low:.3f} to {high:.3f}; {scope})."
    )


def second_sentence(summary: Mapping[str, Any] | None) -> str:
    """Say what the other synthesis comparisons and the spread over patients show; empty where there is nothing."""
    pairs = synthesis_comparisons(summary) if summary else []
    if summary is None or not pairs:
        return ""
    arms, first = summary["arms"], pairs[0]
    base, arm = arms[first["baseline"]], arms[first["arm"]]
    sentences = [
        f"The standard deviation over patients went from {base['patient_iou_std']:.3f} to "
        f"{arm['patient_iou_std']:.3f}, the worst decile from {base['worst_decile_iou']:.3f} to "
        f"{arm['worst_decile_iou']:.3f}."
    ]
    sentences += [
        f"From {pair['baseline']} to {pair['arm']}: {signed(pair['delta_iou'])} "
        f"({interval(pair['ci95'])}, p {p_text(pair['p_value'])})."
        for pair in pairs[1:3]
    ]
    if arm.get("gap_closed") is not None:
        sentences.append(f"{first['arm']} closes {closed_gap(arm)} of the gap from {STAIN_BASELINE} to {FULL_ARM}.")
    return " ".join(sentences)


def budgets_sentence(budgets: Mapping[int, Mapping[str, Any]]) -> str:
    """Say what synthetic images were worth at each label budget; empty for fewer than two of them."""
    parts = []
    for budget, summary in budgets.items():
        pairs = synthesis_comparisons(summary)
        if pairs:
            found = pairs[0]
            parts.append(f"with {budget}, {signed(found['delta_iou'])} ({interval(found['ci95'])})")
    return f"By number of annotated patients: {'; '.join(parts)}." if len(parts) > 1 else ""
