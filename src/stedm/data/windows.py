"""Overlapping windows over an image of any size, and their predictions blended without seams.

Along each axis a window of P pixels overlaps the next by `overlap_px` = 2 m + r. The outer m pixels of a window have
too little context and are not used; over the next r pixels it hands over to its neighbour with weights sin^2 and
cos^2, which add up to one. A network that sees no further than m pixels predicts the same as on the whole image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WindowGrid:
    """Windows in rows and columns over an image; the window of row i, column j owns what lies `stride_px` apart."""

    width_px: int
    height_px: int
    window_px: int
    overlap_px: int

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.overlap_px <= self.window_px:
            raise ValueError(f"overlap of {self.overlap_px} px: from 0 to half of the window, {self.window_px} px")

    @property
    def stride_px(self) -> int:
        """From one window to the next."""
        return self.window_px - self.overlap_px

    @property
    def margin_px(self) -> int:
        """m: border of a window that is not used."""
        return self.overlap_px // 4

    @property
    def ramp_px(self) -> int:
        """r: width over which neighbours are blended."""
        return self.overlap_px - 2 * self.margin_px

    @property
    def rows(self) -> int:
        """Number of rows of windows."""
        return -(-self.height_px // self.stride_px)

    @property
    def columns(self) -> int:
        """Number of columns of windows."""
        return -(-self.width_px // self.stride_px)

    def corner(self, index: int) -> int:
        """First pixel of the windows of a row (or column), along its axis; negative before the image."""
        return index * self.stride_px - self.ramp_px - self.margin_px

    def used(self, index: int, length_px: int) -> slice:
        """Pixels of an axis of `length_px` to which the windows of row (or column) `index` contribute."""
        start = index * self.stride_px - self.ramp_px
        return slice(max(start, 0), min(start + self.stride_px + self.ramp_px, length_px))

    def finished(self, index: int, length_px: int) -> slice:
        """Pixels of an axis of `length_px` that no later row (or column) than `index` contributes to, but this does."""
        start = index * self.stride_px - self.ramp_px
        stop = length_px if start + self.stride_px + self.ramp_px >= length_px else start + self.stride_px
        return slice(max(start, 0), stop)

    def weights(self, index: int, count: int) -> NDArray[np.float32]:
        """Weights (S + r,) of a window inside its margin, 0 to 1, along an axis with `count` windows."""
        rising = np.sin(np.pi / 2 * (np.arange(self.ramp_px) + 0.5) / max(self.ramp_px, 1)) ** 2
        weights = np.ones(self.stride_px + self.ramp_px, np.float32)
        if self.ramp_px and index > 0:
            weights[: self.ramp_px] = rising
        if self.ramp_px and index < count - 1:
            weights[self.stride_px :] = rising[::-1]
        return weights


class Blender:
    """Adds up the windows' probabilities row by row; between rows it remembers a strip of `ramp_px` rows, no more."""

    def __init__(self, grid: WindowGrid, num_classes: int) -> None:
        self._grid = grid
        self._above = np.zeros((num_classes, grid.ramp_px, grid.columns * grid.stride_px + grid.ramp_px), np.float32)

    def row(
        self, row: int, windows: Iterable[tuple[int, NDArray[np.float32]]]
    ) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
        """Blend one row of windows; the rows must come in order, from any row on.

        windows: (column, probabilities (N, P, P)), columns rising. One may be left out where nothing it contributes
        to is wanted. Yields (rows, columns, probabilities (N, h, w)) of the image that are finished, one for each
        window given; exhaust it, so that the next row finds what it needs.
        """
        grid, stride, ramp = self._grid, self._grid.stride_px, self._grid.ramp_px
        inner = slice(grid.margin_px, grid.margin_px + stride + ramp)
        vertical = grid.weights(row, grid.rows)[:, None]
        below, previous, right = np.zeros_like(self._above), -2, self._above[:, :0]
        ys, top = grid.finished(row, grid.height_px), row * stride - ramp
        for column, probabilities in windows:
            left = column * stride - ramp
            block = probabilities[:, inner, inner] * (vertical * grid.weights(column, grid.columns))
            below[:, :, left + ramp : left + 2 * ramp + stride] += block[:, stride:]
            if previous == column - 1:
                block[:, :, :ramp] += right
            own = stride + ramp if column == grid.columns - 1 else stride  # the others' strips come with the next
            block[:, :ramp, :own] += self._above[:, :, left + ramp : left + ramp + own]
            previous, right = column, block[:, :, stride:].copy()
            xs = grid.finished(column, grid.width_px)
            yield ys, xs, block[:, ys.start - top : ys.stop - top, xs.start - left : xs.stop - left]
        self._above = below


def mirrored(start: int, size_px: int, length_px: int) -> NDArray[np.intp]:
    """Positions (size_px,) in a window that begins at `start`: what lies outside of an axis of `length_px` is mirrored.

    The window must overlap the image. Tissue continues beyond the edge of an image; white would be taken for glass.
    """
    first, last = max(0, -start), min(size_px, length_px - start)
    turn = (np.arange(size_px) - first) % (2 * (last - first))
    return first + np.minimum(turn, 2 * (last - first) - 1 - turn)
