"""The log of a training: files always, TensorBoard where installed and never in the way, W&B where asked for."""

import builtins
import importlib.util
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.errors import UserError
from stedm.training.log import WANDB, Observation, TrainingLog, UnwrittenLog

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


class FakeWandb(types.ModuleType):
    """W&B's module as far as the log uses it; `calls` is what it was told."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.fails = fails

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **options: Any) -> "FakeWandb":
        if self.fails:
            raise RuntimeError("No API key configured.\nUse `wandb login`")
        self.calls.append(("init", options))
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.calls.append(("metric", (name, step_metric)))

    def log(self, values: dict[str, float]) -> None:
        self.calls.append(("log", values))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_wandb_gets_nothing_unless_a_project_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv(WANDB, raising=False)
    watched(tmp_path)
    assert fake.calls == []


def test_wandb_gets_values_by_step_and_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv(WANDB, "tissue")
    watched(tmp_path)
    (_, options), metric, *logged, last = fake.calls
    assert options["project"] == "tissue" and options["resume"] == "allow" and options["dir"] == str(tmp_path)
    assert options["settings"]["disable_git"] and options["settings"]["x_disable_meta"]
    assert metric == ("metric", ("*", "step")) and last == ("finish", None)
    steps = [values["step"] for _, values in logged]
    assert steps == [1, 2, 3, 2, 4]  # a validation may come after a later step
    assert logged[3] == ("log", {"step": 2, "val_loss": 0.25})  # NaN is left out
    watched(tmp_path)
    assert [call[1]["id"] for call in fake.calls if call[0] == "init"] == [options["id"]] * 2  # the same run goes on
    TrainingLog(tmp_path / "other").open(0)
    assert fake.calls[-2][1]["id"] != options["id"]


def test_wandb_that_is_missing_or_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WANDB, "tissue")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'stedm\[tracking\]'"):
        TrainingLog(tmp_path).open(0)
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails=True))
    with pytest.raises(UserError, match="wandb login") as raised:
        TrainingLog(tmp_path).open(0)
    assert "\n" not in str(raised.value)


def test_the_log_of_other_ranks_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv(WANDB, "tissue")
    log = UnwrittenLog(tmp_path)
    log.open(0)
    log.record(1, Observation({"loss": 1.0}))
    log.close()
    assert fake.calls == [] and log.rows == {1: {"loss": 1.0}}
