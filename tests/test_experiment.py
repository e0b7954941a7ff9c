"""Several label budgets, folds, arms and seeds in one run: nothing is done twice, whatever interrupts or extends it."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from differing import differing
from PIL import Image

import stedm.experiment
import stedm.files
from stedm.cli import main
from stedm.config import RunConfig
from stedm.config_file import extended, load_config
from stedm.data.label_source import MaskFile
from stedm.errors import UserError
from stedm.evaluation.statistics import summary_table
from stedm.experiment import parts_of
from stedm.files import link, read_json, write_json
from stedm.graph import stages_of
from stedm.run import run_all, run_named_stage
from stedm.stage import Stage
from stedm.stages.prepare import prepare
from stedm.stages.run_folder import RunFolder

BASE = ["size=smoke", "segmentation.seeds=[0]", "segmentation.arms=[real, real+stain, full]"]
SHARED = {"autoencoder", "segmentation full seed 0"}
OWN = {"segmentation real seed 0", "segmentation real+stain seed 0", "diffusion", "generate", "filter", "measure"}
END = {"evaluate", "report"}
EVERY = {"prepare", *SHARED, *OWN, "control", *END}
ARMS = ("real", "real+stain", "full")


def scores(config: RunConfig, run: RunFolder) -> pd.DataFrame:
    """Scores of the sub-run's test patients: three of their own in every fold, one without the second class."""
    fold = (config.split.fold or [0])[0]
    rng = np.random.default_rng([config.split.label_budget or 99, fold])
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "patient": f"0{3 * fold + k}",
            "group": "",
            "iou": rng.random(),
            "dice": rng.random(),
        }
        for arm in config.segmentation.arms
        for seed in config.segmentation.seeds
        for k in range(3)
    ]
    return pd.DataFrame(rows).assign(iou_gland=[0.1 + 0.2 if k % 3 else np.nan for k in range(len(rows))])


