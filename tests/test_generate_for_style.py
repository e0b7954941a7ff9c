"""`stedm generate --model`: the style of an unseen slide, the layouts asked for, and the same images however drawn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stedm.cli import main
from stedm.config import CohortConfig, PhantomConfig, RunConfig, SplitConfig
from stedm.data.layout_files import LayoutFiles
from stedm.data.style_pool import StylePatch, deal_style_sets, find_style_patches, read_style_set
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampling import Sampling
from stedm.errors import UserError
from stedm.models.autoencoder import FirstStage
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet
from stedm.stages import generate_for_style as stage
from stedm.stages.prepare import prepare

PX, CLASSES = 32, ["background", "stroma", "epithelium"]
RNG = np.random.default_rng(0)


def save_model(folder: Path, **changes: Any) -> Path:
    """A generator with random weights, disturbed so that what starts at zero takes part."""
    torch.manual_seed(0)
    first_stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2)
    extractor = StyleExtractor(
        dim=8, set_size=2, latent_channels=4, aggregation=changes.pop("aggregation", "attention")
    )
    unet = UNet(latent_channels=4, num_classes=3, factor=4, channels=16, multipliers=[1, 2], style_dim=8)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    StyleDiffusion(first_stage, extractor, unet, CLASSES, **{"patch_px": PX, "mpp": 2.0} | changes).save_pretrained(
        folder
    )
    return folder


def save_slide(path: Path) -> Path:
    """640 x 384 px: glass, but tissue in the right half."""
    pixels = np.full((384, 640, 3), (240, 241, 239), np.uint8)
    pixels[:, 320:] = RNG.integers((120, 40, 100), (200, 120, 180), (384, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model, a slide and layouts of the model's size, larger and smaller."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "model")
    save_slide(folder / "slide.png")
    (folder / "layouts").mkdir()
    for name, size in (("exact", (PX, PX)), ("large", (70, 50)), ("small", (20, 24))):
        Image.fromarray(RNG.integers(0, 3, size, dtype=np.uint8)).save(folder / "layouts" / f"{name}.png")
    return folder


@pytest.fixture
def command(inputs: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a command that draws six images; options replace or add to them, None removes one."""

    def words(folder: str = "", **changes: Any) -> list[str]:
        changes |= {"out": tmp_path / folder} if folder else {}
        options = {"model": inputs / "model", "style_slide": inputs / "slide.png", "style_mpp": 1.0}
        options |= {"layouts": inputs / "layouts", "n": 6, "nfe": 2, "batch_size": 4, "out": tmp_path / "out"} | changes
        pairs = [(f"--{key.replace('_', '-')}", str(value)) for key, value in options.items() if value is not None]
        return ["generate", *(word for pair in pairs for word in pair)]

    return words


