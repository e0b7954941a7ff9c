"""Which segmenters a folder of a run stands for."""

from pathlib import Path

import pandas as pd

from stedm.arms import FULL_ARM
from stedm.errors import UserError
from stedm.evaluation import choice
from stedm.files import read_json, whole
from stedm.models.model_folder import CONFIG
from stedm.stages.run_folder import RunFolder, criteria_of


def chosen_segmenters(folder: Path) -> tuple[Path, ...]:
    """Segmenter folders: `folder` itself; or every seed of an arm; or those of a run's best arm.

    The best arm is the one `choice.merits` likes best, `full` left aside: it knows more masks than the label budget
    allows. Of an evaluated run only what was evaluated counts: not the arms of an earlier config, nor the segmenter
    behind the filter where its arm was not asked for. Raises UserError when there is no segmenter.
    """
    if (folder / CONFIG).is_file():
        return (folder,)
    seeds = _seeds(folder)
    if seeds:
        return seeds
    run = RunFolder(folder)
    arms = {path.name: _seeds(path) for path in sorted(run.segmentation.glob("*")) if _seeds(path)}
    arms = _evaluated(run, arms) or arms
    if len(arms) > 1:
        arms.pop(FULL_ARM, None)
    if arms:
        _, merits = choice.merits({arm: choice.means(pd.DataFrame(map(criteria_of, arms[arm]))) for arm in arms})
        return arms[max(arms, key=lambda arm: merits.get(arm, -1.0))]
    parts = sorted(path.parent.name for path in folder.glob("*/segmentation"))
    hint = f"one of its runs, for instance {folder / parts[0]}" if parts else "a run, or a segmenter's folder in one"
    raise UserError(f"--model {folder}: no trained segmenter there; name {hint}")


def _evaluated(run: RunFolder, arms: dict[str, tuple[Path, ...]]) -> dict[str, tuple[Path, ...]]:
    """Those of the run's segmenters that its summary is about."""
    path = run.evaluation / "summary.json"
    if not path.is_file():
        return {}
    with whole(path, fix="run `stedm evaluate` again"):
        summary = read_json(path)
        names, seeds = set(summary["arms"]), {f"seed{seed}" for seed in summary["seeds"]}
    found = {arm: tuple(seed for seed in arms[arm] if seed.name in seeds) for arm in arms if arm in names}
    return {arm: trained for arm, trained in found.items() if trained}


def _seeds(arm: Path) -> tuple[Path, ...]:
    return tuple(sorted(path.parent for path in arm.glob(f"seed*/{CONFIG}")))
