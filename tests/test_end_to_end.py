"""The whole chain at its smallest size: what it leaves behind, killed and resumed, and fed with bad input."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from differing import differing
from PIL import Image
from spawned import without_network

from stedm import Segmenter, StyleDiffusion
from stedm.cli import main
from stedm.config import ARMS
from stedm.config_file import load_config
from stedm.data.layouts import RealLayouts
from stedm.data.synthetic import SyntheticSet
from stedm.evaluation.probe import FIGURES
from stedm.evaluation.segmentation import confusion, iou, mean_over_classes
from stedm.files import read_json
from stedm.stages.measure import measure
from stedm.stages.run_folder import RunFolder, train_patches

OPTIONS = {
    "size": "smoke",
    "cohort.phantom.train_patients": 4,
    "cohort.phantom.val_patients": 1,
    "cohort.phantom.test_patients": 3,
    "cohort.phantom.unseen_patients": 2,
    "cohort.phantom.slide_px": 64,
    "cohort.phantom.slides_per_patient": 4,
    "split.label_budget": 2,
    "segmentation.seeds": "[0, 1]",
    "segmentation.arms": "[real, real+stain, real+stain+synthetic]",
    "generate.images": 12,
    "generate.batch_size": 4,
    "generate.nfe": 3,
    "evaluate.bootstrap": 200,
    "evaluate.images_per_style": 6,
}


def command(out: Path, **changes: Any) -> list[str]:
    flags = [word for key, value in (OPTIONS | changes).items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "stedm.cli", "run", "--out", str(out), *flags]


def run_once(out: Path, **changes: Any) -> str:
    """Without network: whoever tries to reach it leaves a line in the file `attempts`."""
    attempts = out.with_name(f"{out.name}-attempts")
    alone = without_network(os.environ, attempts)
    result = subprocess.run(command(out, **changes), capture_output=True, text=True, timeout=280, env=alone)
    assert result.returncode == 0, result.stderr
    assert not attempts.exists(), attempts.read_text()
    return result.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("end-to-end") / "run"
    run_once(out)
    return out


def results(out: Path) -> dict[str, bytes]:
    """What must not depend on interruptions: scores, images, masks, weights, what was seen while training."""
    patterns = ("evaluation/per_patient.csv", "evaluation/summary.json", "synthetic/*/*.png", "**/*.safetensors")
    patterns += ("**/metrics.csv", "**/samples/*.png", "*/validation.json")
    return {str(path.relative_to(out)): path.read_bytes() for pattern in patterns for path in sorted(out.glob(pattern))}


def test_run_folder_is_the_contract(finished: Path) -> None:
    expected = [
        "config.yaml",
        "environment.json",
        "summary.md",
        "data/cohort.parquet",
        "data/patches.parquet",
        "data/splits.json",
        "data/fingerprint.json",
        "autoencoder/config.json",
        "autoencoder/metrics.csv",
        "diffusion/model_index.json",
        "diffusion/unet/config.json",
        "diffusion/style_encoder/model.safetensors",
        "diffusion/metrics.csv",
        "diffusion/validation.json",
        "synthetic/plan.parquet",
        "synthetic/manifest.parquet",
        "segmentation/real+stain+synthetic/seed1/config.json",
        "segmentation/real/seed0/metrics.csv",
        "evaluation/per_patient.csv",
        "evaluation/summary.json",
        "evaluation/generation.json",
        "report/index.html",
    ]
    assert [name for name in expected if not (finished / name).is_file()] == []
    leftovers = [*finished.rglob("training"), *finished.rglob("begun-*"), *finished.rglob(".*")]
    assert [path.name for path in leftovers if path.name != ".lock"] == []
    assert [path.name for path in finished.rglob("*") if path.suffix in {".pkl", ".pt", ".pth", ".ckpt", ".bin"}] == []


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a JSON file")


def read_strictly(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=refuse)


def test_summary_has_the_keys_relied_on(finished: Path) -> None:
    summary = read_strictly(finished / "evaluation" / "summary.json")
    assert {"label_budget", "n_test_patients", "seeds", "arms", "comparisons"} <= set(summary)
    assert (summary["label_budget"], summary["n_test_patients"], summary["seeds"]) == (2, 3, [0, 1])
    assert set(summary["arms"]) == {"real", "real+stain", "real+stain+synthetic"} <= set(ARMS)
    for arm in summary["arms"].values():
        assert {"patient_iou_mean", "patient_iou_std", "worst_decile_iou", "patient_dice_mean", "ci95"} <= set(arm)
        assert arm["ci95"][0] <= arm["patient_iou_mean"] <= arm["ci95"][1]
        assert 0 <= arm["worst_decile_iou"] <= arm["patient_iou_mean"] <= arm["patient_dice_mean"] <= 1
        assert set(arm["iou_by_seed"]) == {"0", "1"} and arm["gap_closed"] is None
    tables = [pd.read_csv(finished / f"segmentation/real+stain/seed{seed}/metrics.csv") for seed in (0, 1)]
    kept = np.mean([table["val_iou"].max() for table in tables])
    assert math.isclose(summary["arms"]["real+stain"]["validation_iou"], kept, abs_tol=1e-9)
    assert summary["headline"] in summary["comparisons"]
    assert summary["headline"]["arm"] == "real+stain+synthetic" and set(summary["groups"]) <= {"he", "ihc0", "ihc1"}
    for row in summary["comparisons"]:
        assert {"arm", "baseline", "delta_iou", "ci95", "p_value", "p_adjusted"} <= set(row)
        difference = (
            summary["arms"][row["arm"]]["patient_iou_mean"] - summary["arms"][row["baseline"]]["patient_iou_mean"]
        )
        assert math.isclose(row["delta_iou"], difference, abs_tol=1e-9) and 0 <= row["p_value"] <= 1


def test_generation_has_the_keys_relied_on(finished: Path) -> None:
    generation = read_strictly(finished / "evaluation" / "generation.json")
    assert {
        "nfe",
        "images",
        "images_per_second",
        "device",
        "layout_agreement",
        "style_distance_matched",
        "style_distance_shuffled",
        "kid",
        "nearest_real_ratio",
    } <= set(generation)
    assert len(generation["nearest_real_between"]) == 41 and 0 <= generation["memorised_rate_set"] <= 1
    assert (generation["nfe"], generation["images"]) == (3, 12) and generation["images_per_second"] > 0
    assert None not in generation.values() and set(FIGURES) < set(generation)
    splits = read_json(finished / "data" / "splits.json")
    assert generation["unseen"]["patients"] == splits["unseen"] == ["unseen000", "unseen001"]
    assert generation["seen"]["patients"] == splits["train_unannotated"] and generation["unseen_are"] == "unseen"
    assert generation["unseen"]["images"] == 2 * 6 and (finished / "evaluation/samples/never_seen.png").is_file()
    assert all(generation[name] == generation["unseen"][name] for name in FIGURES)


def test_never_seen_patients_lend_nothing_to_training(finished: Path) -> None:
    patches = pd.read_parquet(finished / "data" / "patches.parquet")
    unseen = patches[patches["split"] == "unseen"]
    assert len(unseen) and unseen["has_mask"].all() and not unseen["annotated"].any()
    assert not set(train_patches(patches)["patch_id"]) & set(unseen["patch_id"])
    manifest = pd.read_parquet(finished / "synthetic" / "manifest.parquet")
    assert not set(manifest["style_patient"]) & set(unseen["patient"])
    with pytest.raises(ValueError, match="not to be read"):
        RunFolder(finished).label_maps(unseen)


def test_training_was_watched(finished: Path) -> None:
    """One validation patient: no other patient's style to exchange with, so nothing is said about the style."""
    validation = read_strictly(finished / "diffusion" / "validation.json")
    assert validation["style_gain"] is None and "style" not in validation["ignored"]
    assert validation["patients"] == 1 and validation["layout_gain_se"] > 0
    table = pd.read_csv(finished / "diffusion" / "metrics.csv")
    assert list(table) == ["step", "loss", "val_loss", "val_style_gain", "val_layout_gain"]
    measured = table[table["val_loss"].notna()]
    assert [row["step"] for row in validation["history"]] == measured["step"].tolist() and len(measured) > 1
    assert validation["history"][-1]["val_loss"] == pytest.approx(validation["loss"], rel=1e-5)
    grids = [f"step_{step:06d}.png" for step in measured["step"]]
    assert sorted(path.name for path in (finished / "diffusion" / "samples").glob("step*")) == grids
    assert pd.read_csv(finished / "autoencoder" / "metrics.csv")["val_psnr"].notna().sum() > 1
    assert pd.read_csv(finished / "segmentation/real/seed0/metrics.csv")["val_iou"].notna().sum() > 1


