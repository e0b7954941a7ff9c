"""Two laboratories: annotated patients from one, unannotated and test patients from the other, at one scale."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import CohortConfig, RunConfig, TargetConfig
from stedm.config_file import load_config
from stedm.data.laboratories import joined, read_laboratories, resolve_label_maps
from stedm.errors import UserError
from stedm.files import read_json
from stedm.fingerprint import fingerprint_of
from stedm.graph import stages_of
from stedm.models.segmenter import Segmenter
from stedm.run import run_all
from stedm.stages.evaluate import evaluate
from stedm.stages.inputs import inputs_of
from stedm.stages.prepare import prepare
from stedm.stages.run_folder import RunFolder, train_patches
from stedm.stages.segmentation import _batches, _validation

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DISC_UM = 20.0
SMOKE = [
    "size=smoke",
    "segmentation.arms=[real, real+stain+synthetic]",
    "segmentation.seeds=[0]",
    "generate.images=8",
    "generate.nfe=2",
    "evaluate.bootstrap=50",
    "evaluate.images_per_style=6",
    "evaluate.style_patients=2",
    "diffusion.annotated_only_control=false",
]


def write_table(folder: Path, patients: int, *, mpp: float, size_um: float, values: dict[str, int]) -> Path:
    """Two images a patient, each a dark disc of DISC_UM microns on pink; the last patient has no masks."""
    folder.mkdir()
    rng, rows = np.random.default_rng(patients), []
    size_px = round(size_um / mpp)
    y, x = (np.indices((size_px, size_px)) + 0.5) * mpp - size_um / 2
    disc = np.hypot(y, x) < DISC_UM / 2
    for number in range(patients):
        for image in range(2):
            pixels = np.where(disc[..., None], (90, 60, 130), (220, 160, 200)) + rng.integers(-9, 9, (*disc.shape, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}_{image}.png")
            Image.fromarray(np.where(disc, values["gland"], values["background"]).astype(np.uint8)).save(
                folder / f"{number}_{image}_mask.png"
            )
            mask = f"{number}_{image}_mask.png" if number < patients - 1 else ""
            rows.append({"image": f"{number}_{image}.png", "patient": str(number), "mask": mask})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """The source at 0.5 microns per pixel, the target at 1.25, in other label values and another class order."""
    first = write_table(tmp_path / "a", 7, mpp=0.5, size_um=64, values={"background": 0, "gland": 1})
    second = write_table(tmp_path / "b", 6, mpp=1.25, size_um=80, values={"background": 3, "gland": 9})
    path = tmp_path / "two.yaml"
    path.write_text(
        f"""
cohort:
  table: a/{first.name}
  labels: {{background: [0], gland: [1]}}
  mpp: 0.5
  target: {{table: b/{second.name}, labels: {{gland: ["4-99"], background: [3]}}, mpp: 1.25, patient_prefix: b-}}
