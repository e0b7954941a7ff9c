"""What each speed-up gives: the same work with it and without it, by turns.

    python benchmarks/speedups.py --out runs/speedups-benchmark --size tiny

One thing is undone at a time; all others stay as they are. Training: forward, backward and optimiser step on one batch
that is ready (`train.py` compares that with the real training). Drawing: a batch of images, styles read beforehand; and
what the networks do to read them. Ratios are those of each round, median, least and most. What stands in brackets is
not done: a ratio below 1 is what it would save. `--compile` adds the compiled U-Net and the seconds of its first call.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import train
from common import CLASSES, generator_of, report, rounds
from torch import Tensor
from torch.nn import functional as F

from stedm.device import best_device, has_fast_bf16
from stedm.diffusion import pipeline
from stedm.diffusion.pipeline import StyleDiffusion, to_network
from stedm.training import muon

Undo = Callable[[], AbstractContextManager[Any]]


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as matrices: all of it is in memory."""
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def one_by_one(matrices: Tensor, orthogonalise: Callable[[Tensor], Tensor] = muon.orthogonalise) -> Tensor:
    """Matrices of a shape (n, rows, columns), each by itself."""
    return torch.cat([orthogonalise(matrix[None]) for matrix in matrices])


def single_precision() -> ExitStack:
    """No autocast, neither in training nor in drawing."""
    stack = ExitStack()
    for module in (train, pipeline):
        stack.enter_context(mock.patch.object(module, "autocast", lambda device: nullcontext()))
    return stack


SHARED: dict[str, Undo] = {
    "channels last": lambda: mock.patch.object(torch, "channels_last", torch.contiguous_format),
    "fused attention": lambda: mock.patch.object(F, "scaled_dot_product_attention", written_out),
}
"""What training and drawing have in common; bfloat16 is added where there is any."""


def under(undo: Undo, action: Callable[[], object]) -> Callable[[], None]:
    """The action with something undone."""

    def run() -> None:
        with undo():
            action()

    return run


def training(size: str, side: int, shared: dict[str, Undo]) -> dict[str, Callable[[], object]]:
    """A bare step as it is, and with each thing undone, on networks of its own."""
    model, config = generator_of(size)
    batches = train.batches_of(model, config, patients=8, patches=4, side_px=side)
    batch = batches(0)
    bare = train.Bare(size, batch)
    actions: dict[str, Callable[[], object]] = {"as it is": bare.step}
    for name, undo in shared.items():
        with undo():
            actions[name] = under(undo, train.Bare(size, batch).step)
    loops = train.Bare(size, batch)
    for group in loops.optimiser.param_groups:
        group |= {"fused": False, "foreach": False}
    actions["fused AdamW"] = loops.step
    apart = lambda: mock.patch.object(muon, "orthogonalise", one_by_one)  # noqa: E731
    actions["Muon: matrices of a shape at once"] = under(apart, train.Bare(size, batch).step)
    images = torch.rand(len(batch["z"]) * (1 + (config.diffusion.style_images or 1)), 3, side, side) * 2 - 1
    images = images.to(best_device(), memory_format=torch.channels_last)
    first_stage = model.first_stage.to(best_device())

    def encoding() -> None:
        with torch.no_grad(), train.autocast(best_device()):
            first_stage.encode(images)
        bare.step()

    return actions | {"cached latents": encoding}


class Drawing:
    """A batch of images of an untrained generator."""

    def __init__(self, size: str, side: int, batch: int) -> None:
        model, config = generator_of(size)
        self.model: StyleDiffusion = model.to(best_device())
        shape = (batch, config.diffusion.style_images or 1, side, side, 3)
        self.sets = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self.layouts = np.random.default_rng(1).integers(0, len(CLASSES), (batch, side, side), np.uint8)
        self.styles = self.model.extract_styles(self.sets)

    def draw(self) -> None:
        """By the model's defaults."""
        self.model(self.layouts, styles=self.styles, seeds=list(range(len(self.layouts))))

    def networks(self, sets: Tensor) -> None:
        """What the networks do to read style sets (B, N, 3, H, W)."""
        images = sets.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), pipeline.autocast(best_device()):
            latents = self.model.first_stage.encode(images)
            self.model.style_extractor.describe(sets, latents.unflatten(0, sets.shape[:2]))
            self.model.first_stage.decode(pipeline.middle_of(images, latents)[1])


