"""From the values in a mask file to classes 0..C-1 and ignore."""

import difflib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from stedm.config import IGNORE
from stedm.data.images import TooLarge, decode, open_image
from stedm.errors import UserError

MAX_CLASSES = 32
"""More different values than this in unmapped masks are instance labels or compression noise, not classes."""
INSTEAD = "outline it as polygons in a GeoJSON file instead"
"""What to do about a mask of too many pixels."""
_UNKNOWN = -1
_VALUES = 2**16


def read_mask(path: str | Path) -> np.ndarray:
    """Values of a mask file (1-bit, palette, 8- or 16-bit PNG or TIFF) as integers, (H, W).

    Palette images give their indices and 1-bit images 0 and 1. Raises UserError for unreadable files, for more pixels
    than `open_image` takes, for colours and for values outside 0..65535.
    """
    try:
        with open_image(path) as image:
            values = np.asarray(decode(image))
    except TooLarge as error:
        raise UserError(f"{path}: {error}; {INSTEAD}") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: unreadable mask ({error}); replace it by a PNG or TIFF label map") from None
    if values.ndim == 3:
        colours = values[..., : 3 if values.shape[-1] > 2 else 1]  # without alpha
        if (colours != colours[..., :1]).any():
            raise UserError(
                f"{path}: the mask is a colour image; save class values as 8- or 16-bit grey or palette PNG"
            )
        values = colours[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.size and (values.min() < 0 or values.max() >= _VALUES or (values != np.round(values)).any()):
        raise UserError(f"{path}: mask values must be whole numbers from 0 to {_VALUES - 1}")
    return values if values.dtype == np.uint8 else values.astype(np.uint16)


def is_value(entry: Any) -> bool:
    """Whether an entry of `cohort.labels` reads as a mask value or a range of them: a whole number, "7" or "1-254"."""
    first, _, last = str(entry).strip().partition("-")
    return not isinstance(entry, bool) and first.strip().isdecimal() and (last or first).strip().isdecimal()


def _values(entry: Any, *, key: str) -> range:
    """Values named by one entry of the config key `key`."""
    first, _, last = str(entry).strip().partition("-")
    last = last or first
    if not is_value(entry):
        raise UserError(
            f'{key}: {entry!r} is neither a value nor a range; write e.g. 1 or "1-254"; names are for polygon classes'
        )
    if int(last) < int(first) or int(last) >= _VALUES:
        raise UserError(f"{key}: {entry!r} must rise and end below {_VALUES}")
    return range(int(first), int(last) + 1)


@dataclass(frozen=True)
class LabelMap:
    """Which mask value is which class; build it with `from_config` or `from_values`."""

    classes: list[str]
    """Class names; their order gives the classes 0..C-1."""
    lookup: np.ndarray
    """(65536,) int16: class of each mask value, 255 = ignore, -1 = unknown."""
    key: str = "cohort.labels"
    """Config key that messages name."""
    names: dict[str, int] = field(default_factory=dict)
    """Class of each polygon class of annotation files by its name, 255 = ignore (see polygon_classes.py)."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Plain, its 131 kB fill the pipe to a new process, and a parent waits for a child that dies before it reads.
        return _unpacked, (self.classes, zlib.compress(self.lookup.tobytes()), self.key, self.names)

    @classmethod
    def from_config(cls, labels: dict[str, list[Any]], *, key: str = "cohort.labels") -> "LabelMap":
        """From `cohort.labels`: class name -> values; the name `ignore` stands for 255, and so does 255 if not named.

        Raises UserError.
        """
        classes = [name for name in labels if name != "ignore"]
        if not 2 <= len(classes) < IGNORE:
            raise UserError(f"{key}: {len(classes)} class(es) named besides ignore; name two or more")
        lookup = np.full(_VALUES, _UNKNOWN, np.int16)
        lookup[IGNORE] = IGNORE
        owner: dict[int, str] = {}
        for name, entries in labels.items():
            for entry in entries if isinstance(entries, list | tuple) else [entries]:
                for value in _values(entry, key=f"{key}.{name}"):
                    if owner.setdefault(value, name) != name:
                        raise UserError(
                            f"{key}: value {value} is both {owner[value]} and {name}; keep it in one of them"
                        )
                    lookup[value] = IGNORE if name == "ignore" else classes.index(name)
        return cls(classes, lookup, key)

    @classmethod
    def from_values(cls, values: Iterable[int], *, key: str = "cohort.labels") -> "LabelMap":
        """From the values found in the masks, named class<value>; 255 is ignore beside two or more other values."""
        found = sorted(set(values))
        if len(found) < 2 or len(found) > MAX_CLASSES:
            raise UserError(
                f"the masks hold {len(found)} different value(s); say which value is which class with "
                f'{key}, e.g. {{background: [0], gland: ["1-254"]}}'
            )
        classes = [value for value in found if value != IGNORE] if len(found) > 2 else found
        return cls.from_config({f"class{value}": [value] for value in classes}, key=key)

    def ordered(self, classes: list[str]) -> "LabelMap":
        """The same map with its classes in this order (a permutation of them)."""
        place = np.arange(-1, IGNORE + 1, dtype=np.int16)  # of -1 (unknown), 0, 1, ..., 255 (ignore)
        place[1 : len(classes) + 1] = [classes.index(name) for name in self.classes]
        names = {name: int(place[label + 1]) for name, label in self.names.items()}
        return replace(self, classes=list(classes), lookup=place[self.lookup + 1], names=names)

    def apply(self, mask: np.ndarray, *, source: str | Path) -> np.ndarray:
        """Label map (H, W) uint8 of mask values (H, W); raises UserError naming `source` and the unknown values."""
        label_map = self.lookup[mask]
        unknown = label_map == _UNKNOWN
        if unknown.any():
            values = np.unique(mask[unknown]).tolist()
            shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
            fix = f"add them to a class or to ignore in {self.key}"
            if str(source).lower().endswith((".jpg", ".jpeg")):
                fix = "JPEG blurs class values: save masks as PNG"
            raise UserError(f"{source}: unknown label value(s) {shown}; {fix}")
        return label_map.astype(np.uint8)


def _unpacked(classes: list[str], lookup: bytes, key: str, names: dict[str, int]) -> LabelMap:
    return LabelMap(classes, np.frombuffer(zlib.decompress(lookup), np.int16), key, names)


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The entry of `known` most like `name`, ignoring case, or None when nothing is alike."""
    folded = {entry.lower(): entry for entry in known}
    containing = [entry for entry in folded if name.lower() in entry]
    close = containing or difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else None
