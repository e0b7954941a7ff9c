"""Atomic writes: a file or folder appears whole under its final name, or not at all."""

import errno
import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stedm.errors import Stopped, UserError

_TEMPORARY = re.compile(r"\..+\.stedm-[0-9a-f]{8}(\.\w+)?")
"""Names of what is half-written: with a mark of our own, for folders may hold hidden files of the user's."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_FIXES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "allow larger files (`ulimit -f`)",
    errno.EROFS: "make it writable, or choose another folder with --out",
    errno.EACCES: "correct its permissions, or choose another folder with --out",
    errno.EPERM: "correct its permissions, or choose another folder with --out",
    errno.EIO: "look after its disk",
    errno.EEXIST: "move what is there away",
    errno.ENOTDIR: "move what is there away",
    errno.EISDIR: "move what is there away",
    errno.ENOTEMPTY: "end what else writes there",
}
"""What the user can do about an error number."""


def _temporary_sibling(path: Path) -> Path:
    # The suffix stays at the end: image and table writers choose their format by it.
    return path.with_name(f".{path.stem}.stedm-{uuid.uuid4().hex[:8]}{path.suffix}")


def remove_temporaries(folder: str | Path, pattern: str = "**/.*") -> None:
    """Remove what a killed process left half-written anywhere below `folder`; call it when nobody else writes there.

    pattern: of the files' names; the default looks into every folder below.
    """
    for path in [path for path in Path(folder).glob(pattern) if _TEMPORARY.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what the file system refuses in the block into Stopped, which names the path and the fix.

    Libraries that write from C report a full disk in words of their own: whatever goes wrong while not even a small
    file can be written beside `path` is taken for one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) and error.errno else _probe(Path(path).parent)
        if number not in _FIXES:
            raise
        where = path if number in _NO_ROOM else getattr(error, "filename", None) or path
        raise Stopped(f"{where}: {os.strerror(number)}; {_FIXES[number]}; the same command continues") from error


def _probe(folder: Path) -> int | None:
    """Number of the error on writing a small file into `folder`; None if that works, or there is no such folder."""
    probe = _temporary_sibling(folder / "probe")
    try:
        probe.write_bytes(bytes(2**16))
    except OSError as error:
        return error.errno if error.errno in {*_NO_ROOM, errno.EFBIG} else None
    finally:
        probe.unlink(missing_ok=True)
    return None


def remove_folder(path: Path) -> None:
    """Remove a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error."""
    path = Path(path)
    temporary = _temporary_sibling(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # a folder that cannot be written, or is none
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; replace `path` by it when the block ends without an error."""
    path = Path(path)
    temporary = _temporary_sibling(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            if path.exists():
                retired = _temporary_sibling(path)
                os.replace(path, retired)
                os.replace(temporary, path)
                retired.unlink() if retired.is_symlink() else shutil.rmtree(retired)
            else:
                os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path, *, folder: Path, fix: str, busy: str | None) -> Iterator[None]:
    """Hold the lock file `path`, made with its folder; the lock goes with the process, however it ends.

    Raises errors about `folder`: Stopped, with `fix`, when it cannot be written, UserError, with `busy`, when another
    process is there. busy None: wait for the other process.
    """
    try:
        handle = _hold(path, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
    except BlockingIOError:
        raise UserError(f"{folder}: {busy}") from None
    except OSError as error:
        fix = _FIXES[error.errno] if error.errno in _NO_ROOM else fix
        raise Stopped(f"{folder}: cannot be written ({error.strerror}); {fix}") from None
    with handle:
        yield


def _hold(path: Path, operation: int) -> IO[str]:
    """The locked file, open; one that its former holder removed in the meantime locks nothing, and is made anew."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link in its place would be followed, and what it leads to be locked and removed.
        handle = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
        try:
            fcntl.flock(handle, operation)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle.fileno())):
                return handle
        except FileNotFoundError:
            pass
        except OSError:
            handle.close()
            raise
        handle.close()


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
    """Write `text` atomically as UTF-8; what is no Unicode, as names of files may be, written out."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
