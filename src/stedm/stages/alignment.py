"""Alignment pictures: the annotation of a slide drawn over it, so that one shifted or scaled is seen at once."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image, ImageColor, ImageDraw
from scipy import ndimage

from stedm.config import IGNORE
from stedm.data.annotation import Annotation
from stedm.data.label_source import MaskFile
from stedm.data.labels import LabelMap
from stedm.data.polygon_classes import values_of
from stedm.data.slide import Slide
from stedm.files import atomic_path, read_json, write_json
from stedm.stages.report_pictures import UNKNOWN_COLOUR, class_colours

ALIGNMENT = "alignment"
"""Folder of the pictures in the data folder."""
LONG_SIDE_PX = 960
_LINE_PX, _CASING_PX, _BORDER_PX = 2, 4, 3
_CASING = "#1d2430"


def write_alignment(path: Path, *, slide: Slide, annotation: Annotation, labels: LabelMap) -> None:
    """Write `path`.jpg, an overview of the slide under the outlines of its polygons, and `path`.json, what they are.

    Outlines have their class's colour, those of ignored ones are white; classes that are not drawn are left out. The
    JSON: `slide` and `file` (names), `classes` (polygons of each class), `notices` (what the reader repaired and left
    out).
    """
    counts = Counter[str]()
    for names, count in annotation.counts().items():
        counts[names[0]] += count
    picture = alignment_picture(slide, annotation, labels)
    _write(path, picture, slide, annotation.path, counts, annotation.tally.notices())


def write_mask_alignment(path: Path, *, slide: Slide, mask: MaskFile, labels: LabelMap) -> None:
    """The same of a label map. The JSON's `classes`: each one's share of the labelled pixels."""
    counts = mask.counts()[: len(labels.classes)]
    shares = {
        name: f"{share:.1%}".replace("%", " %") if share >= 0.0005 else "below 0.1 %"
        for name, share in zip(labels.classes, (counts / max(1, counts.sum())).tolist(), strict=True)
        if share
    }
    _write(path, mask_picture(slide, mask, labels), slide, mask.path, shares, [])


def alignment_records(data: Path) -> list[tuple[Path, dict[str, Any]]]:
    """What was written into a data folder, in the order of the slides: path of the JSON, and its content."""
    return [(path, read_json(path)) for path in sorted((data / ALIGNMENT).glob("r*.json"))]


def alignment_notices(data: Path) -> list[str]:
    """Every thing that a reader of annotation files repaired or left out, once a file, with the file's name."""
    found = [f"{record['file']}: {notice}" for _, record in alignment_records(data) for notice in record["notices"]]
    return list(dict.fromkeys(found))


def alignment_picture(slide: Slide, annotation: Annotation, labels: LabelMap) -> Image.Image:
    """The slide, about LONG_SIDE_PX wide or high, under the outlines of its polygons; the smallest are dots."""
    image, scale = _overview(slide)
    if len(annotation.names):
        values = values_of(labels, annotation)[annotation.name_of]
        polygons = shapely.transform(annotation.polygons[values >= 0], lambda points: points / scale)
        _draw(image, labels, polygons, values[values >= 0])
    return image


def mask_picture(slide: Slide, mask: MaskFile, labels: LabelMap) -> Image.Image:
    """The slide, as large, with a line in its class's colour inside the border of each region of a label map."""
    image, scale = _overview(slide)
    side_px = max(image.width, image.height)
    label_map = mask.read(0, 0, size_px=side_px, mpp=slide.mpp * scale)[: image.height, : image.width]
    pixels = np.array(image)
    for value, colour in _colours(labels).items():
        region = label_map == value
        inner = ndimage.binary_erosion(region, np.ones((3, 3)), iterations=_BORDER_PX, border_value=1)
        pixels[region & ~inner] = ImageColor.getrgb(colour)
    return Image.fromarray(pixels)


def _colours(labels: LabelMap) -> dict[int, str]:
    return {**dict(enumerate(class_colours(labels.classes).values())), IGNORE: UNKNOWN_COLOUR}


def _overview(slide: Slide) -> tuple[Image.Image, float]:
    """The slide, about LONG_SIDE_PX wide or high if it is larger, and how many of its pixels are one of the picture."""
    scale = max(1.0, max(slide.width_px, slide.height_px) / LONG_SIDE_PX)
    return Image.fromarray(slide.overview(slide.mpp * scale)), scale


def _draw(image: Image.Image, labels: LabelMap, polygons: np.ndarray, values: np.ndarray) -> None:
    """Draw outlines, large ones first. polygons: (n,) in pixels of the picture; values: (n,) their classes."""
    colours = _colours(labels)
    draw = ImageDraw.Draw(image)
    boxes = shapely.bounds(polygons).reshape(-1, 4)
    for k in np.argsort(-shapely.area(polygons), kind="stable").tolist():
        polygon, colour, (left, top, right, bottom) = polygons[k], colours[int(values[k])], boxes[k].tolist()
        if max(right - left, bottom - top) < _CASING_PX:
            draw.point(((left + right) / 2, (top + bottom) / 2), fill=colour)
            continue
        for ring in (polygon.exterior, *polygon.interiors):
            points = (shapely.get_coordinates(ring) - 0.5).ravel().tolist()  # Pillow counts from pixel centres
            for width_px, paint in ((_CASING_PX, _CASING), (_LINE_PX, colour)):
                draw.line(points, fill=paint, width=width_px, joint="curve")


def _write(
    path: Path, picture: Image.Image, slide: Slide, file: Path, classes: Mapping[str, Any], notices: list[str]
) -> None:
    with atomic_path(path.with_suffix(".jpg")) as temporary:
        picture.save(temporary, quality=88, subsampling=0)  # else thin lines lose their colours
    record = {"slide": slide.path.name, "file": file.name, "classes": classes, "notices": notices}
    write_json(path.with_suffix(".json"), record)
