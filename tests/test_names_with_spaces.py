"""Files and folders whose names have spaces and letters of other alphabets, through the commands that take files."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import torch
import yaml
from differing import differing
from PIL import Image
from test_export import NAMES, export, run  # noqa: F401 (a fixture)
from test_generate_for_style import PX, command, inputs, pictures  # noqa: F401 (fixtures)

from stedm.cli import main
from stedm.files import read_json
from stedm.models.segmenter import Segmenter
from stedm.stages.export_formats import FORMATS

FOLDER, NAME = "Meine Schnitte, 切片", "Fall 7 – Größe µm 組織 [1]"  # noqa: RUF001 (a dash that is none of ASCII)
"""The name is a pattern, too, which does not fit itself."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["NFC", "NFD"])  # as Windows and Linux write an umlaut, and as macOS does
@pytest.mark.parametrize("by_folder", [False, True])
def test_results_of_a_slide_have_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, by_folder: bool
) -> None:
    name, folder = unicodedata.normalize(form, NAME), tmp_path / FOLDER
    model, out = tmp_path / "Modell µ 模型", tmp_path / "Ergebnisse für Größe"
    torch.manual_seed(0)
    Segmenter(classes=["a", "b"], encoder="tu-test_resnet", mpp=1.0, patch_px=64).save_pretrained(model)
    folder.mkdir()
    slide = folder / f"{name}.png"
    Image.fromarray(np.random.default_rng(0).integers(90, 200, (96, 128, 3), dtype=np.uint8)).save(slide)
    given = folder if by_folder else slide
    words = ["segment", str(given), "--model", str(model), "--out", str(out), "--mpp", "1", "--everywhere"]
    assert main([*words, "--jobs", "1"]) == 0
    assert {path.name for path in out.iterdir()} == {"areas.csv", *(f"{name}.{x}" for x in ("geojson", "json", "tif"))}
    assert set(pd.read_csv(out / "areas.csv")["slide"]) == {f"{name}.png"}
    assert read_json(out / f"{name}.json")["slide_path"] == str(slide)
    assert json.loads((out / f"{name}.geojson").read_text(encoding="utf-8"))["features"]
    with openslide.OpenSlide(out / f"{name}.tif") as label_map:
        assert label_map.dimensions == (128, 96)
    assert f"open {slide} in QuPath and drag {out / name}.geojson onto it" in capsys.readouterr().out


@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_a_set_in_such_a_folder_is_exported_as_from_any_other(
    run: Path,  # noqa: F811
    tmp_path: Path,
    format_name: str,
) -> None:
    elsewhere = tmp_path / FOLDER / NAME
    shutil.copytree(run, elsewhere)
    name = NAMES.get(format_name, format_name)
    plain = export(run, format_name, "--with-real")
    out = export(elsewhere, format_name, "--with-real", out=tmp_path / "Ausgabe µm 出力" / name)
    files, expected = contents(out), contents(plain)
    card = files.pop("README.md").decode("utf-8")
    assert next(yaml.safe_load_all(card.split("\n---\n")[0]))["pretty_name"] == f"{NAME}, synthetic set"
    assert expected.pop("README.md") and differing(files, expected) == {}


def test_style_images_with_such_names_lend_their_style(
    inputs: Path,  # noqa: F811
    tmp_path: Path,
    command: Callable[..., list[str]],  # noqa: F811
) -> None:
    rng, style, out = np.random.default_rng(1), tmp_path / FOLDER, tmp_path / "Neue Bilder, 画像"
    (tmp_path / "plain").mkdir()
    style.mkdir()
    for k in range(2):
        pixels = rng.integers((180, 150, 60), (230, 190, 120), (2 * PX, PX, 3), dtype=np.uint8)
        for path in (tmp_path / "plain" / f"{k}.png", style / f"{NAME} {k}.png"):
            Image.fromarray(pixels).save(path)
    options = {"style_slide": None, "style_mpp": None, "n": 3}
    assert main(command("images", style_images=tmp_path / "plain", **options)) == 0
    assert main(command(style_images=style, out=out, **options)) == 0
    lent = [json.loads(text) for text in pd.read_parquet(out / "manifest.parquet")["style_patches"]]
    assert {source for patches in lent for source, *_ in patches} == {str(style / f"{NAME} {k}.png") for k in range(2)}
    assert len(pictures(out)) == 6 and differing(pictures(out), pictures(tmp_path / "images")) == {}
