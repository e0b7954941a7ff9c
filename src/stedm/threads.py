"""One function called with many things by several threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Thing], Result], things: Sequence[Thing], threads: int
) -> Iterator[tuple[Thing, Result]]:
    """Each thing with what the function made of it, in order. After an error, here or of the caller, none is begun."""
    if min(threads, len(things)) < 2:
        yield from ((thing, function(thing)) for thing in things)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from zip(things, pool.map(function, things), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
