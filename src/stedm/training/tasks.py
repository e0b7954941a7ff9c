"""One thin LightningModule per stage: networks, loss, optimiser. Data and loop live elsewhere."""

import math
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from stedm.diffusion.flow import flow_matching_loss, sample_times
from stedm.models.autoencoder import FirstStage
from stedm.models.segmenter import Segmenter
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet
from stedm.ranks import for_all, gathered, place, share, total
from stedm.training.consistency import Batch, Consistency, MeanTeacher
from stedm.training.divergence import check_gradient, check_loss
from stedm.training.losses import (
    SegmentationLoss,
    kl_loss,
    optical_density,
    reconstruction_loss,
    regions_loss,
    spectrum_loss,
)
from stedm.training.muon import Muon
from stedm.training.sharding import whole

REGIONS_WEIGHT = 0.1
"""Weight of the loss that teaches the style encoder where classes are, beside the flow-matching loss."""


def warmup_cosine(step: int, steps: int) -> float:
    """Learning-rate factor: linear warm-up over the first 5 %, then a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Task(L.LightningModule):
    """One optimiser over every trainable parameter, warm-up and cosine; randomness depends on the step alone.

    Muon is the default: with as few steps as ours it goes much further than AdamW (benchmarks/results/demo.md).
    """

    optimiser: type[torch.optim.AdamW] = Muon
    section = ""
    """Of the config, for messages."""
    shared = True
    """Whether ranks train it together, each on its rows of a batch: its loss must be the mean of theirs."""

    def __init__(self, *, learning_rate: float, steps: int, seed: int) -> None:
        super().__init__()
        self.learning_rate, self.steps, self.seed = learning_rate, steps, seed

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimiser = self.optimiser(parameters, lr=self.learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_cosine(step, self.steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # A resumed run must draw what an uninterrupted one would have drawn.
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)

    def on_before_backward(self, loss: Tensor) -> None:
        self.latest_loss = loss.detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning refuses to clip for a fused optimiser, because of loss scaling; bfloat16 needs none.
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)))
        if self.shared:  # ranks must stop at the same step: the loss of all of them, as the gradient is that of all
            self.latest_loss = total(self.latest_loss) / place().world
        check_loss(float(self.latest_loss), step=self.global_step + 1)
        check_gradient(norm, step=self.global_step + 1)


class AutoencoderTask(Task):
    """Train the first stage on images (B, 3, H, W).

    latent_noise: the decoder meets latents with noise of 0 to this many standard deviations of their channel, because
    drawn latents are never exact, and a decoder that knows only exact ones draws a mosaic (Zheng 2025, RAE).
    """

    section = "autoencoder"

    def __init__(self, first_stage: FirstStage, *, kl_weight: float, latent_noise: float, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(**options)
        self.first_stage, self.kl_weight, self.latent_noise = first_stage, kl_weight, latent_noise

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch["images"]
        mean, logvar = self.first_stage.distribution(images)
        noise = for_all(mean)  # drawn for all ranks, so that a row's is the same however many there are
        strength = self.latent_noise * share(torch.rand(len(noise), 1, 1, 1, device=mean.device))
        extra = strength * gathered(mean.detach()).std((0, 2, 3), keepdim=True)
        raw = mean + share(torch.randn_like(noise)) * (logvar.exp() + extra.square()).sqrt()
        reconstructed = self.first_stage.reconstruct(raw).float()
        loss = reconstruction_loss(reconstructed, images) + 0.1 * spectrum_loss(reconstructed, images)
        dark = optical_density(reconstructed), optical_density(images)
        loss = loss + reconstruction_loss(*dark) + 0.1 * spectrum_loss(*dark)
        return loss + self.kl_weight * kl_loss(mean.float(), logvar.float())


class DiffusionTask(Task):
    """Train the velocity network and the style extractor together: the style encoder is in the optimiser."""

    section = "diffusion"

    def __init__(self, unet: UNet, style_extractor: StyleExtractor, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(**options)
        self.unet, self.style_extractor = unet, style_extractor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        z = batch["z"].float()  # (B, C, h, w)
        places = batch.get("style_places")
        style, found = self.style_extractor.describe(batch.get("style_images"), batch["style_latents"], places=places)

        def velocity(z_t: Tensor, t: Tensor) -> Tensor:
            return self.unet(
                z_t.contiguous(memory_format=torch.channels_last),
                t,
                layout=batch["layout"],
                layout_given=batch["layout_given"],
                style=style,  # (B, K, d + 2 C)
                style_given=batch["style_given"],
            )

        every = for_all(z)
        t = share(sample_times(len(every)).to(z.device))
        loss = flow_matching_loss(velocity, z, t=t, e=share(torch.randn_like(every)))
        return loss + REGIONS_WEIGHT * regions_loss(found, batch["style_layouts"])


class FewStepTask(Task):
    """Train a velocity network on pairs (noise e, latent z) of a guided one, both conditions given, t uniform."""

    section = "few_step"

    def __init__(self, unet: UNet, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(**options)
        self.unet = unet

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        z, style = batch["z"], batch["style"]  # (B, C, h, w), (B, ...)
        given = torch.ones(len(z), dtype=torch.bool, device=z.device)

        def velocity(z_t: Tensor, t: Tensor) -> Tensor:
            return self.unet(
                z_t.contiguous(memory_format=torch.channels_last),
                t,
                layout=batch["layout"],
                layout_given=given,
                style=style,
                style_given=given,
            )

        t = share(torch.rand(len(for_all(z))).to(z))
        return flow_matching_loss(velocity, z, t=t, e=batch["e"])


class SegmentationTask(Task):
    """Train the segmenter on images (B, 3, H, W) and label maps (B, H, W); AdamW, for Muon gained nothing here.

    consistency: losses on unannotated images, added to the one on annotated images.
    """

    optimiser = torch.optim.AdamW
    section = "segmentation"
    shared = False  # batch norm and Dice are of the whole batch, and a run has many segmenters to share out

    def __init__(self, segmenter: Segmenter, *, consistency: Sequence[Consistency] = (), **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(**options)
        self.segmenter = segmenter
        self.loss = SegmentationLoss()
        self.consistency = torch.nn.ModuleList(consistency)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.segmenter(batch["images"]).float()
        loss = self.loss(logits, batch["label_maps"].long())
        for term in self.consistency:
            loss = loss + term(self.segmenter, batch, progress=self.global_step / self.steps)
        return loss

    @property
    def trained(self) -> Segmenter:
        """The segmenter to validate and to keep: the mean teacher where there is one."""
        teachers = [term.teacher for term in self.consistency if isinstance(term, MeanTeacher)]
        return teachers[0] if teachers else self.segmenter
