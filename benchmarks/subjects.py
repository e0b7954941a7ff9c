"""Commands to be tormented: every stage of a run, and others, each from a prepared folder, in forked processes."""

import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before numpy and torch are imported: a process that has threads cannot be forked safely.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import tifffile

OPTIONS = {
    "size": "smoke",
    "cohort.phantom.train_patients": 3,
    "cohort.phantom.val_patients": 1,
    "cohort.phantom.test_patients": 2,
    "cohort.phantom.unseen_patients": 1,
    "cohort.phantom.slide_px": 64,
    "cohort.phantom.slides_per_patient": 3,
    "split.label_budget": 2,
    "diffusion.annotated_only_control": "false",
    "segmentation.seeds": "[0]",
    "segmentation.arms": "[real, real+stain, real+stain+self-training, real+stain+synthetic]",
    "few_step.pairs": 4,
    "generate.generator": "few-step",
    "generate.images": 8,
    "generate.batch_size": 2,
    "generate.nfe": 2,
    "evaluate.bootstrap": 50,
    "evaluate.images_per_style": 4,
}
STAGES = (
    "prepare",
    "train autoencoder",
    "train diffusion",
    "train few-step",
    "generate",
    "filter",
    "train segmentation",
    "evaluate",
    "report",
)
OTHERS = ("segment", "generate --style-slide", "experiment")
TIMINGS = {"seconds", "images_per_second"}
TIMES = re.compile(r"\d+(\.\d+)? (s|min \d\d s|h \d+ min)\b|width:[\d.]+%|images[ _]per[ _]second\D{0,40}[\d.]+")
"""Durations, bars as long as them, and throughput, as the report writes them."""


@dataclass(frozen=True)
class Moment:
    """When to kill: after so many seconds of processor time, or before a change of the file system, counted from 0."""

    seconds: float | None = None
    change: int | None = None


@dataclass(frozen=True)
class Subject:
    """What is killed: a command that works in a folder, and what is in the folder before (None: there is none)."""

    name: str
    words: Callable[[Path], list[str]]
    before: Path | None

    def fresh(self, folder: Path) -> Path:
        """`folder` as it is before the command."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, folder)
        return folder


class Changes:
    """Counts, as an audit hook, this process's changes below a folder; kills the process before the one of a number."""

    EVENTS = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"})

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last, self.count = str(folder), last, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by the interpreter."""
        if event in self.EVENTS or (event == "open" and self._writes(*arguments)):
            names = [os.fsdecode(name) for name in arguments if isinstance(name, (str, bytes, os.PathLike))]
            relative = bool(names) and not os.path.isabs(names[0])  # below an open folder, as rmtree does it
            if relative or any(name.startswith(self.folder) for name in names):
                if self.count == self.last:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.count += 1

    @staticmethod
    def _writes(path: Any, mode: str | None, flags: int) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


@dataclass(frozen=True)
class End:
    """How a command ended: exit code (negative: the signal), processor seconds, changes (if it ended by itself)."""

    code: int
    seconds: float
    changes: int


def run(words: Sequence[str], folder: Path, log: Path, moment: Moment | None = None) -> End:
    """Call the command in a forked process, and kill it at `moment`."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _be_the_command(words, folder, log, moment, write)
    os.close(write)
    limit = float("inf") if moment is None or moment.seconds is None else moment.seconds
    seconds, (ended, status) = 0.0, os.waitpid(child, os.WNOHANG)
    while not ended:
        seconds = time.clock_gettime(~child << 3 | 2)  # the processor clock of another process, as Linux numbers it
        if seconds >= limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001 if limit < float("inf") else 0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    with os.fdopen(read) as pipe:
        changes = int(pipe.read() or 0)
    return End(os.waitstatus_to_exitcode(status), seconds, changes)


