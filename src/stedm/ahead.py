"""What a GPU would wait for: results of a function, made some items ahead in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from stedm.device import best_device

Item, Result = TypeVar("Item"), TypeVar("Result")


def made_ahead() -> int:
    """How many results are made while one is worked at, each by a thread of its own: a CPU has no time to spare."""
    return 3 if best_device().type == "cuda" else 0


def results(function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int) -> Iterator[Result]:
    """The results of a pure function, in the order of the items; never more than `ahead` of them wait."""
    return _from_threads(_on_same_gpu(function), items, ahead) if ahead else map(function, items)


def _from_threads(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    waiting = deque[Future[Result]]()
    with ThreadPoolExecutor(ahead) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _on_same_gpu(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """For other threads, which would use the first GPU, whichever this one uses."""
    if best_device().type != "cuda":
        return function
    number = torch.cuda.current_device()

    def on_it(item: Item) -> Result:
        with torch.cuda.device(number):
            return function(item)

    return on_it