@contextlib.contextmanager
def branch_by_branch(model: StyleDiffusion, batch: int) -> Any:
    """The network asked once for each branch of the guidance."""
    together = model.unet.forward

    def apart(z: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        parts = [slice(k, k + batch) for k in range(0, len(z), batch)]
        return torch.cat([together(z[k], t[k], **{name: x[k] for name, x in conditions.items()}) for k in parts])

    with mock.patch.object(model.unet, "forward", apart):
        yield


def drawing(size: str, side: int, batch: int, shared: dict[str, Undo]) -> dict[str, Callable[[], object]]:
    """Drawing as it is, and with each thing undone."""
    ours = Drawing(size, side, batch)
    actions: dict[str, Callable[[], object]] = {"as it is": ours.draw}
    for name, undo in shared.items():
        with undo():
            actions[name] = under(undo, Drawing(size, side, batch).draw)
    actions["guidance in one batch"] = under(lambda: branch_by_branch(ours.model, batch), ours.draw)
    return actions


def reading(size: str, side: int, batch: int) -> dict[str, Callable[[], object]]:
    """What the networks do to read style sets, one after the other: so none depends on its neighbours."""
    ours = Drawing(size, side, batch)
    sets = torch.stack([to_network(images, best_device()) for images in ours.sets])

    def one_by_one() -> None:
        for k in range(len(sets)):
            ours.networks(sets[k : k + 1])

    return {"as it is": one_by_one, "(with all sets at once)": lambda: ours.networks(sets)}


def compiled(size: str, side: int) -> tuple[dict[str, Callable[[], object]], float]:
    """Forward and backward as it is, and of the compiled network; the seconds of its first call."""
    model, config = generator_of(size)
    batch = train.batches_of(model, config, patients=8, patches=4, side_px=side)(0)
    ours, other = train.Bare(size, batch), train.Bare(size, batch)
    other.task.unet.compile()
    start = time.perf_counter()
    other.forward_and_backward()
    cold = time.perf_counter() - start
    return {"as it is": ours.forward_and_backward, "(with torch.compile)": other.forward_and_backward}, cold


def rows_of(work: str, actions: dict[str, Callable[[], object]], repeats: int) -> list[dict[str, Any]]:
    """How many times as long everything takes without each thing, round by round."""
    times = rounds(actions, repeats)
    rows: list[dict[str, Any]] = []
    for name, found in times.items():
        ratio = found / times["as it is"]
        row: dict[str, Any] = {"work": work, "without": "" if name == "as it is" else name}
        row["ms processor"] = 1e3 * float(np.median(found[:, 0]))
        row |= {"median": float(np.median(ratio[:, 0])), "least": ratio[:, 0].min(), "most": ratio[:, 0].max()}
        rows.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=["smoke", "tiny", "small", "base"], default="tiny")
    parser.add_argument("--side", type=int, default=64, help="of the patches, pixels")
    parser.add_argument("--batch", type=int, default=8, help="images drawn at once")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also compile the U-Net: minutes")
    options = parser.parse_args()
    shared = SHARED | ({"bfloat16": single_precision} if has_fast_bf16(best_device()) else {})
    size, side, batch = options.size, options.side, options.batch
    rows = rows_of("training step", training(size, side, shared), options.repeats)
    rows += rows_of("drawing", drawing(size, side, batch, shared), options.repeats)
    rows += rows_of("reading styles", reading(size, side, batch), options.repeats)
    if options.compile:
        actions, cold = compiled(size, side)
        rows += rows_of("forward and backward", actions, options.repeats)
        rows[-1]["s of the first call"] = cold
    report(options.out / f"speedups-{size}.json", rows)


if __name__ == "__main__":
    main()
