"""The experiment: label budgets, draws of annotated patients and test folds of one config, each in a run folder.

Every sub-run, `budget<k>[-draw<d>][-fold<j>]/` (the first draw without a number), is an ordinary run folder, which
could be resumed and reported alone. The root adds what all of them say together: `evaluation/per_patient.csv`,
`evaluation/summary.json` and the report.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.config import RunConfig
from stedm.config_experiment import Budget, ExperimentConfig
from stedm.config_file import load_config
from stedm.data.tables import read_own_csv, write_csv
from stedm.errors import UserError
from stedm.evaluation.statistics import summary_table
from stedm.files import atomic_path, read_json, write_json
from stedm.graph import stages_of
from stedm.stage import Stage
from stedm.stages.report import report
from stedm.stages.run_folder import RunFolder


@dataclass(frozen=True)
class Part:
    """One run folder with its config; `name` is the sub-run's, and "" for the folder that was asked for."""

    name: str
    config: RunConfig
    run: RunFolder

    def named(self, stage: str) -> str:
        """A stage's name among those of all parts."""
        return f"{self.name}/{stage}" if self.name else stage

    def stages(self) -> list[Stage]:
        """Its stages, in order."""
        if is_experiment(self.config):
            return root_stages(self.config, self.run)
        return stages_of(self.config, self.run)


def is_experiment(config: RunConfig) -> bool:
    """Whether a run of this config has sub-runs."""
    return bool(config.experiment.budgets) or config.experiment.draws > 1 or config.experiment.folds > 1


def parts_of(config: RunConfig, root: str | Path) -> list[Part]:
    """The sub-runs, budget by budget, draw by draw, fold by fold, then the root; the root alone for a plain run."""
    return [*(_sub_runs(config, Path(root)) if is_experiment(config) else []), Part("", config, RunFolder(root))]


def _sub_runs(config: RunConfig, root: Path) -> list[Part]:
    draws, folds = config.experiment.draws, config.experiment.folds
    parts = []
    for budget in _budgets(config):
        for draw, j in itertools.product(range(1 if budget == "all" else draws), range(folds)):
            name = f"budget{budget}" + (f"-draw{draw}" if draw else "") + (f"-fold{j}" if folds > 1 else "")
            split = dataclasses.replace(
                config.split,
                label_budget=None if budget == "all" else budget,
                draw=draw if draws > 1 else config.split.draw,
                fold=[j, folds] if folds > 1 else config.split.fold,
            )
            own = dataclasses.replace(config, split=split, experiment=ExperimentConfig())
            parts.append(Part(name, own, RunFolder(root / name)))
    return parts


def _budgets(config: RunConfig) -> list[Budget]:
    return config.experiment.budgets or [_budget(config)]


def _budget(config: RunConfig) -> Budget:
    return "all" if config.split.label_budget is None else config.split.label_budget


def root_stages(config: RunConfig, run: RunFolder) -> list[Stage]:
    """The stages of an experiment's root: they need the sub-runs' evaluations and reports."""
    names = [part.name for part in _sub_runs(config, run.root)]
    return [
        Stage(
            "evaluate",
            functools.partial(evaluate_root, run, config),
            run.evaluation,
            ("experiment", "evaluate.bootstrap", "seed", "segmentation.arms"),
            tuple(f"{name}/evaluate" for name in names),
        ),
        Stage(
            "report",
            functools.partial(report, run.root),
            run.report,
            ("cohort.licence",),
            ("evaluate", *(f"{name}/report" for name in names)),
        ),
    ]


def annotated_patients(config: RunConfig, root: Path) -> dict[str, int]:
    """Number of annotated patients of each sub-run, by name; of `all`, which may differ between folds, the most.

    Raises UserError for two budgets, or two draws, that come to the same.
    """
    parts = _sub_runs(config, root)
    most: dict[Budget, int] = {}
    earlier: dict[Any, str] = {}
    for part in parts:
        names = read_json(part.run.data / "splits.json")["train_annotated"]
        budget, fold = _budget(part.config), part.config.split.fold
        most[budget] = max(len(names), most.get(budget, 0))
        same = earlier.setdefault((budget, str(fold), tuple(names)), part.name)
        if same != part.name:
            raise UserError(
                f"experiment.draws: {same} and {part.name} annotate the same patients: there are too few with masks to"
                " draw from; ask for fewer draws, or another label budget"
            )
    if len(set(most.values())) < len(most):
        raise UserError(f"experiment.budgets: `all` is {most['all']} patients here, like another; remove one")
    return {part.name: most[_budget(part.config)] for part in parts}


def evaluate_root(run: RunFolder, config: RunConfig) -> None:
    """Write the root's per_patient.csv, with the columns budget, draw and fold, and summary.json.

    The patients of all folds are pooled before any statistics. The summary is that of the main budget, the last one,
    and has those of all of them under `budgets`, by the number of annotated patients.
    """
    budgets = annotated_patients(config, run.root)
    tables = []
    for part in _sub_runs(config, run.root):
        table = read_own_csv(part.run.evaluation / "per_patient.csv")
        split = part.config.split
        fold = split.fold[0] if split.fold else 0
        tables.append(table.assign(budget=budgets[part.name], draw=split.draw, fold=fold))
    pooled = pd.concat(tables, ignore_index=True)
    with atomic_path(run.evaluation / "per_patient.csv") as temporary:
        write_csv(pooled, temporary)
    summaries = {str(budget): _summary(pooled, config, budget) for budget in dict.fromkeys(budgets.values())}
    main = list(summaries.values())[-1]
    write_json(run.evaluation / "summary.json", main | {"budgets": summaries})


def _summary(pooled: pd.DataFrame, config: RunConfig, budget: int) -> dict[str, Any]:
    return summary_table(
        pooled[pooled["budget"] == budget],
        config.segmentation.arms,
        label_budget=budget,
        resamples=config.evaluate.bootstrap,
        seed=config.seed,
    )


def _place(config: RunConfig) -> tuple[Budget, int, list[int] | None]:
    """What tells a sub-run from the others."""
    return _budget(config), config.split.draw, config.split.fold


def adopt(parts: Sequence[Part]) -> None:
    """Move the results of an earlier plain run in the root into the sub-run that it is: its stages are done.

    Raises UserError if it is none of them.
    """
    root = parts[-1]
    saved = root.run.root / "config.yaml"
    if len(parts) == 1 or not (root.run.data.exists() and saved.exists()):
        return
    earlier = load_config(saved)
    if is_experiment(earlier):
        return
    same = [part for part in parts[:-1] if _place(part.config) == _place(earlier)]
    if not same:
        raise UserError(
            f"{root.run.root}: holds a run with label budget {_budget(earlier)}, which is not among experiment.budgets;"
            " add it, or name another folder with --out"
        )
    target = same[0].run
    if target.data.exists():
        return
    target.root.mkdir(exist_ok=True)
    folders = [path for path in root.run.folders() if path.exists()]
    for path in sorted(folders, key=lambda path: path == root.run.data):  # the last: the mark of a move not yet over
        os.replace(path, target.root / path.name)
