"""Killed, out of disk, beside another process, interrupted: nothing is lost, and nothing half-made looks finished."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from differing import differing

from stedm import cli, files
from stedm.cli import main
from stedm.errors import Stopped, UserError
from stedm.files import atomic_folder, atomic_path, locked, read_json, remove_temporaries, write_json
from stedm.interruption import Terminated, terminable, unswallowed
from stedm.models.segmenter import Segmenter
from stedm.png import write_png
from stedm.stages import prepare_slide

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMOKE = {
    "size": "smoke",
    "cohort.phantom.train_patients": 3,
    "cohort.phantom.val_patients": 1,
    "cohort.phantom.test_patients": 2,
    "cohort.phantom.unseen_patients": 1,
    "cohort.phantom.slide_px": 64,
    "cohort.phantom.slides_per_patient": 2,
    "split.label_budget": 2,
}


def words(name: str, out: Path, **changes: Any) -> list[str]:
    flags = [word for key, value in (SMOKE | changes).items() for word in (f"--{key}", str(value))]
    return [*name.split(), "--out", str(out), "--jobs", "1", *flags]


@contextmanager
def other_process(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock file, and lives until it is killed."""
    code = "import pathlib, sys, time; from stedm.files import locked; path = pathlib.Path(sys.argv[1])\n"
    code += "with locked(path, folder=path.parent, fix='', busy=''): print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def torment(script: str, out: Path, *options: str) -> str:
    """What a torment of the benchmarks prints; nothing may be wrong."""
    command = [sys.executable, str(BENCHMARKS / script), "--out", str(out), *options]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 3:
        pytest.skip(result.stdout.splitlines()[-1])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Killed


def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    printed = torment("kill.py", tmp_path, "--kills", "5", "--stages", "prepare", "train autoencoder")
    assert [line.split(" | ")[1] for line in printed.splitlines()[2:]] == ["5", "5"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_stage_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    printed = torment("kill.py", tmp_path, "--kills", "20")
    assert [int(line.split(" | ")[1]) for line in printed.splitlines()[2:]] == [20] * 12


def test_what_a_killed_segmentation_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "areas.csv") as temporary:
        raise KeyboardInterrupt
    others = [".areas.20240115.csv", ".hidden", ".other.stedm-0123abcd.csv"]
    for name in (temporary.name, *others):
        (tmp_path / name).write_text("")
    remove_temporaries(tmp_path, ".areas.*")
    assert sorted(path.name for path in tmp_path.iterdir()) == others


# Two processes


def test_a_lock_refuses_while_its_holder_lives_and_not_after_it_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    with other_process(lock) as other:
        with pytest.raises(UserError, match="busy"), locked(lock, folder=tmp_path, fix="", busy="busy"):
            pass
        other.kill()
        other.wait()
        with locked(lock, folder=tmp_path, fix="", busy="busy"):
            assert lock.exists()


def test_a_lock_file_that_its_holder_removed_locks_nobody_in(tmp_path: Path) -> None:
    """Who waited for the removed file must not work beside who made a new one."""
    lock, inside, most = tmp_path / "folder" / "lock", [], []

    def work() -> None:
        with locked(lock, folder=tmp_path, fix="", busy=None):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            lock.unlink()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_two_runs_in_one_folder_the_second_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with other_process(out / ".lock"):
        assert main(words("prepare", out)) == 2
        assert "another stedm process is working there" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [".lock"]
    assert main(words("prepare", out)) == 0 and (out / "data" / "fingerprint.json").exists()


