"""Predict one slide window by window into the bands of its label map, so that memory does not grow with its height."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stedm.config import IGNORE
from stedm.data.area import Area
from stedm.data.label_bands import LabelBands
from stedm.data.slide import Slide
from stedm.data.tissue_area import TissueArea
from stedm.data.windows import Blender, WindowGrid, mirrored
from stedm.models.ensemble import Ensemble
from stedm.progress import Bar

_BATCH_PX = 2**20
"""Pixels the network sees at a time: enough for full use, on a CPU as on a GPU."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Prediction:
    """A label map to be made: pixels of `mpp` microns, the class where there is tissue, else 255 (not predicted)."""

    slide: Slide
    model: Ensemble
    mpp: float
    grid: WindowGrid
    tissue: TissueArea
    bands: LabelBands
    """Band i is what the windows of row i finish."""

    @classmethod
    def plan(
        cls,
        slide: Slide,
        model: Ensemble,
        *,
        window_px: int,
        overlap_px: int,
        everywhere: bool,
        folder: Path,
        area: Area | None = None,
    ) -> "Prediction":
        """Lay out windows at the model's resolution; `everywhere`: on glass too; `folder`: of the bands.

        area: where to predict, instead of the tissue that is found.

        Windows are at least as wide as the training patches, and no wider than the slide needs; widths are rounded up
        to what the network can halve.
        """
        mpp = model.mpp or slide.mpp
        width_px, height_px = slide.size_px(mpp)
        multiple = model.multiple_px
        overlap_px = _rounded_up(overlap_px, multiple)
        needed_px = max(width_px, height_px) + overlap_px
        window_px = max(min(max(window_px, model.patch_px or 0), needed_px), 2 * overlap_px)
        grid = WindowGrid(width_px, height_px, _rounded_up(window_px, multiple), overlap_px)
        starts = [grid.finished(row, height_px).start for row in range(grid.rows)]
        bands = LabelBands(folder, width_px=width_px, height_px=height_px, starts=starts)
        if area is not None:
            tissue = TissueArea.given(area, slide, mpp)
        else:
            tissue = TissueArea.everything() if everywhere else TissueArea.measure(slide, mpp)
        return cls(slide, model, mpp, grid, tissue, bands)

    def run(self) -> LabelBands:
        """Write the bands that are missing, and return all; with a progress bar in megapixels of tissue."""
        grid, bands = self.grid, self.bands
        first = next((row for row in range(grid.rows) if not bands.has(row)), grid.rows)
        columns = [self._columns(row) for row in range(grid.rows)]
        done, total = (grid.stride_px**2 / 1e6 * sum(map(len, part)) for part in (columns[:first], columns))
        blender = Blender(grid, len(self.model.classes))
        with (
            ThreadPoolExecutor(1) as reader,
            Bar(self.slide.path.name, total=total, folder=bands.folder.parent, completed=done) as bar,
        ):
            if 0 < first < grid.rows:  # the next row needs what the last one of an earlier attempt hands down
                for _ in blender.row(first - 1, self._windows(first - 1, columns[first - 1], reader)):
                    pass
            for row in range(first, grid.rows):
                ys = grid.finished(row, grid.height_px)
                band = np.full((ys.stop - ys.start, grid.width_px), IGNORE, np.uint8)
                for _, xs, probabilities in blender.row(row, self._windows(row, columns[row], reader)):
                    labels = probabilities.argmax(0).astype(np.uint8)
                    band[:, xs] = np.where(self.tissue.crop(ys, xs), labels, np.uint8(IGNORE))
                    done += grid.stride_px**2 / 1e6
                    bar.update(done, unit="megapixels")
                bands.write(row, band)
        return bands

    def _columns(self, row: int) -> list[int]:
        """Columns of the windows in a row that contribute to tissue."""
        ys = self.grid.used(row, self.grid.height_px)
        spans = [self.grid.used(column, self.grid.width_px) for column in range(self.grid.columns)]
        return [column for column, xs in enumerate(spans) if self.tissue.any(ys, xs)]

    def _windows(
        self, row: int, columns: list[int], reader: ThreadPoolExecutor
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(column, probabilities (N, P, P)); while the network works, the next windows are read."""
        batch = max(1, _BATCH_PX // self.grid.window_px**2)
        chunks = [columns[start : start + batch] for start in range(0, len(columns), batch)]
        images = _ahead((np.stack([self._image(row, column) for column in chunk]) for chunk in chunks), reader)
        for chunk, pixels in zip(chunks, images, strict=True):
            yield from zip(chunk, self.model.probabilities(pixels), strict=True)

    def _image(self, row: int, column: int) -> NDArray[np.uint8]:
        """Pixels (P, P, 3) of a window, mirrored where it reaches over the border."""
        x, y, size_px = self.grid.corner(column), self.grid.corner(row), self.grid.window_px
        pixels = self.slide.read(x * self.mpp, y * self.mpp, size_px=size_px, mpp=self.mpp)
        xs, ys = mirrored(x, size_px, self.grid.width_px), mirrored(y, size_px, self.grid.height_px)
        return pixels[ys[:, None], xs]


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _ahead(items: Iterator[Item], worker: ThreadPoolExecutor) -> Iterator[Item]:
    """The items, each computed by the worker while the one before is used."""
    pending = worker.submit(next, items, None)
    while (item := pending.result()) is not None:
        pending = worker.submit(next, items, None)
        yield item
