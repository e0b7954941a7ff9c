"""Augmentation on the batch: the same geometric change for image and label map, stain changes in optical density."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Unit optical-density vectors of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001), rows.
STAINS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


@dataclass
class StainChange:
    """An affine map in optical density, one per row: OD' = OD @ matrix + offset.

    matrix (n, 3, 3), offset (n, 3). The same change can be applied to an image and to its whole style set.
    """

    matrix: Tensor
    offset: Tensor

    @classmethod
    def identity(cls, n: int) -> Self:
        """n changes that change nothing."""
        return cls(torch.eye(3).expand(n, 3, 3), torch.zeros(n, 3))

    @classmethod
    def draw(cls, n: int, strength: float, rng: np.random.Generator) -> Self:
        """n random changes: stain amounts scaled, stain hues turned, the white point shifted (after Tellez 2019)."""
        amount = torch.from_numpy(np.exp(rng.normal(0, 0.35 * strength, (n, 3)))).float()
        hue = torch.from_numpy(rng.normal(0, 0.12 * strength, (n, 3, 3))).float()
        offset = torch.from_numpy(rng.normal(0, 0.04 * strength, (n, 3))).float()
        unmix = torch.linalg.inv(STAINS)
        return cls(torch.einsum("ij,nj,njk->nik", unmix, amount, STAINS + hue), offset)

    def __getitem__(self, rows: Tensor) -> "StainChange":
        return StainChange(self.matrix[rows], self.offset[rows])

    def apply(self, images: Tensor) -> Tensor:
        """images (n, 3, H, W) or sets (n, N, 3, H, W) in [-1, 1] -> the same shape and range."""
        od = -((images + 1) / 2).clamp_min(1 / 255).log()
        changed = torch.einsum("n...chw,ncd->n...dhw", od, self.matrix.to(od))
        shape = (len(images), *[1] * (images.ndim - 4), 3, 1, 1)
        return (-(changed + self.offset.to(od).view(shape))).exp().clamp(0, 1) * 2 - 1


def dihedral(x: Tensor, code: int) -> Tensor:
    """One of the eight symmetries of the square, code 0 to 7, on the last two dimensions."""
    x = x.flip(-1) if code >= 4 else x
    return torch.rot90(x, code % 4, dims=(-2, -1))


def random_affine(images: Tensor, label_maps: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Flip, rotate by any angle, zoom 0.8 to 1.25, shift by up to 5 %: images (B, 3, H, W), label maps (B, H, W).

    Borders are mirrored; label maps are sampled nearest, so no new value appears.
    """
    B = len(images)
    angle = rng.uniform(0, 2 * np.pi, B)
    zoom = np.exp(rng.uniform(np.log(0.8), np.log(1.25), B))
    flip = rng.choice([-1.0, 1.0], B)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    shift = rng.uniform(-0.1, 0.1, (2, B))
    theta = np.stack([np.stack([cos * flip, -sin, shift[0]], 1), np.stack([sin * flip, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(torch.from_numpy(theta).to(images), list(images.shape), align_corners=False)  # (B, H, W, 2)
    warped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    maps = F.grid_sample(
        label_maps[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    return warped, maps[:, 0].to(label_maps.dtype)


def stain_and_focus(images: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """The stain augmentation of the `+stain` arms: stain change, blur or sharpening, noise; (B, 3, H, W) in [-1, 1].

    One image in five keeps its stain.
    """
    B = len(images)
    changed = StainChange.draw(B, strength, rng).apply(images)
    keep = torch.from_numpy(rng.random(B) < 0.2)[:, None, None, None].to(images.device)
    x = torch.where(keep, images, changed)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    focus = torch.from_numpy(rng.uniform(-0.7, 1.0, (B, 1, 1, 1))).to(x)  # < 0 sharpens
    noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32)).to(x)
    strength_of_noise = torch.from_numpy(rng.uniform(0, 0.06, (B, 1, 1, 1))).to(x)
    return (x + focus * (blurred - x) + strength_of_noise * noise).clamp(-1, 1)


def hide_part(layout: Tensor, unknown: int, rng: np.random.Generator) -> Tensor:
    """Set part of a layout (H, W) to `unknown`: what lies beyond a random line: partly known layouts."""
    H, W = layout.shape
    angle, cut = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.5)
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    return torch.where(np.cos(angle) * x + np.sin(angle) * y > cut, unknown, layout)


def random_boxes(n: int, px: int, rng: np.random.Generator) -> Tensor:
    """One box per image (n, px, px) bool, True inside; it covers 10 to 50 % and has any aspect from 1:2 to 2:1."""
    area = rng.uniform(0.1, 0.5, n) * px**2
    aspect = np.exp(rng.uniform(np.log(0.5), np.log(2), n))
    height, width = np.minimum(np.sqrt(area * aspect), px), np.minimum(np.sqrt(area / aspect), px)
    top, left = rng.uniform(0, px - height), rng.uniform(0, px - width)
    at = np.arange(px) + 0.5
    rows = (at >= top[:, None]) & (at < (top + height)[:, None])
    columns = (at >= left[:, None]) & (at < (left + width)[:, None])
    return torch.from_numpy(rows[:, :, None] & columns[:, None, :])


def cut_mix(x: Tensor, boxes: Tensor) -> Tensor:
    """x (n, ...) with what is inside of the boxes taken from the row before, the first from the last (Yun 2019)."""
    return torch.where(boxes, x.roll(1, 0), x)
