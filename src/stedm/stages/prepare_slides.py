"""Stage `prepare`, all slides: in several processes, each slide once, damaged ones left out.

A finished slide leaves `slides/<source>.json` with the records of its patches, a key of everything they depend on, and
the hashes of its files.
A slide without it, or with another key, is cut anew; so a killed run keeps what it finished, and a table that grows or
a slide that is replaced costs only what is new.
"""

import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from stedm.config import PrepareConfig
from stedm.data.cohort import FILES, row_name
from stedm.data.labels import LabelMap
from stedm.data.laboratories import Laboratory
from stedm.data.slide import DamagedSlide
from stedm.errors import Stopped, UserError
from stedm.files import read_json, write_text
from stedm.processes import process_pool
from stedm.progress import Bars
from stedm.stages.alignment import ALIGNMENT
from stedm.stages.inputs import InputFile, Record, sha256_of
from stedm.stages.prepare_slide import SlideCutter, source_name

FORMAT = 4
"""Raise it when the same settings give other patches."""
FOLDERS = ("images", "masks", "overlays", ALIGNMENT)
_OF_SLIDE = re.compile(r"(r\d{5,})\.(json|png|jpg)")
"""Our own names, the rest is the user's: slides/r00003.json, overlays/r00003.png, alignment/r00003.jpg"""
_OF_PATCH = re.compile(r"[\w.]*-(r\d{5,})-x\d{6,}-y\d{6,}\.png")
"""images/NAME-r00003-x000064-y000000.png"""
_BYTES_PER_PROCESS = 2**25
"""Less of image files than this is read sooner than a process starts."""
_MOST_THREADS = 8
_REFRESH_S = 0.5


@dataclass(frozen=True)
class SlideTask:
    """A row of a cohort table that is to be cut."""

    position: int
    """Of the row in all tables."""
    row: SimpleNamespace
    where: str
    """The row as messages name it."""
    key: str
    """What the patches depend on."""
    files: dict[str, InputFile]
    """The row's files, as `Inputs` has them."""

    @property
    def source(self) -> str:
        """Name of the slide's files."""
        return source_name(self.position)

    def size(self) -> int:
        """Bytes of the image file, 1 at least: what the work is about proportional to."""
        return max(1, Path(self.row.image).stat().st_size)


def slide_tasks(
    laboratories: Sequence[Laboratory],
    labels: Sequence[LabelMap],
    patients: set[str],
    *,
    settings: object,
    files: Mapping[str, InputFile],
) -> list[SlideTask]:
    """A task for each slide of `patients`, in the order of the tables.

    settings: what all patches depend on, as JSON takes it. files: those of `Inputs`; none of the phantom.
    """
    tasks, first = [], 0
    for laboratory, label_map in zip(laboratories, labels, strict=True):
        classes = [label_map.classes, hashlib.sha256(label_map.lookup.tobytes()).hexdigest(), label_map.names]
        for number, row in enumerate(laboratory.cohort.to_dict("records")):
            if row["patient"] in patients:
                read = {name: str(value) for name, value in row.items() if name not in ("split", "may_annotate")}
                names = {name: Path(row[name]).name for name in FILES}  # wherever the same file lies now
                keys = [f"{source_name(first + number)} {name}" for name in FILES]
                own = {name: files[name] for name in keys if name in files}
                content = [FORMAT, settings, classes, read | names, [file.stamp for file in own.values()]]
                key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
                where = row_name(str(laboratory.config.table), number)
                tasks.append(SlideTask(first + number, SimpleNamespace(**row), where, key, own))
        first += len(laboratory.cohort)
    return tasks


