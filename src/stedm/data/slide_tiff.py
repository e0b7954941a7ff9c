"""TIFF files that are read tile by tile, with tifffile: OME-TIFF and other pyramids."""

import logging
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from stedm.data.images import colours, refuse_turned
from stedm.data.slide_header import Header, downsamples, measured

CACHE_BYTES = 2**26
"""Decoded tiles kept: by all OpenSlide handles of a process together, and by each handle of the tifffile reader."""
_MOST_PILLOW_PX = 50_000_000
"""TIFF files of one level with more pixels are read in parts."""
_MOST_TILE_BYTES, _MOST_RATIO = 2**28, 50
"""A larger tile must not take more than so many times the bytes it has in the file: a header can claim anything."""
_PHOTOMETRIC = {tifffile.PHOTOMETRIC[name] for name in ("MINISWHITE", "MINISBLACK", "RGB", "YCBCR")}
_TO_RGB = {tifffile.COMPRESSION[name] for name in ("OJPEG", "JPEG", "JPEG2000", "APERIO_JP2000_YCBC", "WEBP", "JPEGXL")}
_MOST_ENTRIES, _MOST_LEVELS = 4096, 64
"""Of a directory, and of levels below it."""
_SUB_IFDS = 330
_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it remarks on each damaged tag; we say what it comes to


