"""Segmenting slides: the right areas in the right place, nothing lost when killed, nothing overwritten."""

import gzip
import json
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import openslide
import pytest
import tifffile
import torch
from PIL import Image
from shapely.geometry import shape

from stedm.cli import main
from stedm.data.annotation import read_annotation
from stedm.data.area import area_file
from stedm.data.slide import Slide
from stedm.data.slide_files import find_slides
from stedm.device import worker_device
from stedm.errors import UserError
from stedm.files import write_json
from stedm.models.ensemble import Ensemble
from stedm.models.segmenter import Segmenter
from stedm.segment import segment_slides
from stedm.stages.segment import SegmentOptions, segment_slide
from stedm.stages.segmenter_choice import chosen_segmenters

GLASS, STROMA, GLAND = (243, 243, 243), (225, 150, 190), (110, 50, 140)


class ByColour:
    """Stands for an ensemble of mpp 1: dark pixels are gland, the others stroma. One call is a row of windows."""

    classes, mpp, patch_px, colours, multiple_px = ["stroma", "gland"], 1.0, 64, ["#2f7f86", "#d9774f"], 16

    def __init__(self) -> None:
        self.calls = 0
        self.fails_at = 10**9

    def to(self, device: torch.device) -> "ByColour":
        return self

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        dark = (images[..., 0] < 170).astype(np.float32)
        return np.stack([1 - dark, dark], 1)


@pytest.fixture
def model(tmp_path, monkeypatch) -> ByColour:
    model = ByColour()
    monkeypatch.setattr(Ensemble, "from_pretrained", classmethod(lambda cls, folders: model))
    folder = tmp_path / "model"
    write_json(folder / "config.json", {"class": "Segmenter", "classes": model.classes})
    (folder / "model.safetensors").write_bytes(b"weights")
    return model


