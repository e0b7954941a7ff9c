"""The training loop: Lightning with step-addressed batches, atomic checkpoints, resume, progress and metrics."""

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stedm.device import best_device, lightning_precision
from stedm.files import atomic_path
from stedm.interruption import unswallowed
from stedm.models.style import TimmStyleEncoder
from stedm.progress import Bar
from stedm.ranks import everyones, is_first, place
from stedm.training.divergence import FiniteWeights, check_validation
from stedm.training.faults import explained
from stedm.training.loader import BatchOfStep, Loader
from stedm.training.log import Observation, TrainingLog, UnwrittenLog
from stedm.training.sharding import Gathered, Sharded, ShardedAverages, copy_whole
from stedm.training.tasks import Task


class Watch(Protocol):
    """Looks at a task at the end of every stretch: with the averaged weights, without gradients, in `eval` mode.

    What it returns must depend on the weights and the step alone, or a resumed run would not equal an uninterrupted
    one. It may draw random numbers: those of the training are kept from it.
    """

    def __call__(self, task: Any, step: int) -> Observation: ...


def _at_border(trainer: L.Trainer, stretch: int) -> bool:
    """Whether a stretch is complete: Lightning ends the first epoch after a resume early."""
    return trainer.global_step % stretch == 0 or trainer.global_step >= trainer.max_steps


