"""Areas of a slide that a user marks, tissue or region of interest: images that are not zero there, or polygons."""

from pathlib import Path
from typing import Protocol

import numpy as np

from stedm.data.label_source import open_annotation
from stedm.data.labels import read_mask
from stedm.data.slide import Slide
from stedm.errors import UserError

_POLYGON_SUFFIXES = (".geojson", ".json", ".gz")
_POLYGON_ENDINGS = (".geojson", ".geojson.gz", ".json", ".json.gz")
_IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_MOST_STRETCH = 0.02
"""Difference between the aspect ratios of a mask and its slide beyond which it must be another slide's."""


class Area(Protocol):
    """Part of a slide."""

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """Which pixels (size_px, size_px) bool lie in it, of the square at `mpp` whose corner is at (x_um, y_um)."""
        ...


class AreaImage:
    """An image of any size that shows the whole slide: what is not 0 is inside."""

    def __init__(self, path: str | Path, slide: Slide) -> None:
        """Raises UserError for unreadable files, and for other proportions than the slide's."""
        self._inside = read_mask(path) > 0
        height, width = self._inside.shape
        stretch = width / height / (slide.width_px / slide.height_px)
        # A mask of few pixels is rounded to whole ones.
        if abs(stretch - 1) > _MOST_STRETCH + 1 / width + 1 / height:
            raise UserError(
                f"{path}: {width} x {height} px, and its slide {slide.path} is {slide.width_px} x {slide.height_px}; "
                "give a mask of the whole slide, at any resolution"
            )
        self._pixel_um = slide.height_px * slide.mpp / height, slide.width_px * slide.mpp / width

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """See `Area.read`."""
        centres_um = (np.arange(size_px) + 0.5) * mpp
        places = [
            np.floor((at + centres_um) / um).astype(int) for at, um in zip((y_um, x_um), self._pixel_um, strict=True)
        ]
        within = [(place >= 0) & (place < size) for place, size in zip(places, self._inside.shape, strict=True)]
        rows, columns = (place.clip(0, size - 1) for place, size in zip(places, self._inside.shape, strict=True))
        return self._inside[np.ix_(rows, columns)] & within[0][:, None] & within[1][None, :]


def area_file(given: Path, slide: Path) -> Path:
    """The area's file for a slide: `given` itself, or in a folder NAME.geojson, NAME.svs.geojson or NAME.png, say.

    Raises UserError when there is none, or several.
    """
    if not given.is_dir():
        if not given.is_file():
            raise UserError(f"{given}: not found; name a mask, a GeoJSON file, or a folder of them")
        return given
    suffixes = (*_POLYGON_ENDINGS, *_IMAGE_SUFFIXES)
    names = [name + suffix for name in dict.fromkeys((slide.stem, slide.name)) for suffix in suffixes]
    found = [given / name for name in names if (given / name).is_file() and not (given / name).samefile(slide)]
    if len(found) != 1:
        seen = " and ".join(path.name for path in found) or "nothing"
        raise UserError(
            f"{given}: has {seen} for slide {slide.name}; leave one mask or GeoJSON file named {slide.stem}"
        )
    return found[0]


def open_area(path: str, slide: Slide, *, origin: str = "bounds", slide_name: str = "") -> Area | None:
    """The area that a cell of the cohort table names, None for an empty one: an image, or the polygons of a JSON file.

    origin, slide_name: as in `open_annotation`.
    """
    if Path(path).suffix.lower() not in _POLYGON_SUFFIXES:
        return AreaImage(path, slide) if path else None
    annotation = open_annotation(path, slide, origin=origin, slide_name=slide_name)
    if not len(annotation.polygons):
        raise UserError(f"{path}: no polygon of slide {slide.path.name}; outline the area, or name no file")
    return annotation.area(size_px=(slide.width_px, slide.height_px), mpp=slide.mpp)
