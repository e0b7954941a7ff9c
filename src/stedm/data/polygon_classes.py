"""From the names of polygon classes in annotation files to classes 0..C-1, ignore, or nothing."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stedm.config import IGNORE
from stedm.data.annotation import Annotation
from stedm.data.annotation_geojson import UNCLASSIFIED, class_names
from stedm.data.labels import LabelMap, is_value, nearest_name
from stedm.errors import UserError

UNANNOTATED = "unannotated"
"""Stands among the names of a class for the places in no polygon; without it they are ignore."""
GLASS = "glass"
"""Stands among the names of a class for the places in no polygon that are no tissue; without it they are as others."""
UNCOVERED = IGNORE - 1
"""Label of places in no polygon until it is known whether there is tissue; no class has it."""
LEAVE_OUT = "leave_out"
"""Stands among the classes for polygons that are not drawn, as if they were not in the file."""
_RESERVED = (UNANNOTATED, GLASS, UNCLASSIFIED)
_NOT_DRAWN = -1


def label_map_of(labels: Mapping[str, list[Any]], *, key: str) -> LabelMap:
    """Label map of config `labels` that may name polygon classes beside mask values: class name -> values and names.

    A name is that of a polygon class, exactly or but for the spaces around its colons; what reads as a value, such as
    1 or "1-254", counts as both. `unannotated`, `glass` and `leave_out` are described above. Raises UserError as
    `LabelMap.from_config` does, and for a name in two classes.
    """
    entries = {name: found if isinstance(found, list | tuple) else [found] for name, found in labels.items()}
    classes = {name: found for name, found in entries.items() if name != LEAVE_OUT}
    values = {name: [entry for entry in found if is_value(entry)] for name, found in classes.items()}
    base = LabelMap.from_config(values, key=key)
    owner: dict[str, str] = {}
    names: dict[str, int] = {}
    for name, found in entries.items():
        for entry in found:
            if isinstance(entry, bool) or not isinstance(entry, str | int) or not str(entry).strip():
                raise UserError(f"{key}.{name}: {entry!r} is no class name and no value; put names in quotes")
            polygon_class = class_names(str(entry))[0]
            if owner.setdefault(polygon_class, name) != name:
                raise UserError(f"{key}: '{entry}' is both {owner[polygon_class]} and {name}; keep it in one of them")
            reserved = {"ignore": IGNORE, LEAVE_OUT: _NOT_DRAWN}
            names[polygon_class] = reserved[name] if name in reserved else base.classes.index(name)
    return replace(base, names=names)


def label_of(labels: LabelMap, names: Sequence[str]) -> int | None:
    """Label of a polygon class by the first of its names that is known: 0..C-1, 255 ignore, -1 not drawn, or None.

    A class answers to its own name too, as outlines of `stedm segment` have it, but not for what is derived from it.
    """
    if names[0] not in (*labels.names, *_RESERVED) and names[0] in labels.classes:
        return labels.classes.index(names[0])
    return next((labels.names[name] for name in names if name in labels.names), None)


def values_of(labels: LabelMap, annotation: Annotation) -> np.ndarray:
    """Label of each class of the annotation (len(names),), for `Annotation.labels`; unknown ones are not drawn."""
    found = [label_of(labels, names) for names in annotation.names]
    return np.array([_NOT_DRAWN if label is None else label for label in found], int)


def uncovered_label(labels: LabelMap) -> int:
    """Label of places in no polygon: the class that `unannotated` is named in, else ignore."""
    label = labels.names.get(UNANNOTATED, IGNORE)
    return IGNORE if label == _NOT_DRAWN else label


def glass_label(labels: LabelMap) -> int:
    """Label of places in no polygon that are no tissue: the class that `glass` is named in, else `uncovered_label`."""
    label = labels.names.get(GLASS, _NOT_DRAWN)
    return uncovered_label(labels) if label == _NOT_DRAWN else label


class ClassCounts:
    """Polygons of each class over all slides, to say at once what the config does not name."""

    def __init__(self) -> None:
        self._polygons: Counter[tuple[str, ...]] = Counter()
        self._slides: Counter[tuple[str, ...]] = Counter()

    def add(self, annotation: Annotation) -> None:
        """Count the polygons of one slide."""
        counts = annotation.counts()
        self._polygons.update(counts)
        self._slides.update(counts.keys())

    def example(self) -> str:
        """A `labels` section that names every class, to start from."""
        found = [f'{_key(names[0])}: ["{names[0]}"]' for names, _ in self._polygons.most_common()]
        return "{" + ", ".join(found) + "}"

    def refuse_unmapped(self, labels: LabelMap, *, source: str) -> None:
        """Raise UserError naming every class that `labels` does not name, with its polygons and slides."""
        missing = [names for names, _ in self._polygons.most_common() if label_of(labels, names) is None]
        if missing:
            counted = [(names, self._polygons[names], self._slides[names]) for names in missing]
            listed = "; ".join(
                f"'{names[0]}': {polygons} polygon(s) on {slides} slide(s){_hint(names, labels)}"
                for names, polygons, slides in counted
            )
            raise UserError(
                f"{source}: {labels.key} does not name {len(missing)} polygon class(es): {listed}; add each to a class,"
                f" to ignore, or to {LEAVE_OUT} (not drawn)"
            )


def _hint(names: Sequence[str], labels: LabelMap) -> str:
    if names[0] == UNCLASSIFIED:
        return " (objects without a classification)"
    near = nearest_name(names[0], _known(labels))
    return f" (is it '{near}'?)" if near else ""


def _known(labels: LabelMap) -> Iterable[str]:
    return [name for name in labels.names if name not in _RESERVED]


def _key(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_") or "class"
