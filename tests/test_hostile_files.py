"""Files that somebody spoiled, by accident or on purpose: read or refused in one line, in little time and memory."""

import gzip
import json
import os
import struct
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hostile_folders import ALL
from hostile_formats import pixels
from mutations import Failure, Format, limits, mutants, outcome, with_checksums
from mutations_tiff import chained
from PIL import Image

from stedm.cli import main
from stedm.config import CohortConfig
from stedm.config_file import load_config
from stedm.data.annotation import read_annotation
from stedm.data.cohort import read_cohort
from stedm.data.labels import read_mask
from stedm.data.slide import MOST_PX, Slide
from stedm.data.tables import read_parquet
from stedm.errors import UserError
from stedm.files import locked, refuse_links
from stedm.run import run_all
from stedm.stages.report import report

CASES, SLOW = 25, {"training/last.ckpt": 3, "reported": 2}
"""Cases of a format in a test, and of those whose names begin like this; benchmarks/mutations.py tries thousands."""
MADE_AGAIN = ("run: data/fingerprint", "prepared: run/data/", "segmented: out/slide", "MRXS: slide.mrxs")
"""Names of formats of which what is damaged is made again, or not looked at (a thumbnail), without a word."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_spoiled_files_are_read_or_refused(form: Format, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "work" / "folder"
    cases = next((few for name, few in SLOW.items() if form.name.startswith(name)), CASES)
    found = [outcome(form, path, inside=folder) for _, path in mutants(form, folder, cases=cases)]
    assert "refused" in found or form.name.startswith(MADE_AGAIN)


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_the_good_files_are_good(form: Format, tmp_path: Path) -> None:
    """Otherwise nothing but their first mistake would be tried."""
    folder = tmp_path / "deep" / "work" / "folder"
    folder.mkdir(parents=True)
    assert outcome(form, form.write(folder), inside=folder) == "read"


def test_the_harness_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(path: Path) -> None:
        end = time.process_time() + 5
        while time.process_time() < end:
            pass

    def swallowing(path: Path) -> None:
        try:
            wait(path)
        except Exception:
            return

    def refuse(path: Path) -> None:
        raise UserError("two\nlines")

    monkeypatch.setattr("mutations.LIMIT_S", 0.2)
    folder = tmp_path / "deep" / "work" / "folder"
    folder.mkdir(parents=True)
    cases: dict[str, Any] = {
        "ZeroDivisionError": lambda path: 1 / 0,
        "MemoryError": lambda path: np.ones(2**33, np.uint8),
        "more than": wait,
        "more than ": swallowing,
        "not one line": refuse,
        "written outside": lambda path: (path.parents[1] / "x").write_text("x"),
    }
    for message, read in cases.items():
        with pytest.raises(Failure, match=message.strip()):
            outcome(Format("x", lambda folder: folder / "f", read), folder / "f", inside=folder)


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_the_harness_plants_paths_whose_writing_it_sees(tmp_path: Path, kind: Any) -> None:
    """A reader that writes wherever a file says: beside the folder, and above it."""

    def write(folder: Path) -> Path:
        table, path = pd.DataFrame({"image": ["a.png"], "mask": ["b.png"]}), folder / f"good.{kind}"
        if kind == "parquet":
            table.to_parquet(path)
        else:
            path.write_text(table.to_json(orient="records"))
        return path

    def trusting(path: Path) -> None:
        with suppress(UnicodeDecodeError, ValueError, OSError, KeyError):
            rows = pd.read_parquet(path) if kind == "parquet" else pd.DataFrame(json.loads(path.read_text()))
            for name in rows.loc[:, rows.columns.isin(["image", "mask"])].iloc[0]:
                (path.parent / name).write_bytes(b"trusted")

    folder, form, seen = tmp_path / "deep" / "work" / "folder", Format("trusting", write, trusting, kind), ""
    for _, path in mutants(form, folder, cases=400):
        with suppress(TypeError):
            try:
                outcome(form, path, inside=folder)
            except Failure as failure:
                seen += str(failure)
    assert str(tmp_path / "x") in seen and str(folder.parent / "beside" / "x") in seen


def png_header(width: int, height: int) -> bytes:
    """A whole PNG of grey pixels, but only its first few rows are there: a hundred bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + kind + data + bytes(4) for kind, data in chunks]
    return with_checksums(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    "size_px",
    [
        (14_000, 14_000),
        (46_000, 46_000),
        (200_000, 200_000),
        (2**20, 2**20),
        (2**31 - 1, 2**31 - 1),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (0, 5),
    ],
)
def test_a_header_that_claims_much_is_refused(tmp_path: Path, size_px: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size_px))
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with limits(), pytest.raises(UserError, match=r"bomb\.png"), Slide.open(path, mpp=1.0) as slide:
        slide.read(0, 0, size_px=64, mpp=1.0)
    with limits(), pytest.raises(UserError, match=r"bomb\.png"):
        read_mask(path)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_that_claims_much_is_refused(tmp_path: Path, big: bool) -> None:
    """Sparse tiles of a slide 17 million pixels wide; one strip whose bytes are not there; a tile of 4 GiB."""
    image = pixels(256, 192)
    for name, tag, value in (
        ("wide", "ImageWidth", 2**24),
        ("tile", "TileWidth", 2**16),
        ("tall", "ImageLength", 2**31),
    ):
        path = tmp_path / f"{name}.tif"
        with tifffile.TiffWriter(path, bigtiff=big) as tiff:
            for level in range(2):
                tiff.write(image[:: 2**level, :: 2**level], tile=(64, 64), photometric="rgb", subfiletype=level)
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages.first.tags[tag].overwrite(value, dtype="I")
            if name == "tile":
                tiff.pages.first.tags["TileLength"].overwrite(2**16, dtype="I")
        with limits(), pytest.raises(UserError, match=name), Slide.open(path, mpp=1.0) as slide:
            slide.read(0, 0, size_px=64, mpp=1.0)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("levels", "target"), [(3, 0), (3, 2), (3, 1), (150, 0)])
