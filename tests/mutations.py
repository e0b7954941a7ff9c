"""A harness for hostile files: spoil a good file, let the product read it, and insist on how that ends.

A case may end in two ways: the file is read, or it is refused with a UserError. Anything else is a `Failure`: another
exception, more time or memory than the limits, a file written outside of the folder that is being worked in.
Cases are numbered; a format, a seed and a number always give the same file.
"""

import gzip
import io
import json
import resource
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from mutations_tiff import other_tiff

from stedm.errors import UserError

Kind = Literal["bytes", "text", "json", "png", "parquet", "tiff"]
UP, ROOT = ".." + "/", "/"
"""Ways out of a folder."""
ABSOLUTE = f"{ROOT}etc/x"
"""Stands for the path of a file beside the folder: `mutants` puts that in its place, where a write would be seen."""
DEPTH = 3
"""So many folders above the one that is worked in, everything is watched: `UP * 3` leads out, and no farther."""
LIMIT_S = 10.0
"""Processor time of a case; what only waits is stopped by pytest's own limit. Hardly any case takes a second."""
LIMIT_BYTES = 2 * 2**30
"""Memory a case may take beyond what the process has before it."""
WORDS = (
    b"NaN",
    b"Infinity",
    b"-1",
    b"0",
    b"1e308",
    b"1e999",
    b"-0.5",
    b"9" * 400,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    f'"{UP * 3}x"'.encode(),
    f'"{ABSOLUTE}"'.encode(),
    b'"CON"',
    b'"<script>alert(1)</script>"',
    b'"=1+1"',
    b'"\\u0000"',
    b'"\\ud800"',
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\x00",
    b"\xff\xfe",
    b"\n\n",
    b",,,",
    b'"',
    "é漢\U0001f9ec".encode(),
)
"""What text files get in the place of a value."""
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF)
"""What binary files get in the place of a field."""


@dataclass(frozen=True)
class Format:
    """A kind of file: how a good one is written, and all that the product does with it."""

    name: str
    write: Callable[[Path], Path]
    """Writes good files into a folder; the one that is spoiled."""
    read: Callable[[Path], Any]
    """Given the spoiled file, in its folder."""
    kind: Kind = "bytes"
    """How it is spoiled; a PNG's checksums are made good again, or nothing but them would ever be looked at, and
    cells of a Parquet table, fields of a TIFF's directories are exchanged."""


class Failure(AssertionError):
    """A case that ended in neither of the two allowed ways."""


class _TooLong(BaseException):
    """Not an Exception, so that nothing takes it for a damaged file."""


HOSTILE = (
    float("nan"), float("inf"), -1, 0, 1e308, -0.5, 10**400, 2**31, 2**63, None, True,
    [], {}, "", "x", [None], [[]], {"a": {}}, f"{UP * 3}x", ABSOLUTE, "CON", "<script>alert(1)</script>", "=1+1",
    "a\nb", "\u0000", "\ud800", "é漢\U0001f9ec", "x" * 5000,
)  # fmt: skip
"""What values of JSON files become."""


def spoiled(content: bytes, rng: np.random.Generator, *, kind: str, beside: str = ABSOLUTE) -> bytes:
    """Another file, near to the good one: bits flipped, cut, zeroed, repeated, moved, replaced by hostile values.

    beside: what stands where ABSOLUTE would.
    """
    if kind == "parquet" and rng.random() < 0.6:
        return _other_table(content, rng, beside)
    return _spoiled(content, rng, kind=kind).replace(ABSOLUTE.encode(), beside.encode())


def _spoiled(content: bytes, rng: np.random.Generator, *, kind: str) -> bytes:
    if rng.random() < 0.03:
        return b"" if rng.random() < 0.3 else rng.bytes(int(rng.integers(1, 2000)))
    if kind == "json" and rng.random() < 0.7:
        return json.dumps(_other_value(json.loads(content), rng)).encode()
    if kind == "png" and rng.random() < 0.6:
        return _other_png(content, rng)
    if kind == "tiff" and rng.random() < 0.6:
        return other_tiff(content, rng)
    changes = _TEXT_CHANGES if kind in ("text", "json") else _BINARY_CHANGES
    for _ in range(int(rng.integers(1, 4))):
        content = changes[int(rng.integers(len(changes)))](content, rng)
    return with_checksums(content) if kind == "png" and rng.random() < 0.9 else content


