"""Annotation files of every form give the same polygons; what cannot be used is refused with the place and the fix."""

import gzip
import json

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from stedm.data.annotation import Annotation, read_annotation
from stedm.data.annotation_coco import run_length_polygons
from stedm.data.annotation_geojson import class_names, classification
from stedm.data.outlines import Outlines
from stedm.errors import UserError

BOX = [[2, 3], [12, 3], [12, 9], [2, 9], [2, 3]]
HOLE = [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]


def feature(geometry, **properties) -> dict:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings) -> dict:
    return {"type": "Polygon", "coordinates": list(rings)}


TUMOUR = feature(polygon(BOX, HOLE), classification={"name": "Tumor", "color": [200, 0, 0]}, objectType="annotation")


@pytest.fixture
def read(tmp_path):
    """Writes a value as JSON, or text or bytes as they are, and reads it as an annotation."""

    def write_and_read(content, *, name="a.geojson", **options) -> Annotation:
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return read_annotation(tmp_path / name, **options)

    return write_and_read


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [TUMOUR]},
        {"features": [TUMOUR], "type": "FeatureCollection", "bbox": [0, 0, 1, 1]},
        [TUMOUR],
        [{"type": "FeatureCollection", "features": [TUMOUR]}],
        TUMOUR,
        feature({"type": "MultiPolygon", "coordinates": [[BOX, HOLE]]}, classification="Tumor"),
        feature(
            {"type": "GeometryCollection", "geometries": [polygon(BOX, HOLE)]}, classification={"names": ["Tumor"]}
        ),
        feature(polygon(BOX[:-1], [[*point, 0.0] for point in HOLE]), classification={"name": "Tumor", "colorRGB": -1}),
    ],
    ids=["collection", "features first", "list", "nested", "feature", "multi", "geometries", "open rings, old style"],
)
def test_every_form_of_geojson(read, content):
    for text in (json.dumps(content), json.dumps(content, indent=2)):
        found = read(text)
        assert found.counts() == {("Tumor",): 1} and found.tally.notices() == []
        assert shapely.equals(found.polygons[0], shapely.Polygon(BOX, [HOLE]))


@pytest.mark.parametrize(
    "content",
    ["[]", *({"type": "FeatureCollection", "features": features} for features in ([], None)), {"features": None}],
)
def test_a_file_without_objects_is_an_annotation_without_polygons(read, content):
    found = read(content)
    assert (
        found.counts() == {} and not found.shifted(3, 4).area(size_px=(9, 9), mpp=1).read(0, 0, size_px=5, mpp=1).any()
    )


def test_a_bare_geometry_and_objects_without_class_are_unclassified(read):
    assert read(polygon(BOX)).counts() == {("unclassified",): 1}
    features = [feature(polygon(BOX)), feature(polygon(BOX), classification=None), {**TUMOUR, "properties": None}]
    assert read(features).counts() == {("unclassified",): 3}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_byte_order_marks_and_gzip_whatever_the_file_is_called(read, encoding, packed):
    content = json.dumps([feature(polygon(BOX), classification={"name": "Drüse"})], ensure_ascii=False).encode(encoding)
    name = "a.json" if packed else "a.geojson.gz"  # the content decides
    assert read(gzip.compress(content) if packed else content, name=name).counts() == {("Drüse",): 1}


def test_names_of_classes():
    assert class_names("Tumor: Positive: 1+") == ("Tumor: Positive: 1+", "Tumor: Positive", "Tumor")
    assert class_names(" Tumor :Positive") == ("Tumor: Positive", "Tumor")
    assert classification({"classification": {"names": ["Tumor", "Positive"]}}) == ("Tumor: Positive", "Tumor")
    assert classification({"classification": {"name": "", "names": []}}) == ("unclassified",)


def test_self_crossing_polygons_are_repaired_and_empty_ones_counted(read):
    bow_tie = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    looped = [[0, 0], [20, 0], [20, 20], [8, 20], [8, 8], [14, 8], [14, 14], [0, 14], [0, 0]]
    on_one_line, one_point = [[0, 0], [5, 5], [9, 9], [0, 0]], [[1, 1]] * 3
    found = read([feature(polygon(ring)) for ring in (bow_tie, looped, on_one_line, one_point, [])])
    assert shapely.is_valid(found.polygons).all() and set(shapely.get_type_id(found.polygons)) == {3}
    assert found.tally.repaired == 2 and found.tally.without_area == 3
    assert "2 invalid polygon(s) repaired" in found.tally.notices()
    assert shapely.union_all(found.polygons[:2]).area == 50  # both wings of the bow
    assert shapely.contains(shapely.union_all(found.polygons), shapely.Point(11, 11))  # enclosed twice, still inside


def test_measurements_may_be_nan_and_objects_have_children(read):
    child = feature(polygon(HOLE), classification={"name": "Stroma"}, measurements={"DAB": float("nan")})
    parent = feature(polygon(BOX), classification={"name": "Tumor"}, childObjects=[child, child])
    content = json.dumps([parent])
    assert "NaN" in content and read(content).counts() == {("Tumor",): 1, ("Stroma",): 2}


