"""timm backbones: from a name, from weights in a folder or on the hub, and again from what a model folder says."""

import difflib
import inspect
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import timm
from torch import nn

from stedm import hub
from stedm.errors import UserError
from stedm.files import reason_of
from stedm.models.model_folder import WEIGHTS, is_modest, refuse_pickles

NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""A network's name; what has a scheme or a path in it could be fetched from somewhere."""
_SAVE = "timm.models.save_for_hf(backbone, FOLDER, safe_serialization=True) writes such a folder"
_STYLE_ENCODER = "diffusion.style_encoder"
_MACHINERY = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(timm.models.build_model_with_cfg).parameters,
    *("features_only", "feature_cls", "device", "dtype"),
}
"""What timm takes beside a network's settings: files to read, code to call."""
_CLASSES = re.compile(r"(_layer|_fn|_cls|_class|block)s?$")
"""Settings whose text timm would look a class up by."""
_WORD = re.compile(r"[A-Za-z0-9_-]{0,64}")
_MOST_NUMBER, _MOST_ENTRIES = 2**13, 64


def timm_backbone(
    name: str, weights: str | None = None, *, model_args: dict[str, Any] | None = None, key: str = _STYLE_ENCODER
) -> tuple[nn.Module, dict[str, Any]]:
    """A backbone without its classifier, and the `model_args` that make its like again, from its architecture's name.

    Args:
        name: one of timm's; not read where there are weights, which say what they are of.
        weights: local folder or hub id; random weights when not given.
        model_args: what an earlier call returned; the settings that timm has for the name when not given.
        key: of the config, for messages.

    Raises:
        UserError: when timm cannot make it, and for settings that are more than numbers, words and lists of them.
    """
    source, options = name, dict[str, Any]()
    if weights is not None:
        source = weights_source(weights, key=key)
        if source.startswith("local-dir:"):
            refuse_pickles(Path(source.partition(":")[2]), WEIGHTS, key=key, fix=_SAVE)
        model_args = _saved_args(source, key)
    elif not NAME.fullmatch(name):  # timm would fetch what `hf-hub:` and the like stand before
        raise UserError(f"{key}: {name!r} is no name of timm.list_models(); folders and hub ids are weights, not names")
    elif model_args is not None:
        # These say the size already; that of timm's own weights would otherwise be put beside them.
        options = {"pretrained_cfg_overlay": {"fixed_input_size": False}, **_plain(model_args, key)}
    try:
        backbone = timm.create_model(source, pretrained=weights is not None, num_classes=0, **options)
    except Exception as error:
        raise UserError(f"{key}: timm cannot make {source!r} ({reason_of(error)}); {_fix(name, weights)}") from error
    _refuse_other_images(backbone, key)
    fixed = getattr(backbone, "pretrained_cfg", {})
    size = {"img_size": list(fixed["input_size"][-2:])} if fixed.get("fixed_input_size") and not options else {}
    return backbone, size | _plain(model_args or {}, key)


def weights_source(weights: str, *, key: str) -> str:
    """What timm calls a local folder, or a hub id `owner/name`. Raises UserError for what is neither."""
    folder = os.path.expanduser(weights)
    if Path(folder).is_dir():
        return f"local-dir:{folder}"
    if hub.is_id(weights.partition("@")[0]):  # timm reads a revision after it
        return f"hf-hub:{weights}"
    raise UserError(f"{key}: {weights!r} is no folder here and no hub id owner/name; name one of them")


def _saved_args(source: str, key: str) -> dict[str, Any]:
    """The settings that config.json beside the weights has for their network."""
    kind, _, place = source.partition(":")
    try:
        if kind == "local-dir":
            found = json.loads((Path(place) / "config.json").read_text(encoding="utf-8")).get("model_args")
        else:
            found = timm.models.load_model_config_from_hf(place)[2]
    except Exception as error:  # a missing or damaged file, or whatever the hub's library raises
        raise UserError(f"{key}: {place}: its config.json cannot be read ({reason_of(error)}); {_SAVE}") from error
    return _plain(found or {}, key)


def _refuse_other_images(backbone: nn.Module, key: str) -> None:
    """Raise UserError unless the weights say of their images what can be said of some in colour."""
    said = timm.data.resolve_model_data_config(backbone)
    for name in ("mean", "std", "input_size"):
        value = said[name]
        numbers = isinstance(value, list | tuple) and len(value) == 3 and _is_plain(value)
        if not numbers or not all(isinstance(number, int | float) for number in value):
            raise UserError(
                f"{key}: {name} in config.json is {str(value)[:64]!r}: no three numbers; take other weights"
            )


def _plain(model_args: Any, key: str) -> dict[str, Any]:
    """The settings, without the size of the classifier and what is null. Raises UserError unless they are plain."""
    if not isinstance(model_args, dict) or len(model_args) > _MOST_ENTRIES:
        raise UserError(f"{key}: model_args of config.json are no settings of a network; take other weights")
    given = {name: value for name, value in model_args.items() if value is not None and name != "num_classes"}
    for name, value in given.items():
        named = isinstance(value, str) and _CLASSES.search(str(name))
        if (
            not _WORD.fullmatch(str(name))
            or name in _MACHINERY
            or named
            or not (_is_plain(value) and is_modest(value, name))
        ):
            raise UserError(
                f"{key}: model_args of config.json has {str(name)[:64]!r}: {str(value)[:64]!r}; it may set numbers,"
                " words and lists of them, and names no classes and no files; take other weights"
            )
    return given


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_ENTRIES and all(map(_is_plain, value))
    if isinstance(value, str):
        return bool(_WORD.fullmatch(value))
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _MOST_NUMBER


def _fix(name: str, weights: str | None) -> str:
    if weights is not None:
        return "its weights must be of a model of timm.list_models()"
    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"did you mean {near[0]}?" if near else "name a model of timm.list_models()"
