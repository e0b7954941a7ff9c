"""The loader: batches by step number, on a GPU made some steps ahead in threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import lightning as L
import torch

from stedm.device import best_device
from stedm.training.consistency import Batch

BatchOfStep = Callable[[int], Batch]
"""The batch of a step, a pure function of the step: what makes a resumed run equal an uninterrupted one.

Where ranks train together, this rank's share of its rows.
"""


def made_ahead() -> int:
    """How many batches are made while one is worked at, each by a thread of its own: a CPU has no time to spare."""
    return 3 if best_device().type == "cuda" else 0


class Batches:
    """The batches of steps start, start + 1, ..., stop - 1, in that order."""

    def __init__(self, batch_of_step: BatchOfStep, start: int, stop: int, *, ahead: int) -> None:
        self.batch_of_step, self.steps, self.ahead = batch_of_step, range(start, stop), ahead

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        return self._from_threads() if self.ahead else map(self.batch_of_step, self.steps)

    def _from_threads(self) -> Iterator[Batch]:
        waiting = deque[Future[Batch]]()
        make = _on_same_gpu(self.batch_of_step)
        with ThreadPoolExecutor(self.ahead) as pool:
            for step in self.steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class Loader(L.LightningDataModule):
    """Each Lightning epoch is one stretch of steps between two checkpoints."""

    def __init__(self, batch_of_step: BatchOfStep, *, steps: int, stretch: int) -> None:
        super().__init__()
        self.batch_of_step, self.steps, self.stretch = batch_of_step, steps, stretch

    def train_dataloader(self) -> Batches:
        start = self.trainer.global_step if self.trainer else 0
        stop = min((start // self.stretch + 1) * self.stretch, self.steps)
        return Batches(self.batch_of_step, start, stop, ahead=made_ahead())


def _on_same_gpu(batch_of_step: BatchOfStep) -> BatchOfStep:
    """For other threads, which would use the first GPU, whichever this one uses."""
    if best_device().type != "cuda":
        return batch_of_step
    number = torch.cuda.current_device()

    def make(step: int) -> Batch:
        with torch.cuda.device(number):
            return batch_of_step(step)

    return make
