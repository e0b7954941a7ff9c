"""Progress: a bar for each long piece of work; worker processes publish theirs in a file, and the parent shows it.

Where there is no terminal, as in the log of a batch job, lines take the place of bars.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stedm.files import write_text
from stedm.ranks import is_first

WORKER = "STEDM_WORKER"
"""Environment variable: set in worker processes, which must not draw on the terminal."""
PUBLISHED = "training/progress.json"
_LINE_S = 60.0
"""Seconds between two lines of the same bar."""
_RATE_S = 1.0
"""No rate before."""
_SHORT_S = 10.0
"""A bar of less says nothing at its end."""
_MOST = 1e15
"""No work has as many steps, images or bytes."""
Listener = Callable[[float, float, str], None]
"""Called with what is done, what there is, and what is being done."""
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listened(listener: Listener) -> Iterator[None]:
    """Also tell `listener` what the bars of this thread show."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Bars(Progress):
    """Bars on a terminal; elsewhere a line a minute for each: share done, rate and time left."""

    def __init__(self, *, shown: bool = True, auto_refresh: bool = True) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),  # names of slides, and notes read from files
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        drawn = console.is_interactive or console.is_jupyter
        super().__init__(
            *columns, console=console, transient=True, auto_refresh=auto_refresh, disable=not (shown and drawn)
        )
        self._in_lines = shown and not drawn
        self._first = dict[TaskID, float]()  # what was done when the task was first heard of, as after a resume
        self._said_s = dict[TaskID, float]()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See `Progress.update`."""
        task = self._tasks[task_id]
        if task.total is not None:
            self._first.setdefault(task_id, task.completed)
        super().update(task_id, **changes)
        elapsed = task.elapsed or 0.0
        if task_id in self._first and elapsed - self._said_s.get(task_id, 0.0) >= _LINE_S:
            self._said_s[task_id] = elapsed
            self._say(task)

    def stop(self) -> None:
        """See `Progress.stop`."""
        super().stop()
        for task in self.tasks:
            if task.id in self._first and (task.elapsed or 0.0) >= _SHORT_S:
                self._say(task)
        self._first.clear()  # it may be stopped twice

    def _say(self, task: Task) -> None:
        if not self._in_lines:
            return
        elapsed, gained, missing = task.elapsed or 0.0, task.completed - self._first[task.id], task.remaining or 0.0
        words = [f"{task.percentage:.0f} %", task.fields["note"], f"{timedelta(seconds=round(elapsed))} so far"]
        if gained > 0 and missing > 0:
            words.append(f"{timedelta(seconds=round(elapsed * missing / gained))} left")
        line = f"{task.description}: {', '.join(words)}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bar:
    """One progress bar with a note, time spent and time left; drawn here, or published in `folder` by a worker.

    Of several ranks the first one draws.
    """

    def __init__(self, description: str, *, total: float, folder: Path, completed: float = 0) -> None:
        self.folder, self.total, self.first, self.started = folder, total, completed, time.monotonic()
        self.description = description
        self.published = float("-inf")
        self.in_worker = WORKER in os.environ
        self.progress = Bars(shown=not self.in_worker and is_first())
        self.task = self.progress.add_task(description, total=total, completed=completed, note="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, completed: float, *, unit: str, note: str = "") -> None:
        """Show `completed` of the total; the rate is worked out here, as soon as there is one to speak of."""
        now = time.monotonic()
        if now - self.started > _RATE_S:
            note = f"{note}  {(completed - self.first) / (now - self.started):.1f} {unit}/s".strip()
        self.progress.update(self.task, completed=completed, note=note)
        if listener := _LISTENER.get():
            listener(completed, self.total, self.description)
        if self.in_worker and now - self.published > 1:
            self.published = now
            write_text(self.folder / PUBLISHED, json.dumps([completed, self.total, note]))


def published(folder: Path) -> tuple[float, float, str] | None:
    """What a worker has done in `folder`, of how much, and its note; None before it says, and for a damaged file."""
    try:
        found = json.loads((folder / PUBLISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # not published yet, or just finished
    match found:
        case [int() | float() as completed, int() | float() as total, str() as note]:
            return (completed, total, note) if 0 <= completed < _MOST and 0 <= total < _MOST else None
    return None


class Board:
    """The bars of all running workers."""

    def __init__(self, noun: str = "stages") -> None:
        self.noun = noun

    def __enter__(self) -> Self:
        self.progress = Bars()
        self.tasks = {"": self.progress.add_task("", total=None, note="")}
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, running: dict[str, Path], *, waiting: int) -> None:
        """running: stage name -> its folder. A stage without a readable file of progress has a bar without figures."""
        for name in set(self.tasks) - set(running) - {""}:
            self.progress.remove_task(self.tasks.pop(name))
        for name, folder in running.items():
            if name not in self.tasks:
                self.tasks[name] = self.progress.add_task(name, total=None, note="")
            if (found := published(folder)) is not None:
                completed, total, note = found
                self.progress.update(self.tasks[name], completed=completed, total=total, note=note)
        self.progress.update(self.tasks[""], description=f"{waiting} more {self.noun}")