def cut_slides(
    out: Path, tasks: Sequence[SlideTask], config: PrepareConfig, labels: dict[str, LabelMap], *, jobs: int
) -> pd.DataFrame:
    """Cut what is not cut yet, in up to `jobs` processes; the damaged slides (slide, patient, image, reason).

    labels: label map of each laboratory. Raises UserError, naming the row, for what is wrong with a row.
    """
    for name in ("slides", *FOLDERS):
        (out / name).mkdir(parents=True, exist_ok=True)
    todo = _unfinished(out, tasks)
    size = sum(task.size() for task in todo)
    jobs = max(1, min(jobs, len(todo), size // _BYTES_PER_PROCESS))
    with _Bar(len(tasks), len(tasks) - len(todo), size) as bar:
        cut = _cut_here if jobs == 1 else _cut_apart
        damaged = dict(cut(out, todo, config, labels, bar, jobs))
    columns = ("slide", "patient", "image", "reason")
    lost = [
        (task.row.slide, task.row.patient, task.row.image, damaged[task.position])
        for task in todo
        if task.position in damaged
    ]
    return pd.DataFrame(lost, columns=list(columns))


def records_of(out: Path, tasks: Sequence[SlideTask], columns: Sequence[str]) -> pd.DataFrame:
    """The records of all slides that were cut, in the order of the tasks; NaN where a record lacks a column."""
    found: dict[str, list[Any]] = {column: [] for column in columns}
    for path in (_finished(out, task) for task in tasks):
        for record in read_json(path)["records"] if path.exists() else []:
            for column, values in found.items():
                values.append(record.get(column, float("nan")))
    return pd.DataFrame(found)


def _finished(out: Path, task: SlideTask) -> Path:
    return out / "slides" / f"{task.source}.json"


def _unfinished(out: Path, tasks: Sequence[SlideTask]) -> list[SlideTask]:
    """The tasks that are not done; files of slides that are to be cut again, or are gone, are removed."""
    done = {task.source for task in tasks if _is_done(out, task)}
    _remove_files(out, lambda source: source not in done)
    return [task for task in tasks if task.source not in done]


def _remove_files(out: Path, of: Callable[[str], bool]) -> None:
    """Remove what was made of the sources that `of` says; what is not ours is left alone."""
    for folder in ("slides", *FOLDERS):
        pattern = _OF_PATCH if folder in ("images", "masks") else _OF_SLIDE
        for path in (out / folder).iterdir():
            own = pattern.fullmatch(path.name)
            if own and of(own[1]) and not path.is_dir():
                path.unlink(missing_ok=True)


def _is_done(out: Path, task: SlideTask) -> bool:
    path = _finished(out, task)
    try:
        return path.exists() and bool(read_json(path).get("key") == task.key)
    except (UserError, AttributeError):  # damaged: the slide is cut again
        return False


def _cut_one(out: Path, task: SlideTask, cutter: SlideCutter, tick: Callable[[float, int], None]) -> str:
    """Cut a slide; "", or what is wrong with its file."""
    # Before they are read: if one is changed meanwhile, the next run sees other content and cuts again.
    files = {name: Record(file.stamp, sha256_of(file), file.mark) for name, file in task.files.items()}
    try:
        records = cutter.cut(task.position, task.row, tick)
    except DamagedSlide as error:
        _remove_files(out, lambda source: source == task.source)
        return str(error)
    except Stopped:  # it is not the row's fault
        raise
    except UserError as error:
        raise type(error)(f"{task.where}: {error}") from None
    found = {"key": task.key, "slide": task.row.slide, "files": files, "records": records}
    write_text(_finished(out, task), json.dumps(found, allow_nan=False))  # in one line: ten times as fast
    return ""


def _threads(jobs: int) -> int:
    """Threads for a slide in each of so many processes: as many as there are cores, but each keeps tiles of its own."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // jobs))


Damaged = Iterable[tuple[int, str]]


def _cut_here(
    out: Path, tasks: Sequence[SlideTask], config: PrepareConfig, labels: dict[str, LabelMap], bar: "_Bar", jobs: int
) -> Damaged:
    """Cut slides in this process; position and reason of the damaged ones."""
    threads = _threads(jobs)
    cutters = {name: SlideCutter(out, config, label_map, threads=threads) for name, label_map in labels.items()}
    for task in tasks:
        size = task.size()
        reason = _cut_one(
            out, task, cutters[task.row.laboratory], lambda share, kept, size=size: bar.add(share * size, kept)
        )
        bar.finish(task)
        if reason:
            yield task.position, reason


def _cut_apart(
    out: Path, tasks: Sequence[SlideTask], config: PrepareConfig, labels: dict[str, LabelMap], bar: "_Bar", jobs: int
) -> Damaged:
    """The same in several processes, large slides first: at the end none waits for a last large one."""
    progress = multiprocessing.get_context("spawn").RawArray("d", 2 * len(tasks))
    seen = np.zeros(2)
    with process_pool(jobs, _Worker.start, (out, config, labels, _threads(jobs), progress)) as pool:
        ordered = sorted(tasks, key=lambda task: -task.size())
        running = {pool.submit(_Worker.cut, place, task): task for place, task in enumerate(ordered)}
        while running:
            finished = wait(running, timeout=0.3, return_when="FIRST_COMPLETED").done
            done = np.frombuffer(progress).reshape(-1, 2).sum(0)
            size, kept = (done - seen).tolist()
            seen = done
            bar.add(size, int(kept))
            for future in finished:
                task = running.pop(future)
                bar.finish(task)
                if reason := future.result():
                    yield task.position, reason


class _Worker:
    """What a process that cuts slides keeps between them."""

    out: Path
    cutters: dict[str, SlideCutter]
    progress: Any
    """Shared by all processes, which write to their own places of it, so none ever waits for one that died."""

    @classmethod
    def start(cls, out: Path, config: PrepareConfig, labels: dict[str, LabelMap], threads: int, progress: Any) -> None:
        """Set up this process. progress: of each slide the bytes done and the patches written, one after the other."""
        cls.out, cls.progress = out, progress
        cls.cutters = {name: SlideCutter(out, config, found, threads=threads) for name, found in labels.items()}

    @classmethod
    def cut(cls, place: int, task: SlideTask) -> str:
        """See `_cut_one`. place: of the slide in `progress`."""
        size = task.size()

        def tick(share: float, kept: int) -> None:
            cls.progress[2 * place] += share * size
            cls.progress[2 * place + 1] += kept

        return _cut_one(cls.out, task, cls.cutters[task.row.laboratory], tick)


class _Bar:
    """Slides done, patches per second and time left; the bar itself counts bytes of slides."""

    def __init__(self, slides: int, done: int, size: int) -> None:
        self.slides, self.done, self.patches, self.size = slides, done, 0, 0.0
        # Drawn from here: a thread of its own would take turns with every patch.
        self.progress = Bars(auto_refresh=False)
        self.task = self.progress.add_task("cutting patches", total=size, note="")
        self.drawn = float("-inf")

    def __enter__(self) -> "_Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()
        self.progress.stop()

    def add(self, size: float, patches: int) -> None:
        """`size` more bytes of slides are done, and so many patches are written."""
        self.patches += patches
        self.size += size
        now = time.monotonic()
        if now - self.drawn >= _REFRESH_S:
            self.drawn = now
            self._draw()

    def _draw(self) -> None:
        elapsed = self.progress.tasks[0].elapsed or 0
        rate = f"  {self.patches / elapsed:.0f} patches/s" if elapsed > 1 else ""
        note = f"slide {self.done}/{self.slides}{rate}"
        self.progress.update(self.task, completed=self.size, note=note, refresh=True)

    def finish(self, task: SlideTask) -> None:
        """A slide is done, or damaged."""
        self.done += 1
