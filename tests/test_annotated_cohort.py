"""From a table with annotation files to label maps: class names, what is in no polygon, origins, pictures, mistakes."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import IGNORE, CohortConfig, PrepareConfig, RunConfig, SplitConfig, TargetConfig
from stedm.data.cohort import read_cohort, resolve_labels
from stedm.data.label_source import open_annotation
from stedm.data.laboratories import read_laboratories, resolve_label_maps
from stedm.data.polygon_classes import glass_label, label_map_of, label_of, uncovered_label
from stedm.data.slide import Slide
from stedm.errors import UserError
from stedm.files import read_json
from stedm.stages.alignment import LONG_SIDE_PX, write_alignment
from stedm.stages.inputs import inputs_of
from stedm.stages.prepare import prepare
from stedm.stages.report_alignment import alignments

LABELS = {"tumour": ["Tumor"], "stroma": ["Stroma", "unannotated"], "ignore": ["Necrosis"]}
WIDTH_PX, HEIGHT_PX = 64, 48


def square(left, top, size, name=None) -> dict:
    ring = [[left, top], [left + size, top], [left + size, top + size], [left, top + size], [left, top]]
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def write_annotation(folder, number, features) -> None:
    (folder / f"a{number}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.fixture
def table(tmp_path) -> pd.DataFrame:
    """Four patients with annotation files, one with a mask, and one without either; 64 x 48 pixels each."""
    rng, rows = np.random.default_rng(0), []
    for k in range(6):
        Image.fromarray(rng.integers(60, 160, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)).save(tmp_path / f"i{k}.png")
        rows.append({"image": f"i{k}.png", "patient": f"p{k}", "mpp": "0.5"})
        rows[-1] |= {"mask": "m.png" if k == 4 else "", "annotation": f"a{k}.geojson" if k < 4 else ""}
        features = [square(0, 0, 32, "Tumor: Positive"), square(8, 8, 8, "Necrosis"), square(40, 4, 8, "Tumor")]
        write_annotation(tmp_path, k, features)
    Image.fromarray(np.ones((HEIGHT_PX, WIDTH_PX), np.uint8)).save(tmp_path / "m.png")
    return pd.DataFrame(rows)


def cohort_config(folder, table, **options) -> CohortConfig:
    table.to_csv(folder / "table.csv", index=False)
    return CohortConfig(
        table=str(folder / "table.csv"), **({"labels": LABELS | {"stroma": ["Stroma", 1, "unannotated"]}} | options)
    )


def run_config(folder, table, **options) -> RunConfig:
    return RunConfig(
        cohort=cohort_config(folder, table, **options),
        split=SplitConfig(label_budget=2, val_patients=1, test_patients=1),
        prepare=PrepareConfig(patch_px=16, mpp=1.0, min_tissue=0),
    )


def refusal(folder, table, **options) -> str:
    config = cohort_config(folder, table, **options)
    with pytest.raises(UserError) as refused:
        resolve_labels(config, read_cohort(config))
    return str(refused.value)


def test_patches_are_labelled_from_polygons_and_masks_alike(tmp_path, table):
    out = tmp_path / "data"
    prepare(out, run_config(tmp_path, table))
    patches = pd.read_parquet(out / "patches.parquet")
    assert set(patches.loc[~patches["has_mask"], "patient"]) == {"p5"}
    assert read_json(out / "classes.json")["classes"] == ["tumour", "stroma"]
    # 32 x 24 pixels of 1 micron, four patches; the slide's pixels are half as wide.
    found = {
        (row.x_um, row.y_um): np.asarray(Image.open(out / row.mask))
        for row in patches.query("patient=='p0'").itertuples()
    }
    first, right = found[0, 0], found[16, 0]
    expected = np.zeros((16, 16), np.uint8)
    expected[4:8, 4:8] = IGNORE  # the smaller polygon on top
    assert np.array_equal(first, expected)
    expected = np.ones((16, 16), np.uint8)
    expected[2:6, 4:8] = 0
    assert np.array_equal(right, expected)
    masked = patches.query("patient=='p4'")
    assert all((np.asarray(Image.open(out / name)) == 1).all() for name in masked["mask"])


def test_what_is_in_no_polygon_is_ignored_unless_a_class_names_it(tmp_path, table):
    labels = {"tumour": ["Tumor"], "stroma": ["Stroma", 1], "ignore": ["Necrosis"]}
    prepare(tmp_path / "data", run_config(tmp_path, table, labels=labels))
    patches = pd.read_parquet(tmp_path / "data" / "patches.parquet").query(
        "patient == 'p1' and x_um == 16 and y_um == 0"
    )
    found = np.asarray(Image.open(tmp_path / "data" / patches["mask"].iloc[0]))
    assert set(np.unique(found)) == {0, IGNORE} and (found == 0).sum() == 16


def test_a_class_answers_to_its_own_name_unless_another_class_does(tmp_path, table):
    labels = label_map_of({"tumour": ["Tumor"], "stroma": ["Stroma"], "glass": ["Background"]}, key="k")
    assert [label_of(labels, (name,)) for name in ("tumour", "Stroma", "stroma")] == [0, 1, 1]
    assert glass_label(labels) == IGNORE and label_of(labels, ("glass",)) is None  # it has a meaning of its own
    derived = label_map_of({"Tumor": ["Tumor: Positive"], "Skin": ["Dermis"], "unclassified": ["x"]}, key="k")
    assert label_of(derived, ("Tumor: Negative", "Tumor")) is label_of(derived, ("Bone", "Skin")) is None
    assert label_of(derived, ("Tumor",)) == 0 and label_of(derived, ("unclassified",)) is None
    assert label_of(label_map_of({"a": ["b"], "b": ["c"]}, key="k"), ("b",)) == 0
    write_annotation(tmp_path, 0, [square(0, 0, 32, "tumour"), square(40, 4, 8, "stroma")])
    prepare(tmp_path / "data", run_config(tmp_path, table))
    assert read_json(tmp_path / "data" / "alignment" / "r00000.json")["classes"] == {"tumour": 1, "stroma": 1}


def test_classes_of_one_name_are_counted_together(tmp_path, table):
    folder, boxes = tmp_path / "d", [[0, 0, 20, 20], [30, 0, 20, 20], [0, 24, 20, 20]]
    folder.mkdir()
    corners = [[left, top, left + w, top, left + w, top + h, left, top + h] for left, top, w, h in boxes]
    content = {
        "images": [{"id": 1, "file_name": "i0.png"}],
        "categories": [{"id": k, "name": "Tumor", "supercategory": word} for k, word in ((1, "Skin"), (2, "Gut"))],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1 + (k == 2), "segmentation": [ring]}
            for k, ring in enumerate(corners)
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    labels = label_map_of({"a": ["Tumor"], "b": ["c"]}, key="k")
    with Slide.open(tmp_path / "i0.png", mpp=0.5) as slide:
        annotation = open_annotation(str(folder / "a.json"), slide, origin="slide")
        write_alignment(folder / "r0", slide=slide, annotation=annotation, labels=labels)
    assert read_json(folder / "r0.json")["classes"] == {"Tumor": 3}


def test_names_are_looked_up_exactly_first_and_then_by_their_parents():
    labels = label_map_of({"a": ["Tumor"], "b": ["Tumor :Positive", 3], "leave_out": ["Region*"]}, key="k")
    assert label_of(labels, ("Tumor: Positive: 1+", "Tumor: Positive", "Tumor")) == 1
    assert label_of(labels, ("Tumor: Negative", "Tumor")) == 0
    assert label_of(labels, ("tumor",)) is None and label_of(labels, ("Region*",)) == -1
    assert labels.classes == ["a", "b"] and labels.lookup[3] == 1 and uncovered_label(labels) == IGNORE
    turned = labels.ordered(["b", "a"])
    assert label_of(turned, ("Tumor",)) == 1 and label_of(turned, ("Region*",)) == -1 and turned.lookup[3] == 0


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ({"a": ["Tumor"], "b": ["Tumor"]}, "'Tumor' is both a and b"),
        ({"a": ["Tumor"], "leave_out": ["Stroma"]}, "name two or more"),
        ({"a": [True], "b": ["Stroma"]}, "quotes"),
        ({"a": [" "], "b": ["Stroma"]}, "quotes"),
        ({"a": [1.5], "b": ["Stroma"]}, "quotes"),
    ],
)
def test_nonsense_among_the_names_is_refused(labels, word):
    with pytest.raises(UserError, match=word):
        label_map_of(labels, key="cohort.labels")


def test_unmapped_classes_are_named_with_their_counts_before_anything_is_written(tmp_path, table):
    write_annotation(tmp_path, 1, [square(0, 0, 9, "Immune cells"), square(9, 9, 9, "Stromal"), square(1, 1, 3)])
    write_annotation(tmp_path, 2, [square(0, 0, 9, "Immune cells"), square(9, 9, 9, "Immune cells")])
    with pytest.raises(UserError) as refused:
        prepare(tmp_path / "data", run_config(tmp_path, table))
    message = str(refused.value)
    assert "cohort.labels" in message and "'Immune cells': 3 polygon(s) on 2 slide(s)" in message
    assert "'Stromal': 1 polygon(s) on 1 slide(s) (is it 'Stroma'?)" in message
    assert "'unclassified': 1 polygon(s)" in message and "leave_out" in message
    assert not (tmp_path / "data").exists()


def test_without_labels_an_example_is_given(tmp_path, table):
    assert 'tumor_positive: ["Tumor: Positive"]' in refusal(tmp_path, table, labels={})


def test_what_is_left_out_is_not_drawn(tmp_path, table):
    labels = {"tumour": ["Tumor"], "stroma": [1, "unannotated"], "leave_out": ["Necrosis"]}
    prepare(tmp_path / "data", run_config(tmp_path, table, labels=labels))
    found = pd.read_parquet(tmp_path / "data" / "patches.parquet").query("patient == 'p0' and x_um == 0 and y_um == 0")
    assert (np.asarray(Image.open(tmp_path / "data" / found["mask"].iloc[0])) == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": "m.png"}, ["row 3", "both a mask and an annotation"]),
        ({"annotation": "gone.geojson"}, ["row 3", "annotation", "gone.geojson"]),
        ({"annotation_origin": "corner"}, ["row 3", "annotation_origin", "slide, bounds"]),
    ],
)
def test_rows_that_contradict_are_refused(tmp_path, table, change, words):
    for column, value in change.items():
        table[column] = table.get(column, "")
        table.loc[1, column] = value
    message = refusal(tmp_path, table)
    assert all(word in message for word in words), message


def test_files_that_are_damaged_empty_or_of_another_slide_are_refused_with_their_rows(tmp_path, table):
    sparse = LABELS | {"stroma": ["Stroma", 1]}
    write_annotation(tmp_path, 2, [])
    assert all(word in refusal(tmp_path, table, labels=sparse) for word in ["row 4", "a2.geojson", "no polygon"])
    config = cohort_config(tmp_path, table)  # here what is in no polygon is stroma: nothing is missing
    assert resolve_labels(config, read_cohort(config)).classes == ["tumour", "stroma"]
    write_annotation(tmp_path, 2, [square(500, 500, 9, "Tumor")])
    assert all(word in refusal(tmp_path, table) for word in ["row 4", "outside of the slide", "64 x 48"])
    (tmp_path / "a2.geojson").write_text('{"type": ')
    assert all(word in refusal(tmp_path, table) for word in ["row 4", "a2.geojson", "line 1"])


def test_names_need_annotation_files(tmp_path, table):
    table["annotation"] = ""
    assert "names are for polygon classes" in refusal(tmp_path, table)


def test_coco_file_of_many_slides(tmp_path, table):
    content = {
        "images": [{"id": k, "file_name": f"i{k}.png"} for k in range(4)],
        "categories": [
            {"id": 1, "name": "Bone", "supercategory": "Tissue"},
            {"id": 7, "name": "PNST", "supercategory": "Tumor"},
        ],
        "annotations": [
            {"image_id": k, "category_id": 7, "segmentation": [k, 0, k + 8, 0, k + 8, 8, k, 8]} for k in range(4)
        ],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    table.loc[table["annotation"] != "", "annotation"] = "all.json"
    labels = {"tumour": ["Tumor"], "other": [1, "unannotated"]}
    prepare(tmp_path / "data", run_config(tmp_path, table, labels=labels))
    patches = pd.read_parquet(tmp_path / "data" / "patches.parquet").query("x_um == 0 and y_um == 0 and patient < 'p4'")
    tumour = [
        (np.asarray(Image.open(tmp_path / "data" / name)) == 0).any(axis=0)
        for name in patches.sort_values("patient")["mask"]
    ]
    assert [np.flatnonzero(columns).tolist() for columns in tumour] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [1, 2, 3, 4],
    ]


def test_outlines_drawn_on_an_image_of_another_size_are_refused(tmp_path, table, monkeypatch):
    content = {"categories": [{"id": 1, "name": "Tumor"}], "annotations": []}

    def opened(origin: str = "slide", **size: object) -> None:
        content["images"] = [{"id": 1, "file_name": "i0.png", **size}]
        (tmp_path / "one.json").write_text(json.dumps(content))
        with Slide.open(tmp_path / "i0.png", mpp=0.5) as slide:
            open_annotation(str(tmp_path / "one.json"), slide, origin=origin)

    for size in ({}, {"width": 32}, {"width": 32, "height": None}, {"width": 65, "height": 47.0}):
        opened(**size)
    with pytest.raises(UserError, match=r"one\.json: its image is 32 x 24 px, the slide 64 x 48: .*slide itself"):
        opened(width=32, height=24)
    monkeypatch.setattr("stedm.data.slide.Slide.bounds_px", (10, 8, 40, 30))
    opened("bounds", width=40, height=30)
    with pytest.raises(UserError, match=r"64 x 48 px, the slide 40 x 30: .*correct annotation_origin"):
        opened("bounds", width=64, height=48)


def test_two_laboratories_agree_on_classes_in_any_order(tmp_path, table):
    config = cohort_config(tmp_path, table)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for row in table.itertuples():
        (theirs / row.image).write_bytes((tmp_path / row.image).read_bytes())
        write_annotation(theirs, row.Index, [square(0, 0, 30, "Cancer")])
    Image.fromarray(np.ones((HEIGHT_PX, WIDTH_PX), np.uint8)).save(theirs / "m.png")
    table.assign(patient="b" + table["patient"]).to_csv(theirs / "table.csv", index=False)
    labels = {"stroma": [1, "unannotated"], "tumour": ["Cancer"]}
    config.target = TargetConfig(table=str(theirs / "table.csv"), labels=labels)
    ours, other = resolve_label_maps(read_laboratories(config))
    assert ours.classes == other.classes == ["tumour", "stroma"]
    assert label_of(other, ("Cancer",)) == 0 and uncovered_label(other) == 1


def test_coordinates_may_begin_at_the_scanned_bounds(tmp_path, table, monkeypatch):
    monkeypatch.setattr(Slide, "bounds_px", (10, 4, 50, 40))
    table["annotation_origin"] = ["bounds", "slide", "", "", "", ""]
    prepare(tmp_path / "data", run_config(tmp_path, table, labels=LABELS | {"stroma": [1, "unannotated"]}))
    found = pd.read_parquet(tmp_path / "data" / "patches.parquet").query("x_um == 0 and y_um == 0").set_index("patient")
    masks = [np.asarray(Image.open(tmp_path / "data" / found.loc[name, "mask"])) for name in ("p0", "p1", "p2")]
    assert (masks[0][:2] == 1).all() and (masks[0][:, :5] == 1).all() and (masks[0][2:6, 5:9] == 0).all()
    assert (masks[1][:4] == 0).all() and np.array_equal(masks[0], masks[2])  # as QuPath's, unless said otherwise
    config = cohort_config(tmp_path, table, annotation_origin="slide")
    assert read_cohort(config)["annotation_origin"].tolist() == ["bounds", *["slide"] * 5]


def test_tissue_and_regions_of_interest_may_be_polygons(tmp_path, table):
    table["roi"] = ["roi.json", *[""] * 5]
    (tmp_path / "roi.json").write_text(json.dumps([square(0, 0, 16)]))
    prepare(tmp_path / "data", run_config(tmp_path, table))
    found = pd.read_parquet(tmp_path / "data" / "patches.parquet").query("patient == 'p0'")
    assert found[["x_um", "y_um"]].to_numpy().tolist() == [[0, 0]]  # of four patches
    mask = np.asarray(Image.open(tmp_path / "data" / found["mask"].iloc[0]))
    assert (mask[:8, :8] != IGNORE).any() and (mask[8:] == IGNORE).all() and (mask[:, 8:] == IGNORE).all()
    (tmp_path / "roi.json").write_text("[]")
    with pytest.raises(UserError, match=r"row 2.*roi\.json.*no polygon"):
        prepare(tmp_path / "other", run_config(tmp_path, table))


def test_a_damaged_slide_with_an_annotation_is_left_out(tmp_path, table):
    (tmp_path / "i3.png").write_bytes(b"\x89PNG no more")
    prepare(tmp_path / "data", run_config(tmp_path, table))
    patches = pd.read_parquet(tmp_path / "data" / "patches.parquet")
    assert "p3" not in set(patches["patient"]) and patches["patient"].nunique() == 5


def test_other_names_make_other_label_maps(tmp_path, table):
    for labels in ({"tumour": ["Tumor"], "ignore": ["Necrosis"]}, {"tumour": ["Necrosis"], "ignore": ["Tumor"]}):
        config = run_config(tmp_path, table, labels=labels | {"stroma": [1, "unannotated"]})
        prepare(tmp_path / "data", config)
        found = pd.read_parquet(tmp_path / "data" / "patches.parquet").query("patient == 'p0' and x_um + y_um == 0")
        mask = np.asarray(Image.open(tmp_path / "data" / found["mask"].iloc[0]))
        assert (mask[4:8, 4:8] == (IGNORE if labels["tumour"] == ["Tumor"] else 0)).all()


def test_input_digest_follows_annotation_files(tmp_path, table):
    config = run_config(tmp_path, table)
    digest = inputs_of(config.cohort, tmp_path / "data").digest
    write_annotation(tmp_path, 0, [square(0, 0, 9, "Tumor")])
    assert inputs_of(config.cohort, tmp_path / "data").digest != digest


def test_alignment_pictures_show_outlines_where_the_polygons_are(tmp_path, table):
    rings = {"type": "Point", "coordinates": [1, 2]}
    features = [square(8, 8, 30, "Tumor"), {"type": "Feature", "geometry": rings, "properties": {}}]
    write_annotation(tmp_path, 0, features)
    prepare(tmp_path / "run" / "data", run_config(tmp_path, table))
    found = alignments(tmp_path / "run")
    assert found["slides"] == 4 and len(found["pictures"]) == 4
    assert found["pictures"][0].name == "i0.png: Tumor 1"
    assert found["notices"] == ["a0.geojson: 1 x Point left out, without area"]
    assert alignments(tmp_path) is None
    picture = np.asarray(Image.open(tmp_path / "run" / "data" / "alignment" / "r00000.jpg")).astype(int)
    assert picture.shape == (HEIGHT_PX, WIDTH_PX, 3) and LONG_SIDE_PX >= WIDTH_PX
    pale = picture.min(axis=2) > 200  # class 0 is drawn in a pale colour, the slide is dark
    assert pale[8, 12:34].mean() > 0.9 and pale[12:34, 37].mean() > 0.9 and not pale[14:32, 14:32].any()