def test_points_lines_and_missing_geometries_are_counted_and_left_out(read):
    shapes = [
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "MultiPoint", "coordinates": [[1, 2]]},
        {"type": "LineString", "coordinates": [[0, 0], [1, 1]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}, polygon(BOX)]},
    ]
    found = read([*(feature(shape) for shape in shapes), feature(None), feature({})])
    assert len(found.polygons) == 1
    assert found.tally.skipped == {"Point": 2, "MultiPoint": 1, "LineString": 1, "feature without a geometry": 2}
    assert any("2 x Point" in notice for notice in found.tally.notices())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"type": "Feature", ', ["line 1", "column"]),
        ('[{"type":\n "Feature"} {"type": "Feature"}]', ["line 2"]),
        ('{"type": "FeatureCollection", "features": [', ["line 1"]),
        ('{"type" "FeatureCollection"}', ["line 1", "column 9"]),
        ("[] []", ["line 1", "column 4"]),
        ("", ["line 1"]),
        ('"text"', ["line 1", "neither"]),
        ("[" * 100_000, ["damaged"]),
        (b"\x1f\x8b\x08\x00 no gzip", ["gzip"]),
        (gzip.compress(json.dumps([TUMOUR]).encode())[:-20], ["gzip"]),
        (b'[{"type": "\xff\xfe"}]', ["UTF-8", "byte 11"]),
        ({"shapes": [], "version": 1}, ["neither GeoJSON nor COCO"]),
        ([3], ["feature 1"]),
        ([TUMOUR, {"properties": {}}], ["feature 2"]),
        ([TUMOUR, feature({"type": "Circle"})], ["feature 2", "Circle"]),
        ([feature("POLYGON")], ["feature 1"]),
        ([feature(polygon([[1, 2], [3], [4, 5]]))], ["feature 1", "two numbers"]),
        ([feature(polygon([[1, 2], ["3", 4], [4, 5]]))], ["feature 1"]),
        ([feature(polygon([[1, 2], [None, 4], [4, 5]]))], ["feature 1"]),
        ([feature(polygon(BOX[0]))], ["feature 1"]),
        ('[{"type": "Polygon", "coordinates": [[[0, NaN], [1, 1], [2, 0]]]}]', ["not finite"]),
        ('[{"type": "Polygon", "coordinates": [[[0, 1e999], [1, 1], [2, 0]]]}]', ["not finite"]),
        ({"annotations": [], "images": []}, ["neither GeoJSON nor COCO"]),
    ],
)
def test_what_cannot_be_used_is_refused(read, content, words):
    with pytest.raises(UserError) as refused:
        read(content)
    message = str(refused.value)
    assert all(word in message for word in ["a.geojson", *words]) and "again" in message


