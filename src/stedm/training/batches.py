"""What goes into a training step: each class is a pure function of the step number, so that training can resume.

Images go to the device as bytes and are augmented there; what is random is drawn by numpy, the same on every device.

Where ranks train together, everything random is drawn for the whole batch, and a rank's share of its rows is made.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stedm.config import IGNORE
from stedm.data.style_sets import StyleSets
from stedm.device import best_device
from stedm.diffusion.pipeline import to_network
from stedm.diffusion.sampling import noise_from_seeds
from stedm.ranks import share
from stedm.training.augment import (
    cut_mix,
    dihedral,
    hide_part,
    random_affine,
    random_boxes,
    stain_and_focus,
)
from stedm.training.stain_transfer import StainTransfer
from stedm.training.tasks import Batch


class AutoencoderBatches:
    """Crops of every training patient's images.

    Crops: the first stage is convolutional, and many small pieces teach it more per second than few large ones.
    """

    def __init__(self, images: np.ndarray, *, batch_size: int, crop_px: int, seed: int) -> None:
        """images: (n, H, W, 3) uint8."""
        self.crop_px = min(crop_px, images.shape[1])
        self.images, self.batch_size, self.seed = images, batch_size, seed

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step, 1])
        top, left = rng.integers(0, self.images.shape[1] - self.crop_px + 1, 2)
        rows = share(rng.integers(len(self.images), size=self.batch_size))
        crops = self.images[rows, top : top + self.crop_px, left : left + self.crop_px]
        x = to_network(crops, best_device())
        return {"images": dihedral(x, int(rng.integers(8))).contiguous(memory_format=torch.channels_last)}


@dataclass
class Variants:
    """Cached latents: each training patch under several symmetries of the square.

    z (M, C, h, w) half precision; layout (M, H, W) uint8, 255 = unknown; patch (M,) position of the patch;
    annotated (M,) bool.
    """

    z: Tensor
    layout: Tensor
    patch: Tensor
    annotated: Tensor


@dataclass
class StylePatches:
    """The training patches as they lend their style: what `Variants.patch` points to.

    images (n, H, W, 3) uint8; z (n, C, h, w), their latents, half precision; layout (n, H, W) uint8, 255 = unknown.
    places (n, 8, h', w', F) half precision: what a frozen backbone says of them in each symmetry, instead of images.
    """

    images: np.ndarray
    z: Tensor
    layout: Tensor
    places: Tensor | None = None


class DiffusionBatches:
    """Latents with layouts, style sets and the three kinds of forgetting: null layout, null style, unknown parts.

    A style set goes through flips and rotations that differ from place to place in the set and from step to step: what
    layout and style set share is style, never content.
    """

    def __init__(
        self,
        variants: Variants,
        style_patches: StylePatches,
        style_sets: StyleSets,
        *,
        batch_size: int,
        set_size: int,
        unlabelled_share: float,
        layout_dropout: float,
        style_dropout: float,
        unknown_share: float,
        zoom_style: bool,
        seed: int,
    ) -> None:
        """zoom_style: for `self` sets, lend only a crop."""
        self.variants, self.style_patches, self.style_sets = variants, style_patches, style_sets
        self.batch_size, self.set_size, self.seed = batch_size, set_size, seed
        self.layout_dropout, self.style_dropout, self.unknown_share = layout_dropout, style_dropout, unknown_share
        self.zoom_style = zoom_style
        self.annotated = np.flatnonzero(variants.annotated.numpy())
        self.unannotated = np.flatnonzero(~variants.annotated.numpy())
        share = unlabelled_share if len(self.unannotated) else 0.0
        self.num_unannotated = round(share * batch_size)

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step, 2])
        rows = rng.choice(self.annotated, self.batch_size - self.num_unannotated)
        if self.num_unannotated:
            rows = np.concatenate([rows, rng.choice(self.unannotated, self.num_unannotated)])
        style, has_style = self._style(rows, rng)
        layout = self.variants.layout[rows].clone()  # (B, H, W)
        for k in np.flatnonzero(rng.random(len(rows)) < self.unknown_share):
            layout[k] = hide_part(layout[k], IGNORE, rng)
        known = (layout != IGNORE).flatten(1).any(1).numpy()
        layout_given = known & (rng.random(len(rows)) >= self.layout_dropout)
        style_given = has_style & (rng.random(len(rows)) >= self.style_dropout)
        return {
            "z": self.variants.z[share(rows)],
            "layout": share(layout),
            "layout_given": torch.from_numpy(share(layout_given)),
            **style,
            "style_given": torch.from_numpy(share(style_given)),
        }

    def _style(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[Batch, np.ndarray]:
        """Style sets: images (b, N, 3, H, W) in [-1, 1], or places (b, N, h', w', F), latents (b, N, C, h, w), layouts
        (b, N, H, W) of b = B / W.

        And which of all rows (B,) have one; rows without get the null style.
        """
        targets = self.variants.patch[rows].numpy()
        has_style = np.array([self.style_sets.has_candidates(int(i)) for i in targets])
        sets = np.stack(
            [
                self.style_sets.draw(int(i), rng) if has else np.full(self.set_size, i)
                for i, has in zip(targets, has_style, strict=True)
            ]
        )  # (B, N)
        mine = share(np.arange(len(rows)))
        sets = sets[mine]
        lent = {"style_latents": self.style_patches.z[sets], "style_layouts": self.style_patches.layout[sets]}
        if self.style_patches.places is None:
            lent["style_images"] = to_network(self.style_patches.images[sets], best_device())
        codes = rng.integers(8, size=sets.shape[1])
        lent = {
            name: torch.stack([dihedral(x[:, n], int(code)) for n, code in enumerate(codes)], dim=1)
            for name, x in lent.items()
        }
        if self.style_patches.places is not None:
            lent["style_places"] = self.style_patches.places[sets, codes].float()
        return (_crop(lent, rng, mine, len(rows)) if self.zoom_style else lent), has_style


def _crop(lent: Batch, rng: np.random.Generator, mine: np.ndarray, total: int) -> Batch:
    """A random crop of half to three quarters of the side, enlarged again, the same for image, latent and layout.

    lent: the rows `mine` of `total`.
    """
    B, N = lent["style_images"].shape[:2]
    side = rng.uniform(0.5, 0.75, total * N)
    shift = rng.uniform(-1, 1, (2, total * N)) * (1 - side)
    kept = (mine[:, None] * N + np.arange(N)).ravel()
    side, shift, zero = side[kept], shift[:, kept], np.zeros(B * N)
    theta = np.stack([np.stack([side, zero, shift[0]], 1), np.stack([zero, side, shift[1]], 1)], 1)

    def cropped(x: Tensor, mode: str) -> Tensor:
        flat = x.flatten(0, 1).float()  # (B N, C, H, W)
        grid = torch.nn.functional.affine_grid(torch.from_numpy(theta).to(flat), list(flat.shape), align_corners=False)
        return torch.nn.functional.grid_sample(flat, grid, mode=mode, align_corners=False).unflatten(0, (B, N))

    return {
        "style_images": cropped(lent["style_images"], "bilinear"),
        "style_latents": cropped(lent["style_latents"], "bilinear"),
        "style_layouts": cropped(lent["style_layouts"][:, :, None], "nearest")[:, :, 0].to(torch.uint8),
    }


class PairBatches:
    """Pairs under the symmetries of the square, which a pair keeps when noise, latent and layout turn together."""

    def __init__(self, pairs: dict[str, Tensor], *, batch_size: int, seed: int) -> None:
        """pairs: seeds (M,), z (M, C, h, w), layout (M, H, W) uint8, style (M, ...), empty when drawn without one."""
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step, 4])
        rows = torch.from_numpy(share(rng.integers(len(self.pairs["z"]), size=self.batch_size)))
        code = int(rng.integers(8))
        z = self.pairs["z"][rows].float()
        e = noise_from_seeds(self.pairs["seeds"][rows].tolist(), z.shape[1:])
        return {
            "z": dihedral(z, code),
            "e": dihedral(e, code),
            "layout": dihedral(self.pairs["layout"][rows], code),
            "style": self.pairs["style"][rows],
        }


@dataclass(frozen=True)
class Pairs:
    """Labelled images to draw from: images (n, H, W, 3) uint8, label maps (n, H, W) uint8.

    weight (n,): how often each is drawn, relative to the others; all alike when not given.
    """

    images: np.ndarray
    label_maps: np.ndarray
    weight: np.ndarray | None = None

    @classmethod
    def evenly(cls, *sets: "Pairs") -> "Pairs":
        """All pairs of several sets of one size in pixels, each set drawn as often as any other."""
        weights = [np.ones(len(pairs.images)) if pairs.weight is None else pairs.weight for pairs in sets]
        return cls(
            np.concatenate([pairs.images for pairs in sets]),
            np.concatenate([pairs.label_maps for pairs in sets]),
            np.concatenate([weight / weight.sum() for weight in weights]),
        )

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (n,), with replacement."""
        if self.weight is None:
            return rng.integers(len(self.images), size=n)
        return rng.choice(len(self.images), size=n, p=self.weight / self.weight.sum())


