"""A slide: reads any region of an image at any resolution, in microns."""

import math
import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image, UnidentifiedImageError

from stedm.data.images import MOST_PX, NotUpright, TooLarge
from stedm.data.resampling import area_average
from stedm.data.slide_formats import Backend, open_backend
from stedm.data.slide_header import Box, Header
from stedm.errors import UserError
from stedm.files import reason_of
from stedm.threads import in_threads

_ALL_THREADS = -1
_BLOCK_PX = 1024
"""Level pixels read at a time when a whole slide is shrunk: few, so that small slides are several blocks."""
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    LookupError,
    RuntimeError,
    struct.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    openslide.OpenSlideError,
    tifffile.TiffFileError,
)
"""What Pillow, OpenSlide and tifffile raise for files they cannot read."""
_HEADER_DAMAGE = (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""Those of them whose messages speak of the reader's own code."""


class DamagedSlide(UserError):
    """A slide whose file is there and cannot be read: nothing is wrong with the table that names it."""


class Slide:
    """A slide for reading in microns; a context manager.

    It may be given to threads and to worker processes, forked or spawned: each opens the file for itself at its first
    region. What is kept of decoded tiles is bounded (`slide_tiff.CACHE_BYTES`).
    """

    def __init__(self, path: Path, header: Header, mpp: float | None) -> None:
        self.path = path
        self.width_px, self.height_px = header.size_px
        self._header = header
        self._mpp = header.mpp if mpp is None else mpp
        self._handles: dict[tuple[int, int], Backend] = {}

    @classmethod
    def open(cls, path: str | Path, mpp: float | None = None) -> "Slide":
        """Open an image or whole-slide image, reading headers only; `mpp` overrides the file's microns per pixel.

        Raises UserError for missing files and DamagedSlide for unreadable ones.
        """
        path = Path(path)
        if not path.is_file():
            found = "a folder; name a slide or image in it" if path.is_dir() else "image not found; correct the path"
            raise UserError(f"{path}: {found}")
        handle = _open_handle(path)
        if not 0 < min(handle.header.size_px) <= max(handle.header.size_px) <= MOST_PX:
            raise DamagedSlide(f"{path}: {_size(handle.header.size_px)} pixels are no slide; replace the file")
        slide = cls(path, handle.header, mpp)
        slide._keep(handle)
        return slide

    @property
    def mpp(self) -> float:
        """Microns per pixel of level 0. Raises UserError when the user does not say, nor the file one number."""
        if self._mpp is None:
            raise UserError(
                f"{self.path}: microns per pixel {self._header.mpp_fault}; set cohort.mpp or give the table a column"
                " 'mpp'"
            )
        return self._mpp

    @property
    def bounds_px(self) -> Box:
        """The scanned area (x, y, width, height) in pixels of level 0: the whole slide unless the file says less."""
        return self._header.bounds_px or (0, 0, self.width_px, self.height_px)

    @property
    def is_pyramid(self) -> bool:
        """Whether the file holds the image at several resolutions."""
        return len(self._header.downsamples) > 1

    def size_px(self, mpp: float) -> tuple[int, int]:
        """Width and height in pixels of `mpp` microns, 1 at least; rounded down, so that none hangs over the border.

        Raises UserError for more pixels than a slide can have: one of the resolutions is wrong.
        """
        scale = self.mpp / mpp
        if not max(self.width_px, self.height_px) * scale <= MOST_PX:
            raise UserError(
                f"{self.path}: {_size(self._header.size_px)} px of {self.mpp:g} microns are too many at {mpp:g} microns"
                " per pixel; correct one of the two resolutions"
            )
        return max(1, int(self.width_px * scale + 1e-6)), max(1, int(self.height_px * scale + 1e-6))

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """Square region with its top-left corner at (x_um, y_um), as (size_px, size_px, 3) uint8 RGB at `mpp`.

        Pixels are area averages of the nearest level that is fine enough. Outside of the slide and where it is
        transparent the result is white. Raises DamagedSlide for pixels that cannot be decoded.
        """
        return self._read(x_um, y_um, size_px=(size_px, size_px), mpp=mpp)

    def overview(self, mpp: float, *, threads: int = 1) -> np.ndarray:
        """The whole slide at `mpp` (coarse: the result is held in memory), (H, W, 3) uint8; read block by block."""
        width, height = (max(1, math.ceil(px * self.mpp / mpp)) for px in (self.width_px, self.height_px))
        side = max(1, int(_BLOCK_PX * self.mpp * self._header.downsamples[self._level(mpp)] / mpp))
        image = np.empty((height, width, 3), np.uint8)

        def read(corner: tuple[int, int]) -> np.ndarray:
            x, y = corner
            return self._read(x * mpp, y * mpp, size_px=(min(side, width - x), min(side, height - y)), mpp=mpp)

        corners = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
        for (x, y), block in in_threads(read, corners, threads):
            image[y : y + side, x : x + side] = block
        return image

    def _level(self, mpp: float) -> int:
        """The coarsest level that is at least as fine as `mpp`."""
        finest_needed = mpp / self.mpp * 1.001  # level factors are not exact: 4.0001 is still a 4
        return max(i for i, factor in enumerate(self._header.downsamples) if i == 0 or factor <= finest_needed)

    def _read(self, x_um: float, y_um: float, *, size_px: tuple[int, int], mpp: float) -> np.ndarray:
        level = self._level(mpp)
        level_mpp = self.mpp * self._header.downsamples[level]
        left, top = (round(at_um / level_mpp, 6) for at_um in (x_um, y_um))
        width, height = (round(px * mpp / level_mpp, 6) for px in size_px)
        x0, y0 = math.floor(left), math.floor(top)
        canvas = self._on_white(level, x0, y0, math.ceil(left + width), math.ceil(top + height))
        box = (left - x0, top - y0, left - x0 + width, top - y0 + height)
        if box == (0, 0, *size_px):
            return canvas
        image = Image.fromarray(canvas)
        if mpp < level_mpp:  # finer than the slide: nothing to average
            return np.asarray(image.resize(size_px, Image.Resampling.BILINEAR, box=box))
        return area_average(image, box, size_px)

    def _on_white(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        factor = self._header.downsamples[level]
        inner_x = [min(max(x, 0), math.ceil(self.width_px / factor)) for x in (x0, x1)]
        inner_y = [min(max(y, 0), math.ceil(self.height_px / factor)) for y in (y0, y1)]
        width, height = inner_x[1] - inner_x[0], inner_y[1] - inner_y[0]
        if width <= 0 or height <= 0:
            return np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
        handle = self._handle()
        try:
            region = handle.region(level, inner_x[0], inner_y[0], width, height)
        except _DAMAGE as error:
            raise DamagedSlide(
                f"{self.path}: pixels cannot be decoded ({reason_of(error)}); replace the file"
            ) from None
        if region.shape == (y1 - y0, x1 - x0, 3):
            return region
        canvas = np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
        canvas[inner_y[0] - y0 :, inner_x[0] - x0 :][:height, :width] = region
        return canvas

    def _handle(self) -> Backend:
        """The open file of this thread of this process. Those of a parent process are left alone."""
        process, thread = _worker()
        for worker in ((process, _ALL_THREADS), (process, thread)):
            if worker in self._handles:
                return self._handles[worker]
        return self._keep(_open_handle(self.path))

    def _keep(self, handle: Backend) -> Backend:
        process, thread = _worker()
        self._handles[process, _ALL_THREADS if handle.for_all_threads else thread] = handle
        return handle

    def close(self) -> None:
        """Release the files of all threads of this process; a slide that is read again opens its file again."""
        for worker in [worker for worker in self._handles if worker[0] == os.getpid()]:
            self._handles.pop(worker).close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}  # open files stay in their process

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _size(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]} x {size_px[1]}"


def _worker() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _open_handle(path: Path) -> Backend:
    try:
        return open_backend(path)
    except TooLarge as error:
        raise DamagedSlide(f"{path}: {error}; save it as a tiled TIFF pyramid") from None
    except NotUpright as error:
        raise DamagedSlide(f"{path}: {error}") from None
    except _DAMAGE as error:
        reason = "damaged header" if isinstance(error, _HEADER_DAMAGE) else reason_of(error)
        raise DamagedSlide(f"{path}: unreadable image ({reason}); replace the file") from None
