"""Worker processes: order, errors and published progress."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import stedm.workers
from stedm.errors import Stopped, UserError
from stedm.processes import process_pool
from stedm.progress import PUBLISHED, WORKER, Bar, Board
from stedm.workers import Workers


@dataclass(frozen=True)
class Job:
    name: str
    needs: tuple[str, ...]
    folder: Path


def note(path: Path, name: str, fail: bool, partner: str = "") -> float:
    """Append start and end to a shared log; between them wait until `partner` has started, a minute at most."""
    if fail:
        raise UserError(f"{name}: no")
    with open(path, "a") as log:
        log.write(f"start {name}\n")
    for _ in range(600):
        if not partner or f"start {partner}\n" in path.read_text():
            break
        time.sleep(0.1)
    with open(path, "a") as log:
        log.write(f"end {name}\n")
    return 0.1


def nothing() -> None:
    """Instead of importing the networks."""


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stedm.workers, "_import_networks", nothing)


def test_a_job_starts_when_all_it_needs_has_ended_and_independent_ones_overlap(tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = [Job("c", ("a", "b"), tmp_path), Job("a", (), tmp_path), Job("b", ("elsewhere",), tmp_path)]
    done = []
    with Workers(note, jobs=2, threads=1) as workers:
        arguments = {"a": (log, "a", False, "b"), "b": (log, "b", False, "a"), "c": (log, "c", False)}
        workers.run(jobs, arguments, done=lambda job, _: done.append(job.name))
    lines = log.read_text().split("\n")
    assert lines.index("start c") > max(lines.index("end a"), lines.index("end b"))
    assert max(lines.index("start a"), lines.index("start b")) < min(lines.index("end a"), lines.index("end b"))
    assert sorted(done) == ["a", "b", "c"] and done[-1] == "c"


def test_after_an_error_nothing_new_starts_and_the_error_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    jobs = [Job(name, ("good",) if name == "last" else (), tmp_path) for name in ("bad", "good", "next", "last")]
    arguments = {job.name: (log, job.name, job.name == "bad", "bad") for job in jobs}
    with pytest.raises(UserError, match="bad: no"), Workers(note, jobs=2, threads=1) as workers:
        submit = workers._pool.submit

        def failed(_: Future[Any]) -> None:
            with open(log, "a") as file:
                file.write("start bad\n")

        def submit_and_note(function: Callable[..., Any], *job: Any) -> Future[Any]:
            """What `good` waits for is noted once the error has arrived here."""
            future = submit(function, *job)
            if job[1] == "bad":
                future.add_done_callback(failed)
            return future

        monkeypatch.setattr(workers._pool, "submit", submit_and_note)
        workers.run(jobs, arguments, done=lambda *_: None)
    assert sorted(log.read_text().splitlines()) == ["end good", "start bad", "start good"]


def test_a_worker_publishes_its_progress_instead_of_drawing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, WORKER, "1")
    with Bar("work", total=10, folder=tmp_path) as bar:
        bar.update(4, unit="steps", note="loss 1")
    assert json.loads((tmp_path / PUBLISHED).read_text()) == [4, 10, "loss 1"]  # too soon for a rate
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_a_bar_is_a_line_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr("rich.console.monotonic", lambda: clock)
    with Bar("training [x]", total=400, completed=200, folder=tmp_path) as bar:
        for step in range(201, 401):
            clock += 1
            bar.update(step, unit="steps", note="loss 0.5")
    bar.__exit__()
    assert capsys.readouterr().err.splitlines() == [
        "training [x]: 65 %, loss 0.5  1.0 steps/s, 0:01:00 so far, 0:02:20 left",
        "training [x]: 80 %, loss 0.5  1.0 steps/s, 0:02:00 so far, 0:01:20 left",
        "training [x]: 95 %, loss 0.5  1.0 steps/s, 0:03:00 so far, 0:00:20 left",
        "training [x]: 100 %, loss 0.5  1.0 steps/s, 0:03:20 so far",
    ]
    with Bar("short", total=1, folder=tmp_path) as bar:
        clock += 1
        bar.update(1, unit="images")
    monkeypatch.setenv(WORKER, "1")
    with Bar("in a worker", total=1, folder=tmp_path) as bar:
        clock += 100
        bar.update(1, unit="images")
    assert capsys.readouterr().err == ""


def test_without_a_terminal_the_bars_of_workers_are_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 1000.0
    monkeypatch.setattr("rich.console.monotonic", lambda: clock)
    (tmp_path / PUBLISHED).parent.mkdir(parents=True)
    with Board() as board:
        for done in range(100, 201):  # of a stage that was continued at 100
            (tmp_path / PUBLISHED).write_text(f'[{done}, 1000, "1.0 steps/s"]')
            board.show({"diffusion": tmp_path}, waiting=2)
            clock += 1
        board.show({}, waiting=2)
    said = capsys.readouterr().err.splitlines()
    assert said == ["diffusion: 16 %, 1.0 steps/s, 0:01:00 so far, 0:14:00 left"]


DAMAGED = [
    b"",
    b"\xff\xfe",
    b"5",
    b"null",
    b'"ab1"',
    b"{}",
    b'{"completed": 1, "total": 2, "note": ""}',
    b"[1, 2]",
    b'["1", 2, ""]',
    b'[1, null, ""]',
    b'[[], {}, ""]',
    b"[1, 2, 3]",
    b'[NaN, 2, ""]',
    b'[1, Infinity, ""]',
    b'[-1, 2, ""]',
    b'[1, 1' + b"0" * 400 + b', ""]',
    b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:20].decode(errors="replace"))
def test_a_damaged_file_of_progress_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PUBLISHED).parent.mkdir(parents=True)
    (tmp_path / PUBLISHED).write_bytes(content)
    with Board() as board:
        board.show({"diffusion": tmp_path}, waiting=0)
        task = board.progress.tasks[1]
        assert (task.completed, task.total, task.fields["note"]) == (0, None, "")
        (tmp_path / PUBLISHED).write_text('[3, 4, "loss 1"]')  # the worker's next one is shown
        board.show({"diffusion": tmp_path}, waiting=0)
        assert (task.completed, task.total, task.fields["note"]) == (3, 4, "loss 1")


def test_names_and_notes_are_text_on_a_terminal_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As markup, `[/x]` would be an error of the thread that draws, and `[x]` would not be seen."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    (tmp_path / PUBLISHED).parent.mkdir(parents=True)
    (tmp_path / PUBLISHED).write_text('[1, 4, "[/b] note"]')
    with Board() as board:
        board.show({"a[/red].svs": tmp_path}, waiting=0)
        with board.progress.console.capture() as drawn:
            board.progress.console.print(board.progress.make_tasks_table(board.progress.tasks), width=200)
    assert "a[/red].svs" in drawn.get() and "[/b] note" in drawn.get()


@pytest.mark.parametrize("dies", [True, False])
def test_a_worker_that_dies_while_another_is_started_is_told_from_other_errors(dies: bool) -> None:
    """Starting a process takes pipes of the pool that are closed when it breaks: `bad value(s) in fds_to_keep`."""
    with pytest.raises(Stopped if dies else ValueError), process_pool(1, nothing, ()) as pool:
        assert pool.submit(int).result() == 0
        if dies:
            with pytest.raises(BrokenProcessPool):
                pool.submit(os._exit, 1).result()
        raise ValueError("bad value(s) in fds_to_keep")
