"""From YAML file and flags to a RunConfig, and back. Configs are data: no class paths, no evaluated strings."""

import contextlib
import dataclasses
import difflib
import json
import os
import reprlib
import shlex
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from stedm.config import RunConfig
from stedm.errors import UserError
from stedm.files import write_text
from stedm.presets import resolve
from stedm.yaml_text import parse_yaml

_MOST = 2**31 - 1
"""No number in a config is larger, or infinite."""
_shown = reprlib.Repr()
"""Writes values into messages, in part: aliases of YAML can stand for astronomically many words."""
_shown.maxlevel, _shown.maxstring = 3, 200
_PATHS = (("cohort", "table"), ("cohort", "target", "table"), ("generate", "composition"))
"""Keys that hold a path relative to the config file."""
_WEIGHTS = (
    ("autoencoder", "pretrained"),
    ("diffusion", "style_weights"),
    ("segmentation", "encoder_weights"),
    ("evaluate", "kid_encoder"),
)
"""Keys that hold such a path, or the name of what is elsewhere."""
_INCEPTION = "inception:"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config, apply overrides (`section.key=value`, values as YAML), resolve the presets.

    Relative paths (`cohort.table`, `cohort.target.table`, `generate.composition`, weights that are there) in the file
    resolve against the file's folder; in an override, against the working folder. Raises UserError naming file and key,
    with the nearest valid key when it is unknown.
    """
    values = _read(Path(path)) if path else {}
    _build(RunConfig, values, str(path), "")  # so that a mistake in the file is not blamed on a flag, nor the reverse
    for *sections, key in (*_PATHS, *_WEIGHTS):
        section: Any = values
        for name in sections:
            section = (section or {}).get(name)
        if path and section and isinstance(section.get(key), str):
            section[key] = _whole((*sections, key), section[key], Path(path).resolve().parent, str(path))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"--{override}: expected section.key=value")
        value = _yaml(text, f"--{key}")
        if isinstance(value, str):  # the config is saved in the run folder, and read from there
            value = _whole((*key.lstrip("-").split("."),), value, Path(), f"--{key}")
        _set(values, key.lstrip("-"), value)
    return resolve(_build(RunConfig, values, "command line", ""))


def _whole(keys: tuple[str, ...], value: str, folder: Path, origin: str) -> str:
    """The value of a key; a path from `folder` as an absolute one, of weights if there is such a file or folder."""
    if keys in _PATHS:
        return _absolute(folder / value, origin)
    kind = _INCEPTION if value.startswith(_INCEPTION) else ""
    place = os.path.expanduser(value.removeprefix(kind))
    if keys in _WEIGHTS and place and os.path.exists(folder / place):
        return kind + _absolute(folder / place, origin)
    return value


def _absolute(path: Path, origin: str) -> str:
    try:
        return str(path.resolve())
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a loop of links
        raise UserError(f"{origin}: {str(path)[:200]!r} cannot be a path ({error})") from None


def extended(key: str, words: str, saved: Path) -> str:
    """An override `key=[...]`: the list that the config `saved` has, if it is there, and the comma-separated `words`.

    Budgets are sorted, `all` last; a run without a list of budgets has one, its label budget.
    """
    listed = [_yaml(word, f"--{key}") for word in words.strip("[] ").split(",") if word.strip()]
    if not listed:
        raise UserError(f"--{key}: {words!r} names nothing; separate names or numbers by commas")
    if saved.exists():
        earlier = load_config(saved)
        section, _, name = key.partition(".")
        budget = "all" if earlier.split.label_budget is None else earlier.split.label_budget
        listed = [*(getattr(getattr(earlier, section), name) or [budget]), *listed]
    values = [value for k, value in enumerate(listed) if value not in listed[:k]]
    if key == "experiment.budgets":
        values.sort(key=lambda budget: budget if isinstance(budget, int) else float("inf"))
    return f"{key}={json.dumps(values)}"


def kept(keys: Iterable[str], saved: Path, config: RunConfig) -> list[str]:
    """Overrides that keep the draws of the config `saved`, and its lists under `keys`, beside those of `config`."""
    earlier = load_config(saved)
    found = [f"experiment.draws={max(earlier.experiment.draws, config.experiment.draws)}"]
    for key in keys:
        section, _, name = key.partition(".")
        lists = [getattr(getattr(each, section), name) for each in (earlier, config)]
        values = [*lists[0], *(value for value in lists[1] if value not in lists[0])]
        found.append(f"{key}={json.dumps(values)}")
    return found


def refuse_another_cohort(config: RunConfig, saved: Path) -> None:
    """Raise UserError where `saved`, a run's config if it is there, has other images than `config`."""
    if not saved.exists():
        return
    here, there = (
        (cohort.table, cohort.target and cohort.target.table, cohort.table or cohort.phantom)
        for cohort in (config.cohort, load_config(saved).cohort)
    )
    if here != there:
        whose = there[0] or "another procedural cohort"
        raise UserError(
            f"{saved.parent}: holds another run, of {whose}; `stedm run {shlex.quote(str(saved.parent))}` without"
            " --size continues it; to replace it name --config, or else another folder with --out"
        )


