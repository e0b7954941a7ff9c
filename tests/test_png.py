"""PNG files: nothing is lost, they are little larger than with Pillow's fast settings, and are written meanwhile."""

import errno
import io
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stedm import png
from stedm.data.phantom import draw_layout, draw_style
from stedm.data.phantom_render import render
from stedm.errors import Stopped
from stedm.png import Writer, write_png, write_png_atomically


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64), (1, 1, 3), (7, 5, 3), (64, 33, 3)])
def test_pixels_come_back(tmp_path, shape) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.mode == ("RGB" if len(shape) == 3 else "L")
        assert (np.asarray(image) == pixels).all()


def test_a_part_of_an_array_is_written_as_it_is_seen(tmp_path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    write_png(tmp_path / "a.png", whole.transpose(1, 2, 0)[::2, ::-1])
    assert (np.asarray(Image.open(tmp_path / "a.png")) == whole.transpose(1, 2, 0)[::2, ::-1]).all()


def test_files_are_small(tmp_path) -> None:
    rng = np.random.default_rng(0)
    layout = draw_layout(256, rng)
    for pixels in (render(layout, draw_style("he", rng), rng), layout):
        write_png(tmp_path / "a.png", pixels)
        pillow = io.BytesIO()
        Image.fromarray(pixels).save(pillow, "PNG", compress_level=1)
        assert (tmp_path / "a.png").stat().st_size < 1.06 * len(pillow.getvalue()) < pixels.nbytes


def test_a_full_disk_is_an_os_error(tmp_path) -> None:
    with pytest.raises(OSError):
        write_png(tmp_path / "missing" / "a.png", np.zeros((4, 4), np.uint8))


# Writer

LABELS, TISSUE = np.ones((8, 8), np.uint8), np.full((8, 8, 3), 7, np.uint8)


def pair(folder: Path, number: int) -> tuple[tuple[Path, np.ndarray], tuple[Path, np.ndarray]]:
    return (folder / f"{number}-mask.png", LABELS * number), (folder / f"{number}-image.png", TISSUE + np.uint8(number))


@pytest.mark.parametrize("write", [write_png, write_png_atomically])
def test_all_is_written_when_the_block_ends(tmp_path, write) -> None:
    with Writer(write) as writer:
        for number in range(50):
            writer.put(*pair(tmp_path, number))
    assert len(list(tmp_path.iterdir())) == 100
    for number in range(50):
        for path, pixels in pair(tmp_path, number):
            assert (np.asarray(Image.open(path)) == pixels).all()


def test_the_caller_goes_on_and_waits_when_too_much_waits(tmp_path, monkeypatch) -> None:
    (_, mask), (_, image) = pair(tmp_path, 0)
    monkeypatch.setattr(png, "_MOST_BYTES", 3 * (mask.nbytes + image.nbytes))
    go, put, written = threading.Event(), [], []

    def slow(path: Path, pixels: np.ndarray) -> None:
        go.wait()
        written.append(path)

    def caller() -> None:
        with Writer(slow) as writer:
            for number in range(10):
                writer.put(*pair(tmp_path, number))
                put.append(number)

    thread = threading.Thread(target=caller)
    thread.start()
    while len(put) < 3:
        time.sleep(0.001)
    thread.join(timeout=0.2)
    assert len(put) == 3 and not written  # the fourth waits
    go.set()
    thread.join()
    assert len(put) == 10 and len(written) == 20


def test_the_last_file_of_a_call_stands_for_all(tmp_path) -> None:
    """Whatever threads do meanwhile."""
    seen = []

    def write(path: Path, pixels: np.ndarray) -> None:
        time.sleep(random.random() / 500)
        if path.stem.endswith("image"):
            seen.append((tmp_path / path.name.replace("image", "mask")).exists())
        write_png(path, pixels)

    with Writer(write) as writer:
        for number in range(40):
            writer.put(*pair(tmp_path, number))
    assert seen == [True] * 40


@pytest.mark.parametrize("write", [write_png, write_png_atomically])
def test_what_could_not_be_written_is_raised_with_its_name(tmp_path, write) -> None:
    (tmp_path / "7-image.png").mkdir()
    with (
        pytest.raises(Stopped, match=r"7-image.*\.png: Is a directory; move what is there away"),
        Writer(write) as writer,
    ):
        for number in range(200):
            writer.put(*pair(tmp_path, number))
    found = len(list(tmp_path.iterdir()))
    time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) == found and (tmp_path / "7-mask.png").exists()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(Stopped, match="7-image"), Writer(write) as writer:  # the last: at the end of the block
        writer.put(*pair(tmp_path, 7))


def test_a_full_disk_names_the_file(tmp_path) -> None:
    def full(path: Path, pixels: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(Stopped, match=r"0-mask\.png: No space left on device; make room"), Writer(full) as writer:
        writer.put(*pair(tmp_path, 0))


def test_an_error_of_the_caller_passes_and_leaves_nothing_half_written(tmp_path) -> None:
    with pytest.raises(KeyError), Writer(write_png) as writer:
        for number in range(20):
            writer.put(*pair(tmp_path, number))
        raise KeyError
    for path in tmp_path.iterdir():
        Image.open(path).load()
    assert len(list(tmp_path.iterdir())) == 40


def fill(folder: Path) -> None:
    with Writer() as writer:
        for number in range(20):
            writer.put(*pair(folder, number))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_process_that_wrote_writes(tmp_path, method) -> None:
    fill(tmp_path / "parent")
    child = multiprocessing.get_context(method).Process(target=fill, args=(tmp_path / "child",))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert len(list((tmp_path / "child").iterdir())) == len(list((tmp_path / "parent").iterdir())) == 40


def test_killed_it_leaves_whole_files_and_no_image_without_its_mask(tmp_path) -> None:
    code = """
import itertools, pathlib, sys, numpy as np
from stedm.png import Writer
pixels, out = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), pathlib.Path(sys.argv[1])
print("go", flush=True)
with Writer() as writer:
    for k in itertools.count():
        writer.put((out / "masks" / f"{k}.png", pixels[..., 0]), (out / "images" / f"{k}.png", pixels))
"""
    written = 0
    for number in range(4):
        out = tmp_path / str(number)
        process = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.communicate()
        images, masks = ({path.name for path in (out / name).glob("[!.]*")} for name in ("images", "masks"))
        assert images <= masks
        for path in out.rglob("[!.]*.png"):
            Image.open(path).load()
        written += len(images)
    assert written > 0
