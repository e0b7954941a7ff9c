"""Stage `train autoencoder`: the first stage, on the images of every training patient."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from stedm.config import RunConfig
from stedm.device import autocast, best_device
from stedm.diffusion.pipeline import to_images, to_network
from stedm.errors import UserError
from stedm.evaluation.features import MIN_PX
from stedm.files import atomic_path, write_text
from stedm.models.autoencoder import FirstStage
from stedm.ranks import is_first
from stedm.stages.run_folder import RunFolder, train_patches
from stedm.stages.watch import ReconstructionWatch
from stedm.training.batches import AutoencoderBatches
from stedm.training.tasks import AutoencoderTask
from stedm.training.trainer import fit

CROP_PX = 32
"""Side of the training crops, pixels."""


def train_autoencoder(run: RunFolder, config: RunConfig) -> None:
    """Train (or adopt) the first stage, measure its latent statistics, write `autoencoder/`.

    Raises UserError before any training for patches that are too small for what is measured later.
    """
    options = config.autoencoder
    if config.prepare.patch_px < MIN_PX:
        raise UserError(
            f"prepare.patch_px: {config.prepare.patch_px}: texture is measured on {MIN_PX} or more; raise it"
        )
    images = run.images(train_patches(run.patches()))
    torch.manual_seed(config.seed)
    if options.pretrained:
        first_stage = FirstStage.from_diffusers(options.pretrained)
        _check_grid(first_stage.factor, config)
        if is_first():
            write_text(run.autoencoder / "metrics.csv", "step,loss\n")
    else:
        first_stage = FirstStage.new(
            options.channels, latent_channels=options.latent_channels, space_to_depth=options.space_to_depth
        )
        task = AutoencoderTask(
            first_stage,
            kl_weight=options.kl_weight,
            latent_noise=options.latent_noise,
            learning_rate=options.learning_rate,
            steps=options.steps,
            seed=config.seed,
        )
        sample = images[np.random.default_rng(config.seed).permutation(len(images))[:256]]
        first_stage.start_linear(to_network(sample))
        batches = AutoencoderBatches(
            images,
            batch_size=options.batch_size,
            crop_px=CROP_PX,
            seed=config.seed,
        )
        watch = ReconstructionWatch(run, seed=config.seed)
        fit(task, batches, folder=run.autoencoder, description="first stage", ema_decay=0.98, watch=watch)
    if not is_first():
        return
    first_stage = first_stage.eval().to(memory_format=torch.channels_last)
    rng = np.random.default_rng(config.seed)
    sample = images[rng.permutation(len(images))[:256]]
    device = best_device()
    with autocast(device):
        first_stage.to(device).measure(_batches(sample, device))
    first_stage.cpu()
    first_stage.save_pretrained(run.autoencoder)
    _save_reconstructions(run, first_stage, sample[:12])


def _check_grid(factor: int, config: RunConfig) -> None:
    """Of a first stage of our own the config knows the factor; that of a pretrained one is known once it is here."""
    side_px, multiple = config.prepare.patch_px, factor * 2 ** (len(config.diffusion.multipliers) - 1)
    if side_px % multiple:
        raise UserError(
            f"prepare.patch_px: {side_px} is not a multiple of {multiple}, as autoencoder.pretrained ({factor} pixels a"
            " latent cell) and diffusion.multipliers need; change it to one, or give fewer multipliers"
        )


def _batches(images: np.ndarray, device: torch.device, size: int = 32) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), size):
        yield to_network(images[start : start + size], device)


@torch.no_grad()
def _save_reconstructions(run: RunFolder, first_stage: FirstStage, images: np.ndarray) -> None:
    """samples/reconstructions.png: images above, their reconstructions below."""
    with autocast(torch.device("cpu")):
        reconstructed = to_images(first_stage.decode(first_stage.encode(to_network(images))))
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in (images, reconstructed)], axis=0)
    with atomic_path(run.autoencoder / "samples" / "reconstructions.png") as temporary:
        Image.fromarray(grid).save(temporary)
