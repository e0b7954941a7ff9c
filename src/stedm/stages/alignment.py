"""Alignment pictures: the polygons of a slide drawn over it, so that a shifted or scaled annotation is seen at once."""

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image, ImageDraw

from stedm.config import IGNORE
from stedm.data.annotation import Annotation
from stedm.data.labels import LabelMap
from stedm.data.polygon_classes import values_of
from stedm.data.slide import Slide
from stedm.files import atomic_path, read_json, write_json
from stedm.stages.report_pictures import UNKNOWN_COLOUR, class_colours

ALIGNMENT = "alignment"
"""Folder of the pictures in the data folder."""
LONG_SIDE_PX = 960
_LINE_PX, _CASING_PX = 2, 4
_CASING = "#1d2430"


def write_alignment(folder: Path, name: str, *, slide: Slide, annotation: Annotation, labels: LabelMap) -> None:
    """Write `name`.jpg, an overview of the slide under the outlines of its polygons, and `name`.json, what they are.

    Outlines have their class's colour, those of ignored ones are white; classes that are not drawn are left out. The
    JSON: `slide` and `file` (names), `classes` (polygons of each class), `notices` (what the reader repaired and left
    out).
    """
    with atomic_path(folder / f"{name}.jpg") as temporary:
        alignment_picture(slide, annotation, labels).save(temporary, quality=88)
    counts = {names[0]: count for names, count in annotation.counts().items()}
    record = {"slide": slide.path.name, "file": annotation.path.name, "classes": counts}
    write_json(folder / f"{name}.json", record | {"notices": annotation.tally.notices()})


def alignment_records(data: Path) -> list[tuple[Path, dict[str, Any]]]:
    """What `write_alignment` left in a data folder, in the order of the slides: path of the JSON, and its content."""
    return [(path, read_json(path)) for path in sorted((data / ALIGNMENT).glob("r*.json"))]


def alignment_notices(data: Path) -> list[str]:
    """Every thing that a reader of annotation files repaired or left out, once a file, with the file's name."""
    found = [f"{record['file']}: {notice}" for _, record in alignment_records(data) for notice in record["notices"]]
    return list(dict.fromkeys(found))


def alignment_picture(slide: Slide, annotation: Annotation, labels: LabelMap) -> Image.Image:
    """The slide, at most LONG_SIDE_PX wide and high, under the outlines of its polygons; smaller ones are dots."""
    scale = max(1.0, max(slide.width_px, slide.height_px) / LONG_SIDE_PX)  # slide pixels per picture pixel
    image = Image.fromarray(slide.overview(slide.mpp * scale))
    labelled = values_of(labels, annotation)[annotation.name_of] if len(annotation.names) else np.empty(0, int)
    order = np.argsort(-shapely.area(annotation.polygons), kind="stable") if len(labelled) else labelled
    colours = {**dict(enumerate(class_colours(labels.classes).values())), IGNORE: UNKNOWN_COLOUR}
    draw = ImageDraw.Draw(image)
    boxes = shapely.bounds(annotation.polygons).reshape(-1, 4) / scale  # left, top, right, bottom
    for k in order[labelled[order] >= 0].tolist():
        polygon, colour, (left, top, right, bottom) = annotation.polygons[k], colours[labelled[k]], boxes[k].tolist()
        if max(right - left, bottom - top) < _CASING_PX:
            draw.point(((left + right) / 2, (top + bottom) / 2), fill=colour)
            continue
        for ring in (polygon.exterior, *polygon.interiors):
            points = (shapely.get_coordinates(ring) / scale - 0.5).ravel().tolist()  # Pillow counts from pixel centres
            for width_px, paint in ((_CASING_PX, _CASING), (_LINE_PX, colour)):
                draw.line(points, fill=paint, width=width_px, joint="curve")
    return image
