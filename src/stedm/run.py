"""The run: stages in order, each skipped when unchanged, resumed when it was interrupted."""

import dataclasses
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from stedm.config import DiffusionConfig, RunConfig
from stedm.config_file import save_config
from stedm.errors import UserError
from stedm.files import read_json, remove_temporaries, write_json
from stedm.stages.prepare import input_digest, prepare
from stedm.stages.run_folder import TEACHER_ARM, RunFolder

FORMAT = 1
"""Raise when a stage's results change for the same config: old run folders are then redone."""


@dataclass(frozen=True)
class Stage:
    """One unit of work: what it does, where, and everything its result depends on.

    keys: config sections, or dotted keys, that it reads. needs: names of the stages whose results it reads.
    """

    name: str
    action: Callable[[], None]
    folder: Path
    keys: tuple[str, ...]
    needs: tuple[str, ...]
    marker: str = "fingerprint.json"
    extra: str = ""
    keeps_folder: bool = False
    """Shares its folder with an earlier stage: cleaning up must not remove it."""


def stages_of(config: RunConfig, run: RunFolder) -> list[Stage]:
    """Every stage of a run, in order."""
    teacher = _segmenter_name(TEACHER_ARM, config.seed)
    names = [(arm, seed) for arm in config.segmentation.arms for seed in config.segmentation.seeds]
    with_control = config.diffusion.annotated_only_control
    return [
        Stage(
            "prepare",
            lambda: prepare(run.data, config),
            run.data,
            ("cohort", "split", "prepare"),
            (),
            extra=input_digest(config),
        ),
        Stage(
            "autoencoder",
            _later("autoencoder.train_autoencoder", run, config),
            run.autoencoder,
            ("seed", "autoencoder", "diffusion.joint_stain"),
            ("prepare",),
        ),
        _segmenter_stage(run, config, TEACHER_ARM, config.seed),
        *_generator_stages(run, config, teacher),
        *(_segmenter_stage(run, config, *name) for name in names if name != (TEACHER_ARM, config.seed)),
        Stage(
            "evaluate",
            _later("evaluate.evaluate", run, config),
            run.evaluation,
            ("evaluate", "seed", "segmentation.arms", "segmentation.seeds"),
            ("filter", *(_segmenter_name(*name) for name in names)),
        ),
        Stage(
            "report",
            _later("report.report", run.root),
            run.report,
            (),
            ("evaluate", *(("control",) if with_control else ())),
        ),
    ]


def _generator_stages(run: RunFolder, config: RunConfig, teacher: str) -> list[Stage]:
    """The generator, its control where it is wanted, the synthetic set and the filter."""
    pseudo = (teacher,) if config.diffusion.pseudo_confidence is not None else ()
    keys = _generator_keys("annotated_only_control")
    # The control sees annotated images alone: no share of others, no pseudo-layouts.
    control_keys = _generator_keys("annotated_only_control", "unlabelled_share", "pseudo_confidence")
    control = Stage(
        "control", _later("diffusion.train_control", run, config), run.control, control_keys, ("autoencoder",)
    )
    return [
        Stage(
            "diffusion",
            _later("diffusion.train_diffusion", run, config),
            run.diffusion,
            keys,
            ("autoencoder", *pseudo),
        ),
        *([control] if config.diffusion.annotated_only_control else []),
        Stage(
            "generate", _later("generate.generate", run, config), run.synthetic, ("seed", "generate"), ("diffusion",)
        ),
        Stage(
            "filter",
            _later("filter.filter_synthetic", run, config),
            run.synthetic,
            ("filter", "seed"),
            ("generate", teacher),
            marker="filter.json",
            keeps_folder=True,
        ),
    ]


def _generator_keys(*without: str) -> tuple[str, ...]:
    """Every key of the `diffusion` section but those named, and what else a generator reads."""
    names = [field.name for field in dataclasses.fields(DiffusionConfig) if field.name not in without]
    return ("seed", "prepare.patch_px", *(f"diffusion.{name}" for name in names))


