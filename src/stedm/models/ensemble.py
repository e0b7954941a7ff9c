"""Several segmenters as one: the mean of their probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from stedm.errors import UserError
from stedm.models.segmenter import Segmenter


class Ensemble:
    """Segmenters, one or more, of the same classes and resolution."""

    def __init__(self, members: Sequence[Segmenter]) -> None:
        first = members[0]
        self.members = list(members)
        self.classes, self.mpp, self.patch_px, self.colours = first.classes, first.mpp, first.patch_px, first.colours
        self.multiple_px = max(member.multiple_px for member in members)

    @classmethod
    def from_pretrained(cls, folders: Sequence[str | Path]) -> Self:
        """Load segmenters from their folders. Raises UserError where one is missing or differs in classes or mpp."""
        members = [Segmenter.from_pretrained(folder) for folder in folders]
        for folder, member in zip(folders, members, strict=True):
            if (member.classes, member.mpp) != (members[0].classes, members[0].mpp):
                raise UserError(f"{folder}: other classes or another mpp than {folders[0]}; name one of them")
        return cls(members)

    def to(self, device: torch.device) -> Self:
        """Move every member."""
        self.members = [member.to(device) for member in self.members]
        return self

    def probabilities(self, images: NDArray[np.uint8], *, views: int = 1) -> NDArray[np.float32]:
        """Images (n, H, W, 3) uint8, H and W multiples of `multiple_px` -> class probabilities (n, N, H, W).

        views: as of `Segmenter.probabilities`, of each member.
        """
        total = self.members[0].probabilities(images, views=views)
        for member in self.members[1:]:
            total += member.probabilities(images, views=views)
        return total / np.float32(len(self.members))
