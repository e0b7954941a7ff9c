"""Worker processes that end with their parent and leave the terminal to it."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from stedm import ranks
from stedm.errors import Stopped
from stedm.progress import WORKER

_PR_SET_PDEATHSIG = 1
_GRACE_S = 0.5
"""A SIGTERM to all of a job's processes may reach a worker before it reaches this one."""


@contextmanager
def process_pool(jobs: int, start: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes, each set up by `start(*arguments)`; after an error, it kills what is under way.

    Raises Stopped when one of them dies, whatever the pool was asked for at that moment.
    """
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _started, (os.getpid(), start, arguments))
    try:
        yield pool
    except BaseException as error:
        died = _died(error, pool)
        for process in active_children():
            process.kill()
        if not died:
            raise
        time.sleep(_GRACE_S)
        raise Stopped("a worker process died (out of memory?); try --jobs 1; the same command continues") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _died(error: BaseException, pool: ProcessPoolExecutor) -> bool:
    """Whether a worker's death is behind an error; what starts another one just then fails with another error."""
    if isinstance(error, OSError | ValueError):
        try:
            pool.submit(int)
        except BrokenProcessPool:
            return True
    return isinstance(error, BrokenProcessPool)


def _started(parent: int, start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """No progress bars of its own, and no life after its parent's.

    A worker that outlived a killed parent would write into a folder where the next run already works.
    """
    os.environ[WORKER] = "1"
    ranks.leave()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    start(*arguments)
