"""Layouts of plan rows: annotations and readings warped, random fields; each a pure function of its row."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stedm.models.segmenter import Segmenter
from stedm.stages.plan_layouts import PlanLayouts

PX = 32


class Images:
    """A run of one annotated patch, all background, and two unannotated ones, dark at the left and at the right."""

    def __init__(self) -> None:
        self.patches = pd.DataFrame(
            {"patch_id": ["a", "left", "right"], "split": "train", "annotated": [True, False, False]}
        )

    def classes(self) -> list[str]:
        return ["background", "gland"]

    def label_maps(self, rows: pd.DataFrame) -> np.ndarray:
        assert rows["annotated"].all()
        return np.zeros((len(rows), PX, PX), np.uint8)

    def images(self, rows: pd.DataFrame) -> np.ndarray:
        dark = {"a": slice(0), "left": slice(PX // 2), "right": slice(PX // 2, PX)}
        images = np.full((len(rows), PX, PX, 3), 255, np.uint8)
        for image, name in zip(images, rows.get("patch_id", rows.index), strict=True):
            image[:, dark[name]] = 0
        return images


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> PlanLayouts:
    """Read by a segmenter that takes dark for gland."""

    def probabilities(images: np.ndarray, *, views: int) -> np.ndarray:
        dark = (images[..., 0] < 128).astype(np.float32)
        return np.stack([1 - dark, dark], 1)

    settings = {"classes": ["background", "gland"], "mpp": 1.0, "patch_px": PX, "colours": None, "multiple_px": 16}
    teacher = SimpleNamespace(probabilities=probabilities, to=lambda _: teacher, **settings)
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda folder: teacher)
    run: Any = Images()
    return PlanLayouts(run, run.patches, teachers=[Path("teacher")])


def row(kind: str, source: str, seed: int = 0) -> pd.Series:
    return pd.Series({"layout_kind": kind, "layout_source": source, "composition": "", "layout_seed": seed})


@pytest.mark.parametrize("source", ["left", "right"])
def test_what_is_read_in_an_unannotated_image_is_warped(layouts: PlanLayouts, source: str) -> None:
    maps = np.stack([layouts.of(row("read", source, seed)) for seed in range(20)])
    assert maps.shape == (20, PX, PX) and maps.dtype == np.uint8 and set(np.unique(maps)) == {0, 1}
    assert len(np.unique(maps, axis=0)) == 20  # every row its own
    assert maps.mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(layouts.of(row("read", source, 3)), maps[3])


def test_several_read_together_and_an_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is sure of dark, two doubt it a little: their mean is the first's reading, a vote would not be."""
    read: list[str] = []

    def from_pretrained(folder: Path) -> SimpleNamespace:
        sure = {"one": 1.0, "two": 0.4, "three": 0.4}[folder.name]

        def probabilities(images: np.ndarray, *, views: int) -> np.ndarray:
            assert views == 4
            read.append(folder.name)
            gland = np.where(images[..., 0] < 128, sure, 1 - sure).astype(np.float32)
            return np.stack([1 - gland, gland], 1)

        member = SimpleNamespace(probabilities=probabilities, to=lambda _: member)
        member.classes, member.mpp, member.patch_px, member.colours, member.multiple_px = [], 1.0, PX, None, 16
        return member

    monkeypatch.setattr(Segmenter, "from_pretrained", from_pretrained)
    run: Any = Images()
    by = {
        names: PlanLayouts(run, run.patches, teachers=[Path(name) for name in names])
        for names in (("one",), ("two",), ("one", "two", "three"))
    }
    one, two, together = (layouts.of(row("read", "left")) for layouts in by.values())
    np.testing.assert_array_equal(together, one)
    assert (together != two).any()
    read.clear()
    by["one", "two", "three"].of(row("read", "left", 1))
    assert read == []
    by["one", "two", "three"].of(row("read", "right"))
    assert read == ["one", "two", "three"]


def test_real_layouts_never_show_what_is_read(layouts: PlanLayouts) -> None:
    assert not layouts.of(row("real", "a")).any()


def test_the_segmenter_is_loaded_only_to_read(layouts: PlanLayouts, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise AssertionError(folder)

    monkeypatch.setattr(Segmenter, "from_pretrained", refuse)
    layouts.of(row("real", "a"))
    with pytest.raises(AssertionError, match="teacher"):
        layouts.of(row("read", "left"))
