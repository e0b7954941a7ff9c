"""What stops a training, in words: a divergence, or a checkpoint that cannot be continued from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from stedm.errors import SharedError, UserError
from stedm.files import reason_of
from stedm.models.tensor_file import refuse_packed
from stedm.training.divergence import Diverged
from stedm.training.tasks import Task


@contextmanager
def explained(description: str, task: Task, last: Path, saved_step: Callable[[], int | None]) -> Iterator[None]:
    """Raise UserError for a divergence in the block, and for a checkpoint `last` that it cannot continue from.

    saved_step: the step that was saved last; None as long as the training has not started.
    """
    kind = SharedError if task.shared else UserError
    try:
        if last.exists():
            refuse_packed(last)
        yield
    except Diverged as error:
        kept = f"the state of step {saved_step()} stays in {last}" if last.exists() else "no state was saved yet"
        fix = f"lower {task.section}.learning_rate (now {task.learning_rate:g}) and run again"
        raise kind(f"{description}: {error}; {kept}; {fix}") from None
    except (UserError, torch.OutOfMemoryError, torch.distributed.DistError):  # no fault of the checkpoint's
        raise
    except Exception as error:
        if not last.exists() or saved_step() is not None:
            raise
        raise kind(
            f"{last}: no training to continue ({reason_of(error)}); remove {last.parent}, and it starts anew"
        ) from error
