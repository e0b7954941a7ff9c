"""JSON files too large to hold as Python objects: the elements of their long arrays one by one."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from stedm.errors import UserError

_GZIP = b"\x1f\x8b"
_MOST_UNPACKED, _MOST_RATIO = 2**28, 100
"""Bytes a gzip file may unpack to, and how many times its own: coordinates shrink to a third, not to a hundredth."""
_SPACE = re.compile(r"[ \t\r\n]*")


_decoder = json.JSONDecoder()
"""Takes NaN for a number, as QuPath's measurements do."""


def read_text(path: str | Path) -> str:
    """Text of a JSON file, gzipped or not (told by its first bytes), with or without a byte order mark.

    Raises UserError for files that are missing, damaged or no Unicode text.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(_GZIP):
            most = max(_MOST_UNPACKED, _MOST_RATIO * len(content))
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(most + 1)
            if len(content) > most:
                raise UserError(f"{path}: unpacks to more than {most >> 20} MiB, which no annotation does; unpack it")
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text at byte {error.start}; export the file again as UTF-8 JSON") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); copy or export the file again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path") from None


def json_items(path: str | Path, *, streamed: Collection[str]) -> Iterator[tuple[str | None, Any]]:
    """What stands at the top level of a JSON file, as pairs of key and value.

    Of a list, every element with the key None. Of an object, every key with its value, except that those in `streamed`
    whose values are lists come once for each element, so that one element at a time is in memory; null is a list of
    none. Raises UserError naming file, line and column for damaged JSON.
    """
    text = read_text(path)
    try:
        at = _skip(text, 0)
        if text.startswith("[", at):
            at = yield from _elements(text, at, None)
        elif text.startswith("{", at):
            at = yield from _members(text, at, streamed)
        else:
            raise json.JSONDecodeError("neither an object nor a list", text, at)
        if (at := _skip(text, at)) < len(text):
            raise json.JSONDecodeError("more text after the end", text, at)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: damaged JSON at {where} ({error.msg}); copy or export the file again") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{path}: damaged JSON ({error}); copy or export the file again") from None


def _skip(text: str, at: int) -> int:
    """The next position that is not white space."""
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()


def _elements(text: str, at: int, key: str | None) -> Iterator[tuple[str | None, Any]]:
    """The elements of the list that begins at `at`; returns the position behind it."""
    at = _skip(text, at + 1)
    if text.startswith("]", at):
        return at + 1
    while True:
        value, at = _decoder.raw_decode(text, at)
        yield key, value
        at = _skip(text, at)
        if text.startswith("]", at):
            return at + 1
        at = _skip(text, _expected(text, at, ","))


def _members(text: str, at: int, streamed: Collection[str]) -> Iterator[tuple[str | None, Any]]:
    """The members of the object that begins at `at`; returns the position behind it."""
    at = _skip(text, at + 1)
    if text.startswith("}", at):
        return at + 1
    while True:
        _expected(text, at, '"')
        key, at = _decoder.raw_decode(text, at)
        at = _skip(text, _expected(text, _skip(text, at), ":"))
        if key in streamed and text.startswith("[", at):
            at = yield from _elements(text, at, key)
        else:
            value, at = _decoder.raw_decode(text, at)
            if value is not None or key not in streamed:
                yield key, value
        at = _skip(text, at)
        if text.startswith("}", at):
            return at + 1
        at = _skip(text, _expected(text, at, ","))


def _expected(text: str, at: int, character: str) -> int:
    """The position behind `character`, which has to be at `at`."""
    if not text.startswith(character, at):
        raise json.JSONDecodeError(f"expected {character}", text, at)
    return at + 1
