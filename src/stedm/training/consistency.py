"""Learning from unannotated images: what a weakly changed view shows must hold for a strongly changed one."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stedm.config import IGNORE
from stedm.models.segmenter import Segmenter
from stedm.training.augment import cut_mix
from stedm.training.losses import SegmentationLoss

Batch = dict[str, Tensor]
RAMP = 0.3
"""Share of the training over which the weight of the unannotated images rises."""
FEATURE_DROPOUT = 0.5
"""Share of the encoder's channels dropped in the feature-perturbed stream (UniMatch, Yang 2023)."""


def ramp_up(progress: float) -> float:
    """exp(-5 (1 - t)^2) with t rising from 0 to 1 over the first `RAMP` of the training (Tarvainen 2017)."""
    return math.exp(-5 * (1 - min(1.0, progress / RAMP)) ** 2)


@contextmanager
def unremembered(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch, as in training, but its running statistics stay as they are.

    Mixed and strongly changed views are unlike any image that is to be segmented, and must not shape what is used then.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Consistency(nn.Module):
    """A loss on the views of a `ViewBatches` batch: weak and strong (U, 3, H, W), boxes (U, H, W)."""

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, segmenter: Segmenter, batch: Batch, *, progress: float) -> Tensor:
        """The loss, a scalar. progress: share of the training that is done, 0 to 1."""
        raise NotImplementedError


class MeanTeacher(Consistency):
    """The student's probabilities on the strong view approach its averaged copy's on the weak one (Tarvainen 2017).

    The views are mixed with CutMix, as are the teacher's probabilities (French 2020). The average reaches over the last
    `HORIZON` of the training. The teacher is the better network, and the one to keep.
    """

    HORIZON = 0.1

    def __init__(self, segmenter: Segmenter, *, steps: int, weight: float) -> None:
        super().__init__(weight=weight)
        self.decay, self.steps = max(0.0, 1 - 1 / (self.HORIZON * steps)), steps
        self.teacher = copy.deepcopy(segmenter).requires_grad_(False)

    def forward(self, segmenter: Segmenter, batch: Batch, *, progress: float) -> Tensor:
        self.follow(segmenter, step=round(progress * self.steps))
        with torch.no_grad():
            self.teacher.eval()
            target = cut_mix(self.teacher(batch["weak"]).float().softmax(1), batch["boxes"][:, None])
        with unremembered(segmenter):
            student = segmenter(batch["strong"]).float().softmax(1)
        return self.weight * ramp_up(progress) * F.mse_loss(student, target)

    @torch.no_grad()
    def follow(self, segmenter: Segmenter, *, step: int) -> None:
        """Move the teacher towards the student: at first a plain mean, then an exponential one."""
        decay = min(self.decay, step / (step + 1))
        for mine, theirs in zip(self.teacher.state_dict().values(), segmenter.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


class PseudoLabels(Consistency):
    """What the segmenter is sure of on the weak view labels the strong one (FixMatch, Sohn 2020), and the weak one with
    dropped features (UniMatch, Yang 2023).

    confidence: least probability of a pixel's class; the others are ignored, and weigh the loss down by their share.
    """

    def __init__(self, *, confidence: float, weight: float) -> None:
        super().__init__(weight=weight)
        self.confidence = confidence
        self.loss = SegmentationLoss()

    def forward(self, segmenter: Segmenter, batch: Batch, *, progress: float) -> Tensor:
        labels = self.labels(segmenter, batch["weak"])  # (U, H, W)
        with unremembered(segmenter):
            strong = self._against(segmenter(batch["strong"]), cut_mix(labels, batch["boxes"]))
            perturbed = self._against(segmenter(batch["weak"], feature_dropout=FEATURE_DROPOUT), labels)
        return self.weight * ramp_up(progress) * (strong + perturbed) / 2

    @torch.no_grad()
    def labels(self, segmenter: Segmenter, weak: Tensor) -> Tensor:
        """Classes (U, H, W) int64 of the weak view, 255 where the segmenter is not sure."""
        segmenter.eval()
        probability, label = segmenter(weak).float().softmax(1).max(1)
        segmenter.train()
        return torch.where(probability >= self.confidence, label, IGNORE)

    def _against(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits.float(), labels) * (labels != IGNORE).float().mean()
