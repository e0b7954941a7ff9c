"""Atomic writes: a file or folder appears whole under its final name, or not at all."""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stedm.errors import UserError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")


def _temporary_sibling(path: Path) -> Path:
    # The suffix stays at the end: image and table writers choose their format by it.
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")


def remove_temporaries(folder: str | Path) -> None:
    """Remove what a killed process left half-written anywhere below `folder`; call it when nobody else writes there."""
    for path in [path for path in Path(folder).rglob(".*") if _TEMPORARY.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; replace `path` by it when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            retired = _temporary_sibling(path)
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path, *, folder: Path, fix: str, busy: str) -> Iterator[None]:
    """Hold the lock file `path`, made with its folder; the lock goes with the process, however it ends.

    Raises UserError about `folder`: with `fix` when it cannot be written, with `busy` when another process is there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link in its place would be followed, and what it leads to emptied.
        handle = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); {fix}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: {busy}") from None
        yield


def refuse_links(folder: Path) -> None:
    """Raise UserError for a symbolic link in `folder` that leads out of it, where stedm would write and remove files.

    The folder itself may be a link.
    """
    root = os.path.realpath(folder)
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            if os.path.islink(path) and os.path.commonpath([root, os.path.realpath(path)]) != root:
                raise UserError(
                    f"{path}: is a link out of the folder, and stedm writes only inside; put the whole folder there,"
                    f" and make {folder} the link"
                )


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN and infinity are refused, because JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file that stedm has written. Raises UserError for a damaged one."""
    with whole(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def whole(path: str | Path, *, fix: str = "remove it, and run the same command again") -> Iterator[None]:
    """Raise UserError about the file `path` of a run folder for whatever the block raises while it reads it.

    A damaged file can fail in many ways inside libraries. What is not there is no damage: FileNotFoundError passes.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        raise UserError(f"{path}: damaged or not written by stedm ({reason_of(error)}); {fix}") from error


def reason_of(error: BaseException) -> str:
    """The first line of what an exception says, at most 200 characters; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def link(source: Path, target: Path) -> None:
    """Make `target` a second name of a file, or of every file in a folder; a copy where the file system has no links.

    A folder appears whole or not at all. What writes here replaces files and never changes them, so neither name sees
    what later becomes of the other.
    """
    with atomic_folder(target) if source.is_dir() else atomic_path(target) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link_file, dirs_exist_ok=True)
        else:
            _link_file(source, temporary)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
