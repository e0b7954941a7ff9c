"""Input files that only look changed cost nothing; those that are changed cost what depends on them."""

import hashlib
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import stedm.experiment
from stedm.config import CohortConfig, RunConfig
from stedm.config_file import load_config
from stedm.data.label_source import MaskFile
from stedm.files import read_json
from stedm.graph import stages_of
from stedm.run import run_all
from stedm.stage import Stage
from stedm.stages import inputs
from stedm.stages.inputs import InputFile, inputs_of, sha256_of
from stedm.stages.prepare import skipped_slides
from stedm.stages.prepare_slide import SlideCutter
from stedm.stages.run_folder import RunFolder

OPTIONS = [
    "size=smoke",
    "segmentation.seeds=[0]",
    "segmentation.arms=[real, full]",
    "prepare.patch_px=16",
    "prepare.mpp=1.0",
    "prepare.min_tissue=0",
    "split.val_patients=1",
    "split.test_patients=1",
    "split.label_budget=2",
]
BUDGETS = "experiment.budgets=[1, 2]"


class Runs:
    """Runs that cut patches, and whose other stages only write their names; `ran` lists them as folder/stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, list[str]()

    def stages(self, config: RunConfig, run: RunFolder) -> list[Stage]:
        return [self.fake(stage, run) for stage in stages_of(config, run)]

    def fake(self, stage: Stage, run: RunFolder) -> Stage:
        def action(**options: int) -> None:
            self.ran.append(f"{run.root.name}/{stage.name}")
            if stage.name == "prepare":
                return stage.action(**options)
            stage.folder.mkdir(parents=True, exist_ok=True)
            if stage.name == "evaluate":
                scores = {"arm": "real", "seed": 0, "patient": "p", "group": "", "iou": 0.5, "dice": 0.5}
                pd.DataFrame([scores, scores | {"arm": "full"}]).to_csv(stage.folder / "per_patient.csv", index=False)

        values = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
        return Stage(**values | {"action": action})

    def __call__(self, table: Path, *overrides: str) -> list[str]:
        self.ran.clear()
        sections = [f"cohort.table={table}", "cohort.labels={background: [0], gland: [1]}"]
        run_all(load_config(overrides=[*OPTIONS, *sections, *overrides]), self.folder)
        return self.ran


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs(tmp_path / "root")
    monkeypatch.setattr(stedm.experiment, "stages_of", runs.stages)
    sha256_of.cache_clear()
    return runs


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Names of the files that are opened to be hashed, with how often."""
    found, file_digest = Counter[str](), hashlib.file_digest

    def counted(handle: BinaryIO, name: str) -> Any:
        found[Path(handle.name).name] += 1
        return file_digest(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return found


def write_mask(path: Path, width: int) -> None:
    """An uncompressed mask: of the same size in bytes for any `width` of the gland."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :width] = 1
    Image.fromarray(mask).save(path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six patients with an image of 32 px and a mask each."""
    folder, rng, rows = tmp_path / "cohort", np.random.default_rng(0), []
    folder.mkdir()
    for k in range(6):
        Image.fromarray(rng.integers(60, 180, (32, 32, 3), np.uint8)).save(folder / f"i{k}.png")
        write_mask(folder / f"m{k}.tif", 5 + k)
        rows.append({"image": f"i{k}.png", "mask": f"m{k}.tif", "patient": f"p{k}", "mpp": 1.0})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def touch(folder: Path, time: int) -> None:
    for path in folder.iterdir():
        os.utime(path, ns=(time, time))


def hashes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: InputFile) -> str:
        raise AssertionError(f"{file.path} is hashed")

    monkeypatch.setattr(inputs, "sha256_of", refuse)