def dump_config(config: RunConfig) -> str:
    """The config as YAML, every field resolved."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config atomically."""
    write_text(path, dump_config(config))


def keys_with_help(cls: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str, Any]]:
    """Every key of the config: (dotted key, type, help text, default), in order."""
    from docstring_parser import parse_from_object

    docs = {attribute.arg_name: attribute.description or "" for attribute in parse_from_object(cls).params}
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        section = next((kind for kind in (field.type, *get_args(field.type)) if dataclasses.is_dataclass(kind)), None)
        if section is not None:  # given or, as `Optional`, left out
            yield from keys_with_help(section, f"{key}.")  # type: ignore[arg-type]
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default  # type: ignore[misc]
            yield key, _type_name(field.type), " ".join(docs.get(field.name, "").split()), default


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"{path}: cannot be read ({reason}); name a YAML config, for instance configs/demo.yaml"
        ) from None
    values = _yaml(text, str(path))
    if not isinstance(values, dict | None):
        raise UserError(f"{path}: expected keys and values, as in configs/demo.yaml")
    return values or {}


def _yaml(text: str, origin: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{origin}: not valid YAML ({error})") from None


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:  # absent, or an empty section of the file
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"--{key}: {section} is not a section")
    values[last] = value


def _build(cls: type, values: Any, origin: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(
            f"{origin}: {prefix.rstrip('.') or 'the config'} is a section; give it keys, not {_shown.repr(values)}"
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise UserError(f"{origin}: unknown key `{prefix}{key}`{_nearest_key(str(key), prefix)}")
    return cls(**{key: _value(fields[key].type, value, origin, prefix + key) for key, value in values.items()})


def _nearest_key(key: str, prefix: str) -> str:
    """The nearest valid key: by its last part anywhere, preferring the same section."""
    valid = [name for name, *_ in keys_with_help()]
    sections = [field.name for field in dataclasses.fields(RunConfig)]
    near = difflib.get_close_matches(f"{prefix}{key}", valid + sections, n=1, cutoff=0.6)
    same_end = [name for name in valid if name.rpartition(".")[2] == key]
    best = (same_end or near or difflib.get_close_matches(key, [v.rpartition(".")[2] for v in valid], n=1, cutoff=0.4))[
        :1
    ]
    return f"; did you mean `{best[0]}`?" if best else "; `stedm run --help` lists the keys"


def _value(kind: Any, value: Any, origin: str, key: str) -> Any:
    """Check `value` against a field's type; whole numbers pass as floats, numbers as text where text is expected."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value if value is not None else {}, origin, f"{key}.")  # type: ignore[arg-type]
    form, arguments = get_origin(kind), get_args(kind)
    wrong = UserError(f"{origin}: `{key}` is {_shown.repr(value)}; expected {_type_name(kind)}")
    if form in (Union, types.UnionType):
        kinds = [a for a in arguments if a is not type(None)]
        if value is None and len(kinds) < len(arguments):
            return None
        if len(kinds) == 1:
            return _value(kinds[0], value, origin, key)
        for alternative in kinds:
            with contextlib.suppress(UserError):
                return _value(alternative, value, origin, key)
        raise wrong
    if form is Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1)
            raise UserError(f"{wrong}" + (f"; did you mean {near[0]}?" if near else ""))
        return value
    if form is list:
        if not isinstance(value, list):
            raise wrong
        return [_value(arguments[0], item, origin, f"{key}[{k}]") for k, item in enumerate(value)]
    if form is dict:
        if not isinstance(value, dict):
            raise wrong
        return {str(name): _value(arguments[1], item, origin, f"{key}.{name}") for name, item in value.items()}
    if kind is Any:  # an entry of a list: no lists in lists, which aliases can make astronomically large
        kind = type(value)
        if not isinstance(value, str | int | float | bool):
            raise wrong
    return _scalar(kind, value, wrong)


def _scalar(kind: type, value: Any, wrong: UserError) -> Any:
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            value = float(value)
        except ValueError:
            raise wrong from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong
    if isinstance(value, int | float) and not abs(value) <= _MOST:
        raise wrong
    return value


def _type_name(kind: Any) -> str:
    form, arguments = get_origin(kind), get_args(kind)
    if form in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type_name(a) for a in arguments)
    if form is Literal:
        return " | ".join(str(a) for a in arguments)
    if form is list:
        return f"list of {_type_name(arguments[0])}"
    if form is dict:
        return f"mapping of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(
        kind, getattr(kind, "__name__", str(kind))
    )
