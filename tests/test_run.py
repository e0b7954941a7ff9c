"""The run: unchanged stages are skipped, a changed key reruns what depends on it and nothing else."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import stedm.experiment
import stedm.run
from stedm.config import RunConfig
from stedm.config_file import load_config
from stedm.diffusion.sampling import Sampling
from stedm.errors import UserError
from stedm.evaluation.encoders import full_name
from stedm.files import read_json, write_json
from stedm.graph import stages_of
from stedm.run import run_all
from stedm.stage import Stage
from stedm.stages.own_encoders import kid_digest
from stedm.stages.run_folder import RunFolder
from stedm.workers import Workers

BASE = ["size=smoke", "segmentation.seeds=[0, 1]", "diffusion.annotated_only_control=true"]
SEGMENTERS = {
    f"segmentation {arm} seed {seed}"
    for arm in ("real", "real+stain", "real+synthetic", "real+stain+synthetic")
    for seed in (0, 1)
}
JUDGE = "segmentation full seed 0"
SYNTHETIC = {name for name in SEGMENTERS if "synthetic" in name}
STAIN = {name for name in SEGMENTERS if "stain" in name} | {JUDGE}
TEACHER = "segmentation real+stain seed 0"
END = {"evaluate", "report"}
AFTER_GENERATION = {"filter", "measure", *SYNTHETIC, *END}
AFTER_DIFFUSION = {"generate", *AFTER_GENERATION}
ALL = {"prepare", "autoencoder", "diffusion", "control", JUDGE, *SEGMENTERS, *AFTER_DIFFUSION}


class Recorder:
    """Runs the chain of stages with actions that only write their name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran, self.stop_at = folder, [], ""
        self.during: Callable[[], Any] = lambda: None

    def stages(self, config: RunConfig, run: RunFolder) -> list[Stage]:
        return [self.fake(stage) for stage in stages_of(config, run)]

    def fake(self, stage: Stage) -> Stage:
        def action() -> None:
            self.ran.append(stage.name)
            if stage.name != "prepare":
                self.during()
            if stage.name == self.stop_at:
                raise KeyboardInterrupt
            stage.folder.mkdir(parents=True, exist_ok=True)
            (stage.folder / f"result-{stage.name}").write_text(stage.name)

        values = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
        return Stage(**values | {"action": action})

    def __call__(self, *overrides: str, until: str | None = None, jobs: int = 1) -> set[str]:
        self.ran.clear()
        run_all(load_config(overrides=[*BASE, *overrides]), self.folder, until=until, jobs=jobs)
        return set(self.ran)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(tmp_path / "run")
    monkeypatch.setattr(stedm.experiment, "stages_of", recorder.stages)
    return recorder


def test_every_stage_runs_once_after_what_it_needs(run: Recorder) -> None:
    assert run() == ALL and len(run.ran) == len(ALL)
    stages = {stage.name: stage for stage in stages_of(load_config(overrides=BASE), RunFolder(run.folder))}
    for name in run.ran:
        assert all(run.ran.index(need) < run.ran.index(name) for need in (*stages[name].needs, *stages[name].after))


@pytest.mark.parametrize("given", ["nfe=5000", "bands=2", "grain=1e9", "style_guidance=1e9"])
def test_sampling_that_no_generator_takes_is_refused_before_one_is_trained(run: Recorder, given: str) -> None:
    with pytest.raises(UserError, match=f"^generate.{given.split('=')[0]} "):
        run(f"generate.{given}")
    assert run.ran == []