def started_at_once(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of commands that begin together, when every process has imported what it needs."""
    code = "import sys, stedm.run; from stedm.cli import main; print('ready', flush=True); sys.stdin.readline()\n"
    code += "sys.exit(main(sys.argv[1:]))"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, *command], **pipes) for command in commands]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_two_commands_at_once_on_one_run_folder_one_works_and_the_other_is_refused(tmp_path: Path) -> None:
    out, whole, more = tmp_path / "run", tmp_path / "whole", {"cohort.phantom.train_patients": 20}
    (refused, worked) = sorted(started_at_once([words("prepare", out, **more)] * 2), reverse=True)
    assert (refused[0], worked[0]) == (2, 0), (refused, worked)
    assert refused[1] == f"stedm: {out}: another stedm process is working there; wait for it or use --out\n"
    assert main(words("prepare", whole, **more)) == 0
    made, expected = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (out, whole)
    )
    for own in ("data/fingerprint.json", "data/cohort.parquet"):  # the time that it took; where the files lie
        assert made.pop(own) and expected.pop(own)
    assert differing(made, expected) == {}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "case.tif"
    pixels = np.full((256, 384, 3), 243, np.uint8)
    pixels[64:192, 64:320] = 200, 120, 170
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", resolution=(1e4, 1e4), resolutionunit=3)
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    Segmenter(classes=["a", "b"], encoder="tu-test_resnet", mpp=1.0, patch_px=64).save_pretrained(folder)
    return folder


def test_two_segmentations_of_one_slide_the_second_is_refused(
    slide: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segment", str(slide), "--model", str(segmenter), "--out", str(tmp_path), "--jobs", "1"]
    with other_process(tmp_path / ".case.segmenting" / "lock"):
        assert main(command) == 1
        assert "another stedm process is working on this slide" in capsys.readouterr().err
        assert not (tmp_path / "case.tif").exists()
    assert main(command) == 0
    names = {"areas.csv", "case.geojson", "case.json", "case.tif"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with other_process(tmp_path / ".case.segmenting" / "lock"):  # with other options: its folder is not ours to remove
        assert main(command) == 1 and (tmp_path / ".case.segmenting" / "lock").exists()


def test_a_model_folder_is_only_read(slide: Path, segmenter: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (segmenter, *segmenter.iterdir())}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)  # for root, the times say it
    assert main(["segment", str(slide), "--model", str(segmenter), "--out", str(tmp_path), "--jobs", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (segmenter, *segmenter.iterdir())} == before


# No room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_disk_refuses_is_a_clear_line_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    target = tmp_path / "table.csv"
    target.write_text("before")
    with pytest.raises(Stopped, match="the same command continues") as caught, atomic_path(target) as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert str(target) in str(caught.value) and os.strerror(number) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"] and target.read_text() == "before"


def test_a_library_that_hides_the_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="file write failed"), atomic_path(tmp_path / "a"):
        raise RuntimeError("file write failed")
    monkeypatch.setattr(files, "_probe", lambda folder: errno.ENOSPC)
    with pytest.raises(Stopped, match="make room"), atomic_folder(tmp_path / "b"):
        raise RuntimeError("file write failed")
    with pytest.raises(UserError, match="its own words"), atomic_path(tmp_path / "c"):
        raise UserError("its own words")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_is_cut_and_a_mistake_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, number, lost = tmp_path / "run", itertools.count(), []

    def full(path: Path, pixels: np.ndarray) -> None:  # called by several threads
        if next(number) == 7:
            lost.append(path)
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_png(path, pixels)

    monkeypatch.setattr(prepare_slide, "write_png", full)
    assert main(words("prepare", out)) == 2
    assert f"stedm: {lost[0]}: No space left on device; make room" in capsys.readouterr().err
    assert len(list((out / "data" / "slides").iterdir())) > 0 and not (out / "data" / "patches.parquet").exists()
    assert main(words("prepare", out)) == 0
    assert main(words("prepare", tmp_path / "whole")) == 0
    images, whole = (sorted((root / "data" / "images").iterdir()) for root in (out, tmp_path / "whole"))
    assert [path.name for path in images] == [path.name for path in whole]
    assert [path.read_bytes() for path in images] == [path.read_bytes() for path in whole]


def test_the_disk_fills_or_is_read_only_under_a_stage(tmp_path: Path) -> None:
    torment("disk.py", tmp_path, "--times", "3", "--stages", "prepare", "train autoencoder")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_disk_fills_or_is_read_only_under_every_stage(tmp_path: Path) -> None:
    torment("disk.py", tmp_path)


# Odd folders


def test_run_folder_that_is_a_file_or_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(words("prepare", tmp_path / "file")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert main(words("prepare", tmp_path / "link")) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "data" / "patches.parquet").exists()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert main(words("prepare", tmp_path / "broken")) == 2
    assert "cannot be written" in capsys.readouterr().err


# Interrupted


@pytest.mark.usefixtures("ctrl_c_works")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_one_line_and_says_how_to_go_on(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: list[str]) -> int:
        os.kill(os.getpid(), number)
        time.sleep(10)
        return 0

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(cli, "_main", interrupted)
    assert main(["run"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stedm: ") and "the same command continues" in line
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_what_lightning_makes_of_an_interruption_is_undone() -> None:
    with pytest.raises(KeyboardInterrupt), unswallowed():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    with pytest.raises(Terminated), unswallowed():
        raise SystemExit
    with pytest.raises(Terminated), unswallowed(), terminable():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_running_command_ends_soon_after_an_interruption(tmp_path: Path, number: int, code: int, jobs: str) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "stedm.cli", *words("train segmentation", out, **{"autoencoder.steps": 2000})]
    command[command.index("--jobs") + 1] = jobs
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("*/training/*")) + list(out.glob("segmentation/*/*/training/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    started = time.monotonic()
    _, printed = process.communicate(timeout=120)
    assert process.returncode == code and time.monotonic() - started < 60
    assert "Traceback" not in printed and "the same command continues" in printed
    assert not list(out.glob("autoencoder/model.safetensors"))


# Diverged


def test_a_training_that_diverges_says_where_and_a_lower_learning_rate_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(words("train autoencoder", out, **{"autoencoder.learning_rate": 1e9})) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stedm: ")]
    assert "first stage" in line and "step" in line and "lower autoencoder.learning_rate (now 1e+09)" in line
    assert not (out / "autoencoder" / "fingerprint.json").exists() and not list(out.glob("autoencoder/*.safetensors"))
    assert main(words("train autoencoder", out, **{"autoencoder.learning_rate": 0.002})) == 0
    assert (out / "autoencoder" / "model.safetensors").exists()
    assert read_json(out / "autoencoder" / "fingerprint.json")["seconds"] > 0


def test_write_json_refuses_what_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