@pytest.fixture
def options(tmp_path, model) -> SegmentOptions:
    return SegmentOptions(model=(tmp_path / "model",), window_px=128, overlap_px=32)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A pyramid of 1600 x 1280 pixels of 0.5 um: stroma 800 x 640 from (240, 160), in it a gland with a lumen."""
    pixels = np.full((1280, 1600, 3), GLASS, np.uint8)
    pixels[160:800, 240:1040] = STROMA
    pixels[320:640, 400:800] = GLAND
    pixels[400:480, 560:680] = STROMA
    path = tmp_path_factory.mktemp("slide") / "case 1.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level in range(3):
            tiff.write(
                pixels[:: 2**level, :: 2**level],
                tile=(128, 128),
                photometric="rgb",
                subfiletype=int(level > 0),
                resolution=(20_000 / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def polygons(path) -> dict[str, list]:
    found: dict[str, list] = {"stroma": [], "gland": []}
    for feature in json.loads(path.read_text())["features"]:
        found[feature["properties"]["classification"]["name"]].append(shape(feature["geometry"]))
    return found


def test_areas_and_outlines_lie_where_the_tissue_is(slide, tmp_path, options) -> None:
    assert segment_slides([slide], tmp_path / "out", options) == []
    lines = (tmp_path / "out" / "areas.csv").read_text().splitlines()
    assert lines[0] == "slide,class,area_mm2,share"
    area = {line.split(",")[1]: float(line.split(",")[2]) for line in lines[1:]}
    gland = 400 * 320 - 120 * 80  # pixels of 0.5 um, so that four are a square micron
    assert area["gland"] == pytest.approx(gland / 4 / 1e6, rel=1e-9)
    found = polygons(tmp_path / "out" / "case 1.geojson")
    (ring,) = found["gland"]
    assert np.abs(np.array(ring.bounds) - (400, 320, 800, 640)).max() <= 1 and len(ring.interiors) == 1
    assert np.abs(np.array(shape(ring.interiors[0]).bounds) - (560, 400, 680, 480)).max() <= 1
    assert ring.area == pytest.approx(gland, rel=0.01)
    with openslide.OpenSlide(tmp_path / "out" / "case 1.tif") as label_map:
        assert label_map.dimensions == (800, 640)
        assert float(label_map.properties["openslide.mpp-x"]) == pytest.approx(1.0)
        assert label_map.read_region((250, 200), 0, (1, 1)).getpixel((0, 0)) == (0xD9, 0x77, 0x4F, 255)
    assert not list((tmp_path / "out").glob(".*"))


def test_glass_is_skipped_unless_everything_is_wanted(slide, tmp_path, options, model) -> None:
    segment_slide(slide, tmp_path / "out", options)
    windows, labels = model.calls, tifffile.imread(tmp_path / "out" / "case 1.tif")
    y, x = np.mgrid[:640, :800] + 0.5
    outside_um = np.hypot(np.maximum(0, np.maximum(120 - x, x - 520)), np.maximum(0, np.maximum(80 - y, y - 400)))
    assert (labels[outside_um == 0] != 255).all() and (labels[outside_um > 90] == 255).all()
    segment_slide(slide, tmp_path / "all", replace(options, everywhere=True))
    assert (tifffile.imread(tmp_path / "all" / "case 1.tif") != 255).all()
    assert model.calls - windows > windows
    Image.new("RGB", (300, 300), GLASS).save(tmp_path / "empty.png")
    calls = model.calls
    segment_slide(tmp_path / "empty.png", tmp_path / "out", replace(options, mpp=1.0))
    assert model.calls == calls and (tifffile.imread(tmp_path / "out" / "empty.tif") == 255).all()


def test_a_given_area_takes_the_place_of_the_tissue(slide, tmp_path, options) -> None:
    """The same rectangle as mask, as polygon, and as a file in a folder; half of it lies on glass."""
    mask = np.zeros((128, 160), np.uint8)  # a tenth of the slide's resolution
    mask[40:80, 80:140] = 1
    (tmp_path / "areas").mkdir()
    Image.fromarray(mask).save(tmp_path / "areas" / "case 1.png")
    ring = [[800, 400], [1400, 400], [1400, 800], [800, 800], [800, 400]]
    outline = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "outline.geojson").write_text(json.dumps(outline))
    found = []
    for number, tissue in enumerate(
        (tmp_path / "areas" / "case 1.png", tmp_path / "outline.geojson", tmp_path / "areas")
    ):
        segment_slide(slide, tmp_path / str(number), replace(options, tissue=tissue))
        found.append(tifffile.imread(tmp_path / str(number) / "case 1.tif"))
    predicted = np.argwhere(found[0] != 255)
    # Pixels of 1 um; the area is seen at 8 um.
    assert np.abs(predicted.min(0) - (200, 400)).max() <= 8 and np.abs(predicted.max(0) - (400, 700)).max() <= 8
    assert (found[0] != 255).sum() == pytest.approx(200 * 300, rel=0.05)
    assert (found[1] == found[0]).all() and (found[2] == found[0]).all()


def test_another_area_predicts_again(slide, tmp_path, options) -> None:
    out, mask = tmp_path / "out", np.ones((128, 160), np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    marked = replace(options, tissue=tmp_path / "mask.png")
    for settings in (options, marked):
        assert not segment_slide(slide, out, settings).unchanged and segment_slide(slide, out, settings).unchanged
    mask[:64] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert not segment_slide(slide, out, marked).unchanged
    assert (tifffile.imread(out / "case 1.tif")[:310] == 255).all()


def test_areas_that_cannot_be_meant(slide, tmp_path, options, model, capsys) -> None:
    Image.new("L", (100, 100), 1).save(tmp_path / "square.png")
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / "areas").mkdir()
    tried = [("gone.png", "not found"), ("square.png", "mask of the whole slide"), ("empty.geojson", "no polygon")]
    for name, words in [*tried, ("areas", "has nothing for slide case 1")]:
        with pytest.raises(UserError, match=words):
            segment_slide(slide, tmp_path / "out", replace(options, tissue=tmp_path / name))
    for name in ("case 1.png", "case 1.geojson"):
        (tmp_path / "areas" / name).touch()
    with pytest.raises(UserError, match=r"case 1\.geojson and case 1\.png"):
        segment_slide(slide, tmp_path / "out", replace(options, tissue=tmp_path / "areas"))
    Image.open(slide).save(tmp_path / "second.png")
    words = ["--model", str(tmp_path / "model"), "--tissue", str(tmp_path / "square.png")]
    assert main(["segment", str(slide), *words, "--everywhere"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert main(["segment", str(slide), str(tmp_path / "second.png"), *words]) == 2
    assert "name a folder" in capsys.readouterr().err


def test_outlines_are_what_qupath_reads_and_give_the_label_map_back(slide, tmp_path, options) -> None:
    """https://qupath.readthedocs.io: a feature collection of features with objectType and classification."""
    segment_slide(slide, tmp_path, replace(options, tolerance_px=0.0, min_area_um2=0.0))
    collection = json.loads((tmp_path / "case 1.geojson").read_text(encoding="utf-8"))
    assert collection.keys() == {"type", "features"} and collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert feature["type"] == "Feature" and feature["properties"]["objectType"] == "annotation"
        kind = feature["properties"]["classification"]
        assert kind in ({"name": "stroma", "color": [47, 127, 134]}, {"name": "gland", "color": [217, 119, 79]})
        assert feature["geometry"]["type"] == "Polygon" and shape(feature["geometry"]).is_valid
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1] and len(ring) >= 5
            assert all(len(point) == 2 and 0 <= point[0] <= 1600 and 0 <= point[1] <= 1280 for point in ring)
    annotation = read_annotation(tmp_path / "case 1.geojson")
    values = np.array([["stroma", "gland"].index(names[0]) for names in annotation.names])
    drawn = annotation.labels(values, uncovered=255, size_px=(1600, 1280), mpp=0.5)
    expected = tifffile.imread(tmp_path / "case 1.tif")
    assert (drawn.read(0, 0, size_px=800, mpp=1.0)[:640] == expected).all() and set(np.unique(expected)) == {0, 1, 255}


