"""Stage `train few-step`: a generator that needs no guidance and few evaluations, taught by the full one.

The full, guided generator draws pairs (noise e, latent z); a copy of its network learns the straight path between the
two (reflow; Liu 2023, Flow Straight and Fast, section 2.2). Guidance is in the pairs, so one branch is enough, and on
paths that are almost straight a few Euler steps are.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stedm.config import RunConfig
from stedm.device import best_device
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampling import Sampling
from stedm.files import atomic_path, whole
from stedm.models.tensor_file import read_tensors
from stedm.progress import Bar
from stedm.ranks import everyones, is_first, share
from stedm.stages.generate import composition_of, layouts_of, make_plan, style_images_of
from stedm.stages.grids import sampling_of, save_style_grid
from stedm.stages.latents import KeptPlaces
from stedm.stages.plan_layouts import PlanLayouts
from stedm.stages.run_folder import RunFolder
from stedm.training.batches import PairBatches
from stedm.training.tasks import FewStepTask
from stedm.training.trainer import fit

PAIRS = "training/pairs"
DRAWN_AT_ONCE = 64

_OF_PAIRS = ("seeds", "z", "layout", "style")


def train_few_step(run: RunFolder, config: RunConfig) -> None:
    """Draw the pairs, train the few-step generator, write `few_step/`."""
    options = config.few_step
    teacher = StyleDiffusion.from_pretrained(run.diffusion).to(best_device())
    pairs = _pairs(run, config, teacher)
    unet = copy.deepcopy(teacher.unet).cpu().train()
    task = FewStepTask(unet, learning_rate=options.learning_rate, steps=options.steps, seed=config.seed)
    batches = PairBatches(pairs, batch_size=options.batch_size, seed=config.seed)
    shared = {"ema_decay": config.diffusion.ema_decay, "sharded": config.diffusion.sharded}
    fit(task, batches, folder=run.few_step, description="few-step generator", **shared)
    if not is_first():
        return
    own = Sampling(
        solver="euler",
        nfe=options.nfe,
        layout_guidance=1.0,
        style_guidance=1.0,
        grain=teacher.sampling.grain,
        bands=teacher.sampling.bands,
    )
    parts = (teacher.first_stage, teacher.style_extractor, unet)
    student = StyleDiffusion(*parts, teacher.classes, own, patch_px=teacher.patch_px, mpp=teacher.mpp).eval()
    student.save_pretrained(run.few_step)
    save_style_grid(run, config, student.to(best_device()), run.few_step / "samples" / "style_by_layout.png")


def _pairs(run: RunFolder, config: RunConfig, teacher: StyleDiffusion) -> dict[str, Tensor]:
    """seeds (M,), z (M, C, h, w) half precision, layout (M, H, W) uint8, style (M, ...); kept to resume with.

    Ranks draw them in turns, some rows at a time, each a file.
    """
    patches = run.patches()
    full = dataclasses.replace(config, generate=dataclasses.replace(config.generate, generator="full"))
    sampling = dataclasses.replace(sampling_of(teacher, full), nfe=config.few_step.teacher_nfe)
    plan = make_plan(patches, _plan_config(config), sampling, composition=composition_of(run, config))
    layouts, places = layouts_of(run, config, patches), KeptPlaces.of(teacher.style_extractor, teacher.device)
    starts = range(0, len(plan), DRAWN_AT_ONCE)
    paths = [run.few_step / PAIRS / f"{start}.pt" for start in starts]
    with Bar("drawing pairs", total=len(plan), folder=run.few_step) as bar:
        for start, path in share(list(zip(starts, paths, strict=True))):
            rows = plan.iloc[start : start + DRAWN_AT_ONCE]
            if not path.exists():
                with atomic_path(path) as temporary:
                    torch.save(_draw_pairs(run, teacher, layouts, patches, rows, sampling, places), temporary)
            bar.update(start + len(rows), unit="pairs")
    everyones(None)  # all are written
    return read_pairs(paths)


def read_pairs(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of `_pairs` from their files. Raises UserError for a damaged one."""
    parts: list[dict[str, Tensor]] = []
    for path in paths:
        with whole(path):
            found = read_tensors(path)
            part = {name: found[name] for name in _OF_PAIRS}
            for name, tensor in part.items():
                if tensor.nbytes > tensor.untyped_storage().nbytes():
                    raise ValueError(f"{name} {list(tensor.shape)} of {tensor.untyped_storage().nbytes()} bytes")
                if tensor.shape[1:] != (parts or [part])[0][name].shape[1:] or len(tensor) != len(part["seeds"]):
                    raise ValueError(f"{name} {list(tensor.shape)}")
            parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in _OF_PAIRS}


def _plan_config(config: RunConfig) -> RunConfig:
    """The synthetic set's plan with other rows: other seed, as many images as pairs."""
    pairs = copy.deepcopy(config)
    pairs.generate.images = config.few_step.pairs
    pairs.seed = config.seed + 1
    return pairs


def _draw_pairs(
    run: RunFolder,
    teacher: StyleDiffusion,
    layouts: PlanLayouts,
    patches: pd.DataFrame,
    rows: pd.DataFrame,
    sampling: Sampling,
    places: KeptPlaces | None,
) -> dict[str, Tensor]:
    maps = np.stack([layouts.of(row) for _, row in rows.iterrows()])
    style_sets = style_images_of(run, patches, rows)
    vectors = None if style_sets is None else teacher.extract_styles(style_sets, places=places).vectors
    z = teacher.draw_latents(maps, vectors, sampling, seeds=rows["seed"].tolist())
    return {
        "seeds": torch.tensor(rows["seed"].tolist()),
        "z": z.half().cpu(),
        "layout": torch.from_numpy(maps),
        "style": (teacher.null_styles(len(rows)) if vectors is None else vectors).cpu(),
    }
