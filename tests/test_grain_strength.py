"""How much grain a generator adds is read off training images."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stedm.models.autoencoder import FirstStage
from stedm.stages.grain import least_distance


class Smoothing(FirstStage):
    """A first stage that loses what is finer than 2 x 2 pixels, or nothing."""

    def __init__(self, lost: bool) -> None:
        torch.nn.Module.__init__(self)
        self.lost = lost

    def encode(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1) if self.lost else x

    def decode(self, z: Tensor) -> Tensor:
        return z


def noisy_sets() -> list[np.ndarray]:
    """Flat images of three patients, each with its own colour and white noise that the colours do not share."""
    rng = np.random.default_rng(0)
    colours = [(200, 120, 160), (150, 100, 190), (220, 190, 90)]
    return [np.clip(rng.normal(colour, 9, (4, 64, 64, 3)), 0, 255).astype(np.uint8) for colour in colours]


@pytest.mark.parametrize(("lost", "strength"), [(True, 1.0), (False, 0.0)])
def test_grain_is_added_where_the_first_stage_loses_it_and_only_there(lost: bool, strength: float) -> None:
    assert least_distance(Smoothing(lost), noisy_sets()) == strength
