"""Device, precision and memory layout: chosen once, the same for training and sampling."""

from contextlib import AbstractContextManager
from multiprocessing import current_process

import torch


def best_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def worker_device() -> torch.device:
    """The device of this process: the worker processes of a pool, numbered from 1, take the GPUs in turn."""
    number = current_process().name.rpartition("-")[2]
    if torch.cuda.device_count() < 2 or not number.isdecimal():
        return best_device()
    return torch.device("cuda", (int(number) - 1) % torch.cuda.device_count())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware (on CPUs without it, bf16 autocast would be slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 autocast where the hardware has it, full precision elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_fast_bf16(device))


def lightning_precision(device: torch.device) -> str:
    """The same choice in Lightning's words."""
    return "bf16-mixed" if has_fast_bf16(device) else "32-true"
