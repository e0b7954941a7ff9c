"""The run folder: where each stage keeps its results, and how the next ones read them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.arms import FULL_ARM, SECOND_ROUND, SYNTHETIC_SETS, first_round
from stedm.config import RunConfig
from stedm.data.patches import LabelMaps, PatchImages
from stedm.data.tables import read_parquet
from stedm.errors import UserError
from stedm.evaluation.choice import CRITERIA
from stedm.files import read_json, whole

TEACHER_ARM = "real+stain"
"""The real-trained segmenter behind pseudo-layouts and filter: this arm, at the run's own seed."""
MOST_TEACHERS = 3
"""Segmenters behind second round and self-training, at most: those of the first seeds, so that more change nothing."""
JUDGE_ARM = FULL_ARM
"""The segmenter that measures drawn images, at the run's own seed: it trains and filters nothing."""


class RunFolder:
    """Paths and readers of `runs/<name>/` (the layout of docs: run folder)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.data = self.root / "data"
        self.autoencoder = self.root / "autoencoder"
        self.diffusion = self.root / "diffusion"
        self.control = self.root / "control"
        self.few_step = self.root / "few_step"
        self.synthetic = self.root / "synthetic"
        self.self_training = self.root / "self-training"
        self.segmentation = self.root / "segmentation"
        self.evaluation = self.root / "evaluation"
        self.report = self.root / "report"

    def generator(self, config: RunConfig) -> Path:
        """Folder of the generator that draws the synthetic set."""
        return self.few_step if config.generate.generator == "few-step" else self.diffusion

    def synthetic_set(self, name: str) -> Path:
        """Folder of one of `SYNTHETIC_SETS`; `unfiltered` are the images of `synthetic`."""
        return self.synthetic if name in ("synthetic", "unfiltered") else self.root / f"synthetic-{name}"

    def folders(self) -> list[Path]:
        """Every folder that a stage may write."""
        sets = [self.synthetic_set(name) for name in SYNTHETIC_SETS]
        return sorted({path for name, path in vars(self).items() if name != "root"} | set(sets))

    def segmenter(self, arm: str, seed: int) -> Path:
        """Folder of one trained segmenter."""
        return self.segmentation / arm / f"seed{seed}"

    def teachers(self, config: RunConfig, name: str = "synthetic") -> list[Path]:
        """Folders of the segmenters behind a synthetic set."""
        return [self.segmenter(*teacher) for teacher in teachers(config, name)]

    def patches(self) -> pd.DataFrame:
        """The patches table, one row per patch."""
        path = self.data / "patches.parquet"
        if not path.is_file():
            raise UserError(f"{path}: not found; run `stedm prepare` first")
        patches = read_parquet(path, needs=("patient", "split", "annotated", "image"))
        if patches.empty:
            raise UserError(f"{path}: has no patch; run `stedm prepare` again")
        return patches

    def classes(self) -> list[str]:
        """Class names in label order."""
        return class_names(self.data / "classes.json", fix="run `stedm prepare` again")

    def images(self, patches: pd.DataFrame) -> np.ndarray:
        """Images (n, H, W, 3) uint8 of these rows of the patches table."""
        return PatchImages(self.data, patches["image"].tolist(), cache_bytes=0).images(range(len(patches)))

    def label_maps(self, patches: pd.DataFrame) -> np.ndarray:
        """Label maps (n, H, W) uint8 of these rows; refuses rows whose annotation must not be used."""
        if not patches["annotated"].all():
            raise ValueError("label maps of unannotated patches are not to be read")
        return self.hidden_label_maps(patches)

    def hidden_label_maps(self, patches: pd.DataFrame) -> np.ndarray:
        """Label maps (n, H, W) uint8 of rows that have one, the label budget notwithstanding.

        To measure with, and for the arm `full`, which is a ceiling: nothing else may read them.
        """
        if "mask" not in patches or not patches["mask"].astype(bool).all():
            path = self.data / "patches.parquet"
            raise UserError(f"{path}: names no mask of patches that have one; run `stedm prepare` again")
        return LabelMaps(self.data, patches["mask"].tolist(), cache_bytes=0).label_maps(range(len(patches)))


def class_names(path: Path, *, fix: str) -> list[str]:
    """Class names in label order, of a classes.json. Raises UserError, with the fix, for a damaged one."""
    with whole(path, fix=fix):
        classes: list[str] = read_json(path)["classes"]
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes are no list of names")
        if len(set(classes)) < len(classes):
            raise ValueError("a class comes twice")
    return classes


def teachers(config: RunConfig, name: str = "synthetic") -> list[tuple[str, int]]:
    """(arm, seed) of the segmenters that, together, read the layouts of a synthetic set and judge its pairs."""
    if name != SECOND_ROUND:
        return [(TEACHER_ARM, config.seed)]
    arm = first_round(config.segmentation.arms)
    assert arm is not None, "no arm asks for a second round"
    return together(config, arm)


def together(config: RunConfig, arm: str) -> list[tuple[str, int]]:
    """(arm, seed) of the segmenters of an arm that read images together: the second round's and self-training's."""
    return [(arm, seed) for seed in sorted(config.segmentation.seeds[:MOST_TEACHERS])]


def train_patches(patches: pd.DataFrame, *, annotated: bool | None = None) -> pd.DataFrame:
    """Rows of the training patients: all, or only (un)annotated ones."""
    rows = patches["split"] == "train"
    if annotated is not None:
        rows &= patches["annotated"].astype(bool) == annotated
    return patches[rows].reset_index(drop=True)


def common_mpp(patches: pd.DataFrame) -> float | None:
    """Microns per pixel of the patches; None when they differ by more than 1 %, and no one number would be true."""
    mpp = patches["mpp"].to_numpy(float)
    return float(np.median(mpp)) if mpp.max() <= 1.01 * mpp.min() else None


def criteria_of(segmenter: Path) -> dict[str, float]:
    """What a trained segmenter may be chosen by, `choice.CRITERIA`; NaN for what was not measured.

    It is that of the weights that were kept, the best of their training.
    """
    log = segmenter / "metrics.csv"
    with whole(log, fix="train this segmenter again"):
        if not log.is_file():
            return dict.fromkeys(CRITERIA, math.nan)
        table = pd.read_csv(log)
        if not set(CRITERIA.values()) & set(table.columns):
            raise ValueError("no column of validation patients")
        return {
            criterion: float(table[column].max()) if column in table else math.nan
            for criterion, column in CRITERIA.items()
        }
