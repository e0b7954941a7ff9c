"""Label sources: whatever gives the label map of any square of a slide, a mask file or polygons."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stedm.config import IGNORE
from stedm.data.annotation import Annotation, PolygonLabels, read_annotation
from stedm.data.labels import LabelMap, read_mask
from stedm.data.patches import extract_label_patch
from stedm.data.polygon_classes import UNCOVERED, ClassCounts, glass_label, label_map_of, uncovered_label, values_of
from stedm.data.slide import DamagedSlide, Slide
from stedm.errors import UserError

_COUNTED_PX = 2**24


class LabelSource(Protocol):
    """The annotation of one slide."""

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """Label map (size_px, size_px) uint8 of the square with its top-left corner at (x_um, y_um), at `mpp`.

        Classes 0..C-1; 255 where the pixel's class is unknown, outside of the slide for one.
        """
        ...


class MaskFile:
    """A label-map image as large as its slide, read whole; regions take the nearest pixel."""

    def __init__(self, path: str | Path, labels: LabelMap, *, mpp: float) -> None:
        """`mpp`: microns per pixel of the mask, those of its slide. Raises UserError as `read_mask` and `apply` do."""
        self.path = Path(path)
        self._label_map = labels.apply(read_mask(path), source=path)
        self._mpp = mpp

    def counts(self) -> np.ndarray:
        """Pixels of each label (256,), in parts: a count takes eight bytes a pixel."""
        parts = np.array_split(self._label_map.ravel(), 1 + self._label_map.size // _COUNTED_PX)
        return np.sum([np.bincount(part, minlength=256) for part in parts], axis=0)

    def read(self, x_um: float, y_um: float, *, size_px: int, mpp: float) -> np.ndarray:
        """See `LabelSource.read`."""
        left_px, top_px = (round(at_um / self._mpp, 6) for at_um in (x_um, y_um))
        scale = mpp / self._mpp  # mask pixels per patch pixel
        return extract_label_patch(self._label_map, left_px, top_px, scale=scale, patch_px=size_px)


def open_annotation(name: str, slide: Slide, *, origin: str, slide_name: str = "") -> Annotation:
    """Polygons of the annotation file `name` on a slide, in level-0 pixels of the whole image.

    With `origin` "bounds" the file's coordinates begin at the slide's scanned bounds, with "slide" at its corner. In a
    COCO file, the image with the name of the slide's file or `slide_name` counts. Raises UserError as `read_annotation`
    does, for an image of another size than the slide's (or its bounds'), and for polygons most of which are not on it.
    """
    names = [slide.path.name, slide.path.stem, *([slide_name] if slide_name else [])]
    whole = (0, 0, slide.width_px, slide.height_px)
    left_px, top_px, width_px, height_px = slide.bounds_px if origin == "bounds" else whole
    annotation = read_annotation(name, slide_names=list(dict.fromkeys(names)))
    annotation.refuse_another_size(width_px=width_px, height_px=height_px)
    annotation = annotation.shifted(left_px, top_px)
    annotation.refuse_misplaced(width_px=slide.width_px, height_px=slide.height_px)
    return annotation


def polygon_labels(annotation: Annotation, labels: LabelMap, slide: Slide) -> PolygonLabels:
    """The label map that the polygons of a slide make; 254 where it depends on tissue (`polygon_classes.UNCOVERED`)."""
    fill = uncovered_label(labels)
    return annotation.labels(
        values_of(labels, annotation),
        uncovered=fill if glass_label(labels) == fill else UNCOVERED,
        size_px=(slide.width_px, slide.height_px),
        mpp=slide.mpp,
    )


def resolve_polygon_classes(
    rows: Iterable[tuple[str, Any]], labels: Mapping[str, list[Any]], *, table: str, key: str
) -> LabelMap:
    """Label map of config `labels`, checked against every annotation file of the rows, which come with their names.

    Raises UserError as `open_annotation` does, naming the row; for files without polygons, unless what is in no polygon
    has a class; and naming all polygon classes of all files that `labels` does not name.
    """
    label_map = label_map_of(labels, key=key) if labels else None
    counts = ClassCounts()
    for where, row in rows:
        try:
            with Slide.open(row.image) as slide:
                origin = row.annotation_origin
                annotation = open_annotation(row.annotation, slide, origin=origin, slide_name=row.slide)
        except DamagedSlide:  # cutting it reports that
            continue
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not len(annotation.polygons) and label_map is not None and uncovered_label(label_map) == IGNORE:
            raise UserError(
                f"{where}: {annotation.path} holds no polygon of this slide; leave the cell empty if the slide is not"
                " annotated, or name `unannotated` in a class"
            )
        counts.add(annotation)
    if label_map is None:
        raise UserError(
            f"{table}: say which polygon class is which with {key}, e.g. {counts.example()}; what is in no polygon is"
            " ignored, unless a class names `unannotated`"
        )
    counts.refuse_unmapped(label_map, source=table)
    return label_map
