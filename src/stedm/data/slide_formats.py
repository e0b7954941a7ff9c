"""File formats of slides: plain images (Pillow), whole-slide images (OpenSlide), OME-TIFF and pyramids (tifffile)."""

import functools
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
import openslide
import tifffile
from PIL import Image

PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
CACHE_BYTES = 2**26
"""Decoded tiles kept: by all OpenSlide handles of a process together, and by each handle of the tifffile reader."""
_MOST_MPP = 20.0
"""No microscope is coarser: a resolution of 72 or 300 dots per inch is a program's default, not a measurement."""
_MOST_PILLOW_PX = 50_000_000
"""TIFF files of one level with more pixels are read in parts."""
_MOST_TILE_PX = 2**26
_MOST_TILE_BYTES, _MOST_RATIO = 2**28, 50
"""A larger tile must not take more than so many times the bytes it has in the file: a header can claim anything."""
_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_WHITE = (255, 255, 255)

Box = tuple[int, int, int, int]

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it remarks on each damaged tag; we say what it comes to


@dataclass(frozen=True)
class Header:
    """What is known of a slide without its pixels."""

    size_px: tuple[int, int]
    """Width and height of level 0, pixels."""
    mpp: float | None = None
    """Microns per pixel of level 0, None when the file does not say."""
    downsamples: tuple[float, ...] = (1.0,)
    """Downsampling factor of each level, rising, starting with 1."""
    bounds_px: Box | None = None
    """Scanned area (x, y, width, height) in pixels of level 0, None when the file does not say."""


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
    if pyramid is not None and (vendor is None or pyramid.is_ome):
        return pyramid
    if pyramid is not None:
        pyramid.close()
    return PlainImage(path) if vendor is None else OpenSlideImage(path)


