"""COCO JSON, one file for many slides: collected into outlines, then told apart by the image they belong to."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import shapely

from stedm.data.annotation_geojson import UNCLASSIFIED
from stedm.data.outlines import Outlines

TABLES = ("images", "categories")
"""Top-level keys that a COCO file has beside `annotations`."""


class Coco:
    """Collects the annotations of a COCO file, whichever of its three tables comes first."""

    def __init__(self) -> None:
        self.outlines = Outlines()
        self.annotations = 0
        """Annotations added so far."""

    @property
    def place(self) -> str:
        """The annotation being added, for messages."""
        return f"annotation {self.annotations}"

    def add(self, annotation: Any) -> None:
        """An element of `annotations`: polygons, as one list of coordinates or several, or uncompressed RLE.

        Raises ValueError, TypeError or KeyError for anything else.
        """
        self.annotations += 1
        if not isinstance(annotation, Mapping):
            raise ValueError("an annotation is no object")
        key = (annotation["image_id"], annotation["category_id"])
        shape = annotation.get("segmentation")
        if isinstance(shape, Mapping):
            for polygon in run_length_polygons(shape):
                self.outlines.add(key, [shapely.get_coordinates(ring).tolist() for ring in _rings(polygon)])
        elif not shape:
            self.outlines.skip("annotation without a segmentation")
        elif not isinstance(shape, list):
            raise ValueError("the segmentation is neither a list nor an object")
        elif isinstance(shape[0], list):
            for coordinates in shape:
                self.outlines.add_flat(key, coordinates)
        else:
            self.outlines.add_flat(key, shape)


def image_of(images: Any, names: Sequence[str]) -> Any:
    """The entry of the image whose `file_name` is one of `names`, the first of them that is there; None without one.

    Folders before a file name do not count; names without a suffix match any. Raises ValueError when two images match.
    """
    files = [(PurePosixPath(str(image["file_name"]).replace("\\", "/")), image) for image in images]
    for name in names:
        found = [image for file, image in files if name in (file.name, file.stem)]
        if len(found) > 1:
            raise ValueError(f"{len(found)} images are called {name}")
        if found:
            return found[0]
    return None


def size_of(image: Mapping[str, Any]) -> tuple[float, float] | None:
    """Width and height that an image's entry states; None where it has not both numbers."""
    width, height = image.get("width"), image.get("height")
    if all(isinstance(side, int | float) and not isinstance(side, bool) and side > 0 for side in (width, height)):
        return width, height  # type: ignore[return-value]
    return None


def category_names(categories: Any) -> dict[Any, tuple[str, ...]]:
    """Names that each category id answers to: its own, then that of its supercategory."""
    return {
        category["id"]: tuple(
            dict.fromkeys(
                str(category[key]).strip() for key in ("name", "supercategory") if str(category.get(key) or "").strip()
            )
        )
        or (UNCLASSIFIED,)
        for category in categories
    }


def run_length_polygons(encoded: Mapping[str, Any]) -> np.ndarray:
    """Polygons (n,) along the pixel borders of an uncompressed RLE segmentation {counts: [...], size: [h, w]}.

    Runs alternate between outside and inside, column by column. Raises ValueError for compressed or contradicting ones.
    """
    counts, size = encoded.get("counts"), encoded.get("size")
    if isinstance(counts, str):
        raise ValueError("compressed RLE is not supported; export polygons or uncompressed RLE")
    if not isinstance(counts, list) or not isinstance(size, list) or len(size) != 2:
        raise ValueError("an RLE segmentation needs counts and size")
    height, width = size
    ends = np.cumsum(np.asarray(counts, np.int64))
    if min(counts, default=-1) < 0 or ends[-1] != height * width:
        raise ValueError(f"the runs of an RLE segmentation do not add up to {height} x {width}")
    boxes = []
    for start, end in zip(ends[0::2].tolist(), ends[1::2].tolist(), strict=False):
        while start < end:  # a run may go on at the top of the next column, and fill whole columns
            column, row = divmod(start, height)
            columns = (end - start) // height if row == 0 else 0
            stop = start + columns * height if columns else min(end, (column + 1) * height)
            boxes.append((column, row, column + max(columns, 1), height if columns else row + stop - start))
            start = stop
    if not boxes:
        return np.empty(0, object)
    parts = shapely.get_parts(shapely.union_all(shapely.box(*np.array(boxes, float).T)))
    return parts[shapely.area(parts) > 0]


def _rings(polygon: shapely.Polygon) -> list[Any]:
    return [polygon.exterior, *polygon.interiors]