def test_a_tiff_whose_directories_lead_in_a_circle_is_refused(
    tmp_path: Path, big: bool, levels: int, target: int
) -> None:
    """tifffile reads on for ever: it looks for circles among the first hundred directories, and not while it counts."""
    path = tmp_path / "circle.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for level in range(levels):
            side = 64 if level == 0 else 32
            tiff.write(pixels(side, side), tile=(16, 16), photometric="rgb", subfiletype=min(level, 1), metadata=None)
    path.write_bytes(chained(path.read_bytes(), target))
    with limits(), pytest.raises(UserError, match=r"circle\.tif.*circle"), Slide.open(path, mpp=1.0) as slide:
        slide.read(0, 0, size_px=64, mpp=1.0)


def test_a_tiff_whose_directories_overlap_is_refused(tmp_path: Path) -> None:
    """10 kB in which every fourth byte begins a directory of hundreds of entries."""
    number, step, content = 400, 4, bytearray(b"II*\0" + struct.pack("<I", 8) + bytes(2 * 10**4))
    for at in range(8, 8 + 1000 * step, step):
        content[at : at + 2] = struct.pack("<H", number)
        follows = at + 2 + 12 * number
        content[follows : follows + 4] = struct.pack("<I", at + step)
    (tmp_path / "overlap.tif").write_bytes(content)
    with (
        limits(),
        pytest.raises(UserError, match=r"overlap\.tif.*circle"),
        Slide.open(tmp_path / "overlap.tif", mpp=1.0),
    ):
        pass


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_with_a_crowd_of_levels_is_refused(tmp_path: Path, big: bool) -> None:
    """300,000 sub-IFDs, all of them the same one: tifffile would read each."""
    path, number = tmp_path / "crowd.tif", 300_000
    with tifffile.TiffWriter(path, bigtiff=big, ome=True) as tiff:
        tiff.write(pixels(64, 64), tile=(16, 16), photometric="rgb", subifds=2)
        for side in (32, 16):
            tiff.write(pixels(side, side), tile=(16, 16), photometric="rgb", subfiletype=1)
    with Slide.open(path, mpp=1.0) as slide:
        assert slide.width_px == 64
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages.first.tags["SubIFDs"]
        header, level = tag.offset + 4, tag.value[0]
    content, word = bytearray(path.read_bytes()), "<Q" if big else "<I"
    struct.pack_into(word, content, header, number)
    struct.pack_into(word, content, header + struct.calcsize(word), len(content))
    path.write_bytes(content + struct.pack(word, level) * number)
    with limits(), pytest.raises(UserError, match=r"crowd\.tif.*300000 levels"), Slide.open(path, mpp=1.0):
        pass


