"""Ranks: the processes that `torchrun` or `srun` started for one command, on one machine or on many.

The first rank runs the command as if it were alone; the others wait until it calls `together`, and then every rank
calls the same function. So nothing is written, locked or said twice unless a function asks to be called by all.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from stedm.errors import SharedError, UserError

if TYPE_CHECKING:
    from torch import Tensor

STEP_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others within a training step."""
WAIT_TIMEOUT = timedelta(days=30)
"""How long the others wait for work. A rank that dies closes its connections, and is missed within seconds."""
PORTION = 128
"""Images that a rank reads at a time: so what is computed with what stays the same, however many ranks there are."""
_LOST = "another process of this command ended; what is finished is kept, and the same command continues"


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, over all machines and on its own."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def place() -> Place:
    """Where this process stands, from the variables of `torchrun`, else of `srun`; alone without either."""
    env = os.environ
    if {"RANK", "WORLD_SIZE"} <= set(env):
        rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
        return Place(rank, world, int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", world)))
    # Set by `srun` alone: in a batch script without it there is one process, however many tasks were asked for.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        world, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
        return Place(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), world // nodes)
    return Place()


def leave() -> None:
    """Make this process, started by a rank as its helper, one that is alone."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        os.environ.pop(name, None)


def is_first() -> bool:
    """Whether this is the rank that writes and speaks; true for a process that is alone."""
    return place().rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connect the ranks, each with its GPU where there are GPUs; nothing for a process that is alone.

    Raises UserError when another rank has ended, or when there are fewer GPUs than ranks on a machine.
    """
    here = place()
    if here.world == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        if torch.cuda.device_count() < here.local_world:
            raise UserError(
                f"{here.local_world} processes on this machine see {torch.cuda.device_count()} GPU(s) each; start one "
                "a GPU, and let each see all of them (no --gpus-per-task, no --gpu-bind)"
            )
        torch.cuda.set_device(here.local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here.local_world))
    _describe_to_torch(here)
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=STEP_TIMEOUT)
        _connect()
        yield
        dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "onnection" in str(error):
            raise UserError(f"{_LOST} ({str(error).splitlines()[0]})") from error
        raise


def end(code: int) -> int:
    """End a rank with this exit code, at once; return it in a process that is alone.

    While an interpreter ends, threads of torch that still run can abort a rank whose work is done, and with it the job.
    """
    if place().world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _describe_to_torch(here: Place) -> None:
    """Set the variables that torch and Lightning read, where `srun` has not."""
    node = int(os.environ.get("SLURM_NODEID", 0))
    values = {
        "RANK": here.rank,
        "WORLD_SIZE": here.world,
        "LOCAL_RANK": here.local_rank,
        "LOCAL_WORLD_SIZE": here.local_world,
        "GROUP_RANK": node,
        "MASTER_ADDR": first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": 20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000,
    }
    for name, value in values.items():
        os.environ.setdefault(name, str(value))


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: `gpu[03-05,09],cpu1` -> `gpu03`."""
    return re.sub(r"\[(\w+).*", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


_control: Any = None


def _connect() -> None:
    """A group for messages, beside the one that trains: over the network, and with all the time in the world."""
    global _control
    import torch.distributed as dist

    _control = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)


@contextmanager
def leading() -> Iterator[None]:
    """What the first rank does, after which the others may end; not after an error of work they are at."""
    try:
        yield
    except BaseException:
        if not _at_work:
            with suppress(RuntimeError):  # they may have ended, too
                _send(None)
        raise
    _send(None)


_at_work = False


def together(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Called by the first rank: every rank calls the function, and its results come back in the order of the ranks.

    An error ends its rank, and with it the others. Function and arguments travel pickled.
    """
    global _at_work
    _send((function, arguments))
    _at_work = True
    results = everyones(function(*arguments))
    _at_work = False
    return results


def follow() -> int:
    """What the other ranks do: what the first one asks for, until it has finished; the exit code."""
    while (call := _receive()) is not None:
        function, arguments = call
        everyones(function(*arguments))
    return 0


def _send(call: Any) -> None:
    if place().world > 1 and _control is not None:
        import torch.distributed as dist

        dist.broadcast_object_list([call], src=0, group=_control)


def _receive() -> Any:
    import torch.distributed as dist

    box = [None]
    dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def everyones(value: Any) -> list[Any]:
    """Called by every rank: the values of all, in the order of the ranks; each waits for the last."""
    if place().world == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * place().world
    dist.all_gather_object(values, value, group=_control)
    return values


def share(rows: Any) -> Any:
    """This rank's part of a sequence, array or tensor that all ranks have: rows k, k + W, k + 2 W, ..."""
    return rows[place().rank :: place().world]


def portions(total: int) -> list[slice]:
    """This rank's portions of so many rows, of `PORTION` each but the last; ranks take them in turns."""
    return [slice(start, start + PORTION) for start in share(range(0, total, PORTION))]


def pooled(parts: list[Any]) -> list[Any]:
    """Called by every rank: the parts that all ranks have."""
    return [part for those in everyones(parts) for part in those]


def for_all(x: "Tensor") -> "Tensor":
    """As many rows as all ranks have, (W B, ...), laid out as this rank's x (B, ...): to draw noise like it."""
    import torch

    return torch.cat([x] * place().world)


def gathered(x: "Tensor") -> "Tensor":
    """The rows (W B, ...) of all ranks, of which each has its `share` (B, ...); without gradient."""
    if place().world == 1:
        return x
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(x) for _ in range(place().world)]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def total(x: "Tensor") -> "Tensor":
    """Sum of a value over the ranks, the same bits on each; without gradient."""
    if place().world == 1:
        return x
    import torch.distributed as dist

    result = x.detach().clone()
    dist.all_reduce(result)
    return result


def refuse_uneven(key: str, batch_size: int) -> None:
    """Raise UserError when the ranks cannot share a batch evenly: the gradient would not be that of the batch."""
    world = place().world
    if batch_size % world:
        raise UserError(
            f"{key}: {batch_size} rows cannot be shared evenly by {world} processes; set it to a multiple of {world}, "
            "or start as many processes as divide it"
        )


def say(error: UserError) -> str:
    """The line for a user's mistake, empty where the first rank says it."""
    here = place()
    if here.rank == 0:
        return f"stedm: {error}"
    return "" if isinstance(error, SharedError) else f"stedm, process {here.rank} of {here.world}: {error}"
