"""How fast this machine computes, in a line of `stedm doctor`."""

import time

import torch

from stedm.device import best_device, has_fast_bf16

_AT_ONCE = 100
"""Convolutions a GPU is asked for at once: one is over before the next is asked for."""


def measured() -> str:
    """Rates of a convolution in float32 and in bfloat16, and which of the two stedm computes in."""
    device = best_device()
    rates = {dtype: _rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = rates[torch.bfloat16] / rates[torch.float32]
    chosen = "bfloat16" if has_fast_bf16(device) else "float32"
    text = " against ".join(f"{rate / 1e9:,.0f} GFLOP/s in {str(dtype)[6:]}" for dtype, rate in rates.items())
    return f"{device.type}: 3 x 3 convolution, {text} ({ratio:.1f} x); stedm computes in {chosen}"


@torch.no_grad()
def _rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a convolution of 64 channels, images of 64 x 64: the best of five times."""
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(16, 64, 64, 64).to(device, dtype, memory_format=torch.channels_last)
    at_once = _AT_ONCE if device.type == "cuda" else 1
    seconds = []
    for _ in range(6):  # the first one warms up
        started = time.perf_counter()
        for _ in range(at_once):
            y = convolution(x)
        y.float().sum().item()  # waits for the GPU
        seconds.append((time.perf_counter() - started) / at_once)
    return 2 * 16 * 64 * 64 * 64 * 64 * 9 / min(seconds[1:])