def test_unchanged_stages_are_skipped(run: Recorder) -> None:
    run()
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("result-*")}
    assert run() == set()
    assert before == {path: path.stat().st_mtime_ns for path in run.folder.rglob("result-*")}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cohort.phantom.seed=1", ALL),
        ("split.label_budget=5", ALL - {"autoencoder", JUDGE}),
        ("split.unseen_patients=1", ALL),
        ("prepare.patch_px=32", ALL),
        ("autoencoder.steps=9", {"autoencoder", "diffusion", "control", *AFTER_DIFFUSION}),
        ("diffusion.steps=9", {"diffusion", "control", *AFTER_DIFFUSION}),
        ("diffusion.aggregation=mean", {"diffusion", "control", *AFTER_DIFFUSION}),
        ("diffusion.unlabelled_share=0.4", {"diffusion", "control", *AFTER_DIFFUSION}),
        ("diffusion.pseudo_confidence=0.7", {"diffusion", *AFTER_DIFFUSION}),
        ("diffusion.pseudo_use=style", {"diffusion", *AFTER_DIFFUSION}),
        ("generate.nfe=5", AFTER_DIFFUSION),
        ("generate.images=12", AFTER_DIFFUSION),
        ("filter.tolerance=2", AFTER_GENERATION),
        ("filter.min_agreement=0.5", AFTER_GENERATION),
        ("filter.hard_sampling=1", AFTER_GENERATION),
        ("segmentation.consistency_weight=2", set()),
        ("segmentation.synthetic_share=0.4", {*SYNTHETIC, *END}),
        ("segmentation.stain_strength=0.4", {*STAIN, "diffusion", *AFTER_DIFFUSION}),
        ("segmentation.steps=9", {*SEGMENTERS, JUDGE, "diffusion", *AFTER_DIFFUSION}),
        ("segmentation.seeds=[0]", END),
        (
            "segmentation.seeds=[0, 1, 2]",
            {name.replace("seed 0", "seed 2") for name in SEGMENTERS if "seed 0" in name} | END,
        ),
        ("segmentation.arms=[real, real+stain]", END),
        ("evaluate.bootstrap=10", END),
        ("cohort.licence=CC0-1.0", {"report"}),
        ("evaluate.images_per_style=5", {"measure", *END}),
        ("segmentation.arms=[real, full]", {"segmentation full seed 1", *END}),
        ("seed=1", ALL - {"prepare", JUDGE} - SEGMENTERS | SYNTHETIC | {"segmentation full seed 1"}),
    ],
)
def test_changed_key_reruns_what_depends_on_it_and_nothing_else(
    run: Recorder, override: str, expected: set[str]
) -> None:
    run()
    assert run(override) == expected
    assert run(override) == set()


MORE = (
    "real, real+stain, real+synthetic, real+stain+synthetic, real+transfer, real+stain+mean-teacher, "
    "real+stain+consistency, real+stain+unfiltered, real+stain+unstyled, real+stain+annotated-only"
)
CONTROLS = {f"{verb} {name}" for verb in ("generate", "filter") for name in ("unstyled", "annotated-only")}


def both_seeds(*arms: str) -> set[str]:
    return {f"segmentation {arm} seed {seed}" for arm in arms for seed in (0, 1)}


NEW = both_seeds(*MORE.split(", ")) - SEGMENTERS


def save_weights(folder: Path, *, seed: int) -> None:
    torch.manual_seed(seed)
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=0), folder, safe_serialization=True)


def test_other_weights_in_the_same_folder_redo_the_generators_and_the_place_does_not_count(
    run: Recorder, tmp_path: Path
) -> None:
    save_weights(tmp_path / "weights", seed=0)
    options = ["diffusion.style_encoder=test_resnet", f"diffusion.style_weights={tmp_path / 'weights'}"]
    assert run(*options) == ALL and run(*options) == set()
    moved = (tmp_path / "weights").rename(tmp_path / "moved")
    (moved / "README.md").write_text("a card")
    options[1] = f"diffusion.style_weights={moved}"
    assert run(*options) == set()
    save_weights(moved, seed=1)
    assert run(*options) == {"diffusion", "control", *AFTER_DIFFUSION}
    config = read_json(moved / "config.json")
    (moved / "config.json").write_text(json.dumps(config | {"model_args": {"drop_rate": 0.1}}))
    assert run(*options) == {"diffusion", "control", *AFTER_DIFFUSION}


def test_another_autoencoder_in_the_same_folder_redoes_all_that_reads_it(run: Recorder, tmp_path: Path) -> None:
    save_weights(tmp_path / "weights", seed=0)
    options = ["autoencoder.space_to_depth=1", f"autoencoder.pretrained={tmp_path / 'weights'}"]
    assert run(*options) == ALL
    options[1] = f"autoencoder.pretrained={(tmp_path / 'weights').rename(tmp_path / 'moved')}"
    assert run(*options) == set()
    save_weights(tmp_path / "moved", seed=1)
    assert run(*options) == {"autoencoder", "diffusion", "control", *AFTER_DIFFUSION}


