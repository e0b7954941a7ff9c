"""From table to patches: what is written, that a killed run ends the same, and that mistakes write nothing."""

import dataclasses
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import IGNORE, CohortConfig, PhantomConfig, PrepareConfig, RunConfig, SplitConfig
from stedm.data.label_source import MaskFile
from stedm.errors import UserError
from stedm.files import read_json
from stedm.stages.prepare import prepare
from stedm.stages.run_folder import RunFolder, train_patches
from stedm.stages.segmentation import _batches


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """Six patients with one 40 x 72 image each at 0.5 microns per pixel, to be cut at 1; the last has no mask."""
    rng, rows = np.random.default_rng(0), []
    for i in range(6):
        image = rng.integers(60, 160, (40, 72, 3), np.uint8)
        image[:, 64:] = 255
        mask = np.zeros((40, 72), np.uint8)
        mask[:, :32] = 9
        mask[:8] = 5
        Image.fromarray(image).save(tmp_path / f"im age{i}.png")
        Image.fromarray(mask).save(tmp_path / f"mask{i}.png")
        rows.append({"image": f"im age{i}.png", "case": f"p{i}", "mask": f"mask{i}.png" if i < 5 else ""})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    labels = {"background": [0], "gland": [9], "ignore": [5]}
    return RunConfig(
        cohort=CohortConfig(table=str(tmp_path / "table.csv"), columns={"patient": "case"}, labels=labels, mpp=0.5),
        split=SplitConfig(label_budget=2, val_patients=1, test_patients=1),
        prepare=PrepareConfig(patch_px=16, mpp=1.0, min_tissue=0.3),
    )


def read(out) -> pd.DataFrame:
    return pd.read_parquet(out / "patches.parquet")


def test_patches_table_and_files(tmp_path, config):
    out = tmp_path / "data"
    prepare(out, config)
    patches, splits = read(out), read_json(out / "splits.json")
    # 36 x 20 px at 1 micron: columns 0, 16 and 20 (half of it glass), rows 0 and 4.
    assert len(patches) == 6 * 6 and patches["patch_id"].is_unique
    assert sorted(set(zip(patches["x_um"], patches["y_um"], strict=True))) == [
        (x, y) for x in (0, 16, 20) for y in (0, 4)
    ]
    assert read_json(out / "classes.json") == {"classes": ["background", "gland"], "ignore": IGNORE, "patch_px": 16}
    for row in patches.itertuples():
        assert np.asarray(Image.open(out / row.image)).shape == (16, 16, 3)
        assert row.has_mask == (row.patient != "p5") == bool(row.mask)
        assert row.annotated == (row.has_mask and row.patient not in splits["train_unannotated"])
        assert np.isnan(row.fraction_gland) == (not row.annotated)
    first = patches[(patches["x_um"] == 0) & (patches["y_um"] == 0) & patches["has_mask"]].iloc[0]
    mask = np.asarray(Image.open(out / first["mask"]))
    assert (mask[:4] == IGNORE).all() and (mask[4:] == 1).all()
    assert (pd.read_parquet(out / "cohort.parquet")["patient"] == [f"p{i}" for i in range(6)]).all()


def test_image_becomes_exactly_one_patch(tmp_path, config):
    for i in range(6):
        Image.fromarray(np.full((32, 32, 3), 100, np.uint8)).save(tmp_path / f"im age{i}.png")
        Image.fromarray(9 * np.tri(32, dtype=np.uint8)).save(tmp_path / f"mask{i}.png")
    prepare(tmp_path / "data", config)
    assert len(read(tmp_path / "data")) == 6


def test_images_smaller_than_a_patch_are_padded(tmp_path, config):
    config.prepare = PrepareConfig(patch_px=48, mpp=1.0, min_tissue=0)
    prepare(tmp_path / "data", config)
    row = read(tmp_path / "data").query("has_mask").iloc[0]
    image, mask = (np.asarray(Image.open(tmp_path / "data" / row[kind])) for kind in ("image", "mask"))
    assert (image[20:] == 255).all() and (mask[20:] == IGNORE).all() and (mask[:, 36:] == IGNORE).all()


def snapshot(out) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_killed_and_started_again_ends_the_same(tmp_path, config, monkeypatch):
    prepare(tmp_path / "whole", config)
    cut, calls = MaskFile.read, []

    def dies(*args, **options):
        calls.append(args)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return cut(*args, **options)

    monkeypatch.setattr(MaskFile, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "killed", config)
    assert not (tmp_path / "killed" / "patches.parquet").exists()
    monkeypatch.undo()
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "killed" / "images").glob("*-r00000-*")}
    prepare(tmp_path / "killed", config)
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")
    assert len(before) == 6 and all(os.stat(path).st_mtime_ns == time for path, time in before.items())


