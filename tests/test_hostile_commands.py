"""Spoiled files through the command line: one line that names the fix, exit code 2, and nothing written elsewhere."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hostile_folders import drawn, prepared, segmented
from hostile_formats import models
from mutations import DEPTH, LIMIT_S, UP, limits, tree

from stedm.cli import main

SIZES = ["--size", "smoke", "--prepare.patch_px", "32", "--prepare.mpp", "0.5", "--split.label_budget", "1"]
SIZES += ["--cohort.labels", "{background: [0], gland: [1]}"]
Spoil = Callable[[Path], object]


def text(name: str, content: str) -> Spoil:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return write


def cut(name: str) -> Spoil:
    """The first half of a file."""
    return lambda folder: (folder / name).write_bytes((content := (folder / name).read_bytes())[: len(content) // 2])


def bomb(folder: Path) -> None:
    """A label map whose header claims a million pixels a side."""
    path = folder / "mask.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (2**20).to_bytes(4, "big") * 2
    path.write_bytes(content)


def paths(name: str, column: str, value: str) -> Spoil:
    """A table that names a file elsewhere; `{beside}` is the folder that is there."""

    def spoil(folder: Path) -> None:
        import pandas as pd

        table = pd.read_parquet(folder / name)
        table[column] = value.format(beside=folder.parent / "beside")
        table.to_parquet(folder / name)

    return spoil


def prepare(folder: Path) -> list[str]:
    return ["prepare", "--out", str(folder / "run"), "--cohort.table", str(folder / "cohort.csv"), *SIZES]


def segment(folder: Path) -> list[str]:
    return ["segment", str(folder / "slide.png"), "--model", str(folder / "segmenter"), "--out", str(folder / "out"),
            "--mpp", "0.5", "--everywhere", "--jobs", "1"]  # fmt: skip


def generate(folder: Path) -> list[str]:
    return ["generate", "--model", str(folder / "generator"), "--style-images", str(folder / "slide.png"), "--n", "1",
            "--layouts", str(folder / "layouts"), "--out", str(folder / "out"), "--style-set-size", "1", "--nfe", "1",
            "--min-tissue", "0"]  # fmt: skip


def report(folder: Path) -> list[str]:
    return ["report", str(folder), "--jobs", "1"]


def export(folder: Path) -> list[str]:
    return ["export", str(folder), "--format", "folders", "--out", str(folder / "out")]


def set_up(folder: Path, command: str, run: Path) -> None:
    """What the command wants to read, and none of what it writes; `run` is a finished one."""
    match command:
        case "prepare":
            shutil.copytree(prepared(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
        case "segment" | "generate":
            shutil.copytree(segmented(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
            shutil.copytree(models(), folder, dirs_exist_ok=True)
            (folder / "layouts").mkdir()
            shutil.copy(prepared() / "mask.png", folder / "layouts")
        case "report":
            shutil.copytree(run, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("report"))
        case "export":
            shutil.copytree(drawn(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "prepare": prepare, "segment": segment, "generate": generate, "report": report, "export": export,
}  # fmt: skip
CASES: dict[str, Sequence[tuple[str, Spoil]]] = {
    "prepare": (
        ("table of other bytes", lambda folder: (folder / "cohort.csv").write_bytes(b"\xff\xfe\x00image,patient")),
        ("table without rows", text("cohort.csv", "image,patient\n")),
        ("table that names no image", text("cohort.csv", "image,patient,mpp\nnowhere.png,p0,1\nb.png,p1,1\n")),
        ("table that leads out", text("cohort.csv", f"image,patient,mpp\n{UP * 3}x.png,p0,1\n/x/y.png,p1,1\n")),
        ("half a label map", cut("mask.png")),
        ("label map that claims much", bomb),
        ("config of another kind", text("run/config.yaml", "[1, 2")),
        ("config with a tag", text("run/config.yaml", "!!python/object/apply:os.system ['x']")),
    ),
    "segment": (
        ("half a slide", cut("slide.png")),
        ("slide that is text", text("slide.png", "no image")),
        ("model without weights", lambda folder: (folder / "segmenter/model.safetensors").unlink()),
        ("half the weights", cut("segmenter/model.safetensors")),
        ("config of the model", text("segmenter/config.json", '{"class": "os.system"}')),
        ("deep config", text("segmenter/config.json", "[" * 100_000)),
        ("record that is text", text("out/slide.json", "x")),
        ("a file of the user's", text("out/slide.tif", "")),
    ),
    "generate": (
        ("index of the model", cut("generator/model_index.json")),
        ("half the weights", cut("generator/unet/model.safetensors")),
        ("config of a part", text("generator/style_encoder/config.json", '{"encoder": "hf-hub:evil/model"}')),
        ("half a layout", cut("layouts/mask.png")),
        ("no layouts", lambda folder: shutil.rmtree(folder / "layouts")),
        ("half a style image", cut("slide.png")),
        ("plan of another", text("out/plan.parquet", "x")),
    ),
    "report": (
        ("config", text("config.yaml", "a: &a [*a]")),
        ("half a summary", cut("evaluation/summary.json")),
        ("a summary of nothing", text("evaluation/summary.json", json.dumps({"arms": None}))),
        ("half a table", cut("data/patches.parquet")),
        ("table of patients", text("evaluation/per_patient.csv", "patient,iou\n\x00\n")),
        ("half a picture", cut("diffusion/samples/style_by_layout.png")),
        ("no curves", text("diffusion/metrics.csv", "")),
        ("classes", text("data/classes.json", '{"classes": [1, {}]}')),
    ),
    "export": (
        ("half a manifest", cut("manifest.parquet")),
        ("classes", text("classes.json", "{}")),
        ("half a label map", cut("masks/s000000.png")),
        ("image that is gone", lambda folder: (folder / "images/s000001.png").unlink()),
        ("images from beside", paths("manifest.parquet", "image", "{beside}/x")),
        ("masks from above", paths("manifest.parquet", "mask", f"{UP}beside/x")),
        ("keys that are paths", paths("manifest.parquet", "id", "{beside}/y")),
    ),
}  # fmt: skip
SKIPS = {("segment", name) for name in ("half a slide", "slide that is text", "record that is text", "half the weights",
                                        "a file of the user's", "model without weights")}  # fmt: skip
"""One slide cannot be done and the others go on: exit code 1, the line is in red, and others say what comes next."""


@pytest.mark.parametrize(
    ("command", "name", "spoil"), [(command, *case) for command, cases in CASES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_spoiled_file_is_one_line_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], smallest_run: Path, command: str, name: str, spoil: Spoil
) -> None:
    folder = tmp_path / "deep" / "work" / "folder"
    (folder.parent / "beside").mkdir(parents=True)
    (folder.parent / "beside" / "x").write_bytes(b"precious")
    folder.mkdir()
    set_up(folder, command, smallest_run)
    spoil(folder)
    before = tree(folder.parents[DEPTH - 1], folder)
    with limits(10 * LIMIT_S):
        code = main(COMMANDS[command](folder))
    error = capsys.readouterr().err
    assert code == (1 if (command, name) in SKIPS else 2), error
    assert "Traceback" not in error and error.strip()
    assert [line for line in error.splitlines() if str(folder) in line or "--" in line][1:] == [], error
    assert tree(folder.parents[DEPTH - 1], folder) == before
    assert (folder.parent / "beside" / "x").read_bytes() == b"precious"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_does_its_work_on_good_files(tmp_path: Path, smallest_run: Path, command: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    set_up(folder, command, smallest_run)
    assert main(COMMANDS[command](folder)) == 0
