"""Style sets: which patches may lend a target its style. Never the target itself, `self` excepted."""

from typing import Literal

import numpy as np
import pandas as pd

Mode = Literal["self", "nearby", "slide", "patient"]
_GROUP = {"nearby": "source", "slide": "slide", "patient": "patient"}


class StyleSets:
    """Style candidates of each row of a patches table, by row position.

    `self`: the target (the caller augments it). `nearby`: patches of the same image whose centres lie within
    `nearby_um`. `slide` and `patient`: patches of the same slide or patient. None of them overlaps the target; two
    patches can overlap only within one image (column `source`).
    """

    def __init__(
        self, patches: pd.DataFrame, *, mode: Mode, size: int, nearby_um: float, patch_um: float | np.ndarray
    ) -> None:
        """`patch_um`: width of the patches in microns, one number or one for each row."""
        if size < 1:
            raise ValueError(f"size is {size}; a style set has one image or more")
        self._mode, self._size, self._nearby_um = mode, size, nearby_um
        self._corner_um = patches[["x_um", "y_um"]].to_numpy(float)  # (N, 2)
        self._width_um = np.broadcast_to(np.asarray(patch_um, float), len(patches))
        self._source = pd.factorize(patches["source"])[0]
        self._group = pd.factorize(patches[_GROUP.get(mode, "source")])[0]
        order = np.argsort(self._group, kind="stable")
        self._members = np.split(order, np.cumsum(np.bincount(self._group))[:-1]) if len(patches) else []

    def candidates(self, i: int) -> np.ndarray:
        """Row positions (n,) that may style row `i`, ascending; possibly none."""
        if self._mode == "self":
            return np.array([i])
        rows = self._members[self._group[i]]
        keep = (self._source[rows] != self._source[i]) | self._disjoint(rows, i)
        if self._mode == "nearby":
            keep &= self._distance_um(rows, i) <= self._nearby_um
        return rows[keep]

    def has_candidates(self, i: int) -> bool:
        """Whether `draw(i, ...)` can give a style set."""
        return len(self.candidates(i)) > 0

    def draw(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """Style set of row `i`: positions (size,), without repetition where there are enough candidates.

        Raises LookupError when there is no candidate.
        """
        rows = self.candidates(i)
        if len(rows) == 0:
            raise LookupError(f"row {i} has no style candidate with style_set '{self._mode}'")
        return rng.choice(rows, self._size, replace=len(rows) < self._size)

    def _disjoint(self, rows: np.ndarray, i: int) -> np.ndarray:
        """Whether the squares of `rows` share no area with that of row `i`, (n,) bool."""
        tolerance_um = 1e-6 * self._width_um[i]
        after = self._corner_um[rows] >= self._corner_um[i] + self._width_um[i] - tolerance_um
        before = self._corner_um[rows] + self._width_um[rows, None] <= self._corner_um[i] + tolerance_um
        return (after | before).any(axis=1)

    def _distance_um(self, rows: np.ndarray, i: int) -> np.ndarray:
        centres = self._corner_um + self._width_um[:, None] / 2
        return np.hypot(*(centres[rows] - centres[i]).T)
