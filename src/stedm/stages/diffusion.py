"""Stage `train diffusion`: the style-extracting diffusion model, on annotated AND unannotated patients."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stedm.config import IGNORE, RunConfig
from stedm.data.style_sets import StyleSets
from stedm.device import best_device
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampling import Sampling
from stedm.models.autoencoder import FirstStage
from stedm.models.segmenter import Segmenter
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet
from stedm.ranks import is_first
from stedm.stages.grain import best_grain
from stedm.stages.grids import StyleGrid, save_style_grid
from stedm.stages.latents import encode, frozen_places
from stedm.stages.run_folder import TEACHER_ARM, RunFolder, common_mpp, train_patches
from stedm.stages.watch import IMAGES, GeneratorWatch
from stedm.training.augment import dihedral
from stedm.training.batches import DiffusionBatches, StylePatches, Variants
from stedm.training.tasks import DiffusionTask
from stedm.training.trainer import fit

VARIANTS = 8192
"""Cached latents of the annotated patches, and of the unannotated ones; one a patch where there are more patches."""

_READ_AT_ONCE = 1024
"""Images whose class probabilities are kept at the same time."""


def train_diffusion(run: RunFolder, config: RunConfig) -> None:
    """Train U-Net, style encoder and aggregation together; write `diffusion/` with the averaged weights."""
    grid = StyleGrid(run, config, rows=3, columns=4, shown=1)
    _train(run, config, run.diffusion, "diffusion", grid=grid)


def train_control(run: RunFolder, config: RunConfig) -> None:
    """The same generator on annotated patients only, to show what the unannotated ones are worth.

    It sees as many annotated images as ours does, in full batches, and so takes fewer steps;
    it is watched on fewer images.
    """
    others = len(train_patches(run.patches(), annotated=False))
    share = config.diffusion.unlabelled_share if others else 0.0  # without others ours takes full batches, too
    steps = max(1, round(config.diffusion.steps * (1 - share)))
    alone = dataclasses.replace(config.diffusion, unlabelled_share=0.0, steps=steps)
    config = dataclasses.replace(config, diffusion=alone)
    _train(run, config, run.control, "control (annotated only)", num_images=IMAGES // 2)


def _train(run: RunFolder, config: RunConfig, folder: Path, description: str, **watched: Any) -> None:
    """`watched`: arguments of GeneratorWatch."""
    options = config.diffusion
    patches = train_patches(run.patches())
    if options.unlabelled_share == 0:
        patches = patches[patches["annotated"]].reset_index(drop=True)
    images = run.images(patches)
    first_stage = FirstStage.from_pretrained(run.autoencoder)
    sampling = Sampling(grain=best_grain(run, first_stage, patches, seed=config.seed))
    model = _untrained(first_stage, config, run.classes(), sampling, mpp=common_mpp(patches))
    batches = _batches(run, config, model, patches, images)
    task = DiffusionTask(
        model.unet,
        model.style_extractor,
        learning_rate=options.learning_rate,
        steps=options.steps,
        seed=config.seed,
    )
    watch = GeneratorWatch(run, config, model, **watched)
    averaged = {"ema_decay": options.ema_decay, "sharded": options.sharded}
    fit(task, batches, folder=folder, description=description, watch=watch, **averaged)
    if not is_first():
        return
    watch.save(folder, name=description)
    model.eval().save_pretrained(folder)
    save_style_grid(run, config, model.to(best_device()), folder / "samples" / "style_by_layout.png")


def _batches(
    run: RunFolder, config: RunConfig, model: StyleDiffusion, patches: pd.DataFrame, images: np.ndarray
) -> DiffusionBatches:
    options, first_stage = config.diffusion, model.first_stage
    layouts, regions = _layouts(run, config, patches, images)
    places = frozen_places(model.style_extractor, images) if options.style_set != "self" else None
    return DiffusionBatches(
        _variants(first_stage, images, layouts, patches["annotated"].to_numpy(bool), seed=config.seed),
        StylePatches(images, encode(first_stage, images).half(), torch.from_numpy(regions), places),
        _style_sets(patches, config),
        batch_size=options.batch_size,
        set_size=options.style_images,
        unlabelled_share=options.unlabelled_share,
        layout_dropout=options.layout_dropout,
        style_dropout=options.style_dropout,
        unknown_share=options.unknown_share,
        zoom_style=options.style_set == "self",
        seed=config.seed,
    )


def _untrained(
    first_stage: FirstStage, config: RunConfig, classes: list[str], sampling: Sampling, *, mpp: float | None
) -> StyleDiffusion:
    options = config.diffusion
    torch.manual_seed(config.seed)
    regions = len(classes) + 1 if options.style_pooling == "class" else 1
    extractor = StyleExtractor(
        dim=options.style_dim,
        set_size=options.style_images,
        latent_channels=first_stage.latent_channels,
        regions=regions,
        encoder=options.style_encoder,
        aggregation=options.aggregation,
        weights=options.style_weights,
        trainable=not options.freeze_style_encoder,
    )
    unet = UNet(
        latent_channels=first_stage.latent_channels,
        num_classes=len(classes),
        factor=first_stage.factor,
        channels=options.channels,
        multipliers=options.multipliers,
        style_dim=options.style_dim,
        style_vectors=regions,
        injection=options.injection,
        style_prior=options.style_prior,
    )
    return StyleDiffusion(first_stage, extractor, unet, classes, sampling, patch_px=config.prepare.patch_px, mpp=mpp)


def _style_sets(patches: pd.DataFrame, config: RunConfig) -> StyleSets:
    return StyleSets(
        patches,
        mode=config.diffusion.style_set,
        size=config.diffusion.style_images,
        nearby_um=config.diffusion.nearby_um,
        patch_um=patches["mpp"].to_numpy() * config.prepare.patch_px,
    )


def _layouts(
    run: RunFolder, config: RunConfig, patches: pd.DataFrame, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Layouts to draw by, and regions that teach the style encoder: (n, H, W) uint8 each.

    Both are the annotation where there is one, else what the teacher reads in images it is sure of, unknown elsewhere;
    with `pseudo_use: style`, what is read is no layout. Sure of an image as a whole: where single pixels have to be
    sure, the easy ones of a class stand for the class, and background is learned to be as pale as its palest parts.
    """
    options = config.diffusion
    layouts = np.full(images.shape[:3], IGNORE, np.uint8)
    annotated = patches["annotated"].to_numpy(bool)
    layouts[annotated] = run.label_maps(patches[annotated])
    if options.pseudo_confidence is None or annotated.all():
        return layouts, layouts
    teacher = Segmenter.from_pretrained(run.segmenter(TEACHER_ARM, config.seed)).to(best_device())
    regions, others = layouts.copy(), np.flatnonzero(~annotated)
    for rows in np.split(others, range(_READ_AT_ONCE, len(others), _READ_AT_ONCE)):
        probabilities = teacher.probabilities(images[rows], views=4)  # (m, N, H, W)
        sure = probabilities.max(1).mean((1, 2), keepdims=True) >= options.pseudo_confidence  # (m, 1, 1)
        regions[rows] = np.where(sure, probabilities.argmax(1), IGNORE)
    return (regions if options.pseudo_use == "layout" else layouts), regions


def _variants(
    first_stage: FirstStage, images: np.ndarray, layouts: np.ndarray, annotated: np.ndarray, *, seed: int
) -> Variants:
    """Encode each patch under several symmetries of the square: up to eight, fewer where there are many patches."""
    rng = np.random.default_rng(seed + 4)
    few = [int(np.clip(VARIANTS // max(1, (annotated == kind).sum()), 1, 8)) for kind in (0, 1)]
    patch = np.repeat(np.arange(len(images)), np.where(annotated, few[1], few[0]))
    code = rng.permuted(np.arange(len(patch)) % 8)
    layout = torch.empty(len(patch), *images.shape[1:3], dtype=torch.uint8)
    order = np.argsort(code, kind="stable")
    latents = []
    for symmetry in range(8):
        rows = order[code[order] == symmetry]
        layout[rows] = dihedral(torch.from_numpy(layouts[patch[rows]]), symmetry)
        latents.append(encode(first_stage, images[patch[rows]], symmetry=symmetry).half())
    z = torch.cat(latents)[np.argsort(order)]
    return Variants(z, layout, torch.from_numpy(patch), torch.from_numpy(annotated[patch]))