class _Progress(L.Callback):
    """A progress bar with steps per second, time left and the loss."""

    def __init__(self, description: str, log: TrainingLog, every: int) -> None:
        self.description, self.training_log, self.every = description, log, every
        self.started = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.training_log.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.training_log.rows = state_dict["rows"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total, completed = trainer.max_steps, trainer.global_step
        self.training_log.open(completed)
        self.bar = Bar(self.description, total=total, completed=completed, folder=self.training_log.folder)
        self.bar.__enter__()
        self.started = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        step, loss = trainer.global_step, float(pl_module.latest_loss)
        if step % self.every == 0 or step == trainer.max_steps:
            self.training_log.record(step, Observation({"loss": loss}))
            self.bar.update(step, unit="steps", note=f"loss {loss:.3f}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def _end(self) -> None:
        if self.started:
            self.bar.__exit__()
            self.training_log.close()


class _Watching(L.Callback):
    """Let `watch` look at the task at the end of every stretch, and record what it saw."""

    def __init__(self, watch: Watch, log: TrainingLog, stretch: int, *, shown: Task | None = None) -> None:
        """`shown`: the whole task that `watch` looks at in the place of a sharded one."""
        self.watch, self.training_log, self.stretch, self.shown = watch, log, stretch, shown
        self.last_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_step = state_dict["last_step"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if _at_border(trainer, self.stretch) and step > self.last_step:
            with _averaged_weights(trainer, pl_module), _forked_rng(pl_module.device), torch.no_grad():
                if self.shown is not None:
                    copy_whole(pl_module, self.shown.to(pl_module.device))
                seen = self.watch((self.shown or pl_module).eval(), step)
                check_validation(seen.values, step=step)
                self.training_log.record(step, seen)
                pl_module.train()
                if self.shown is not None:
                    self.shown.cpu()
            self.last_step = step


def _forked_rng(device: torch.device) -> Any:
    """Random numbers drawn here leave no trace; only this process's GPU, of however many it sees, has a part."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def _averaged_weights(trainer: L.Trainer, task: L.LightningModule) -> Iterator[None]:
    """Exchange the task's weights for their averages, where there are any, and back: copies, bit for bit."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for average in averages:
        average.on_validation_epoch_start(trainer, task)
    try:
        yield
    finally:
        for average in averages:
            average.on_validation_epoch_end(trainer, task)


class _Checkpoint(L.Callback):
    """Write the log, and save everything needed to resume, at the end of every stretch, atomically."""

    def __init__(self, path: Path, log: TrainingLog, stretch: int) -> None:
        self.path, self.training_log, self.stretch = path, log, stretch
        self.last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last_step = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not _at_border(trainer, self.stretch):
            return
        self.training_log.write()
        if trainer.global_step < trainer.max_steps:
            with atomic_path(self.path) if trainer.is_global_zero else nullcontext(self.path) as path:
                trainer.save_checkpoint(path)  # called by every rank, written by the first
            self.last_step = trainer.global_step


class BestByValidation(L.Callback):
    """After every stretch, score the task; at the end, put the best weights back into it.

    score: (task) -> value, higher is better; never computed on test patients. name: its column in metrics.csv.
    """

    def __init__(self, score: Callable[[Any], float], *, name: str) -> None:
        self.score, self.name, self.best, self.weights = score, name, float("-inf"), {}
        self.stretch = 1  # steps; set by `fit`, as is the log
        self.training_log: TrainingLog | None = None
        self.history: list[tuple[int, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "weights": self.weights, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.weights = state_dict["best"], state_dict["weights"]
        self.history = [tuple(row) for row in state_dict["history"]]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _at_border(trainer, self.stretch) and trainer.global_step not in dict(self.history):
            value = self.score(pl_module)
            pl_module.train()
            self.history.append((trainer.global_step, value))
            if self.training_log is not None:
                self.training_log.record(trainer.global_step, Observation({self.name: value}))
            if value > self.best or not self.weights:  # without any score (NaN) the first weights are better than none
                self.best = value
                self.weights = {k: v.detach().cpu().clone() for k, v in pl_module.state_dict().items()}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.load_state_dict(self.weights)


def fit(
    task: Task,
    batch_of_step: BatchOfStep,
    *,
    folder: Path,
    description: str,
    ema_decay: float | None = None,
    best: BestByValidation | None = None,
    watch: Watch | None = None,
    stretches: int = 8,
    sharded: bool = False,
) -> Task:
    """Train `task` for `task.steps` steps; continue from `folder/training/last.ckpt` when it is there.

    folder: receives what a TrainingLog writes, and training/ (only needed to resume). ema_decay: when given, the task
    ends with the exponential moving average of its weights. stretches: how often the state is saved, and `watch`
    called. Ranks train a task that is `shared` together: each takes its share of the rows of a batch, and all end with
    the same weights. sharded: meanwhile, each has its rows of the weights only. Raises UserError when loss, gradient,
    weights or validation are not finite: nothing is made of them, and the last good state stays.
    """
    _quiet()
    task.to(memory_format=torch.channels_last)
    stretch = max(1, -(-task.steps // stretches))
    last = folder / "training" / "last.ckpt"
    log = TrainingLog(folder) if is_first() or not task.shared else UnwrittenLog(folder)
    progress = _Progress(description, log, max(1, task.steps // 100))
    sharded = sharded and task.shared and place().world > 1
    trained = copy.deepcopy(task) if sharded else task
    callbacks: list[L.Callback] = [FiniteWeights(), progress]
    if ema_decay is not None:
        average = get_ema_multi_avg_fn(ema_decay)
        on = training_device()  # Lightning copies the task before it moves it there
        callbacks.append(ShardedAverages(average) if sharded else WeightAveraging(on, multi_avg_fn=average))
    if best is not None:
        best.stretch, best.training_log = stretch, log
        callbacks.append(best)
    if watch is not None:
        callbacks.append(_Watching(watch, log, stretch, shown=task if sharded else None))
    if sharded:
        callbacks.append(Gathered(task))
    checkpoint = _Checkpoint(last, log, stretch)
    trainer = _trainer(task.steps, [*callbacks, checkpoint], **_devices(task, sharded=sharded))
    loader = Loader(batch_of_step, steps=task.steps, stretch=stretch)
    resumes = last.exists()
    if task.shared:  # a network file system may show it to one machine before another
        resumes = everyones(resumes)[0]
    with unswallowed(), explained(description, task, last, lambda: checkpoint.last_step if progress.started else None):
        trainer.fit(trained, datamodule=loader, ckpt_path=last if resumes else None, weights_only=True)
    return task.cpu().eval()  # type: ignore[return-value]


def training_device() -> torch.device:
    """Of this process, a rank or alone."""
    device = best_device()
    return torch.device("cuda", place().local_rank) if device.type == "cuda" else device


def _devices(task: Task, *, sharded: bool) -> dict[str, Any]:
    """Lightning's words for this process's device alone, or for every rank's."""
    here = place()
    if here.world == 1 or not task.shared:
        alone = [here.local_rank] if best_device().type == "cuda" else 1
        return {"devices": alone, "plugins": [LightningEnvironment()]}
    return {
        "devices": here.local_world,
        "num_nodes": here.world // here.local_world,
        # Some backbones have layers that their features do not depend on.
        "strategy": Sharded() if sharded else DDPStrategy(find_unused_parameters=_has_backbone(task)),
        "plugins": [TorchElasticEnvironment()],
    }


def _has_backbone(task: Task) -> bool:
    return any(isinstance(part, TimmStyleEncoder) and part.trainable for part in task.modules())


def _trainer(steps: int, callbacks: list[L.Callback], **devices: Any) -> L.Trainer:
    """The project's precision, and nothing written or printed but by the callbacks."""
    return L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="gpu" if best_device().type == "cuda" else "cpu",
        **devices,
        use_distributed_sampler=False,
        precision=lightning_precision(best_device()),  # type: ignore[arg-type]
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
    )


def _quiet() -> None:
    """Lightning's hints are for its own users."""
    os.environ.setdefault("SUPPRESS_LIGHTNING_TIPS", "1")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
