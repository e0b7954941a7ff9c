"""Label maps as tiled pyramids: TIFF files whose pixels are classes, with a colour for each.

Programs look for the coarser levels in two places. Bio-Formats, by which QuPath opens images of one channel, wants them
as sub-images of the first, and OME-XML that says so; OpenSlide wants them in line behind it. Both find the same ones.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import tifffile
from numpy.typing import NDArray

from stedm.config import IGNORE
from stedm.data.label_bands import LabelBands, LabelRows, Labels
from stedm.errors import UserError
from stedm.files import reason_of, whole

TILE_PX = 512
_SOFTWARE = "stedm"
_FIX = "delete it, and segment again"


def halved(labels: Labels) -> Labels:
    """Half the size, rounded up: the commonest of four labels; of two equally common ones the upper left pixel's."""
    even = np.pad(labels, [(0, size % 2) for size in labels.shape], mode="edge")
    a, b, c, d = even[::2, ::2], even[::2, 1::2], even[1::2, ::2], even[1::2, 1::2]
    alone = (a != b) & (a != c) & (a != d)
    return np.where(alone & ((b == c) | (b == d)), b, np.where(alone & (c == d), c, a))


def write_label_pyramid(
    path: Path, labels: LabelRows, *, mpp: float, classes: Sequence[str], colours: Sequence[str], scratch: Path
) -> NDArray[np.int64]:
    """Write a BigTIFF of palette tiles, each level half the size of the one before; memory holds rows of tiles only.

    colours: "#rrggbb" of each class; ignored pixels are white. mpp: microns per pixel, kept as resolution. scratch:
    folder for the coarser levels until they are written. Returns the number of pixels (256,) of each label.
    """
    counts = np.zeros(256, np.int64)
    level: LabelRows | None = labels
    levels = _count_levels(labels.width_px, labels.height_px)
    options = {
        "dtype": "uint8",
        "tile": (TILE_PX, TILE_PX),
        "compression": "zlib",
        "compressionargs": {"level": 4},
        "photometric": "palette",
        "colormap": _palette(colours),
        "resolutionunit": "CENTIMETER",
        "software": _SOFTWARE,
        "metadata": None,
        "maxworkers": 1,  # more would read far ahead of what is written
    }
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        while level is not None:
            first = level is labels
            coarser = _coarser(level, scratch / f"{level.width_px}x{level.height_px}")
            tiff.write(
                _tiles(level, coarser, counts if first else None),
                shape=(level.height_px, level.width_px),
                subfiletype=0 if first else 1,
                subifds=levels - 1 if first else None,
                resolution=(1e4 / mpp * level.width_px / labels.width_px,) * 2,
                description=_ome_xml(labels, mpp, classes) if first else None,
                **options,
            )
            level = coarser
    _put_in_line(path)
    return counts


def is_label_pyramid(path: Path) -> bool:
    """Whether a file is one of `write_label_pyramid`."""
    if path.suffix != ".tif":
        return False
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.pages.first.software == _SOFTWARE)
    except (OSError, ValueError, struct.error, tifffile.TiffFileError):
        return False


