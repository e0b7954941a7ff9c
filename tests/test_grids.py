"""The grid of styles: whose they are."""

import numpy as np
import pandas as pd
import pytest

from stedm.config_file import load_config
from stedm.stages.grids import StyleGrid


class Run:
    """Patches in memory, each image of the colour of its row."""

    def __init__(self, patches: pd.DataFrame) -> None:
        self._patches = patches.assign(split="train", colour=range(len(patches)))

    def patches(self) -> pd.DataFrame:
        return self._patches

    def label_maps(self, rows: pd.DataFrame) -> np.ndarray:
        return np.zeros((len(rows), 32, 32), np.uint8)

    def images(self, rows: pd.DataFrame) -> np.ndarray:
        return np.broadcast_to(rows["colour"].to_numpy(np.uint8)[:, None, None, None], (len(rows), 32, 32, 3))


@pytest.mark.parametrize(
    ("patients", "annotated", "shown"),
    [
        ("AAB", [True, False, False], [[2]]),  # A has an image without a mask, and yet an annotation in use
        ("AAB", [True, True, True], [[0, 1], [2]]),  # there is nobody else
        ("ABC", [True, False, False], [[1], [2]]),
    ],
)
def test_styles_are_those_of_patients_whose_annotation_was_never_used(patients, annotated, shown):
    run = Run(pd.DataFrame({"patient": list(patients), "annotated": annotated}))
    grid = StyleGrid(run, load_config(overrides=["size=smoke"]))  # type: ignore[arg-type]
    assert [sorted(set(images[:, 0, 0, 0].tolist())) for images in grid.style_sets] == shown