class TiffPyramid:
    """8-bit colour or grey TIFF read tile by tile: OME-TIFF, its levels in sub-IFDs, and generic pyramids."""

    for_all_threads = False

    def __init__(self, tiff: tifffile.TiffFile) -> None:
        series = _largest(tiff)
        self._tiff = tiff
        self.only_here = bool(tiff.is_ome or series.keyframe.subifds) or series.keyframe.index != 0
        """Whether OpenSlide and Pillow, which go by the first page, would miss levels or the slide itself."""
        self._levels = [_colour_pages(level) for level in series.levels]
        self._tiles: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        sizes = [(pages[0].imagewidth, pages[0].imagelength) for pages in self._levels]
        page = series.keyframe
        mpp = _ome_mpp(tiff.ome_metadata, page.index, sizes[0]) if tiff.ome_metadata else _tag_mpp(page)
        self.header = Header(sizes[0], *measured(mpp), downsamples(sizes))

    @classmethod
    def of(cls, path: Path) -> "TiffPyramid | None":
        """The file's reader; None for what is no TIFF, or a small one of one level, which Pillow reads as well.

        Of several images in a file, that of the most pixels is the slide.
        """
        try:
            tiff = tifffile.TiffFile(path)
        except tifffile.TiffFileError:
            return None
        _refuse_endless(tiff)
        series = _largest(tiff)
        _refuse_part(tiff, series)
        refuse_turned(series.keyframe.tags.valueof("Orientation"))
        first, small = series.keyframe.index == 0, _size(series) < _MOST_PILLOW_PX
        if not tiff.is_ome and first and small and len(series.levels) == 1:
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
            return colours(Image.fromarray(pixels))
        if not _white(pages[0]):
            pixels = 255 - pixels
        return pixels.repeat(3 // pixels.shape[-1], axis=-1)

    def _plane(self, level: int, number: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Region (height, width, samples) of one page."""
        page = self._levels[level][number]
        tile_width, tile_height = (
            (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        )
        across, down = -(-page.imagewidth // tile_width), -(-page.imagelength // tile_height)
        canvas = np.full((height, width, page.samplesperpixel), _white(page), np.uint8)
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
        tile = np.full(shape[1:], _white(page), np.uint8) if decoded is None else decoded[0, : shape[1], : shape[2]]
        self._tiles[key] = tile
        while len(self._tiles) > 1 and sum(kept.nbytes for kept in self._tiles.values()) > CACHE_BYTES:
            self._tiles.popitem(last=False)
        return tile

    def close(self) -> None:
        """See `Backend.close`."""
        self._tiff.close()


def refuse_claims(path: Path) -> None:
    """Raise ValueError for a TIFF with a tile of more bytes than the file has, or directories that do not end.

    OpenSlide would take as much memory, and end the process where there is none. What is no TIFF is left alone.
    """
    try:
        tiff = tifffile.TiffFile(path)
    except tifffile.TiffFileError:
        return
    with tiff:
        _refuse_endless(tiff)
        for page in tiff.pages:
            if max(page.databytecounts, default=0) > tiff.filehandle.size:
                raise ValueError(f"a tile of {max(page.databytecounts)} bytes in a file of {tiff.filehandle.size}")


def _refuse_endless(tiff: tifffile.TiffFile) -> None:
    """Raise ValueError for directories in a circle, overlapping, or with a crowd below: tifffile would read on."""
    form, handle, seen, read = tiff.tiff, tiff.filehandle, set[int](), 0
    place = tiff.pages.first.offset
    while 0 < place < handle.size:
        if place in seen or read > handle.size:
            raise ValueError("its directories lead in a circle")
        seen.add(place)
        handle.seek(place)
        number = handle.read(form.tagnosize)
        if len(number) < form.tagnosize or (entries := struct.unpack(form.tagnoformat, number)[0]) > _MOST_ENTRIES:
            break  # tifffile stops there, too
        read += entries * form.tagsize
        tags = handle.read(entries * form.tagsize)
        whole = tags[: len(tags) // form.tagsize * form.tagsize]
        for code, _, count, _ in struct.iter_unpack(form.byteorder + ("HHQ8s" if form.is_bigtiff else "HHI4s"), whole):
            if code == _SUB_IFDS and count > _MOST_LEVELS:
                raise ValueError(f"{count} levels below one directory")
        following = handle.read(form.offsetsize)
        place = struct.unpack(form.offsetformat, following)[0] if len(following) == form.offsetsize else 0


def _refuse_part(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Raise ValueError for a file that was cut short, as by an interrupted copy."""
    if tiff.is_svs:
        raise ValueError("cut short: an Aperio slide whose levels are not all there")  # else OpenSlide would read it
    page, size = series.keyframe, tiff.filehandle.size
    end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if end > size:
        raise ValueError(f"cut short: {size} bytes of {end} at least")


def _size(series: tifffile.TiffPageSeries) -> int:
    """Pixels of one page."""
    return int(series.keyframe.imagewidth * series.keyframe.imagelength)


def _largest(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The image of the most pixels, of equal ones the first: the others are thumbnails and labels."""
    return sorted(tiff.series, key=_size, reverse=True)[0]


def _colour_pages(level: tifffile.TiffPageSeries) -> list[Any]:
    """The pages that make up one level: one of all channels, or one for each. Raises ValueError for anything else."""
    pages = [page for page in level.pages if page is not None]
    sizes = dict(zip(level.axes, level.shape, strict=True))
    others = [axis for axis, size in sizes.items() if axis not in "YXSC" and size > 1]
    if others or level.dtype != np.uint8 or sizes.get("C", 1) * sizes.get("S", 1) not in (1, 3, 4):
        raise ValueError(f"{level.dtype} pixels with axes {level.axes} {level.shape}; save an 8-bit RGB image")
    found = [page.aspage() for page in pages]
    kinds = {page.photometric for page in found}
    if not kinds <= _PHOTOMETRIC or any(_is_raw_ycbcr(page) for page in found):
        raise ValueError(f"{', '.join(sorted(kind.name for kind in kinds))} pixels; save an 8-bit RGB image")
    return found


def _white(page: Any) -> int:
    return 0 if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else 255


def _is_raw_ycbcr(page: Any) -> bool:
    """Whether pixels are luma and chroma, and no codec turns them into colours."""
    return page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression not in _TO_RGB


def _ome_mpp(metadata: str, page: int, size_px: tuple[int, int]) -> list[float] | None:
    """Microns per pixel (x, y) of the image of `size_px` that is at `page` in OME-XML; None without them."""

    def alike(pixels: ElementTree.Element) -> tuple[bool, bool]:
        starts = [int(node.get("IFD", 0)) for node in pixels if node.tag.endswith("}TiffData")]
        return page in starts, [pixels.get(f"Size{axis}") for axis in "XY"] == list(map(str, size_px))

    images = [node for node in ElementTree.fromstring(metadata).iter() if node.tag.endswith("}Pixels")]
    pixels = max(images, key=alike, default=None)
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
