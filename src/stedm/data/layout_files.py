"""Layouts from a folder of label-map files, brought to the size the generator draws."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stedm.config import IGNORE
from stedm.data.labels import read_mask
from stedm.data.patches import extract_label_patch
from stedm.errors import UserError

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


class LayoutFiles:
    """Label maps of a folder as layouts (size_px, size_px) uint8: classes, 255 unknown.

    A larger label map lends a window of its own at random; a smaller one lies in the middle, unknown around it.
    """

    def __init__(self, folder: str | Path, *, classes: Sequence[str], size_px: int) -> None:
        """Every file is read and checked. Raises UserError naming the file and the fix."""
        self.folder, self.size_px = Path(folder), size_px
        if not self.folder.is_dir():
            found = "a file" if self.folder.exists() else "no such folder"
            raise UserError(f"{folder}: {found}; name a folder of label maps (PNG or TIFF)")
        self.names = sorted(path.name for path in self.folder.iterdir() if path.suffix.lower() in SUFFIXES)
        """File names, sorted."""
        if not self.names:
            raise UserError(f"{folder}: holds no label map; put PNG or TIFF files of class values there")
        self._classes = list(classes)
        self._shapes, self._values = {}, set[int]()
        for name in self.names:
            self._shapes[name], values = self._checked(name)
            self._values |= values
        self._read = functools.lru_cache(maxsize=64)(lambda name: read_mask(self.folder / name))

    def notices(self) -> list[str]:
        """What a user may not have meant: a sentence each."""
        found, small = [], sum(min(shape) < self.size_px for shape in self._shapes.values())
        if small:
            found.append(
                f"{small} of {len(self.names)} label maps are smaller than {self.size_px} px: unknown around them"
            )
        shown = sorted(self._values - {IGNORE})
        if IGNORE in self._values and len(shown) <= 1 < len(self._classes):
            only = "".join(f"{value} ({self._classes[value]}) and " for value in shown)
            found.append(
                f"the label maps have {only}{IGNORE} alone, which is unknown: the generator draws there what it likes;"
                f" if a class is meant, save it as its value ({self._known})"
            )
        return [f"{self.folder}: {sentence}" for sentence in found]

    @property
    def _known(self) -> str:
        """The classes with their values, in words."""
        return ", ".join(f"{value} {name}" for value, name in enumerate(self._classes))

    def choose(self, k: int, rng: np.random.Generator) -> dict[str, Any]:
        """Columns of a plan's row k: files take turns; which window of the file."""
        name = self.names[k % len(self.names)]
        top, left = (self._start(length, rng) for length in self._shapes[name])
        return {"layout_kind": "file", "layout_source": name, "layout_x_px": left, "layout_y_px": top}

    def of(self, row: Any) -> np.ndarray:
        """Layout (size_px, size_px) uint8 of a plan row."""
        label_map = self._read(row["layout_source"]).astype(np.uint8)
        return extract_label_patch(label_map, row["layout_x_px"], row["layout_y_px"], scale=1, patch_px=self.size_px)

    def _start(self, length: int, rng: np.random.Generator) -> int:
        """First row or column of the window, in pixels of the label map; negative where that is smaller."""
        room = length - self.size_px
        return int(rng.integers(room + 1)) if room >= 0 else -(-room // 2)

    def _checked(self, name: str) -> tuple[tuple[int, int], set[int]]:
        """Height and width of a label map, and its values, which must be classes or 255."""
        label_map = read_mask(self.folder / name)
        values = set(np.unique(label_map).tolist())
        wrong = sorted(value for value in values if value >= len(self._classes) and value != IGNORE)
        if wrong:
            raise UserError(
                f"{self.folder / name}: value(s) {', '.join(map(str, wrong[:8]))} are no class of the model"
                f" ({self._known}, {IGNORE} unknown); save the label map with these values"
            )
        height, width = label_map.shape
        return (height, width), values