def test_scores_are_those_of_test_patients(finished: Path) -> None:
    table = pd.read_csv(finished / "evaluation" / "per_patient.csv")
    splits = read_json(finished / "data" / "splits.json")
    assert set(table["patient"]) == set(splits["test"]) and len(table) == 3 * 2 * 3
    assert not set(splits["test"]) & set(splits["train_annotated"] + splits["train_unannotated"] + splits["val"])


def test_synthetic_set_is_in_unannotated_styles_with_its_provenance(finished: Path) -> None:
    manifest = pd.read_parquet(finished / "synthetic" / "manifest.parquet")
    splits = read_json(finished / "data" / "splits.json")
    assert set(manifest["style_patient"]) == set(splits["train_unannotated"])
    columns = {"id", "layout_source", "style_patches", "seed", "agreement", "keep", "nearest_real", "image", "mask"}
    assert columns <= set(manifest.columns) and len(manifest) == 12
    for row in manifest.itertuples():
        image = np.asarray(Image.open(finished / "synthetic" / row.image))
        mask = np.asarray(Image.open(finished / "synthetic" / row.mask))
        assert image.shape == (64, 64, 3) and mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 1, 2, 255}


def test_styles_none_draws_without_a_style(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    log = run_once(out, **{"generate.styles": "none"})
    assert re.search(r"^diffusion +unchanged", log, re.MULTILINE)
    manifest = pd.read_parquet(out / "synthetic" / "manifest.parquet")
    assert set(manifest["style_patient"]) == {""} and set(manifest["style_patches"]) == {"[]"}
    drawn, styled = ((folder / "synthetic/images/s000000.png").read_bytes() for folder in (out, finished))
    assert drawn != styled
    styled_figures, figures = (read_json(folder / "evaluation/generation.json") for folder in (finished, out))
    assert figures["layout_agreement"] != styled_figures["layout_agreement"]


def test_patients_with_one_image_each_leave_the_generator_unmeasured(finished: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished, run.root)
    patches = run.patches()
    patches.drop_duplicates("patient").to_parquet(run.data / "patches.parquet")
    measure(run, load_config(finished / "config.yaml"))
    found = read_json(run.evaluation / "generation.json")
    assert found["style_ratio"] is None and found["unseen"]["memorised_rate"] is None
    assert found["nearest_real_ratio"] > 0 and found["nfe"] > 0  # of the synthetic set


def test_more_arms_are_added_to_a_finished_run_and_leave_what_is_there(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    more = ["real+stain+second-round", "real+stain+unfiltered", "real+unstyled", "real+annotated-only"]
    more += ["real+stain+second-round+self-training", "real+transfer+mean-teacher+consistency"]
    arms = ["real", "real+stain", "real+stain+synthetic", *more]
    log = run_once(out, **{"segmentation.arms": f"[{', '.join(arms)}]"})
    redone = {line.split(" seed")[0] for line in log.splitlines() if re.search(r" \d+\.\d s$", line)}
    redone = {re.sub(r" +\d+\.\d s$", "", line) for line in redone}
    controls = {
        f"{verb} {name}" for verb in ("generate", "filter") for name in ("second-round", "unstyled", "annotated-only")
    }
    labelled = "self-training real+stain+second-round"
    assert redone == {*controls, labelled, *(f"segmentation {arm}" for arm in more), "evaluate", "report"}
    before = results(finished)
    kept = [name for name in before if not name.startswith("evaluation")]
    assert differing({name: (out / name).read_bytes() for name in kept}, {name: before[name] for name in kept}) == {}
    splits = read_json(finished / "data" / "splits.json")
    sets = {
        name: pd.read_parquet(out / f"synthetic-{name}" / "manifest.parquet")
        for name in ("second-round", "unstyled", "annotated-only")
    }
    assert set(sets["unstyled"]["style_patient"]) == {""}
    assert not set(sets["annotated-only"]["style_patient"]) & set(splits["train_annotated"])  # as in the paper
    for manifest in (*sets.values(), pd.read_parquet(out / "synthetic" / "manifest.parquet")):
        assert (
            len(manifest) == 12 and {"agreement", "keep", "mask"} <= set(manifest) and (manifest["weight"] == 1).all()
        )
    assert set(read_json(out / "evaluation" / "summary.json")["arms"]) == set(arms)
    teacher = Segmenter.from_pretrained(out / "segmentation" / more[-1] / "seed0")
    assert teacher.predict(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 64, 64)
    assert_second_round_is_by_all_segmenters_of_the_first(out)


def assert_second_round_is_by_all_segmenters_of_the_first(out: Path) -> None:
    """Agreements and read layouts are those of the mean of their probabilities; plan and images are new."""
    run, folder = RunFolder(out), out / "synthetic-second-round"
    first, manifest = (pd.read_parquet(out / name / "manifest.parquet") for name in ("synthetic", folder.name))
    assert not set(manifest["seed"]) & set(first["seed"])
    assert (manifest["layout_kind"] == first["layout_kind"]).all()
    members = [Segmenter.from_pretrained(run.segmenter("real+stain+synthetic", seed)) for seed in (0, 1)]
    drawn, patches = SyntheticSet(folder, mask="layout"), run.patches().set_index("patch_id")

    def together(images: np.ndarray, segmenters: list[Segmenter]) -> np.ndarray:
        return np.mean([member.probabilities(images, views=4) for member in segmenters], 0).argmax(1).astype(np.uint8)

    def agreements(segmenters: list[Segmenter]) -> list[float]:
        every = np.arange(len(manifest))
        pairs = zip(together(drawn.images(every), segmenters), drawn.label_maps(every), strict=True)
        return [float(mean_over_classes(iou(confusion(p, y, 3)))) for p, y in pairs]

    np.testing.assert_allclose(manifest["agreement"], agreements(members), atol=1e-3)
    assert all(np.abs(manifest["agreement"] - agreements([member])).max() > 2e-3 for member in members)
    read = manifest[manifest["layout_kind"] == "read"]
    for row in read.itertuples():
        seen = together(run.images(patches.loc[[row.layout_source]]), members)
        warped = RealLayouts(seen).warp(0, np.random.default_rng(row.layout_seed))
        assert (np.asarray(Image.open(folder / row.layout)) != warped).mean() < 1e-3
    assert len(read) == 4
    html = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert manifest["keep"].all()  # the filter is off
    assert "The second round has 12 images more, read by the segmenters of real+stain+synthetic together" in html
    unannotated = len(train_patches(run.patches(), annotated=False))
    assert f"segmenters of real+stain+second-round together labelled {unannotated} real unannotated images" in html


def test_filter_can_be_switched_off_and_hard_images_preferred(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    changes = {"filter.tolerance": "null", "filter.min_agreement": 0, "filter.hard_sampling": 1}
    run_once(out, **changes, **{"segmentation.arms": "[real+stain+synthetic]"})
    manifest = pd.read_parquet(out / "synthetic" / "manifest.parquet")
    assert manifest["keep"].all() and (manifest["ignored_fraction"] == 0).all()
    assert math.isclose(manifest["weight"].mean(), 1) and manifest["weight"].std() > 0
    weights = [SyntheticSet(folder / "synthetic").weights.std() for folder in (finished, out)]
    assert weights[0] == 0 < weights[1]
    nets = [Segmenter.from_pretrained(folder / "segmentation/real+stain+synthetic/seed0") for folder in (finished, out)]
    image = pd.read_parquet(finished / "data" / "patches.parquet")["image"].iloc[0]
    x = np.array(Image.open(finished / "data" / image).convert("RGB"))[None]
    assert (nets[0].probabilities(x) != nets[1].probabilities(x)).any()


def test_report_is_one_file_that_needs_no_network(finished: Path) -> None:
    html = (finished / "report" / "index.html").read_text(encoding="utf-8")
    assert "data:image" in html and not [hint for hint in ('src="http', "src='http", "@import") if hint in html]
    assert [path.name for path in (finished / "report").glob("*.html")] == ["index.html"]
    assert "Not shown" not in html
    tables = {path.stem for path in (finished / "report" / "tables").glob("*.csv")}
    assert {"arms", "comparisons", "per_patient", "generator"} <= tables
    assert "segmentation/real" in (finished / "report" / "model_card.md").read_text(encoding="utf-8")


def test_trained_models_load_and_work(finished: Path, no_sockets: list[Any]) -> None:
    model = StyleDiffusion.from_pretrained(finished / "diffusion")
    assert (model.patch_px, model.mpp) == (64, 1.0)
    layouts = np.zeros((2, 64, 64), np.uint8)
    layouts[:, 20:40] = 1
    style = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    images = model(layouts, style, seeds=[0, 1], nfe=2)
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
    segmenter = Segmenter.from_pretrained(finished / "segmentation" / "real+stain+synthetic" / "seed0")
    assert segmenter.classes == model.classes == ["background", "stroma", "epithelium"]
    assert segmenter.predict(images).shape == (2, 64, 64) and no_sockets == []


CONNECT = "import socket as s; s.create_connection(('127.0.0.1', 9))"


@pytest.mark.parametrize(
    "code",
    [
        CONNECT,
        "s.socket().connect_ex(('127.0.0.1', 9))",
        "s.socket(type=s.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "s.socket(type=s.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('127.0.0.1', 9))",
        "s.getaddrinfo('localhost', 9)",
        "s.gethostbyname('localhost')",
        "import urllib.request as r; r.urlopen('http://example.org')",
        "import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', 9))",
        f"import multiprocessing as m; m.get_context('spawn').Process(target=exec, args=({CONNECT!r},)).start()",
    ],
)
def test_the_guard_of_the_network_refuses_whatever_python_sends(tmp_path: Path, code: str) -> None:
    """Every run of this file was made behind it; worker processes are guarded, too."""
    environment = without_network(os.environ, tmp_path / "attempts")
    command = [sys.executable, "-c", f"import socket as s; {code}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "a test tried to reach" in result.stderr and (tmp_path / "attempts").exists(), result


def test_the_guard_of_the_network_lets_processes_of_one_machine_talk(tmp_path: Path) -> None:
    code = "import socket as s; a, b = s.socketpair(); a.sendmsg([b'x']); print(b.recv(1), s.gethostname() != '')"
    environment = without_network(os.environ, tmp_path / "attempts")
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout == "b'x' True\n" and not (tmp_path / "attempts").exists(), result


def test_finished_run_is_skipped_and_untouched(finished: Path) -> None:
    weights = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    before = results(finished)
    assert run_once(finished).count("unchanged") >= 11
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == weights
    assert differing(results(finished), before) == {}


MOMENTS = (
    "data/images/*.png",
    "autoencoder/training/last.ckpt",
    "autoencoder/model.safetensors",
    "segmentation/real+stain/seed0/training/last.ckpt",
    "diffusion/training/last.ckpt",
    "diffusion/style_encoder/config.json",
    "synthetic/images/*.png",
    "synthetic/filtered/*.png",
    "segmentation/real+stain+synthetic/seed1/training/last.ckpt",
    "evaluation/per_patient.csv",
    "report",
)


def kill_when(out: Path, moment: str, is_there: Callable[[Path, str], bool]) -> None:
    """Start the run and kill -9 it as soon as `moment` is there."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not is_there(out, moment) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, f"the run ended before {moment}"


def killed_at(out: Path, moments: tuple[str, ...]) -> dict[str, bytes]:
    for moment in moments:
        kill_when(out, moment, lambda folder, pattern: next(folder.glob(pattern), None) is not None)
    run_once(out)
    assert not [path for path in out.rglob("begun-*")]
    return results(out)


def test_killed_and_started_again_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    assert differing(killed_at(tmp_path / "killed", ("diffusion/training/last.ckpt",)), results(finished)) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_stage_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    assert differing(killed_at(tmp_path / "killed", MOMENTS), results(finished)) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_same_command_elsewhere_gives_the_same_bits_and_another_seed_others(finished: Path, tmp_path: Path) -> None:
    run_once(tmp_path / "again")
    assert differing(results(tmp_path / "again"), results(finished)) == {}
    run_once(tmp_path / "other", seed=1)
    image = "synthetic/images/s000000.png"
    assert results(tmp_path / "other")[image] != results(finished)[image]


# Bad input


def cohort(folder: Path) -> pd.DataFrame:
    """Eight patients, one annotated 64 px image each, written into `folder`."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(8):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, : 8 * (k + 1) - 4] = 1
        Image.fromarray(rng.integers(60, 180, (64, 64, 3), dtype=np.uint8)).save(folder / f"i{k}.png")
        Image.fromarray(mask).save(folder / f"m{k}.png")
        rows.append({"image": f"i{k}.png", "mask": f"m{k}.png", "patient": f"p{k}", "slide": f"s{k}", "mpp": "1.0"})
    return pd.DataFrame(rows)


def spoil(folder: Path, mistake: str) -> tuple[pd.DataFrame, list[str]]:
    """A cohort with one mistake in it, and options that belong to it."""
    table, options = cohort(folder), ["--cohort.labels", "{a: [0], b: [1]}"]
    match mistake:
        case "missing image":
            table.loc[2, "image"] = "nowhere.png"
        case "missing mask":
            table.loc[2, "mask"] = "nowhere.png"
        case "no readable image":
            for path in folder.glob("i*.png"):
                path.write_bytes(b"not an image")
        case "mask of another size":
            Image.new("L", (64, 63)).save(folder / "m2.png")
        case "unknown label":
            Image.new("L", (64, 64), 7).save(folder / "m2.png")
        case "two splits":
            table["split"] = ["train"] * 5 + ["val", "test", "test"]
            table = pd.concat([table, table.iloc[:1].assign(image="i9.png", mask="", slide="s9", split="test")])
        case "empty table":
            table = table.iloc[:0]
        case "one patient":
            table["patient"] = "p0"
        case "no annotated patient":
            table["mask"] = ""
        case "no resolution":
            table["mpp"] = ""
        case "missing column":
            table = table.rename(columns={"patient": "case_id"})
        case "unknown key":
            options += ["--prepare.patchpx", "64"]
        case "too large a budget":
            options += ["--split.label_budget", "20"]
        case "wrong patch":
            options += ["--prepare.patch_px", "50"]
        case "learning rate":
            options += ["--diffusion.learning_rate", "-1"]
        case "batch size":
            options += ["--segmentation.batch_size", "0"]
        case "no such encoder":
            options += ["--segmentation.encoder", "resnet18x"]
        case "no such style encoder":
            options += ["--diffusion.style_encoder", "resnet18x"]
    return table, options


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("missing image", ["row 4", "nowhere.png"]),
        ("missing mask", ["row 4", "nowhere.png"]),
        ("no readable image", ["none of the 8 slides", "i0.png"]),
        ("mask of another size", ["row 4", "64 x 63"]),
        ("unknown label", ["row 4", "7", "cohort.labels"]),
        ("two splits", ["p0", "split"]),
        ("empty table", ["cohort.csv", "no rows"]),
        ("one patient", ["cohort.csv", "one patient"]),
        ("no annotated patient", ["mask"]),
        ("no resolution", ["mpp"]),
        ("missing column", ["column 'patient'", "cohort.columns"]),
        ("unknown key", ["prepare.patchpx", "prepare.patch_px"]),
        ("too large a budget", ["split.label_budget"]),
        ("wrong patch", ["prepare.patch_px"]),
        ("learning rate", ["diffusion.learning_rate"]),
        ("batch size", ["segmentation.batch_size"]),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str, named: list[str]
) -> None:
    table, options = spoil(tmp_path, mistake)
    table.to_csv(tmp_path / "cohort.csv", index=False)
    before = sorted(tmp_path.rglob("*"))
    budget = ["--split.val_patients", "1", "--split.test_patients", "2", "--size", "smoke"]
    code = main(
        ["run", "--out", str(tmp_path / "out"), "--cohort.table", str(tmp_path / "cohort.csv"), *budget, *options]
    )
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.strip()]
    assert code == 2 and printed.out == ""
    assert len(lines) == 1 and lines[0].startswith("stedm: "), printed.err
    assert [word for word in named if word not in lines[0]] == [], lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_leaves_an_earlier_run_as_it_was(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (finished / "config.yaml").read_bytes()
    table, options = spoil(tmp_path, "unknown label")
    table.to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "mine.yaml").write_text("size: smoke\ncohort: {table: cohort.csv}\n", encoding="utf-8")
    assert main(["run", "--config", str(tmp_path / "mine.yaml"), "--out", str(finished), *options]) == 2
    assert "another run" not in capsys.readouterr().err
    assert (finished / "config.yaml").read_bytes() == config
    assert (finished / "report" / "index.html").exists()


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["train", "everything"], ["run", "stray"], ["run", "--seed"], ["run", "--config", "no.yaml"]],
)
def test_wrong_command_line_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_print_config_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--size", "smoke", "--seed", "4", "--print_config"]) == 0
    assert "seed: 4" in capsys.readouterr().out and not list(tmp_path.iterdir())
