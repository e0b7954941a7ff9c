"""docs/how-to/own-cohort.md: its commands are run in order on generated slides, and its messages are the real ones."""

import csv
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from stedm.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "how-to" / "own-cohort.md").read_text(encoding="utf-8")
PX = 192
"""Width of the slides: 192 microns."""
SMALL: dict[str, dict[str, Any]] = {
    "split": {"label_budget": 2, "val_patients": 1, "test_patients": 2},
    "segmentation": {"steps": 8, "seeds": [0], "arms": ["real+stain", "real+stain+synthetic"]},
    "diffusion": {"annotated_only_control": False},
    "generate": {"images": 8, "nfe": 2},
    "evaluate": {"bootstrap": 100, "images_per_style": 4},
}
"""What is made smaller than on the page."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def without_sizes(text: str) -> str:
    """The text without coordinates and sizes in pixels, which are other ones on real slides."""
    return re.sub(r"-?\d{3,}", "N", text)


def save_slide(path: Path, rng: np.random.Generator, *, mpp: str = "|MPP = 1.0") -> None:
    """An Aperio slide: tumour above, stroma below, glass at the bottom."""
    pixels = rng.integers((150, 90, 150), (200, 140, 200), (PX, PX, 3), dtype=np.uint8)
    pixels[: PX // 2] = rng.integers((90, 40, 110), (140, 80, 160), (PX // 2, PX, 3), dtype=np.uint8)
    pixels[-24:] = 240
    words = f"Aperio Image Library v11.2.1\n{PX}x{PX} [0,0 {PX}x{PX}] (64x64) RGB|AppMag = 10{mpp}"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", description=words, metadata=None)


def save_export(path: Path, *, shift_px: int = 0) -> None:
    """What QuPath exports for such a slide: tumour, stroma and a speck of necrosis in it."""
    boxes = {"Tumor": (0, 0, PX, PX // 2), "Stroma": (0, PX // 2, PX, PX - 24), "Necrosis": (90, 110, 110, 130)}
    features = []
    for name, box in boxes.items():
        x0, y0, x1, y1 = (at + shift_px for at in box)
        geometry = {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}
        properties = {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}}
        features.append({"type": "Feature", "id": name, "geometry": geometry, "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files the page starts from: eight slides, five of them annotated, the list of patients, and new slides."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for name in ("slides", "exported", "new"):
        (folder / name).mkdir()
    rows = [["slide", "patient", "subtype"]]
    for k in range(8):
        save_slide(folder / "slides" / f"case{k}.svs", rng)
        rows.append([f"case{k}.svs", f"P{k:02d}", "AB"[k % 2]])
        if k < 5:
            save_export(folder / "exported" / f"case{k}.svs.geojson")
    with open(folder / "patients.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    save_slide(folder / "new" / "case90.svs", rng)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def small_config() -> str:
    """The page's config, for eight slides."""
    given = yaml.safe_load(blocks("yaml")[0])
    for section, values in SMALL.items():
        given[section] = given.get(section, {}) | values
    return yaml.safe_dump(given | {"size": "smoke"}, sort_keys=False)


def run(words: list[str]) -> None:
    """One command of the page, in this process."""
    if words[0] == "stedm":
        assert main([*words[1:], *(["--jobs", "1"] if words[1] in ("prepare", "run") else [])]) == 0, " ".join(words)
    else:
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")


@pytest.mark.timeout(600)
def test_every_command_of_the_page_runs(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "argv", [])
    (files / "my_cohort.yaml").write_text(small_config())
    commands = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    commands = [words for words in commands if words]
    assert {words[0] for words in commands} == {"python", "stedm"}
    assert {words[1] for words in commands} >= {"prepare", "run", "segment", "generate"}
    for words in commands:
        run(words)
    patches = pd.read_parquet("runs/my/data/patches.parquet")
    assert patches["patient"].nunique() == 8 and set(patches["group"]) == {"A", "B"}
    assert patches["fraction_tumour"].notna().any()
    made = ["runs/my/report/index.html", "new_images/contact_sheet.png", "segmented/case90.tif"]
    assert [name for name in made if not Path(name).is_file()] == []
    outlines = json.loads(Path("segmented/case90.geojson").read_text())
    assert {feature["properties"]["classification"]["name"] for feature in outlines["features"]} <= {"stroma", "tumour"}
    # As step 7 says: its outlines become annotation.
    shutil.copytree(files, tmp_path / "again", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(tmp_path / "again")
    shutil.copy("new/case90.svs", "slides/case90.svs")
    shutil.copy("segmented/case90.geojson", "exported/case90.svs.geojson")
    with open("patients.csv", "a", newline="") as file:
        file.write("case90.svs,P90,A\n")
    run(commands[0])
    run(["stedm", "prepare", "--config", "my_cohort.yaml", "--out", "runs/corrected"])
    labelled = pd.read_parquet("runs/corrected/data/patches.parquet").query("patient == 'P90'")["has_mask"]
    assert len(labelled) and labelled.all()


@pytest.mark.parametrize("mistake", ["slide", "export", "few", "mpp", "class", "split", "bounds"])
def test_messages_on_the_page_are_the_real_ones(
    files: Path, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(files, folder, ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(folder)
    (folder / "my_cohort.yaml").write_text(blocks("yaml")[0] if mistake == "few" else small_config())
    if mistake == "slide":
        (folder / "slides" / "case3.svs").unlink()
    if mistake == "export":
        (folder / "exported" / "case3.svs.geojson").rename(folder / "exported" / "case 3.geojson")
    words = shlex.split(blocks("bash")[0])
    monkeypatch.setattr(sys, "argv", words[1:])
    if mistake in ("slide", "export"):
        with pytest.raises(SystemExit) as refused:
            runpy.run_path(words[1], run_name="__main__")
        assert f"{refused.value}" in PAGE
        return
    runpy.run_path(words[1], run_name="__main__")
    match mistake:
        case "mpp":
            save_slide(folder / "slides" / "case3.svs", np.random.default_rng(1), mpp="")
        case "class":
            text = (folder / "my_cohort.yaml").read_text()
            (folder / "my_cohort.yaml").write_text(text.replace("- Stroma\n", ""))
        case "split":
            table = pd.read_csv("cohort.csv", dtype=str, keep_default_na=False)
            table.loc[7, "patient"] = "P06"
            table["split"] = ["train"] * 4 + ["val", "val", "train", "test"]
            table.to_csv("cohort.csv", index=False)
        case "bounds":
            save_export(folder / "exported" / "case2.svs.geojson", shift_px=-5000)
    capsys.readouterr()
    code = main(["prepare", "--config", "my_cohort.yaml", "--out", "runs/wrong"])
    message = capsys.readouterr().err.strip().splitlines()[-1].replace(f"{folder.resolve()}/", "")
    assert code == 2 and without_sizes(message) in without_sizes(PAGE), message
