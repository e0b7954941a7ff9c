"""The sampling settings in force: those that travel with a generator, changed by what a config gives."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from stedm.config import GenerateConfig
from stedm.diffusion.sampling import Sampling
from stedm.errors import UserError

GUIDANCE = ("guidance", "layout_guidance", "style_guidance")


def in_force(own: Mapping[str, Any], generate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's own settings, each replaced by the `generate` section's value of that name if it has one.

    Guidance that is given shapes the pairs the few-step generator learns from; drawing with it must not guide again.

    Args:
        own: the fields of a `Sampling`, as in `sampling` of `model_index.json`.
        generate: the `generate` section of a config; null where the model's own setting holds.
    """
    kept = GUIDANCE if generate.get("generator") == "few-step" else ()
    given = {name: generate.get(name) for name in own if name not in kept}
    return {**own, **{name: value for name, value in given.items() if value is not None}}


def check_sampling(options: GenerateConfig) -> None:
    """Raise UserError for settings that no generator can be asked with: before one is trained, not after."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Sampling)}
    try:
        Sampling(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UserError(f"generate.{error}") from None
