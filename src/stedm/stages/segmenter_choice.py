"""Which segmenters a folder of a run stands for."""

import math
from pathlib import Path

from stedm.arms import FULL_ARM
from stedm.errors import UserError
from stedm.models.model_folder import CONFIG
from stedm.stages.run_folder import RunFolder, validation_iou


def chosen_segmenters(folder: Path) -> tuple[Path, ...]:
    """Segmenter folders: `folder` itself; or every seed of an arm; or those of a run's best arm.

    The best arm has the highest mean IoU on validation patients, `full` left aside: it knows more masks than the label
    budget allows. Raises UserError when there is no segmenter.
    """
    if (folder / CONFIG).is_file():
        return (folder,)
    seeds = _seeds(folder)
    if seeds:
        return seeds
    run = RunFolder(folder)
    arms = {path.name: _seeds(path) for path in sorted(run.segmentation.glob("*")) if _seeds(path)}
    if len(arms) > 1:
        arms.pop(FULL_ARM, None)
    if arms:
        return max(arms.values(), key=_score)
    parts = sorted(path.parent.name for path in folder.glob("*/segmentation"))
    hint = f"one of its runs, for instance {folder / parts[0]}" if parts else "a run, or a segmenter's folder in one"
    raise UserError(f"--model {folder}: no trained segmenter there; name {hint}")


def _seeds(arm: Path) -> tuple[Path, ...]:
    return tuple(sorted(path.parent for path in arm.glob(f"seed*/{CONFIG}")))


def _score(seeds: tuple[Path, ...]) -> float:
    scores = [validation_iou(seed) for seed in seeds if (seed / "metrics.csv").is_file()]
    known = [score for score in scores if not math.isnan(score)]
    return sum(known) / len(known) if known else -1.0
