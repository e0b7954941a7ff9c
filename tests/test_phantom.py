"""The phantom: deterministic, whole, and different from patient to patient in more than colour."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import PhantomConfig
from stedm.data.phantom import PHANTOM_LABELS, draw_layout, draw_style, render, write_cohort
from stedm.errors import UserError

COLUMNS = ["image", "patient", "slide", "mask", "mpp", "split", "group"]


def small(**changes: object) -> PhantomConfig:
    return PhantomConfig(
        **{"train_patients": 4, "val_patients": 1, "test_patients": 2, "unseen_patients": 0, "slide_px": 96} | changes
    )


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("phantom") / "cohort", small())


def test_table_names_every_file_once(cohort: Path) -> None:
    table = pd.read_csv(cohort)
    assert list(table.columns) == COLUMNS
    assert len(table) == 7 * 2 and table["slide"].is_unique
    assert table.groupby("patient")["split"].nunique().eq(1).all()
    assert table.groupby("patient")["group"].nunique().eq(1).all()
    on_disk = {name for name in digests(cohort.parent) if name != cohort.name}
    assert set(table["image"]) | set(table["mask"]) == on_disk


def test_images_and_masks_have_the_promised_form(cohort: Path) -> None:
    values = {value for listed in PHANTOM_LABELS.values() for value in listed}
    for row in pd.read_csv(cohort).itertuples():
        image = np.asarray(Image.open(cohort.parent / row.image))
        mask = np.asarray(Image.open(cohort.parent / row.mask))
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert mask.shape == (96, 96) and mask.dtype == np.uint8
        assert set(np.unique(mask)) <= values


def test_same_seed_same_bytes_other_seed_other_bytes(cohort: Path, tmp_path: Path) -> None:
    again = write_cohort(tmp_path / "again", small())
    other = write_cohort(tmp_path / "other", small(seed=1))
    assert digests(again.parent) == digests(cohort.parent)
    assert digests(other.parent)["images/train000_s0.png"] != digests(cohort.parent)["images/train000_s0.png"]


def test_patient_does_not_depend_on_how_many_others_there_are(cohort: Path, tmp_path: Path) -> None:
    fewer = digests(write_cohort(tmp_path / "fewer", small(train_patients=2, test_patients=1)).parent)
    more = digests(cohort.parent)
    assert all(more[name] == digest for name, digest in fewer.items() if name.endswith(".png"))


def test_unseen_patients_leave_the_others_as_they_are(cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(write_cohort(tmp_path / "more", small(unseen_patients=2)))
    assert sorted(table.loc[table["split"] == "unseen", "patient"].unique()) == ["unseen000", "unseen001"]
    more = digests(tmp_path / "more")
    assert all(more[name] == digest for name, digest in digests(cohort.parent).items() if name.endswith(".png"))


def test_rewriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    write_cohort(folder, small(train_patients=3))
    table = pd.read_csv(write_cohort(folder, small(train_patients=1)))
    assert len(list((folder / "images").iterdir())) == len(table)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_families_that_are_not_annotated_are_a_target_laboratory(tmp_path: Path) -> None:
    source = pd.read_csv(write_cohort(tmp_path / "cohort", small(annotated_families=["he"], unseen_patients=1)))
    target = pd.read_csv(tmp_path / "cohort" / "target.csv")
    assert set(source["group"]) == {"he"} and target["group"].str.startswith("ihc").all()
    patients = {
        name: table.groupby("split")["patient"].nunique().to_dict()
        for name, table in zip("st", (source, target), strict=True)
    }
    assert patients == {"s": {"train": 2, "val": 1}, "t": {"train": 2, "test": 2, "unseen": 1}}
    assert not set(source["patient"]) & set(target["patient"])


def test_a_second_scanner_sees_the_same_patient_otherwise(tmp_path: Path) -> None:
    styles = [draw_style("he", np.random.default_rng(3), scanner=name) for name in ("first", "second")]
    of_scanner = {"white", "colour_matrix", "gamma", "blur_px", "noise"}
    for field in dataclasses.fields(styles[0]):
        same = np.array_equal(*(getattr(style, field.name) for style in styles))
        assert same == (field.name not in of_scanner), field.name
    layout = draw_layout(96, np.random.default_rng(0))
    first, second = (render(layout, style, np.random.default_rng(1)).astype(float) for style in styles)
    stroma = layout == 1
    assert first[stroma].mean() - second[stroma].mean() > 10  # darker in the mid-tones
    write_cohort(tmp_path / "c", small(families=["he"], scanners=["first", "second"], annotated_scanners=["first"]))
    assert set(pd.read_csv(tmp_path / "c" / "target.csv")["group"]) == {"he"}


def test_no_annotated_kind_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="annotated_families"):
        write_cohort(tmp_path / "cohort", small(families=["ihc"], annotated_families=["he"]))


def test_families_and_scores_take_turns(tmp_path: Path) -> None:
    table = pd.read_csv(write_cohort(tmp_path / "cohort", small(train_patients=8, slides_per_patient=1, slide_px=64)))
    groups = table.loc[table["split"] == "train", "group"]
    assert sorted(groups) == ["he"] * 4 + ["ihc0", "ihc1", "ihc2", "ihc3"]


def test_layouts_hold_every_class_in_sensible_amounts() -> None:
    layouts = np.stack([draw_layout(192, np.random.default_rng(seed)) for seed in range(24)])
    assert layouts.dtype == np.uint8
    fractions = np.bincount(layouts.ravel(), minlength=3) / layouts.size
    assert ((fractions > [0.08, 0.3, 0.2]) & (fractions < [0.35, 0.65, 0.5])).all()


def test_render_draws_any_layout() -> None:
    rng = np.random.default_rng(0)
    for family in ("he", "ihc"):
        style = draw_style(family, rng)
        for value in range(3):
            assert render(np.full((48, 64), value, np.uint8), style, rng).shape == (48, 64, 3)


def test_empty_glass_is_the_brightest_and_membranes_follow_the_score() -> None:
    layout = draw_layout(192, np.random.default_rng(3))
    darkness = []
    for score in range(4):
        rng = np.random.default_rng(7)
        image = render(layout, draw_style("ihc", rng, score=score), rng).astype(float)
        means = [image[layout == value].mean() for value in range(3)]
        assert means[0] > max(means[1:])
        darkness.append(means[0] - means[2])
    assert darkness == sorted(darkness)


def test_brightness_alone_does_not_tell_epithelium_from_stroma() -> None:
    layout = draw_layout(128, np.random.default_rng(1))
    lighter, epithelium, stroma = [], [], []
    for seed in range(16):
        for family in ("he", "ihc"):
            rng = np.random.default_rng(seed)
            image = render(layout, draw_style(family, rng), rng)
            between_nuclei = [np.percentile(image[layout == value], 85) for value in (1, 2)]
            lighter.append(between_nuclei[1] > between_nuclei[0])
            stroma.append(np.median(image[layout == 1]))
            epithelium.append(np.median(image[layout == 2]))
    assert 4 <= sum(lighter) <= 28  # within a patient, cytoplasm is the lighter one in some and the darker in others
    assert sum(epithelium > np.quantile(stroma, 0.2)) >= 3  # across patients, no threshold fits all


def test_no_family_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cohort\.phantom\.families"):
        write_cohort(tmp_path / "cohort", small(families=[]))
    assert not list(tmp_path.iterdir())