def with_checksums(content: bytes) -> bytes:
    """A PNG file whose chunks have the checksums they ought to have."""
    at, changed = 8, bytearray(content)
    while at + 12 <= len(changed):
        end = at + 8 + int.from_bytes(changed[at : at + 4], "big")
        if end + 4 > len(changed):
            break
        changed[end : end + 4] = zlib.crc32(changed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(changed)


def _other_png(content: bytes, rng: np.random.Generator) -> bytes:
    """A PNG file that only a decoder can tell from a whole one: its chunks hang together, their checksums are right."""
    chunks = list(_chunks(content))
    header = bytearray(chunks[0][1])
    pixels = bytearray(zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT")))
    others = [chunk for chunk in chunks[1:] if chunk[0] not in (b"IDAT", b"IEND")]
    for _ in range(int(rng.integers(1, 3))):
        match int(rng.integers(6)):
            case 0:  # sizes
                at = int(rng.choice([0, 4]))
                size = int.from_bytes(header[at : at + 4], "big")
                size = int(rng.choice([1, size - 1, size + 1, 2 * size, 2**15]))
                header[at : at + 4] = size.to_bytes(4, "big")
            case 1:  # bit depth, kind of colours, interlace
                at, values = [(8, (1, 2, 4, 8, 16)), (9, (0, 2, 3, 4, 6)), (12, (0, 1))][int(rng.integers(3))]
                header[at] = int(rng.choice(values))
            case 2:  # filters and pixels
                for place in rng.integers(len(pixels), size=int(rng.integers(1, 9))):
                    pixels[place] = int(rng.integers(256))
            case 3:  # too few or too many rows
                pixels = pixels[: int(rng.integers(1, len(pixels)))] if rng.random() < 0.5 else pixels + pixels
            case 4:  # a palette, whole or not, and its transparency
                entries = int(rng.choice([1, 2, 4, 255, 256, 300]))
                others += [(b"PLTE", rng.bytes(3 * entries - int(rng.integers(2)))), (b"tRNS", rng.bytes(entries))]
            case 5:  # text that unpacks to much, and a colour profile
                bomb = zlib.compress(bytes(2**22))
                others += [[(b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)][int(rng.integers(2))]]
    packed = zlib.compress(bytes(pixels))
    half = int(rng.integers(len(packed)))
    ordered = [(b"IHDR", bytes(header)), *others, (b"IDAT", packed[:half]), (b"IDAT", packed[half:]), (b"IEND", b"")]
    parts = [len(data).to_bytes(4, "big") + kind + data + bytes(4) for kind, data in ordered]
    return with_checksums(content[:8] + b"".join(parts))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG file."""
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at + 8 : end]
        at = end + 4


def _other_table(content: bytes, rng: np.random.Generator, beside: str) -> bytes:
    """The same Parquet table but for one cell, or one column: another value, none, or under another name."""
    table = pd.read_parquet(io.BytesIO(content))
    name, value = str(rng.choice(list(table))), str(HOSTILE[int(rng.integers(len(HOSTILE)))])
    value = value.replace(ABSOLUTE, beside).encode("utf-8", "replace").decode()
    match int(rng.integers(6)):
        case 0:
            table = table.drop(columns=name)
        case 1:
            table = table.rename(columns={name: "other"})
        case 2:
            table = pd.concat([table, table]) if rng.random() < 0.5 else table.head(0)
        case 3:
            table[name] = [value] * len(table)
        case 4:
            table[name] = [None] * len(table)
        case 5:
            cells = [value if k == 0 else str(cell) for k, cell in enumerate(table[name])]
            table[name] = pd.to_numeric(cells, errors="coerce") if table[name].dtype.kind in "iufb" else cells
    written = io.BytesIO()
    table.to_parquet(written)
    return written.getvalue()


def _other_value(value: Any, rng: np.random.Generator) -> Any:
    """The same JSON value but for one place: another value, none, twice the same, or under another key."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.1:
        return HOSTILE[int(rng.integers(len(HOSTILE)))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, deed = keys[int(rng.integers(len(keys)))], rng.random()
    changed = value.copy()
    if deed < 0.75:
        changed[key] = _other_value(value[key], rng)
    elif deed < 0.85:
        del changed[key]
    elif isinstance(changed, dict):
        changed[str(HOSTILE[int(rng.integers(len(HOSTILE)))])] = changed.pop(key)
    else:
        changed = changed + changed
    return changed


def _place(content: bytes, rng: np.random.Generator) -> int:
    """A position, half of the time near one of the ends, where headers and directories are."""
    near = min(len(content), 400)
    where = rng.random()
    if where < 0.35:
        return int(rng.integers(near + 1))
    return (
        int(rng.integers(len(content) - near, len(content) + 1)) if where < 0.5 else int(rng.integers(len(content) + 1))
    )


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[min(_place(content, rng), len(changed) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def _zero(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = _place(content, rng), int(rng.integers(1, 64))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def _noise(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = _place(content, rng), int(rng.integers(1, 64))
    return content[:start] + rng.bytes(length) + content[start + length :]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = _place(content, rng), int(rng.integers(1, 200))
    return (
        content[: start + length]
        + content[start : start + length] * int(rng.integers(1, 4))
        + content[start + length :]
    )


def _remove(content: bytes, rng: np.random.Generator) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + int(rng.integers(1, 64)) :]


def _number(content: bytes, rng: np.random.Generator) -> bytes:
    value, width = NUMBERS[int(rng.integers(len(NUMBERS)))], int(rng.choice([1, 2, 4, 8]))
    order = "little" if rng.random() < 0.5 else "big"
    start = _place(content, rng)
    return content[:start] + (value % 2 ** (8 * width)).to_bytes(width, order) + content[start + width :]


def _word(content: bytes, rng: np.random.Generator) -> bytes:
    """Put a hostile value where a value, a name or a number stands."""
    ends = [k for k, byte in enumerate(content) if byte in b',:[]{}\n "']
    if len(ends) < 2:
        return content
    k = int(rng.integers(len(ends) - 1))
    return content[: ends[k] + 1] + WORDS[int(rng.integers(len(WORDS)))] + content[ends[k + 1] :]


_BINARY_CHANGES = (_flip, _flip, _cut, _zero, _noise, _repeat, _remove, _number, _number)
_TEXT_CHANGES = (_flip, _cut, _noise, _repeat, _remove, _word, _word, _word)


def mutants(form: Format, folder: Path, *, cases: int, seed: int = 0) -> Iterator[tuple[int, Path]]:
    """The spoiled file of each case, in a fresh copy of the folder of good ones; gzipped files also inside."""
    good = form.write(_emptied(folder))
    content, beside = good.read_bytes(), folder.parent / "beside"
    beside.mkdir(exist_ok=True)
    (beside / "x").write_bytes(b"precious")
    for case in range(cases):
        rng = np.random.default_rng([seed, sum(form.name.encode()), case])
        inside = content.startswith(b"\x1f\x8b") and rng.random() < 0.5
        plain = gzip.decompress(content) if inside else content
        changed = spoiled(plain, rng, kind="json" if inside else form.kind, beside=str(beside / "x"))
        good.write_bytes(gzip.compress(changed, mtime=0) if inside else changed)
        yield case, good


def _emptied(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def outcome(form: Format, path: Path, *, inside: Path) -> str:
    """`read` or `refused`; raises Failure for any other end. Beside the folder `inside`, nothing may change."""
    watched = inside.parents[DEPTH - 1]
    before = tree(watched, inside)
    started = time.process_time()
    try:
        with limits():
            form.read(path)
        found = "read"
    except UserError as error:
        if not str(error).strip() or "\n" in str(error):
            raise Failure(f"{form.name}: the message is not one line: {error!r}") from error
        found = "refused"
    except _TooLong:
        raise Failure(f"{form.name}: more than {LIMIT_S} s") from None
    except Exception as error:
        raise Failure(f"{form.name}: {type(error).__name__}: {error}") from error
    if time.process_time() - started > LIMIT_S:
        raise Failure(f"{form.name}: more than {LIMIT_S} s")
    if (after := tree(watched, inside)) != before:
        raise Failure(f"{form.name}: written outside: {set(after.items()) ^ set(before.items())}")
    return found


@contextmanager
def limits(limit_s: float | None = None) -> Iterator[None]:
    """Time and memory of a case; the time is LIMIT_S when not given.

    Too little memory becomes a MemoryError, which is none of the allowed ends.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def too_long(*_: object) -> None:
        raise _TooLong

    earlier = signal.signal(signal.SIGPROF, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, limit_s or LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, earlier)


def tree(watched: Path, except_for: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below `watched`, links not followed."""
    found = {}
    for path in watched.rglob("*"):
        if except_for not in path.parents and path != except_for:
            state = path.lstat()
            found[str(path)] = (state.st_size, 0 if path.is_dir() else state.st_mtime_ns)
    return found
