"""Many slides: the same result in any number of processes, damaged ones left out, only what is new cut again."""

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from differing import differing
from PIL import Image, ImageColor

from stedm.config import IGNORE, CohortConfig, PrepareConfig, RunConfig, SplitConfig
from stedm.data import slide_formats
from stedm.data.label_source import MaskFile
from stedm.data.labels import LabelMap
from stedm.data.slide import DamagedSlide, Slide
from stedm.errors import Stopped, UserError
from stedm.files import read_json
from stedm.stages import prepare_slide, prepare_slides
from stedm.stages.alignment import write_mask_alignment
from stedm.stages.prepare import prepare, skipped_slides
from stedm.stages.report_alignment import alignments
from stedm.stages.report_pictures import class_colour
from stedm.stages.report_slides import slide_warnings, slides_section

SIDE = 640
PAPER = 244


def write_slide(path: Path, image: np.ndarray) -> None:
    """A pyramid of two levels at 2 microns per pixel."""
    half = image.reshape(len(image) // 2, 2, -1, 2, 3).mean((1, 3)).round().astype(np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        for level, mpp in ((image, 2), (half, 4)):
            dots = {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": "CENTIMETER"}
            options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
            tiff.write(level, subfiletype=int(mpp > 2), **dots, **options)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """Five patients with a slide of 1.28 mm each, tissue in the middle; the last two slides are style only."""
    rows = []
    for k in range(5):
        rng = np.random.default_rng(k)
        image = np.full((SIDE, SIDE, 3), PAPER, np.uint8)
        image[160:480, 128:448] = (180 - 10 * k, 110, 170)
        image = (image + rng.normal(0, 3, image.shape)).clip(0, 250).astype(np.uint8)
        write_slide(tmp_path / f"s{k}.tif", image)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[160:480, 128:288] = 1
        Image.fromarray(mask).save(tmp_path / f"m{k}.png")
        rows.append({"image": f"s{k}.tif", "patient": f"p{k}", "mask": f"m{k}.png" if k < 3 else ""})
    write_table(tmp_path, rows)
    return RunConfig(
        cohort=CohortConfig(table=str(tmp_path / "table.csv"), labels={"other": [0], "gland": [1]}),
        split=SplitConfig(label_budget=1, val_patients=1, test_patients=1),
        prepare=PrepareConfig(patch_px=32, mpp=4.0, min_tissue=0.5),
    )


def write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)


def table(folder: Path) -> list[dict[str, str]]:
    return pd.read_csv(folder / "table.csv", dtype=str, keep_default_na=False).to_dict("records")


def patches(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "patches.parquet")


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def times(out: Path) -> dict[str, int]:
    return {path.name: os.stat(path).st_mtime_ns for path in (out / "images").iterdir()}


def damage(path: Path) -> bytes:
    """Spoil the pixels of a slide and leave its header; what it was before."""
    whole = path.read_bytes()
    first, last = int(0.9 * len(whole)), int(0.98 * len(whole))  # level 1, at whose resolution patches are cut
    path.write_bytes(whole[:first] + bytes(byte ^ 85 for byte in whole[first:last]) + whole[last:])
    return whole


def test_slides_are_tiled_where_they_have_tissue(tmp_path, config):
    prepare(tmp_path / "data", config)
    found = patches(tmp_path / "data")
    # Tissue from (256, 320) to (896, 960) microns; patches are 128 wide, and those half on it are kept.
    for _, rows in found.groupby("slide"):
        assert set(zip(rows["x_um"], rows["y_um"], strict=True)) == {
            (x, y) for x in range(256, 896, 128) for y in range(256, 1024, 128)
        }
    assert (found["tissue_fraction"] >= 0.45).all() and found["annotated"].sum() == 3 * 30 - 30 * (
        len(read_json(tmp_path / "data" / "splits.json")["train_unannotated"]) - 2
    )
    assert not found.loc[found["patient"].isin(["p3", "p4"]), "has_mask"].any()
    row = found[found["has_mask"]].iloc[0]
    image, mask = (np.asarray(Image.open(tmp_path / "data" / row[kind])) for kind in ("image", "mask"))
    assert image.shape == (32, 32, 3) and (mask[:16] == 0).all() and (mask[16:] == 1).all()
    overlays = sorted(path.stem for path in (tmp_path / "data" / "overlays").iterdir())
    assert overlays == sorted(found["source"].unique())


def test_the_result_is_the_same_in_any_number_of_processes(tmp_path, config, monkeypatch):
    prepare(tmp_path / "one", config)
    monkeypatch.setattr(prepare_slides, "_BYTES_PER_PROCESS", 1)
    cut_here = []
    monkeypatch.setattr(prepare_slides, "_cut_here", lambda *arguments: cut_here.append(arguments) or [])
    prepare(tmp_path / "three", config, jobs=3)
    assert cut_here == [] and differing(snapshot(tmp_path / "three"), snapshot(tmp_path / "one")) == {}


def test_a_process_that_dies_says_how_to_go_on(tmp_path, config, monkeypatch):
    monkeypatch.setattr(prepare_slides, "_BYTES_PER_PROCESS", 1)

    def kill_one():
        while not (found := multiprocessing.active_children()):
            time.sleep(0.01)
        found[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(Stopped, match=r"died \(out of memory\?\).*--jobs 1.*same command continues"):
        prepare(tmp_path / "data", config, jobs=2)
    killer.join()
    prepare(tmp_path / "data", config, jobs=2)
    prepare(tmp_path / "fresh", config)
    assert differing(snapshot(tmp_path / "data"), snapshot(tmp_path / "fresh")) == {}


def test_progress_of_several_processes_adds_up(tmp_path, config, monkeypatch):
    monkeypatch.setattr(prepare_slides, "_BYTES_PER_PROCESS", 1)
    told = []
    monkeypatch.setattr(prepare_slides._Bar, "add", lambda _, size, patches: told.append((size, patches)))
    prepare(tmp_path / "data", config, jobs=2)
    sizes, kept = zip(*told, strict=True)
    assert sum(kept) == len(patches(tmp_path / "data")) and min(kept) >= 0
    assert sum(sizes) == pytest.approx(sum((tmp_path / f"s{k}.tif").stat().st_size for k in range(5)))


def test_masks_are_drawn_on_their_slides(tmp_path, config):
    prepare(tmp_path / "data", config)
    found = alignments(tmp_path)
    assert [picture.name for picture in found["pictures"]] == [
        f"s{k}.tif: other 87.5 %, gland 12.5 %" for k in range(3)
    ]
    assert found["notices"] == [] and read_json(tmp_path / "data" / "alignment" / "r00001.json")["file"] == "m1.png"
    picture = np.asarray(Image.open(tmp_path / "data" / "alignment" / "r00000.jpg")).astype(int)
    assert picture.shape == (SIDE, SIDE, 3)
    rows = picture[200:440].mean(0)  # of gland, from 128 to 288
    colours = [np.array(ImageColor.getrgb(class_colour(label))) for label in (0, 1)]
    lines = [
        [np.abs(rows[at : at + 2].mean(0) - colour).max() < 25 for at in (126, 128, 286, 288)] for colour in colours
    ]
    assert lines == [[True, False, False, True], [False, True, True, False]]  # each on its own side of the border


def test_links_keep_their_names(tmp_path, config):
    """As of stores that keep files under their hashes."""
    (tmp_path / "store").mkdir()
    rows = table(tmp_path)
    for k, row in enumerate(rows):
        (tmp_path / row["image"]).rename(tmp_path / "store" / f"hash{k}")
        (tmp_path / row["image"]).symlink_to(tmp_path / "store" / f"hash{k}")
        row["annotation"], row["tissue"] = "", ""
    corners = [[256, 320], [576, 320], [576, 640], [256, 640], [256, 320]]
    outline = {"type": "Polygon", "coordinates": [[[x / 2, y / 2] for x, y in corners]]}
    (tmp_path / "store" / "hash9").write_text(json.dumps({"type": "Feature", "geometry": outline}))
    (tmp_path / "area.geojson").symlink_to(tmp_path / "store" / "hash9")
    rows[3]["tissue"] = "area.geojson"
    write_table(tmp_path, rows)
    prepare(tmp_path / "data", config)
    counts = patches(tmp_path / "data").groupby("slide").size()
    assert list(counts.index) == [f"s{k}" for k in range(5)] and 0 < counts["s3"] < counts["s4"]
    (tmp_path / "twice.tif").symlink_to(tmp_path / "s0.tif")
    write_table(tmp_path, [*rows, {**rows[0], "image": "twice.tif"}])
    with pytest.raises(UserError, match=r"row 7: image .*twice\.tif is already in row 2"):
        prepare(tmp_path / "data", config)


def test_an_area_in_a_coco_file_goes_by_the_slide_s_name_in_the_table(tmp_path, config):
    rows = table(tmp_path)
    for row in rows:
        row["tissue"], row["slide"] = "", f"SLIDE {row['patient']}"
    corners = [128, 160, 288, 160, 288, 320, 128, 320]
    content = {
        "images": [{"id": 1, "file_name": "SLIDE p3"}],
        "categories": [{"id": 1, "name": "tissue"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [corners]}],
    }
    (tmp_path / "areas.json").write_text(json.dumps(content))
    rows[3]["tissue"] = "areas.json"
    write_table(tmp_path, rows)
    prepare(tmp_path / "data", config)
    counts = patches(tmp_path / "data").groupby("patient").size()
    assert 0 < counts["p3"] < counts["p4"]


def test_a_rare_class_is_counted_and_unknown_places_are_not(tmp_path):
    mask = np.zeros((2000, 3000), np.uint8)
    mask[:1000], mask[1500, :4] = 9, 2
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (3000, 2000), (180, 100, 160)).save(tmp_path / "slide.png")
    labels = LabelMap.from_config({"a": [0], "b": [1], "c": [2], "ignore": [9]}, key="k")
    with Slide.open(tmp_path / "slide.png", mpp=1.0) as slide:
        source = MaskFile(tmp_path / "mask.png", labels, mpp=1.0)
        write_mask_alignment(tmp_path / "r0", slide=slide, mask=source, labels=labels)
    found = read_json(tmp_path / "r0.json")
    assert found["classes"] == {"a": "100.0 %", "c": "below 0.1 %"} and found["slide"] == "slide.png"
    picture = np.asarray(Image.open(tmp_path / "r0.jpg")).astype(int)
    assert picture[318:320, 100:900].min() > 220 and picture[100:300, 100:900].max() < 200  # white: not known


def test_the_result_is_the_same_with_any_number_of_threads(tmp_path, config, monkeypatch):
    readers = set()
    read = Slide.read

    def spied(slide, *place, **size):
        readers.add(threading.get_ident())
        return read(slide, *place, **size)

    monkeypatch.setattr(Slide, "read", spied)
    for threads in (1, 3):
        monkeypatch.setattr(prepare_slides, "_threads", lambda jobs, threads=threads: threads)
        readers.clear()
        prepare(tmp_path / str(threads), config)
        assert (len(readers - {threading.main_thread().ident}) > 1) == (threads > 1)
    assert differing(snapshot(tmp_path / "3"), snapshot(tmp_path / "1")) == {}


def test_what_a_thread_finds_damaged_ends_its_slide_and_no_other(tmp_path, config, monkeypatch):
    monkeypatch.setattr(prepare_slide, "_MOST_ACROSS", 1)
    monkeypatch.setattr(prepare_slides, "_threads", lambda jobs: 3)
    damage(tmp_path / "s4.tif")
    prepare(tmp_path / "data", config)
    assert set(patches(tmp_path / "data")["patient"]) == {f"p{k}" for k in range(4)}
    assert skipped_slides(tmp_path / "data")["slide"].tolist() == ["s4"]
    assert not list((tmp_path / "data" / "images").glob("s4-*"))
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())