def _later(name: str, *arguments: Any, **options: Any) -> Callable[[], None]:
    """A call of stedm.stages.<module>.<function> that imports it then: errors in a config or a table come at once."""

    def action() -> None:
        module, _, function = name.partition(".")
        getattr(importlib.import_module(f"stedm.stages.{module}"), function)(*arguments, **options)

    return action


def _segmenter_name(arm: str, seed: int) -> str:
    return f"segmentation {arm} seed {seed}"


def _segmenter_stage(run: RunFolder, config: RunConfig, arm: str, seed: int) -> Stage:
    ingredients = arm.split("+")
    keys = ["encoder", "encoder_weights", "steps", "batch_size", "learning_rate"]
    keys += ["stain_strength"] if "stain" in ingredients else []
    keys += ["synthetic_share"] if "synthetic" in ingredients else []
    return Stage(
        _segmenter_name(arm, seed),
        _later("segmentation.train_segmenter", run, config, arm=arm, seed=seed),
        run.segmenter(arm, seed),
        tuple(f"segmentation.{key}" for key in keys),
        ("prepare", "filter") if "synthetic" in ingredients else ("prepare",),
        extra=f"{arm} {seed}",
    )


def run_all(config: RunConfig, folder: str | Path, *, until: str | None = None, console: Console | None = None) -> Path:
    """Run every stage (or every stage up to those whose name starts with `until`) and return the run folder.

    Stages whose config and inputs are unchanged are skipped; an interrupted stage continues. Raises UserError.
    """
    console = console or Console(stderr=True)
    run = RunFolder(folder)
    stages = stages_of(config, run)
    if until is not None:
        last = max(k for k, stage in enumerate(stages) if stage.name.startswith(until))
        stages = _needed(stages[: last + 1], until)
    fresh = not run.root.exists()
    try:
        with _locked(run.root):
            remove_temporaries(run.root)
            _run_stages(stages, config, run, console)
    except UserError:
        if fresh and not (run.data / "fingerprint.json").exists():
            shutil.rmtree(run.root, ignore_errors=True)  # a mistake in the input leaves nothing behind
        raise
    return run.root


def _run_stages(stages: list[Stage], config: RunConfig, run: RunFolder, console: Console) -> None:
    fingerprints: dict[str, str] = {}
    for stage in stages:
        fingerprint = fingerprint_of(stage, config, fingerprints)
        fingerprints[stage.name] = fingerprint
        seconds = _execute(stage, fingerprint)
        console.print(f"{stage.name:<44} " + ("unchanged" if seconds is None else f"{seconds:7.1f} s"))
        if stage.name == "prepare":  # the input is good: only now does the folder take this config on
            save_config(config, run.root / "config.yaml")
            write_json(run.root / "environment.json", environment())


def _needed(stages: list[Stage], until: str) -> list[Stage]:
    """The stages called `until...` and everything they depend on, in order."""
    wanted = {stage.name for stage in stages if stage.name.startswith(until)}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.needs)
    return [stage for stage in stages if stage.name in wanted]


def fingerprint_of(stage: Stage, config: RunConfig, fingerprints: dict[str, str]) -> str:
    """SHA-256 over the config values a stage reads and the fingerprints of the stages it reads."""
    content = {
        "format": FORMAT,
        "stage": stage.name,
        "config": {key: _lookup(config, key) for key in stage.keys},
        "needs": {name: fingerprints[name] for name in stage.needs},
        "extra": stage.extra,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _lookup(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _execute(stage: Stage, fingerprint: str) -> float | None:
    """Run a stage unless its marker shows that it is done; seconds it took, None when skipped."""
    done, begun = stage.folder / stage.marker, stage.folder / f"begun-{stage.marker}"
    if done.exists() and read_json(done)["fingerprint"] == fingerprint:
        return None
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
