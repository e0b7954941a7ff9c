"""An annotation: polygons that somebody drew on a slide, with the names of their classes; GeoJSON or COCO JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from stedm.config import IGNORE
from stedm.data.annotation_coco import TABLES, Coco, category_names, image_of, size_of
from stedm.data.annotation_geojson import GeoJson
from stedm.data.json_items import json_items
from stedm.data.outlines import Tally
from stedm.data.polygon_raster import EdgeTable, pixel_centres, rasterise
from stedm.errors import UserError
from stedm.files import reason_of

_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    shapely.errors.ShapelyError,
)
"""What values of a wrong kind or size make the readers raise."""
_EXPORT = "export it again, as GeoJSON from QuPath (File > Export objects as GeoJSON) or as COCO JSON"


@dataclass(frozen=True)
class Annotation:
    """Polygons on one slide; read them with `read_annotation`."""

    path: Path
    """The file, for messages."""
    polygons: np.ndarray
    """(n,) shapely Polygons in level-0 pixels of the whole image, valid, with area, in the order of the file."""
    name_of: np.ndarray
    """(n,) position of each polygon's class in `names`."""
    names: list[tuple[str, ...]]
    """Each class's names: its own, then those it also answers to."""
    tally: Tally
    """What the reader repaired and left out; of all slides in a COCO file of many."""
    drawn_on_px: tuple[float, float] | None = None
    """Width and height of the image it was drawn on, if the file has both numbers; GeoJSON has none."""

    def counts(self) -> dict[tuple[str, ...], int]:
        """Polygons of each class that has any."""
        counts = Counter(self.name_of.tolist())
        return {self.names[k]: counts[k] for k in sorted(counts)}

    def shifted(self, x_px: float, y_px: float) -> "Annotation":
        """The same polygons, moved: for coordinates relative to the scanned bounds, by where these begin."""
        if (x_px, y_px) == (0, 0):
            return self
        shift = np.array([x_px, y_px])
        polygons = shapely.transform(self.polygons, lambda points: points + shift)
        return replace(self, polygons=polygons)

    def refuse_another_size(self, *, width_px: int, height_px: int) -> None:
        """Raise UserError when it was drawn on an image of another size, by more than a pixel."""
        if self.drawn_on_px is None:
            return
        width, height = self.drawn_on_px
        if not (abs(width - width_px) <= 1 and abs(height - height_px) <= 1):
            raise UserError(
                f"{self.path}: its image is {width} x {height} px, the slide {width_px} x {height_px}: were the"
                " outlines drawn on a copy of another resolution? draw on the slide itself, or scale outlines, width"
                " and height to it; if the sizes are those of scanned bounds and whole slide, correct annotation_origin"
            )

    def refuse_misplaced(self, *, width_px: int, height_px: int) -> None:
        """Raise UserError when most polygons lie outside of a slide of this size."""
        if not len(self.polygons):
            return
        left, top, right, bottom = shapely.bounds(self.polygons).T
        on_slide = (right > 0) & (bottom > 0) & (left < width_px) & (top < height_px)
        if 2 * on_slide.sum() < len(self.polygons):
            raise UserError(
                f"{self.path}: {len(on_slide) - on_slide.sum()} of {len(on_slide)} polygons lie outside of the slide"
                f" ({width_px} x {height_px} px; the polygons reach from {left.min():.0f}, {top.min():.0f} to"
                f" {right.max():.0f}, {bottom.max():.0f}): is it another slide's, or are its coordinates of another"
                f" origin (annotation_origin: slide, bounds) or resolution?"
            )

    def labels(self, values: np.ndarray, *, uncovered: int, size_px: tuple[int, int], mpp: float) -> "PolygonLabels":
        """The label map of the slide, `size_px` (width, height) level-0 pixels of `mpp` microns.

        `values` (len(names),) are the label of each class, 0 to 255, or -1 for classes that are not drawn.
        """
        value = values[self.name_of] if len(self.names) else np.empty(0, int)
        drawn = value >= 0
        return PolygonLabels(self.polygons[drawn], value[drawn], uncovered=uncovered, size_px=size_px, mpp=mpp)

    def area(self, *, size_px: tuple[int, int], mpp: float) -> "PolygonArea":
        """What is in any of the polygons, whatever their classes."""
        return PolygonArea(self.labels(np.ones(len(self.names), int), uncovered=0, size_px=size_px, mpp=mpp))