@pytest.mark.parametrize("value", ["null", '"7"', "[1]", "NaN", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize(
    ("file", "place"),
    [
        ('{"type": "FeatureCollection", "features": [GOOD, BAD]}', "feature 2"),
        ('[GOOD, {"type": "FeatureCollection", "features": [GOOD, BAD]}, GOOD]', "feature 3"),
        ("BAD", "feature 1"),
        ('{"features": [GOOD, {"type": "Polygon", "coordinates": [[[0, VALUE], [9, 0], [9, 9]]]}]}', "feature 2"),
        ('{"features": [GOOD, {"type": "Polygon", "coordinates": [[[0, 0], VALUE, [9, 9]]]}]}', "feature 2"),
        ('{"features": [GOOD, {"type": "Polygon", "coordinates": [VALUE]}]}', "feature 2"),
    ],
)
def test_a_bad_coordinate_is_named_with_its_features_number(read, file, place, value):
    bad = json.dumps(feature(polygon([[0, 0], [5, "VALUE"], [5, 5]]))).replace('"VALUE"', value)
    with pytest.raises(UserError, match=rf"a\.geojson: {place} cannot be used") as refused:
        read(file.replace("GOOD", json.dumps(TUMOUR)).replace("BAD", bad).replace("VALUE", value))
    assert "again" in str(refused.value) and "\n" not in str(refused.value)


def test_large_coordinates_are_finite():
    """Their sum need not be."""
    Outlines().add("Tumor", [[[1.5e308, 1.0], [1.5e308, 2.0], [0.0, 3.0]]])


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json.*correct the path"):
        read_annotation(tmp_path / "nowhere.json")


def test_moving_to_the_scanned_bounds_and_what_is_not_on_the_slide(read):
    found = read([TUMOUR])
    assert shapely.bounds(found.shifted(100, 50).polygons[0]).tolist() == [102, 53, 112, 59]
    assert found.shifted(0, 0) is found
    found.refuse_misplaced(width_px=8, height_px=8)  # half inside is inside
    with pytest.raises(UserError, match=r"1 of 1 polygons.*annotation_origin: slide, bounds"):
        found.shifted(100, 50).refuse_misplaced(width_px=90, height_px=90)


COCO = {
    "info": {"description": "as in CATCH: flat coordinates, categories in supercategories"},
    "images": [
        {"file_name": "Bone_01.svs", "id": 7, "width": 60, "height": 50},
        {"file_name": "folder/PNST_02.svs", "id": 9, "width": 60, "height": 50},
    ],
    "categories": [
        {"id": 1, "name": "Bone", "supercategory": "Tissue"},
        {"id": 10, "name": "PNST", "supercategory": "Tumor"},
    ],
    "annotations": [
        {"segmentation": [2, 3, 12, 3, 12, 9, 2, 9, 2, 3], "image_id": 7, "category_id": 1, "id": 1, "iscrowd": 0},
        {"segmentation": [[20, 20, 30, 20, 30, 30], [40, 40, 45, 40, 45, 45]], "image_id": 9, "category_id": 10},
        {"segmentation": {"counts": [6, 4, 40], "size": [5, 10]}, "image_id": 9, "category_id": 1},
        {"segmentation": [], "bbox": [0, 0, 5, 5], "image_id": 9, "category_id": 1},
    ],
}


@pytest.mark.parametrize("order", [("images", "categories", "annotations"), ("annotations", "categories", "images")])
def test_coco_of_many_slides(read, order):
    content = {"type": "instances", **{key: COCO[key] for key in order}}
    first = read(content, slide_names=["Bone_01.svs", "Bone_01"])
    assert first.counts() == {("Bone", "Tissue"): 1}
    assert shapely.equals(first.polygons[0], shapely.Polygon(BOX))
    second = read(content, slide_names=["other.tif", "PNST_02"])
    assert second.counts() == {("PNST", "Tumor"): 2, ("Bone", "Tissue"): 1}
    assert shapely.bounds(second.polygons[2]).tolist() == [1, 1, 2, 5]
    assert second.tally.skipped == {"annotation without a segmentation": 1}


def test_a_changed_coco_file_is_read_again(read):
    assert len(read(COCO, slide_names=["Bone_01"]).polygons) == 1
    assert len(read(COCO | {"annotations": []}, slide_names=["Bone_01"]).polygons) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [{"file_name": "x.svs", "id": 1}]}, ["Bone_01.svs", "x.svs", "file_name"]),
        ({"images": [{"file_name": f"{k}/Bone_01.svs", "id": k} for k in range(2)]}, ["2 images", "Bone_01.svs"]),
        ({"images": [{"name": "x.svs", "id": 1}]}, ["file_name"]),
        ({"categories": [{"id": 3, "name": "Bone"}]}, ["category", "1"]),
        ({"annotations": [{"segmentation": [1, 2, 3], "image_id": 7, "category_id": 1}]}, ["annotation 1", "3"]),
        ({"annotations": [{"segmentation": [0, 0, 5, 0, 5, 5], "image_id": 7}]}, ["annotation 1", "category_id"]),
        ({"annotations": [{"segmentation": "x", "image_id": 7, "category_id": 1}]}, ["annotation 1"]),
        (
            {"annotations": [{"segmentation": {"counts": "abc", "size": [1, 2]}, "image_id": 7, "category_id": 1}]},
            ["annotation 1", "compressed RLE"],
        ),
        (
            {"annotations": [{"segmentation": {"counts": [1, 2], "size": [1, 2]}, "image_id": 7, "category_id": 1}]},
            ["annotation 1", "1 x 2"],
        ),
    ],
)
def test_coco_that_cannot_be_used_is_refused(read, change, words):
    with pytest.raises(UserError) as refused:
        read(COCO | change, name="a.json", slide_names=["Bone_01.svs"])
    assert all(word in str(refused.value) for word in ["a.json", *words])


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_run_lengths_become_the_same_pixels(height, width, data):
    flat = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)))
    changes = np.flatnonzero(np.diff(flat.astype(int))) + 1
    counts = np.diff([0, *changes, len(flat)]).tolist()
    polygons = run_length_polygons({"counts": ([0] if flat[0] else []) + counts, "size": [height, width]})
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inside = shapely.contains_xy(shapely.union_all(polygons), x, y) if len(polygons) else np.zeros(x.shape, bool)
    assert np.array_equal(inside, flat.reshape(width, height).T)  # runs go down the columns


def test_an_area_is_wherever_there_is_any_polygon(read):
    found = read([TUMOUR, feature(polygon([[30, 30], [40, 30], [40, 40], [30, 40]]))])
    area = found.area(size_px=(50, 40), mpp=0.5).read(0, 0, size_px=30, mpp=1.0)
    assert area.shape == (30, 30) and area.dtype == bool
    assert (area[2, 2], area[16, 16], area[10, 10], area[22, 0], area[0, 26]) == (False, True, False, False, False)
    assert area.sum() == 5 * 3 - 1 + 5 * 5