class LabelPyramid:
    """The finest level of a file of `write_label_pyramid`, read by rows; a context manager."""

    def __init__(self, path: Path) -> None:
        try:
            self._tiff = tifffile.TiffFile(path)
            self._page = self._tiff.pages.first
            self.height_px, self.width_px = self._page.shape
            self._path = path
        except Exception as error:  # a damaged file can fail in many ways inside tifffile
            raise UserError(f"{path}: unreadable label map ({reason_of(error)}); {_FIX}") from None

    def rows(self, start: int, stop: int) -> Labels:
        """See `LabelRows.rows`. Raises UserError for damaged tiles."""
        with whole(self._path, fix=_FIX):
            return self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> Labels:
        columns = -(-self.width_px // TILE_PX)
        first, last = start // TILE_PX, -(-stop // TILE_PX)
        rows = np.empty(((last - first) * TILE_PX, columns * TILE_PX), np.uint8)
        for index in range(first * columns, last * columns):
            y, x = (index // columns - first) * TILE_PX, index % columns * TILE_PX
            self._tiff.filehandle.seek(self._page.dataoffsets[index])
            data = self._tiff.filehandle.read(self._page.databytecounts[index])
            tile, _, _ = self._page.decode(data, index)
            rows[y : y + tile.shape[1], x : x + tile.shape[2]] = tile[0, :, :, 0]
        return rows[start - first * TILE_PX : stop - first * TILE_PX, : self.width_px]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tiff.close()


def _palette(colours: Sequence[str]) -> NDArray[np.uint16]:
    """Colour map (3, 256), 16 bits a channel."""
    palette = np.full((3, 256), 255, np.uint16)
    palette[:, : len(colours)] = np.array([list(bytes.fromhex(colour[1:])) for colour in colours], np.uint16).T
    return palette * np.uint16(257)


def _ome_xml(labels: LabelRows, mpp: float, classes: Sequence[str]) -> bytes:
    """What Bio-Formats goes by: one plane, its size, microns per pixel (the schema's unit); and the classes' names."""
    names = "; ".join(f"{label} {name}" for label, name in enumerate(classes))
    namespace = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    ome = Element("OME", {"xmlns": namespace, "Creator": "stedm"})
    image = SubElement(ome, "Image", ID="Image:0", Name="label map")
    SubElement(image, "Description").text = f"label map: {names}; {IGNORE} not predicted"
    size = {
        f"Size{axis}": str(n) for axis, n in zip("XYCZT", (labels.width_px, labels.height_px, 1, 1, 1), strict=True)
    }
    size |= {f"PhysicalSize{axis}": str(mpp) for axis in "XY"}
    pixels = SubElement(image, "Pixels", ID="Pixels:0", DimensionOrder="XYCZT", Type="uint8", **size)
    SubElement(pixels, "Channel", ID="Channel:0:0", SamplesPerPixel="1")
    SubElement(pixels, "TiffData", IFD="0", PlaneCount="1")
    return tostring(ome, encoding="utf-8", xml_declaration=True)


def _put_in_line(path: Path) -> None:
    """Let the first image's link to the next one, at the end of its tags, lead to the first of its sub-images."""
    with tifffile.TiffFile(path) as tiff:
        page, tags = tiff.pages.first, tiff.tiff
        levels = page.subifds
        if not levels:
            return
        link = page.offset + tags.tagnosize + len(page.tags) * tags.tagsize
    with open(path, "r+b") as file:
        file.seek(link)
        file.write(struct.pack(tags.offsetformat, levels[0]))


def _count_levels(width_px: int, height_px: int) -> int:
    """How many there are until one fits into a tile."""
    larger, levels = max(width_px, height_px), 1
    while larger > TILE_PX:
        larger, levels = -(-larger // 2), levels + 1
    return levels


def _coarser(level: LabelRows, folder: Path) -> LabelBands | None:
    """The next level, still to be written; None when this one fits into a tile."""
    if max(level.width_px, level.height_px) <= TILE_PX:
        return None
    width_px, height_px = -(-level.width_px // 2), -(-level.height_px // 2)
    return LabelBands(folder, width_px=width_px, height_px=height_px, starts=range(0, height_px, TILE_PX // 2))


def _tiles(level: LabelRows, coarser: LabelBands | None, counts: NDArray[np.int64] | None) -> Iterator[Labels]:
    """The tiles of a level in reading order, filled up with 255; writes the next level and counts labels beside."""
    for band, y in enumerate(range(0, level.height_px, TILE_PX)):
        rows = level.rows(y, min(y + TILE_PX, level.height_px))
        if coarser is not None:
            coarser.write(band, halved(rows))
        for x in range(0, level.width_px, TILE_PX):
            part = rows[:, x : x + TILE_PX]
            if counts is not None:
                counts += np.bincount(part.ravel(), minlength=256)
            tile = np.full((TILE_PX, TILE_PX), IGNORE, np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