@pytest.mark.parametrize("options", [[], [BUDGETS]])
def test_touched_inputs_change_nothing_and_are_read_once(
    run: Runs, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert "report" in {name.split("/")[-1] for name in run(table, *options)}
    with monkeypatch.context() as patch:
        hashes_nothing(patch)
        assert run(table, *options) == []
    touch(table.parent, 10**18)
    capsys.readouterr()
    assert run(table, *options) == []
    lines = capsys.readouterr().err.splitlines()
    assert sum("comparing" in line for line in lines) == 1 + len(options)
    assert all(line.endswith("unchanged") for line in lines if "comparing" not in line)
    hashes_nothing(monkeypatch)
    assert run(table, *options) == []


def test_each_file_is_hashed_once_while_it_is_cut(run: Runs, table: Path, read: Counter[str]) -> None:
    run(table, BUDGETS)
    assert read == Counter(f"{name}" for k in range(6) for name in (f"i{k}.png", f"m{k}.tif"))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_cohort_may_lie_elsewhere(run: Runs, table: Path, tmp_path: Path, absolute: bool) -> None:
    def place(folder: Path) -> Path:
        if absolute:
            rows = pd.read_csv(folder / "table.csv")
            for column in ("image", "mask"):
                rows[column] = [str(folder / Path(name).name) for name in rows[column]]
            rows.to_csv(folder / "table.csv", index=False)
        return folder / "table.csv"

    run(place(table.parent))
    shutil.copytree(table.parent, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(table.parent)
    assert run(place(tmp_path / "moved")) == []
    write_mask(tmp_path / "moved" / "m3.tif", 20)
    assert "root/prepare" in run(tmp_path / "moved" / "table.csv")


def test_two_laboratories_may_lie_elsewhere(run: Runs, table: Path, tmp_path: Path) -> None:
    def target(folder: str) -> str:
        return f"cohort.target={{table: {tmp_path / folder / 'table.csv'}, patient_prefix: b-, mpp: 1.0}}"

    shutil.copytree(table.parent, tmp_path / "b")
    run(table, target("b"))
    shutil.copytree(tmp_path / "b", tmp_path / "c", copy_function=shutil.copyfile)
    assert run(table, target("c")) == []
    write_mask(tmp_path / "c" / "m3.tif", 20)
    assert "root/prepare" in run(table, target("c"))


@pytest.mark.parametrize("options", [[], [BUDGETS]])
def test_another_mask_of_the_same_size_is_noticed(run: Runs, table: Path, options: list[str]) -> None:
    every = set(run(table, *options))
    (size,) = {path.stat().st_size for path in table.parent.glob("*.tif")}
    images = {path: path.stat().st_mtime_ns for path in run.folder.rglob("images/*.png")}
    write_mask(table.parent / "m3.tif", 20)
    assert (table.parent / "m3.tif").stat().st_size == size
    assert set(run(table, *options)) == every
    changed = {path.name[:9] for path, time in images.items() if path.stat().st_mtime_ns != time}
    assert changed == {"i3-r00003"}
    assert run(table, *options) == []


def test_other_files_of_the_same_names_sizes_and_times_are_noticed(run: Runs, table: Path) -> None:
    touch(table.parent, 10**18)
    run(table)
    (table.parent / "second").mkdir()
    write_mask(table.parent / "second" / "m3.tif", 20)
    touch(table.parent / "second", 10**18)
    table.write_text(table.read_text().replace("m3.tif", "second/m3.tif"))
    assert "root/prepare" in run(table)


def test_a_budget_added_to_touched_inputs_shares_what_the_others_have(run: Runs, table: Path) -> None:
    run(table, BUDGETS)
    touch(table.parent, 10**18)
    ran = run(table, "experiment.budgets=[1, 2, 3]")
    assert {"budget3/prepare", "budget3/diffusion"} <= set(ran)
    assert "budget3/autoencoder" not in ran and not [name for name in ran if name.startswith(("budget1", "budget2"))]
    assert len({path.stat().st_ino for path in run.folder.glob("*/data/images/i0-r00000-*")}) == 4
    touch(table.parent, 2 * 10**18)
    assert run(table, "experiment.budgets=[1, 2, 3]") == []


def test_a_killed_run_whose_inputs_are_touched_keeps_what_is_cut(
    run: Runs, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, slides = MaskFile.read, list[str]()

    def dies_at_the_third(self: MaskFile, *args: float, **options: float) -> np.ndarray:
        slides.append("")
        if len(slides) == 2 * 4 + 1:
            raise KeyboardInterrupt
        return cut(self, *args, **options)

    for time in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(MaskFile, "read", dies_at_the_third)
            with pytest.raises(KeyboardInterrupt):
                run(table, BUDGETS)
        slides.clear()
        touch(table.parent, time * 10**18)
    first, rows = SlideCutter.cut, list[int]()
    monkeypatch.setattr(SlideCutter, "cut", lambda self, at, *rest: rows.append(at) or first(self, at, *rest))
    ran = run(table, BUDGETS)
    assert rows == [4, 5] and Counter(name.split("/")[1] for name in ran)["autoencoder"] == 1
    touch(table.parent, 3 * 10**18)
    assert run(table, BUDGETS) == []


def test_without_records_touched_inputs_are_cut_again(run: Runs, table: Path) -> None:
    run(table)
    path = run.folder / "data" / "inputs.json"
    for time, damage in enumerate(["", "[]", '{"files": {"r00000 image": [1, 2, 3], "r00001 image": [1]}}', None], 1):
        path.unlink() if damage is None else path.write_text(damage)
        assert run(table) == []
        touch(table.parent, time * 10**17)
        assert "root/prepare" in run(table)
    touch(table.parent, 10**18)
    assert run(table) == []


def test_damaged_slides_are_known_by_content_too(run: Runs, table: Path) -> None:
    whole = (table.parent / "i5.png").read_bytes()
    (table.parent / "i5.png").write_bytes(bytes(len(whole)))
    run(table)
    touch(table.parent, 10**18)
    assert run(table) == [] and skipped_slides(run.folder / "data")["image"].tolist() == [f"{table.parent}/i5.png"]
    (table.parent / "i5.png").write_bytes(whole)
    assert "root/prepare" in run(table) and skipped_slides(run.folder / "data").empty


def test_images_of_which_no_pixel_is_read_are_not_hashed(run: Runs, table: Path, read: Counter[str]) -> None:
    rows = pd.read_csv(table).assign(split=["train", "train", "train", "val", "test", "test"])
    rows.loc[5, "mask"] = ""
    rows.to_csv(table, index=False)
    run(table)
    assert read["i4.png"] == 1 and not read["i5.png"]
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(table.parent / "i5.png")
    assert run(table) == []


def test_slides_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Data0.dat", "b.dcm"):
        (tmp_path / name).write_text(name)
    names = [f"{tmp_path}/a.mrxs", f"{tmp_path}/b.dcm"]
    pd.DataFrame({"image": names, "patient": ["p", "q"]}).to_csv(tmp_path / "table.csv", index=False)
    files = inputs_of(CohortConfig(table=str(tmp_path / "table.csv")), tmp_path / "data").files
    before = sha256_of(files["r00000 image"])
    (tmp_path / "a" / "Data0.dat").write_text("other")
    sha256_of.cache_clear()
    assert "" != sha256_of(files["r00000 image"]) != before
    assert sha256_of(files["r00001 image"]) == ""


def test_a_file_that_changes_before_it_is_hashed_is_not_taken_for_what_it_was(table: Path, tmp_path: Path) -> None:
    file = inputs_of(CohortConfig(table=str(table)), tmp_path / "data").files["r00000 mask"]
    touch(table.parent, 10**18)
    assert sha256_of(file) == ""


def test_digest_follows_what_the_table_says(table: Path, tmp_path: Path) -> None:
    digest = inputs_of(CohortConfig(table=str(table)), tmp_path).digest
    assert digest == inputs_of(CohortConfig(table=str(table)), tmp_path).digest
    table.write_text(table.read_text().replace("p5", "p4"))
    assert inputs_of(CohortConfig(table=str(table)), tmp_path).digest != digest
    assert inputs_of(CohortConfig(), tmp_path).digest == ""
    assert not (tmp_path / "inputs.json").exists()


def test_records_say_what_was_read(run: Runs, table: Path) -> None:
    run(table)
    stamp, digest, mark = read_json(run.folder / "data" / "inputs.json")["files"]["r00003 mask"]
    assert mark == f"{stamp} m3.tif" and len(digest) == 64
