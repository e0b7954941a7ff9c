"""What a reader must know before believing the figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stedm.stages.report_text import count, draws, is_clear, signed, synthesis_comparisons

FEW_PATIENTS = 10
FEW_SEEDS = 3
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
MORE_PATIENTS = "raise split.val_patients, or name more annotated patients `val` in the table's column `split`"
MORE_IMAGES = f"{MORE_PATIENTS}; or lower prepare.min_tissue"


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
    if summary.get("n_unscored_patients"):
        found.append(
            f"{count(summary['n_unscored_patients'], 'test patient')} without a labelled pixel, in no figure: look at "
            "their masks, or leave them out of the table."
        )
    number = len(draws(summary))
    if number == 2:
        found.append("Only 2 draws of annotated patients: how much depends on who was annotated is known roughly.")
    elif number == 1 and len(summary["seeds"]) == 1:
        found.append("One seed: the intervals do not contain the difference from one training to the next.")
    elif number == 1 and len(summary["seeds"]) < FEW_SEEDS:
        found.append(
            f"Only {len(summary['seeds'])} seeds: how much one training differs from the next is known roughly."
        )
    return found + _unsteady_arms(summary)


def _unsteady_arms(summary: Mapping[str, Any]) -> list[str]:
    """Arms of a claimed effect whose seeds lie further apart than the effect is large."""
    found = {}
    for pair in synthesis_comparisons(summary):
        for arm in (pair["arm"], pair["baseline"]):
            means = list((summary["arms"][arm].get("iou_by_seed") or {0: 0.0}).values())
            apart = max(means) - min(means)
            if is_clear(pair) and apart > abs(pair["delta_iou"]):
                found[arm] = (
                    f"The seeds of {arm} lie {apart:.3f} apart, more than the difference of "
                    f"{signed(pair['delta_iou'])} from {pair['baseline']} to {pair['arm']}: train more seeds before "
                    "relying on it."
                )
    return list(found.values())


def _generation_warnings(generation: Mapping[str, Any]) -> list[str]:
    found = []
    if _known(generation, "style_sensitivity") and generation["style_sensitivity"] < IGNORED_CONDITION:
        matched, shuffled = generation["style_distance_matched"], generation["style_distance_shuffled"]
        found.append(
            f"The style condition is all but ignored: images lie {matched:.2f} from the patient whose style they "
            f"were given, and {shuffled:.2f} when they are drawn in another's style."
        )
    if _known(generation, "layout_sensitivity") and generation["layout_sensitivity"] < IGNORED_CONDITION:
        found.append(
            f"The layout condition is all but ignored: images agree with their own layouts by an IoU that is only "
            f"{round(generation['layout_sensitivity'], 2) + 0:.2f} above that with the layouts of other images."
        )
    weak_judge = _known(generation, "layout_agreement_real") and generation["layout_agreement_real"] < WEAK_LAYOUT
    if weak_judge:
        found.append(
            "How well layouts are obeyed is not known: the judge, a segmenter trained on every mask of the training "
            f"patients, reaches an IoU of {generation['layout_agreement_real']:.2f} on real images."
        )
    elif _known(generation, "layout_agreement") and generation["layout_agreement"] < WEAK_LAYOUT:
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
        drawn = max(drawn, generation.get("memorised_rate_set") or 0.0)
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
        kept_share: share of synthetic images the filter kept, of two rounds the smaller, 0 to 1, if known.
    """
    found = _evaluation_warnings(summary) + _generation_warnings(generation or {})
    if kept_share is not None and kept_share < FEW_KEPT:
        found.append(
            f"The filter kept {100 * kept_share:.0f} % of the synthetic images: most do not show the layout they were "
            "given."
        )
    return found


def unlearned_classes(patches: pd.DataFrame | None, classes: Sequence[str]) -> list[str]:
    """Name classes that no annotated training image shows; `patches` is a run's patches table, if there."""
    if patches is None or not {f"fraction_{name}" for name in classes} <= set(patches):
        return []
    taught = patches[(patches["split"] == "train") & patches["annotated"]]
    return [
        f"No annotated training image shows {name}: nothing was learned of it. Annotate a patient who has it, look at "
        "the values in the masks, or leave it out of cohort.labels."
        for name in classes
        if not (taught[f"fraction_{name}"] > 0).any()
    ]


def folds_warning(config: Mapping[str, Any], summary: Mapping[str, Any] | None) -> list[str]:
    """Say that folds of one cohort lend each other their validation patients; nothing for other runs.

    Args:
        config: that of a run of the experiment.
        summary: content of evaluation/summary.json, if there.
    """
    if summary is None or not (config.get("split") or {}).get("fold") or summary.get("chosen_by") != "validation_iou":
        return []
    return [
        "Validation patients of one fold are test patients of another: the arms of the first sentence were chosen by "
        "the mean over all folds, and so not without them. Believe comparisons of two arms that were named beforehand."
    ]


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


def unchecked_conditions(validation: Mapping[str, Any] | None) -> list[str]:
    """Say of which conditions nobody knows whether a generator ignores them, why, and what to do: a sentence each.

    Args:
        validation: content of diffusion/validation.json, if there.
    """
    names = [name for name in REMEDIES if validation and validation[f"{name}_gain"] is None]
    return [
        f"Whether the {name} condition is ignored could not be checked: {_why(name, validation)}." for name in names
    ]


def _why(name: str, validation: Mapping[str, Any]) -> str:
    """Why validation cannot tell whether a condition is ignored, and what to do."""
    images, patients = validation["images"], validation["patients"]
    if images == 0:
        return f"no validation patient is annotated. Try: {MORE_PATIENTS}"
    if images == 1:
        return f"one validation image has none to exchange it with. Try: {MORE_IMAGES}"
    if name == "style" and patients == 1:
        return f"one validation patient has none to exchange styles with. Try: {MORE_PATIENTS}"
    return "the loss on validation images is no number. Try: lower diffusion.learning_rate"
