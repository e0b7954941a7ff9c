"""Are the conditions used? The flow-matching loss on images the generator never saw, with right and wrong conditions.

z, noise and times stay the same and only the condition changes, so that the losses of an image are paired and a few
images are enough. A condition whose exchange does not cost anything is ignored, whatever the pictures look like.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stedm.diffusion.flow import interpolate

ConditionalVelocity = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""v(z_t (B, C, h, w), t (B,), layout (B, H, W), style (B, K, d)) -> as z_t; None stands for the null condition."""

TIMES = (0.5, 0.9)
"""Where the loss is taken: the middle, where most training happens, and where a wrong condition costs most."""

LEAST_GAIN = 0.005
"""A share of the loss that a wrong condition has to add: what is less may be steady and yet nothing to see."""


@dataclass(frozen=True)
class ValidationBatch:
    """Images of validation patients, encoded, with their own conditions and those of others.

    z, e (n, C, h, w): latents and noise. layout (n, H, W). other_layout (n,): rows of another image's layout, from
    `other_rows`. other_style (n,): rows of another patient's style, from `other_patient_rows`; empty for no other.
    """

    z: Tensor
    e: Tensor
    layout: Tensor
    other_layout: Tensor
    other_style: Tensor

    def to(self, device: torch.device) -> "ValidationBatch":
        """The same batch on another device."""
        return ValidationBatch(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True)
class Validation:
    """Mean losses, and what it costs to exchange a condition; NaN where there is nothing to exchange it with."""

    loss: float
    """Each image's own layout and style."""
    loss_other_style: float
    loss_other_layout: float
    loss_null: float
    """Neither layout nor style."""
    style_gain: float
    """How much worse the loss becomes with another patient's style, as a share of the loss."""
    style_gain_se: float
    """Standard error over images; too small where the images of a patient are alike and the patients are few."""
    layout_gain: float
    layout_gain_se: float
    ignored: tuple[str, ...]
    """`style`, `layout`: whose gain is not above zero by more than two standard errors, or below `LEAST_GAIN`."""


def other_rows(n: int) -> Tensor:
    """For each of n images the row of another one, as far away as possible, (n,); empty for fewer than two images."""
    return torch.arange(n).roll(n // 2) if n > 1 else torch.empty(0, dtype=torch.long)


def other_patient_rows(patients: Sequence[str]) -> Tensor:
    """For each image the row of an image of another patient, (n,), all other patients taking turns; empty for one."""
    names = sorted(set(patients))
    rows = {name: [i for i, patient in enumerate(patients) if patient == name] for name in names}
    if len(names) < 2:
        return torch.empty(0, dtype=torch.long)
    others = torch.zeros(len(patients), dtype=torch.long)
    for p, name in enumerate(names):
        for k, i in enumerate(rows[name]):
            lender = rows[names[(p + 1 + k % (len(names) - 1)) % len(names)]]
            others[i] = lender[k % len(lender)]
    return others


@torch.no_grad()
def validate(
    velocity: ConditionalVelocity, batch: ValidationBatch, *, style: Tensor, times: Sequence[float] = TIMES
) -> Validation:
    """Paired losses of one model on one batch.

    style (n, K, d): the styles of the images, as this model's style extractor gives them. times: in (0, 1).
    """

    def losses(layout: Tensor | None, style: Tensor | None) -> Tensor:
        return _image_losses(velocity, batch, layout=layout, style=style, times=times)

    own = losses(batch.layout, style)
    nothing = own[:0]
    other_style = losses(batch.layout, style[batch.other_style]) if len(batch.other_style) else nothing
    other_layout = losses(batch.layout[batch.other_layout], style) if len(batch.other_layout) else nothing
    gains = {"style": _gain(own, other_style), "layout": _gain(own, other_layout)}
    return Validation(
        loss=own.mean().item(),
        loss_other_style=other_style.mean().item(),
        loss_other_layout=other_layout.mean().item(),
        loss_null=losses(None, None).mean().item(),
        style_gain=gains["style"][0],
        style_gain_se=gains["style"][1],
        layout_gain=gains["layout"][0],
        layout_gain_se=gains["layout"][1],
        # A gain that is NaN is not known.
        ignored=tuple(name for name, (gain, error) in gains.items() if gain <= max(2 * error, LEAST_GAIN)),
    )


def _image_losses(
    velocity: ConditionalVelocity,
    batch: ValidationBatch,
    *,
    layout: Tensor | None,
    style: Tensor | None,
    times: Sequence[float],
) -> Tensor:
    """Mean squared error of the velocity for each image, over the times, (n,) in double precision on the CPU."""
    z, e = batch.z, batch.e
    total = torch.zeros(len(z), dtype=torch.float64)
    for time in times:
        t = torch.full((len(z),), time, device=z.device)
        predicted = velocity(interpolate(z, e, t), t, layout, style)  # (n, C, h, w)
        total += (predicted.float() - (e - z)).square().mean((1, 2, 3)).double().cpu()
    return total / len(times)


def _gain(own: Tensor, other: Tensor) -> tuple[float, float]:
    """mean(other) / mean(own) - 1 and its standard error over images: paired differences, ratio linearised."""
    n = len(other)
    if n < 2:
        return math.nan, math.nan
    gain = other.mean() / own.mean() - 1
    residual = (other - own) - gain * own  # (n,), mean 0
    error = (residual.square().sum() / (n - 1) / n).sqrt() / own.mean()
    return gain.item(), error.item()
