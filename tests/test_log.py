"""The training log: metrics.csv and pictures always, TensorBoard where it is installed and never in the way."""

import builtins
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.training.log import Observation, TrainingLog

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def watched(folder: Path) -> TrainingLog:
    log = TrainingLog(folder)
    log.open(0)
    for step in (1, 2, 3):
        log.record(step, Observation({"loss": 1 / step}))
    log.record(2, Observation({"val_loss": 0.25, "val_gain": math.nan}, PICTURE))
    log.record(4, Observation({"val_loss": 0.125, "val_gain": -1.5}))
    log.write()
    log.close()
    return log


def without_tensorboard(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import_module = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise error
        return import_module(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize("error", [ImportError("no tensorboard"), TypeError("Descriptors cannot be created directly")])
def test_csv_and_picture_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    without_tensorboard(monkeypatch, error)
    watched(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,loss,val_loss,val_gain\n1,1,,\n2,0.5,0.25,\n3,0.333333,,\n4,,0.125,-1.5\n"
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "samples" / "step_000002.png")), PICTURE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "samples"]


def test_csv_reads_back_as_numbers(tmp_path: Path) -> None:
    watched(tmp_path)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table.dtypes.map(lambda kind: kind.kind).tolist() == ["i", "f", "f", "f"]
    assert table["val_loss"].dropna().tolist() == [0.25, 0.125]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_scalars_and_pictures_and_forgets_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched(tmp_path)
    again = TrainingLog(tmp_path)
    again.open(2)  # resumed after step 2: steps 3 and 4 come again
    again.record(3, Observation({"loss": 9.0}))
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert [event.step for event in events.Scalars("val_loss")] == [2]
    assert [event.step for event in events.Images("samples")] == [2]
