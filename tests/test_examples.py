"""The example scripts, run as a user runs them: one small run, then what others do with it."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from stedm.evaluation.segmentation import confusion, patient_scores
from stedm.stages.run_folder import RunFolder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = [
    "cohort.phantom.train_patients=4",
    "cohort.phantom.val_patients=1",
    "cohort.phantom.test_patients=3",
    "cohort.phantom.unseen_patients=0",
    "cohort.phantom.slide_px=64",
    "split.label_budget=2",
    "diffusion.annotated_only_control=false",
    "segmentation.seeds=[0]",
    "segmentation.arms=[real+stain,real+stain+synthetic]",
    "generate.images=8",
    "evaluate.bootstrap=100",
    "evaluate.images_per_style=4",
]


def example(name: str, *arguments: object) -> None:
    words, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("examples") / "run"
    example("train_on_phantom", "--out", out, "--set", *SMALL)
    return out


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_scripts_are_short() -> None:
    scripts = [path for path in EXAMPLES.glob("*.py") if not path.name.startswith("convert_")]
    assert len(scripts) == 5
    assert [path.name for path in scripts if len(path.read_text(encoding="utf-8").splitlines()) > 40] == []


def test_training_ends_with_a_report_and_the_scores(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("train_on_phantom", "--out", run, "--set", *SMALL)  # nothing is done twice
    said = capsys.readouterr().out
    assert "real+stain+synthetic" in said and "worst decile" in said
    assert str(run / "report" / "index.html") in said and (run / "report" / "index.html").is_file()


def test_own_images_lend_their_style(run: Path, tmp_path: Path) -> None:
    style, layout = tmp_path / "style", tmp_path / "layout.png"
    style.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):  # larger than the patches, and not square
        Image.fromarray(rng.integers(90, 240, (96, 130, 3), dtype=np.uint8)).save(style / name)
    Image.fromarray(np.tri(100, dtype=np.uint8)).save(layout)
    arguments = ("--model", run / "diffusion", "--style", style, "--layout", layout, "--out", tmp_path / "drawn.png")
    example("unseen_style", *arguments, "--images", 3)
    drawn = pixels(tmp_path / "drawn.png")
    assert drawn.shape == (64, 4 * 64, 3)
    assert (drawn[:, 64:128] != drawn[:, 128:192]).any()  # another seed, another image


def test_mixtures_lead_from_one_style_to_the_other(run: Path, tmp_path: Path) -> None:
    example("style_interpolation", "--run", run, "--steps", 3, "--out", tmp_path / "mixed.png")
    strip = pixels(tmp_path / "mixed.png").astype(float)
    assert strip.shape == (64, 5 * 64, 3)
    first, middle, last = (strip[:, 64 * k : 64 * (k + 1)].mean((0, 1)) for k in (1, 2, 3))
    assert np.abs(first - last).max() > 1  # two styles
    assert np.abs(middle - (first + last) / 2).max() < np.abs(first - last).max()


def test_a_timm_backbone_reads_the_style(tmp_path: Path) -> None:
    backbone, weights = timm.create_model("test_resnet", pretrained=False), tmp_path / "weights"
    timm.models.save_for_hf(backbone, weights, safe_serialization=True)
    example("timm_encoder", "--weights", weights, "--out", tmp_path / "run", "--set", *SMALL)
    kept = load_file(tmp_path / "run/diffusion/style_encoder/model.safetensors")
    given = backbone.state_dict()["conv1.0.weight"]
    assert any(tensor.shape == given.shape and torch.equal(tensor, given) for tensor in kept.values())


def test_predictions_of_others_are_scored_by_patient(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(run)
    patches = folder.patches()
    test = patches[patches["split"] == "test"]
    maps = folder.label_maps(test)
    rows = []
    for k, (patient, truth) in enumerate(zip(test["patient"], maps, strict=True)):
        for kind, label_map in (("truth", truth), ("prediction", np.roll(truth, 5, axis=0))):
            Image.fromarray(label_map).save(tmp_path / f"{kind}{k}.png")
        rows.append({"patient": patient, "truth": f"truth{k}.png", "prediction": f"prediction{k}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    classes = folder.classes()
    example("evaluate_predictions", tmp_path / "table.csv", "--classes", ",".join(classes), "--out", tmp_path / "p.csv")
    confusions = np.stack([confusion(np.roll(truth, 5, axis=0), truth, len(classes)) for truth in maps])
    expected = patient_scores(test["patient"].tolist(), confusions, classes=classes)
    found = pd.read_csv(tmp_path / "p.csv")
    np.testing.assert_allclose(found["iou"], expected["iou"])
    assert f"{expected['iou'].mean():.3f}" in capsys.readouterr().out
