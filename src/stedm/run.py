"""The run: stages in order, each skipped when unchanged, resumed when it was interrupted."""

import functools
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stedm.config import RunConfig
from stedm.config_file import save_config
from stedm.errors import Stopped, UserError
from stedm.experiment import Part, adopt, annotated_patients, is_experiment, parts_of
from stedm.files import link, locked, refuse_links, remove_folder, remove_temporaries, write_json, writing
from stedm.fingerprint import fingerprint_in, fingerprint_of
from stedm.ranks import place, together
from stedm.stage import Stage, needed
from stedm.stages.inputs import share_records
from stedm.stages.own_encoders import check_encoders
from stedm.stages.prepare import share_patches
from stedm.stages.run_folder import RunFolder
from stedm.team import dealt, is_dealt, is_joint, refuse_uneven_batches, rounds
from stedm.workers import Workers, threads_each, with_threads


@dataclass(frozen=True)
class Job:
    """A stage of one of the run folders; `source` is another's, whose result is the same and is linked."""

    part: Part
    stage: Stage
    fingerprint: str
    source: "Job | None" = None

    @property
    def name(self) -> str:
        return self.part.named(self.stage.name)

    @property
    def needs(self) -> tuple[str, ...]:
        names = [self.part.named(name) for name in (*self.stage.needs, *self.stage.after)]
        return (*names, *([self.source.name] if self.source else []))

    @property
    def folder(self) -> Path:
        return self.stage.folder


def run_all(
    config: RunConfig,
    folder: str | Path,
    *,
    until: str | None = None,
    jobs: int = 1,
    slide_jobs: int = 1,
    console: Console | None = None,
) -> Path:
    """Run every stage (or every stage up to those whose name starts with `until`) and return the run folder.

    Stages whose config and inputs are unchanged are skipped; an interrupted stage continues; what several label budgets
    share is done once. jobs: processes that work on independent stages at the same time; the processor's threads are
    shared out among them, and a stage that is alone has one's share, too: its bits depend on it. slide_jobs: processes
    that cut slides in `prepare`. Raises UserError.
    """
    console = console or Console(stderr=True)
    parts = parts_of(config, folder)
    root = parts[-1].run.root
    fresh = [part.run.root for part in reversed(parts) if not part.run.root.exists()]
    with ExitStack() as locks:
        try:
            locks.enter_context(writing(root / "config.yaml"))
            locks.enter_context(_locked(root))
            refuse_links(root)
            adopt(parts)
            for part in parts[:-1]:
                locks.enter_context(_locked(part.run.root))
            share_records([part.run.data for part in parts[:-1]])
            every = _all_jobs(parts, until)
            remove_temporaries(root)
            _run_jobs(every, parts, jobs=jobs, slide_jobs=slide_jobs, console=console)
        except Stopped:
            raise
        except UserError:
            for path in fresh:  # a mistake in the input leaves nothing behind
                if not any(path.glob("data/fingerprint.json")) and not any(path.glob("*/data/fingerprint.json")):
                    shutil.rmtree(path, ignore_errors=True)
            raise
    return root


def _all_jobs(parts: Sequence[Part], until: str | None) -> list[Job]:
    """The stages of all parts, or those up to `until`, with their fingerprints."""
    jobs: list[Job] = []
    for part in parts:
        fingerprints = {job.name: job.fingerprint for job in jobs}
        for stage in _up_to(until, part.stages()):
            known = {name: fingerprints[part.named(name)] for name in stage.needs}
            fingerprints[part.named(stage.name)] = fingerprint_of(stage, part.config, known)
            jobs.append(Job(part, stage, fingerprints[part.named(stage.name)]))
    if not jobs:
        raise UserError(f"{until} is no stage of this config; set generate.generator: {until}")
    return jobs


def _up_to(until: str | None, stages: list[Stage]) -> list[Stage]:
    if until is None:
        return stages
    last = max((k for k, stage in enumerate(stages) if stage.name.startswith(until)), default=-1)
    return needed(stages[: last + 1], until)


def _run_jobs(every: list[Job], parts: Sequence[Part], *, jobs: int, slide_jobs: int, console: Console) -> None:
    """`prepare` first and here: a mistake in the input must come before anything else. Then the others."""
    todo = _in_order(_once_each(every))
    open_names = {job.name for job in todo}
    for job in every:
        if job.name not in open_names:
            console.print(f"{job.name:<44} unchanged")
            job.stage.begun.unlink(missing_ok=True)  # of a process that was killed when all was done
    first = any(job.stage.name == "prepare" for job in todo)
    check_encoders(parts[-1].config, None if first else {key for job in todo for key in job.stage.keys})
    refuse_uneven_batches([(job.stage, job.part.config) for job in todo])
    jobs = jobs if place().world == 1 else 1
    threads = threads_each(jobs)  # not of those it takes to finish: after an interruption these are fewer
    with Workers(run_named_stage, jobs=min(jobs, max(1, len(todo) - 1)), threads=threads) as workers:
        _prepare([job for job in todo if job.stage.name == "prepare"], parts, slide_jobs, console)
        todo = [job for job in todo if job.stage.name != "prepare"]
        for part in parts:  # the input is good: only now do the folders take this config on
            save_config(part.config, part.run.root / "config.yaml")
            processes = {"jobs": workers.jobs, "processes": place().world}
            write_json(part.run.root / "environment.json", environment() | processes)
        if workers.jobs > 1:
            arguments = {job.name: _arguments(job) for job in todo}
            workers.run(todo, arguments, done=lambda job, seconds: _say(console, job, seconds))
            return
        with with_threads(threads) if jobs > 1 else nullcontext():
            for side_by_side in rounds(todo):
                for job, seconds in zip(side_by_side, _do_all(side_by_side), strict=True):
                    _say(console, job, seconds)


