"""What a training is watched on: validation patients only, all of them in turn, and a warning that says what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stedm.config import DiffusionConfig, RunConfig
from stedm.files import read_json
from stedm.models.autoencoder import FirstStage
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet
from stedm.presets import resolve
from stedm.stages.report_warnings import ignored_conditions, unchecked_conditions
from stedm.stages.watch import GeneratorWatch, ReconstructionWatch, validation_rows
from stedm.training.tasks import AutoencoderTask, DiffusionTask

PX = 32
SPLITS = ["train"] * 4 + ["val"] * 10 + ["test"] * 4
PATIENTS = ["t"] * 4 + ["a"] * 5 + ["b"] * 4 + ["c"] + ["z"] * 4
TABLE = pd.DataFrame(
    {
        "patch_id": [f"p{k}" for k in range(18)],
        "patient": PATIENTS,
        "slide": PATIENTS,
        "source": [f"s{k}" for k in range(18)],
        "x_um": 0.0,
        "y_um": 0.0,
        "mpp": 1.0,
        "split": SPLITS,
        "annotated": [patient != "b" or k % 2 == 0 for k, patient in enumerate(PATIENTS)],
    }
)


class SmallRun:
    """A run folder in memory that remembers whose images and label maps were read."""

    def __init__(self, table: pd.DataFrame = TABLE) -> None:
        self.table, self.read = table, set[str]()

    def patches(self) -> pd.DataFrame:
        return self.table

    def images(self, patches: pd.DataFrame) -> np.ndarray:
        self.read |= set(patches["split"])
        shades = [40 + 10 * int(name[1:]) for name in patches["patch_id"]]
        return np.stack([np.full((PX, PX, 3), shade, np.uint8) for shade in shades])

    def label_maps(self, patches: pd.DataFrame) -> np.ndarray:
        self.read |= set(patches["split"])
        assert patches["annotated"].all()
        maps = np.zeros((len(patches), PX, PX), np.uint8)
        for k, name in enumerate(patches["patch_id"]):
            maps[k, : 2 * int(name[1:])] = 1
        return maps


def networks() -> tuple[Any, DiffusionTask]:
    torch.manual_seed(0)
    first_stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2).eval()
    unet = UNet(latent_channels=4, num_classes=3, factor=4, channels=16, multipliers=[1, 2], style_dim=8)
    extractor = StyleExtractor(dim=8, set_size=2, latent_channels=4)
    task = DiffusionTask(unet, extractor, learning_rate=1e-3, steps=1, seed=0)
    return SimpleNamespace(first_stage=first_stage), task.eval()  # type: ignore[return-value]


def watch_of(run: SmallRun, **diffusion: Any) -> tuple[GeneratorWatch, DiffusionTask]:
    model, task = networks()
    config = resolve(RunConfig(size="smoke", diffusion=DiffusionConfig(**diffusion)))
    return GeneratorWatch(run, config, model, grid=None), task  # type: ignore[arg-type]


def test_only_validation_patients_are_read() -> None:
    run = SmallRun()
    watch, task = watch_of(run)
    with torch.no_grad():
        values = watch(task, 1).values
    assert run.read == {"val"} and set(watch.patients) == {"a", "b", "c"}
    assert list(values) == ["val_loss", "val_style_gain", "val_layout_gain"] and all(np.isfinite(list(values.values())))


@pytest.mark.parametrize("style_set", ["patient", "self"])
def test_style_set_is_other_patches_of_the_patient_or_the_image_itself(style_set: str) -> None:
    watch, _ = watch_of(SmallRun(), style_set=style_set)
    shades = ((watch.style_images[:, :, 0, 0, 0] + 1) * 127.5 - 40).div(10).round().int()  # (n, N), patch numbers
    targets = [k for k in range(18) if SPLITS[k] == "val" and TABLE["annotated"][k]]
    for target, patient, lenders in zip(targets, watch.patients, shades.tolist(), strict=True):
        if style_set == "self" or patient == "c":  # the only image of its patient
            assert set(lenders) == {target}
        else:
            assert {PATIENTS[lender] for lender in lenders} == {patient} and target not in lenders


def test_same_weights_give_the_same_observation_twice() -> None:
    watch, task = watch_of(SmallRun())
    with torch.no_grad():
        assert watch(task, 1) == watch(task, 2)


@pytest.mark.parametrize("most", [3, 6, 100])
def test_patients_take_turns(most: int) -> None:
    rows = validation_rows(TABLE, most, seed=0)
    assert TABLE["annotated"].iloc[rows].all() and len(set(rows)) == len(rows) == min(most, TABLE["annotated"].sum())
    counts = TABLE["patient"].iloc[rows].value_counts()
    if most <= 6:
        assert counts.max() - counts.min() <= 1


def test_without_validation_patients_nothing_is_measured_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = TABLE[TABLE["split"] != "val"].reset_index(drop=True)
    watch, task = watch_of(SmallRun(table))
    assert watch(task, 1).values == {}
    watch.save(tmp_path, name="diffusion")
    found = read_json(tmp_path / "validation.json")
    assert found["images"] == 0 and found["loss"] is found["style_gain"] is None and found["ignored"] == []
    assert (
        capsys.readouterr().err.count("could not be checked: no validation patient is annotated. Try: raise split.")
        == 2
    )


@pytest.mark.parametrize(
    ("patches", "unchecked"),
    [(5, {"style": "one validation patient"}), (1, dict.fromkeys(["style", "layout"], "one validation image"))],
)
def test_one_patient_or_image_has_nothing_to_be_exchanged_with_and_that_is_said(
    patches: int, unchecked: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, task = watch_of(SmallRun(TABLE[TABLE["patient"] == "a"].head(patches).reset_index(drop=True)))
    with torch.no_grad():
        value = watch(task, 1).values["val_loss"]
    (tmp_path / "metrics.csv").write_text(f"step,val_loss\n1,{value}\n")
    watch.save(tmp_path, name="diffusion")
    found, said = read_json(tmp_path / "validation.json"), capsys.readouterr().err
    assert {name for name in ("style", "layout") if found[f"{name}_gain"] is None} == set(unchecked)
    for name, reason in unchecked.items():
        assert f"diffusion: Whether the {name} condition is ignored could not be checked: {reason}" in said
    assert all(
        line.removeprefix("diffusion: ") in unchecked_conditions(found)
        for line in said.splitlines()
        if "checked" in line
    )


def test_a_loss_that_is_no_number_is_said() -> None:
    gains = {"style_gain": None, "layout_gain": 0.1, "images": 4, "patients": 2}
    (sentence,) = unchecked_conditions(gains)
    assert "no number" in sentence and unchecked_conditions(None) == []


def test_ignored_style_is_said_on_stderr_and_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network whose style enters with weight zero, and whose prior trusts nothing that is measured."""
    watch, task = watch_of(SmallRun())
    with torch.no_grad():
        task.unet.style.weight.zero_()
        task.unet.prior.gate.bias.fill_(-200.0)
        values = watch(task, 7).values
    (tmp_path / "metrics.csv").write_text("step,loss,val_loss\n3,1.5,\n7,1.25,1.125\n")
    watch.save(tmp_path, name="diffusion")
    found = read_json(tmp_path / "validation.json")
    assert values["val_style_gain"] == 0 and "style" in found["ignored"]
    assert found["history"] == [{"step": 7, "val_loss": 1.125}]
    said = [line for line in capsys.readouterr().err.splitlines() if "style condition is ignored" in line]
    assert len(said) == 1 and said[0].startswith("diffusion: ") and "+0.00 %" in said[0] and "Try:" in said[0]
    assert said[0].removeprefix("diffusion: ") in ignored_conditions(found)


def test_no_validation_and_nothing_ignored_say_nothing() -> None:
    assert ignored_conditions(None) == ignored_conditions({"ignored": []}) == []


def test_reconstruction_is_measured_in_decibels() -> None:
    run = SmallRun()
    watch = ReconstructionWatch(run, seed=0)  # type: ignore[arg-type]
    off = SimpleNamespace(distribution=lambda x: (x, x), reconstruct=lambda raw: raw + 0.2)
    task = SimpleNamespace(device=torch.device("cpu"), first_stage=off)
    (value,) = watch(task, 1).values.values()  # type: ignore[arg-type]
    assert value == pytest.approx(20, abs=0.01) and run.read == {"val"}  # 0.2 of a range of 2: a tenth, 20 dB
    first_stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2)
    real = AutoencoderTask(first_stage, kl_weight=0.0, latent_noise=0.0, learning_rate=1e-3, steps=1, seed=0)
    with torch.no_grad():
        assert np.isfinite(watch(real.eval(), 1).values["val_psnr"])
