"""Start processes as `torchrun` does: the variables it sets, one free port, and no launcher that takes seconds.

And the variables of a process that is kept from the network.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

SRC = Path(__file__).resolve().parents[1] / "src"


def variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process on one machine, and what keeps its tests quick and its crashes readable."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONFAULTHANDLER": "1",  # a crash in native code says where
    }


def without_network(environment: Mapping[str, str], attempts: Path) -> dict[str, str]:
    """The variables of a process in which whoever tries to reach the network leaves a line in the file `attempts`."""
    python_path = [str(Path(__file__).parent / "no_network"), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(python_path), "STEDM_ATTEMPTS": str(attempts)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(
    world: int, words: Sequence[str], *, program: Sequence[str] = ("-m", "stedm.cli")
) -> list[subprocess.Popen[str]]:
    """Start `stedm WORDS` in `world` processes; `program`: what Python runs in the place of stedm."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *program, *words],
            env=os.environ | {"PYTHONPATH": str(SRC)} | variables(rank, world, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def run_ranks(
    world: int, words: Sequence[str], *, program: Sequence[str] = ("-m", "stedm.cli"), timeout: float = 500
) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each rank."""
    processes = start_ranks(world, words, program=program)
    try:
        ended = [(process, *process.communicate(timeout=timeout)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out, err) for process, out, err in ended]


def last_words(*ended: tuple[int, str, str]) -> str:
    """Exit code of each rank, and the end of what it said, or where it crashed: the part that a long log must keep."""

    def end(said: str) -> str:
        crash = said.find("Fatal Python error")
        return said[-500:] if crash < 0 else said[crash : crash + 1500]

    return "\n".join(f"rank {rank}, exit code {code}: {end(err)}" for rank, (code, _, err) in enumerate(ended))


def call_ranks(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` in `world` processes that are connected."""
    mp.spawn(_call, args=(world, free_port(), function, arguments), nprocs=world)


def _call(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    from stedm import ranks

    os.environ |= variables(rank, world, port)
    torch.set_num_threads(1)
    with ranks.joined():
        function(*arguments)
