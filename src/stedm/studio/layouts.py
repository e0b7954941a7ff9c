"""Layouts that a person picks, and the form in which the page's canvas hands them over."""

import base64
import binascii
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.config import IGNORE
from stedm.data.labels import read_mask
from stedm.data.layouts import PriorLayouts, RealLayouts
from stedm.data.patches import extract_label_patch
from stedm.errors import UserError
from stedm.stages.run_folder import RunFolder, train_patches


def packed(layout: np.ndarray) -> str:
    """A layout (H, H) uint8 as the canvas reads it: JSON with its side and its labels, row by row, in base64."""
    return json.dumps({"size": len(layout), "labels": base64.b64encode(layout.tobytes()).decode("ascii")})


def unpacked(text: str, *, num_classes: int, size_px: int) -> np.ndarray:
    """The layout (size_px, size_px) uint8 that a canvas sent; raises UserError for anything else."""
    try:
        given = json.loads(text)
        size, labels = int(given["size"]), base64.b64decode(given["labels"], validate=True)
    except (TypeError, KeyError, ValueError, binascii.Error):
        raise UserError("no layout; paint one, or press one of the buttons that fill the canvas") from None
    if size != size_px or len(labels) != size_px**2:
        raise UserError(f"a layout of {size} px; this generator draws {size_px} px: reload the page")
    layout = np.frombuffer(labels, np.uint8).reshape(size_px, size_px)
    _refuse_other_values(layout, num_classes, "the layout")
    return layout


class LayoutBook:
    """Layouts (patch_px, patch_px) uint8 for one run: classes, 255 unknown."""

    def __init__(self, run: RunFolder, patches: pd.DataFrame, *, classes: Sequence[str], patch_px: int) -> None:
        self._run, self._patches = run, patches
        self.classes, self.patch_px = list(classes), patch_px

    def blank(self, label: int = 0) -> np.ndarray:
        """One class everywhere."""
        return np.full((self.patch_px, self.patch_px), label, np.uint8)

    def annotated(self, seed: int) -> np.ndarray:
        """A label map of an annotated training patient, warped as in a run; the same for the same seed."""
        return RealLayouts(self._maps).draw(np.random.default_rng(seed))[0]

    def prior(self, seed: int) -> np.ndarray:
        """A random layout that follows the annotated ones in what is measured; the first one takes seconds."""
        return self._prior.draw(np.random.default_rng(seed))

    def from_file(self, path: str | Path) -> np.ndarray:
        """The middle of a label-map file with the run's class values, unknown where the file is smaller.

        Raises UserError for files that are no such label map.
        """
        label_map = read_mask(path)
        _refuse_other_values(label_map, len(self.classes), Path(path).name)
        top, left = ((length - self.patch_px) // 2 for length in label_map.shape)
        return extract_label_patch(label_map.astype(np.uint8), left, top, scale=1, patch_px=self.patch_px)

    @functools.cached_property
    def _maps(self) -> np.ndarray:
        annotated = train_patches(self._patches, annotated=True)
        if annotated.empty:
            raise UserError("no annotated training patch in this run: paint a layout, or open a label map")
        return self._run.label_maps(annotated)

    @functools.cached_property
    def _prior(self) -> PriorLayouts:
        return PriorLayouts.fit(self._maps, len(self.classes))


def _refuse_other_values(label_map: np.ndarray, num_classes: int, name: str) -> None:
    values = np.unique(label_map)
    wrong = values[(values >= num_classes) & (values != IGNORE)].tolist()
    if wrong:
        listed = ", ".join(map(str, wrong[:8]))
        raise UserError(f"{name}: value(s) {listed} are no class; use 0 to {num_classes - 1}, and {IGNORE} for unknown")
