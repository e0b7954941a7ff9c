"""Being stopped from outside: SIGTERM, as schedulers send it before they kill, ends a command as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(SystemExit):
    """SIGTERM arrived."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the block when SIGTERM arrives; without effect in threads that are not the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what is being cleaned up shall end
    raise Terminated(128 + number)


@contextmanager
def unswallowed() -> Iterator[None]:
    """Undo what Lightning makes of an interruption in the block: a plain SystemExit."""
    try:
        yield
    except Terminated:
        raise
    except SystemExit as error:
        interruption = error.__context__
        raise (interruption if isinstance(interruption, KeyboardInterrupt) else Terminated(143)) from None
