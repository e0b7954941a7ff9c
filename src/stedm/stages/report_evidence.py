"""What a run folder holds for its report, read once; None where a stage has written nothing yet."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stedm import files
from stedm.config import RunConfig
from stedm.data.tables import read_own_csv, read_parquet
from stedm.errors import UserError
from stedm.stages.run_folder import RunFolder
from stedm.yaml_text import parse_yaml

_SECTIONS = [field.name for field in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(field.default_factory)]
_CONFIG_AGAIN = "copy the run folder again, or run it with its config"
_PART = re.compile(r"budget(\d+|all)(?:-draw(\d+))?(?:-fold(\d+))?")


@dataclass(frozen=True)
class Evidence:
    """The files of a run, or of an experiment: several runs that differ in label budget and fold."""

    root: Path
    """The folder the report is about and is written to."""
    run: Path
    """The run folder whose generator is shown: `root`, or the first fold of an experiment's main budget."""
    parts: tuple[Path, ...]
    """Every run folder whose results are in the summary: `root` alone, or those of the experiment."""
    config_text: str
    """config.yaml of `root`, as it stands."""
    config: Mapping[str, Any]
    """config.yaml of `run`."""
    environment: Mapping[str, Any] | None
    summary: Mapping[str, Any] | None
    """evaluation/summary.json of `root`."""
    per_patient: pd.DataFrame | None
    """evaluation/per_patient.csv of `root`, the rows of the main label budget."""
    generation: Mapping[str, Any] | None
    validation: Mapping[str, Any] | None
    """diffusion/validation.json."""
    patches: pd.DataFrame | None
    manifest: pd.DataFrame | None
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.resolve().name

    @property
    def experiment(self) -> Mapping[str, Any]:
        """Section `experiment` of `root`'s config: its parts have none."""
        return config_of(self.root).get("experiment") or {}

    @property
    def budgets(self) -> dict[int, Mapping[str, Any]]:
        """Summary of each label budget, ascending; empty for a single run."""
        found = (self.summary or {}).get("budgets") or {}
        return {int(budget): found[budget] for budget in sorted(found, key=int)}


def read_evidence(root: Path) -> Evidence:
    """Read what there is below `root`, a run folder or the folder of an experiment.

    Raises:
        UserError: if it is neither, or a file of it is damaged.
    """
    if not (root / "config.yaml").is_file():
        raise UserError(f"{root} is not a run folder: it has no config.yaml; name the folder given to `stedm run`")
    with files.whole(root, fix="copy it again, or run the stage again"):
        return _read(root)


def _read(root: Path) -> Evidence:
    summary = json_of(root / "evaluation" / "summary.json")
    with files.whole(root / "config.yaml", fix=_CONFIG_AGAIN):
        parts = _parts(root)
    run = _main_part(parts, summary)
    per_patient = table_of(root / "evaluation" / "per_patient.csv")
    if per_patient is not None and summary is not None and "budget" in per_patient:
        per_patient = per_patient[per_patient["budget"] == summary["label_budget"]]
    return Evidence(
        root=root,
        run=run,
        parts=parts,
        config_text=(root / "config.yaml").read_text(encoding="utf-8", errors="replace"),
        config=config_of(run),
        environment=json_of(root / "environment.json"),
        summary=summary,
        per_patient=per_patient,
        generation=json_of(run / "evaluation" / "generation.json"),
        validation=json_of(run / "diffusion" / "validation.json"),
        patches=table_of(run / "data" / "patches.parquet"),
        manifest=table_of(run / "synthetic" / "manifest.parquet"),
        classes=tuple(RunFolder(run).classes() if (run / "data" / "classes.json").is_file() else ()),
    )


def config_of(run: Path) -> Mapping[str, Any]:
    """config.yaml of a run folder. Raises UserError where it is damaged."""
    path = run / "config.yaml"
    with files.whole(path, fix=_CONFIG_AGAIN):
        config = parse_yaml(path.read_text(encoding="utf-8")) or {}
        if not isinstance(config, Mapping):
            raise ValueError("no keys and values")
        for name in _SECTIONS:
            if not isinstance(config.get(name) or {}, Mapping):
                raise ValueError(f"{name}: no keys and values")
    return config


def json_of(path: Path) -> Any:
    """Content of a JSON file; None without it."""
    return files.read_json(path) if path.is_file() else None


def table_of(path: Path) -> pd.DataFrame | None:
    """A CSV or Parquet table; None without it. Patients and groups are text: 0012 stays 0012, and NA a name."""
    if not path.is_file():
        return None
    if path.suffix == ".parquet":
        return read_parquet(path)
    return read_own_csv(path)


def _parts(root: Path) -> tuple[Path, ...]:
    """The runs of an experiment, by budget, draw and fold; `root` itself when it is a single run.

    Those of an earlier config, which `root` no longer asks for, are left out.
    """
    config = config_of(root)
    experiment, split = config.get("experiment") or {}, config.get("split") or {}
    budgets = experiment.get("budgets") or [split.get("label_budget") or "all"]
    draws, folds = experiment.get("draws") or 1, experiment.get("folds") or 1
    if not experiment.get("budgets") and draws == folds == 1:
        return (root,)
    found = []
    for path in root.iterdir():
        named = _PART.fullmatch(path.name)
        if named and (path / "config.yaml").is_file():
            budget, draw, fold = named[1], int(named[2] or 0), int(named[3] or 0)
            of_folds = (named[3] is not None) == (folds > 1)
            if budget in map(str, budgets) and draw < draws and fold < folds and of_folds:
                found.append((float("inf") if budget == "all" else int(budget), draw, fold, path))
    return tuple(path for *_, path in sorted(found)) or (root,)


def _main_part(parts: tuple[Path, ...], summary: Mapping[str, Any] | None) -> Path:
    """The first part with the summary's label budget; the first of all where none has it."""
    for part in parts:
        own = json_of(part / "evaluation" / "summary.json")
        if own is not None and summary is not None and own["label_budget"] == summary["label_budget"]:
            return part
    return parts[0]
