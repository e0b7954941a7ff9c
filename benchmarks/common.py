"""What the speed benchmarks share: an untrained generator of any size, timing, tables, the machine."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stedm.config import DiffusionConfig, RunConfig
from stedm.device import best_device, has_fast_bf16
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampling import Sampling
from stedm.files import write_json
from stedm.models.autoencoder import FirstStage
from stedm.presets import resolve
from stedm.stages.diffusion import _untrained

CLASSES = ["background", "stroma", "epithelium"]


def first_stage_of(config: RunConfig) -> FirstStage:
    """An untrained first stage, as stage `autoencoder` builds it."""
    options = config.autoencoder
    assert options.channels is not None
    return FirstStage.new(
        options.channels, latent_channels=options.latent_channels, space_to_depth=options.space_to_depth
    )


def generator_of(size: str, **diffusion: Any) -> tuple[StyleDiffusion, RunConfig]:
    """An untrained generator of a preset, with other settings, and the preset: speed does not depend on the weights."""
    config = resolve(RunConfig(size=size, diffusion=DiffusionConfig(**diffusion)))  # type: ignore[arg-type]
    model = _untrained(first_stage_of(config), config, CLASSES, Sampling(), mpp=1.0)
    return model.eval().to(memory_format=torch.channels_last), config


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Processor time of this process, and wall time; waits for the GPU where there is one."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def rounds(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Processor and wall seconds (repeats, 2) of each action: A B C A B C ..., after a round that does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            found = seconds(action)
            if turn:
                times[name].append(found)
    return {name: np.array(found) for name, found in times.items()}


def by_turns(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median processor and wall seconds of each action of `rounds`."""
    return {name: tuple(np.median(found, axis=0).tolist()) for name, found in rounds(actions, repeats).items()}


def start_peak() -> None:
    """Measure peak memory from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path(f"/proc/{os.getpid()}/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak memory since `start_peak`, MiB: allocated on the GPU, else resident, of the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def machine() -> dict[str, Any]:
    """What a figure of speed belongs to."""
    device = best_device()
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "bfloat16": has_fast_bf16(device),
        "torch": torch.__version__,
    }


def report(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows and machine as JSON, and print the rows as a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"machine": machine(), "rows": rows})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]))
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        print("| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
