"""The studio's workbench, which needs no page: layouts, styles, drawings, filters, results, segmentation."""

import base64
import importlib.util
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.cli import main
from stedm.config import IGNORE
from stedm.errors import UserError
from stedm.files import read_json
from stedm.stages.run_folder import RunFolder
from stedm.studio.drawing import MOST_STEPS, Settings, StyleGenerator
from stedm.studio.figures import data_uri, figure, table, tiles
from stedm.studio.layouts import packed, unpacked
from stedm.studio.results import Results
from stedm.studio.styles import MOST_PIXELS, Style, refuse_oversized
from stedm.studio.workbench import Workbench, in_page_words

pytestmark = pytest.mark.timeout(900)  # the first test waits for the run


@pytest.fixture(scope="module")
def bench(smallest_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(smallest_run, scratch=tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def settings(bench: Workbench) -> Settings:
    return replace(bench.settings(), steps=2)


def painted(bench: Workbench) -> np.ndarray:
    layout = bench.layouts.blank(1)
    layout[: bench.patch_px // 2] = 2
    return layout


def a_style(bench: Workbench, k: int = 0) -> Style:
    return bench.styles.of_patient(bench.patients()[k].name, size=2)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


# Layouts


def test_canvas_gives_back_what_it_was_given(rng_layout: np.ndarray) -> None:
    assert (unpacked(packed(rng_layout), num_classes=3, size_px=len(rng_layout)) == rng_layout).all()


@pytest.fixture
def rng_layout() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 1, 2, IGNORE], (16, 16)).astype(np.uint8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no layout"),
        ("[1]", "no layout"),
        ('{"size": 16}', "no layout"),
        ('{"size": 16, "labels": "%%"}', "no layout"),
        (packed(np.zeros((8, 8), np.uint8)), "8 px"),
        (json.dumps({"size": 16, "labels": base64.b64encode(bytes(255)).decode()}), "16 px"),
        (packed(np.full((16, 16), 3, np.uint8)), "value(s) 3"),
    ],
)
def test_what_is_no_layout_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        unpacked(text, num_classes=3, size_px=16)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["annotated", "prior"])
def test_layouts_follow_their_seed(bench: Workbench, kind: str) -> None:
    first, again, other = (bench.painted(bench.layout(kind, seed=seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert first.shape == (bench.patch_px,) * 2
    assert set(np.unique(first)) <= {0, 1, 2, IGNORE}


def test_layout_file_lends_its_middle_and_is_unknown_where_it_ends(bench: Workbench, tmp_path: Path) -> None:
    side = bench.patch_px
    large = np.zeros((side + 10, side), np.uint8)
    large[5:-5] = 1
    small = np.full((side - 8, side - 8), 2, np.uint8)
    assert (bench.painted(bench.layout("file", path=save(tmp_path / "large.png", large))) == 1).all()
    layout = bench.painted(bench.layout("file", path=save(tmp_path / "small.png", small)))
    assert (layout[4:-4, 4:-4] == 2).all()
    assert (layout == IGNORE).sum() == side**2 - (side - 8) ** 2


def test_layout_file_with_other_values_is_refused_by_name(bench: Workbench, tmp_path: Path) -> None:
    path = save(tmp_path / "odd.png", np.full((64, 64), 7, np.uint8))
    with pytest.raises(UserError, match=r"^odd\.png: value\(s\) 7"):
        bench.layout("file", path=path)
    with pytest.raises(UserError, match="no file"):
        bench.layout("file")


# Styles


def test_a_patient_lends_its_own_images_only(bench: Workbench) -> None:
    for patient in bench.patients():
        own = bench.run.images(bench.patches[bench.patches["patient"] == patient.name])
        style = bench.styles.of_patient(patient.name, size=3, seed=4)
        assert style.images.shape == (3, bench.patch_px, bench.patch_px, 3)
        assert all((own == image).all(axis=(1, 2, 3)).any() for image in style.images)


def test_a_slide_lends_its_own_images_and_repeats_them_when_asked_for_more(bench: Workbench) -> None:
    patient = bench.patients()[0]
    own = bench.run.images(bench.patches[bench.patches["slide"] == patient.slides[0]])
    images = bench.styles.of_patient(patient.name, slide=patient.slides[0], size=len(own) + 1).images
    assert len(np.unique(images, axis=0)) == len(np.unique(own, axis=0))


def test_patients_say_what_they_are(bench: Workbench) -> None:
    roles = [patient.role for patient in bench.patients()]
    assert roles == sorted(roles, key=["unannotated", "annotated", "val", "test", "unseen"].index)
    assert roles.count("annotated") == 2
    assert {"test", "unseen"} <= set(roles)
    assert set(bench.styles.spread(6)) == {p.name for p in bench.patients() if p.role == "unannotated"}


def test_own_images_lend_their_style(bench: Workbench, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (bench.patch_px, bench.patch_px, 3), np.uint8)
    style = bench.styles.of_images([save(tmp_path / "mine.png", pixels)], size=2)
    assert style.name == "mine.png"
    assert (style.images == pixels).all()


def test_a_slide_by_its_path_needs_a_resolution(bench: Workbench, tmp_path: Path) -> None:
    pixels = np.full((bench.patch_px,) * 2 + (3,), (150, 60, 130), np.uint8)
    path = save(tmp_path / "slide.png", pixels)
    with pytest.raises(UserError, match="microns per pixel unknown") as caught:
        bench.styles.of_slide(path)
    assert in_page_words(str(caught.value)) == "slide.png: microns per pixel unknown; fill in the field"
    assert len(bench.styles.of_slide(path, mpp=bench.styles.mpp, size=3, min_tissue=0).images) == 3


def test_wrong_style_files_are_refused_by_name(bench: Workbench, tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    with pytest.raises(UserError, match=r"^notes\.png: not a readable image"):
        bench.styles.of_images([text])
    with pytest.raises(UserError, match="no image"):
        bench.styles.of_images([])
    tiny = save(tmp_path / "tiny.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="smaller than a patch"):
        bench.styles.of_images([tiny])
    with pytest.raises(UserError, match="no such patient"):
        bench.styles.of_patient("nobody")


def test_a_small_file_that_unpacks_to_a_huge_image_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    side = int(MOST_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="too many for an upload"):
        refuse_oversized(path)


# Drawings


def test_an_image_depends_on_its_own_style_and_seed(bench: Workbench, settings: Settings) -> None:
    layout, styles = painted(bench), [a_style(bench, 0), a_style(bench, -1)]
    both = bench.generate(layout, styles, settings).images
    alone = bench.generate(layout, styles[1:], settings).images
    other = bench.generate(layout, styles[1:], replace(settings, seed=1)).images
    assert (both[1] == alone[0]).all()
    assert (both[0] != both[1]).any()
    assert (other != alone).any()


def test_progress_names_each_style(bench: Workbench, settings: Settings) -> None:
    heard: list[tuple[float, float, str]] = []
    styles = [a_style(bench, 0), a_style(bench, 1)]
    bench.generate(painted(bench), styles, settings, progress=lambda *said: heard.append(said))
    assert [said[:2] for said in heard] == [(0, 2), (1, 2)]
    assert all(style.name in said[2] for style, said in zip(styles, heard, strict=True))


def test_download_holds_image_mask_and_settings(bench: Workbench, settings: Settings) -> None:
    drawing = bench.generate(painted(bench), [a_style(bench)], replace(settings, seed=5))
    with zipfile.ZipFile(bench.saved(drawing)) as archive:
        assert archive.namelist() == ["image.png", "mask.png", "drawing.json"]
        image, mask = (np.asarray(Image.open(BytesIO(archive.read(name)))) for name in ("image.png", "mask.png"))
        said = json.loads(archive.read("drawing.json"))
    assert (image == drawing.images[0]).all()
    assert (mask == painted(bench)).all()
    assert said["seed"] == 5
    assert said["styles"] == {"image": a_style(bench).name}


def test_interpolation_begins_and_ends_with_the_two_styles(bench: Workbench, settings: Settings) -> None:
    ends = a_style(bench, 0), a_style(bench, -1)
    way = bench.interpolate(painted(bench), *ends, settings)
    alone = bench.generate(painted(bench), ends, settings)
    assert len(way.images) == 7
    # Equal but for what the order of sums changes in float32.
    assert np.abs(way.images[[0, -1]].astype(int) - alone.images).max() <= 1
    assert way.names[0].startswith("100%")
    with pytest.raises(UserError, match="2 or more"):
        bench.generator.interpolate(painted(bench), *ends, settings, count=1)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_few_step_generator_is_not_guided_again(bench: Workbench, keeps: bool) -> None:
    asked: dict[str, Any] = {}

    class Model:
        def extract_styles(self, images: Any) -> list[Any]:
            return list(images)

        def __call__(self, layouts: np.ndarray, **options: Any) -> np.ndarray:
            asked.update(options)
            return np.zeros((1, *layouts.shape[1:], 3), np.uint8)

    generator = StyleGenerator(Model(), keeps_guidance=keeps)  # type: ignore[arg-type]
    generator.draw(painted(bench), [a_style(bench)], Settings(2.0, 3.0, steps=9))
    given = {name: asked[name] for name in ("layout_guidance", "style_guidance") if name in asked}
    assert given == ({} if keeps else {"layout_guidance": 2.0, "style_guidance": 3.0})
    assert asked["nfe"] == 9


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": MOST_STEPS + 1}, {"seed": -1}, {"style_guidance": float("nan")}]
)
def test_settings_that_cannot_be_drawn_with_are_refused(bench: Workbench, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        bench.generate(painted(bench), [a_style(bench)], replace(Settings(), **wrong))


# The synthetic set


def test_filters_are_those_of_the_manifest(bench: Workbench) -> None:
    view, manifest = bench.synthetic, bench.synthetic.manifest
    kept, dropped = view.select(fate="kept"), view.select(fate="dropped")
    assert len(kept) + len(dropped) == len(manifest) == len(view.select())
    assert kept["keep"].all() and not dropped["keep"].any()
    middle = float(manifest["agreement"].median())
    low, high = view.select(agreement=(0.0, middle)), view.select(agreement=(middle, 1.0))
    assert low["agreement"].max() <= middle <= high["agreement"].min()
    assert len(low) + len(high) >= len(manifest)
    for patient in view.patients():
        assert set(view.select(patient=patient)["style_patient"]) == {patient}
    assert view.select(order="nearest to a real image")["nearest_real_distance"].is_monotonic_increasing
    assert view.select(order="highest agreement")["agreement"].is_monotonic_decreasing


def test_every_synthetic_set_of_the_run_can_be_looked_through(bench: Workbench) -> None:
    assert list(bench.synthetic_sets) == ["synthetic", "second-round"]
    again = bench.synthetic_sets["second-round"]
    row = again.manifest.iloc[1]
    image = np.asarray(Image.open(bench.run.root / "synthetic-second-round" / row["image"]))
    assert (again.pair(row["id"]).image == image).all()
    assert (bench.synthetic.pair(row["id"]).image != image).any()


def test_a_pair_is_shown_with_what_it_came_from(bench: Workbench) -> None:
    row = bench.synthetic.manifest.iloc[3]
    pair = bench.synthetic.pair(row["id"])
    by_id = bench.patches.set_index("patch_id")
    assert (pair.image == np.asarray(Image.open(bench.run.synthetic / row["image"]))).all()
    assert (pair.layout == np.asarray(Image.open(bench.run.synthetic / row["layout"]))).all()
    assert (pair.mask[pair.mask != IGNORE] == pair.layout[pair.mask != IGNORE]).all()
    assert pair.nearest is not None
    assert (pair.nearest == bench.run.images(by_id.loc[[row["nearest_real"]]])[0]).all()
    assert set(by_id.loc[json.loads(row["style_patches"]), "patient"]) == {pair.style_patient}
    with pytest.raises(UserError, match="no such synthetic pair"):
        bench.synthetic.pair("s999999")


# Results


def test_results_are_those_of_the_evaluation(bench: Workbench) -> None:
    summary = read_json(bench.run.evaluation / "summary.json")
    arms = bench.results.arms().set_index("arm")
    assert list(arms.index) == list(summary["arms"])
    assert arms.loc["real", "patient IoU"] == summary["arms"]["real"]["patient_iou_mean"]
    table = bench.results.patients()
    assert len(table) == summary["n_test_patients"]
    assert table["real"].mean() == pytest.approx(arms.loc["real", "patient IoU"])


def test_patients_and_groups_are_names_as_they_are_written(bench: Workbench, tmp_path: Path) -> None:
    run = RunFolder(bench.run.root)
    run.evaluation = tmp_path
    (tmp_path / "summary.json").write_text('{"arms": {"real": {}}}')
    (tmp_path / "per_patient.csv").write_text("arm,seed,patient,group,iou\nreal,0,NA,01,0.5\nreal,0,007,None,0.25\n")
    found = Results(run, bench.patches).patients().set_index("patient")
    assert found["group"].to_dict() == {"NA": "01", "007": "None"}


def test_overlays_show_image_truth_and_arms_of_test_patients_only(bench: Workbench) -> None:
    patient = str(bench.results.patients()["patient"].iloc[0])
    shown = bench.results.overlays(patient, ["real"])
    assert list(shown) == ["image", "truth", "real"]
    assert len({pictures.shape for pictures in shown.values()}) == 1
    assert (shown["truth"] != shown["image"]).any()
    hidden = next(p.name for p in bench.patients() if p.role == "unannotated")
    with pytest.raises(UserError, match="no test patient"):
        bench.results.overlays(hidden)


# Segmentation


@pytest.fixture(scope="module")
def tissue(smallest_run: Path) -> Path:
    return sorted((smallest_run / "data" / "phantom" / "images").glob("test*.png"))[0]


def test_an_image_is_segmented_and_says_how(bench: Workbench, tissue: Path) -> None:
    heard: list[str] = []
    found = bench.segment(tissue, everywhere=True, progress=lambda done, total, what: heard.append(what))
    with Image.open(tissue) as image:
        assert found.image.shape == found.overlay.shape == (image.height, image.width, 3)
        area = image.width * image.height * bench.styles.mpp**2 / 1e6
    assert sum(found.area_mm2.values()) == pytest.approx(area)
    assert (found.overlay != found.image).any()
    assert found.geojson.name == f"{tissue.stem}.geojson"
    assert "does not say its microns per pixel" in found.note
    assert read_json(found.geojson)["type"] == "FeatureCollection"
    assert any(tissue.name in what for what in heard)
    assert bench.segment(tissue, mpp=2.0, everywhere=True).note != found.note


def test_wrong_files_are_refused_by_name(bench: Workbench, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0 and then nothing")
    with pytest.raises(UserError, match=r"broken\.tif"):
        bench.segment(broken)
    with pytest.raises(UserError, match="not found"):
        bench.segment(tmp_path / "absent.svs")


# The run and the words


def test_what_is_no_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stedm demo"):
        Workbench(tmp_path, scratch=tmp_path)


def test_of_several_runs_one_has_to_be_named(smallest_run: Path, tmp_path: Path) -> None:
    text = (smallest_run / "config.yaml").read_text()
    assert "folds: 1" in text
    (tmp_path / "config.yaml").write_text(text.replace("folds: 1", "folds: 2"))
    (tmp_path / "budget2-fold0" / "data").mkdir(parents=True)
    (tmp_path / "budget2-fold0" / "data" / "patches.parquet").touch()
    with pytest.raises(UserError, match="budget2-fold0"):
        Workbench(tmp_path, scratch=tmp_path)


def test_an_unfinished_run_can_be_opened_and_says_what_is_missing(smallest_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((smallest_run / "config.yaml").read_bytes())
    (tmp_path / "data").symlink_to(smallest_run / "data")
    bench = Workbench(tmp_path, scratch=tmp_path)
    assert bench.layout("annotated")
    for part in ("generator", "synthetic", "results", "segmenter"):
        with pytest.raises(UserError):
            getattr(bench, part)
    with pytest.raises(UserError, match=f"`stedm evaluate {tmp_path}`"):
        _ = bench.results
    with pytest.raises(UserError, match=f"`stedm train diffusion {tmp_path}`"):
        _ = bench.generator


def test_messages_name_files_and_fields_not_uploads_and_flags() -> None:
    assert in_page_words("/no/such/folder/a b/x.png: unreadable") == "x.png: unreadable"
    assert (
        in_page_words("x.svs: unknown; say them with --style-mpp") == "x.svs: unknown; say them with microns per pixel"
    )
    assert in_page_words("1/2 of it") == "1/2 of it"


def test_names_are_shown_as_text_never_as_markup() -> None:
    name = "<script>alert(1)</script>\"'"
    pixels = np.zeros((4, 4, 3), np.uint8)
    shown = (
        figure(pixels, name)
        + tiles([(pixels, name, name)], empty="")
        + table(pd.DataFrame({name: [name]}), caption=name)
    )
    assert "<script" not in shown
    assert 'alert(1)</script>"' not in shown


def test_pictures_are_shrunk_for_the_page_only() -> None:
    def width(pixels: np.ndarray) -> int:
        return Image.open(BytesIO(base64.b64decode(data_uri(pixels, longest_px=32).partition(",")[2]))).width

    assert width(np.zeros((64, 64, 3), np.uint8)) == 32
    assert width(np.zeros((16, 16), np.uint8)) == 16


# The command


def test_without_gradio_the_command_says_how_to_install_it(
    smallest_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["studio", str(smallest_run)]) == 2
    assert "python -m pip install 'stedm[studio]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"), [([], "RUN"), (["runs/x", "--share"], "--share"), (["x", "--port", "y"], "y")]
)
def test_wrong_options_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studio", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_workbench_does_not_load_gradio() -> None:
    code = "import sys, stedm.studio.workbench, stedm.studio.server; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