@pytest.mark.parametrize("fails_at", [1, 3, 5])
def test_killed_and_started_again_gives_the_same_files(slide, tmp_path, options, model, fails_at) -> None:
    segment_slide(slide, tmp_path / "whole", options)
    calls, model.calls, model.fails_at = model.calls, 0, fails_at
    with pytest.raises(KeyboardInterrupt):
        segment_slide(slide, tmp_path / "out", options)
    segment_slide(slide, tmp_path / "out", options)
    assert calls >= 5 and model.calls <= calls + 2  # the row that was interrupted, and the one before it
    for name in ("case 1.tif", "case 1.geojson", "case 1.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / ".case 1.segmenting").exists()


def test_an_attempt_with_another_model_is_not_continued(slide, tmp_path, options, model) -> None:
    model.fails_at = 3
    with pytest.raises(KeyboardInterrupt):
        segment_slide(slide, tmp_path / "out", options)
    (options.model[0] / "model.safetensors").write_bytes(b"other weights")
    segment_slide(slide, tmp_path / "out", options)
    segment_slide(slide, tmp_path / "whole", options)
    assert (tmp_path / "out" / "case 1.tif").read_bytes() == (tmp_path / "whole" / "case 1.tif").read_bytes()


def test_what_is_done_and_unchanged_is_kept(slide, tmp_path, options, model) -> None:
    out = tmp_path / "out"
    assert not segment_slide(slide, out, options).unchanged
    calls, written = model.calls, (out / "case 1.tif").stat().st_mtime_ns
    assert segment_slide(slide, out, options).unchanged
    segment_slide(slide, out, replace(options, min_area_um2=1e9))
    assert polygons(out / "case 1.geojson") == {"stroma": [], "gland": []}  # outlines anew, from the label map
    assert (model.calls, (out / "case 1.tif").stat().st_mtime_ns) == (calls, written)
    (options.model[0] / "model.safetensors").write_bytes(b"other weights")
    segment_slide(slide, out, options)
    assert model.calls > calls


def test_outlines_are_packed_or_not_and_never_both(slide, tmp_path, options) -> None:
    for gz in (True, False, True):
        segment_slide(slide, tmp_path / "out", replace(options, gz=gz))
        written = [path.name for path in (tmp_path / "out").glob("*.geojson*")]
        assert written == ["case 1.geojson" + ".gz" * gz]


def test_outlines_that_were_unpacked_changed_or_put_there_are_kept(slide, tmp_path, options) -> None:
    out, own = tmp_path / "out", tmp_path / "out" / "case 1.geojson"
    packed = out / "case 1.geojson.gz"
    segment_slide(slide, out, replace(options, gz=True))
    packed.unlink()
    own.write_text("corrected")  # as after gunzip
    for settings in (options, replace(options, min_area_um2=1e9)):
        assert not segment_slide(slide, out, replace(settings, gz=True)).unchanged
        assert packed.exists() and own.read_text() == "corrected"
    with pytest.raises(UserError, match=r"case 1\.geojson: there already, and not as stedm has written it; move it"):
        segment_slide(slide, out, options)
    assert packed.exists() and own.read_text() == "corrected" and not list(out.glob(".*"))
    own.unlink()
    segment_slide(slide, out, options)
    assert not packed.exists()
    own.write_text("corrected")
    packed.write_text("mine")
    assert segment_slide(slide, out, options).unchanged
    (options.model[0] / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="not as stedm has written it"):
        segment_slide(slide, out, options)
    assert own.read_text() == "corrected" and packed.read_text() == "mine"
    (out / "case 1.json").unlink()
    (out / ".case 1.segmenting").mkdir()  # as if the first attempt had been killed
    with pytest.raises(UserError, match="not as stedm has written it"):
        segment_slide(slide, out, options)
    assert own.read_text() == "corrected"


@pytest.mark.parametrize("at", ["remove_written_by", "written", "write_record", "os.replace"])
def test_killed_between_two_sets_of_outlines_can_go_on(slide, tmp_path, options, monkeypatch, at) -> None:
    out, changed = tmp_path / "out", replace(options, min_area_um2=1e9)
    segment_slide(slide, out, options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"stedm.stages.segment.{at}", Mock(side_effect=KeyboardInterrupt))
        segment_slide(slide, out, changed)
    assert not segment_slide(slide, out, changed).unchanged and segment_slide(slide, out, changed).unchanged
    assert polygons(out / "case 1.geojson") == {"stroma": [], "gland": []}


def test_an_area_is_found_under_the_slides_name_with_its_suffix_too(slide, tmp_path) -> None:
    (tmp_path / "areas").mkdir()
    for name in (f"{slide.name}.geojson", f"{slide.stem}.geojson"):
        (tmp_path / "areas" / name).touch()
        assert area_file(tmp_path / "areas", slide) == tmp_path / "areas" / name
        (tmp_path / "areas" / name).unlink()


def test_options_of_outlines(slide, tmp_path, options, monkeypatch) -> None:
    monkeypatch.setattr("stedm.data.slide.Slide.bounds_px", (100, 60, 1400, 1200))
    places = {"bounds": (300, 260, 700, 580), "slide": (400, 320, 800, 640)}
    assert options.origin == "bounds"  # QuPath's
    for origin, place in places.items():
        changed = replace(options, origin=origin, classes=("gland",), gz=True)
        segment_slide(slide, tmp_path / "out", changed)

        collection = json.loads(gzip.decompress((tmp_path / "out" / "case 1.geojson.gz").read_bytes()))
        (feature,) = collection["features"]
        assert np.abs(np.array(shape(feature["geometry"]).bounds) - place).max() <= 1
    wrong = replace(options, classes=("tumour",))
    with pytest.raises(UserError, match=r"tumour.*stroma, gland"):
        segment_slides([slide], tmp_path / "out", wrong)


def test_a_damaged_slide_is_reported_and_skipped(slide, tmp_path, options, capsys) -> None:
    (tmp_path / "broken.svs").write_bytes(b"II*\0 nothing")
    Image.new("RGB", (64, 64), GLAND).save(tmp_path / "bare.png")
    failed = segment_slides([tmp_path / "broken.svs", tmp_path / "bare.png", slide], tmp_path / "out", options)
    assert failed == [tmp_path / "broken.svs", tmp_path / "bare.png"]
    said = capsys.readouterr().err
    assert "broken.svs: " in said and "bare.png: microns per pixel unknown; give --mpp" in said
    assert (tmp_path / "out" / "case 1.geojson").exists()
    command = [
        "segment",
        str(tmp_path / "broken.svs"),
        "--model",
        str(options.model[0]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 1


def test_files_of_others_are_not_overwritten(slide, tmp_path, options) -> None:
    before = slide.read_bytes()
    with pytest.raises(UserError, match="not written by stedm"):
        segment_slide(slide, slide.parent, options)  # the label map would take the slide's name
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case 1.json").write_text("[]")
    with pytest.raises(UserError, match="not written by stedm"):
        segment_slide(slide, tmp_path / "out", options)
    assert slide.read_bytes() == before


def test_results_of_another_slide_of_the_same_name_are_kept(tmp_path, options, capsys) -> None:
    settings, out = replace(options, mpp=1.0), tmp_path / "out"
    for name, colour in (("a", GLAND), ("b", STROMA)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (96, 96), colour).save(tmp_path / name / "HE.png")
    assert segment_slides([tmp_path / "a" / "HE.png"], out, settings) == []
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert segment_slides([tmp_path / "b" / "HE.png"], out, settings) == [tmp_path / "b" / "HE.png"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    said = capsys.readouterr().err
    assert all(str(tmp_path / name / "HE.png") in said for name in "ab")
    assert "another folder with --out, or remove HE.json, HE.tif and the outlines" in said


def test_a_slide_that_was_moved_or_changed_is_the_same_slide(tmp_path, options) -> None:
    settings, out, moved = replace(options, mpp=1.0), tmp_path / "out", tmp_path / "moved" / "HE.png"
    moved.parent.mkdir()
    Image.new("RGB", (96, 96), GLAND).save(tmp_path / "HE.png")
    segment_slide(tmp_path / "HE.png", out, settings)
    (tmp_path / "HE.png").rename(moved)
    assert segment_slide(moved, out, settings).unchanged
    moved.touch()  # as in a copy
    assert not segment_slide(moved, out, settings).unchanged
    Image.new("RGB", (96, 96), STROMA).save(moved)
    assert not segment_slide(moved, out, settings).unchanged and segment_slide(moved, out, settings).unchanged


def test_areas_are_written_whatever_else_lies_there(slide, tmp_path, options, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("notes", "scan"):
        (out / f"{name}.json").write_text("{broken")
    (out / "scan.tif").touch()
    (out / "theirs.json").write_text('{"area_mm2": 3, "fingerprints": []}')
    (out / "theirs.tif").touch()
    (out / "folder.json").mkdir()
    assert segment_slides([slide], out, options) == []
    lines = (out / "areas.csv").read_text().splitlines()
    assert len(lines) == 3 and all(line.startswith("case 1.tif,") for line in lines[1:])
    assert (out / "notes.json").read_text() == "{broken"
    said = capsys.readouterr().err
    assert "not in areas.csv" in said and "scan.json" in said and "notes.json" not in said


def test_a_resolution_that_contradicts_the_file_is_mentioned(slide, tmp_path, options) -> None:
    outcome = segment_slide(slide, tmp_path / "out", replace(options, mpp=0.25))
    assert "file says 0.5" in outcome.warning
    outcome = segment_slide(slide, tmp_path / "out", replace(options, mpp=4.0))
    assert "coarser than the model's 1" in outcome.warning
    with pytest.raises(UserError, match=r"enlarged 50 times to the model's 1; correct it with --mpp"):
        segment_slide(slide, tmp_path / "far", replace(options, mpp=50.0))


def test_finding_slides(slide, tmp_path) -> None:
    for name in ("b.png", "a.jpg", ".hidden.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no slide")
    both = [tmp_path / "a.jpg", tmp_path / "b.png"]
    assert find_slides([tmp_path]) == both
    assert find_slides([str(tmp_path / "*.png"), tmp_path, slide]) == [both[1], both[0], slide]
    for name, words in (("no*.svs", "not found"), ("gone.svs", "not found")):
        with pytest.raises(UserError, match=words):
            find_slides([tmp_path / name])
    (tmp_path / "cut short.svs").write_bytes(b"half of a download")
    assert find_slides([tmp_path]) == [*both, tmp_path / "cut short.svs"]  # it is named as damaged, not passed over
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png.*same name"):
        find_slides([tmp_path])


def test_results_may_lie_beside_their_slides(slide, tmp_path, options) -> None:
    beside = tmp_path / "case 1.png"
    with Slide.open(slide) as there:
        Image.fromarray(there.overview(1.0)).save(beside)
    options = replace(options, mpp=1.0)
    assert segment_slide(beside, tmp_path, options).unchanged is False and (tmp_path / "case 1.tif").exists()
    assert find_slides([tmp_path]) == find_slides([str(tmp_path / "case 1.[pt]*")]) == [beside]
    for name, words in (("case 1.tif", "label map that `stedm segment` wrote"), ("*.tif", "not found")):
        with pytest.raises(UserError, match=words):
            find_slides([str(tmp_path / name)])
    assert segment_slide(beside, tmp_path, options).unchanged


def test_a_run_stands_for_its_best_arm(tmp_path) -> None:
    scores = {"real": (0.5, 0.6), "real+stain": (0.7, 0.8), "full": (0.9, 0.9)}
    for arm, values in scores.items():
        for seed, score in enumerate(values):
            folder = tmp_path / "segmentation" / arm / f"seed{seed}"
            write_json(folder / "config.json", {})
            (folder / "metrics.csv").write_text(f"step,val_iou\n1,\n2,{score}\n3,0.1\n")
    best = tmp_path / "segmentation" / "real+stain"
    assert chosen_segmenters(tmp_path) == (best / "seed0", best / "seed1")
    assert chosen_segmenters(tmp_path / "segmentation" / "real") == tuple(
        tmp_path / "segmentation" / "real" / f"seed{seed}" for seed in (0, 1)
    )
    assert chosen_segmenters(best / "seed1") == (best / "seed1",)
    for arm, score in {"full": 0.1, "real+stain": 0.8, "real": 0.9}.items():  # with a second laboratory
        for seed in (0, 1):
            log = tmp_path / "segmentation" / arm / f"seed{seed}" / "metrics.csv"
            log.write_text(f"step,val_iou_restained\n1,{score}\n2,0.1\n")
    assert chosen_segmenters(tmp_path)[0].parent.name == "real"
    write_json(tmp_path / "evaluation" / "summary.json", {"arms": {"real+stain": {}, "full": {}}, "seeds": [1, 2]})
    assert chosen_segmenters(tmp_path) == (best / "seed1",)  # of what was evaluated
    (tmp_path / "evaluation" / "summary.json").unlink()
    log.write_text("step,loss\n1,0.5\n")
    with pytest.raises(UserError, match=r"metrics\.csv: damaged .*train this segmenter again"):
        chosen_segmenters(tmp_path)
    with pytest.raises(UserError, match="no trained segmenter"):
        chosen_segmenters(tmp_path / "segmentation" / "none")
    with pytest.raises(UserError, match=r"for instance .*budget2-fold0"):
        (tmp_path / "many" / "budget2-fold0" / "segmentation").mkdir(parents=True)
        chosen_segmenters(tmp_path / "many")


def small_segmenter(folder, seed: int, classes=("a", "b")):
    torch.manual_seed(seed)
    options = {"encoder": "tu-resnet10t", "decoder_channels": [8, 8], "colours": ["#ff0000", "#00ff00"]}
    Segmenter(classes=list(classes), mpp=1.0, patch_px=32, **options).save_pretrained(folder)
    return folder


def test_an_ensemble_is_the_mean(tmp_path) -> None:
    folders = [small_segmenter(tmp_path / str(seed), seed) for seed in range(2)]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    ensemble = Ensemble.from_pretrained(folders)
    apart = [Segmenter.from_pretrained(folder).probabilities(images) for folder in folders]
    flipped = [Segmenter.from_pretrained(folder).probabilities(images, views=4) for folder in folders]
    np.testing.assert_allclose(ensemble.probabilities(images, views=4), np.mean(flipped, 0), atol=1e-6)
    assert np.abs(ensemble.probabilities(images) - (apart[0] + apart[1]) / 2).max() < 1e-6
    assert (ensemble.mpp, ensemble.patch_px, ensemble.colours) == (1.0, 32, ["#ff0000", "#00ff00"])
    with pytest.raises(UserError, match="other classes"):
        Ensemble.from_pretrained([folders[0], small_segmenter(tmp_path / "3", 0, classes=("a", "c"))])


def test_workers_take_the_gpus_in_turn(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, index in (("SpawnProcess-1", 0), ("SpawnProcess-2", 1), ("SpawnProcess-3", 0)):
        monkeypatch.setattr("stedm.device.current_process", lambda name=name: type("P", (), {"name": name}))
        assert worker_device() == torch.device("cuda", index)


@pytest.mark.slow
def test_several_processes_give_what_one_gives(slide, tmp_path) -> None:
    folder = small_segmenter(tmp_path / "model", 0)
    Image.open(slide).save(tmp_path / "second.png")
    command = ["segment", str(slide), str(tmp_path / "second.png"), "--model", str(folder), "--mpp", "0.5"]
    for jobs in ("1", "2"):
        assert main([*command, "--jobs", jobs, "--out", str(tmp_path / jobs)]) == 0
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "2").iterdir()) and len(names) == 7
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in names)


def test_command_line(slide, tmp_path, model, capsys) -> None:
    command = ["segment", str(slide), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main(command) == 0
    assert "QuPath and drag" in capsys.readouterr().out
    assert main([*command, "--gz"]) == 0 and "next: gunzip --keep " in capsys.readouterr().out
    assert main(command) == 0
    assert main(command) == 0 and "unchanged" in capsys.readouterr().err
    for wrong in (
        ["segment"],
        ["segment", str(slide)],
        [*command, "--nonsense"],
        [*command, "--mpp", "0"],
        [*command, "--mpp", "inf"],
        [*command, "--window_px", "0", "--overlap_px", "0"],
        [*command, "--jobs", "0"],
        [*command, "--jobs", "-1"],
        [*command, "--min_area_um2", "nan"],
        [*command, "--overlap_px", "300"],
    ):
        assert main(wrong) == 2
    assert "--overlap_px" in capsys.readouterr().err
