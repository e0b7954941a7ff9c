"""Which arms are compared with which: those they extend, those they must beat, and the best of either kind."""

from collections.abc import Mapping, Sequence
from itertools import permutations

from stedm.arms import (
    FULL_ARM,
    OUR_SETS,
    SECOND_ROUND,
    SELF_TRAINING,
    SYNTHETIC_SETS,
    ingredients,
    synthetic_set,
)

CONTROL_SETS = tuple(name for name in SYNTHETIC_SETS if name not in OUR_SETS)
"""Synthetic sets that lack one thing that ours has."""
RIVALS = ("consistency", "mean-teacher", SELF_TRAINING, "transfer")
"""Other ways to use unannotated patients."""
STAIN_BASELINE = "real+stain"
"""The arm that the ceiling's gap is measured from."""


def default_comparisons(arms: Sequence[str]) -> list[tuple[str, str]]:
    """List (arm, baseline) pairs: what an arm adds to a smaller one, then ours against what could take its place.

    An arm is compared with every arm that lacks some of its ingredients: `real+stain+synthetic` with `real+stain`,
    `real+synthetic` and `real`. An arm with `synthetic` or `second-round` is also compared with the arms that have
    a control or a rival in its place, and the second round with the first.
    """
    parts = {arm: ingredients(arm) for arm in arms if arm != FULL_ARM}
    pairs = list(permutations(parts, 2))
    extended = [(arm, base) for base, arm in pairs if parts[base] < parts[arm]]
    extended.sort(key=lambda pair: (arms.index(pair[0]), -len(parts[pair[1]]), arms.index(pair[1])))
    replaced = [(arm, base) for arm, base in pairs if _is_ours_replaced(parts[arm], parts[base])]
    return extended + replaced


def _is_ours_replaced(arm: set[str], baseline: set[str]) -> bool:
    ours = [name for name in OUR_SETS if name in arm]
    others = {*CONTROL_SETS, *RIVALS, *(["synthetic"] if SECOND_ROUND in ours else [])} - arm
    return bool(ours) and any(baseline == arm - set(ours) | {other} for other in others)


def headline_comparison(merits: Mapping[str, float]) -> tuple[str, str] | None:
    """Choose (best arm with our synthetic images, best arm without any); None without both.

    Arms with the control sets are neither: they are not ours.

    Args:
        merits: what arms are chosen by (`choice.merits`), without the ceiling `full`.
    """
    ours = [arm for arm in merits if synthetic_set(arm) in OUR_SETS]
    without = [arm for arm in merits if not ingredients(arm) & set(SYNTHETIC_SETS)]
    if not ours or not without:
        return None
    return max(ours, key=merits.__getitem__), max(without, key=merits.__getitem__)
