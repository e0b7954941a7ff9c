"""`synthetic/layouts.json` and its figure: annotated and drawn label maps, measured and compared."""

import base64
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.files import read_json, write_json
from stedm.stages.layout_statistics import write_layout_statistics
from stedm.stages.report_layouts import layouts_section
from stedm.stages.run_folder import RunFolder

CLASSES = ["glass", "stroma", "gland"]


def halves(width_px: int, value: int) -> np.ndarray:
    """0 with this value in the last `width_px` of 16 columns."""
    label_map = np.zeros((16, 16), np.uint8)
    label_map[:, 16 - width_px :] = value
    return label_map


@pytest.fixture
def content(tmp_path: Path) -> dict:
    """Two annotated patients; `real` layouts equal to their maps, `prior` layouts with another class."""
    run = RunFolder(tmp_path)
    for folder in (run.data / "masks", run.synthetic / "masks"):
        folder.mkdir(parents=True)
    write_json(run.data / "classes.json", {"classes": CLASSES})
    annotated = [halves(4, 1), halves(8, 1)]
    for k, label_map in enumerate([*annotated, halves(8, 2)]):
        Image.fromarray(label_map).save(run.data / "masks" / f"m{k}.png")
    patches = pd.DataFrame({"patch_id": ["m0", "m1", "m2"], "patient": ["p0", "p1", "p2"], "split": "train"})
    patches = patches.assign(annotated=[True, True, False], mask="masks/" + patches["patch_id"] + ".png")
    plan = pd.DataFrame({"id": [f"s{k}" for k in range(4)], "layout_kind": ["real", "real", "prior", "prior"]})
    for name, label_map in zip(plan["id"], [*annotated, halves(6, 2), halves(6, 2)], strict=True):
        Image.fromarray(label_map).save(run.synthetic / "masks" / f"{name}.png")
    write_layout_statistics(run, plan.assign(composition=["", "", "", "[0.6, 0.0, 0.4]"]), patches, seed=0)
    return read_json(run.synthetic / "layouts.json")


def test_statistics_and_distances_of_known_maps(content: dict):
    assert content["statistics"]["annotated"]["stroma"]["fraction"] == 0.375
    assert content["statistics"]["annotated"]["gland"]["region_px"] is None  # the unannotated patient's map is not read
    real, prior = content["distances"]["real"], content["distances"]["prior"]
    assert (real["fraction_error"], real["region_error"], real["adjacency_distance"]) == (0, 0, 0)
    assert prior["fraction_error"] == pytest.approx(0.25) and prior["adjacency_distance"] == 1
    assert prior["region_log_ratio"]["stroma"] is None
    halves_apart = content["distances"]["halves"]
    assert halves_apart["fraction_error"] == pytest.approx(2 / 3 * 0.25)  # 4 against 8 of 16 columns
    assert halves_apart["adjacency_distance"] == 0
    assert content["composition"] is True


def test_section_has_the_figure_and_a_row_a_kind(content: dict):
    section = layouts_section(content)
    assert [row["name"] for row in section["rows"]] == ["real, warped", "prior", "two halves of the annotated patients"]
    svg = base64.b64decode(section["figure"].partition("base64,")[2]).decode()
    for text in (*CLASSES, "glass | stroma", "annotated", "prior", "class fractions"):
        assert re.search(rf">\s*{re.escape(text)}\s*<", svg), text
    assert layouts_section(None) is None


def test_one_annotated_patient_has_no_halves(content: dict):
    section = layouts_section(content | {"distances": content["distances"] | {"halves": None}})
    assert [row["name"] for row in section["rows"]] == ["real, warped", "prior"]
