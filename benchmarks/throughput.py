"""Drawing on a GPU: images per second and peak memory by preset and side, full and few-step sampling, compiled or not.

    python benchmarks/throughput.py --out runs/throughput-benchmark --sizes tiny small base --sides 256 512

Untrained generators of the presets; style vectors are ready, as in a run. A call of the generator is timed whole: noise
from seeds, network, decoder, grain, tones, bands, images back in memory as bytes. `full` is the default sampler,
`few-step` as many evaluations without guidance, as a few-step generator needs them, and fewer. `--write` also writes
each image and its label map as PNG, as `stedm generate` does. Repeats go round all rows; the first does not count.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CLASSES, generator_of, peak_mib, report, seconds, start_peak

from stedm.device import best_device
from stedm.diffusion.pipeline import StyleDiffusion, Styles
from stedm.png import Writer

SAMPLERS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, 20 evaluations": {"nfe": 20},
    "few-step, 4 evaluations": {"nfe": 4, "style_guidance": 1.0},
    "few-step, 2 evaluations": {"nfe": 2, "style_guidance": 1.0},
    "few-step, 1 evaluation": {"nfe": 1, "style_guidance": 1.0},
}


class Drawing:
    """Batches of one generator at one side."""

    def __init__(self, model: StyleDiffusion, side: int, batch: int, set_size: int) -> None:
        rng = np.random.default_rng(0)
        self.model, self.batch = model, batch
        blocks = rng.integers(0, len(CLASSES), (batch, side // 32, side // 32), np.uint8)
        self.layouts = blocks.repeat(32, axis=1).repeat(32, axis=2)
        images = rng.integers(0, 256, (set_size, side, side, 3), np.uint8)
        one = model.extract_styles([images])
        self.styles: Styles = one[torch.zeros(batch, dtype=torch.long)]

    def __call__(self, **sampling: Any) -> np.ndarray:
        return self.model(self.layouts, styles=self.styles, seeds=list(range(self.batch)), **sampling)

    def write(self, folder: Path, batches: int) -> None:
        """Draw and write some batches with the default sampler."""
        with Writer() as writer:
            for number in range(batches):
                for k, (image, layout) in enumerate(zip(self(), self.layouts, strict=True)):
                    name = f"{number}-{k}"
                    writer.put((folder / f"{name}-mask.png", layout), (folder / f"{name}.png", image))


def rows_of(drawing: Drawing, given: dict[str, Any], samplers: list[str], repeats: int) -> list[dict[str, Any]]:
    """Images per second of each sampler: median, least and most of the repeats; and peak memory."""
    actions: dict[str, Callable[[], Any]] = {name: lambda name=name: drawing(**SAMPLERS[name]) for name in samplers}
    times: dict[str, list[float]] = {name: [] for name in actions}
    peaks: dict[str, float] = {}
    cold: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            start_peak()
            wall = seconds(action)[1]
            if turn:
                times[name].append(drawing.batch / wall)
            else:
                cold[name] = wall
            peaks[name] = peak_mib()
    return [
        given | speed(name, found) | {"first call, s": cold[name], "peak MiB": peaks[name]}
        for name, found in times.items()
    ]


def speed(name: str, found: list[float]) -> dict[str, Any]:
    """Images per second in repeats."""
    return {"sampler": name, "images/s": float(np.median(found)), "least": min(found), "most": max(found)}


def written(drawing: Drawing, given: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Images per second with PNG writing."""
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            drawing.write(Path(folder), batches=4)
            found.append(4 * drawing.batch / (time.perf_counter() - start))
    return given | speed("full, and PNG written", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="*", choices=["smoke", "tiny", "small", "base"], default=["tiny"])
    parser.add_argument("--sides", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--samplers", nargs="*", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="of U-Net and decoder, by torch.compile")
    parser.add_argument("--write", action="store_true", help="also with PNG files")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        model, config = generator_of(size)
        model = model.to(best_device())
        if options.compile:
            model.unet.compile(dynamic=False)
            model.first_stage.kl.decoder.compile(dynamic=False)
        for side in options.sides:
            given = {"preset": size, "side": side, "batch": options.batch, "compiled": options.compile}
            drawing = Drawing(model, side, options.batch, config.diffusion.style_images or 1)
            rows += rows_of(drawing, given, options.samplers, options.repeats)
            if options.write:
                rows.append(written(drawing, given, options.repeats))
            report(options.out / "throughput.json", rows)


if __name__ == "__main__":
    main()