class SegmentationBatches:
    """Real and synthetic pairs mixed by `synthetic_share`; geometric augmentation always, stain when asked."""

    def __init__(
        self,
        real: Pairs,
        synthetic: Pairs | None,
        *,
        batch_size: int,
        synthetic_share: float,
        stain: float,
        seed: int,
        transfer: tuple[StainTransfer, np.ndarray] | None = None,
    ) -> None:
        """stain: strength, 0 for none. transfer: restains real images; and the position of each one's patient in it."""
        self.real, self.synthetic, self.batch_size, self.stain, self.seed = real, synthetic, batch_size, stain, seed
        self.num_synthetic = round(synthetic_share * batch_size) if synthetic is not None else 0
        self.transfer = transfer

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step, 3])
        rows = self.real.draw(self.batch_size - self.num_synthetic, rng)
        x, label_maps = to_network(self.real.images[rows], best_device()), self.real.label_maps[rows]
        if self.transfer is not None:
            transfer, patients = self.transfer
            x = transfer.draw(patients[rows], np.random.default_rng([self.seed, step, 5])).apply(x)
        if self.synthetic is not None:
            more = self.synthetic.draw(self.num_synthetic, rng)
            x = torch.cat([x, to_network(self.synthetic.images[more], x.device)])
            label_maps = np.concatenate([label_maps, self.synthetic.label_maps[more]])
        x, y = random_affine(x, torch.from_numpy(label_maps).to(x.device), rng)
        if self.stain > 0:
            x = stain_and_focus(x, self.stain, rng)
        return {"images": x.contiguous(memory_format=torch.channels_last), "label_maps": y}