@pytest.mark.parametrize(("mpp", "target"), [(1e4, 1e-4), (1e300, 0.5), (1.0, 1e-9)])
def test_resolutions_that_make_astronomical_sizes_are_refused(tmp_path: Path, mpp: float, target: float) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    with Slide.open(tmp_path / "a.png", mpp=mpp) as slide:
        assert slide.size_px(mpp) == (96, 80) and slide.size_px(mpp * 2) == (48, 40)
        with pytest.raises(UserError, match="resolutions"):
            slide.size_px(target)
    assert MOST_PX >= 2**20


def test_gzip_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.geojson.gz"
    path.write_bytes(gzip.compress(b" " * 2**29, compresslevel=1))
    assert path.stat().st_size < 2**23
    with limits(), pytest.raises(UserError, match="unpacks to more than"):
        read_annotation(path)


def repeated(text: str, rows: int) -> pa.Array:
    """A column of one text, which is in the file once."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [text])


@pytest.mark.parametrize("kind", ["texts", "cells", "page", "lists"])
def test_parquet_bombs_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few kilobytes each: 20 GiB of text, many cells, a long text, lists that nobody asks for."""
    names, path = ("image", "patient"), tmp_path / "bomb.parquet"
    rows = {"texts": 2**20, "cells": 2**20, "page": 1, "lists": 3}[kind]
    column = {
        "texts": lambda: repeated("x" * 10_000, rows),
        "cells": lambda: pa.array(np.zeros(rows, bool)),
        "page": lambda: pa.array(["x" * 2**20]),
        "lists": lambda: pa.array([[], [], []], pa.list_(pa.int64())),
    }[kind]()
    if kind in ("cells", "page"):  # at the true limit they take long to write
        monkeypatch.setattr("stedm.data.tables.MOST_BYTES", 2**20)
    pq.write_table(
        pa.table(dict.fromkeys(names, column) | {"slide": pa.nulls(rows, pa.string())}),
        path,
        compression="zstd",
        store_schema=False,
        row_group_size=rows,
    )
    assert path.stat().st_size < 2**18
    del column
    with limits():
        with pytest.raises(UserError, match=r"bomb\.parquet.*(GiB|no column)"):
            read_cohort(CohortConfig(table=str(path)))
        with pytest.raises(UserError, match=r"bomb\.parquet.*(GiB|no column)"):
            read_parquet(path, needs=names)


def test_a_parquet_table_that_is_no_bomb_is_read_as_it_is(tmp_path: Path) -> None:
    rows = 10_000
    table = pd.DataFrame({"patient": [f"p{k}" for k in range(rows)], "mpp": 0.5, "none": None, "n": range(rows)})
    table["kind"] = pd.Categorical(["a", "b"] * (rows // 2))
    table.assign(more=[[1, 2]] * rows).to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "t.parquet"), table)


