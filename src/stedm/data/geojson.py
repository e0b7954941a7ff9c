"""GeoJSON for QuPath: a FeatureCollection of annotations, written feature by feature."""

import gzip
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from shapely import LinearRing, Polygon


def write_features(
    path: Path,
    polygons: Iterable[tuple[int, Polygon]],
    *,
    classes: Sequence[str],
    colours: Sequence[str],
    scale: float = 1.0,
    origin_px: tuple[float, float] = (0.0, 0.0),
) -> list[int]:
    """Write (class, polygon) pairs; gzipped when the name ends in `.gz`. Returns the number of polygons of each class.

    Coordinates are multiplied by `scale`, level-0 pixels of the slide per unit of the polygons; then `origin_px` is
    subtracted: (0, 0) is the corner of the whole slide. They are rounded to 0.01 pixels. colours: "#rrggbb".
    """
    counts = [0] * len(classes)
    kinds = [
        {"name": name, "color": list(bytes.fromhex(colour[1:]))} for name, colour in zip(classes, colours, strict=True)
    ]
    with ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "wb"))
        if path.suffix == ".gz":  # without name and time: the same polygons, the same file
            file = stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0))
        text = stack.enter_context(io.TextIOWrapper(file, encoding="utf-8"))
        text.write('{"type": "FeatureCollection", "features": [')
        for label, polygon in polygons:
            rings = [_coordinates(ring, scale, origin_px) for ring in (polygon.exterior, *polygon.interiors)]
            feature = {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": rings},
                "properties": {"objectType": "annotation", "classification": kinds[label]},
            }
            text.write(("\n" if not any(counts) else ",\n") + json.dumps(feature, separators=(",", ":")))
            counts[label] += 1
        text.write("\n]}\n")
    return counts


def _coordinates(ring: LinearRing, scale: float, origin_px: tuple[float, float]) -> list[list[float]]:
    points: list[list[float]] = (np.asarray(ring.coords) * scale - origin_px).round(2).tolist()
    return points