def test_patches_that_are_cut_otherwise_redo_everything(run: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    for name in ("stedm.graph.CUT_AS", "stedm.stages.prepare.CUT_AS"):
        monkeypatch.setattr(name, (0, 0))
    assert run() == ALL


def test_a_stage_has_as_many_threads_however_many_are_left_to_do(
    run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums depend on the number of threads: an interrupted run would end with other bits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    shared: list[tuple[int, int]] = []

    def workers(function: Any, *, jobs: int, threads: int) -> Any:
        shared.append((jobs, threads))
        return Workers(function, jobs=1, threads=threads)

    monkeypatch.setattr(stedm.run, "Workers", workers)
    before, alone = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(run, "during", lambda: alone.append(torch.get_num_threads()))
    run(jobs=2)
    run("cohort.licence=CC0", jobs=2)  # the report alone
    assert shared == [(2, 3), (1, 3)] and set(alone) == {3} and torch.get_num_threads() == before
    alone.clear()
    run("cohort.licence=CC1")
    assert set(alone) == {before}


def test_other_weights_of_the_segmenters_redo_them(
    run: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(tmp_path / "weights", seed=0)
    options = ["segmentation.encoder=tu-test_resnet", f"segmentation.encoder_weights={tmp_path / 'weights'}"]
    assert run(*options) == ALL and run(*options) == set()
    monkeypatch.chdir(tmp_path)
    assert run(options[0], "segmentation.encoder_weights=weights") == set()
    save_weights(tmp_path / "weights", seed=1)
    assert run(*options, until="segmentation") >= {*SEGMENTERS, JUDGE}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["diffusion.style_encoder=resnt18"], "did you mean resnet18"),
        (["diffusion.style_encoder=crossvit_tiny_240"], "crossvit_tiny_240 gives neither"),
        (["diffusion.style_encoder=test_resnet", "diffusion.style_weights=./nowhere"], "no folder here"),
        (["segmentation.encoder_weights=nowhere"], "no folder here"),
        (["evaluate.kid_encoder=~/nowhere"], "no folder here"),
        (["evaluate.kid_encoder=inception:nowhere.pth"], "evaluate.kid_encoder"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_refused_before_anything_is_done(
    run: Recorder, options: list[str], named: str, no_sockets: list[Any]
) -> None:
    with pytest.raises(UserError, match=named):
        run(*options, until="prepare")
    assert run.ran == [] and not run.folder.exists() and no_sockets == []


def weigh(run: Recorder, option: str) -> None:
    """What the stage `measure` says of the encoder that it measured with."""
    config = load_config(overrides=[*BASE, option])
    path, name = run.folder / "evaluation" / "generation.json", config.evaluate.kid_encoder
    write_json(path, {"kid_encoder": full_name(name), "kid_weights": kid_digest(name, measured=path)})


@pytest.mark.parametrize("kind", ["timm", "inception"])
def test_other_weights_of_the_kid_measure_again_and_the_place_does_not_count(
    run: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("stedm.run.check_encoders", lambda *_: None)  # it may be no network
    save_weights(tmp_path / "weights", seed=0)
    place, prefix = tmp_path / "weights", ""
    if kind == "inception":
        place, prefix = tmp_path / "weights" / "model.safetensors", "inception:"
    option = f"evaluate.kid_encoder={prefix}{place}"
    assert run() == ALL and run(option) == {"measure", *END} and run(option) == set()
    shutil.copytree(tmp_path / "weights", tmp_path / "copy")
    assert run(option.replace(str(tmp_path / "weights"), str(tmp_path / "copy"))) == set()
    save_weights(tmp_path / "weights", seed=1)
    assert run(option) == {"measure", *END}
    assert run() == {"measure", *END}


@pytest.mark.parametrize("kind", ["timm", "inception"])
def test_an_encoder_that_is_gone_stops_nothing_that_does_not_read_it(
    run: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    save_weights(tmp_path / "weights", seed=0)
    names = {"timm": f"{tmp_path / 'weights'}", "inception": f"inception:{tmp_path / 'weights' / 'model.safetensors'}"}
    option = f"evaluate.kid_encoder={names[kind]}"
    with monkeypatch.context() as patch:
        patch.setattr("stedm.run.check_encoders", lambda *_: None)
        run(option)
    weigh(run, option)
    (tmp_path / "weights").rename(tmp_path / "moved")
    assert run(option, "cohort.licence=CC0") == {"report"}
    with pytest.raises(UserError, match=r"evaluate\.kid_encoder"):
        run(option, "cohort.licence=CC0", "evaluate.images_per_style=5")
    with pytest.raises(UserError, match=r"evaluate\.kid_encoder"):  # another one, of which nothing is known
        run(option.replace(str(tmp_path / "weights"), str(tmp_path / "elsewhere")), "cohort.licence=CC0")


def test_adding_arms_or_seeds_to_a_finished_run_redoes_nothing_that_exists(run: Recorder) -> None:
    run()
    assert run(f"segmentation.arms=[{MORE}]") == {*NEW, *CONTROLS, *END}
    stages = stages_of(load_config(overrides=[*BASE, f"segmentation.arms=[{MORE}]"]), RunFolder(run.folder))
    names = [stage.name for stage in stages]
    assert all(names.index(need) < names.index(stage.name) for stage in stages for need in stage.needs)
    third = {name.replace("seed 0", "seed 2") for name in NEW | SEGMENTERS if "seed 0" in name}
    assert run(f"segmentation.arms=[{MORE}]", "segmentation.seeds=[0, 1, 2]") == {*third, *END}
    assert run() == END


TWICE = "segmentation.arms=[real+stain+second-round, real+stain, real+stain+synthetic]"


def test_second_round_is_drawn_and_judged_by_the_first_rounds_segmenters(run: Recorder) -> None:
    both = ("generate.generator=few-step", TWICE)
    stages = stages_of(load_config(overrides=[*BASE, *both]), RunFolder(run.folder))
    names, needs = [stage.name for stage in stages], {stage.name: set(stage.needs) for stage in stages}
    teachers = both_seeds("real+stain+synthetic")
    assert needs["generate second-round"] == {"few-step", *teachers}
    assert needs["filter second-round"] == {"generate second-round", *teachers}
    for name in both_seeds("real+stain+second-round"):
        assert needs[name] == {"prepare", "filter second-round"}
    assert needs["generate"] == {"few-step", TEACHER} and needs["filter"] == {"generate", TEACHER}
    assert all(names.index(need) < names.index(stage.name) for stage in stages for need in stage.needs)
    assert set(names) == run(*both) and len(run.ran) == len(names)
    assert run(*both) == set()


def test_second_round_reads_no_layouts_where_none_are_read(run: Recorder) -> None:
    config = load_config(overrides=[*BASE, TWICE, "generate.layouts=real"])
    needs = {stage.name: set(stage.needs) for stage in stages_of(config, RunFolder(run.folder))}
    assert needs["generate second-round"] == {"diffusion"}
    assert needs["filter second-round"] == {"generate second-round", *both_seeds("real+stain+synthetic")}


def test_more_seeds_than_three_leave_the_second_round_as_it_is(run: Recorder) -> None:
    second = {"generate second-round", "filter second-round", *both_seeds("real+stain+second-round")}
    run()
    assert run(TWICE) == {*second, *END}
    third = {f"segmentation {arm} seed 2" for arm in ("real+stain", "real+stain+synthetic", "real+stain+second-round")}
    assert run(TWICE, "segmentation.seeds=[0, 1, 2]") == {*second, *third, *END}
    more = {name.replace("seed 2", f"seed {seed}") for name in third for seed in (3, 4)}
    assert run(TWICE, "segmentation.seeds=[0, 1, 2, 3, 4]") == {*more, *END}


def test_a_changed_first_round_redoes_the_second(run: Recorder) -> None:
    run(TWICE)
    second = {"generate second-round", "filter second-round", *both_seeds("real+stain+second-round")}
    assert run(TWICE, "segmentation.synthetic_share=0.4") == {*second, *both_seeds("real+stain+synthetic"), *END}


def test_control_generator_is_trained_when_an_arm_wants_its_images(run: Recorder) -> None:
    off, arms = "diffusion.annotated_only_control=false", "segmentation.arms=[real+stain, real+annotated-only]"
    assert "control" not in run(off)
    assert run(off, arms) >= {"control", "generate annotated-only", "filter annotated-only"}
    assert run(arms) == set()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("segmentation.consistency_weight=2", both_seeds("real+stain+mean-teacher", "real+stain+consistency")),
        ("segmentation.consistency_confidence=0.8", both_seeds("real+stain+consistency")),
        (
            "generate.styles=annotated",
            {"generate", "filter", "measure", *SYNTHETIC, "generate annotated-only", "filter annotated-only"}
            | both_seeds("real+stain+unfiltered", "real+stain+annotated-only"),
        ),
        (
            "filter.tolerance=2",
            {"filter", "measure", *SYNTHETIC, *both_seeds("real+stain+unstyled", "real+stain+annotated-only")},
        ),
    ],
)
def test_changed_key_reruns_the_arms_and_sets_that_read_it(run: Recorder, override: str, expected: set[str]) -> None:
    run(f"segmentation.arms=[{MORE}]")
    filters = {name for name in CONTROLS if "filter" in name} if override.startswith("filter") else set()
    assert run(f"segmentation.arms=[{MORE}]", override) == {*expected, *filters, *END}


def test_control_comes_and_goes_without_touching_the_generator(run: Recorder) -> None:
    run("diffusion.annotated_only_control=false")
    assert run() == {"control", "report"}


def test_going_back_reruns_what_was_replaced(run: Recorder) -> None:
    run()
    run("generate.nfe=5")
    assert run() == AFTER_DIFFUSION


TAUGHT = (
    "segmentation.arms=[real+stain+second-round+self-training, real, real+stain+second-round, real+stain+synthetic]"
)


def test_self_training_follows_its_teachers_and_is_redone_with_them(run: Recorder) -> None:
    stages = stages_of(load_config(overrides=[*BASE, TAUGHT]), RunFolder(run.folder))
    names, needs = [stage.name for stage in stages], {stage.name: set(stage.needs) for stage in stages}
    label, students = "self-training real+stain+second-round", both_seeds("real+stain+second-round+self-training")
    assert needs[label] == {"prepare", *both_seeds("real+stain+second-round")}
    for name in students:
        assert needs[name] == {"prepare", "filter second-round", label}
    assert all(names.index(need) < names.index(stage.name) for stage in stages for need in stage.needs)
    assert run(TAUGHT) == set(names) and run(TAUGHT) == set()
    assert run(TAUGHT, "segmentation.self_training_confidence=0.7") == {label, *students, *END}
    ours = both_seeds("real+stain+second-round", "real+stain+synthetic")
    redone = {"generate second-round", "filter second-round", label, *students, *ours, *END}
    assert run(TAUGHT, "segmentation.self_training_confidence=0.7", "segmentation.synthetic_share=0.4") == redone


def test_self_training_alone_reads_the_share_of_its_images(run: Recorder) -> None:
    arms = "segmentation.arms=[real, real+self-training]"
    run(arms)
    assert run(arms, "segmentation.synthetic_share=0.4") == {*both_seeds("real+self-training"), *END}


@pytest.mark.parametrize("nothing_read", ["diffusion.pseudo_confidence=null", "diffusion.unlabelled_share=0"])
def test_no_pseudo_layouts_no_teacher_before_the_generator(run: Recorder, nothing_read: str) -> None:
    run(nothing_read)
    ran = run(nothing_read, "segmentation.steps=9")
    assert "diffusion" not in ran and {TEACHER, "filter"} <= ran


@pytest.mark.parametrize(
    "name", ["prepare", "autoencoder", TEACHER, "diffusion", "generate", "filter", "measure", "evaluate", "report"]
)
def test_interrupted_stage_is_run_again_and_the_rest_after_it(run: Recorder, name: str) -> None:
    run.stop_at = name
    with pytest.raises(KeyboardInterrupt):
        run()
    done = set(run.ran) - {name}
    run.stop_at = ""
    assert run() == ALL - done
    assert run() == set()


def test_changed_stage_starts_from_an_empty_folder_and_an_interrupted_one_keeps_it(run: Recorder) -> None:
    run()
    left = run.folder / "diffusion" / "training" / "last.ckpt"
    run.stop_at = "diffusion"
    with pytest.raises(KeyboardInterrupt):
        run("diffusion.steps=9")
    assert not (run.folder / "diffusion" / "result-diffusion").exists()
    left.parent.mkdir(parents=True)
    left.write_text("half way")
    with pytest.raises(KeyboardInterrupt):
        run("diffusion.steps=9")
    assert left.exists()
    with pytest.raises(KeyboardInterrupt):
        run("diffusion.steps=10")
    assert not left.exists()


def test_filter_alone_keeps_the_images(run: Recorder) -> None:
    run()
    run("filter.tolerance=2")
    assert (run.folder / "synthetic" / "result-generate").exists()
    run("generate.nfe=3")
    assert (run.folder / "synthetic" / "filter.json").exists()


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("prepare", {"prepare"}),
        ("autoencoder", {"prepare", "autoencoder"}),
        ("diffusion", {"prepare", "autoencoder", TEACHER, "diffusion"}),
        ("generate", {"prepare", "autoencoder", TEACHER, "diffusion", "generate"}),
        ("segmentation", ALL - END - {"control", "measure"}),
        ("evaluate", ALL - {"control", "report"}),
        ("report", ALL),
    ],
)
def test_one_command_runs_its_stage_and_what_it_needs(run: Recorder, until: str, expected: set[str]) -> None:
    assert run(until=until) == expected


def test_what_a_killed_process_left_half_written_is_removed(run: Recorder) -> None:
    run()
    marks = (
        ".config.stedm-0123abcd.yaml",
        "synthetic/.s1.stedm-ba009ed4.png",
        "diffusion/.unet.stedm-0123abcd/weights",
    )
    for name in (*marks, ".backup.20240115", "data/.notes.20240115.txt"):  # the last two are the user's
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_text("half")
    assert run() == set()
    assert sorted(path.name for path in run.folder.rglob(".*")) == [".backup.20240115", ".lock", ".notes.20240115.txt"]


def test_killed_when_all_was_done_leaves_no_mark_of_a_beginning(run: Recorder) -> None:
    run()
    begun = run.folder / "diffusion" / "begun-fingerprint.json"
    begun.write_text((run.folder / "diffusion" / "fingerprint.json").read_text())
    assert run() == set() and not begun.exists()


def test_a_stage_folder_that_is_a_link_is_refused_before_anything_is_lost(run: Recorder, tmp_path: Path) -> None:
    run()
    (run.folder / "diffusion").rename(tmp_path / "large")
    (run.folder / "diffusion").symlink_to(tmp_path / "large")
    with pytest.raises(UserError, match="diffusion: is a link out of the folder"):
        run("diffusion.steps=9")
    assert (tmp_path / "large" / "fingerprint.json").exists()


def test_one_process_a_folder(run: Recorder) -> None:
    run.folder.mkdir()
    with open(run.folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another stedm process"):
            run()
    assert run.ran == [] and run() == ALL


def test_folder_that_cannot_be_written_is_the_users_mistake(run: Recorder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run.folder = tmp_path / "file" / "run"
    with pytest.raises(UserError, match="cannot be written"):
        run()


def test_run_folder_records_its_config_and_its_machine(run: Recorder) -> None:
    run("seed=5")
    assert load_config(run.folder / "config.yaml") == load_config(overrides=[*BASE, "seed=5"])
    environment = read_json(run.folder / "environment.json")
    assert {"stedm", "python", "torch", "cpu", "cores", "device"} <= set(environment)


def own_cohort(folder: Path) -> Path:
    folder.mkdir()
    rows = []
    for k in range(6):
        Image.fromarray(np.full((64, 64, 3), 150, np.uint8)).save(folder / f"i{k}.png")
        Image.fromarray(np.eye(64, dtype=np.uint8)).save(folder / f"m{k}.png")
        rows.append({"image": f"i{k}.png", "mask": f"m{k}.png", "patient": f"p{k}", "mpp": 1.0})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.mark.parametrize("change", ["row", "image", "mask"])
def test_changed_table_or_file_reruns_everything(run: Recorder, tmp_path: Path, change: str) -> None:
    table = own_cohort(tmp_path / "cohort")
    options = [f"cohort.table={table}", "split.val_patients=1", "split.test_patients=1"]
    run(*options)
    assert run(*options) == set()
    if change == "row":
        pd.read_csv(table).assign(patient="other").to_csv(table, index=False)
    else:
        Image.new("RGB" if change == "image" else "L", (64, 65)).save(table.parent / f"{change[0]}2.png")
    assert run(*options) == ALL


def plan(*others: str, annotated: int = 4, **changes: Any) -> pd.DataFrame:
    from stedm.stages.generate import make_plan

    patches = pd.DataFrame(
        {
            "patch_id": [f"x{k}" for k in range(20)],
            "patient": [f"p{k // 2}" for k in range(20)],
            "split": ["train"] * 12 + ["val"] * 4 + ["test"] * 4,
            "annotated": [k < annotated or k >= 12 for k in range(20)],
        }
    )
    patches.loc[3, "annotated"] = False  # an annotated patient's image without a mask
    overrides = ["size=smoke", *others, *(f"generate.{key}={value}" for key, value in changes.items())]
    return make_plan(patches, load_config(overrides=overrides), Sampling())


def test_unannotated_styles_are_never_those_of_annotated_validation_or_test_patients() -> None:
    """In the original, "unannotated" styles came from annotated training images."""
    table = plan(images=40)
    assert set(table["style_patient"]) == {"p2", "p3", "p4", "p5"}
    lent = {name for names in table["style_patches"] for name in json.loads(names)}
    assert lent <= {f"x{k}" for k in range(4, 12)}
    real = table["layout_kind"] == "real"
    assert set(table.loc[real, "layout_source"]) <= {"x0", "x1", "x2"}
    assert set(table.loc[table["layout_kind"] == "read", "layout_source"]) <= {f"x{k}" for k in range(3, 12)}
    assert table["style_patient"].value_counts().max() == table["style_patient"].value_counts().min() == 10


def test_where_every_patient_is_annotated_they_lend_the_styles() -> None:
    """Though one of them has an image without a mask."""
    assert set(plan("split.label_budget=null", annotated=12)["style_patient"]) == {f"p{k}" for k in range(6)}
    with pytest.raises(UserError, match="no unannotated training patient"):
        plan("split.label_budget=4", annotated=12)


def test_linear_aggregation_is_lent_as_many_images_as_it_takes() -> None:
    """Each patient has two."""
    table = plan("diffusion.aggregation=linear", "diffusion.style_images=3")
    sets = [json.loads(names) for names in table["style_patches"]]
    assert all(len(names) == 3 and len(set(names)) == 2 for names in sets)
    assert {len(json.loads(names)) for names in plan(style_images=3)["style_patches"]} == {2}


def test_plan_is_reproducible_and_its_rows_are_distinct() -> None:
    pd.testing.assert_frame_equal(plan(images=12), plan(images=12))
    assert plan(images=12)["id"].is_unique and plan(images=12)["seed"].is_unique


@pytest.mark.parametrize("layouts", ["real", "prior", "read", "real+prior", "prior+read", "real+prior+read"])
def test_plan_draws_the_layouts_asked_for_in_turns(layouts: str) -> None:
    kinds = layouts.split("+")
    assert plan(images=6, layouts=layouts)["layout_kind"].tolist() == kinds * (6 // len(kinds))


@pytest.mark.parametrize("layouts", ["mixed", "real+real", "", "real+"])
def test_layouts_that_are_no_kind_are_refused(layouts: str) -> None:
    with pytest.raises(UserError, match=r"generate\.layouts.*join some of real, prior, read"):
        load_config(overrides=[f"generate.layouts={layouts!r}"])


def test_where_every_patient_is_annotated_no_layout_is_read() -> None:
    from stedm.stages.plan_layouts import LayoutSources

    patches = pd.DataFrame({"patch_id": ["a", "b"], "split": "train", "annotated": True})
    assert LayoutSources.of(patches, "real+read").kinds == ("real",)
    with pytest.raises(UserError, match=r"generate\.layouts: read needs unannotated"):
        LayoutSources.of(patches, "read")


@pytest.mark.parametrize(("layouts", "drawn_again"), [("real+prior", set()), ("real+prior+read", {"generate"})])
def test_only_layouts_that_are_read_need_the_segmenter(run: Recorder, layouts: str, drawn_again: set[str]) -> None:
    options = ["diffusion.pseudo_confidence=null", f"generate.layouts={layouts}"]
    run(*options)
    assert run(*options, "segmentation.stain_strength=0.4") == {*STAIN, *AFTER_GENERATION, *drawn_again}


def test_plan_without_styles_names_none() -> None:
    table = plan(images=6, styles="none")
    assert set(table["style_patient"]) == {""} and set(table["style_patches"]) == {"[]"}
    assert set(plan(images=8, styles="annotated")["style_patient"]) == {"p0", "p1"}
