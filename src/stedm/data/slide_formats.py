"""File formats of slides: plain images (Pillow), whole-slide images (OpenSlide), OME-TIFF and pyramids (tifffile)."""

import functools
import os
import threading
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from PIL import Image

from stedm.data.images import colours, decode, flatten, open_image
from stedm.data.slide_header import Header, downsamples, measured
from stedm.data.slide_tiff import CACHE_BYTES, TiffPyramid, refuse_claims

PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MOST_TILE_PX = 2**26


class Backend(Protocol):
    """One open file of any format; used by one process, and by one thread of it unless `for_all_threads`."""

    header: Header
    for_all_threads: bool

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Region (height, width, 3) uint8 RGB in the level's own pixels; white where the level has none."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_backend(path: Path) -> Backend:
    """Open a slide with what reads its format best, headers only; raises what Pillow, OpenSlide and tifffile raise."""
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return PlainImage(path)
    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor not in (None, "generic-tiff"):
        return OpenSlideImage(path)
    pyramid = TiffPyramid.of(path)
    if pyramid is not None and (vendor is None or pyramid.only_here):
        return pyramid
    if vendor is None:
        return PlainImage(path)
    try:
        slide = OpenSlideImage(path)
    except openslide.OpenSlideError:  # a compression it does not know
        if pyramid is None:
            raise
        return pyramid
    if pyramid is not None:
        pyramid.close()
    return slide


class PlainImage:
    """Any image Pillow reads, as a slide of one level; decoded at the first region and kept while open."""

    for_all_threads = True

    def __init__(self, path: Path) -> None:
        self._image = open_image(path, as_rgb=True)
        self._rgb: Image.Image | None = None
        self._decoding = threading.Lock()
        self.header = Header(self._image.size)

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Backend.region`."""
        with self._decoding:
            if self._rgb is None:
                self._rgb = flatten(decode(self._image))
        return np.asarray(self._rgb.crop((left, top, left + width, top + height)))

    def close(self) -> None:
        """See `Backend.close`."""
        self._image.close()


@functools.cache
def _openslide_cache(process: int) -> openslide.OpenSlideCache:
    """The tile cache of a process: a forked one must not touch its parent's, which another thread may have locked."""
    return openslide.OpenSlideCache(CACHE_BYTES)


class OpenSlideImage:
    """Whole-slide formats read through OpenSlide."""

    for_all_threads = False

    def __init__(self, path: Path) -> None:
        refuse_claims(path)
        self._slide = openslide.OpenSlide(str(path))
        self._slide.set_cache(_openslide_cache(os.getpid()))
        self._factors = self._slide.level_downsamples  # OpenSlide's own, by which it finds a level's pixels
        properties = self._slide.properties
        for level in range(self._slide.level_count):
            tile = [int(properties.get(f"openslide.level[{level}].tile-{side}", "1")) for side in ("width", "height")]
            if tile[0] * tile[1] > _MOST_TILE_PX:  # OpenSlide would end the process where it finds no memory
                self._slide.close()
                raise ValueError(f"tiles of {tile[0]} x {tile[1]} pixels")
        mpp = [float(properties.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy"]
        bounds = [properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
        self.header = Header(
            self._slide.dimensions,
            *measured(mpp),
            downsamples(self._slide.level_dimensions),
            None if None in bounds else tuple(int(value) for value in bounds),  # type: ignore[arg-type]
        )

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Backend.region`."""
        factor = self._factors[level]
        origin = (round(left * factor), round(top * factor))
        return colours(self._slide.read_region(origin, level, (width, height)))

    def close(self) -> None:
        """See `Backend.close`."""
        self._slide.close()