split: {{label_budget: 2, val_patients: 2, test_patients: 2}}
prepare: {{patch_px: 64, mpp: 1.0, min_tissue: 0}}
""",
        encoding="utf-8",
    )
    return load_config(path, SMOKE)


def with_target(config: RunConfig, **changes: object) -> CohortConfig:
    assert config.cohort.target is not None
    return dataclasses.replace(config.cohort, target=dataclasses.replace(config.cohort.target, **changes))


def test_patients_of_both_get_their_roles_and_one_scale(tmp_path: Path, config: RunConfig) -> None:
    prepare(tmp_path / "run" / "data", config)
    run = RunFolder(tmp_path / "run")
    patches, splits = run.patches(), read_json(run.data / "splits.json")
    of = patches.groupby("laboratory")["patient"].agg(set)
    assert of["source"] == set(splits["train_annotated"] + splits["val"]) and len(of["source"]) == 4
    assert of["target"] == set(splits["train_unannotated"] + splits["test"]) == {f"b-{k}" for k in range(6)}
    assert set(patches.loc[patches["annotated"], "split"]) == {"train", "val", "test"}
    areas = patches[patches["has_mask"].astype(bool)].assign(area=lambda rows: [m.sum() for m in discs(run, rows)])
    by_laboratory = areas.groupby("laboratory")["area"].mean()  # in px of 1 micron, whatever the images came at
    assert by_laboratory.to_numpy() == pytest.approx(np.pi * DISC_UM**2 / 4, rel=0.06)
    dark = [(run.images(rows)[..., 1] < 110).mean() for _, rows in areas.groupby("laboratory")]
    assert dark == pytest.approx([np.pi * DISC_UM**2 / 4 / 64**2] * 2, rel=0.1)


def discs(run: RunFolder, rows: pd.DataFrame) -> np.ndarray:
    """Where the gland is, (n, H, W): class 1 in both laboratories."""
    return run.hidden_label_maps(rows) == 1


def test_only_the_arm_full_reads_masks_of_the_target(tmp_path: Path, config: RunConfig) -> None:
    prepare(tmp_path / "run" / "data", config)
    run = RunFolder(tmp_path / "run")
    patches = run.patches()
    unannotated = train_patches(patches, annotated=False)
    assert set(unannotated["laboratory"]) == {"target"} and unannotated["has_mask"].any()
    with pytest.raises(ValueError, match="not to be read"):
        run.label_maps(unannotated)
    masked = _batches(run, config, arm="full", seed=0).real.images
    assert len(masked) == train_patches(patches)["has_mask"].sum() > patches["annotated"].sum() / 2
    assert not (patches["laboratory"] == "target")[patches["split"] == "val"].any()


def test_pixels_that_several_patches_show_count_once_in_a_score(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of the target, 80 px wide, give four patches of 64 px, and the disc in the middle is in all four."""
    prepare(tmp_path / "run" / "data", config)
    blind = SimpleNamespace(predict=lambda images: np.zeros(images.shape[:3], np.uint8), to=lambda _: blind)
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda folder: blind)
    evaluate(RunFolder(tmp_path / "run"), config)
    scores = pd.read_csv(tmp_path / "run" / "evaluation" / "per_patient.csv")
    assert (scores["iou_gland"] == 0).all() and (scores["patches"] == 8).all()
    assert scores["iou_background"].to_numpy() == pytest.approx(1 - np.pi * DISC_UM**2 / 4 / 80**2, abs=0.004)


def test_slides_of_the_same_name_stay_apart(config: RunConfig) -> None:
    cohort = joined(read_laboratories(config.cohort))
    assert cohort.groupby("slide")["patient"].nunique().eq(1).all()
    assert cohort["image"].is_unique and list(cohort["laboratory"].unique()) == ["source", "target"]


def test_a_patient_of_both_tables_is_refused_with_the_fix(config: RunConfig) -> None:
    for prefix in ("", "00", "\u200b"):  # other spellings of the same
        with pytest.raises(UserError, match=r"0' and 5 more is in .*a.table\.csv too; .*target\.patient_prefix"):
            read_laboratories(with_target(config, patient_prefix=prefix))
    with pytest.raises(UserError, match=r"image '.*0_0\.png' and 13 more"):
        read_laboratories(with_target(config, table=config.cohort.table))


