"""The run: stages in order, each skipped when unchanged, resumed when it was interrupted."""

import fcntl
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from stedm.config import RunConfig
from stedm.config_file import save_config
from stedm.errors import UserError
from stedm.files import read_json, remove_temporaries, write_json
from stedm.graph import Stage, fingerprint_of, needed, stages_of
from stedm.stages.run_folder import RunFolder
from stedm.workers import Workers


def run_all(
    config: RunConfig, folder: str | Path, *, until: str | None = None, jobs: int = 1, console: Console | None = None
) -> Path:
    """Run every stage (or every stage up to those whose name starts with `until`) and return the run folder.

    Stages whose config and inputs are unchanged are skipped; an interrupted stage continues. jobs: processes that
    work on independent stages at the same time; the processor's threads are shared out among them. Raises UserError.
    """
    console = console or Console(stderr=True)
    run = RunFolder(folder)
    stages = stages_of(config, run)
    if until is not None:
        wanted = [k for k, stage in enumerate(stages) if stage.name.startswith(until)]
        if not wanted:
            raise UserError(f"{until} is no stage of this config; set generate.generator: {until}")
        last = max(wanted)
        stages = needed(stages[: last + 1], until)
    fresh = not run.root.exists()
    try:
        with _locked(run.root):
            remove_temporaries(run.root)
            _run_stages(stages, config, run, jobs=jobs, console=console)
    except UserError:
        if fresh and not (run.data / "fingerprint.json").exists():
            shutil.rmtree(run.root, ignore_errors=True)  # a mistake in the input leaves nothing behind
        raise
    return run.root


def _run_stages(stages: list[Stage], config: RunConfig, run: RunFolder, *, jobs: int, console: Console) -> None:
    """`prepare` first and here: a mistake in the input must come before anything else. Then the others."""
    fingerprints: dict[str, str] = {}
    for stage in stages:
        fingerprints[stage.name] = fingerprint_of(stage, config, fingerprints)
    todo = [stage for stage in stages if not is_done(stage, fingerprints[stage.name])]
    for stage in stages:
        if stage not in todo:
            console.print(f"{stage.name:<44} unchanged")
    with Workers(run_named_stage, jobs=min(jobs, max(1, len(todo) - 1))) as workers:
        if todo and todo[0].name == "prepare":
            _say(console, todo[0], execute(todo.pop(0), fingerprints["prepare"]))
        save_config(config, run.root / "config.yaml")  # the input is good: only now does the folder take this config on
        write_json(run.root / "environment.json", environment() | {"jobs": workers.jobs})
        if workers.jobs > 1:
            arguments = {stage.name: (config, run.root, stage.name, fingerprints[stage.name]) for stage in todo}
            workers.run(todo, arguments, done=lambda stage, seconds: _say(console, stage, seconds))
            return
        for stage in todo:
            _say(console, stage, execute(stage, fingerprints[stage.name]))


def _say(console: Console, stage: Stage, seconds: float) -> None:
    console.print(f"{stage.name:<44} {seconds:7.1f} s")


def run_named_stage(config: RunConfig, root: Path, name: str, fingerprint: str) -> float:
    """Execute one stage in a worker process; seconds it took."""
    stage = next(stage for stage in stages_of(config, RunFolder(root)) if stage.name == name)
    return execute(stage, fingerprint)


def is_done(stage: Stage, fingerprint: str) -> bool:
    """Whether the stage's results are there and made from this config and these inputs."""
    marker = stage.folder / stage.marker
    return marker.exists() and bool(read_json(marker)["fingerprint"] == fingerprint)


def execute(stage: Stage, fingerprint: str) -> float:
    """Do a stage, continuing where an interrupted attempt at the same fingerprint stopped; seconds it took."""
    done, begun = stage.folder / stage.marker, stage.folder / f"begun-{stage.marker}"
    unfinished = not done.exists() and begun.exists() and read_json(begun)["fingerprint"] == fingerprint
    # The phantom's and the patches' own check decides what of data/ can be kept.
    if not unfinished and not stage.keeps_folder and stage.name != "prepare":
        shutil.rmtree(stage.folder, ignore_errors=True)
    done.unlink(missing_ok=True)
    if stage.name != "prepare":
        write_json(begun, {"fingerprint": fingerprint})
    started = time.perf_counter()
    stage.action()
    seconds = time.perf_counter() - started
    shutil.rmtree(stage.folder / "training", ignore_errors=True)
    write_json(done, {"fingerprint": fingerprint, "seconds": seconds})
    begun.unlink(missing_ok=True)
    return seconds


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process per run folder; the lock goes with the process, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = open(root / ".lock", "w")  # noqa: SIM115 (closed below, whatever happens)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); choose another folder with --out") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{root}: another stedm process is working there; wait for it or use --out") from None
        yield


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
