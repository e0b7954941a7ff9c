"""The report: whole on a full run folder, honest on a partial one, silent about nothing it ought to warn of."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm import files
from stedm.arms import INGREDIENTS, SYNTHETIC_SETS
from stedm.data.layout_statistics import compare, measure
from stedm.errors import UserError
from stedm.evaluation.comparisons import RIVALS
from stedm.evaluation.statistics import summary_table
from stedm.stages import report_figures as figures
from stedm.stages import report_run, report_text, report_warnings, roles
from stedm.stages.report import report
from stedm.stages.report_budgets import budgets_figure
from stedm.stages.report_card import trained_on
from stedm.stages.report_evidence import read_evidence, table_of
from stedm.stages.report_leaks import leaks
from stedm.stages.report_pictures import class_colours, colour_layout
from stedm.stages.report_segmentation import forest
from stedm.stages.report_warnings import folds_warning

ARMS = {"real": 0.60, "real+stain": 0.74, "real+synthetic": 0.72, "real+stain+synthetic": 0.78}
CLASSES = ["background", "gland"]


def _image(path: Path, rng: np.random.Generator, *, mask: bool = False, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rng.choice([0, 1, 255], size) if mask else rng.integers(0, 256, (*size, 3))
    Image.fromarray(values.astype(np.uint8)).save(path)


def _write_data(run: Path, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for split, patients in (("train", 6), ("val", 2), ("test", 12)):
        for number in range(patients):
            for patch in range(2):
                patient = f"{split}{number:02d}"
                row = {"patch_id": f"{patient}_{patch}", "patient": patient, "slide": f"{patient}-s", "split": split}
                row |= {"group": "he" if number % 2 else "ihc", "annotated": split != "train" or number < 2}
                rows.append(row | {"image": f"images/{patient}_{patch}.png"})
                _image(run / "data" / rows[-1]["image"], rng)
    patches = pd.DataFrame(rows)
    patches.to_parquet(run / "data" / "patches.parquet")
    files.write_json(run / "data" / "classes.json", {"classes": CLASSES, "ignore": 255, "patch_px": 32})
    return patches


def _write_synthetic(run: Path, rng: np.random.Generator, patches: pd.DataFrame) -> None:
    unannotated = patches[(patches["split"] == "train") & ~patches["annotated"]]
    rows = []
    for number in range(20):
        style, agreement = unannotated.iloc[number % len(unannotated)], float(rng.uniform(0.2, 1))
        name = f"{number:05d}"
        _image(run / "synthetic" / f"images/{name}.png", rng)
        _image(run / "synthetic" / f"masks/{name}.png", rng, mask=True)
        rows.append(
            {
                "id": name,
                "image": f"images/{name}.png",
                "mask": f"masks/{name}.png",
                "layout_kind": "real" if number % 2 else "prior",
                "style_patient": style["patient"],
                "style_patches": json.dumps([style["patch_id"]]),
                "agreement": agreement,
                "ignored_fraction": 0.1,
                "keep": agreement > 0.5,
                "nearest_real": style["patch_id"],
                "nearest_real_distance": float(rng.uniform(0.1, 0.3)),
            }
        )
    pd.DataFrame(rows).to_parquet(run / "synthetic" / "manifest.parquet")
    found = measure(rng.integers(0, len(CLASSES), (4, 16, 16)).astype(np.uint8), len(CLASSES))
    distance = compare(found, found).as_json(CLASSES)
    files.write_json(
        run / "synthetic" / "layouts.json",
        {
            "statistics": dict.fromkeys(("annotated", "real", "prior"), found.as_json(CLASSES)),
            "distances": {"halves": None, "real": distance, "prior": distance},
            "composition": False,
        },
    )
    for folder in ("diffusion", "control"):
        _image(run / folder / "samples" / "style_by_layout.png", rng, size=(64, 128))


def _write_evaluation(run: Path, rng: np.random.Generator, patches: pd.DataFrame) -> None:
    test = patches[patches["split"] == "test"].drop_duplicates("patient")
    difficulty = rng.normal(0, 0.06, len(test))
    rows = []
    for arm, level in ARMS.items():
        for seed in (0, 1, 2):
            scores = np.clip(level + difficulty + rng.normal(0, 0.02, len(test)), 0, 1)
            for (_, patient), score in zip(test.iterrows(), scores, strict=True):
                row = {"arm": arm, "seed": seed, "patient": patient["patient"], "group": patient["group"], "patches": 2}
                row |= {"iou": score, "dice": 2 * score / (1 + score), "validation_iou": level - 0.1}
                rows.append(row | {f"iou_{name}": score for name in CLASSES})
    table = pd.DataFrame(rows)
    (run / "evaluation").mkdir(parents=True)
    table.to_csv(run / "evaluation" / "per_patient.csv", index=False)
    summary = summary_table(table, list(ARMS), label_budget=2, resamples=500)
    files.write_json(run / "evaluation" / "summary.json", summary)
    generation = {"nfe": 12, "images": 20, "images_per_second": 7.5, "device": "cpu", "layout_agreement": 0.8}
    generation |= {
        "style_distance_matched": 0.9,
        "style_distance_shuffled": 4.2,
        "kid": 0.01,
        "nearest_real_ratio": 1.1,
        "nearest_real_between": [0.1 + 0.005 * k for k in range(41)],
        "memorised_rate_set": 0.021,
    }
    files.write_json(run / "evaluation" / "generation.json", generation)
    for name in ("best_test01", "worst_test02"):
        _image(run / "evaluation" / "overlays" / f"{name}.png", rng, size=(32, 96))


def _write_training(run: Path, rng: np.random.Generator) -> None:
    steps = pd.DataFrame({"step": range(0, 500, 10), "loss": np.geomspace(1, 0.01, 50)})
    for stage in ("autoencoder", "diffusion"):
        (run / stage / "samples").mkdir(parents=True, exist_ok=True)
        steps.to_csv(run / stage / "metrics.csv", index=False)
        _image(run / stage / "samples" / "step_500.png", rng, size=(64, 64))
    for arm in ARMS:
        for seed in range(2):
            folder = run / "segmentation" / arm / f"seed{seed}"
            folder.mkdir(parents=True)
            steps.assign(val_iou=0.5).to_csv(folder / "metrics.csv", index=False)
            files.write_json(folder / "fingerprint.json", {"fingerprint": f"{arm} {seed}", "seconds": 12.5})
    for stage in ("data", "autoencoder", "diffusion", "synthetic", "evaluation"):
        files.write_json(run / stage / "fingerprint.json", {"fingerprint": "x", "seconds": 70})


def write_run(run: Path) -> None:
    """What the stages of a whole run leave for its report."""
    rng = np.random.default_rng(0)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("size: tiny\nfilter:\n  min_agreement: 0.5\ndiffusion:\n  style_set: patient\n")
    environment = {"python": "3.12.1", "torch": "2.9", "stedm": "0.1.0", "cpu": "a processor", "cores": 2}
    environment |= {"device": "cpu", "memory_gib": 4.0, "platform": "Linux"}
    files.write_json(run / "environment.json", environment)
    patches = _write_data(run, rng)
    _write_synthetic(run, rng, patches)
    _write_evaluation(run, rng, patches)
    _write_training(run, rng)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "night <1>"
    write_run(run)
    report(run)
    return run


@pytest.fixture
def copied_run(full_run, tmp_path) -> Path:
    return Path(shutil.copytree(full_run, tmp_path / "copy"))


def _page(run: Path) -> str:
    return (run / "report" / "index.html").read_text(encoding="utf-8")


def test_full_run_leaves_nothing_out(full_run):
    page = _page(full_run)
    assert "Not shown" not in page
    assert "2.1 % of the synthetic images, as drawn," in page and "Outline: as many training images" in page
    for heading in ("Segmentation, patient by patient", "Generated tissue", "Are training images copied?", "Training"):
        assert heading in page
    assert "night &lt;1&gt;" in page and "night <1>" not in page


def test_page_is_self_contained_and_its_pictures_are_whole(full_run):
    page = _page(full_run)
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert "<script" not in page and "http" not in re.sub(r'src="[^"]+"', "", page)
    for kind, payload in re.findall(r'src="data:image/([a-z+]+);base64,([^"]+)"', page):
        start = base64.b64decode(payload, validate=True)[:5]
        assert start == (b"<?xml" if kind == "svg+xml" else b"\x89PNG\r")
    assert all('alt="' in tag for tag in re.findall(r"<img [^>]+>", page))


def test_figures_of_the_summary_are_in_page_and_markdown(full_run):
    summary = files.read_json(full_run / "evaluation" / "summary.json")
    markdown = (full_run / "summary.md").read_text(encoding="utf-8")
    for score in summary["arms"].values():
        assert f"{score['patient_iou_mean']:.3f}" in _page(full_run)
        assert f"{score['worst_decile_iou']:.3f}" in markdown
    assert report_text.answer(summary) in markdown


def test_report_is_the_same_every_time(full_run):
    before = _page(full_run)
    report(full_run)
    assert _page(full_run) == before


def test_stage_times_include_their_parts(full_run):
    assert "1 min 40 s" in _page(full_run)  # 8 segmenters of 12.5 s
    assert "7 min 30 s" in _page(full_run)  # and five stages of 70 s


@pytest.mark.parametrize(
    "missing",
    [
        [
            "diffusion/samples/style_by_layout.png",
            "evaluation/per_patient.csv",
            "evaluation/overlays",
            "autoencoder/metrics.csv",
        ],
        ["environment.json", "data/patches.parquet", "evaluation/summary.json", "evaluation/generation.json"],
        ["synthetic/manifest.parquet", "synthetic/layouts.json", "segmentation"],
    ],
)
def test_what_is_missing_is_named_with_the_command_that_writes_it(copied_run, missing):
    for name in missing:
        target = copied_run / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    report(copied_run)
    reasons = re.findall(r'<p class="absent">(.*?)</p>', _page(copied_run))
    for name in missing:
        assert any(name in reason and "<code>stedm " in reason for reason in reasons)


def test_run_that_has_only_begun_still_gets_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("size: smoke\n")
    report(tmp_path)
    assert "There is no answer yet" in _page(tmp_path)


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        report(tmp_path)


@pytest.mark.parametrize("config", ["split: annotated", "experiment: [1]", "experiment: {budgets: [2], draws: x}"])
def test_config_of_a_run_whose_sections_are_none_is_refused(tmp_path, config):
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "budget2").mkdir()
    (tmp_path / "budget2" / "config.yaml").write_text("seed: 0")
    with pytest.raises(UserError, match=r"config\.yaml: damaged"):
        report(tmp_path)


def test_run_without_groups_filter_or_synthesis(copied_run):
    """One arm, one seed, no groups, an unfiltered synthetic set."""
    manifest = pd.read_parquet(copied_run / "synthetic" / "manifest.parquet")
    manifest.drop(columns=["agreement", "keep", "ignored_fraction", "nearest_real"]).to_parquet(
        copied_run / "synthetic" / "manifest.parquet"
    )
    table = pd.read_csv(copied_run / "evaluation" / "per_patient.csv")
    table = table[(table["arm"] == "real") & (table["seed"] == 0)].assign(group=np.nan)
    table.to_csv(copied_run / "evaluation" / "per_patient.csv", index=False)
    summary = summary_table(table, ["real"], label_budget=2, resamples=100)
    files.write_json(copied_run / "evaluation" / "summary.json", summary)
    report(copied_run)
    page = _page(copied_run)
    assert "was not asked" in page and "by group" not in page and "stedm filter" in page
    assert "One seed" in page


def test_seen_and_never_seen_styles_stand_side_by_side(copied_run):
    assert "it never saw" not in _page(copied_run)
    path = copied_run / "evaluation" / "generation.json"
    generation = files.read_json(path) | {"kid_images": [48, 30], "kid_encoder": "a folder", "unseen_are": "unseen"}
    generation |= {"style_distance_real": 0.123, "seen": {"patients": ["a"], "images": 24, "style_ratio": 0.31}}
    group = {"patients": ["b", "c"], "images": 48, "style_ratio": 0.42, "style_ratio_by_class": {"gland": 0.57}}
    generation |= {"figures_of": "unseen", "style_ratio": 0.42, "style_ratio_ci95": [0.36, 0.49]}
    files.write_json(path, generation | {"unseen": group | {"style_distance_matched": 0.9}})
    _image(copied_run / "evaluation" / "samples" / "never_seen.png", np.random.default_rng(0), size=(64, 128))
    report(copied_run)
    page = _page(copied_run)
    for shown in ("it never saw", "0.31", "0.42", "matched / shuffled, gland", "0.57", "0.12", "2 patients, 48 images"):
        assert shown in page
    assert "0.42, 95 % interval 0.36 to 0.49 over the 2 patients, 48 images." in page
    assert "KID (a folder, 48 drawn, 30 real images)" in page and "were never seen" in page


def test_given_first_stage_has_no_curve(copied_run):
    (copied_run / "autoencoder" / "metrics.csv").write_text("step,loss\n")
    report(copied_run)
    assert "the weights were given" in _page(copied_run)


def test_control_is_shown_only_where_it_was_trained(copied_run):
    config = copied_run / "config.yaml"
    for text in ("diffusion: {annotated_only_control: true}", "segmentation: {arms: [real+annotated-only]}"):
        config.write_text(f"{text}\n")
        report(copied_run)
        assert "trained on annotated images only" in _page(copied_run)
    config.write_text("diffusion: {annotated_only_control: false}\n")  # what an earlier config trained is left there
    report(copied_run)
    assert "trained on annotated images only" not in _page(copied_run)
    config.write_text("diffusion: {annotated_only_control: true}\n")
    shutil.rmtree(copied_run / "control")
    report(copied_run)
    assert "trained on annotated images only" not in _page(copied_run)


@pytest.mark.parametrize(
    ("filtered", "heeded"),
    [("{tolerance: null, min_agreement: 0}", False), ("{tolerance: 2}", True), ("{min_agreement: 0.5}", True)],
)
def test_the_report_says_whether_the_filter_is_heeded(copied_run, filtered, heeded):
    (copied_run / "config.yaml").write_text(f"filter: {filtered}\n")
    report(copied_run)
    page = _page(copied_run)
    assert ("The filter is off" not in page) == heeded == ("It kept " in page) == ("synthetic images kept" in page)


def test_a_second_round_of_an_earlier_config_warns_of_nothing(copied_run):
    again = copied_run / "synthetic-second-round"
    again.mkdir()
    manifest = pd.read_parquet(copied_run / "synthetic" / "manifest.parquet")
    manifest.assign(keep=[True] + [False] * (len(manifest) - 1)).to_parquet(again / "manifest.parquet")
    for arms, warned in (("[real+synthetic]", False), ("[real+synthetic, real+second-round]", True)):
        (copied_run / "config.yaml").write_text(f"segmentation: {{arms: {arms}}}\nfilter: {{min_agreement: 0.5}}\n")
        report(copied_run)
        page = _page(copied_run)
        assert ("The filter kept 5 %" in page) == warned == (f"together kept 1 of {len(manifest)}" in page)


VALIDATION = {
    "loss": 0.5,
    "loss_other_style": 0.501,
    "loss_other_layout": 0.75,
    "loss_null": 0.8,
    "style_gain": 0.002,
    "style_gain_se": 0.003,
    "layout_gain": 0.5,
    "layout_gain_se": 0.05,
    "ignored": ["style"],
    "images": 24,
    "patients": 4,
    "history": [],
}


def test_ignored_condition_is_a_warning_and_marked_in_its_table(copied_run):
    report(copied_run)
    assert "On validation images" not in _page(copied_run)  # a run from before there was a validation
    files.write_json(copied_run / "diffusion" / "validation.json", VALIDATION)
    report(copied_run)
    page, warning = _page(copied_run), "The style condition is ignored"
    assert page.index("Read before believing") < page.index(warning) < page.index("Are the conditions obeyed?")
    assert "+0.20 %" in page and "+50.0 %" in page and page.count("<strong>ignored</strong>") == 1
    assert warning in (copied_run / "summary.md").read_text()


def test_condition_that_could_not_be_exchanged_is_left_out(copied_run):
    unknown = VALIDATION | {"style_gain": None, "style_gain_se": None, "loss_other_style": None, "ignored": []}
    files.write_json(copied_run / "diffusion" / "validation.json", unknown | {"patients": 1})
    report(copied_run)
    page = _page(copied_run)
    assert "another image&#39;s layout" in page or "another image's layout" in page
    assert "another patient" not in page and "1 validation patient," in page
    unchecked = "Whether the style condition is ignored could not be checked: one validation patient has none"
    assert page.index("Read before believing") < page.index(unchecked)
    nothing = dict.fromkeys(VALIDATION) | {"ignored": [], "images": 0, "patients": 0}
    files.write_json(copied_run / "diffusion" / "validation.json", nothing)
    report(copied_run)
    page = _page(copied_run)
    assert "checked: no validation patient is annotated" in page and "On validation images" not in page


def _panels_of(figure: str) -> list[str]:
    svg = base64.b64decode(figure.partition(",")[2]).decode()
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_curves_show_what_was_measured_now_and_then_beside_the_loss():
    table = pd.DataFrame({"step": range(1, 101), "loss": np.geomspace(50, 0.5, 100)})
    table.loc[[24, 49, 74, 99], "val_style_gain"] = [0.001, 0.1, 0.3, 0.4]
    words = _panels_of(figures.curves_figure({"diffusion": [table]}))
    assert {"loss", "val style gain"} <= set(words)
    assert not [word for word in words if "$" in word or "math" in word] and "10" in words


SUMMARY = {
    "label_budget": 4,
    "n_test_patients": 24,
    "seeds": [0, 1, 2],
    "arms": {
        arm: {
            "patient_iou_mean": level,
            "patient_iou_std": 0.05,
            "worst_decile_iou": level - 0.1,
            "patient_dice_mean": level + 0.1,
            "ci95": [level - 0.02, level + 0.02],
        }
        for arm, level in ARMS.items()
    },
}


def _compared(delta: float, half_width: float, *, p_value: float = 0.01) -> dict:
    ci95 = [delta - half_width, delta + half_width]
    weak = {"arm": "real+synthetic", "baseline": "real", "delta_iou": 0.12, "ci95": [0.1, 0.14], "p_value": 0.0004}
    strong = {"arm": "real+stain+synthetic", "baseline": "real+stain", "delta_iou": delta, "ci95": ci95}
    return SUMMARY | {"comparisons": [weak, strong | {"p_value": p_value}]}


@pytest.mark.parametrize(
    ("delta", "half_width", "verdict"), [(0.04, 0.01, "helped"), (-0.04, 0.01, "hurt"), (0.0, 0.01, "no clear")]
)
def test_answer_follows_the_interval_against_the_strongest_baseline(delta, half_width, verdict):
    sentence = report_text.answer(_compared(delta, half_width))
    assert verdict in sentence and "from real+stain to real+stain+synthetic" in sentence
    assert report_text.signed(delta) in sentence and "24 test patients, 3 seeds, 4 annotated patients" in sentence
    assert "From real to real+synthetic: +0.120" in report_text.second_sentence(_compared(delta, half_width))


def test_a_wide_p_value_is_no_clear_difference_whatever_the_interval():
    five_patients_that_agree = _compared(0.04, 0.01, p_value=0.0625)
    assert "no clear difference" in report_text.answer(five_patients_that_agree)


def test_without_our_images_the_arm_is_chosen_on_validation_patients_and_is_not_the_ceiling():
    arms = {
        name: SUMMARY["arms"]["real"] | {"patient_iou_mean": test, "validation_iou": validation}
        for name, test, validation in (("real", 0.7, 0.6), ("real+stain", 0.65, 0.7), ("full", 0.8, 0.8))
    }
    sentence = report_text.answer(SUMMARY | {"arms": arms, "comparisons": []})
    assert "the arm real+stain, the best on validation patients, reaches a mean patient IoU of 0.650" in sentence


def test_a_patient_called_na_stays_in_the_tables(tmp_path):
    (tmp_path / "per_patient.csv").write_text("arm,patient,group,iou,iou_gland\nreal,NA,None,0.5,\n")
    table = table_of(tmp_path / "per_patient.csv")
    assert table["patient"].tolist() == ["NA"] and table["group"].tolist() == ["None"]
    assert np.isnan(table["iou_gland"][0])


def test_answer_is_about_the_headline_and_claims_only_what_survives_correction():
    pair = {"arm": "real+synthetic", "baseline": "real+stain", "delta_iou": 0.03, "ci95": [0.01, 0.05]}
    for p_adjusted, verdict in (
        (0.04, "in the place of stain augmentation helped:"),
        (0.06, "in the place of stain augmentation seemingly helped:"),
    ):
        headline = pair | {"p_value": 0.02, "p_adjusted": p_adjusted}
        summary = SUMMARY | {"comparisons": [headline], "headline": headline}
        assert verdict in report_text.answer(summary)
        assert "corrected" not in report_text.answer(summary)  # one comparison needs no correction
        several = summary | {"comparisons": [headline, *_compared(0.04, 0.01)["comparisons"]]}
        sentence = report_text.answer(several)
        assert "from real+stain to real+synthetic, each the best of its kind on validation patients," in sentence
        assert f"p = 0.020, corrected for 3 comparisons {p_adjusted:.3f}" in sentence
        assert "From real+stain to real+stain+synthetic: +0.040" in report_text.second_sentence(several)


@pytest.mark.parametrize(
    ("baseline", "arm", "words"),
    [
        ("real", "real+synthetic", "Synthetic images helped:"),
        ("real", "real+stain+synthetic", "Synthetic images together with stain augmentation helped:"),
        ("real+self-training", "real+synthetic", "Synthetic images in the place of self-training helped:"),
        ("real", "real+second-round", "Synthetic images helped:"),
    ],
)
def test_verdict_names_all_that_its_arms_differ_by(baseline, arm, words):
    pair = {"baseline": baseline, "arm": arm, "delta_iou": 0.1, "ci95": [0.08, 0.12], "p_value": 0.001}
    assert f"{report_text.verdict(pair)}:" == words


def test_pairs_that_exchange_synthetic_images_for_something_else_do_not_say_what_they_add():
    pairs = [("real+stain+synthetic", "real+stain+unfiltered"), ("real+stain+synthetic", "real+stain")]
    summary = SUMMARY | {"comparisons": [{"arm": arm, "baseline": baseline} for arm, baseline in pairs]}
    assert [pair["baseline"] for pair in report_text.synthesis_comparisons(summary)] == ["real+stain"]


HEALTHY = {
    "style_distance_matched": 1.0,
    "style_distance_shuffled": 4.0,
    "style_sensitivity": 0.75,
    "layout_sensitivity": 0.5,
    "memorised_rate": 0.02,
    "memorised_rate_real": 0.01,
    "nearest_real_ratio": 1.0,
    "layout_agreement": 0.8,
}


def test_nothing_is_warned_of_when_all_is_well():
    assert report_warnings.warnings(_compared(0.04, 0.01), HEALTHY, 0.9) == []
    assert report_warnings.warnings(None, None, None) == []


@pytest.mark.parametrize(
    ("summary", "generation", "kept", "words"),
    [
        ({"n_test_patients": 9}, {}, 0.9, "Only 9 test patients"),
        ({"n_unscored_patients": 3}, {}, 0.9, "3 test patients without a labelled pixel"),
        ({"seeds": [0]}, {}, 0.9, "One seed"),
        ({"seeds": [0, 1]}, {}, 0.9, "Only 2 seeds"),
        ({}, {"style_sensitivity": 0.05}, 0.9, "style condition is all but ignored"),
        ({}, {"layout_sensitivity": 0.05}, 0.9, "layout condition is all but ignored"),
        ({}, {"memorised_rate": 0.04}, 0.9, "some may be copies"),
        ({}, {"memorised_rate_set": 0.04}, 0.9, "some may be copies"),
        ({}, {"nearest_real_ratio": 0.4}, 0.9, "copies"),
        ({}, {"layout_agreement": 0.3}, 0.9, "poorly obeyed"),
        ({}, {"layout_agreement": 0.3, "layout_agreement_real": 0.8}, 0.9, "poorly obeyed"),
        ({}, {"layout_agreement": 0.3, "layout_agreement_real": 0.31}, 0.9, "reaches an IoU of 0.31 on real images"),
        ({}, {}, 0.4, "kept 40 %"),
    ],
)
def test_each_doubt_is_raised(summary, generation, kept, words):
    (warning,) = report_warnings.warnings(_compared(0.04, 0.01) | summary, HEALTHY | generation, kept)
    assert words in warning


@pytest.mark.parametrize(("delta", "apart", "warned"), [(0.04, 0.05, True), (0.04, 0.03, False), (0.001, 0.05, False)])
def test_arm_whose_seeds_disagree_more_than_the_effect_is_named(delta, apart, warned):
    summary = _compared(delta, 0.01)
    arms = {arm: score | {"iou_by_seed": {"0": 0.7, "1": 0.7}} for arm, score in summary["arms"].items()}
    arms["real+stain"]["iou_by_seed"] = {"0": 0.7, "1": 0.7 + apart, "2": 0.7}
    found = report_warnings.warnings(summary | {"arms": arms}, HEALTHY, 0.9)
    assert ["The seeds of real+stain lie" in warning for warning in found] == [True] * warned


def test_roles_are_counted_by_laboratory_where_there_are_two(copied_run):
    patches = pd.read_parquet(copied_run / "data" / "patches.parquet")
    one = roles.cohort(patches)
    theirs = patches["split"] == "test"
    two = roles.cohort(patches.assign(laboratory=np.where(theirs, "target", "source")))
    assert [row["role"] for row in two if "target" in row["role"]] == ["test, target laboratory"]
    assert sum(row["patches"] for row in two) == sum(row["patches"] for row in one) == len(patches)
    half = patches.assign(laboratory=np.where(patches["patch_id"].str.endswith("0"), "target", "source"))
    assert {row["role"].rsplit(", ", 1)[1] for row in roles.cohort(half)} == {
        "source laboratory",
        "target laboratory",
    }


def test_an_annotated_patient_with_images_without_masks_has_one_role(copied_run):
    patches = pd.read_parquet(copied_run / "data" / "patches.parquet")
    first = patches["patient"] == "train00"
    patches.loc[first, "annotated"] = [True, False]
    rows = {row["role"]: row for row in roles.cohort(patches)}
    assert (rows["training, annotated"]["patients"], rows["training, annotated"]["patches"]) == (2, 4)
    assert (rows["training, unannotated"]["patients"], rows["training, unannotated"]["patches"]) == (4, 8)


def test_styles_of_annotated_patients_are_not_called_never_annotated(copied_run):
    assert "patients that were never annotated" in _page(copied_run)
    patches = pd.read_parquet(copied_run / "data" / "patches.parquet").assign(annotated=True)
    patches.to_parquet(copied_run / "data" / "patches.parquet")
    report(copied_run)
    assert "never annotated" not in _page(copied_run) and "there are no others" in _page(copied_run)


def test_a_class_that_nobody_annotated_and_a_smoke_run_are_warned_of(copied_run):
    patches = pd.read_parquet(copied_run / "data" / "patches.parquet")
    shown = patches["split"] == "test"
    patches.assign(fraction_background=0.6, fraction_gland=np.where(shown, 0.4, 0.0)).to_parquet(
        copied_run / "data" / "patches.parquet"
    )
    (copied_run / "config.yaml").write_text("size: smoke\n")
    report(copied_run)
    page = _page(copied_run)
    assert "No annotated training image shows gland" in page and "shows background" not in page
    assert "Its figures mean nothing" in page


def test_leaks_are_found_by_patient_and_by_content(copied_run):
    data = copied_run / "data"
    patches = pd.read_parquet(data / "patches.parquet")
    assert leaks(data, patches) == [] and leaks(data, None) == []
    shutil.copy(data / "images" / "train03_0.png", data / "images" / "test05_1.png")
    (warning,) = leaks(data, patches)
    assert "train train03_0 = test test05_1" in warning
    shutil.copy(data / "images" / "train00_0.png", data / "images" / "train01_1.png")  # one role: no leak
    assert leaks(data, patches) == [warning]
    glass = patches.assign(tissue_fraction=(patches["patch_id"] != "test05_1").astype(float))
    assert leaks(data, glass) == []
    two_roles = patches.assign(split=patches["split"].where(patches["patch_id"] != "val00_1", "test"))
    assert "patient val00 has the roles test and val" in leaks(data, two_roles)[0]
    report(copied_run)
    assert _page(copied_run).index("Read before believing") < _page(copied_run).index("test test05_1")


def test_settings_are_those_in_force(copied_run):
    own = {"solver": "multistep", "nfe": 8, "guidance": "nested", "layout_guidance": 1.25, "grain": 1.0}
    files.write_json(copied_run / "diffusion" / "model_index.json", {"sampling": own})
    files.write_json(copied_run / "few_step" / "model_index.json", {"sampling": own | {"nfe": 4}})
    config = copied_run / "config.yaml"
    config.write_text("generate: {nfe: 20, solver: null, layout_guidance: 2.0, generator: full}\n")
    found = report_run.settings(read_evidence(copied_run))
    assert (found["NFE"], found["solver"], found["layout guidance"]) == ("20", "multistep", "2")
    config.write_text("generate: {nfe: null, layout_guidance: 2.0, generator: few-step}\n")
    found = report_run.settings(read_evidence(copied_run))
    assert (found["NFE"], found["layout guidance"], found["generator"]) == ("4", "1.25", "few-step")
    config.write_text("{}\n")
    assert report_run.settings(read_evidence(copied_run))["grain"] == "1"


def test_tables_hold_the_figures_of_the_summary(full_run):
    summary = files.read_json(full_run / "evaluation" / "summary.json")
    tables = {path.stem: pd.read_csv(path) for path in (full_run / "report" / "tables").glob("*.csv")}
    assert set(tables) == {"arms", "comparisons", "groups", "per_patient", "generator"}
    arms = tables["arms"].set_index("arm")
    for arm, score in summary["arms"].items():
        assert arms.loc[arm, "patient_iou_mean"] == pytest.approx(score["patient_iou_mean"])
        assert arms.loc[arm, "ci95_low"] == pytest.approx(score["ci95"][0])
        assert tables["per_patient"][f"iou_{arm}"].mean() == pytest.approx(score["patient_iou_mean"])
    assert len(tables["comparisons"]) == len(summary["comparisons"])
    assert tables["comparisons"]["p_adjusted"].tolist() == pytest.approx(
        [row["p_adjusted"] for row in summary["comparisons"]]
    )
    assert len(tables["groups"]) == 2 * len(ARMS) and tables["groups"]["n_patients"].eq(6).all()
    assert tables["generator"].set_index("figure").loc["nfe", "all"] == "12"


def test_stale_tables_do_not_survive(copied_run):
    (copied_run / "evaluation" / "generation.json").unlink()
    report(copied_run)
    names = {path.stem for path in (copied_run / "report" / "tables").iterdir()}
    assert names == {"arms", "comparisons", "groups", "per_patient"}


def test_arms_of_a_second_laboratory_are_chosen_in_its_stains_and_the_report_says_so(copied_run):
    assert "re-stained" not in _page(copied_run).lower()
    path = copied_run / "evaluation" / "summary.json"
    summary = files.read_json(path)
    for arm, score in summary["arms"].items():
        score["restained_iou"] = 0.987 if arm == "real+synthetic" else 0.5
    files.write_json(path, summary | {"chosen_by": "restained_iou"})
    report(copied_run)
    page, card = _page(copied_run), (copied_run / "report" / "model_card.md").read_text()
    assert (
        "validation IoU, re-stained" in page
        and "weights and arms are chosen on their images" in page
        and '<td class="n">0.987</td>' in page
    )
    assert "best of its kind on validation patients in the target&#39;s stains" in page
    assert "segmentation/real+synthetic/seed*/`, whose predictions `stedm segment` averages: the arm" in card
    assert "that is best on validation patients in the target's stains" in card
    assert "choose among weights and arms, their images in the stains of the target's training patients; test" in card


def test_model_card_names_data_licence_figures_and_limits(copied_run):
    card = (copied_run / "report" / "model_card.md").read_text()
    summary = files.read_json(copied_run / "evaluation" / "summary.json")
    score = summary["arms"]["real+stain+synthetic"]  # best on validation patients
    assert "segmentation/real+stain+synthetic/seed0" in card and f"{score['patient_iou_mean']:.3f}" in card
    assert "| training, annotated | 2 | 2 | 4 |" in card and "| test | 12 | 12 | 24 |" in card
    assert "Licence of the data: not stated" in card and "Not a medical device" in card
    assert "layout agreement, mean IoU with the judge: 0.800" in card
    (copied_run / "config.yaml").write_text("cohort: {table: a/slides.csv, licence: CC-BY-4.0}\n")
    (copied_run / "evaluation" / "summary.json").unlink()
    report(copied_run)
    card = (copied_run / "report" / "model_card.md").read_text()
    assert "Licence of the data: CC-BY-4.0" in card and "Cohort: slides.csv" in card and "Not evaluated yet" in card
    assert "CC-BY-4.0" in _page(copied_run)
    (copied_run / "config.yaml").write_text("cohort: {table: a/ours.csv, target: {table: b/theirs.csv}}\n")
    report(copied_run)
    assert "Cohort: ours.csv and theirs.csv" in (copied_run / "report" / "model_card.md").read_text()


def test_every_ingredient_has_its_words_and_its_part_in_comparisons():
    assert {"real", "stain", *RIVALS, *SYNTHETIC_SETS} == set(INGREDIENTS)
    words = [trained_on(f"real+{name}") for name in INGREDIENTS[1:]]
    assert len({trained_on("real"), *words}) == len(INGREDIENTS)


def test_forest_puts_differences_on_one_scale_with_the_headline_first():
    pairs = [
        {"arm": "a", "baseline": "b", "delta_iou": 0.1, "ci95": [0.0, 0.2]},
        {"arm": "c", "baseline": "b", "delta_iou": -0.1, "ci95": [-0.2, -0.05]},
    ]
    second, first = forest(pairs, pairs[1])[::-1]
    assert (first["arm"], first["headline"], first["sign"]) == ("c", True, "worse")
    assert (second["headline"], second["sign"]) == (False, "unclear")
    assert [second[key] for key in ("zero", "left", "width", "dot")] == pytest.approx([50, 50, 50, 75])
    assert [first[key] for key in ("zero", "left", "width", "dot")] == pytest.approx([50, 0, 37.5, 25])


@pytest.fixture(scope="module")
def experiment(full_run, tmp_path_factory) -> Path:
    """Budgets 2 and all (6), two folds of the first: the arms gain by the budget, the main one is `all`."""
    root = tmp_path_factory.mktemp("runs") / "study"
    table = pd.read_csv(full_run / "evaluation" / "per_patient.csv")
    pooled, summaries = [], {}
    for name, budget, gain in (("budget2-fold0", 2, 0.0), ("budget2-fold1", 2, 0.0), ("budgetall-fold0", 6, 0.1)):
        shutil.copytree(full_run, root / name)
        own = table.assign(iou=(table["iou"] + gain).clip(0, 1), budget=budget, fold=0)
        summaries[budget] = summary_table(own, list(ARMS), label_budget=budget, resamples=200)
        files.write_json(root / name / "evaluation" / "summary.json", summaries[budget])
        pooled += [own] if name != "budget2-fold1" else []
    for name in ("config.yaml", "environment.json"):
        shutil.copy(full_run / name, root / name)
    with (root / "config.yaml").open("a") as config:
        config.write("experiment: {budgets: [2, all], folds: 2}\n")
    shutil.copytree(root / "budget2-fold0", root / "budget3-fold0")  # of an earlier config
    (root / "evaluation").mkdir()
    pd.concat(pooled).to_csv(root / "evaluation" / "per_patient.csv", index=False)
    budgets = {str(budget): summary for budget, summary in summaries.items()}
    files.write_json(root / "evaluation" / "summary.json", summaries[6] | {"budgets": budgets})
    report(root)
    return root


def test_experiment_shows_every_budget_and_the_generator_of_the_main_one(experiment):
    page, markdown = _page(experiment), (experiment / "summary.md").read_text()
    evidence = read_evidence(experiment)
    assert [part.name for part in evidence.parts] == ["budget2-fold0", "budget2-fold1", "budgetall-fold0"]
    assert evidence.run.name == "budgetall-fold0" and list(evidence.budgets) == [2, 6]
    assert set(evidence.per_patient["budget"]) == {6}
    for budget, summary in evidence.budgets.items():
        for score in summary["arms"].values():
            assert f"{score['patient_iou_mean']:.3f}" in page and f"{score['patient_iou_mean']:.3f}" in markdown
        assert f"## {budget} annotated patients" in markdown
    assert "By number of annotated patients: with 2, " in page and "6 annotated patients)." in page
    assert "budgetall-fold0</a> (its generator is shown below)" in page and "Not shown" not in page
    assert "7 min 30 s" in page  # five stages of 70 s and eight segmenters of 12.5 s, which three runs share
    arms = pd.read_csv(experiment / "report" / "tables" / "arms.csv")
    assert arms.groupby("label_budget")["arm"].nunique().to_dict() == {2: 4, 6: 4}


def test_runs_of_an_earlier_config_are_no_part_of_the_experiment(experiment, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(experiment, root)
    shutil.copytree(root / "budget2-fold0", root / "budget2")  # before there were folds
    assert [part.name for part in read_evidence(root).parts] == ["budget2-fold0", "budget2-fold1", "budgetall-fold0"]
    text = (root / "config.yaml").read_text()
    (root / "config.yaml").write_text(text.replace("folds: 2", "folds: 1"))
    assert [part.name for part in read_evidence(root).parts] == ["budget2"]
    (root / "config.yaml").write_text("split: {label_budget: 2}\n")  # a plain run where an experiment was
    assert read_evidence(root).parts == (root,)


def test_settings_of_an_experiment_are_those_of_all_its_runs(experiment):
    found = report_run.settings(read_evidence(experiment))
    assert found["folds"] == "2" and found["label budgets"] == "2, 6"


def test_card_of_an_experiment_says_which_figures_are_of_the_weights_it_names(experiment):
    card = (experiment / "report" / "model_card.md").read_text()
    own = files.read_json(experiment / "budgetall-fold0" / "evaluation" / "summary.json")
    iou = own["arms"]["real+stain+synthetic"]["patient_iou_mean"]
    assert "those of the recipe over all 3 runs of the experiment" in card and "averages" not in card
    assert f"this arm's mean IoU over 12 test patients is {iou:.3f}" in card
    assert "in `budgetall-fold0/`" in card


def test_card_of_a_run_with_nothing_but_the_ceiling_is_about_the_ceiling(copied_run):
    table = pd.read_csv(copied_run / "evaluation" / "per_patient.csv")
    table = table[table["arm"] == "real"].assign(arm="full")
    files.write_json(copied_run / "evaluation" / "summary.json", summary_table(table, ["full"], label_budget=2))
    report(copied_run)
    card = (copied_run / "report" / "model_card.md").read_text()
    assert "segmentation/full/seed0" in card and "no other arm was trained" in card and "Not evaluated" not in card


def test_what_sub_runs_share_took_its_time_once(experiment):
    rows = {row["stage"]: row["seconds"] for row in report_run.times(read_evidence(experiment).parts)}
    assert rows["segmentation"] == 8 * 12.5 and rows["autoencoder"] == 70  # of three sub-runs with the same markers
    own = experiment / "budgetall-fold0" / "autoencoder" / "fingerprint.json"
    before = own.read_bytes()
    files.write_json(own, {"fingerprint": "another", "seconds": 30})
    assert {row["stage"]: row["seconds"] for row in report_run.times(read_evidence(experiment).parts)}[
        "autoencoder"
    ] == 100
    own.write_bytes(before)


def test_arms_of_folds_are_chosen_on_patients_that_other_folds_test(experiment, tmp_path):
    summary = read_evidence(experiment).summary
    folded, plain = {"split": {"fold": [0, 2]}}, {"split": {"fold": None}}
    assert "Validation patients of one fold are test patients of another" in folds_warning(folded, summary)[0]
    assert folds_warning(plain, summary) == folds_warning(folded, None) == []
    assert folds_warning(folded, summary | {"chosen_by": "restained_iou"}) == []


def test_links_of_an_experiment_lead_to_its_runs(experiment):
    targets = [link for link in re.findall(r'href="([^"#]+)"', _page(experiment))]
    assert len(targets) == 3 and all((experiment / "report" / target).is_file() for target in targets)


def test_experiment_that_has_only_begun_still_gets_a_page(tmp_path):
    for name in (".", "budget2", "budget4"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.yaml").write_text(
            "experiment: {budgets: [2, 4]}\n" if name == "." else "size: smoke\n"
        )
    report(tmp_path)
    assert "There is no answer yet" in _page(tmp_path) and "The runs of this experiment" in _page(tmp_path)


def test_curves_have_a_line_an_arm_with_all_budgets(experiment):
    words = _panels_of(budgets_figure(read_evidence(experiment).budgets))
    assert {"2", "6", *ARMS} <= set(words) and words.count("real+stain") == 2


def test_every_class_has_a_colour_of_its_own():
    colours = list(class_colours([f"class {k}" for k in range(32)]).values())
    rgb = np.array([list(bytes.fromhex(colour[1:])) for colour in colours], float)
    apart = np.linalg.norm(rgb[:, None] - rgb, axis=2)[np.triu_indices(32, 1)]
    assert apart.min() > 20, apart.min()
    layout = np.asarray(colour_layout(np.arange(32, dtype=np.uint8)[None]))
    assert (layout[0] == rgb).all()