def test_an_image_that_both_tables_link_to_is_refused(config: RunConfig, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "0_0.png", tmp_path / "b" / "5_0.png"
    second.unlink()
    second.symlink_to(first)
    with pytest.raises(UserError, match=rf"image '.*{second.name}' is in .*a.table\.csv too"):
        read_laboratories(config.cohort)


def test_class_names_must_agree_and_their_order_need_not(config: RunConfig) -> None:
    maps = resolve_label_maps(read_laboratories(config.cohort))
    assert [labels.classes for labels in maps] == [["background", "gland"]] * 2
    assert maps[1].apply(np.array([[3, 9]]), source="").tolist() == [[0, 1]]
    other = with_target(config, labels={"background": [3], "glands": [9]})
    with pytest.raises(UserError, match=r"cohort\.target\.labels: .*missing: gland; not in the first: glands"):
        resolve_label_maps(read_laboratories(other))
    with pytest.raises(UserError, match=r"b.table\.csv, row 2: .*value\(s\) 3, 9; .*cohort\.target\.labels"):
        resolve_label_maps(read_laboratories(with_target(config, labels={})))


def test_digest_follows_the_target(tmp_path: Path, config: RunConfig) -> None:
    before = inputs_of(config.cohort, tmp_path / "data").digest
    with open(tmp_path / "b" / "table.csv", "a") as table:
        table.write("5_1.png,new,\n")
    assert inputs_of(config.cohort, tmp_path / "data").digest != before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("cohort.target.table=null", r"cohort\.target\.table is missing"),
        ("cohort.table=null", r"cohort\.target needs cohort\.table"),
        ("prepare.mpp=null", r"prepare\.mpp is missing"),
        ("cohort.target.tabel=x", r"did you mean `cohort\.target\.table`"),
    ],
)
def test_what_a_target_needs_is_said(tmp_path: Path, config: RunConfig, change: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_config(tmp_path / "two.yaml", [change])


def test_mistakes_in_the_target_table_name_its_section(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"cohort table not found; correct cohort\.target\.table"):
        read_laboratories(with_target(config, table=str(tmp_path / "c.csv")))
    with pytest.raises(UserError, match=r"cohort\.target\.columns: unknown column"):
        read_laboratories(with_target(config, columns={"patientt": "patient"}))
    assert TargetConfig().table is None


def checked(run: RunFolder) -> pd.DataFrame:
    """The patches of an evaluated run, after checks that hold for any two laboratories."""
    patches, splits = run.patches(), read_json(run.data / "splits.json")
    manifest = pd.read_parquet(run.synthetic / "manifest.parquet")
    assert set(manifest["style_patient"]) <= set(splits["train_unannotated"])
    scores = pd.read_csv(run.evaluation / "per_patient.csv", dtype={"patient": str})
    assert set(scores["patient"]) == set(splits["test"]) and scores["iou"].notna().all()
    laboratories = patches.groupby("patient")["laboratory"].first()
    assert set(laboratories[splits["test"] + splits["train_unannotated"]]) == {"target"}
    assert set(laboratories[splits["train_annotated"] + splits["val"]]) == {"source"}
    return patches


def test_two_tables_two_budgets_and_two_folds_from_end_to_end(tmp_path: Path, config: RunConfig) -> None:
    changes = ["experiment.budgets=[1, 2]", "experiment.folds=2", "segmentation.arms=[real, full]"]
    root = run_all(load_config(tmp_path / "two.yaml", [*SMOKE, *changes]), tmp_path / "root", until="evaluate")
    parts = {(budget, j): root / f"budget{budget}-fold{j}" for budget in (1, 2) for j in (0, 1)}
    for folder in parts.values():
        checked(RunFolder(folder))
        for path in folder.glob("segmentation/*/seed0"):
            log = pd.read_csv(path / "metrics.csv")
            assert 0 <= log["val_iou_restained"].max() <= 1 and "val_iou" not in log
        summary = read_json(folder / "evaluation" / "summary.json")
        assert summary["chosen_by"] == "restained_iou" and summary["arms"]["real"]["validation_iou"] is None
    scores = pd.read_csv(root / "evaluation" / "per_patient.csv", dtype={"patient": str})
    for _, rows in scores.groupby(["budget", "arm"]):
        assert sorted(rows["patient"]) == [f"b-{k}" for k in range(5)]  # everyone with masks, once
    assert list(read_json(root / "evaluation" / "summary.json")["budgets"]) == ["1", "2"]
    ceilings = {(folder / "segmentation/full/seed0/model.safetensors").read_bytes() for folder in parts.values()}
    assert len(ceilings) == 4  # each was trained on the masks of other patients


class ByDarkness:
    """Reads as gland what is darker than the target's pink: in a stain of its own it would read something else."""

    def __init__(self) -> None:
        self.trained = self

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.shown = images
        return (images[..., 1] < 110).astype(np.uint8)


def test_validation_patients_are_shown_in_the_targets_stains(tmp_path: Path, config: RunConfig) -> None:
    """The target's images, made three times as pale: validation images become as pale, their masks stay."""
    for path in (tmp_path / "b").glob("*_?.png"):
        pale = 255 - (255 - np.asarray(Image.open(path)).astype(int)) // 3
        Image.fromarray(pale.astype(np.uint8)).save(path)
    run = RunFolder(run_all(load_config(tmp_path / "two.yaml", SMOKE), tmp_path / "run", until="prepare"))
    patches, reader = run.patches(), ByDarkness()
    best = _validation(run)
    assert best.name == "val_iou_restained" and best.score(reader) < 0.6  # nothing is dark there
    of = {name: run.images(patches[patches["laboratory"] == name]).mean() for name in ("source", "target")}
    assert of["source"] + 40 < of["target"] and abs(reader.shown.mean() - of["target"]) < 8


def test_patches_are_cut_once_though_a_budget_leaves_patients_out(tmp_path: Path, config: RunConfig) -> None:
    changes = ["experiment.budgets=[1, all]", "experiment.folds=2"]
    root = run_all(load_config(tmp_path / "two.yaml", [*SMOKE, *changes]), tmp_path / "root", until="prepare")
    tables = {path.parents[1].name: pd.read_parquet(path) for path in root.glob("*/data/patches.parquet")}
    images = {(path.name, path.stat().st_ino) for path in root.glob("*/data/images/*.png")}
    assert len(tables) == 4 and len({name for name, _ in images}) == len(images)
    for name, table in tables.items():
        splits = read_json(root / name / "data" / "splits.json")
        assert set(table["patient"]) == {patient for patients in splits.values() for patient in patients}
        assert all((root / name / "data" / path).exists() for path in table["image"])
        assert len(splits["train_annotated"]) == (1 if name.startswith("budget1-") else 4)
    alone = run_all(load_config(root / "budgetall-fold1" / "config.yaml"), tmp_path / "alone", until="prepare")
    pd.testing.assert_frame_equal(RunFolder(alone).patches(), tables["budgetall-fold1"])


def fingerprints(config: RunConfig, **split: object) -> dict[str, str]:
    """Of every stage, with these keys of `split`."""
    config, known = dataclasses.replace(config, split=dataclasses.replace(config.split, **split)), dict[str, str]()
    for stage in stages_of(config, RunFolder("run")):
        known[stage.name] = fingerprint_of(stage, config, known)
    return known


def test_stages_blind_to_annotation_are_shared_where_the_budget_leaves_nobody_out(config: RunConfig) -> None:
    other = dataclasses.replace(config, cohort=with_target(config, mpp=1.0))
    for blind in ("autoencoder", "segmentation full seed 0"):
        kept, out = (
            [fingerprints(config, keep_source=keep, label_budget=budget)[blind] for budget in (1, 2)]
            for keep in (True, False)
        )
        assert kept[0] == kept[1] and out[0] != out[1]
        folds = [fingerprints(config, keep_source=True, fold=[j, 2])[blind] for j in (0, 1)]
        assert len({kept[0], *folds, fingerprints(other, keep_source=True)[blind]}) == 4


def test_annotated_patients_may_be_named_though_the_target_is_folded(tmp_path: Path, config: RunConfig) -> None:
    changes = ["split.annotated=[0, 1]", "experiment.folds=2"]
    root = run_all(load_config(tmp_path / "two.yaml", [*SMOKE, *changes]), tmp_path / "root", until="prepare")
    splits = [read_json(path) for path in root.glob("*/data/splits.json")]
    assert [roles["train_annotated"] for roles in splits] == [["0", "1"]] * 2


@pytest.mark.parametrize("name", ["phantom_stain_shift", "phantom_scanner_shift"])
def test_shipped_phantom_from_end_to_end(tmp_path: Path, name: str) -> None:
    sizes = {"train_patients": 6, "val_patients": 1, "test_patients": 2, "unseen_patients": 2, "slide_px": 64}
    changes = [f"cohort.phantom.{key}={value}" for key, value in sizes.items()]
    changes += ["split.label_budget=2", "segmentation.steps=8"]
    config = load_config(CONFIGS / f"{name}.yaml", [*SMOKE, *changes])
    patches = checked(RunFolder(run_all(config, tmp_path / "run", until="evaluate")))
    target = patches["laboratory"] == "target"
    families = patches["group"].str[:3].str.rstrip("0123")
    if name == "phantom_stain_shift":
        assert set(families[target]) == {"ihc"} and set(families[~target]) == {"he"}
    else:
        assert set(families) == {"he"}
    assert set(patches.loc[patches["split"] == "unseen", "laboratory"]) == {"target"}
