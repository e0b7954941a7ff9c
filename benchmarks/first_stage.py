"""The first stage: images per second encoded and decoded, peak memory and work, by size and precision.

python benchmarks/first_stage.py --out runs/first-stage-benchmark --size tiny --sides 64 128
"""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import by_turns, first_stage_of, peak_mib, report, start_peak
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stedm.config import RunConfig
from stedm.device import autocast, best_device, has_fast_bf16
from stedm.presets import resolve


def gmac_per_image(action: Callable[[], object], images: int) -> float:
    """Multiply-accumulates, in thousand millions."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops() / 2e9 / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=["smoke", "tiny", "small", "base"], default="tiny")
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = best_device()
    first_stage = first_stage_of(resolve(RunConfig(size=options.size))).eval()
    first_stage = first_stage.to(device, memory_format=torch.channels_last)
    rows: list[dict[str, Any]] = []
    for side in options.sides:
        x = torch.rand(options.batch, 3, side, side).to(device, memory_format=torch.channels_last) * 2 - 1
        z = torch.randn(options.batch, first_stage.latent_channels, *[side // first_stage.factor] * 2)
        z = z.to(device, memory_format=torch.channels_last)
        work = {"encode": (first_stage.encode, x), "decode": (first_stage.decode, z)}
        for precision in ("float32", "bfloat16") if has_fast_bf16(device) else ("float32",):

            def run(network: Callable[[Tensor], Tensor], given: Tensor, precision: str = precision) -> None:
                with torch.no_grad(), autocast(device) if precision == "bfloat16" else contextlib.nullcontext():
                    network(given)

            actions = {name: lambda pair=pair: run(*pair) for name, pair in work.items()}
            times = by_turns(actions, options.repeats)
            for name, action in actions.items():
                start_peak()
                action()
                row = {"side": side, "precision": precision, "what": name, "peak MiB": peak_mib()}
                per_second = {
                    f"images/s {k}": options.batch / t for k, t in zip(("processor", "wall"), times[name], strict=True)
                }
                rows.append(row | per_second | {"GMAC/image": gmac_per_image(action, options.batch)})
    report(options.out / f"first-stage-{options.size}.json", rows)


if __name__ == "__main__":
    main()
