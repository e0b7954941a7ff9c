"""Model folders: config.json + model.safetensors. Loading executes nothing and fetches nothing."""

import json
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stedm.errors import UserError
from stedm.files import atomic_path, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a model folder's config.json; a clear error when it is missing or damaged."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; name a model folder written by stedm") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the model folder again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object; copy the model folder again")
    return config


class FolderModel(nn.Module):
    """A module that remembers its constructor arguments in `config` (JSON values) and lives in a model folder."""

    config: dict[str, Any]

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
        path = Path(folder) / WEIGHTS
        try:
            model = cls(**config)
            model.load_state_dict(load_file(path))
        except FileNotFoundError:
            raise UserError(f"{path}: not found; copy the whole model folder") from None
        except Exception as error:  # a damaged file can fail in many ways inside safetensors, torch or the constructor
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: does not fit its config.json ({reason}); copy the folder again") from error
        return model.eval().to(memory_format=torch.channels_last)