class ViewBatches:
    """Adds views of unannotated images to the labelled batches: what the losses of `consistency.py` compare.

    weak (U, 3, H, W): flipped, rotated, zoomed. strong (U, 3, H, W): the same pixels with another stain, focus and
    noise, and inside `boxes` (U, H, W) bool those of the image before it in the batch (CutMix, Yun 2019).
    """

    def __init__(self, labelled: SegmentationBatches, images: np.ndarray, *, stain: float) -> None:
        """images: (n, H, W, 3) uint8, of which as many are drawn for each step as the labelled batch has."""
        self.labelled, self.images, self.stain = labelled, images, stain

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.labelled.seed, step, 6])
        x = to_network(self.images[rng.integers(len(self.images), size=self.labelled.batch_size)], best_device())
        weak, _ = random_affine(x, torch.zeros(len(x), *x.shape[-2:], dtype=torch.uint8, device=x.device), rng)
        strong = stain_and_focus(weak, self.stain, rng)
        boxes = random_boxes(len(x), x.shape[-1], rng).to(x.device)
        strong = cut_mix(strong, boxes[:, None])
        views = {"weak": weak, "strong": strong}
        views = {name: view.contiguous(memory_format=torch.channels_last) for name, view in views.items()}
        return self.labelled(step) | views | {"boxes": boxes}
