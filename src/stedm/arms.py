"""Arms: the training recipes of the segmenter, named by what they train with, joined by plus signs."""

import difflib
from collections.abc import Sequence

from stedm.errors import UserError

ARMS = ("real", "real+stain", "real+synthetic", "real+stain+synthetic")
"""The training recipes that are compared unless others are named."""
FULL_ARM = "full"
"""Stain augmentation on every training patient with masks, whatever the label budget: the ceiling, and the judge."""
SECOND_ROUND = "second-round"
"""The synthetic set drawn once more: layouts read and pairs judged by segmenters trained with the first, together."""
OUR_SETS = ("synthetic", SECOND_ROUND)
"""The synthetic sets whose worth is the question: in the styles of unannotated patients, filtered."""
SYNTHETIC_SETS = (*OUR_SETS, "unfiltered", "unstyled", "annotated-only")
"""The synthetic sets an arm can train with, one at most; each after ours lacks one thing that ours have."""
SELF_TRAINING = "self-training"
"""Unannotated real images, labelled by the segmenters of the same arm without this ingredient, together."""
INGREDIENTS = ("real", "stain", "transfer", *SYNTHETIC_SETS, SELF_TRAINING, "mean-teacher", "consistency")
"""Everything an arm can be made of, in the order in which it is named."""
_RULE = f"an arm is `real` and any of {', '.join(INGREDIENTS[1:])}, in this order, with one synthetic set at most"


def ingredients(arm: str) -> set[str]:
    """What an arm trains with: names of `INGREDIENTS`; `full` is real images with stain augmentation."""
    return {"real", "stain"} if arm == FULL_ARM else set(arm.split("+"))


def synthetic_set(arm: str) -> str | None:
    """The synthetic set an arm trains with, if any."""
    return next((name for name in SYNTHETIC_SETS if name in ingredients(arm)), None)


def first_round(arms: Sequence[str]) -> str | None:
    """The arm whose segmenters read and judge for the second round; None where no arm has one.

    It has `synthetic` where an arm of the second round has `second-round`. Raises UserError when it is not among the
    arms, and when two arms ask for different ones: a run has one second round.
    """
    later = [arm for arm in arms if synthetic_set(arm) == SECOND_ROUND and SELF_TRAINING not in ingredients(arm)]
    if not later:
        return None
    first = [arm.replace(SECOND_ROUND, "synthetic") for arm in later]
    if len(later) > 1:
        raise UserError(
            f"segmentation.arms: {later[0]!r} and {later[1]!r} want second rounds by different arms, {first[0]!r} and "
            f"{first[1]!r}; a run has one: remove one of the two, or give it a folder of its own with --out"
        )
    if first[0] not in arms:
        raise UserError(f"segmentation.arms: {later[0]!r} needs the segmenters of {first[0]!r}; add that arm")
    return first[0]


def self_training_teacher(arm: str) -> str | None:
    """The arm whose segmenters label unannotated images for `arm`; None for an arm without `self-training`."""
    return arm.replace(f"+{SELF_TRAINING}", "") if SELF_TRAINING in ingredients(arm) else None


def self_training_teachers(arms: Sequence[str]) -> list[str]:
    """The arms whose segmenters label unannotated images, in the order of the arms that ask for it.

    Raises UserError when one is not among the arms.
    """
    teachers = {arm: teacher for arm in arms if (teacher := self_training_teacher(arm)) is not None}
    for arm, teacher in teachers.items():
        if teacher not in arms:
            raise UserError(f"segmentation.arms: {arm!r} needs the segmenters of {teacher!r}; add that arm")
    return list(teachers.values())


def nearest_arm(arm: str) -> str:
    """The valid arm nearest to `arm`: itself when it is valid."""
    if difflib.get_close_matches(arm, [FULL_ARM], cutoff=0.7):
        return FULL_ARM
    meant = {"real"}
    for part in arm.split("+"):
        meant.update(difflib.get_close_matches(part.strip().lower(), INGREDIENTS, n=1, cutoff=0.5))
    excess = [name for name in SYNTHETIC_SETS if name in meant][1:]
    return "+".join(name for name in INGREDIENTS if name in meant - set(excess))


def check_arm(arm: str) -> None:
    """Raise UserError, with the nearest valid arm, for a name that is none."""
    nearest = nearest_arm(arm)
    if nearest != arm:
        raise UserError(f"segmentation.arms: {arm!r} is no arm; did you mean {nearest!r}? {_RULE}; or `{FULL_ARM}`")