def flatten(image: Image.Image) -> Image.Image:
    """RGB copy of an image, transparent pixels on white. Raises ValueError for modes that are not 8-bit."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{image.mode} pixels; save the image with 8 bits per channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = layer.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return layer.convert("RGB")
        paper = Image.new("RGB", image.size, _WHITE)
        paper.paste(layer, mask=alpha)
        return paper
    return image.convert("RGB")


def _colours(image: Image.Image) -> np.ndarray:
    """RGB (H, W, 3) of an RGBA image, transparent pixels on white."""
    if np.frombuffer(image.tobytes("raw", "A"), np.uint8).min() < 255:
        return np.asarray(flatten(image))
    pixels = np.frombuffer(image.tobytes("raw", "RGB"), np.uint8)  # a third of the time of `convert` and `asarray`
    return pixels.reshape(image.height, image.width, 3)


class PlainImage:
    """Any image Pillow reads, as a slide of one level; decoded at the first region and kept while open."""

    for_all_threads = True

    def __init__(self, path: Path) -> None:
        self._image = Image.open(path)
        self._rgb: Image.Image | None = None
        self._decoding = threading.Lock()
        self.header = Header(self._image.size)

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Backend.region`."""
        with self._decoding:
            if self._rgb is None:
                self._rgb = flatten(self._image)
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
            _measured(mpp),
            _downsamples(self._slide.level_dimensions),
            None if None in bounds else tuple(int(value) for value in bounds),  # type: ignore[arg-type]
        )

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Backend.region`."""
        factor = self._factors[level]
        origin = (round(left * factor), round(top * factor))
        return _colours(self._slide.read_region(origin, level, (width, height)))

    def close(self) -> None:
        """See `Backend.close`."""
        self._slide.close()


class TiffPyramid:
    """8-bit colour or grey TIFF read tile by tile: OME-TIFF, its levels in sub-IFDs, and generic pyramids."""

    for_all_threads = False

    def __init__(self, tiff: tifffile.TiffFile) -> None:
        self._tiff, self.is_ome = tiff, bool(tiff.is_ome)
        self._levels = [_colour_pages(level) for level in tiff.series[0].levels]
        self._tiles: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        sizes = [(pages[0].imagewidth, pages[0].imagelength) for pages in self._levels]
        mpp = _ome_mpp(tiff.ome_metadata) if tiff.ome_metadata else _tag_mpp(self._levels[0][0])
        self.header = Header(sizes[0], _measured(mpp), _downsamples(sizes))

    @classmethod
    def of(cls, path: Path) -> "TiffPyramid | None":
        """The file's reader; None for what is no TIFF, or a small one of one level, which Pillow reads as well."""
        try:
            tiff = tifffile.TiffFile(path)
        except tifffile.TiffFileError:
            return None
        page = tiff.pages.first
        if not tiff.is_ome and len(tiff.series[0].levels) == 1 and page.imagewidth * page.imagelength < _MOST_PILLOW_PX:
            tiff.close()
            return None
        return cls(tiff)

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Backend.region`."""
        pages = self._levels[level]
        planes = [self._plane(level, number, left, top, width, height) for number in range(len(pages))]
        pixels = np.concatenate(planes, axis=-1)
        if pixels.shape[-1] not in (1, 3, 4):
            raise ValueError(f"{pixels.shape[-1]} channels; save the image as RGB")
        if pixels.shape[-1] == 4:
            return _colours(Image.fromarray(pixels))
        return pixels.repeat(3 // pixels.shape[-1], axis=-1)

    def _plane(self, level: int, number: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Region (height, width, samples) of one page."""
        page = self._levels[level][number]
        tile_width, tile_height = (
            (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        )
        across, down = -(-page.imagewidth // tile_width), -(-page.imagelength // tile_height)
        canvas = np.full((height, width, page.samplesperpixel), 255, np.uint8)
        # Tiles hang over the border of the page.
        on_page = canvas[: max(0, page.imagelength - top), : max(0, page.imagewidth - left)]
        separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
        for row in range(top // tile_height, min(down, -(-(top + height) // tile_height))):
            for column in range(left // tile_width, min(across, -(-(left + width) // tile_width))):
                for sample in range(page.samplesperpixel if separate else 1):
                    tile = self._tile(level, number, (sample * down + row) * across + column)
                    y, x = row * tile_height - top, column * tile_width - left
                    target = on_page[max(0, y) : y + tile_height, max(0, x) : x + tile_width]
                    inside = tile[max(0, -y) :, max(0, -x) :][: target.shape[0], : target.shape[1]]
                    target[..., slice(sample, sample + 1) if separate else slice(None)] = inside
        return canvas

    def _tile(self, level: int, number: int, index: int) -> np.ndarray:
        """A decoded tile (h, w, samples) of a page; the last used ones are kept."""
        key, page = (level, number, index), self._levels[level][number]
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        start, count = page.dataoffsets[index], page.databytecounts[index]
        size = page.tilewidth * page.tilelength if page.is_tiled else page.imagewidth * page.rowsperstrip
        if size * page.samplesperpixel > max(_MOST_TILE_BYTES, _MOST_RATIO * count):
            raise ValueError(f"tile {index} of level {level} claims {size} pixels; save the image in smaller tiles")
        if start + count > self._tiff.filehandle.size:
            raise ValueError(f"tile {index} of level {level} lies behind the end of the file")
        self._tiff.filehandle.seek(start)
        data = self._tiff.filehandle.read(count) or None
        try:
            decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        except Exception as error:  # every codec has its own
            raise ValueError(f"tile {index} of level {level}: {error}") from error
        tile = np.full(shape[1:], 255, np.uint8) if decoded is None else decoded[0, : shape[1], : shape[2]]
        self._tiles[key] = tile
        while len(self._tiles) > 1 and sum(kept.nbytes for kept in self._tiles.values()) > CACHE_BYTES:
            self._tiles.popitem(last=False)
        return tile

    def close(self) -> None:
        """See `Backend.close`."""
        self._tiff.close()


def _colour_pages(level: tifffile.TiffPageSeries) -> list[Any]:
    """The pages that make up one level: one of all channels, or one for each. Raises ValueError for anything else."""
    pages = [page for page in level.pages if page is not None]
    sizes = dict(zip(level.axes, level.shape, strict=True))
    others = [axis for axis, size in sizes.items() if axis not in "YXSC" and size > 1]
    if others or level.dtype != np.uint8 or sizes.get("C", 1) * sizes.get("S", 1) not in (1, 3, 4):
        raise ValueError(f"{level.dtype} pixels with axes {level.axes} {level.shape}; save an 8-bit RGB image")
    return [page.aspage() for page in pages]


def _downsamples(sizes_px: Any) -> tuple[float, ...]:
    """Factor of each level from the widths and heights; whole where the level is level 0 less what did not fit."""
    (width, height), factors = sizes_px[0], []
    for level_width, level_height in sizes_px:
        factor = (width / level_width + height / level_height) / 2
        whole = round(factor)
        fits = abs(width / whole - level_width) <= 1 and abs(height / whole - level_height) <= 1
        factors.append(float(whole if fits else factor))
    return tuple(factors)


def _measured(mpp: list[float] | None) -> float | None:
    """Mean of the microns per pixel in x and y, unless they are missing or no microscope's."""
    mean = sum(mpp) / 2 if mpp else float("nan")
    return mean if 0 < mean < _MOST_MPP else None


def _ome_mpp(metadata: str) -> list[float] | None:
    """Microns per pixel (x, y) of the first image in OME-XML; None without them."""
    pixels = next((node for node in ElementTree.fromstring(metadata).iter() if node.tag.endswith("}Pixels")), None)
    found = [] if pixels is None else [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
    units = [] if pixels is None else [_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
    return [float(size) * unit for size, unit in zip(found, units, strict=True)] if all(found) and all(units) else None  # type: ignore[arg-type,operator]


def _tag_mpp(page: Any) -> list[float] | None:
    """Microns per pixel (x, y) from the resolution tags; None without them."""
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    found = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if unit_um is None or any(value is None or not value[0] for value in found):
        return None
    return [unit_um * divisor / dots for dots, divisor in found]