class Experiment:
    """Runs experiments whose stages only write what the root reads; `ran` lists them as sub-run/stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran, self.stop_at, self.all_alike = folder, list[str](), "", False

    def stages(self, config: RunConfig, run: RunFolder) -> list[Stage]:
        return [self.fake(stage, config, run) for stage in stages_of(config, run)]

    def fake(self, stage: Stage, config: RunConfig, run: RunFolder) -> Stage:
        def action() -> None:
            self.ran.append(f"{run.root.name}/{stage.name}")
            stage.folder.mkdir(parents=True, exist_ok=True)
            if self.ran[-1] == self.stop_at:
                (stage.folder / "half").touch()
                raise KeyboardInterrupt
            (stage.folder / "half").unlink(missing_ok=True)
            (stage.folder / f"result-{stage.name}").write_text(stage.name)
            if stage.name == "prepare":
                draw = "" if self.all_alike else config.split.draw or ""
                annotated = [f"p{draw}{k}" for k in range(config.split.label_budget or 9)]
                write_json(run.data / "splits.json", {"train_annotated": annotated})
            if stage.name == "evaluate":
                scores(config, run).to_csv(run.evaluation / "per_patient.csv", index=False)

        values = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
        return Stage(**values | {"action": action})

    def __call__(self, *overrides: str, until: str | None = None) -> Counter[str]:
        self.ran.clear()
        run_all(load_config(overrides=[*BASE, *overrides]), self.folder, until=until)
        return Counter(self.ran)

    def names(self, *overrides: str) -> set[str]:
        return set(self(*overrides))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    experiment = Experiment(tmp_path / "root")
    monkeypatch.setattr(stedm.experiment, "stages_of", experiment.stages)
    return experiment


def results(folder: Path) -> dict[str, bytes]:
    """Every file but the times, the machine and the pages drawn from them."""
    left_out = {
        "environment.json",
        "fingerprint.json",
        "filter.json",
        "measure.json",
        ".lock",
        "index.html",
        "summary.md",
    }
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def in_each(*runs: str, stages: set[str]) -> set[str]:
    return {f"{name}/{stage}" for name in runs for stage in stages}


def test_budgets_share_what_does_not_see_who_is_annotated(run: Experiment) -> None:
    ran = run("experiment.budgets=[2, 4]")
    assert set(ran.values()) == {1}
    assert set(ran) == in_each("budget2", stages=EVERY) | in_each("budget4", stages=EVERY - SHARED)
    for name in ("autoencoder/result-autoencoder", "segmentation/full/seed0/fingerprint.json"):
        assert os.path.samefile(run.folder / "budget2" / name, run.folder / "budget4" / name)
    assert not run("experiment.budgets=[2, 4]")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["experiment.budgets=[2, 4, 8]"], in_each("budget8", stages=EVERY - SHARED)),
        (["experiment.budgets=[8, 2, 4]"], in_each("budget8", stages=EVERY - SHARED)),
        (
            ["segmentation.arms=[real, real+stain, full, real+synthetic]"],
            in_each("budget2", "budget4", stages={"segmentation real+synthetic seed 0", *END}),
        ),
        (
            ["segmentation.seeds=[0, 1]"],
            in_each("budget2", "budget4", stages={"segmentation real seed 1", "segmentation real+stain seed 1", *END})
            | {"budget2/segmentation full seed 1"},
        ),
        (["experiment.budgets=[4, 2]"], set()),
        (["experiment.budgets=[4]"], set()),
    ],
)
def test_an_arm_a_seed_or_a_budget_is_added_without_redoing_anything(
    run: Experiment, change: list[str], expected: set[str]
) -> None:
    run("experiment.budgets=[2, 4]")
    ran = run("experiment.budgets=[2, 4]", *change)
    assert set(ran) == expected and set(ran.values()) <= {1}
    summary = read_json(run.folder / "evaluation" / "summary.json")
    config = load_config(run.folder / "config.yaml")
    assert list(summary["budgets"]) == [str(budget) for budget in config.experiment.budgets]
    assert list(summary["arms"]) == config.segmentation.arms and summary["seeds"] == config.segmentation.seeds


@pytest.mark.parametrize(
    "name",
    [
        "budget2/prepare",
        "budget2/autoencoder",
        "budget2/segmentation full seed 0",
        "budget4/diffusion",
        "budget2/filter",
    ],
)
def test_killed_and_started_again_does_the_rest_once_and_ends_the_same(
    run: Experiment, tmp_path: Path, name: str
) -> None:
    options = "experiment.budgets=[2, 4]"
    run(options)
    whole, every = results(run.folder), set(run.ran)
    run.folder, run.stop_at = tmp_path / "again" / "root", name
    with pytest.raises(KeyboardInterrupt):
        run(options)
    done, run.stop_at = set(run.ran) - {name}, ""
    assert set(run(options)) == every - done and set(Counter(run.ran).values()) == {1}
    assert differing(results(run.folder), whole) == {}


def test_a_worker_process_links_as_it_is_told(run: Experiment) -> None:
    config = load_config(overrides=[*BASE, "experiment.budgets=[2, 4]"])
    two, four, root = parts_of(config, run.folder)
    assert (two.name, four.name, root.name) == ("budget2", "budget4", "")
    run_named_stage(two.config, two.run.root, "autoencoder", "f", None)
    run_named_stage(four.config, four.run.root, "autoencoder", "f", two.run.autoencoder)
    assert run.ran == ["budget2/autoencoder"]
    assert read_json(four.run.autoencoder / "fingerprint.json")["fingerprint"] == "f"
    assert [stage.name for stage in root.stages()] == ["evaluate", "report"]


def test_killed_while_linking_leaves_nothing_half_linked(run: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    links = []

    def dies(source: str, target: str) -> None:
        if len(links) == 1:
            raise KeyboardInterrupt
        links.append(target)
        os.link(source, target)

    monkeypatch.setattr(stedm.files, "_link_file", dies)
    with pytest.raises(KeyboardInterrupt):
        run("experiment.budgets=[2, 4]")
    monkeypatch.undo()
    monkeypatch.setattr(stedm.experiment, "stages_of", run.stages)
    assert not (run.folder / "budget4" / "autoencoder").exists() and "budget2/autoencoder" in run.ran
    assert "budget2/autoencoder" not in run("experiment.budgets=[2, 4]")
    assert (run.folder / "budget4" / "autoencoder" / "result-autoencoder").exists()
    assert not [path for path in run.folder.rglob(".*") if path.name != ".lock"]


def test_an_attempt_begun_in_any_sub_run_is_continued_there(run: Experiment) -> None:
    run.stop_at = "budget2/autoencoder"
    with pytest.raises(KeyboardInterrupt):
        run("experiment.budgets=[2, 4]")
    run.stop_at = ""
    assert "budget2/autoencoder" in (ran := run("experiment.budgets=[4, 2]")) and "budget4/autoencoder" not in ran
    assert run.ran.index("budget2/autoencoder") < run.ran.index("budget4/diffusion")
    assert (run.folder / "budget4" / "autoencoder" / "result-autoencoder").exists()


def test_a_sub_run_is_an_ordinary_run_folder(run: Experiment) -> None:
    run("experiment.budgets=[2, 4]")
    run.ran.clear()
    own = run.folder / "budget4"
    run_all(load_config(own / "config.yaml"), own)
    assert run.ran == [] and (own / "environment.json").exists()
    run_all(load_config(own / "config.yaml", ["diffusion.steps=9"]), own)
    assert {f"budget4/{name}" for name in ("diffusion", "evaluate")} <= set(run.ran)
    assert "budget2/diffusion" not in run("experiment.budgets=[2, 4]")


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("prepare", {"prepare"}),
        ("autoencoder", {"prepare", "autoencoder"}),
        ("evaluate", EVERY - {"report", "control"}),
    ],
)
def test_one_command_runs_its_stage_in_every_sub_run(run: Experiment, until: str, expected: set[str]) -> None:
    ran = run("experiment.budgets=[2, 4]", until=until)
    assert set(ran) == in_each("budget2", stages=expected) | in_each("budget4", stages=expected - SHARED)
    assert (run.folder / "evaluation" / "summary.json").exists() == (until == "evaluate")
    assert (run.folder / "budget4" / "data" / "fingerprint.json").exists()


def test_a_finished_plain_run_becomes_the_sub_run_that_it_is(run: Experiment) -> None:
    assert run.names("split.label_budget=4") == in_each("root", stages=EVERY)
    assert run.names("experiment.budgets=[2, 4]") == in_each("budget2", stages=EVERY - SHARED)
    assert not (run.folder / "data").exists() and (run.folder / "budget4" / "data").exists()


def test_control_sets_go_with_the_plain_run_and_are_made_for_each_budget(run: Experiment) -> None:
    arms = "segmentation.arms=[real, real+stain, full, real+unstyled, real+annotated-only, real+mean-teacher]"
    every = {"segmentation real+mean-teacher seed 0", *EVERY}
    for name in ("unstyled", "annotated-only"):
        every |= {f"generate {name}", f"filter {name}", f"segmentation real+{name} seed 0"}
    assert run.names("split.label_budget=4", arms) == in_each("root", stages=every)
    assert run.names("experiment.budgets=[2, 4]", arms) == in_each("budget2", stages=every - SHARED)
    assert [path.name for path in run.folder.glob("synthetic*")] == []
    assert not run("experiment.budgets=[2, 4]", arms)


def test_what_a_plain_run_leaves_beside_sub_runs_is_no_obstacle(run: Experiment) -> None:
    run("experiment.budgets=[2, 3]")
    run("split.label_budget=2")
    assert not (run.folder / "evaluation" / "summary.json").exists()
    assert run.names("experiment.budgets=[2, 3]") == run.names("experiment.budgets=[2, 3]") == set()
    assert set(read_json(run.folder / "evaluation" / "summary.json")["budgets"]) == {"2", "3"}


def test_a_plain_run_of_another_budget_is_not_overwritten(run: Experiment) -> None:
    run("split.label_budget=3")
    with pytest.raises(UserError, match="label budget 3, which is not among"):
        run("experiment.budgets=[2, 4]")
    assert (run.folder / "data" / "fingerprint.json").exists() and not (run.folder / "budget2").exists()


def test_scores_of_all_budgets_and_folds_are_pooled(run: Experiment) -> None:
    run("experiment.budgets=[2, all]", "experiment.folds=3", "evaluate.bootstrap=50")
    table = pd.read_csv(run.folder / "evaluation" / "per_patient.csv", dtype={"patient": str})
    names = [f"{budget}-fold{j}" for budget in ("budget2", "budgetall") for j in range(3)]
    parts = [
        pd.read_csv(run.folder / name / "evaluation" / "per_patient.csv", dtype={"patient": str}) for name in names
    ]
    pd.testing.assert_frame_equal(table.drop(columns=["budget", "draw", "fold"]), pd.concat(parts, ignore_index=True))
    assert table["budget"].tolist() == [2] * 27 + [9] * 27
    assert table["fold"].tolist() == [fold for fold in (0, 1, 2) for _ in range(9)] * 2
    summary = read_json(run.folder / "evaluation" / "summary.json")
    assert list(summary.pop("budgets")) == ["2", "9"] and summary["label_budget"] == 9
    assert summary["n_test_patients"] == 9
    assert summary == summary_table(table[table["budget"] == 9], ARMS, label_budget=9, resamples=50)


def test_draws_share_what_does_not_see_who_is_annotated_and_are_what_is_resampled(run: Experiment) -> None:
    ran = run("experiment.budgets=[2, all]", "experiment.draws=3", "evaluate.bootstrap=50", "segmentation.seeds=[0, 1]")
    names = ["budget2", "budget2-draw1", "budget2-draw2", "budgetall"]
    trained = {name.partition("/")[0] for name in ran if name.endswith("segmentation real seed 1")}
    assert trained == set(names) and "budget2-draw1/autoencoder" not in ran
    table = pd.read_csv(run.folder / "evaluation" / "per_patient.csv", dtype={"patient": str})
    assert table.groupby(["budget", "draw"])["seed"].nunique().to_dict() == {(2, k): 2 for k in range(3)} | {(9, 0): 2}
    budgets = read_json(run.folder / "evaluation" / "summary.json")["budgets"]
    assert budgets["2"]["draws"] == [0, 1, 2] and budgets["9"]["draws"] == [0]
    assert set(budgets["2"]["arms"]["real"]["iou_by_draw"]) == {"0", "1", "2"}
    assert "iou_by_draw" not in budgets["9"]["arms"]["real"]
    page = (run.folder / "report" / "index.html").read_text()
    assert "by draw of annotated patients" in page and "paired bootstrap over" in page


def test_a_finished_plain_run_is_the_first_draw(run: Experiment) -> None:
    run("split.label_budget=2")
    run.ran.clear()
    assert main(["run", "--out", str(run.folder), "--draws", "2", "--jobs", "1"]) == 0
    assert not any(name.startswith("budget2/") for name in run.ran) and "budget2-draw1/diffusion" in run.ran
    assert load_config(run.folder / "budget2-draw1" / "config.yaml").split.draw == 1


def test_two_draws_of_the_same_patients_are_refused_before_anything_is_trained(run: Experiment) -> None:
    run.all_alike = True
    with pytest.raises(UserError, match="budget2 and budget2-draw1 annotate the same patients"):
        run("split.label_budget=2", "experiment.draws=2")
    assert {name.partition("/")[2] for name in run.ran} == {"prepare"}


def test_folds_do_not_share_what_they_train(run: Experiment) -> None:
    ran = run("experiment.folds=2", "split.label_budget=3")
    assert set(ran) == in_each("budget3-fold0", "budget3-fold1", stages=EVERY)


def test_two_budgets_that_are_the_same_are_refused_before_anything_is_trained(run: Experiment) -> None:
    with pytest.raises(UserError, match="`all` is 9 patients"):
        run("experiment.budgets=[9, all]")
    assert {name.partition("/")[2] for name in run.ran} == {"prepare"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment.budgets=[2, 2]"], "names one twice"),
        (["experiment.budgets=[0]"], "0 is too few"),
        (["experiment.budgets=[al]"], r"experiment\.budgets\[0\]` is 'al'; expected whole number or all"),
        (["experiment.folds=0"], "experiment.folds"),
        (["experiment.draws=0"], r"experiment\.draws: 0 is too few"),
        (["experiment.draws=2", "split.draw=1"], "split.draw"),
        (["experiment.draws=2", "split.annotated=[p1]"], "split.annotated"),
        (["experiment.draws=2", "split.label_budget=null"], "there is one draw"),
        (["experiment.draws=2", "experiment.budgets=[all]"], "there is one draw"),
        (["split.draw=-1"], r"split\.draw: -1 is below 0"),
        (["experiment.budgets=[2]", "split.annotated=[p1]"], "split.annotated"),
        (["experiment.folds=2", "split.annotated=[p1]"], "split.annotated"),
        (["experiment.folds=2", "split.fold=[0, 2]"], "split.fold"),
        (["split.fold=[2, 2]"], "split.fold"),
        (["split.fold=[0]"], "split.fold"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_config(overrides=overrides)


def test_budgets_survive_the_way_out_and_in(tmp_path: Path, run: Experiment) -> None:
    run("experiment.budgets=[2, all]", until="prepare")
    assert load_config(run.folder / "config.yaml").experiment.budgets == [2, "all"]
    assert load_config(run.folder / "budgetall" / "config.yaml").split.label_budget is None


def test_short_flags_add_to_what_the_run_folder_has(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    assert extended("segmentation.arms", "real,full", saved) == 'segmentation.arms=["real", "full"]'
    saved.write_text("segmentation: {arms: [real], seeds: [0, 1]}\nsplit: {label_budget: 4}\n")
    assert extended("segmentation.arms", "full, real", saved) == 'segmentation.arms=["real", "full"]'
    assert extended("segmentation.seeds", "[1,5]", saved) == "segmentation.seeds=[0, 1, 5]"
    assert extended("experiment.budgets", "all,2", saved) == 'experiment.budgets=[2, 4, "all"]'
    with pytest.raises(UserError, match="names nothing"):
        extended("segmentation.seeds", ",", saved)


def test_a_short_flag_keeps_what_others_added_whatever_config_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("segmentation: {seeds: [0, 1]}\n")
    (tmp_path / "R").mkdir()
    (tmp_path / "R" / "config.yaml").write_text(
        "segmentation: {seeds: [0, 1, 2]}\nexperiment: {budgets: [2, 4], draws: 2}\n"
    )
    shared = ["--out", str(tmp_path / "R"), "--arms", "full", "--print_config"]
    for words in (["run", "--config", str(tmp_path / "mine.yaml")], ["demo", "--size", "smoke"]):
        assert main([*words, *shared]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["segmentation"]["seeds"] == [0, 1, 2] and config["segmentation"]["arms"][-1] == "full"
        assert config["experiment"]["budgets"] == [2, 4] and config["experiment"]["draws"] == 2
    assert main(["run", "--config", str(tmp_path / "mine.yaml"), *shared, "--segmentation.seeds", "[5]"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["segmentation"]["seeds"] == [5]  # said in full


def test_run_without_a_config_continues_the_folders_own_and_no_demo_takes_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "R"
    folder.mkdir()
    (folder / "config.yaml").write_text("cohort: {table: mine.csv}\nsegmentation: {seeds: [5]}\n")
    for words in (["run", "--out", str(folder)], ["run", str(folder)]):
        assert main([*words, "--print_config"]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["cohort"]["table"] == str(folder / "mine.csv") and config["segmentation"]["seeds"] == [5]
    for words in (["demo"], ["demo", "--size", "smoke"], ["run", "--size", "smoke"]):
        assert main([words[0], str(folder), *words[1:]]) == 2
        said = capsys.readouterr().err
        assert all(part in said for part in (f"{folder}: holds another run", "mine.csv", "--config", "--out")), said
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_the_demo_and_a_run_of_it_find_its_own_folder_done(run: Experiment) -> None:
    own = ["--size", "smoke", "--segmentation.seeds", "[0]", "--jobs", "1"]
    assert main(["demo", "--out", str(run.folder), *own]) == 0 and run.ran
    for words in (["demo", "--out", str(run.folder), *own], ["run", str(run.folder), *own], ["run", str(run.folder)]):
        run.ran.clear()
        assert main(words) == 0 and run.ran == [], words
    other = ["--cohort.phantom.families", "[he]"]
    assert main(["demo", str(run.folder), *own, *other]) == 2 and run.ran == []


def test_flags_on_a_finished_root_use_its_own_config(run: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    run("experiment.budgets=[2, 4]", "diffusion.steps=7")
    run.ran.clear()
    out = str(run.folder)
    assert main(["run", "--out", out, "--seeds", "1", "--budgets", "6", "--jobs", "1"]) == 0
    ran = {name for name in run.ran if name.startswith(("budget2", "budget4"))}
    assert "budget2/segmentation real seed 1" in ran and not any("seed 0" in name for name in ran)
    assert load_config(run.folder / "config.yaml").experiment.budgets == [2, 4, 6]
    assert load_config(run.folder / "budget6" / "config.yaml").diffusion.steps == 7
    run.ran.clear()
    assert main(["evaluate", out, "--jobs", "1"]) == 0 and main(["report", out, "--jobs", "1"]) == 0 and run.ran == []
    assert "report" in capsys.readouterr().out
    assert main(["run", "--out", out, "--arms", "nonsense"]) == 2
    assert "'nonsense' is no arm" in capsys.readouterr().err


def test_links_are_independent_of_each_other_and_copies_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    write_json(tmp_path / "a" / "deep" / "x.json", 1)
    link(tmp_path / "a", tmp_path / "b")
    assert os.path.samefile(tmp_path / "a" / "deep" / "x.json", tmp_path / "b" / "deep" / "x.json")
    write_json(tmp_path / "b" / "deep" / "x.json", 2)
    assert read_json(tmp_path / "a" / "deep" / "x.json") == 1

    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    link(tmp_path / "a", tmp_path / "b")
    assert read_json(tmp_path / "b" / "deep" / "x.json") == 1
    assert not os.path.samefile(tmp_path / "a" / "deep" / "x.json", tmp_path / "b" / "deep" / "x.json")


def own_cohort(folder: Path, patients: int) -> Path:
    """A table of one 32 px image with a mask a patient."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for k in range(patients):
        Image.fromarray(rng.integers(60, 180, (32, 32, 3), np.uint8)).save(folder / f"i{k}.png")
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(folder / f"m{k}.png")
        rows.append({"image": f"i{k}.png", "mask": f"m{k}.png", "patient": f"p{k}", "mpp": 1.0})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def test_patches_are_cut_once_for_all_sub_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[Any] = []
    whole = MaskFile.read
    monkeypatch.setattr(MaskFile, "read", lambda *a, **k: cut.append(a) or whole(*a, **k))
    table = own_cohort(tmp_path / "cohort", 9)
    options = [*BASE, f"cohort.table={table}", "prepare.patch_px=32", "split.val_patients=1", "prepare.min_tissue=0"]
    root = tmp_path / "root"
    config = load_config(overrides=[*options, "experiment.budgets=[1, 3]", "experiment.folds=3"])
    run_all(config, root, until="prepare")
    assert len(cut) == 9
    images = [path for path in root.rglob("data/images/*.png")]
    assert len(images) == 9 * 6 and len({path.stat().st_ino for path in images}) == 9
    splits = {path.parents[1].name: read_json(path) for path in root.glob("*/data/splits.json")}
    for budget in (1, 3):
        tested = [name for j in range(3) for name in splits[f"budget{budget}-fold{j}"]["test"]]
        assert sorted(tested) == [f"p{k}" for k in range(9)]
    run_all(load_config(root / "budget3-fold1" / "config.yaml"), tmp_path / "alone", until="prepare")
    for name in ("patches.parquet", "cohort.parquet", "splits.json", "classes.json", "extracted.parquet"):
        alone, shared = (folder / "data" / name for folder in (tmp_path / "alone", root / "budget3-fold1"))
        assert alone.read_bytes() == shared.read_bytes()


