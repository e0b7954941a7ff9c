"""Arms: what they are made of, which names are valid, and what a wrong name is told."""

import pytest

from stedm.arms import (
    ARMS,
    INGREDIENTS,
    SYNTHETIC_SETS,
    check_arm,
    first_round,
    ingredients,
    nearest_arm,
    synthetic_set,
)
from stedm.config_file import keys_with_help, load_config
from stedm.errors import UserError

EXPERIMENT = [
    "real",
    "real+stain",
    "real+transfer",
    "real+stain+transfer",
    "real+stain+mean-teacher",
    "real+stain+consistency",
    "real+synthetic",
    "real+stain+synthetic",
    "real+stain+synthetic+consistency",
    "real+stain+second-round",
    "real+stain+unfiltered",
    "real+stain+unstyled",
    "real+stain+annotated-only",
    "full",
]


def test_every_arm_of_the_experiment_is_valid() -> None:
    config = load_config(overrides=[f"segmentation.arms=[{', '.join(EXPERIMENT)}]"])
    assert config.segmentation.arms == EXPERIMENT and set(ARMS) < set(EXPERIMENT)


def test_default_arms_are_the_four_cheap_ones() -> None:
    assert load_config().segmentation.arms == ["real", "real+stain", "real+synthetic", "real+stain+synthetic"]


def test_ingredients_and_synthetic_set() -> None:
    assert ingredients("real+stain+unstyled+consistency") == {"real", "stain", "unstyled", "consistency"}
    assert ingredients("full") == {"real", "stain"}
    assert [synthetic_set(f"real+{name}") for name in SYNTHETIC_SETS] == list(SYNTHETIC_SETS)
    assert synthetic_set("real+stain+transfer") is None and synthetic_set("full") is None


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("stain", "real+stain"),
        ("stain+real", "real+stain"),
        ("real+stain+real", "real+stain"),
        ("real+stian+synthetics", "real+stain+synthetic"),
        ("real+consistency+synthetic", "real+synthetic+consistency"),
        ("real+synthetic+unfiltered", "real+synthetic"),
        ("real+mean_teacher", "real+mean-teacher"),
        ("real+annotated_only", "real+annotated-only"),
        ("real+second_round", "real+second-round"),
        ("real+synthetic+second-round", "real+synthetic"),
        ("Real + Stain", "real+stain"),
        ("ful", "full"),
        ("full+stain", "real+stain"),
        ("", "real"),
        ("everything", "real"),
    ],
)
def test_wrong_arm_is_told_the_nearest_valid_one(wrong: str, nearest: str) -> None:
    assert nearest_arm(wrong) == nearest == nearest_arm(nearest)
    with pytest.raises(UserError) as caught:
        check_arm(wrong)
    message = str(caught.value)
    assert f"did you mean {nearest!r}" in message and "segmentation.arms" in message and "\n" not in message
    assert all(name in message for name in (*INGREDIENTS, "full"))


def test_every_order_preserving_combination_is_its_own_nearest() -> None:
    others = [name for name in INGREDIENTS[1:] if name not in SYNTHETIC_SETS]
    for k in range(2 ** len(others)):
        chosen = {name for j, name in enumerate(others) if k >> j & 1}
        for synthetic in ("", *SYNTHETIC_SETS):
            arm = "+".join(name for name in INGREDIENTS if name in {"real", synthetic, *chosen})
            assert nearest_arm(arm) == arm


def test_the_second_round_is_judged_by_the_arm_with_the_first_in_its_place() -> None:
    arms = ["real+stain+second-round+consistency", "real+stain+synthetic+consistency", "real+synthetic"]
    assert first_round(arms) == "real+stain+synthetic+consistency"
    assert first_round(EXPERIMENT) == "real+stain+synthetic"
    assert first_round(ARMS) is None and first_round([]) is None


def test_a_second_round_without_its_first_is_refused_with_the_arm_to_add() -> None:
    with pytest.raises(
        UserError, match=r"^segmentation\.arms: 'real\+second-round' .*'real\+synthetic'; add that arm$"
    ):
        load_config(overrides=["segmentation.arms=[real+second-round, real+stain+synthetic]"])


def test_two_second_rounds_are_refused_with_both_names() -> None:
    arms = ["real+synthetic", "real+stain+synthetic", "real+second-round", "real+stain+second-round"]
    with pytest.raises(UserError, match=r"segmentation\.arms: .*'real\+synthetic' and 'real\+stain\+synthetic'"):
        load_config(overrides=[f"segmentation.arms=[{', '.join(arms)}]"])


def test_help_lists_the_ingredients() -> None:
    text = next(text for key, _, text, _ in keys_with_help() if key == "segmentation.arms")
    assert [name for name in (*INGREDIENTS, "full") if name not in text] == []
