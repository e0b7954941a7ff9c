"""How ranks share a run: trainings and drawings are done together, segmenters dealt out, the rest is the first's.

A segmenter is small, and a run has many: each is trained by one rank, bit for bit as in a run of one process.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from stedm.config import RunConfig
from stedm.ranks import place, refuse_uneven, share, together

JOINT = {
    "autoencoder": "autoencoder.batch_size",
    "diffusion": "diffusion.batch_size",
    "control": "diffusion.batch_size",
    "few-step": "few_step.batch_size",
    "generate": None,
    "filter": None,
    "self-training": None,
}
"""Stages that every rank works on, by the first word of their names; and the key of the batch that they share."""
DEALT = "segmentation"


class Named(Protocol):
    """A stage."""

    @property
    def name(self) -> str: ...


class Job(Protocol):
    """What is known of a stage of a run; `source` has its result already, or will."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def stage(self) -> Named: ...
    @property
    def source(self) -> Any: ...


AnyJob = TypeVar("AnyJob", bound=Job)


def is_joint(job: Job) -> bool:
    """Whether every rank works on this job."""
    return job.source is None and job.stage.name.split()[0] in JOINT


def is_dealt(job: Job) -> bool:
    """Whether this job is one rank's, whichever."""
    return place().world > 1 and job.source is None and job.stage.name.split()[0] == DEALT


def rounds(jobs: Sequence[AnyJob]) -> Iterator[list[AnyJob]]:
    """The jobs in their order, one by one; where one is dealt, with all of its kind whose needs are done."""
    waiting = list(jobs)
    while waiting:
        open_names = {job.name for job in waiting}
        ready = [job for job in waiting if is_dealt(job) and not open_names & set(job.needs)]
        round_ = ready if is_dealt(waiting[0]) else waiting[:1]
        yield round_
        waiting = [job for job in waiting if job not in round_]


def dealt(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Results of `function(*call)` for all calls, which the ranks take in turns."""
    by_rank = together(_my_calls, function, calls)
    return [by_rank[k % len(by_rank)][k // len(by_rank)] for k in range(len(calls))]


def _my_calls(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [function(*call) for call in share(calls)]


def refuse_uneven_batches(stages: Sequence[tuple[Named, RunConfig]]) -> None:
    """Raise UserError if one of the stages trains on batches that the ranks cannot share evenly."""
    for stage, config in stages:
        key = JOINT.get(stage.name.split()[0])
        if key is not None:
            section, _, name = key.partition(".")
            refuse_uneven(key, getattr(getattr(config, section), name))
