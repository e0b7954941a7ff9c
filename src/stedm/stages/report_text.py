"""What the report says in words: the answer, the warnings, and `summary.md`. Figures come from the run's files only."""

from collections.abc import Mapping
from typing import Any

FEW_PATIENTS = 10
IGNORED_CONDITION = 0.1
COPYING = 0.5
WEAK_LAYOUT = 0.5
FEW_KEPT = 0.5
REMEDIES = {
    "style": "raise diffusion.steps, look whether the patients differ in stain at all, or try another "
    "diffusion.style_set",
    "layout": "raise diffusion.steps, look whether masks and images match, or annotate more patients",
}
"""What to try when the generator ignores a condition."""


def signed(value: float) -> str:
    """Format a difference with its sign and three decimals."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval(ci95: list[float]) -> str:
    """Format a 95 % interval of differences."""
    return f"{signed(ci95[0])} to {signed(ci95[1])}"


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


def synthesis_comparisons(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pick the comparisons that differ by synthetic images alone, the strongest baseline first.

    The strongest baseline is the one with most ingredients: synthetic images have to earn their place on top of stain
    augmentation, not instead of it.
    """
    pairs = [
        c for c in summary["comparisons"] if set(c["arm"].split("+")) - set(c["baseline"].split("+")) == {"synthetic"}
    ]
    return sorted(pairs, key=lambda c: -len(c["arm"].split("+")))


def _verdict(comparison: Mapping[str, Any]) -> str:
    low, high = comparison["ci95"]
    if low > 0:
        return "Synthetic images helped"
    if high < 0:
        return "Synthetic images hurt"
    return "Synthetic images made no clear difference"


def answer(summary: Mapping[str, Any] | None) -> str:
    """Answer in one sentence, with its interval, what synthetic images were worth."""
    if summary is None:
        return "There is no answer yet: this run has not been evaluated."
    scope = (
        f"{count(summary['n_test_patients'], 'test patient')}, {count(len(summary['seeds']), 'seed')}, "
        f"{count(summary['label_budget'], 'annotated patient')}"
    )
    pairs = synthesis_comparisons(summary)
    if not pairs:
        best = max(summary["arms"], key=lambda arm: summary["arms"][arm]["patient_iou_mean"])
        score = summary["arms"][best]
        low, high = score["ci95"]
        return (
            f"Whether synthetic images help was not asked: the arm {best} reaches a mean patient IoU of "
            f"{score['patient_iou_mean']:.3f} (95 % interval {low:.3f} to {high:.3f}; {scope})."
        )
    first = pairs[0]
    before, after = (summary["arms"][first[key]]["patient_iou_mean"] for key in ("baseline", "arm"))
    return (
        f"{_verdict(first)}: from {first['baseline']} to {first['arm']}, the mean patient IoU went from {before:.3f} "
        f"to {after:.3f}, a difference of {signed(first['delta_iou'])} (95 % interval {interval(first['ci95'])}, "
        f"p {p_text(first['p_value'])}; {scope})."
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
        for pair in pairs[1:]
    ]
    return " ".join(sentences)


def _known(values: Mapping[str, Any] | None, *keys: str) -> bool:
    return values is not None and all(values.get(key) is not None for key in keys)


def _evaluation_warnings(summary: Mapping[str, Any] | None) -> list[str]:
    if summary is None:
        return []
    found = []
    if summary["n_test_patients"] < FEW_PATIENTS:
        found.append(
            f"Only {count(summary['n_test_patients'], 'test patient')}: intervals over fewer than {FEW_PATIENTS} "
            "patients are rough, and the worst decile is a single patient."
        )
    if len(summary["seeds"]) == 1:
        found.append("One seed: the intervals do not contain the difference from one training to the next.")
    return found


