"""Model folders: config.json + model.safetensors. Loading executes nothing and fetches nothing."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from stedm.errors import UserError
from stedm.files import atomic_path, reason_of, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_MOST_NUMBER, _MOST_ENTRIES, _MOST_TEXT, _MOST_LAYERS = 2**16, 256, 1000, 64
"""No size of a network, list or name in a config.json is larger: what is would take memory and time without end."""
_COUNTS = re.compile("layers|blocks|depth")
"""Names of numbers of layers, each of which takes time to make whatever its size."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a model folder's config.json; a clear error when it is missing or damaged."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; name a model folder written by stedm") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy the model folder again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({reason_of(error)}); copy the model folder again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object; copy the model folder again")
    if not is_modest(config):
        raise UserError(f"{path}: holds values that are too large for a network; copy the model folder again")
    return config


def is_modest(value: Any, name: str = "") -> bool:
    """Whether a JSON value, under that name, can be a setting of a network that is made in seconds."""
    if isinstance(value, dict):
        return len(value) <= _MOST_ENTRIES and all(is_modest(name) and is_modest(value[name], name) for name in value)
    if isinstance(value, list):
        return len(value) <= _MOST_ENTRIES and all(is_modest(entry, name) for entry in value)
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT and value.isprintable()
    return value is None or abs(value) <= (_MOST_LAYERS if _COUNTS.search(name) else _MOST_NUMBER)


def refuse_pickles(folder: Path, weights: str, *, key: str, fix: str) -> None:
    """Raise UserError for a folder from elsewhere without the safetensors file `weights`.

    Libraries open pickles (`.bin`, `.pt`, ...) where there is nothing else, and a pickle can run anything.
    key: of the config that names the folder. fix: what writes such a folder.
    """
    if not (folder / weights).is_file():
        raise UserError(
            f"{key}: {folder}: no {weights} there, and other weights (.bin, .pt) could run anything when they are"
            f" opened; {fix}"
        )


class FolderModel(nn.Module):
    """A module that remembers its constructor arguments in `config` (JSON values) and lives in a model folder."""

    config: dict[str, Any]
    not_in_folder: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments of a training's start, which a config.json must not have: they could fetch something."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`, each atomically, the weights first."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_path(Path(folder) / WEIGHTS) as temporary:
            save_file(state, temporary)
        write_json(Path(folder) / CONFIG, {"class": type(self).__name__, **self.config})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load from a local folder, in eval mode. Raises UserError when the folder does not hold such a model."""
        config = read_config(folder)
        name = config.pop("class", None)
        if name != cls.__name__:
            raise UserError(f"{Path(folder) / CONFIG}: holds a {name}, not a {cls.__name__}; name another folder")
        for key in cls.not_in_folder:
            if key in config:
                raise UserError(f"{Path(folder) / CONFIG}: has {key!r}, which no model folder has; do not trust it")
        path = Path(folder) / WEIGHTS
        try:
            _refuse_other_shapes(cls, config, path)
            model = cls(**config)
            model.load_state_dict(load_file(path))
        except FileNotFoundError:
            raise UserError(f"{path}: not found; copy the whole model folder") from None
        except Exception as error:  # a damaged file can fail in many ways inside safetensors, torch or the constructor
            raise UserError(f"{path}: does not fit its config.json ({reason_of(error)}); copy it again") from error
        return model.eval().to(memory_format=torch.channels_last)


def _refuse_other_shapes(cls: type[FolderModel], config: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless the file has the tensors of the network; both are asked without taking their memory."""
    with safe_open(path, framework="pt") as weights:
        found = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118 (no dict)
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in cls(**config).state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(f"{name}: {found.get(name)} in the file, {wanted.get(name)} in the network")
