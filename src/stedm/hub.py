"""Models on the Hugging Face hub (extra `hub`): what goes there, and what is taken from there."""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from stedm.errors import UserError
from stedm.files import reason_of

FILES = ["config.json", "*/config.json", "model_index.json", "*.safetensors", "README.md"]
"""Patterns of the files of a model: sizes, names, weights and the card. No code, no pickle."""
CARD = "README.md"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Saveable(Protocol):
    """A model that is kept in a folder."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it."""
        ...


def is_id(name: str) -> bool:
    """Whether text is a hub id `user/name`, and no path: neither it nor a folder of the user's name is there."""
    return bool(_ID.fullmatch(name)) and not Path(name).exists() and not Path(name).parent.exists()


def local_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself, or a copy of what the hub has under the id `user/name`.

    Only text can be a hub id, never a Path, and only when neither it nor a folder of the user's name is there: a
    mistyped `runs/dmeo` is asked of nobody. revision: branch, tag or commit on the hub. Raises UserError without the
    extra, without a network, and for an id that the hub does not know.
    """
    if not isinstance(name, str) or not is_id(name):
        return Path(name)
    hub = _library()
    with _explained(f"{name}: no such folder here, and from the hub"):
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=FILES))


def push(model: Saveable, repo_id: str, *, card: str | Path | None, private: bool, token: str | None) -> str:
    """Put a model into the repository `repo_id` (`user/name`), made if need be; the address of what was put there.

    card: a Markdown file, such as a run's report/model_card.md, that tells people about the model; None: a few lines.
    private: of a new repository, whether others cannot see it. token: None takes the one that `hf auth login` left.
    Raises UserError as `local_folder` does, and for a card that is no readable file.
    """
    if not _ID.fullmatch(repo_id):
        raise UserError(f"{repo_id!r}: no hub id; write user/name")
    text = card_text(type(model).__name__, repo_id, card)
    hub = _library()
    with tempfile.TemporaryDirectory(prefix="stedm-hub-") as folder:
        model.save_pretrained(folder)
        (Path(folder) / CARD).write_text(text, encoding="utf-8")
        with _explained(f"{repo_id}: to the hub"):
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
            said = f"{type(model).__name__} of stedm"
            return str(
                api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=FILES, commit_message=said)
            )


def card_text(class_name: str, repo_id: str, card: str | Path | None) -> str:
    """README.md of a repository: how to load the model, then the given card; one with a YAML header stays as it is."""
    try:
        given = "" if card is None else Path(card).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{card}: no readable Markdown file ({reason_of(error)}); name another card") from None
    if given.startswith("---\n"):
        return given
    kind, tags = ("image-segmentation", "histopathology") if class_name == "Segmenter" else ("", "synthetic")
    header = ["library_name: stedm", *([f"pipeline_tag: {kind}"] if kind else []), f"tags: [stedm, {tags}]"]
    return "\n".join(
        [
            *("---", *header, "---", ""),
            *("```python", f"from stedm import {class_name}  # pip install 'stedm[hub]'", ""),
            *(f'model = {class_name}.from_pretrained("{repo_id}")', "```", ""),
            given or f"# {repo_id}\n\nNothing more is said about this model. Not a medical device.\n",
        ]
    )


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the hub needs the extra `hub`: pip install 'stedm[hub]'") from None
    return huggingface_hub


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise UserError for whatever the hub's library raises: it has an error for each of many causes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            fix = "correct the name, or `hf auth login` with a token that may do this"
            raise UserError(f"{what}: refused with status {status} ({reason_of(error)}); {fix}") from error
        if isinstance(error, ValueError):
            raise UserError(f"{what}: no hub id or revision ({reason_of(error)}); write user/name") from error
        if isinstance(error, OSError) and error.errno in _DISK:
            raise UserError(f"{what}: {error}; make room, or name another folder with HF_HOME") from error
        fix = "connect, unset HF_HUB_OFFLINE if it is set, or name a local folder"
        raise UserError(f"{what}: the hub cannot be reached, offline ({reason_of(error)}); {fix}") from error
