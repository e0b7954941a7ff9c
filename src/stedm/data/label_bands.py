"""A label map too large for memory: bands of rows, one compressed file each, written one by one and read by rows."""

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stedm.files import atomic_path

Labels = NDArray[np.uint8]


class LabelRows(Protocol):
    """A label map that is read by rows."""

    width_px: int
    height_px: int

    def rows(self, start: int, stop: int) -> Labels:
        """Rows start .. stop - 1, (stop - start, width_px) uint8: classes, 255 = ignore."""
        ...


class LabelBands:
    """A label map in `folder`; band k holds the rows from `starts[k]` to the next start."""

    def __init__(self, folder: Path, *, width_px: int, height_px: int, starts: Sequence[int]) -> None:
        self.width_px, self.height_px = width_px, height_px
        self.folder, self._starts = folder, [*starts, height_px]
        self._read: tuple[int, Labels] | None = None

    def __len__(self) -> int:
        return len(self._starts) - 1

    def has(self, band: int) -> bool:
        """Whether the band has been written."""
        return self._path(band).exists()

    def write(self, band: int, labels: Labels) -> None:
        """Write a band (h, width_px) atomically."""
        with atomic_path(self._path(band)) as temporary:
            temporary.write_bytes(zlib.compress(labels.tobytes(), 1))
        self._read = None

    def rows(self, start: int, stop: int) -> Labels:
        """See `LabelRows.rows`. Raises FileNotFoundError for bands that have not been written."""
        parts = []
        while start < stop:
            band = bisect_right(self._starts, start) - 1
            first, end = self._starts[band], min(stop, self._starts[band + 1])
            parts.append(self._band(band)[start - first : end - first])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _band(self, band: int) -> Labels:
        if self._read is None or self._read[0] != band:
            most = (self._starts[band + 1] - self._starts[band]) * self.width_px  # a damaged file may unpack to more
            content = zlib.decompressobj().decompress(self._path(band).read_bytes(), most)
            pixels = np.frombuffer(content, np.uint8)
            self._read = band, pixels.reshape(-1, self.width_px)
        return self._read[1]

    def _path(self, band: int) -> Path:
        return self.folder / f"{band:06d}.z"
