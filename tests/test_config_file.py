"""Configs: typos name the nearest key, types are checked, what is written loads again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stedm.config import CohortConfig, RunConfig, TargetConfig
from stedm.config_file import dump_config, keys_with_help, load_config, save_config
from stedm.errors import UserError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def lookup(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_loads_and_survives_the_way_out_and_in(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert yaml.safe_load(dump_config(config)) == dataclasses.asdict(config)


@pytest.mark.parametrize("size", ["smoke", "tiny", "small", "base"])
def test_size_fills_every_empty_field_and_overrides_none(size: str) -> None:
    config = load_config(overrides=[f"size={size}", "diffusion.steps=7"])
    assert config.diffusion.steps == 7
    for key in ("autoencoder.channels", "diffusion.multipliers", "generate.images", "segmentation.encoder"):
        assert lookup(config, key) is not None
    assert config == load_config(overrides=["diffusion.steps=7", f"size={size}"])


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("sed: 1", "sed", "seed"),
        ("difusion: {steps: 3}", "difusion", "diffusion"),
        ("diffusion: {unlabeled_share: 0}", "diffusion.unlabeled_share", "diffusion.unlabelled_share"),
        ("diffusion: {stylesset: self}", "diffusion.stylesset", "diffusion.style_set"),
        ("generate: {nef: 4}", "generate.nef", "generate.nfe"),
        ("patch_px: 64", "patch_px", "prepare.patch_px"),
        ("prepare: {label_budget: 4}", "prepare.label_budget", "split.label_budget"),
        ("cohort: {phantom: {train_patient: 3}}", "cohort.phantom.train_patient", "cohort.phantom.train_patients"),
        ("1: 2", "1", ""),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, text: str, unknown: str, nearest: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    message = str(caught.value)
    assert f"`{unknown}`" in message and str(path) in message and "\n" not in message
    assert not nearest or f"did you mean `{nearest}`?" in message


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("seed: many", "seed", "whole number"),
        ("seed: 1.5", "seed", "whole number"),
        ("seed: true", "seed", "whole number"),
        ("seed: null", "seed", "whole number"),
        ("size: big", "size", "smoke"),
        ("diffusion: {learning_rate: fast}", "diffusion.learning_rate", "number"),
        ("diffusion: {learning_rate: .nan}", "diffusion.learning_rate", "number"),
        ("diffusion: {aggregation: man}", "diffusion.aggregation", "did you mean mean?"),
        ("diffusion: {multipliers: 2}", "diffusion.multipliers", "list"),
        ("diffusion: {multipliers: [1, two]}", "diffusion.multipliers[1]", "whole number"),
        ("diffusion: {annotated_only_control: 1}", "diffusion.annotated_only_control", "true or false"),
        ("cohort: {columns: [a]}", "cohort.columns", "mapping"),
        ("cohort: {phantom: {families: [he, hh]}}", "cohort.phantom.families[1]", "ihc"),
        ("segmentation: {seeds: 3}", "segmentation.seeds", "list"),
        ("diffusion: 3", "diffusion", "section"),
        ("[1, 2]", "my.yaml", "keys and values"),
        ("a: b: c", "my.yaml", "not valid YAML"),
        ("seed: !!python/object/apply:os.mkdir [executed]", "my.yaml", "not valid YAML"),
    ],
)
def test_wrong_type_names_key_and_what_is_expected(tmp_path: Path, text: str, key: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text))
    message = str(caught.value)
    assert key in message and expected in message and "\n" not in message
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("prepare.patch_px=50", "prepare.patch_px"),
        ("prepare.patch_px=0", "prepare.patch_px"),
        ("diffusion.unlabelled_share=1.5", "diffusion.unlabelled_share"),
        ("segmentation.arms=[real, fake]", "segmentation.arms"),
        ("segmentation.arms=[]", "segmentation.arms"),
        ("segmentation.seeds=[]", "segmentation.seeds"),
        ("segmentation.seeds=[0, 0]", "segmentation.seeds"),
        ("diffusion.learning_rate=0", "diffusion.learning_rate"),
        ("autoencoder.batch_size=0", "autoencoder.batch_size"),
        ("generate.nfe=0", "generate.nfe"),
        ("diffusion.style_images=0", "diffusion.style_images"),
        ("generate.style_images=0", "generate.style_images"),
        ("autoencoder.latent_channels=0", "autoencoder.latent_channels"),
        ("diffusion.multipliers=[]", "diffusion.multipliers"),
        ("diffusion.ema_decay=1.5", "diffusion.ema_decay"),
        ("filter.least_kept=3", "filter.least_kept"),
        ("segmentation.stain_strength=-1", "segmentation.stain_strength"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(override: str, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        load_config(overrides=[override])


@pytest.mark.parametrize("text", ["seed: 1\nsize: tiny\nseed: 2\n", "diffusion: {steps: 1, style_dim: 8, steps: 2}"])
def test_a_key_that_is_given_twice_is_refused_with_its_lines(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"'(seed|steps)' is in line 1 and again in line [13]; keep one"):
        load_config(write(tmp_path, text))


def test_names_of_patients_are_no_octal_numbers_and_no_times(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "split: {annotated: [010, 1:30, 0x1F, 8]}"))
    assert config.split.annotated == ["010", "1:30", "0x1F", "8"]


@pytest.mark.parametrize("given", ["labels: {a: [0], b: [1]}", "columns: {patient: case}", "mpp: 0.5"])
def test_a_table_that_was_forgotten_is_not_replaced_by_the_procedural_cohort(tmp_path: Path, given: str) -> None:
    with pytest.raises(UserError, match=r"cohort\.table is missing"):
        load_config(write(tmp_path, f"cohort: {{{given}}}"))


def test_overrides_reach_every_depth_and_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\ndiffusion: {steps: 10}\n")
    config = load_config(
        path,
        [
            "--diffusion.steps=20",
            "cohort.phantom.families=[he]",
            "diffusion.learning_rate=1e-4",
            "split.label_budget=null",
        ],
    )
    assert (config.seed, config.diffusion.steps, config.cohort.phantom.families) == (3, 20, ["he"])
    assert config.diffusion.learning_rate == 1e-4 and config.split.label_budget is None


@pytest.mark.parametrize("override", ["seed", "diffusion.steps.more=1", "diffusion=3", "nothing.at.all=1", "seed=[1"])
def test_override_that_fits_nowhere_is_refused(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=[override])
    assert "\n" not in str(caught.value)


def test_empty_file_and_empty_section_are_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == load_config()
    assert load_config(write(tmp_path, "diffusion:\n"), ["diffusion.steps=9"]).diffusion.steps == 9


def test_table_resolves_against_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    path = write(tmp_path / "configs", "cohort: {table: tables/cohort.csv}\n")
    expected = str(tmp_path.resolve() / "configs" / "tables" / "cohort.csv")
    monkeypatch.chdir(tmp_path)
    assert load_config(path).cohort.table == expected
    assert load_config(path.relative_to(tmp_path)).cohort.table == expected
    assert load_config(path, ["cohort.table=other.csv"]).cohort.table == str(tmp_path.resolve() / "other.csv")


@pytest.mark.parametrize(
    "key", ["autoencoder.pretrained", "diffusion.style_weights", "segmentation.encoder_weights", "evaluate.kid_encoder"]
)
def test_weights_that_are_there_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    section, _, name = key.partition(".")
    encoder = {"diffusion": "style_encoder: test_resnet, "}.get(section, "")
    for folder in ("configs/models/mine", "here/mine"):
        (tmp_path / folder).mkdir(parents=True)
    path = write(tmp_path / "configs", f"{section}: {{{encoder}{name}: models/mine}}\n")
    monkeypatch.chdir(tmp_path / "here")
    assert lookup(load_config(path), key) == str(tmp_path / "configs/models/mine")
    assert lookup(load_config(path, [f"{key}=mine"]), key) == str(tmp_path / "here/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lookup(load_config(path, [f"{key}=~/here/mine"]), key) == str(tmp_path / "here/mine")
    for elsewhere in ("models/mine", "resnet18", "~/nowhere", "", "inception:nowhere.pth"):
        assert lookup(load_config(path, [f"{key}={json.dumps(elsewhere)}"]), key) == elsewhere
    monkeypatch.chdir(tmp_path / "configs")
    save_config(load_config(path), tmp_path / "run.yaml")
    assert lookup(load_config(tmp_path / "run.yaml"), key) == str(tmp_path / "configs/models/mine")


def test_inceptions_weights_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inception.pth").touch()
    path = write(tmp_path, "evaluate: {kid_encoder: 'inception:inception.pth'}\n")
    assert load_config(path).evaluate.kid_encoder == f"inception:{tmp_path / 'inception.pth'}"


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / name)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_every_key_has_help_and_a_type_in_words() -> None:
    rows = list(keys_with_help())
    assert len(rows) > 50
    assert [key for key, kind, text, _ in rows if not text or not kind or "typing." in kind] == []
    given = RunConfig(
        cohort=CohortConfig(target=TargetConfig())
    )  # a section that may be left out has keys all the same
    assert all(lookup(given, key) == default for key, _, _, default in rows)


def test_loading_does_not_change_the_defaults() -> None:
    load_config(overrides=["segmentation.seeds=[7]", "cohort.phantom.families=[he]"])
    assert RunConfig().segmentation.seeds == [0, 1, 2] and RunConfig().cohort.phantom.families == ["he", "ihc"]


def test_a_mistake_is_blamed_on_the_file_or_on_the_flag_that_made_it(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\n")
    with pytest.raises(UserError, match="command line: `seed`"):
        load_config(path, ["seed=many"])
    with pytest.raises(UserError, match=r"my\.yaml: `seed`"):
        load_config(write(tmp_path, "seed: many\n"), ["seed=3"])


@pytest.mark.parametrize("setting", ["style_weights=folder", "freeze_style_encoder=true"])
def test_the_small_style_encoder_takes_no_weights_and_is_not_frozen(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UserError, match=rf"diffusion\.{key}.*diffusion\.style_encoder"):
        load_config(overrides=[f"diffusion.{setting}"])
    load_config(overrides=["diffusion.style_encoder=test_resnet", f"diffusion.{setting}"])


def test_encoder_weights_meet_unfolded_pixels() -> None:
    assert load_config(overrides=["size=tiny"]).segmentation.space_to_depth == 2
    assert load_config(overrides=["size=tiny", "segmentation.encoder_weights=folder"]).segmentation.space_to_depth == 1
    with pytest.raises(UserError, match="space_to_depth: 1"):
        load_config(overrides=["segmentation.encoder_weights=folder", "segmentation.space_to_depth=2"])
    with pytest.raises(UserError, match="3 is not 1, 2 or 4"):
        load_config(overrides=["segmentation.space_to_depth=3"])