def pictures(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/*.png"))}


def test_a_labelled_image_per_row_with_its_provenance(
    inputs: Path, tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command()) == 0
    out = tmp_path / "out"
    assert "next: look at" in capsys.readouterr().out
    plan, manifest = (pd.read_parquet(out / f"{name}.parquet") for name in ("plan", "manifest"))
    assert manifest[list(plan)].equals(plan) and len(plan) == 6 and plan["seed"].is_unique
    assert plan["layout_source"].tolist() == ["exact.png", "large.png", "small.png"] * 2
    assert set(plan["nfe"]) == {2} and set(manifest["mpp"]) == {2.0}
    for row in manifest.itertuples():
        assert np.asarray(Image.open(out / row.image)).shape == (PX, PX, 3)
        for source, x_um, y_um in json.loads(row.style_patches):
            assert source == str(inputs / "slide.png") and x_um >= 320 and 0 <= y_um <= 384 - PX * 2
    exact, large, small = (np.asarray(Image.open(out / name)) for name in manifest["mask"][:3])
    given = {path.stem: np.asarray(Image.open(path)) for path in (inputs / "layouts").iterdir()}
    assert (exact == given["exact"]).all()
    x, y = manifest.loc[1, ["layout_x_px", "layout_y_px"]]
    assert (large == given["large"][y : y + PX, x : x + PX]).all()
    assert (small[6:26, 4:28] == given["small"]).all() and (small[:6] == 255).all() and (small[:, 28:] == 255).all()
    sheet = Image.open(out / "contact_sheet.png")
    assert sheet.width > 8 * PX and sheet.height > 3 * PX
    assert json.loads((out / "throughput.json").read_text())["images"] == 6


def test_killed_extended_or_drawn_in_other_batches_an_image_is_the_same(
    tmp_path: Path, command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command("whole")) == 0
    whole = pictures(tmp_path / "whole")
    drawn: list[int] = []
    draw = StyleDiffusion.__call__

    def dies(self: StyleDiffusion, *arguments: Any, **options: Any) -> Any:
        drawn.append(len(arguments[0]))
        if len(drawn) > 1:
            raise KeyboardInterrupt
        return draw(self, *arguments, **options)

    monkeypatch.setattr(StyleDiffusion, "__call__", dies)
    assert main(command()) == 130
    monkeypatch.undo()
    out = tmp_path / "out"
    killed = {path: path.stat().st_mtime_ns for path in out.glob("*/*.png")}
    assert len(killed) == 8 and (out / "plan.parquet").exists() and not (out / "manifest.parquet").exists()
    assert main(command()) == 0 and pictures(out) == whole
    assert main(command(n=9)) == 0
    extended = pictures(out)
    assert len(extended) == 18 and {name: extended[name] for name in whole} == whole
    assert all(path.stat().st_mtime_ns == time for path, time in killed.items())
    assert main(command("one", batch_size=1)) == 0
    for name in whole:
        one, other = (np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in ("one", "whole"))
        assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"style_guidance": 2.0}, {"min_tissue": 0}, {"n": 5}])
