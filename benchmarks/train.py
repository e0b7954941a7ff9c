"""What a step of the diffusion training costs beside the bare forward and backward of its networks.

    python benchmarks/train.py --out runs/train-benchmark --size tiny

Procedural patches. By turns: a stretch of the real training (Lightning, batches with style sets and layouts, clipping,
averaged weights, log), timed from step to step, and as often on one batch that is ready, in the same precision,
`training_step` and `backward`; and both with `optimiser.step`, the bare step. Then each part that the training adds,
alone. What happens at the borders of stretches (checkpoint, the watch's pictures) is left out; it is eight times a
training, whatever its length. Other settings of the generator: `--set channels=48 batch_size=12`.
"""

import argparse
import copy
import dataclasses
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from common import generator_of, report, seconds
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stedm.config import IGNORE, RunConfig
from stedm.data.phantom import draw_layout, draw_style
from stedm.data.phantom_render import render
from stedm.data.style_sets import StyleSets
from stedm.device import autocast, best_device
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.stages.diffusion import _variants
from stedm.stages.latents import encode, frozen_places
from stedm.training.batches import DiffusionBatches, StylePatches
from stedm.training.tasks import Batch, DiffusionTask
from stedm.training.trainer import fit


def batches_of(
    model: StyleDiffusion, config: RunConfig, *, patients: int, patches: int, side_px: int
) -> DiffusionBatches:
    """The batches of a cohort of procedural patients, half of them annotated."""
    rng, options = np.random.default_rng(0), config.diffusion
    count = patients * patches
    layouts = np.stack([draw_layout(side_px, rng) for _ in range(count)])
    styles = [draw_style("he", rng) for _ in range(patients)]
    images = np.stack([render(layouts[k], styles[k // patches], rng) for k in range(count)])
    annotated = np.arange(count) < count // 2
    layouts[~annotated] = IGNORE
    table = pd.DataFrame({"patient": np.arange(count) // patches, "slide": np.arange(count) // patches})
    table = table.assign(source=table["slide"], x_um=np.arange(count) % patches * float(side_px), y_um=0.0)
    return DiffusionBatches(
        _variants(model.first_stage, images, layouts, annotated, seed=0),
        StylePatches(
            images,
            encode(model.first_stage, images).half(),
            torch.from_numpy(layouts),
            frozen_places(model.style_extractor, images),
        ),
        StyleSets(table, mode="patient", size=options.style_images or 1, nearby_um=500.0, patch_um=float(side_px)),
        batch_size=options.batch_size or 8,
        set_size=options.style_images or 1,
        unlabelled_share=options.unlabelled_share,
        layout_dropout=options.layout_dropout,
        style_dropout=options.style_dropout,
        unknown_share=options.unknown_share,
        zoom_style=False,
        seed=0,
    )


class Marked(DiffusionTask):
    """Notes processor and wall time at the start of each step."""

    marks: list[tuple[float, float]]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.marks.append((time.process_time(), time.perf_counter()))
        super().on_train_batch_start(batch, batch_idx)


def task_of(size: str, steps: int, **diffusion: Any) -> Marked:
    """A fresh task of the preset."""
    model, config = generator_of(size, **diffusion)
    return Marked(
        model.unet.train(),
        model.style_extractor.train(),
        learning_rate=config.diffusion.learning_rate,
        steps=steps,
        seed=0,
    )


def training_seconds(size: str, batches: DiffusionBatches, steps: int, **diffusion: Any) -> list[tuple[float, float]]:
    """Processor and wall time of each step but the first two of a real training."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(size, steps, **diffusion)
        task.marks = []
        fit(task, batches, folder=Path(folder), description="training", ema_decay=0.999, stretches=1)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(task.marks[2:])]


class Bare:
    """Forward, backward and optimiser step on one batch."""

    def __init__(self, size: str, batch: Batch, **diffusion: Any) -> None:
        self.task = task_of(size, 1000, **diffusion).to(best_device(), memory_format=torch.channels_last)
        self.optimiser = self.task.configure_optimizers()["optimizer"]
        self.batch = {name: x.to(best_device()) for name, x in batch.items()}
        self.average = AveragedModel(self.task, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def forward_and_backward(self) -> None:
        """Leaves gradients behind."""
        self.optimiser.zero_grad()
        with autocast(best_device()):
            loss = self.task.training_step(self.batch, 0)
        loss.backward()

    def step(self) -> None:
        """All three."""
        self.forward_and_backward()
        self.optimiser.step()

    def clip(self) -> None:
        """Needs gradients."""
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), 1e9)

    def average_weights(self) -> None:
        """One update."""
        self.average.update_parameters(self.task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=["smoke", "tiny", "small", "base"], default="tiny")
    parser.add_argument("--side", type=int, default=64, help="of the patches, pixels")
    parser.add_argument("--frozen", metavar="NAME", help="a timm backbone as frozen style encoder, its features kept")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of `diffusion`")
    parser.add_argument("--steps", type=int, default=16, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    settings = {"style_encoder": options.frozen, "freeze_style_encoder": True} if options.frozen else {}
    settings |= {key: yaml.safe_load(value) for key, value in (setting.split("=", 1) for setting in options.set)}
    model, config = generator_of(options.size, **settings)
    batches = batches_of(model, config, patients=16, patches=4, side_px=options.side)
    bare = Bare(options.size, batches(0), **settings)
    training: list[tuple[float, float]] = []
    network: list[tuple[float, float]] = []
    alone: list[tuple[float, float]] = []
    for _ in range(options.turns):
        training += training_seconds(options.size, batches, options.steps, **settings)
        network += [seconds(bare.forward_and_backward) for _ in range(options.steps)][2:]
        alone += [seconds(bare.step) for _ in range(options.steps)][2:]
    parts = {
        "optimiser": bare.optimiser.step,
        "gradient clipping": bare.clip,
        "averaged weights": bare.average_weights,
        "batch (data)": lambda: batches(1),
    }
    if options.frozen:
        asking = copy.copy(batches)
        asking.style_patches = dataclasses.replace(batches.style_patches, places=None)
        parts["bare step that asks the backbone"] = Bare(options.size, asking(0), **settings).step
    found = {"training step": training, "forward and backward": network, "bare step": alone}
    found |= {name: [seconds(action) for _ in range(options.steps)][2:] for name, action in parts.items()}
    cpu, wall = np.median(np.array(network), axis=0)
    rows: list[dict[str, Any]] = []
    for name, times in found.items():
        of_cpu, of_wall = np.median(np.array(times), axis=0)
        row = {"what": name, "ms processor": 1e3 * of_cpu, "ms wall": 1e3 * of_wall}
        rows.append(row | {"/ network, processor": of_cpu / cpu, "/ network, wall": of_wall / wall})
    report(options.out / f"train-{options.size}.json", rows)


if __name__ == "__main__":
    main()
