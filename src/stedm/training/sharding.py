"""Sharded training: every rank keeps its rows of each weight, gradient, moment and average, and no more (FSDP).

Layers are put together when they are needed, and taken apart again. What leaves the training is whole: what is watched,
a checkpoint, the trained weights.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from stedm.device import best_device
from stedm.models.layers import ResidualBlock, SelfAttention
from stedm.models.style import StyleExtractor
from stedm.ranks import is_first, place


def whole(x: Tensor) -> Tensor:
    """All rows of a sharded tensor, on every rank, which must all ask; any other tensor as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def rows_here(x: Tensor) -> Tensor:
    """The rows (as many as 0) of a sharded tensor that this rank has, in place; any other tensor as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def sharded_like(x: Tensor, other: Tensor) -> Tensor:
    """`x`, whole and the same on every rank, sharded as `other` of the same shape is; nothing is sent."""
    if not isinstance(other, DTensor) or x.shape != other.shape:
        return x
    return distribute_tensor(x, other.device_mesh, other.placements, src_data_rank=None)


def shard(task: nn.Module) -> None:
    """Shard a task's networks among the ranks, in place: what a block of the U-Net has is put together at a time."""
    # The second result of `describe` is a view; nothing writes into it.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    mesh = init_device_mesh(best_device().type, (place().world,))
    task.to(memory_format=torch.contiguous_format)  # of rows; `channels_last` has none
    for network in task.children():
        for module in network.modules():
            if isinstance(module, ResidualBlock | SelfAttention):
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)
        if isinstance(network, StyleExtractor):
            register_fsdp_forward_method(network, "describe")


def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a sharded module into one that is not; called by every rank."""
    weights = target.state_dict()
    for name, value in source.state_dict().items():
        weights[name].copy_(whole(value))


class Sharded(DDPStrategy):
    """Lightning's DDP with sharded parameters in the place of its copies; checkpoints are those of DDP.

    They are read into the whole task, before it is sharded.
    """

    def configure_ddp(self) -> None:
        """Shard the task, after it was restored and before its optimiser is made."""
        shard(self.model)  # type: ignore[arg-type]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Called by every rank; written by the first."""
        super().save_checkpoint(_whole_on_first(checkpoint), filepath, storage_options=storage_options)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Keep this rank's rows of the moments."""
        for optimiser, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            for number, p in zip(numbers, parameters, strict=True):
                state = saved["state"].get(number, {})
                state.update({name: sharded_like(value, p) for name, value in state.items()})
        super().load_optimizer_state_dict(checkpoint)


def _whole_on_first(x: Any) -> Any:
    """`x` with whole tensors on the CPU in the place of sharded ones; without any on the other ranks."""
    if isinstance(x, dict):
        return {key: _whole_on_first(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(_whole_on_first(value) for value in x)
    if not isinstance(x, DTensor):
        return x
    all_rows = whole(x)
    return all_rows.cpu() if is_first() else None


class ShardedAverages(WeightAveraging):
    """The averages of a sharded task, sharded likewise. average: of lists of tensors, in place (torch's swa_utils)."""

    state_key = WeightAveraging.__qualname__
    """In checkpoints, which are those of one that is not sharded."""

    def __init__(self, average: Callable[[Any, Any, Tensor | int], None]) -> None:
        def average_rows(averages: list[Tensor], weights: list[Tensor], number: Tensor | int) -> None:
            average([rows_here(x) for x in averages], [rows_here(x) for x in weights], number)

        super().__init__(multi_avg_fn=average_rows)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The averages were copied, and restored, from a whole task."""
        assert self._average_model is not None
        shard(self._average_model.module)


class Gathered(L.Callback):
    """At the end, puts the trained weights into the task that is not sharded."""

    def __init__(self, task: L.LightningModule) -> None:
        self.task = task

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called by Lightning, after the averages have taken the place of the weights."""
        copy_whole(pl_module, self.task)
