"""Worker processes: independent stages at the same time, each with its share of the processor's threads.

On a CPU the networks of this project are small, and two processes with one thread each do nearly twice the work of one
process with two threads.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from stedm.processes import process_pool
from stedm.progress import Board


class Job(Protocol):
    """What the scheduler knows of a stage."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def folder(self) -> Path: ...


class Workers:
    """A pool of processes that calls `function` with each job's arguments once everything the job needs is done."""

    def __init__(self, function: Callable[..., Any], *, jobs: int, threads: int, noun: str = "stages") -> None:
        """threads: of the processor, for each process. noun: what the jobs are called on the terminal."""
        self.function, self.jobs, self.threads, self.noun = function, jobs, threads, noun

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        if self.jobs > 1:
            self._pool = self._stack.enter_context(process_pool(self.jobs, _start, (self.threads,)))
            self._warm = [self._pool.submit(_import_networks) for _ in range(self.jobs)]
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def run(
        self, jobs: Sequence[Job], arguments: Mapping[str, tuple[Any, ...]], *, done: Callable[[Any, Any], None]
    ) -> None:
        """Run all jobs, earlier ones first where there is a choice; `done(job, result)` as each ends.

        After an error the jobs under way are completed and kept, no new one starts, and the error is raised.
        """
        waiting, running = list(jobs), dict[Future[Any], Job]()
        error: BaseException | None = None
        with Board(self.noun) as board:
            while running or (waiting and error is None):
                open_names = {job.name for job in [*waiting, *running.values()]}
                for job in [job for job in waiting if not open_names & set(job.needs)]:
                    if error is None and len(running) < self.jobs:
                        waiting.remove(job)
                        running[self._pool.submit(self.function, *arguments[job.name])] = job
                board.show({job.name: job.folder for job in running.values()}, waiting=len(waiting))
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    error = error or future.exception()
                    if future.exception() is None:
                        done(job, future.result())
        if error is not None:
            raise error


def threads_each(jobs: int) -> int:
    """Each of `jobs` processes' share of the processor's threads."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


@contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """Let torch take so many threads of the processor in this block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start(threads: int) -> None:
    """Set up a worker's share of the processor."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _import_networks() -> None:
    """Import while `prepare` still works."""
    import stedm.stages.diffusion
    import stedm.stages.segmentation  # noqa: F401