def test_yaml_bombs_are_refused(tmp_path: Path) -> None:
    """Each name stands for ten of the one before: a thousand million words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)]
    for text in (
        "\n".join(lines),
        "cohort:\n  labels:\n" + "\n".join(f"    {line}" for line in lines),
        "a: &a [*a]",
        "[" * 10**6,
    ):
        (tmp_path / "bomb.yaml").write_text(text)
        with limits(), pytest.raises(UserError, match=r"bomb\.yaml"):
            load_config(tmp_path / "bomb.yaml")


@pytest.mark.parametrize(
    "option",
    [
        "prepare.mpp=-1",
        "prepare.mpp=1e-300",
        "prepare.mpp=.nan",
        "prepare.mpp=.inf",
        "prepare.patch_px=1000000000",
        "cohort.phantom.slide_px=1000000000",
        "seed=-1",
        "seed=99999999999999999999",
        "segmentation.seeds=[-1]",
        "generate.style_guidance=1e308",
        "diffusion.learning_rate=.inf",
        "cohort.labels={a: [[0]], b: [1]}",
        "seed=" + "9" * 5000,
        "seed=[" + "[" * 5000,
        'cohort.table="\\0"',
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(option: str, tmp_path: Path) -> None:
    with limits(), pytest.raises(UserError) as refused:
        config = load_config(None, ["size=smoke", option])
        run_all(config, tmp_path / "run", until="prepare")
    assert option.partition("=")[0] in str(refused.value) or "table" in str(refused.value)


# Links


def test_links_out_of_a_run_folder_are_refused_and_what_they_lead_to_is_left(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "precious.png").write_bytes(b"precious")
    config = load_config(None, ["size=smoke"])
    for name in ("data", "data/images", "diffusion", "report", ".lock", "config.yaml"):
        target = outside / "precious.png" if "." in name else outside
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).unlink(missing_ok=True)  # the lock of the time before
        (run / name).symlink_to(target)
        with pytest.raises(UserError, match="link"):
            run_all(config, run, until="prepare")
        (run / name).unlink()
    assert [path.name for path in outside.iterdir()] == ["precious.png"]
    assert (outside / "precious.png").read_bytes() == b"precious"


def test_links_that_stay_inside_or_lead_to_the_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "again").symlink_to("data")
    (tmp_path / "link").symlink_to("run")
    refuse_links(tmp_path / "link")
    with locked(tmp_path / "link" / ".lock", folder=tmp_path, fix="", busy=""):
        assert (tmp_path / "run" / ".lock").exists()
    (tmp_path / "run" / "loop").symlink_to("loop")
    refuse_links(tmp_path / "run")
    (tmp_path / "run" / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="dangling"):
        refuse_links(tmp_path / "run")


@pytest.mark.parametrize("kind", ["loop", "dangling", "folder", "pipe", "long"])
def test_an_image_that_is_no_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    name = "x" * 5000 if kind == "long" else "odd.png"
    match kind:
        case "loop":
            (tmp_path / name).symlink_to(name)
        case "dangling":
            (tmp_path / name).symlink_to("nowhere.png")
        case "folder":
            (tmp_path / name).mkdir()
        case "pipe":
            os.mkfifo(tmp_path / name)
    (tmp_path / "cohort.csv").write_text(f"image,patient,mpp\n{name},p0,1\nb.png,p1,1\n")
    table = ["--cohort.table", str(tmp_path / "cohort.csv"), "--size", "smoke"]
    assert main(["prepare", "--out", str(tmp_path / "run"), *table]) == 2
    error = capsys.readouterr().err
    assert "row 2" in error and len(error.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_report_of_a_damaged_run_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "config.yaml").write_text("size: tiny\n")
    for text in ("[", "[1, 2]", json.dumps({"arms": None}), "{}"):
        (tmp_path / "evaluation" / "summary.json").write_text(text)
        with pytest.raises(UserError) as refused:
            report(tmp_path)
        assert "\n" not in str(refused.value)
