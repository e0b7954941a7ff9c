"""Drawing images: images per second and peak memory by size, evaluations, precision and guidance; counted work.

    python benchmarks/sample.py --out runs/sample-benchmark --size tiny --sides 64 128

An untrained generator of the preset. One thing is varied at a time, from the model's defaults; style vectors are ready,
as in a run, where a style is read once for a plan row. Work is counted on tensors without memory, so that 512 px and
the largest preset cost nothing: multiply-accumulates of U-Net (all evaluations and guidance branches), decoder, and of
reading one style set (first stage and style encoder, all images of the set). `--count` counts and draws nothing.
"""

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import CLASSES, by_turns, generator_of, peak_mib, report, start_peak
from torch.utils.flop_counter import FlopCounterMode

from stedm.device import best_device, has_fast_bf16
from stedm.diffusion import pipeline
from stedm.diffusion.grain import middle_of
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampling import Sampling, guidance_weights

ORIGINAL_GMAC = 286 * 436
"""Of the original method for an image of 512 px: its U-Net alone, first stage and style encoder not counted."""
FEW_STEP_NFE = 4


def branches(sampling: Sampling) -> int:
    """How many ways the network is asked at each evaluation."""
    scales = {"layout_guidance": sampling.layout_guidance, "style_guidance": sampling.style_guidance}
    return len(guidance_weights(sampling.guidance, **scales))


def gmac(network: Any, *given: Any, **named: Any) -> float:
    """Multiply-accumulates of one call, in thousand millions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*given, **named)
    return counter.get_total_flops() / 2e9


def work(size: str, side: int) -> dict[str, Any]:
    """Work for one image of `side` pixels, beside the original's for one of 512 px."""
    no_autocast = mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none
    with torch.device("meta"), no_autocast:
        model, config = generator_of(size)
        C, f, N = model.first_stage.latent_channels, model.first_stage.factor, config.diffusion.style_images or 1
        z = torch.empty(1, C, side // f, side // f)
        style = model.unet.null_style.detach()[None]
        layout, given = torch.zeros(1, side, side, dtype=torch.uint8), torch.ones(1, dtype=torch.bool)
        conditions = {"layout": layout, "layout_given": given, "style": style, "style_given": given}
        evaluation = gmac(model.unet, z, torch.ones(1), **conditions)
        decoder = gmac(model.first_stage.decode, z)
        images, latents = torch.empty(1, N, 3, side, side), torch.empty(1, N, C, side // f, side // f)
        reading = gmac(model.first_stage.encode, images[0]) + gmac(model.style_extractor, images, latents)
        reading += gmac(model.first_stage.decode, middle_of(images[0], latents[0])[1])
    evaluations = model.sampling.nfe * branches(model.sampling)
    total = evaluations * evaluation + decoder + reading
    return {
        "preset": size,
        "side": side,
        "GMAC an evaluation": evaluation,
        "evaluations": evaluations,
        "GMAC decoder": decoder,
        "GMAC style set": reading,
        "GMAC an image": total,
        "without guidance": FEW_STEP_NFE * evaluation + decoder + reading,
        "original / ours, per pixel": ORIGINAL_GMAC / total * (side / 512) ** 2,
    }


def variations(sides: list[int], nfes: list[int]) -> list[dict[str, Any]]:
    """One thing at a time, from the defaults."""
    default = {"side": sides[0], "nfe": Sampling().nfe, "precision": "default", "layout": 1.0, "style": 1.5}
    changes: list[dict[str, Any]] = [{}, *({"side": side} for side in sides[1:]), *({"nfe": nfe} for nfe in nfes)]
    changes += [{"style": 1.0}, {"layout": 1.5, "style": 2.0}]
    changes += [{"precision": "float32"}] if has_fast_bf16(best_device()) else []
    return [default | change for change in changes]


def draw(model: StyleDiffusion, row: dict[str, Any], batch: int, style_sets: np.ndarray) -> None:
    """One batch."""
    layouts = np.random.default_rng(0).integers(0, len(CLASSES), (batch, row["side"], row["side"]), np.uint8)
    single = mock.patch.object(pipeline, "autocast", lambda device: contextlib.nullcontext())
    with single if row["precision"] == "float32" else contextlib.nullcontext():
        model(
            layouts,
            styles=row["styles"],
            seeds=list(range(batch)),
            nfe=row["nfe"],
            layout_guidance=row["layout"],
            style_guidance=row["style"],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=["smoke", "tiny", "small", "base"], default="tiny")
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--nfe", type=int, nargs="*", default=[1, 8, 20])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--count", action="store_true", help="only count the work")
    options = parser.parse_args()
    report(
        options.out / "work.json", [work(size, side) for size in ("tiny", "small", "base") for side in (64, 256, 512)]
    )
    if options.count:
        return
    model, config = generator_of(options.size)
    model = model.to(best_device())
    side, count = options.sides[0], config.diffusion.style_images or 1
    sets = np.random.default_rng(1).integers(0, 256, (options.batch, count, side, side, 3), np.uint8)
    styles = model.extract_styles(sets)
    rows = variations(options.sides, options.nfe)
    given = [row | {"styles": styles} for row in rows]
    actions: dict[str, Any] = {
        str(k): lambda row=row: draw(model, row, options.batch, sets) for k, row in enumerate(given)
    }
    actions["styles"] = lambda: model.extract_styles(sets)
    times = by_turns(actions, options.repeats)
    for k, row in enumerate(rows):
        start_peak()
        actions[str(k)]()
        sampling = dataclasses.replace(Sampling(), layout_guidance=row["layout"], style_guidance=row["style"])
        row |= {"branches": branches(sampling), "peak MiB": peak_mib()}
        row |= {
            f"images/s {name}": options.batch / t for name, t in zip(("processor", "wall"), times[str(k)], strict=True)
        }
    reading = {
        f"style sets/s {name}": options.batch / t
        for name, t in zip(("processor", "wall"), times["styles"], strict=True)
    }
    report(options.out / f"sample-{options.size}.json", [*rows, {"side": side, "images a set": count} | reading])


if __name__ == "__main__":
    main()
