"""Progress: a bar for each long piece of work; worker processes publish theirs in a file, and the parent shows it."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stedm.files import write_text
from stedm.ranks import is_first

WORKER = "STEDM_WORKER"
"""Environment variable: set in worker processes, which must not draw on the terminal."""
PUBLISHED = "training/progress.json"
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


class Bar:
    """One progress bar with a note, time spent and time left; drawn here, or published in `folder` by a worker.

    Of several ranks the first one draws.
    """

    def __init__(self, description: str, *, total: float, folder: Path, completed: float = 0) -> None:
        self.folder, self.total, self.first, self.started = folder, total, completed, time.monotonic()
        self.description = description
        self.published = float("-inf")
        self.in_worker = WORKER in os.environ
        self.progress = _bars(disable=self.in_worker or not is_first())
        self.task = self.progress.add_task(description, total=total, completed=completed, note="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, completed: float, *, unit: str, note: str = "") -> None:
        """Show `completed` of the total; the rate is worked out here."""
        now = time.monotonic()
        rate = (completed - self.first) / max(now - self.started, 1e-9)
        note = f"{note}  {rate:.1f} {unit}/s".strip()
        self.progress.update(self.task, completed=completed, note=note)
        if listener := _LISTENER.get():
            listener(completed, self.total, self.description)
        if self.in_worker and now - self.published > 1:
            self.published = now
            write_text(self.folder / PUBLISHED, json.dumps([completed, self.total, note]))


class Board:
    """The bars of all running workers."""

    def __init__(self, noun: str = "stages") -> None:
        self.noun = noun

    def __enter__(self) -> Self:
        self.progress = _bars(disable=False)
        self.tasks = {"": self.progress.add_task("", total=None, note="")}
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, running: dict[str, Path], *, waiting: int) -> None:
        """running: stage name -> its folder."""
        for name in set(self.tasks) - set(running) - {""}:
            self.progress.remove_task(self.tasks.pop(name))
        for name, folder in running.items():
            if name not in self.tasks:
                self.tasks[name] = self.progress.add_task(name, total=None, note="")
            try:
                completed, total, note = json.loads((folder / PUBLISHED).read_text())
                self.progress.update(self.tasks[name], completed=completed, total=total, note=note)
            except (OSError, ValueError):
                continue  # not published yet, or just finished
        self.progress.update(self.tasks[""], description=f"{waiting} more {self.noun}")


def _bars(*, disable: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=disable)
