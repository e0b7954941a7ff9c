"""Segment slides: each by itself, several at a time; a slide that cannot be read is reported and skipped.

Ranks get slides of about the same size in bytes, all in all.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from stedm.data.tables import write_csv
from stedm.errors import Stopped, UserError
from stedm.files import atomic_path, locked, read_json, remove_temporaries
from stedm.models.model_folder import read_config
from stedm.ranks import place, together
from stedm.stages.segment import Outcome, SegmentOptions, outlined, segment_slide, working_folder
from stedm.stages.segment_record import is_record
from stedm.workers import Workers, threads_each

AREAS = "areas.csv"


@dataclass(frozen=True)
class _Job:
    """One slide, as the pool of workers sees it."""

    name: str
    folder: Path
    needs: tuple[str, ...] = ()


def segment_slides(
    slides: Sequence[Path], out: Path, options: SegmentOptions, *, jobs: int = 1, console: Console | None = None
) -> list[Path]:
    """Segment every slide into `out`, and write areas.csv of all that are there; the slides that failed.

    jobs: processes of each rank; with several GPUs they take them in turn.
    """
    classes = read_config(options.model[0]).get("classes")
    if not isinstance(classes, list):
        raise UserError(f"{options.model[0]}: config.json names no classes; name the folder of a segmenter")
    outlined(options, classes)  # a mistake there is not the slides'
    world = place().world
    try:
        failed = together(_segment_hand, hands(slides, world), out, options, jobs, console if world == 1 else None)
    finally:
        if out.is_dir():
            write_areas(out)
    return [path for those in failed for path in those]


def hands(slides: Sequence[Path], world: int) -> list[list[Path]]:
    """The slides of each rank, in the order given: the largest files first, each to whoever has least."""
    sizes = {path: path.stat().st_size if path.exists() else 0 for path in slides}
    of_rank, loads = dict[Path, int](), [0] * world
    for path in sorted(slides, key=lambda path: -sizes[path]):
        of_rank[path] = loads.index(min(loads))
        loads[of_rank[path]] += sizes[path] + 1
    return [[path for path in slides if of_rank[path] == rank] for rank in range(world)]


def _segment_hand(
    dealt: Sequence[Sequence[Path]], out: Path, options: SegmentOptions, jobs: int, console: Console | None
) -> list[Path]:
    """Segment this rank's slides; those that failed."""
    slides, console = dealt[place().rank], console or Console(stderr=True)
    failed = []

    def done(path: Path, outcome: Outcome, seconds: float) -> None:
        failed.extend([path] if outcome.error else [])
        style = "red" if outcome.error else "yellow" if outcome.warning else None
        words = outcome.error or (f"{seconds:7.1f} s  {outcome.summary}" if seconds else "unchanged")
        console.print(
            f"{path.name:<44} {words}{outcome.warning}", style=style, markup=False, highlight=False, soft_wrap=True
        )

    if jobs == 1:
        for path in slides:
            done(path, *attempt(path, out, options))
    else:
        of_job = {_Job(path.stem, working_folder(path, out)): path for path in slides}
        arguments = {job.name: (path, out, options) for job, path in of_job.items()}
        with Workers(attempt, jobs=jobs, threads=threads_each(jobs), noun="slides") as workers:
            workers.run(list(of_job), arguments, done=lambda job, result: done(of_job[job], *result))
    return failed


def attempt(path: Path, out: Path, options: SegmentOptions) -> tuple[Outcome, float]:
    """Segment one slide, here or in a worker process; what became of it, and the seconds it took."""
    started = time.perf_counter()
    try:
        outcome = segment_slide(path, out, options)
    except Stopped:
        raise  # no other slide would fare better
    except UserError as error:
        outcome = Outcome(error=str(error))
    except Exception as error:  # a broken file can fail in many ways inside libraries; the other slides must go on
        outcome = Outcome(error=f"{path}: {type(error).__name__}: {error}")
    return outcome, 0.0 if outcome.unchanged else time.perf_counter() - started


def write_areas(out: Path) -> None:
    """Write areas.csv from the records in `out`: slide, class, area_mm2 and its share of what was predicted.

    A record is a NAME.json of ours with NAME.tif beside it; other files are left alone.
    One process after the other: the last one has seen the records of all.
    """
    lock = out / ".areas.lock"
    with locked(lock, folder=out, fix="choose another folder with --out", busy=None):
        remove_temporaries(out, f".{Path(AREAS).stem}.*")
        _write_areas(out)
        lock.unlink()


def _write_areas(out: Path) -> None:
    rows = []
    for path in sorted(path for path in out.glob("*.json") if path.with_suffix(".tif").exists()):
        record = _record(path)
        if is_record(record):
            total = sum(record["area_mm2"].values())
            for name, area in record["area_mm2"].items():
                names = (text.encode("utf-8", "backslashreplace").decode() for text in (record["slide"], name))
                rows.append((*names, area, area / total if total else 0.0))
    if rows:
        with atomic_path(out / AREAS) as temporary:
            write_csv(pd.DataFrame(rows, columns=["slide", "class", "area_mm2", "share"]), temporary)


def _record(path: Path) -> Any:
    """What a JSON file holds; None, and a word about it, for a file that cannot be read, which may be anybody's."""
    try:
        return read_json(path)
    except UserError as error:
        Console(stderr=True).print(f"not in {AREAS}: {error}", style="yellow", markup=False, soft_wrap=True)
        return None
