"""Features of QuPath GeoJSON: collected into outlines with the names each one's class answers to."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from stedm.data.outlines import Outlines

UNCLASSIFIED = "unclassified"
"""Class name of objects without a classification."""
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


@lru_cache(maxsize=1024)
def class_names(name: str) -> tuple[str, ...]:
    """The names that a class answers to, in the order in which they are looked up: itself, then its parents.

    QuPath writes derived classes as "Tumor: Positive": that is looked up first, then "Tumor".
    """
    parts = [part.strip() for part in name.split(":")]
    return tuple(": ".join(parts[:count]) for count in range(len(parts), 0, -1))


class GeoJson:
    """Collects what stands at the top level of a GeoJSON file, piece by piece."""

    def __init__(self) -> None:
        self.outlines = Outlines()
        self.features = 0
        """Features added so far, those of collections one by one, children not counted."""

    @property
    def place(self) -> str:
        """The feature being added, for messages."""
        return f"feature {self.features}"

    def add(self, feature: Any) -> None:
        """A feature, a collection of them, or a bare geometry, which is unclassified.

        An empty geometry is nothing. Cells are their outer outline; child objects count as features of their own.
        Raises ValueError or TypeError for anything else.
        """
        if isinstance(feature, Mapping) and feature.get("type") == "FeatureCollection":
            for part in feature.get("features") or ():
                self.add(part)
        else:
            self.features += 1
            self._object(feature)

    def _object(self, feature: Any) -> None:
        if not isinstance(feature, Mapping) or "type" not in feature:
            raise ValueError("neither a feature nor a geometry")
        if feature["type"] == "Feature":
            properties = feature.get("properties") or {}
            self._geometry(classification(properties), feature.get("geometry"))
            for child in properties.get("childObjects") or ():
                self._object(child)
        else:
            self._geometry((UNCLASSIFIED,), feature)

    def _geometry(self, names: tuple[str, ...], geometry: Any) -> None:
        if geometry in (None, {}):
            self.outlines.skip("feature without a geometry")
            return
        if not isinstance(geometry, Mapping):
            raise ValueError("the geometry is no object")
        kind = geometry.get("type")
        if kind == "Polygon":
            self.outlines.add(names, geometry.get("coordinates") or ())
        elif kind == "MultiPolygon":
            for rings in geometry.get("coordinates") or ():
                self.outlines.add(names, rings)
        elif kind == "GeometryCollection":
            for part in geometry.get("geometries") or ():
                self._geometry(names, part)
        elif kind in _NO_AREA:
            self.outlines.skip(str(kind))
        else:
            raise ValueError(f"unknown geometry type {kind!r}")


def classification(properties: Any) -> tuple[str, ...]:
    """Names of the class in a feature's properties; `UNCLASSIFIED` where there is none.

    Understood are `classification: {name: ...}`, `classification: {names: [...]}` and `classification: "..."`.
    """
    found = properties.get("classification") if isinstance(properties, Mapping) else None
    if isinstance(found, Mapping):
        names = found.get("names")
        found = found.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else None)
    name = str(found).strip() if found is not None else ""
    return class_names(name) if name else (UNCLASSIFIED,)