def test_ctrl_c_ends_the_threads_of_a_slide_soon(tmp_path, config, monkeypatch):
    monkeypatch.setattr(prepare_slide, "_MOST_ACROSS", 1)
    monkeypatch.setattr(prepare_slides, "_threads", lambda jobs: 2)
    written = []

    def write(path, pixels):
        written.append(path)
        time.sleep(0.02)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_slide, "write_png", write)
    monkeypatch.setattr(prepare_slides._Bar, "add", interrupt)  # as a block of one patch is done
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "data", config)
    assert 0 < len(written) < 20  # of 60 files of a slide
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())


def test_what_was_cut_of_a_slide_before_its_damage_came_to_light_is_removed(tmp_path, config, monkeypatch):
    write = prepare_slide._Patches.write

    def damaged_at_the_end(patches: prepare_slide._Patches, corners: list[tuple[int, int]]) -> list[dict]:
        records = write(patches, corners)
        if patches.slide.path.stem == "s4" and records:
            assert (tmp_path / "data" / records[0]["image"]).exists()
            raise DamagedSlide("s4.tif: half of it")
        return records

    monkeypatch.setattr(prepare_slide._Patches, "write", damaged_at_the_end)
    prepare(tmp_path / "data", config)
    assert skipped_slides(tmp_path / "data")["slide"].tolist() == ["s4"]
    assert not list((tmp_path / "data").rglob("*r00004*")) and list((tmp_path / "data").rglob("*r00003*"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_damaged_slide_is_named_and_left_out(tmp_path, config, monkeypatch, jobs, capsys):
    monkeypatch.setattr(prepare_slides, "_BYTES_PER_PROCESS", 1)
    whole = damage(tmp_path / "s4.tif")
    prepare(tmp_path / "data", config, jobs=jobs)
    skipped = skipped_slides(tmp_path / "data")
    assert skipped[["slide", "patient"]].values.tolist() == [["s4", "p4"]] and "s4.tif" in skipped["reason"][0]
    assert "s4.tif" in capsys.readouterr().err
    assert set(patches(tmp_path / "data")["patient"]) == {"p0", "p1", "p2", "p3"}
    assert set(pd.read_parquet(tmp_path / "data" / "cohort.parquet")["patient"]) == {"p0", "p1", "p2", "p3"}
    assert "p4" not in str(read_json(tmp_path / "data" / "splits.json"))
    before = times(tmp_path / "data")
    prepare(tmp_path / "data", config)  # other roles, say: what was skipped stays skipped
    assert "p4" not in set(patches(tmp_path / "data")["patient"])
    (tmp_path / "s4.tif").write_bytes(whole)
    prepare(tmp_path / "data", config, jobs=jobs)
    assert "p4" in set(patches(tmp_path / "data")["patient"]) and skipped_slides(tmp_path / "data").empty
    assert before.items() <= times(tmp_path / "data").items()
    prepare(tmp_path / "fresh", config)
    assert differing(snapshot(tmp_path / "data"), snapshot(tmp_path / "fresh")) == {}


def test_a_file_that_is_no_image_is_left_out_as_well(tmp_path, config):
    (tmp_path / "s3.tif").write_text("an error page that was saved under the slide's name")
    prepare(tmp_path / "data", config)
    assert skipped_slides(tmp_path / "data")["slide"].tolist() == ["s3"]


def test_patients_are_dealt_among_those_that_can_be_read(tmp_path, config):
    damage(tmp_path / "s0.tif")
    with pytest.raises(UserError, match=r"1 damaged slide.*s0\.tif"):  # two annotated patients for three roles
        prepare(tmp_path / "data", config)
    for k in range(1, 5):
        damage(tmp_path / f"s{k}.tif")
    with pytest.raises(UserError, match=r"none of the 5 slides.*s0\.tif"):
        prepare(tmp_path / "none", config)


def test_a_slide_that_is_added_costs_no_other(tmp_path, config):
    rows = table(tmp_path)
    write_table(tmp_path, rows[:4])
    prepare(tmp_path / "data", config)
    before = times(tmp_path / "data")
    write_table(tmp_path, rows)
    prepare(tmp_path / "data", config)
    assert before.items() <= times(tmp_path / "data").items() and len(times(tmp_path / "data")) == 5 * 30
    prepare(tmp_path / "fresh", config)
    assert differing(snapshot(tmp_path / "data"), snapshot(tmp_path / "fresh")) == {}
    write_table(tmp_path, rows[:4])
    prepare(tmp_path / "data", config)
    assert times(tmp_path / "data") == before and not (tmp_path / "data" / "slides" / "r00004.json").exists()


def test_a_changed_mask_costs_its_own_slide_only(tmp_path, config):
    prepare(tmp_path / "data", config)
    before = times(tmp_path / "data")
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(tmp_path / "m1.png")
    prepare(tmp_path / "data", config)
    changed = {name for name, time in times(tmp_path / "data").items() if time != before[name]}
    assert changed == {name for name in before if "-r00001-" in name}


def test_what_others_leave_in_the_data_folder_is_left_alone(tmp_path, config):
    data = tmp_path / "data"
    prepare(data, config)
    for name in ("slides", "images", "masks", "overlays", "alignment"):
        for stray in (".DS_Store", "Thumbs.db", "my-own-x-notes.png", "._r00004.json"):
            (data / name / stray).write_bytes(b"somebody's")
        (data / name / ".ipynb_checkpoints").mkdir()
    before = snapshot(data)
    write_table(tmp_path, table(tmp_path)[:4])
    prepare(data, config)
    assert not list((data / "images").glob("*-r00004-*")) and not (data / "overlays" / "r00004.png").exists()
    assert slide_warnings(data) == [] and len(slides_section(data)["slides"]) == 4
    write_table(tmp_path, [*table(tmp_path), {"image": "s4.tif", "patient": "p4", "mask": ""}])
    prepare(data, config)
    stray = {name: content for name, content in before.items() if content == b"somebody's"}
    assert len(stray) == 20 and stray.items() <= snapshot(data).items()
    assert all((data / name / ".ipynb_checkpoints").is_dir() for name in ("images", "overlays"))


def test_the_log_of_a_batch_job_says_how_far_the_cutting_is(monkeypatch, capsys):
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr("rich.console.monotonic", lambda: clock)
    with prepare_slides._Bar(slides=4, done=1, size=200) as bar:
        for _ in range(100):
            clock += 1
            bar.add(2.0, 5)
    assert capsys.readouterr().err.splitlines() == [
        "cutting patches: 60 %, slide 1/4  5 patches/s, 0:01:00 so far, 0:00:40 left",
        "cutting patches: 100 %, slide 1/4  5 patches/s, 0:01:40 so far",
    ]


def test_tissue_and_roi_given_by_the_user_decide(tmp_path, config):
    config.prepare.min_tissue = 0.25
    rows = table(tmp_path)
    area = np.zeros((40, 40), np.uint8)  # a pixel is 32 microns
    area[10:20, 10:20] = 255  # 320 to 640 microns
    Image.fromarray(area).save(tmp_path / "area.png")
    rows[0]["roi"] = rows[1]["tissue"] = rows[3]["tissue"] = "area.png"
    rows[3]["roi"] = "half.png"
    Image.fromarray(np.tile(np.uint8([0] * 15 + [1] * 25), (40, 1))).save(tmp_path / "half.png")  # from 480 microns
    write_table(tmp_path, rows)
    prepare(tmp_path / "data", config)
    found = patches(tmp_path / "data").set_index("slide")
    place = {(x, y) for x in (256, 384, 512) for y in (256, 384, 512)}
    right = {(384, 384), (384, 512), (512, 256), (512, 384), (512, 512)}  # an eighth of (384, 256) is inside
    for name, expected in (("s0", place), ("s1", place), ("s3", right)):
        rows = found.loc[name]
        assert set(zip(rows["x_um"], rows["y_um"], strict=True)) == expected, name
    assert len(found.loc["s2"]) > 9
    row = found.loc["s0"].query("x_um == 256 and y_um == 384").iloc[0]
    assert row["tissue_fraction"] == pytest.approx(0.5)
    mask = np.asarray(Image.open(tmp_path / "data" / row["mask"]))
    assert (mask[:, :16] == IGNORE).all() and (mask[:, 16:] == 1).all()


def test_a_mask_of_another_slide_is_refused_by_row(tmp_path, config):
    rows = table(tmp_path)
    Image.fromarray(np.ones((40, 60), np.uint8)).save(tmp_path / "area.png")
    rows[1]["tissue"] = "area.png"
    write_table(tmp_path, rows)
    with pytest.raises(UserError, match=r"row 3: .*area\.png.*60 x 40"):
        prepare(tmp_path / "data", config)


def test_without_a_least_tissue_everything_in_the_scanned_area_is_cut(tmp_path, config, monkeypatch):
    config.prepare.min_tissue = 0
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[160:480, 128:448] = 1  # within the bounds below there is gland, too
    for k in range(3):
        Image.fromarray(mask).save(tmp_path / f"m{k}.png")
    prepare(tmp_path / "data", config)
    assert len(patches(tmp_path / "data")) == 5 * 100
    bounds = {"openslide.bounds-x": "320", "openslide.bounds-y": "0", "openslide.mpp-x": "2", "openslide.mpp-y": "2"}
    bounds |= {"openslide.bounds-width": "320", "openslide.bounds-height": "320"}
    monkeypatch.setattr(slide_formats.openslide.OpenSlide, "properties", bounds)
    prepare(tmp_path / "bounds", config)
    assert set(patches(tmp_path / "bounds")["x_um"]) == {640, 768, 896, 1024, 1152}
    assert set(patches(tmp_path / "bounds")["y_um"]) == {0, 128, 256, 384, 512}


def test_pen_marks_and_dust_are_not_cut(tmp_path, config):
    clean = config.prepare.min_tissue = 0.1
    prepare(tmp_path / "clean", config)
    with tifffile.TiffFile(tmp_path / "s3.tif") as tiff:
        image = tiff.pages[0].asarray()
    image[40:110, 40:600] = (40, 60, 170)  # a stroke of blue ink above the tissue
    image[560:575, 100:115] = (90, 80, 70)
    image[300:310, 540:550] = (20, 20, 20)
    write_slide(tmp_path / "s3.tif", image)
    prepare(tmp_path / "marked", config)
    first, second = (patches(tmp_path / name).set_index("patch_id")["tissue_fraction"] for name in ("clean", "marked"))
    assert first.equals(second) and clean == 0.1