def _prepare(jobs: list[Job], parts: Sequence[Part], slide_jobs: int, console: Console) -> None:
    """The largest budget first: if it is too large, this is known before any patch is cut."""
    options = {"jobs": slide_jobs} if slide_jobs > 1 else {}
    for job in sorted(jobs, key=lambda job: -(job.part.config.split.label_budget or 0)):
        try:
            share_patches(job.folder, [part.run.data for part in parts if part is not job.part], job.part.config)
            _say(console, job, execute(job.stage, job.fingerprint, **options))
        except UserError as error:
            raise type(error)(f"sub-run {job.part.name}: {error}" if job.part.name else str(error)) from None
    if is_experiment(parts[-1].config):
        annotated_patients(parts[-1].config, parts[-1].run.root)


def _once_each(every: list[Job]) -> list[Job]:
    """What is not done; of jobs with the same result one is to be done, and the others are to link it."""
    results: dict[tuple[str, str], list[Job]] = {}
    for job in every:
        results.setdefault((job.stage.name, job.fingerprint), []).append(job)
    todo = []
    for same in results.values():
        done = [job for job in same if is_done(job.stage, job.fingerprint)]
        source = (done or [job for job in same if _is_begun(job.stage, job.fingerprint)] or same)[0]
        todo += [job if job is source else replace(job, source=source) for job in same if job not in done]
    return todo


def _in_order(jobs: list[Job]) -> list[Job]:
    """The jobs, each after those it needs, otherwise in the order given."""
    waiting, ordered = list(jobs), list[Job]()
    while waiting:
        open_names = {job.name for job in waiting}
        ordered.append(next(job for job in waiting if not open_names & set(job.needs)))
        waiting.remove(ordered[-1])
    return ordered


def _say(console: Console, job: Job, seconds: float) -> None:
    console.print(f"{job.name:<44} " + (f"shared with {job.source.part.name}" if job.source else f"{seconds:7.1f} s"))


def _arguments(job: Job) -> tuple[RunConfig, Path, str, str, Path | None]:
    source = job.source.folder if job.source else None
    return job.part.config, job.part.run.root, job.stage.name, job.fingerprint, source


def run_named_stage(config: RunConfig, root: Path, name: str, fingerprint: str, source: Path | None) -> float:
    """Execute one stage in a worker process, or link its result from folder `source`; seconds it took."""
    return _do(_named(config, root, name), fingerprint, source)


def _do_all(jobs: list[Job]) -> list[float]:
    """Do one job, or some that the ranks share out; the seconds they took."""
    if is_dealt(jobs[0]):
        return dealt(run_named_stage, [_arguments(job) for job in jobs])
    (job,) = jobs
    action = functools.partial(together, act_on_named_stage, *_arguments(job)[:3]) if is_joint(job) else None
    return [_do(job.stage, job.fingerprint, job.source and job.source.folder, action=action)]


def act_on_named_stage(config: RunConfig, root: Path, name: str) -> None:
    """A stage's action alone: what each rank does of a stage that they do together."""
    _named(config, root, name).action()


def _named(config: RunConfig, root: Path, name: str) -> Stage:
    return next(stage for stage in Part("", config, RunFolder(root)).stages() if stage.name == name)


def _do(stage: Stage, fingerprint: str, source: Path | None, *, action: Callable[[], Any] | None = None) -> float:
    if source is None:
        return execute(stage, fingerprint, action=action)
    link(source, stage.folder)
    return 0.0


def _is_begun(stage: Stage, fingerprint: str) -> bool:
    """Whether an interrupted attempt at this very result can be continued."""
    done, begun = stage.folder / stage.marker, stage.begun
    return not done.exists() and fingerprint_in(begun) == fingerprint


def is_done(stage: Stage, fingerprint: str) -> bool:
    """Whether the stage's results are there and made from this config and these inputs."""
    return fingerprint_in(stage.folder / stage.marker) == fingerprint


def execute(stage: Stage, fingerprint: str, *, action: Callable[..., Any] | None = None, **options: Any) -> float:
    """Do a stage, continuing where an interrupted attempt at the same fingerprint stopped; seconds it took.

    action: does what the stage's own does, by several ranks. options: how it goes about it, which does not change the
    result.
    """
    done, begun = stage.folder / stage.marker, stage.begun
    unfinished = _is_begun(stage, fingerprint)
    # The phantom's and the patches' own check decides what of data/ can be kept.
    if not unfinished and not stage.keeps_folder and stage.name != "prepare":
        remove_folder(stage.folder)
    done.unlink(missing_ok=True)
    if stage.name != "prepare":
        write_json(begun, {"fingerprint": fingerprint})
    started = time.perf_counter()
    with writing(done):
        (action or stage.action)(**options)
    seconds = time.perf_counter() - started
    shutil.rmtree(stage.folder / "training", ignore_errors=True)
    write_json(done, {"fingerprint": fingerprint, "seconds": seconds})
    begun.unlink(missing_ok=True)
    return seconds


def _locked(root: Path) -> AbstractContextManager[None]:
    """One process per run folder."""
    busy = "another stedm process is working there; wait for it or use --out"
    return locked(root / ".lock", folder=root, fix="choose another folder with --out", busy=busy)


def environment() -> dict[str, Any]:
    """What the run ran on."""
    import torch

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "stedm": importlib.metadata.version("stedm"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