def _be_the_command(words: Sequence[str], folder: Path, log: Path, moment: Moment | None, report: int) -> None:
    """In the forked process: call the command, tell the number of changes, and end."""
    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        changes = Changes(folder, None if moment is None else moment.change)
        if moment is None or moment.change is not None:
            sys.addaudithook(changes)
        code = importlib.import_module("stedm.cli").main(words)
        os.write(report, str(changes.count).encode())
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def results(folder: Path) -> dict[str, str]:
    """Every file below a folder by its SHA-256, without what says how long something took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.name != "throughput.json" and "tensorboard" not in path.parts:
            found[name] = hashlib.sha256(_untimed(path)).hexdigest()
        elif path.is_dir():
            found[f"{name}/"] = ""
    return found


def _untimed(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_without(json.loads(content))).encode()
    if "report" in path.parts or path.name == "summary.md":
        return TIMES.sub("", content.decode()).encode()
    return content


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key not in TIMINGS}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files that are missing, left over or different."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def subjects(out: Path, wanted: Sequence[str]) -> Iterator[Subject]:
    """The commands asked for; what a stage starts from is made in `out` where it is not there yet."""
    yield from _stage_subjects(out, wanted)
    yield from _other_subjects(out, wanted)


def _stage_subjects(out: Path, wanted: Sequence[str]) -> Iterator[Subject]:
    """The stages of a run; each starts from what those before it left."""
    before, last = None, max(map(_place, wanted))
    options = [word for key, value in OPTIONS.items() for word in (f"--{key}", str(value))]
    for name in STAGES:
        given = options if before is None else []
        subject = Subject(name, lambda folder, name=name, given=given: _words(name, folder, given), before)
        if name in wanted:
            yield subject
        if STAGES.index(name) >= last:
            return
        after = out / "before" / f"after-{name.replace(' ', '-')}"
        if not after.exists():
            making = subject.fresh(out / "making")
            end = run(subject.words(making), making, out / "making.log")
            if end.code:
                raise SystemExit(f"{name}: exit code {end.code}; see {out / 'making.log'}")
            after.parent.mkdir(parents=True, exist_ok=True)
            os.rename(making, after)
        before = after


def _place(name: str) -> int:
    """Number of the last stage that must be done, or is asked for; models come from before `evaluate`."""
    return STAGES.index(name if name in STAGES else "prepare" if name == "experiment" else "evaluate")


def _words(name: str, folder: Path, options: Sequence[str]) -> list[str]:
    return [*name.split(), "--out", str(folder), "--jobs", "1", *options]


def _other_subjects(out: Path, wanted: Sequence[str]) -> Iterator[Subject]:
    """Slides segmented and lent as style with the models of the run; two label budgets, up to `evaluate`."""
    finished = out / "before" / "after-train-segmentation"
    slide = _slide(out / "slide.tif")
    if "segment" in wanted:
        model = ["--model", str(finished / "segmentation" / "real" / "seed0")]
        few = ["--jobs", "1", "--window_px", "128", "--overlap_px", "32"]
        yield Subject("segment", lambda folder: ["segment", str(slide), *model, "--out", str(folder), *few], None)
    if "generate --style-slide" in wanted:
        model = ["--model", str(finished / "diffusion"), "--style-slide", str(slide)]
        few = ["--n", "8", "--batch-size", "2", "--nfe", "2"]
        yield Subject("generate --style-slide", lambda folder: ["generate", *model, "--out", str(folder), *few], None)
    if "experiment" in wanted:
        more = {"experiment.budgets": "[1, 2]", "segmentation.arms": "[real+stain, real+synthetic]"}
        more |= {"generate.generator": "full", "generate.images": 4, "evaluate.images_per_style": 2}
        more |= {f"{section}.steps": 4 for section in ("autoencoder", "diffusion", "segmentation")}
        options = [word for key, value in (OPTIONS | more).items() for word in (f"--{key}", str(value))]
        yield Subject("experiment", lambda folder: _words("evaluate", folder, options), None)


def _slide(path: Path) -> Path:
    """A pyramid of 1600 x 1280 pixels of 0.5 um: tissue with a gland on glass, with some noise."""
    pixels = np.full((1280, 1600, 3), 243, np.uint8)
    pixels[160:800, 240:1040] = 225, 150, 190
    pixels[320:640, 400:800] = 110, 50, 140
    pixels -= np.random.default_rng(0).integers(0, 12, pixels.shape, dtype=np.uint8)
    options = {"tile": (128, 128), "photometric": "rgb", "resolutionunit": "CENTIMETER", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(3):
            resolution = (20_000 / 2**level,) * 2
            tiff.write(pixels[:: 2**level, :: 2**level], subfiletype=int(level > 0), resolution=resolution, **options)
    return path


def import_everything() -> None:
    """What a command would import when it needs it; not the studio, which no stage does."""
    package = importlib.import_module("stedm")
    for module in pkgutil.walk_packages(package.__path__, "stedm."):
        if not module.name.startswith("stedm.studio."):
            importlib.import_module(module.name)


def torment_all(
    torment: Callable[[Subject, random.Random], dict[str, Any]],
    record: Path,
    wanted: Sequence[str],
    *,
    seed: int,
    columns: Sequence[str],
) -> int:
    """Torment every subject in the folder of `record`, print a row of each and write them; 1 if anything is `wrong`."""
    import_everything()
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    rows: list[dict[str, Any]] = []
    for subject in subjects(record.parent, wanted):
        rows.append(torment(subject, random.Random(f"{seed} {subject.name}")))
        row = rows[-1] | {"wrong": len(rows[-1]["wrong"])}
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
        for problem in rows[-1]["wrong"]:
            print(f"  WRONG {problem}", flush=True)
        record.write_text(json.dumps(rows, indent=2))
    return int(any(row["wrong"] for row in rows))
