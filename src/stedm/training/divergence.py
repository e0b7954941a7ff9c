"""Divergence: a loss, gradient or weight that is not finite ends a training before anything is made of it."""

import math
from collections.abc import Mapping

import lightning as L
import torch

from stedm.training.sharding import whole


class Diverged(ArithmeticError):
    """Something is not finite; the message says what, and at which step."""


def check_loss(loss: float, *, step: int) -> None:
    """Raise Diverged unless `loss` is finite."""
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} at step {step}")


def check_gradient(norm: float, *, step: int) -> None:
    """Raise Diverged unless the gradient's norm is finite: the weights must not take such a step."""
    if not math.isfinite(norm):
        raise Diverged(f"the gradient's norm is {norm} at step {step}")


def check_weights(module: torch.nn.Module, *, step: int) -> None:
    """Raise Diverged, naming the first of them, unless all weights and buffers are finite."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not whole(tensor).isfinite().all():
            raise Diverged(f"the weights {name} are not finite after step {step}")


def check_validation(values: Mapping[str, float], *, step: int) -> None:
    """Raise Diverged for a validation loss that is not finite, or a signal-to-noise ratio that is no number.

    Others may be NaN: not measured.
    """
    if not math.isfinite(values.get("val_loss", 0.0)) or math.isnan(values.get("val_psnr", 0.0)):
        found = ", ".join(f"{name} {value}" for name, value in values.items())
        raise Diverged(f"validation is not finite after step {step} ({found})")


class FiniteWeights(L.Callback):
    """Looks at the weights at the end of every epoch, before they are validated, averaged or saved."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called by Lightning."""
        check_weights(pl_module, step=trainer.global_step)