def test_a_budget_that_is_too_large_is_refused_before_any_patch_is_cut(tmp_path: Path) -> None:
    table = own_cohort(tmp_path / "cohort", 6)
    options = [*BASE, f"cohort.table={table}", "prepare.patch_px=32", "split.val_patients=1", "split.test_patients=1"]
    with pytest.raises(UserError, match=r"budget7: .*too few"):
        run_all(load_config(overrides=[*options, "experiment.budgets=[2, 7]"]), tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_first_stage_and_ceiling_are_the_same_bits_whoever_is_annotated(tmp_path: Path) -> None:
    """What the shared fingerprints promise: trained apart, with other patients annotated, they come out the same."""
    table = own_cohort(tmp_path / "cohort", 9)
    options = ["size=smoke", f"cohort.table={table}", "prepare.patch_px=32", "prepare.min_tissue=0"]
    options += ["split.val_patients=2", "split.test_patients=2", "split.unseen_patients=1"]
    folders = ("autoencoder", "segmentation/full/seed0", "data")
    weights, markers = [], []
    for budget, draw in ((1, 0), (3, 1)):
        out = tmp_path / f"alone{budget}"
        for until in ("autoencoder", "segmentation full"):
            chosen = [f"split.label_budget={budget}", f"split.draw={draw}"]
            run_all(load_config(overrides=[*options, *chosen]), out, until=until)
        weights.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.safetensors")})
        markers.append({name: read_json(out / name / "fingerprint.json")["fingerprint"] for name in folders})
    assert weights[0] == weights[1] and len(weights[0]) == 2
    assert [name for name in folders if markers[0][name] != markers[1][name]] == ["data"]


def test_the_procedural_cohort_can_be_folded(tmp_path: Path) -> None:
    options = ["train_patients=3", "val_patients=1", "test_patients=2", "unseen_patients=1", "slide_px=32"]
    options = ["size=smoke", "prepare.patch_px=32", *(f"cohort.phantom.{option}" for option in options)]
    tested, unseen = [], []
    for j in (0, 1):
        fold = [f"split.fold=[{j}, 2]", "split.label_budget=1", "split.val_patients=1"]
        prepare(tmp_path / str(j), load_config(overrides=[*options, *fold]))
        splits = read_json(tmp_path / str(j) / "splits.json")
        tested += splits["test"]
        unseen.append(splits["unseen"])
    assert len(tested) == len(set(tested)) == 6 and unseen[0] == unseen[1] and len(unseen[0]) == 1
