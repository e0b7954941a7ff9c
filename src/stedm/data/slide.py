"""A slide: reads any region of an image at any resolution; plain images and everything OpenSlide reads."""

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from PIL import Image, UnidentifiedImageError

from stedm.errors import UserError

PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_WHITE = (255, 255, 255)
_BLOCK_PX = 2048
"""Level pixels read at a time when a whole slide is shrunk."""


class Backend(Protocol):
    """What a file format has to offer."""

    size_px: tuple[int, int]
    """Width and height of level 0, pixels."""
    mpp: float | None
    """Microns per pixel of level 0, None when the file does not say."""
    downsamples: tuple[float, ...]
    """Downsampling factor of each level, rising, starting with 1."""

    def region(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """RGB region inside the level, in that level's pixels."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def flatten(image: Image.Image) -> Image.Image:
    """RGB copy of an image, transparent pixels on white. Raises ValueError for modes that are not 8-bit."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{image.mode} pixels; save the image with 8 bits per channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGB", image.size, _WHITE)
        paper.paste(layer, mask=layer.getchannel("A"))
        return paper
    return image.convert("RGB")


class PlainImage:
    """Any image Pillow reads, as a slide of one level; decoded at the first region and kept while open."""

    downsamples: tuple[float, ...] = (1.0,)
    mpp: float | None = None

    def __init__(self, path: Path) -> None:
        self._image = Image.open(path)
        self._rgb: Image.Image | None = None
        self.size_px = self._image.size

    def region(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """See `Backend.region`."""
        if self._rgb is None:
            self._rgb = flatten(self._image)
        return self._rgb.crop((left, top, left + width, top + height))

    def close(self) -> None:
        """See `Backend.close`."""
        self._image.close()


class OpenSlideImage:
    """Whole-slide formats read through OpenSlide."""

    def __init__(self, path: Path) -> None:
        self._slide = openslide.OpenSlide(str(path))
        self.size_px = self._slide.dimensions
        self.downsamples = tuple(float(factor) for factor in self._slide.level_downsamples)
        properties = self._slide.properties
        across, down = (properties.get(f"openslide.mpp-{axis}") for axis in "xy")
        self.mpp = (float(across) + float(down)) / 2 if across and down else None

    def region(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """See `Backend.region`."""
        factor = self.downsamples[level]
        origin = (round(left * factor), round(top * factor))
        return flatten(self._slide.read_region(origin, level, (width, height)))

    def close(self) -> None:
        """See `Backend.close`."""
        self._slide.close()


class Slide:
    """A slide opened for reading in microns; a context manager. Not shared between processes: open one in each."""

    def __init__(self, path: Path, backend: Backend, mpp: float | None) -> None:
        self.path = path
        self.width_px, self.height_px = backend.size_px
        self._backend = backend
        self._mpp = backend.mpp if mpp is None else mpp

    @classmethod
    def open(cls, path: str | Path, *, mpp: float | None = None) -> "Slide":
        """Open an image or whole-slide image, reading headers only; `mpp` overrides the file's microns per pixel.

        Raises UserError for missing and unreadable files.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: image not found; correct the path")
        try:
            plain = path.suffix.lower() in PLAIN_SUFFIXES or openslide.OpenSlide.detect_format(str(path)) is None
            return cls(path, PlainImage(path) if plain else OpenSlideImage(path), mpp)
        except (
            OSError,
            UnidentifiedImageError,
            SyntaxError,
            Image.DecompressionBombError,
            openslide.OpenSlideError,
        ) as e:
            raise UserError(f"{path}: unreadable image ({e}); replace the file") from None

    @property
    def mpp(self) -> float:
        """Microns per pixel of level 0. Raises UserError when neither the file nor the user says."""
        if self._mpp is None:
            raise UserError(f"{self.path}: microns per pixel unknown; set cohort.mpp or give the table a column 'mpp'")
        return self._mpp

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """Square region with its top-left corner at (x_um, y_um), as (size_px, size_px, 3) uint8 RGB at `mpp`.

        Pixels are area averages of the nearest level that is fine enough. Outside of the slide and where it is
        transparent the result is white. Raises UserError for pixels that cannot be decoded.
        """
        return self._read(x_um, y_um, size_px=(size_px, size_px), mpp=mpp)

    def overview(self, mpp: float) -> np.ndarray:
        """The whole slide at `mpp` (coarse: the result is held in memory), (H, W, 3) uint8; read block by block."""
        width, height = (max(1, math.ceil(px * self.mpp / mpp)) for px in (self.width_px, self.height_px))
        block = max(1, int(_BLOCK_PX * self.mpp * self._backend.downsamples[self._level(mpp)] / mpp))
        image = np.empty((height, width, 3), np.uint8)
        for y in range(0, height, block):
            for x in range(0, width, block):
                size_px = (min(block, width - x), min(block, height - y))
                image[y : y + block, x : x + block] = self._read(x * mpp, y * mpp, size_px=size_px, mpp=mpp)
        return image

    def _level(self, mpp: float) -> int:
        """The coarsest level that is at least as fine as `mpp`."""
        finest_needed = mpp / self.mpp * 1.001  # level factors are not exact: 4.0001 is still a 4
        return max(i for i, factor in enumerate(self._backend.downsamples) if i == 0 or factor <= finest_needed)

    def _read(self, x_um: float, y_um: float, *, size_px: tuple[int, int], mpp: float) -> np.ndarray:
        level = self._level(mpp)
        level_mpp = self.mpp * self._backend.downsamples[level]
        left, top = (round(at_um / level_mpp, 6) for at_um in (x_um, y_um))
        width, height = (round(px * mpp / level_mpp, 6) for px in size_px)
        x0, y0 = math.floor(left), math.floor(top)
        canvas = self._on_white(level, x0, y0, math.ceil(left + width), math.ceil(top + height))
        box = (left - x0, top - y0, left - x0 + width, top - y0 + height)
        resampling = Image.Resampling.BOX if mpp >= level_mpp else Image.Resampling.BILINEAR
        return np.asarray(canvas.resize(size_px, resampling, box=box))

    def _on_white(self, level: int, x0: int, y0: int, x1: int, y1: int) -> Image.Image:
        factor = self._backend.downsamples[level]
        inner_x = [min(max(x, 0), math.ceil(self.width_px / factor)) for x in (x0, x1)]
        inner_y = [min(max(y, 0), math.ceil(self.height_px / factor)) for y in (y0, y1)]
        canvas = Image.new("RGB", (x1 - x0, y1 - y0), _WHITE)
        width, height = inner_x[1] - inner_x[0], inner_y[1] - inner_y[0]
        if width > 0 and height > 0:
            try:
                region = self._backend.region(level, inner_x[0], inner_y[0], width, height)
            except (OSError, SyntaxError, ValueError, openslide.OpenSlideError) as error:
                raise UserError(f"{self.path}: pixels cannot be decoded ({error}); replace the file") from None
            canvas.paste(region, (inner_x[0] - x0, inner_y[0] - y0))
        return canvas

    def close(self) -> None:
        """Release the file."""
        self._backend.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
