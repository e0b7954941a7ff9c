"""Polygons become pixels by their centres: exact, without gaps or overlaps, and the same in every tile."""

from unittest import mock

import numpy as np
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st

from stedm.data import polygon_raster
from stedm.data.annotation import PolygonLabels
from stedm.data.polygon_raster import Edges, EdgeTable, pixel_centres, rasterise

SIZE_PX = 48
coordinates = st.one_of(st.integers(-8, 56), st.floats(-8, 56, width=32))
point_lists = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9)
scales = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]) | st.floats(0.3, 5.0)


def valid_parts(points) -> np.ndarray:
    """Valid polygons (n,) of an outline that may cross itself; some have holes."""
    shape = shapely.make_valid(shapely.Polygon(points), method="linework")
    parts = shapely.get_parts(shapely.get_parts([shape]))
    return parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & (shapely.area(parts) > 0)]


def labels_of(polygons, values=None, *, mpp=1.0, uncovered=0) -> PolygonLabels:
    polygons = np.array(polygons, object)
    values = np.arange(1, len(polygons) + 1) if values is None else np.array(values)
    return PolygonLabels(polygons, values, uncovered=uncovered, size_px=(SIZE_PX, SIZE_PX), mpp=mpp)


@given(point_lists, st.floats(0.3, 3.0))
def test_a_pixel_is_inside_exactly_when_its_centre_is(points, step):
    polygons = valid_parts(points)
    assume(len(polygons))
    x, y = pixel_centres(-3, count=30, step=step), pixel_centres(2, count=25, step=step)
    label_map = rasterise(Edges.of(polygons), np.ones(len(polygons), np.uint8), x=x, y=y, fill=0)
    shape, centres = shapely.union_all(polygons), shapely.points(*np.meshgrid(x, y))
    clear = shapely.distance(shapely.boundary(shape), centres) > 1e-6
    assert ((label_map == 1) == shapely.contains(shape, centres))[clear].all()


@given(point_lists, scales, st.sampled_from([0.2527, 0.5, 1.0]), st.integers(3, 16))
def test_tiles_fit_together(points, scale, mpp, tile_px):
    polygons = valid_parts(points)
    assume(len(polygons))
    labels, tiles, patch_mpp = labels_of(polygons, mpp=mpp), 3, mpp * scale
    whole = labels.read(0, 0, size_px=tiles * tile_px, mpp=patch_mpp)
    for row, column in np.ndindex(tiles, tiles):
        tile = labels.read(column * tile_px * patch_mpp, row * tile_px * patch_mpp, size_px=tile_px, mpp=patch_mpp)
        rows, columns = (slice(at * tile_px, (at + 1) * tile_px) for at in (row, column))
        assert np.array_equal(tile, whole[rows, columns])


@given(st.lists(point_lists, min_size=2, max_size=5))
def test_where_polygons_overlap_the_smallest_is_on_top(outlines):
    polygons = [part for points in outlines for part in valid_parts(points)][:20]
    assume(len(polygons) > 1)
    found = labels_of(polygons).read(0, 0, size_px=SIZE_PX, mpp=1)
    centres = shapely.points(*np.meshgrid(np.arange(SIZE_PX) + 0.5, np.arange(SIZE_PX) + 0.5))
    clear = np.min([shapely.distance(shapely.boundary(polygon), centres) for polygon in polygons], axis=0) > 1e-6
    inside = np.array([shapely.contains(polygon, centres) for polygon in polygons])  # (n, H, W)
    areas = np.where(inside, shapely.area(polygons)[:, None, None], np.inf)
    last = len(polygons) - 1 - np.argmin(areas[::-1], axis=0)  # of equal areas the later one
    assert np.array_equal(found[clear], np.where(inside.any(0), last + 1, 0)[clear])


@given(st.lists(st.tuples(st.integers(0, 48), st.integers(0, 48)), min_size=3, max_size=12, unique=True), scales)
def test_polygons_with_common_edges_leave_no_gap_and_no_overlap(points, scale):
    assume(np.linalg.matrix_rank(np.array(points) - points[0]) == 2)
    triangles = shapely.get_parts(shapely.delaunay_triangles(shapely.MultiPoint(points)))
    hull, reads = shapely.convex_hull(shapely.MultiPoint(points)), []
    for polygon in triangles:
        reads.append(labels_of([polygon], [1]).read(0, 0, size_px=20, mpp=scale) == 1)
    assert np.array_equal(np.sum(reads, axis=0), labels_of([hull], [1]).read(0, 0, size_px=20, mpp=scale) == 1)


@pytest.mark.parametrize("mpp", [0.25, 0.4, 1.0])
def test_edges_lie_within_half_a_pixel_and_areas_within_sampling_error(mpp):
    circle = shapely.Point(24, 24).buffer(20, quad_segs=64)
    hole = shapely.Point(20, 26).buffer(7, quad_segs=64)
    ring = circle.difference(hole)
    size_px = int(SIZE_PX / mpp)
    found = labels_of([ring], [1]).read(0, 0, size_px=size_px, mpp=mpp) == 1
    assert found.sum() * mpp**2 == pytest.approx(ring.area, rel=0.02 * mpp)
    inner, outer = ring.buffer(-mpp / 2 * 2**0.5), ring.buffer(mpp / 2 * 2**0.5)
    centres = shapely.points(*np.meshgrid(*[(np.arange(size_px) + 0.5) * mpp] * 2))
    assert found[shapely.contains(inner, centres)].all() and not found[~shapely.contains(outer, centres)].any()


