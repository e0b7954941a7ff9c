"""Outlines: one valid polygon with holes per connected region, and back to the label map they came from."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw
from scipy import ndimage
from shapely import Polygon

from stedm.config import IGNORE
from stedm.data.geojson import write_features
from stedm.data.region_outlines import outlines


class Rows:
    """A label map in memory."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels
        self.height_px, self.width_px = labels.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.labels[start:stop]


def drawn(polygons, shape: tuple[int, int]) -> np.ndarray:
    """Polygons as a label map; a pixel belongs to the polygon that holds its centre."""
    zoom = 8
    image = np.full(shape, IGNORE, np.uint8)
    for label, polygon in polygons:
        mask = Image.new("1", (shape[1] * zoom, shape[0] * zoom))
        draw = ImageDraw.Draw(mask)
        for ring, value in ((polygon.exterior, 1), *((hole, 0) for hole in polygon.interiors)):
            draw.polygon([(x * zoom - 0.5, y * zoom - 0.5) for x, y in ring.coords], fill=value)
        image[np.asarray(mask)[zoom // 2 :: zoom, zoom // 2 :: zoom]] = label
    return image


def blobs(seed: int, shape: tuple[int, int] = (300, 260), sigma_px: float = 8.0) -> np.ndarray:
    """Smooth regions of three classes, islands and lakes among them, and a corner that was not predicted."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma_px)
    labels = np.digitize(field, np.quantile(field, [0.4, 0.75])).astype(np.uint8)
    labels[:60, :90] = IGNORE
    return labels


def region_areas(labels: np.ndarray) -> Counter:
    """(class, pixels) of each region that is connected along edges."""
    found: Counter = Counter()
    for label in set(np.unique(labels).tolist()) - {IGNORE}:
        numbers, _ = ndimage.label(labels == label)
        found.update((label, int(area)) for area in np.bincount(numbers.ravel())[1:])
    return found


LABELS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.sampled_from([0, 1, 255])
)


@settings(max_examples=200)
@given(LABELS, st.sampled_from([1, 3, 64]))
def test_each_region_is_one_valid_polygon_of_its_area(labels: np.ndarray, block_px: int) -> None:
    traced = list(outlines(Rows(labels), tolerance_px=0, block_px=block_px))
    assert all(polygon.is_valid for _, polygon in traced)
    assert Counter((label, round(polygon.area)) for label, polygon in traced) == region_areas(labels)
    assert (drawn(traced, labels.shape) == labels).all()


@settings(max_examples=100)
@given(LABELS)
def test_simplified_polygons_are_valid_whatever_the_labels(labels: np.ndarray) -> None:
    traced = list(outlines(Rows(labels), block_px=5))
    assert all(polygon.is_valid and polygon.area > 0 for _, polygon in traced)
    assert len(traced) == sum(region_areas(labels).values())


def points(polygons) -> int:
    return sum(len(p.exterior.coords) + sum(len(hole.coords) for hole in p.interiors) for _, p in polygons)


@pytest.mark.parametrize(("seed", "sigma_px", "tolerance_px"), [(0, 8.0, 0.4), (1, 8.0, 0.4), (2, 20.0, 0.5)])
def test_back_to_the_label_map(seed: int, sigma_px: float, tolerance_px: float) -> None:
    labels = blobs(seed, sigma_px=sigma_px)
    traced = list(outlines(Rows(labels), tolerance_px=tolerance_px, block_px=64))
    back = drawn(traced, labels.shape)
    for label in (0, 1, 2):
        a, b = labels == label, back == label
        assert (a & b).sum() / (a | b).sum() > 0.99
    assert points(traced) < 0.6 * points(outlines(Rows(labels), tolerance_px=0))


def test_blocks_leave_no_trace() -> None:
    labels = blobs(5)
    of_block = {
        block_px: sorted(
            (label, p.normalize().wkt) for label, p in outlines(Rows(labels), tolerance_px=0, block_px=block_px)
        )
        for block_px in (32, 100, 1024)
    }
    assert of_block[32] == of_block[100] == of_block[1024]


def test_holes_islands_and_small_regions() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[10:50, 10:50] = 1
    labels[20:40, 20:40] = 0  # a lake
    labels[28:32, 28:32] = 1  # an island in it
    labels[2, 2] = 1
    every = [(label, round(p.area)) for label, p in outlines(Rows(labels), tolerance_px=0)]
    assert sorted(every) == [(0, 384), (0, 1999), (1, 1), (1, 16), (1, 1200)]
    large = list(outlines(Rows(labels), tolerance_px=0, min_area_px=20, classes=[1]))
    assert [(label, p.area, len(p.interiors)) for label, p in large] == [(1, 1200.0, 1)]
    background = max(
        (p for label, p in outlines(Rows(labels), tolerance_px=0, min_area_px=2) if label == 0), key=lambda p: p.area
    )
    assert background.area == 2000 and len(background.interiors) == 1  # the hole of one pixel is closed


def test_features_for_qupath(tmp_path) -> None:
    square = Polygon([(1, 2), (5, 2), (5, 6), (1, 6)], [[(2, 3), (3, 3), (3, 4), (2, 4)]])
    arguments = {"classes": ["stroma", "gland"], "colours": ["#112233", "#ff8000"], "scale": 2.5, "origin_px": (10, 20)}
    counts = write_features(tmp_path / "a.geojson", [(1, square), (1, square)], **arguments)
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert counts == [0, 2] and collection["type"] == "FeatureCollection" and len(collection["features"]) == 2
    feature = collection["features"][0]
    assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "gland", "color": [255, 128, 0]},
    }
    shell, hole = feature["geometry"]["coordinates"]
    assert shell[0] == shell[-1] and [-7.5, -15.0] in shell and [2.5, -5.0] in shell and [-5.0, -12.5] in hole
    write_features(tmp_path / "a.geojson.gz", [(1, square), (1, square)], **arguments)
    assert gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()) == (tmp_path / "a.geojson").read_bytes()
    assert write_features(tmp_path / "none.geojson", [], **arguments) == [0, 0]
    assert json.loads((tmp_path / "none.geojson").read_text())["features"] == []
