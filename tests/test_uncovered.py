"""What is in no polygon: tissue and glass are labelled as the config says, apart from one another."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import IGNORE, CohortConfig, PrepareConfig, RunConfig, SplitConfig
from stedm.stages.prepare import prepare

SIDE_PX = 48
TISSUE, DRAWN = np.s_[:, 16:], np.s_[8:40, 24:48]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four patients: glass left of x = 16, tissue right of it, in that a tumour from (24, 8) to (48, 40)."""
    image = np.full((SIDE_PX, SIDE_PX, 3), 240, np.uint8)
    image[TISSUE] = (170, 80, 150)
    ring = [[24, 8], [48, 8], [48, 40], [24, 40], [24, 8]]
    for k in range(4):
        Image.fromarray(image).save(tmp_path / f"i{k}.png")
        shape = {"type": "Polygon", "coordinates": [ring]}
        feature = {"type": "Feature", "geometry": shape, "properties": {"classification": {"name": "Tumor"}}}
        (tmp_path / f"a{k}.geojson").write_text(json.dumps(feature))
    rows = [{"image": f"i{k}.png", "patient": f"p{k}", "mpp": "1", "annotation": f"a{k}.geojson"} for k in range(4)]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def label_map(table: Path, labels: dict[str, list[str]]) -> np.ndarray:
    """What `prepare` writes for the first patient."""
    config = RunConfig(
        cohort=CohortConfig(table=str(table), labels=labels),
        split=SplitConfig(label_budget=1, val_patients=1, test_patients=1),
        prepare=PrepareConfig(patch_px=SIDE_PX, min_tissue=0),
    )
    out = table.parent / "data"
    prepare(out, config)
    patches = pd.read_parquet(out / "patches.parquet")
    return np.asarray(Image.open(out / patches["mask"].iloc[0]))


@pytest.mark.parametrize(
    ("other", "ignored", "tissue", "glass"),
    [
        (["Skin"], [], IGNORE, IGNORE),
        (["Skin", "glass"], [], IGNORE, 1),
        (["Skin", "unannotated"], [], 1, 1),
        (["Skin", "unannotated"], ["glass"], 1, IGNORE),
        (["Skin", "glass", "unannotated"], [], 1, 1),
        (["Skin", "glass"], ["unannotated"], IGNORE, 1),
    ],
)
def test_tissue_and_glass_in_no_polygon(table, other, ignored, tissue, glass) -> None:
    feature = json.loads((table.parent / "a1.geojson").read_text())
    feature["properties"]["classification"]["name"] = "Skin"  # one class alone would be refused
    for k in (1, 2, 3):
        (table.parent / f"a{k}.geojson").write_text(json.dumps(feature))
    found = label_map(table, {"tumour": ["Tumor"], "other": other, "ignore": ignored})
    assert (found[DRAWN] == 0).all()
    edge = 3  # the tissue is found on a smoothed image
    assert (found[:, : 16 - edge] == glass).all()
    assert (found[:, 16 + edge : 24] == tissue).all() and (found[:8, 16 + edge :] == tissue).all()
    assert set(np.unique(found)) <= {0, tissue, glass}


def test_glass_left_out_is_as_if_not_named(table) -> None:
    found = label_map(table, {"tumour": ["Tumor"], "other": ["Skin", "unannotated"], "leave_out": ["glass"]})
    assert set(np.unique(found)) == {0, 1}


def test_a_polygon_over_glass_wins(table) -> None:
    ring = [[0, 0], [8, 0], [8, 48], [0, 48], [0, 0]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "geometry": shape, "properties": {"classification": {"name": "Tumor"}}}
    for k in range(4):
        (table.parent / f"a{k}.geojson").write_text(json.dumps(feature))
    found = label_map(table, {"tumour": ["Tumor"], "other": ["Skin", "glass"]})
    assert (found[:, :8] == 0).all() and (found[:, 8:13] == 1).all() and (found[:, 19:] == IGNORE).all()


def test_outside_of_the_region_of_interest_glass_is_ignored(table) -> None:
    roi = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    roi[24:] = 1
    Image.fromarray(roi).save(table.parent / "roi.png")
    pd.read_csv(table, dtype=str).assign(roi="roi.png").to_csv(table, index=False)
    found = label_map(table, {"tumour": ["Tumor"], "other": ["Skin", "glass"]})
    assert (found[:24] == IGNORE).all() and (found[24:, :13] == 1).all() and (found[24:40, 24:] == 0).all()
