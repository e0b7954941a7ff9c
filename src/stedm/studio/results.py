"""What the arms were worth, patient by patient, and their outlines on a patient's images."""

import functools
import shlex
from typing import Any

import numpy as np
import pandas as pd

from stedm.data.tables import read_own_csv
from stedm.device import best_device
from stedm.errors import UserError
from stedm.files import read_json
from stedm.models.segmenter import Segmenter
from stedm.stages.grids import overlay
from stedm.stages.run_folder import RunFolder

MOST_SHOWN = 4
"""Images of a patient that overlays are made for."""


class Results:
    """Readers of `evaluation/`; raises UserError for a run that was not evaluated."""

    def __init__(self, run: RunFolder, patches: pd.DataFrame) -> None:
        path = run.evaluation / "summary.json"
        if not path.is_file():
            raise UserError(f"{path}: not found; `stedm evaluate {shlex.quote(str(run.root))}` evaluates the arms")
        self._run, self._patches = run, patches
        self.summary: dict[str, Any] = read_json(path)
        """evaluation/summary.json."""
        self.per_patient = read_own_csv(run.evaluation / "per_patient.csv")
        """evaluation/per_patient.csv."""
        self._segmenter = functools.lru_cache(maxsize=8)(self._load)

    @property
    def names(self) -> list[str]:
        """The arms, in the order of the config."""
        return list(self.summary["arms"])

    def arms(self) -> pd.DataFrame:
        """A row per arm: mean IoU over patients, its 95 % interval, spread, worst decile, mean Dice."""
        rows = [
            {
                "arm": arm,
                "patient IoU": score["patient_iou_mean"],
                "95 % from": score["ci95"][0],
                "to": score["ci95"][1],
                "std over patients": score["patient_iou_std"],
                "worst decile": score["worst_decile_iou"],
                "Dice": score["patient_dice_mean"],
            }
            for arm, score in self.summary["arms"].items()
        ]
        return pd.DataFrame(rows)

    def patients(self) -> pd.DataFrame:
        """A row per test patient, a column per arm: IoU as the mean over seeds."""
        table = self.per_patient.groupby(["patient", "arm"])["iou"].mean().unstack("arm").reindex(columns=self.names)
        if "group" in self.per_patient:
            table.insert(0, "group", self.per_patient.groupby("patient")["group"].first())
        return table.rename_axis(columns=None).reset_index()

    def overlays(self, patient: str, arms: list[str] | None = None) -> dict[str, np.ndarray]:
        """Up to MOST_SHOWN images of a test patient: {"image", "truth", arm, ...: (n, H, W, 3) uint8}.

        Outlines of the annotation and of each arm's prediction, first seed. Raises UserError for other patients: the
        label maps of training patients whose annotation is not used are not shown.
        """
        mine = self._patches["patient"].astype(str) == patient
        rows = self._patches[mine & (self._patches["split"] == "test") & self._patches["has_mask"].astype(bool)]
        if rows.empty:
            raise UserError(f"{patient}: no test patient with masks; pick one of the table")
        rows = rows.iloc[np.linspace(0, len(rows) - 1, min(MOST_SHOWN, len(rows))).round().astype(int)]
        images, truth = self._run.images(rows), self._run.hidden_label_maps(rows)
        found = {"image": images, "truth": _outlined(images, truth)}
        for arm in arms or self.names:
            found[arm] = _outlined(images, self._segmenter(arm).predict(images))
        return found

    def _load(self, arm: str) -> Segmenter:
        folder = self._run.segmenter(arm, int(self.summary["seeds"][0]))
        return Segmenter.from_pretrained(folder).to(best_device())


def _outlined(images: np.ndarray, label_maps: np.ndarray) -> np.ndarray:
    return np.stack([overlay(image, label_map) for image, label_map in zip(images, label_maps, strict=True)])
