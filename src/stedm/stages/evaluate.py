"""Stage `evaluate`: every segmenter on every test patient."""

from typing import Any

import numpy as np
import pandas as pd

from stedm.config import RunConfig
from stedm.data.tables import write_csv
from stedm.device import best_device
from stedm.evaluation.segmentation import patch_scores
from stedm.evaluation.statistics import summary_table
from stedm.files import atomic_path, read_json, remove_folder, write_json
from stedm.models.segmenter import Segmenter
from stedm.stages.grids import best_and_worst, save_overlays
from stedm.stages.run_folder import RunFolder, criteria_of

_MOST_SHOWN = 4


def evaluate(run: RunFolder, config: RunConfig) -> None:
    """Write per_patient.csv, summary.json and overlays/ of the best and worst patients."""
    patches = run.patches()
    test = patches[(patches["split"] == "test") & patches["annotated"]].reset_index(drop=True)
    images, label_maps = run.images(test), run.label_maps(test)
    per_patient, predictions = _per_patient(run, config, test, images, label_maps)
    with atomic_path(run.evaluation / "per_patient.csv") as temporary:
        write_csv(per_patient, temporary)
    budget = len(read_json(run.data / "splits.json")["train_annotated"])
    summary = summary_table(
        per_patient,
        config.segmentation.arms,
        label_budget=budget,
        resamples=config.evaluate.bootstrap,
        seed=config.seed,
    )
    write_json(run.evaluation / "summary.json", summary)
    shown = _shown_arms(summary)
    remove_folder(run.evaluation / "overlays")  # of patients who were best and worst by fewer arms or seeds
    write_json(run.evaluation / "overlays" / "arms.json", shown)
    for label, patient in zip(("best", "worst"), best_and_worst(per_patient, shown[-1]), strict=True):
        rows = np.flatnonzero(test["patient"] == patient)[:4]
        name = "".join(c if c.isalnum() else "_" for c in patient)[:48]
        maps = {arm: predictions[arm][rows] for arm in shown}
        save_overlays(run.evaluation / "overlays" / f"{label}_{name}.png", images[rows], label_maps[rows], maps)


def _shown_arms(summary: dict[str, Any]) -> list[str]:
    """Arms whose predictions are pictured, the one that best and worst are told by at the end."""
    arms, headline = list(summary["arms"]), summary["headline"]
    if headline is None:
        return arms[-_MOST_SHOWN:]
    others = [arm for arm in (arms[0], headline["baseline"]) if arm != headline["arm"]]
    return [*dict.fromkeys(others), headline["arm"]]


def _per_patient(
    run: RunFolder, config: RunConfig, test: pd.DataFrame, images: np.ndarray, label_maps: np.ndarray
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Scores per arm, seed and patient, and the predictions (n, H, W) of each arm's first seed, for pictures.

    The last columns are the segmenter's, the same for all its patients: arms are chosen by them, never by the scores.
    """
    classes = run.classes()
    tables, shown = [], {}
    for arm in config.segmentation.arms:
        for seed in config.segmentation.seeds:
            folder = run.segmenter(arm, seed)
            segmenter = Segmenter.from_pretrained(folder).to(best_device())
            maps = segmenter.predict(images)
            shown.setdefault(arm, maps)
            table = patch_scores(maps, label_maps, test, classes=classes)
            table.insert(0, "seed", seed)
            table.insert(0, "arm", arm)
            tables.append(table.assign(**criteria_of(folder)))
    return pd.concat(tables, ignore_index=True), shown