def test_another_set_is_not_drawn_over_this_one(
    tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    assert main(command(n=6)) == 0
    before = pictures(tmp_path / "out")
    assert main(command(**change)) == 2
    assert "--out" in capsys.readouterr().err and pictures(tmp_path / "out") == before


def test_style_matters_and_other_images_can_lend_it(
    inputs: Path, tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    (tmp_path / "style").mkdir()
    for k in range(3):
        pixels = RNG.integers((180, 150, 60), (230, 190, 120), (2 * PX, PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "style" / f"{k}.png")
    assert main(command()) == 0
    assert main(command("other", style_slide=None, style_mpp=None, style_images=tmp_path / "style")) == 0
    lent = [json.loads(text) for text in pd.read_parquet(tmp_path / "other" / "plan.parquet")["style_patches"]]
    assert {Path(source).name for patches in lent for source, *_ in patches} <= {"0.png", "1.png", "2.png"}
    images = [pictures(tmp_path / name) for name in ("out", "other")]
    for name in images[0]:
        assert (images[0][name] == images[1][name]) == name.startswith("masks")


def test_an_older_model_is_read_when_it_is_told_what_it_does_not_say(
    inputs: Path, tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    older = shutil.copytree(inputs / "model", tmp_path / "older")
    index = json.loads((older / "model_index.json").read_text())
    del index["patch_px"], index["mpp"]
    (older / "model_index.json").write_text(json.dumps(index))
    assert main(command(model=older)) == 2
    message = capsys.readouterr().err
    assert "--patch-px and --mpp" in message and "model_index.json" in message
    assert main(command(model=older, patch_px=PX, mpp=2.0)) == 0
    assert main(command("now")) == 0 and pictures(tmp_path / "now") == pictures(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"style_mpp": None}, "--style-mpp"),
        ({"style_mpp": 0.1}, "smaller than a patch"),
        ({"style_slide": "nowhere.svs"}, "nowhere.svs"),
        ({"layouts": None}, "--layouts"),
        ({"layouts": "nowhere"}, "nowhere"),
        ({"model": "nowhere"}, "nowhere"),
        ({"patch_px": 30}, "--patch-px 30"),
        ({"patch_px": 0}, "--patch-px 0: give a number above 0"),
        ({"patch_px": -64}, "--patch-px -64: give a number above 0"),
        ({"mpp": 0.25}, "--style-mpp"),
        ({"mpp": 0}, "--mpp 0: give a number above 0"),
        ({"style_mpp": 0}, "--style-mpp 0: give a number above 0"),
        ({"style_mpp": -1}, "--style-mpp -1: give a number above 0"),
        ({"style_mpp": "nan"}, "--style-mpp nan: give a number above 0"),
        ({"seed": -1}, "--seed -1: give 0 or more"),
        ({"nfe": 0}, "nfe 0"),
        ({"solver": "magic"}, "magic"),
        ({"guidance": "magic"}, "magic"),
        ({"n": 0}, "--n 0"),
        ({"n": "many"}, "--n"),
        ({"out": None}, "--out"),
        ({"style_images": "a.png"}, "--style-slide"),
        ({"stile": 3}, "--stile"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    tmp_path: Path,
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    named: str,
) -> None:
    assert main(command(**change)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0], lines
    assert not list(tmp_path.iterdir())


def test_layouts_of_a_run(inputs: Path, tmp_path: Path, command: Callable[..., list[str]]) -> None:
    phantom = PhantomConfig(train_patients=2, val_patients=1, test_patients=1, unseen_patients=0, slide_px=64)
    config = RunConfig(cohort=CohortConfig(phantom=phantom), split=SplitConfig(label_budget=1))
    config.prepare.patch_px = PX
    prepare(tmp_path / "run" / "data", config)
    shutil.copytree(inputs / "model", tmp_path / "run" / "diffusion")
    assert main(command(model=tmp_path / "run", layouts=None)) == 0
    plan = pd.read_parquet(tmp_path / "out" / "plan.parquet")
    assert plan["layout_kind"].tolist() == ["real", "prior"] * 3
    patches = pd.read_parquet(tmp_path / "run" / "data" / "patches.parquet")
    annotated = patches[(patches["split"] == "train") & patches["annotated"]]
    assert set(plan.loc[plan["layout_kind"] == "real", "layout_source"]) <= set(annotated["patch_id"])
    assert main(command("prior", run=tmp_path / "run", layouts="prior")) == 0
    assert set(pd.read_parquet(tmp_path / "prior" / "plan.parquet")["layout_kind"]) == {"prior"}
    save_model(tmp_path / "larger", patch_px=2 * PX)
    assert main(command("refused", model=tmp_path / "larger", run=tmp_path / "run", layouts="real")) == 2


def test_linear_aggregation_takes_as_many_style_images_as_in_training(
    tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    model = save_model(tmp_path / "linear", aggregation="linear")
    assert main(command(model=model, style_set_size=5)) == 0
    sets = pd.read_parquet(tmp_path / "out" / "plan.parquet")["style_patches"].map(json.loads)
    assert set(map(len, sets)) == {2}


# Style patches


def test_style_patches_are_tissue_of_the_source_at_the_resolution_asked_for(inputs: Path) -> None:
    options: dict[str, Any] = {"patch_px": PX, "mpp": 2.0, "source_mpp": 1.0}
    patches = find_style_patches([inputs / "slide.png"], **options, wanted=100)
    # 320 x 192 px at 2 microns: ten columns, of which five are tissue, and six rows.
    assert len(set(patches)) == len(patches) == 5 * 6
    assert {patch.x_um for patch in patches} == {320, 384, 448, 512, 576}
    images = read_style_set(patches, patch_px=PX, mpp=2.0, source_mpp=1.0)
    assert images.shape == (30, PX, PX, 3) and images.mean(axis=(1, 2)).max() < 200
    assert find_style_patches([inputs / "slide.png"], **options, wanted=7) == patches[:7]
    assert find_style_patches([inputs / "slide.png"], **options, wanted=100, seed=1) != patches
    assert len(find_style_patches([inputs / "slide.png"], **options, wanted=100, min_tissue=0)) == 60


def test_pen_marks_lend_no_style(tmp_path: Path) -> None:
    pixels = np.full((256, 512, 3), (240, 241, 239), np.uint8)
    pixels[64:192, 64:192] = RNG.integers((150, 60, 120), (190, 100, 160), (128, 128, 3), dtype=np.uint8)
    pixels[64:192, 320:448] = (30, 140, 60)
    Image.fromarray(pixels).save(tmp_path / "marked.png")
    patches = find_style_patches([tmp_path / "marked.png"], patch_px=16, mpp=8.0, source_mpp=8.0)
    assert len(patches) == 64 and {patch.x_um < 1600 for patch in patches} == {True}


def test_a_slide_without_tissue_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), (240, 240, 240)).save(tmp_path / "glass.png")
    with pytest.raises(UserError, match=r"glass\.png.*50% tissue.*--min-tissue"):
        find_style_patches([tmp_path / "glass.png"], patch_px=PX, mpp=1.0, source_mpp=1.0)


def test_style_sets_are_disjoint() -> None:
    patches = [StylePatch("a", float(x), 0.0) for x in range(11)]
    sets = deal_style_sets(patches, 4)
    assert [len(patches) for patches in sets] == [4, 4] and len({patch for dealt in sets for patch in dealt}) == 8
    assert deal_style_sets(patches[:3], 4) == [patches[:3]]


# Layout files


def test_layout_files_are_checked_against_the_classes(tmp_path: Path) -> None:
    Image.fromarray(np.full((PX, PX), 255, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((PX, PX), 3, np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png.* 3 .*0 background, 1 stroma, 2 epithelium, 255 unknown"):
        LayoutFiles(tmp_path, classes=CLASSES, size_px=PX)
    Image.fromarray(RNG.integers(0, 3, (PX, PX, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png.*colour"):
        LayoutFiles(tmp_path, classes=CLASSES, size_px=PX)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no label map"):
        LayoutFiles(tmp_path / "empty", classes=CLASSES, size_px=PX)


def test_binary_masks_and_small_label_maps_are_told(tmp_path: Path) -> None:
    def told(*values: int, size_px: int = PX) -> str:
        label_map = np.resize(np.array(values, np.uint8), (size_px, size_px))
        Image.fromarray(label_map).save(tmp_path / "a.png")
        return " ".join(LayoutFiles(tmp_path, classes=CLASSES, size_px=PX).notices())

    assert told(0, 1, 255) == told(0) == ""
    assert "have 0 (background) and 255 alone" in told(0, 255) and "1 stroma, 2 epithelium" in told(0, 255)
    assert "have 255 alone" in told(255)
    small = told(0, 1, size_px=PX - 1)
    assert f"1 of 1 label maps are smaller than {PX} px" in small and str(tmp_path) in small


def test_windows_of_a_large_label_map_differ_and_stay_inside(tmp_path: Path) -> None:
    label_map = np.zeros((3 * PX, 2 * PX), np.uint8)
    Image.fromarray(label_map).save(tmp_path / "a.png")
    files = LayoutFiles(tmp_path, classes=CLASSES, size_px=PX)
    rows = [files.choose(k, np.random.default_rng(k)) for k in range(20)]
    assert len({(row["layout_x_px"], row["layout_y_px"]) for row in rows}) > 10
    assert all((files.of(row) == 0).all() for row in rows)


def test_a_plan_row_depends_on_seed_and_position_alone(inputs: Path) -> None:
    model = stage.load_generator(inputs / "model")
    layouts = LayoutFiles(inputs / "layouts", classes=CLASSES, size_px=PX)
    sets = [[StylePatch("a", 0.0, 0.0)], [StylePatch("a", 64.0, 0.0)]]
    plans = [
        stage.plan_for_style(layouts, sets, model.sampling, num_images=n, seed=seed, model_digest="")
        for n, seed in ((9, 0), (4, 0), (4, 1))
    ]
    assert plans[0].head(4).equals(plans[1]) and not plans[1].equals(plans[2])
    assert plans[0]["style_set"].tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_every_style_set_meets_every_kind_of_layout() -> None:
    class Kinds:
        def choose(self, k: int, rng: np.random.Generator) -> dict[str, str]:
            return {"layout_kind": ("real", "prior")[k % 2]}

    sets = [[StylePatch("a", 64.0 * k, 0.0)] for k in range(16)]
    plan = stage.plan_for_style(Kinds(), sets, Sampling(), num_images=64, seed=0, model_digest="")
    assert (pd.crosstab(plan["style_set"], plan["layout_kind"]) == 2).all(axis=None)