class PolygonLabels:
    """A label source: polygons of one slide rasterised where and at the resolution they are asked for.

    Where polygons overlap, the smaller one is on top: structures are drawn inside of the regions they are part of.
    Of equal areas the later in the file is on top. Holes are holes: what is below shows.
    """

    def __init__(
        self, polygons: np.ndarray, values: np.ndarray, *, uncovered: int, size_px: tuple[int, int], mpp: float
    ) -> None:
        """Polygons (n,) in level-0 pixels and their labels (n,); `uncovered` is the label of places in no polygon."""
        bottom_to_top = np.argsort(-shapely.area(polygons), kind="stable") if len(polygons) else np.empty(0, int)
        polygons, self._values = polygons[bottom_to_top], values[bottom_to_top].astype(np.uint8)
        self._tree, self._edges = shapely.STRtree(polygons), EdgeTable(polygons)
        self._uncovered, self._size_px, self._mpp = uncovered, size_px, mpp

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """See `LabelSource.read`; each pixel has the label of its centre (see polygon_raster.py)."""
        step = mpp / self._mpp  # level-0 pixels per patch pixel
        x, y = (pixel_centres(at_um / self._mpp, count=size_px, step=step) for at_um in (x_um, y_um))
        met = np.sort(self._tree.query(shapely.box(x[0], y[0], x[-1], y[-1])))
        edges = self._edges.between(met, top=y[0], bottom=y[-1])
        label_map = rasterise(edges, self._values[met], x=x, y=y, fill=self._uncovered)
        width_px, height_px = self._size_px
        label_map[:, (x < 0) | (x >= width_px)] = IGNORE
        label_map[(y < 0) | (y >= height_px)] = IGNORE
        return label_map


@dataclass(frozen=True)
class PolygonArea:
    """Part of a slide, outlined by polygons."""

    labels: PolygonLabels
    """1 where it is inside."""

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """Which pixels (size_px, size_px) bool lie in it, of the square at `mpp` whose corner is at (x_um, y_um)."""
        return self.labels.read(x_um, y_um, size_px=size_px, mpp=mpp) == 1


@dataclass(frozen=True)
class _File:
    """An annotation file's polygons with what it says of their classes and, for COCO, of their images."""

    polygons: np.ndarray
    key_of: np.ndarray
    keys: list[Any]
    tally: Tally
    tables: dict[str, Any]
    """`images` and `categories` of a COCO file; empty for GeoJSON."""

    @property
    def is_coco(self) -> bool:
        """Whether the file may be about many slides."""
        return bool(self.tables)


def read_annotation(path: str | Path, *, slide_names: Sequence[str] = ()) -> Annotation:
    """Read QuPath GeoJSON or COCO JSON, gzipped or not.

    GeoJSON: a feature collection, a list of features, one feature or a geometry. Of a COCO file, the image whose
    `file_name` is one of `slide_names` counts. Self-crossing polygons are repaired; points and lines left out.

    Raises UserError naming file, feature and fix: unreadable files, damaged JSON, what is neither of the two formats,
    shapes that are none, and a slide that is not in the COCO file.
    """
    path = Path(path)
    try:
        stamp = (path, path.stat().st_size, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    content = _shared.get(stamp) or _parse(path)
    if not content.is_coco:
        return Annotation(path, content.polygons, content.key_of, content.keys, content.tally)
    _shared.clear()
    _shared[stamp] = content
    return _of_one_slide(path, content, slide_names)


_shared: dict[tuple[Path, int, int], _File] = {}
"""The last COCO file, by path, size and time: it is asked for once for every slide."""


def _parse(path: Path) -> _File:
    geojson, coco, rest = GeoJson(), Coco(), dict[str, Any]()
    adding: GeoJson | Coco | None = None
    try:
        for key, value in json_items(path, streamed=("features", "annotations")):
            if key is None or key == "features":
                adding = geojson
                geojson.add(value)
            elif key == "annotations":
                adding = coco
                coco.add(value)
            else:
                rest[key] = value
        is_coco = all(name in rest for name in TABLES)
        adding = None
        if coco.annotations and not is_coco:
            raise ValueError(f"annotations without {' and '.join(TABLES)}")
        if rest and not is_coco and not geojson.features and rest.get("type") != "FeatureCollection":
            if "type" not in rest:
                raise ValueError("neither GeoJSON nor COCO JSON")
            adding = geojson
            geojson.add(rest)
        outlines = coco.outlines if is_coco else geojson.outlines
        return _File(*outlines.build(), outlines.tally, rest if is_coco else {})
    except _DAMAGE as error:
        reason = f"no {error}" if isinstance(error, KeyError) else reason_of(error)
        at = "the file" if adding is None else adding.place
        raise UserError(f"{path}: {at} cannot be used ({reason}); {_EXPORT}") from None


def _of_one_slide(path: Path, content: _File, slide_names: Sequence[str]) -> Annotation:
    try:
        image = image_of(content.tables["images"], slide_names)
        names = category_names(content.tables["categories"])
        if image is None:
            known = ", ".join(str(entry["file_name"]) for entry in content.tables["images"][:3])
            raise ValueError(f"no image is called {' or '.join(slide_names)}, but {known}, ...")
        of_image = np.array([key[0] == image["id"] for key in content.keys], bool)
        used = [names[category] for _, category in content.keys]
    except _DAMAGE as error:
        reason = f"no category or key {error}" if isinstance(error, KeyError) else reason_of(error)
        raise UserError(f"{path}: {reason}; correct file_name, or the images and categories of the file") from None
    kept = of_image[content.key_of] if len(content.key_of) else np.empty(0, bool)
    return Annotation(path, content.polygons[kept], content.key_of[kept], used, content.tally, size_of(image))