def test_patches_of_other_settings_are_not_reused(tmp_path, config):
    prepare(tmp_path / "data", config)
    config.prepare = dataclasses.replace(config.prepare, mpp=0.5)
    prepare(tmp_path / "data", config)
    prepare(tmp_path / "fresh", config)
    assert snapshot(tmp_path / "data") == snapshot(tmp_path / "fresh")


@pytest.mark.parametrize("wrong", ["label", "mpp", "budget", "composition"])
def test_mistakes_write_nothing(tmp_path, config, wrong):
    if wrong == "label":
        Image.fromarray(np.full((40, 72), 8, np.uint8)).save(tmp_path / "mask4.png")
    elif wrong == "mpp":
        config.cohort.mpp = None
    elif wrong == "composition":
        (tmp_path / "composition.csv").write_text("group,background,gland\nhe,0.5,0.5\n")
        config.generate.composition = str(tmp_path / "composition.csv")
    else:
        config.split.label_budget = 9
    with pytest.raises(UserError) as refused:
        prepare(tmp_path / "data", config)
    expected = {"label": "row 6", "mpp": "cohort.mpp", "budget": "split.label_budget"}.get(wrong, "group 'he'")
    assert expected in str(refused.value) and not (tmp_path / "data").exists()


def test_an_image_of_impossible_resolution_is_refused_before_its_patches_fill_the_disk(tmp_path, config):
    config.prepare = dataclasses.replace(config.prepare, mpp=0.01)
    with pytest.raises(UserError, match=r"im age\d\.png: at 0\.5 .* enlarged 50 times .*prepare\.mpp"):
        prepare(tmp_path / "data", config)
    assert not list((tmp_path / "data" / "images").glob("*"))


def test_a_role_without_tissue_is_refused(tmp_path, config):
    config.prepare = dataclasses.replace(config.prepare, min_tissue=1.1)
    with pytest.raises(UserError, match=r"prepare\.min_tissue"):
        prepare(tmp_path / "data", config)


@pytest.mark.parametrize("role", ["train_annotated", "val", "test"])
def test_a_role_without_a_labelled_pixel_is_refused(tmp_path, config, role):
    prepare(tmp_path / "whole", config)
    for patient in read_json(tmp_path / "whole" / "splits.json")[role]:
        Image.fromarray(np.full((40, 72), 5, np.uint8)).save(tmp_path / f"mask{patient[1:]}.png")  # all of it ignored
    with pytest.raises(UserError, match=rf"{role} patients .* shows a pixel of any class"):
        prepare(tmp_path / "data", config)


def test_classes_of_which_one_alone_is_ever_shown_are_refused(tmp_path, config):
    """Masks of 0 and 255, the most common binary ones: 255 is ignore, and a segmenter of one class scores well."""
    for i in range(5):
        mask = np.zeros((40, 72), np.uint8)
        mask[:, :32] = 255
        Image.fromarray(mask).save(tmp_path / f"mask{i}.png")
    config.cohort.labels = {"background": [0], "gland": [1], "ignore": [255]}
    with pytest.raises(
        UserError, match=r"show background and nothing of gland; .*255 is ignored unless a class names it"
    ):
        prepare(tmp_path / "data", config)


def test_roles_and_classes_are_told(tmp_path, config, capsys):
    prepare(tmp_path / "data", config)
    said = capsys.readouterr().err.splitlines()
    assert "training, annotated: 2 patients, 12 patches" in said and "test: 1 patients, 6 patches" in said
    assert any(line.startswith("annotated pixels: background ") and ", gland " in line for line in said)


def test_phantom_is_drawn_prepared_and_reused(tmp_path):
    phantom = PhantomConfig(
        train_patients=3, val_patients=1, test_patients=1, unseen_patients=1, slides_per_patient=1, slide_px=96
    )
    config = RunConfig(cohort=CohortConfig(phantom=phantom), split=SplitConfig(label_budget=1))
    prepare(tmp_path / "data", config)
    table = tmp_path / "data" / "phantom" / "cohort.csv"
    drawn = os.stat(table).st_mtime_ns
    patches = read(tmp_path / "data")
    assert set(patches["split"]) == {"train", "val", "test", "unseen"} and patches["patient"].nunique() == 6
    unseen = patches[patches["split"] == "unseen"]
    assert unseen["has_mask"].all() and not unseen["annotated"].any()
    assert patches.loc[patches["annotated"], "fraction_epithelium"].notna().all()
    run = RunFolder(tmp_path)
    training = train_patches(patches)
    real = _batches(run, config, arm="full", seed=0).real
    images, label_maps = real.images, real.label_maps
    assert len(images) == len(training) == len(label_maps) > training["annotated"].sum() > 0
    assert np.array_equal(label_maps, run.hidden_label_maps(training)) and set(training["split"]) == {"train"}
    config.split.seed = 3
    prepare(tmp_path / "data", config)
    assert os.stat(table).st_mtime_ns == drawn