@pytest.mark.parametrize(("left", "width"), [(10, 7), (10.49, 7), (10.51, 7), (9.5, 8)])
def test_a_box_covers_the_pixels_whose_centres_it_holds(left, width):
    row = labels_of([shapely.box(left, 0, left + width, 48)], [1]).read(0, 0, size_px=48, mpp=1)[20]
    assert np.flatnonzero(row == 1).tolist() == [k for k in range(48) if left <= k + 0.5 < left + width]


def test_outside_of_the_slide_nothing_is_known():
    found = labels_of([shapely.box(-10, -10, 60, 60)], [1]).read(-4, 40, size_px=16, mpp=1)
    assert (found[:, :4] == 255).all() and (found[8:] == 255).all() and (found[:8, 4:] == 1).all()


def test_without_polygons_everything_is_uncovered():
    assert (labels_of([], [], uncovered=3).read(0, 0, size_px=8, mpp=1) == 3).all()


def test_of_equal_areas_the_later_is_on_top():
    boxes = [shapely.box(0, 0, 8, 8), shapely.box(4, 0, 12, 8)]
    assert (labels_of(boxes).read(4, 0, size_px=4, mpp=1) == 2).all()
    assert (labels_of(boxes[::-1]).read(4, 0, size_px=4, mpp=1) == 2).all()


def outline(vertices: int, *, hole: bool, seed: int, radius: float = 4000.0) -> shapely.Polygon:
    """A ragged outline around (5000, 5000), as a brush draws it, perhaps with a hole."""
    rng, rings = np.random.default_rng(seed), []
    for size in (radius, radius / 2)[: 1 + hole]:
        angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
        far = size * (1 + 0.05 * np.sin(9 * angle) + 0.01 * rng.standard_normal(vertices))
        rings.append(5000 + far[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    return shapely.Polygon(rings[0], rings[1:])


@given(st.lists(point_lists, min_size=1, max_size=4), st.integers(1, 8), st.floats(-10, 50), st.floats(0.2, 4.0))
def test_a_table_of_edges_changes_no_pixel(outlines, run, top, step):
    """Wherever the patch lies; polygons of few edges are looked up directly, those of many in runs."""
    polygons = np.array([part for points in outlines for part in valid_parts(points)], object)
    assume(len(polygons))
    values = np.arange(1, len(polygons) + 1).astype(np.uint8)
    x, y = pixel_centres(-8, count=20, step=step), pixel_centres(top, count=7, step=step)
    with mock.patch.multiple(polygon_raster, _MANY=6, _RUN=run):
        table = EdgeTable(polygons)
        chosen = np.arange(0, len(polygons), 1 + len(polygons) // 3)
        edges = table.between(chosen, top=y[0], bottom=y[-1])
    found = rasterise(edges, values[chosen], x=x, y=y, fill=0)
    assert np.array_equal(found, rasterise(Edges.of(polygons[chosen]), values[chosen], x=x, y=y, fill=0))


@pytest.mark.parametrize("hole", [False, True])
def test_patches_of_large_outlines_are_those_of_all_their_edges(hole):
    polygons = np.array([outline(3000, hole=hole, seed=0), outline(40, hole=hole, seed=1)], object)
    values, table = np.array([1, 2], np.uint8), EdgeTable(polygons)
    direct, rng = Edges.of(polygons), np.random.default_rng(2)
    for _ in range(200):
        step = rng.uniform(0.5, 40)
        x, y = (pixel_centres(at, count=50, step=step) for at in rng.uniform(0, 10_000, 2))
        edges = table.between(np.arange(2), top=y[0], bottom=y[-1])
        found = rasterise(edges, values, x=x, y=y, fill=0)
        assert np.array_equal(found, rasterise(direct, values, x=x, y=y, fill=0))


def test_a_patch_of_a_large_outline_touches_few_of_its_edges():
    polygon, y = outline(100_000, hole=True, seed=0), pixel_centres(5300, count=256, step=1.0)
    table = EdgeTable(np.array([polygon], object))
    touched = table.between(np.array([0]), top=y[0], bottom=y[-1])
    crossing = Edges.of(np.array([polygon], object))
    crossing = (crossing.low[:, 1] <= y[-1]) & (crossing.high[:, 1] > y[0])
    assert crossing.sum() <= len(touched.owner) < 0.05 * 200_000


def test_a_label_source_converts_large_outlines_once(monkeypatch):
    polygons = np.array([outline(5000, hole=False, seed=0)], object)
    labels = PolygonLabels(polygons, np.array([1]), uncovered=0, size_px=(10_000, 10_000), mpp=1.0)
    monkeypatch.setattr(polygon_raster.shapely, "to_ragged_array", lambda polygons: pytest.fail("converted again"))
    assert (labels.read(4000, 4000, size_px=16, mpp=1.0) == 1).all()
    assert (labels.read(1000, 1000, size_px=16, mpp=1.0) == 0).all()
