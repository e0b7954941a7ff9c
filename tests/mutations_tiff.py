"""TIFF files with fields of their directories changed, for the harness of mutations.py: classic and BigTIFF."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

VALUES = (0, 1, 2, 3, 7, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
"""What fields become."""
_KINDS = 19


@dataclass(frozen=True)
class _Layout:
    """Where the fields of a kind of TIFF are: bytes of a place, of the number of entries, and of an entry."""

    order: str
    place: int
    number: int
    entry: int

    @classmethod
    def of(cls, content: bytes) -> "_Layout":
        order = "<" if content[:2] == b"II" else ">"
        big = struct.unpack(f"{order}H", content[2:4])[0] == 43
        return cls(order, 8, 8, 20) if big else cls(order, 4, 2, 12)

    def read(self, content: bytes, at: int, width: int) -> int:
        return int.from_bytes(content[at : at + width], "little" if self.order == "<" else "big")

    def written(self, content: bytes, at: int, width: int, value: int) -> bytes:
        field = (value % 2 ** (8 * width)).to_bytes(width, "little" if self.order == "<" else "big")
        return content[:at] + field + content[at + width :]


def directories(content: bytes) -> Iterator[tuple[int, int]]:
    """Place and number of entries of each directory, until one comes again or lies behind the end."""
    layout, seen = _Layout.of(content), set[int]()
    at = layout.read(content, layout.place, layout.place)
    while 0 < at < len(content) and at not in seen:
        seen.add(at)
        number = layout.read(content, at, layout.number)
        yield at, number
        at = layout.read(content, next_of(content, at), layout.place)


def next_of(content: bytes, at: int) -> int:
    """Where the directory at `at` has the place of the next one."""
    layout = _Layout.of(content)
    return at + layout.number + layout.entry * layout.read(content, at, layout.number)


def chained(content: bytes, target: int) -> bytes:
    """The file, its last directory followed by the one numbered `target`: there is no end to them."""
    layout, places = _Layout.of(content), [at for at, _ in directories(content)]
    return layout.written(content, next_of(content, places[-1]), layout.place, places[target])


def other_tiff(content: bytes, rng: np.random.Generator) -> bytes:
    """The file but for a few fields: the next directory, the number of entries, a tag, its kind, count or value."""
    layout, found = _Layout.of(content), list(directories(content))
    for _ in range(int(rng.integers(1, 4))):
        at, number = found[int(rng.integers(len(found)))]
        entry = at + layout.number + layout.entry * int(rng.integers(number))
        value = int(rng.choice(np.array(VALUES, dtype=object)))
        match int(rng.integers(10)):
            case 0:
                places = [*(place for place, _ in found), 0, 1, len(content) - 1, value]
                chosen = places[int(rng.integers(len(places)))]
                content = layout.written(content, next_of(content, at), layout.place, chosen)
            case 1:
                content = layout.written(content, at, layout.number, value)
            case 2:
                other = layout.read(content, at + layout.number + layout.entry * int(rng.integers(number)), 2)
                content = layout.written(content, entry, 2, other)
            case 3:
                content = layout.written(content, entry + 2, 2, int(rng.integers(_KINDS)))
            case 4 | 5:
                content = layout.written(content, entry + 4, layout.place, value)
            case _:
                width = int(rng.choice([2, 4, layout.place]))
                content = layout.written(content, entry + 4 + layout.place, width, value)
    return content
