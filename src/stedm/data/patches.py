"""Patches: where they lie in an image, which of their pixels count, and reading them from a run folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stedm.config import IGNORE
from stedm.data.images import decode, open_image
from stedm.errors import UserError
from stedm.files import reason_of


def _starts(length_px: int, patch_px: int) -> list[int]:
    count = max(1, -(-length_px // patch_px))
    return [max(0, min(i * patch_px, length_px - patch_px)) for i in range(count)]


def tile_grid(width_px: int, height_px: int, patch_px: int) -> list[tuple[int, int]]:
    """Top-left corners (x, y) of the patches that cover an image, row by row.

    The last patch of a row or column is shifted inwards; an image smaller than a patch gets one patch at 0.
    """
    return [(x, y) for y in _starts(height_px, patch_px) for x in _starts(width_px, patch_px)]


def main_group(groups: Sequence[str]) -> str:
    """The group a patient counts in: the one of most of its rows; of several, the first by name; "" if none has one."""
    named = sorted(name for name in groups if name and not pd.isna(name))
    return max(dict.fromkeys(named), key=named.count, default="")


def counted_once(label_maps: np.ndarray, patches: pd.DataFrame) -> np.ndarray:
    """Label maps (n, P, P) in which every pixel of an image counts once: what an earlier patch shows too is ignore.

    The last patch of a row or column is shifted inwards and shows again what its neighbour does, in a small image most
    of it. patches: rows of the patches table, in the order of the maps.
    """
    once, patch_px = label_maps.copy(), label_maps.shape[-1]
    mpp = patches["mpp"].to_numpy(float)
    corners = np.rint(patches[["x_um", "y_um"]].to_numpy(float) / mpp[:, None]).astype(int)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    earlier: dict[tuple[str, int, int], list[tuple[int, int]]] = {}  # by image and square of P pixels
    for k, (image, (x, y)) in enumerate(zip(patches["source"], corners.tolist(), strict=True)):
        column, row = x // patch_px, y // patch_px
        for i, j in around:
            for left, top in earlier.get((image, column + i, row + j), []):
                dx, dy = left - x, top - y
                if abs(dx) < patch_px and abs(dy) < patch_px:
                    once[k, max(dy, 0) : patch_px + min(dy, 0), max(dx, 0) : patch_px + min(dx, 0)] = IGNORE
        earlier.setdefault((image, column, row), []).append((x, y))
    return once


def extract_label_patch(
    label_map: np.ndarray, left_px: float, top_px: float, *, scale: float, patch_px: int
) -> np.ndarray:
    """Patch (patch_px, patch_px) of a label map (H, W), nearest pixel; ignore outside of the map.

    left_px and top_px are in pixels of the map; `scale` is map pixels per patch pixel.
    """
    centres = (np.arange(patch_px) + 0.5) * scale
    rows, columns = np.floor(top_px + centres).astype(int), np.floor(left_px + centres).astype(int)
    height, width = label_map.shape
    patch = label_map[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return np.where(inside, patch, np.uint8(IGNORE))


class _PatchFiles:
    """Patches read from PNG files; what fits into `cache_bytes` of memory is kept."""

    mode: str

    def __init__(self, folder: str | Path, paths: Sequence[str], *, cache_bytes: int = 2**30) -> None:
        self._folder = Path(folder)
        self._paths = [str(path) for path in paths]
        self._free_bytes = cache_bytes
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def _read(self, index: int) -> np.ndarray:
        if index in self._cache:
            return self._cache[index]
        if not self._paths[index]:
            raise LookupError(f"patch {index} has no file of this kind")
        try:
            with open_image(self._folder / self._paths[index], as_rgb=self.mode == "RGB") as image:
                patch = np.asarray(decode(image).convert(self.mode))
        except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self._folder / self._paths[index]}: unreadable patch ({reason_of(error)}); run prepare again"
            ) from None
        if patch.nbytes <= self._free_bytes:
            self._cache[index] = patch
            self._free_bytes -= patch.nbytes
        return patch

    def _stack(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        patches = [self._read(int(index)) for index in indices]
        for index, patch in zip(indices, patches, strict=True):
            if patch.shape != patches[0].shape:
                sizes = " and ".join(f"{found.shape[1]} x {found.shape[0]} px" for found in (patch, patches[0]))
                raise UserError(f"{self._folder / self._paths[int(index)]}: {sizes} in one set; run prepare again")
        return np.stack(patches)


class PatchImages(_PatchFiles):
    """The images of a list of patches, `paths` relative to `folder`."""

    mode = "RGB"

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images (n, H, W, 3) uint8 of these positions in the list."""
        return self._stack(indices)


class LabelMaps(_PatchFiles):
    """The label maps of a list of patches; an empty path means none, and asking for it raises LookupError."""

    mode = "L"

    def label_maps(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Label maps (n, H, W) uint8 of these positions in the list: classes, 255 = ignore."""
        return self._stack(indices)
