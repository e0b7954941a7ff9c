"""Flow matching on the straight path (rectified flow; Liu 2023, Lipman 2023).

z_t = (1 - t) z + t e,   e ~ N(0, I)          (data at t = 0, pure noise at t = 1)
v   = dz_t / dt = e - z                       (what the network predicts)
L   = E | v_theta(z_t, t) - v |^2,  t logit-normal (Esser 2024, eq. 19)
"""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(z_t (B, C, h, w), t (B,)) -> (B, C, h, w)."""


def sample_times(batch_size: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Logit-normal times in (0, 1), shape (batch_size,)."""
    return torch.sigmoid(torch.randn(batch_size, generator=generator))


def interpolate(z: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - t) z + t e for z, e (B, C, h, w) and t (B,)."""
    t = t[:, None, None, None]
    return (1 - t) * z + t * e


def flow_matching_loss(velocity: Velocity, z: Tensor, *, t: Tensor, e: Tensor) -> Tensor:
    """Mean squared error between the predicted and the true velocity; a scalar."""
    predicted = velocity(interpolate(z, e, t), t)
    return (predicted.float() - (e - z)).square().mean()
