"""The loader: batches by step number, on a GPU made some steps ahead in threads."""

from collections.abc import Callable, Iterator

import lightning as L

from stedm.ahead import made_ahead, results
from stedm.training.consistency import Batch

BatchOfStep = Callable[[int], Batch]
"""The batch of a step, a pure function of the step: what makes a resumed run equal an uninterrupted one.

Where ranks train together, this rank's share of its rows.
"""


class Batches:
    """The batches of steps start, start + 1, ..., stop - 1, in that order."""

    def __init__(self, batch_of_step: BatchOfStep, start: int, stop: int, *, ahead: int) -> None:
        self.batch_of_step, self.steps, self.ahead = batch_of_step, range(start, stop), ahead

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        return results(self.batch_of_step, self.steps, ahead=self.ahead)


class Loader(L.LightningDataModule):
    """Each Lightning epoch is one stretch of steps between two checkpoints."""

    def __init__(self, batch_of_step: BatchOfStep, *, steps: int, stretch: int) -> None:
        super().__init__()
        self.batch_of_step, self.steps, self.stretch = batch_of_step, steps, stretch

    def train_dataloader(self) -> Batches:
        start = self.trainer.global_step if self.trainer else 0
        stop = min((start // self.stretch + 1) * self.stretch, self.steps)
        return Batches(self.batch_of_step, start, stop, ahead=made_ahead())