def _generation_warnings(generation: Mapping[str, Any]) -> list[str]:
    found = []
    if _known(generation, "style_sensitivity") and generation["style_sensitivity"] < IGNORED_CONDITION:
        matched, shuffled = generation["style_distance_matched"], generation["style_distance_shuffled"]
        found.append(
            f"The style condition is all but ignored: images lie {matched:.2f} from the patient whose style they "
            f"were given, and {shuffled:.2f} from other patients."
        )
    if _known(generation, "layout_sensitivity") and generation["layout_sensitivity"] < IGNORED_CONDITION:
        found.append(
            f"The layout condition is all but ignored: images agree with their own layouts by an IoU that is only "
            f"{generation['layout_sensitivity']:.2f} above that with the layouts of other images."
        )
    if _known(generation, "layout_agreement") and generation["layout_agreement"] < WEAK_LAYOUT:
        found.append(
            f"Layouts are poorly obeyed: the judge, a segmenter trained on real images, agrees with them by an IoU of "
            f"{generation['layout_agreement']:.2f} only."
        )
    if _known(generation, "nearest_real_ratio") and generation["nearest_real_ratio"] < COPYING:
        found.append(
            f"Synthetic images lie much closer to training images than those to each other (ratio "
            f"{generation['nearest_real_ratio']:.2f}): look for copies among the pairs below before sharing any."
        )
    if _known(generation, "memorised_rate", "memorised_rate_real"):
        drawn, real = generation["memorised_rate"], generation["memorised_rate_real"]
        if drawn > 2 * real + 0.01:
            found.append(
                f"{100 * drawn:.1f} % of the drawn images lie as near to a training image as one in a hundred real "
                f"images does ({100 * real:.1f} % of never-seen patients' images do): some may be copies."
            )
    return found


def warnings(
    summary: Mapping[str, Any] | None, generation: Mapping[str, Any] | None, kept_share: float | None
) -> list[str]:
    """List what a reader must know before believing the figures.

    Args:
        summary: content of evaluation/summary.json, if there.
        generation: content of evaluation/generation.json, if there.
        kept_share: share of synthetic images the filter kept, 0 to 1, if known.
    """
    found = _evaluation_warnings(summary) + _generation_warnings(generation or {})
    if kept_share is not None and kept_share < FEW_KEPT:
        found.append(
            f"The filter kept {100 * kept_share:.0f} % of the synthetic images: most do not show the layout they were "
            "given."
        )
    return found


def ignored_conditions(validation: Mapping[str, Any] | None) -> list[str]:
    """Say which conditions a generator ignores, by how much, and what to try: a sentence each.

    Args:
        validation: content of diffusion/validation.json, if there.
    """
    whose = {"style": "another patient's style", "layout": "another image's layout"}
    return [
        f"The {name} condition is ignored: on validation images, {whose[name]} changes the loss by "
        f"{100 * validation[f'{name}_gain']:+.2f} % (standard error {100 * validation[f'{name}_gain_se']:.2f} %). "
        f"Try: {REMEDIES[name]}."
        for name in (validation["ignored"] if validation else [])
    ]


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary_markdown(name: str, summary: Mapping[str, Any] | None, cautions: list[str]) -> str:
    """Write the short summary: answer, warnings, arms, comparisons."""
    parts = [f"# {name}", " ".join(filter(None, [answer(summary), second_sentence(summary)]))]
    if cautions:
        parts.append("\n".join(f"- Warning: {caution}" for caution in cautions))
    if summary is not None:
        arms = [
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
        parts.append(_markdown_table(["arm", "mean IoU", "95 % interval", "std", "worst decile", "mean Dice"], arms))
        pairs = [
            [f"{c['baseline']} → {c['arm']}", signed(c["delta_iou"]), interval(c["ci95"]), f"{c['p_value']:.4f}"]
            for c in summary["comparisons"]
        ]
        if pairs:
            parts.append(_markdown_table(["comparison", "IoU difference", "95 % interval", "p"], pairs))
        parts.append("Over patients; the intervals of comparisons are over patients and seeds.")
    return "\n\n".join(parts) + "\n"
