"""Style sets drawn from real slides: tissue of the right slide, at the right place, never over the target."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stedm.config import CohortConfig, PrepareConfig, RunConfig, SplitConfig
from stedm.data.slide import Slide
from stedm.data.style_sets import StyleSets
from stedm.stages.prepare import prepare

PATCH_PX, MPP, MIN_TISSUE = 32, 4.0, 0.4
PATCH_UM = PATCH_PX * MPP


def tissue_of(number: int) -> np.ndarray:
    """Where slide `number` has tissue, (H, W) bool: two pieces; no size is a multiple of a patch."""
    rng = np.random.default_rng(number)
    mask = np.zeros((310 + 13 * number, 290 + 7 * number), bool)
    for _ in range(2):
        y, x = rng.integers(0, 150, 2)
        mask[y : y + rng.integers(90, 150), x : x + rng.integers(90, 150)] = True
    return mask


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Four patients with two slides each of about 1.2 mm; a pen mark on every other slide."""
    folder, rows = tmp_path_factory.mktemp("styles"), []
    for number in range(8):
        rng, mask = np.random.default_rng([number, 1]), tissue_of(number)
        image = np.where(mask[..., None], (190 - 8 * number, 100 + 5 * number, 170), 243)
        image = (image + rng.normal(0, 4, image.shape)).clip(0, 250).astype(np.uint8)
        if number % 2:
            image[-40:, 10:200] = (30, 130, 80)
        Image.fromarray(image).save(folder / f"s{number}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"m{number}.png")
        rows.append({"image": f"s{number}.png", "patient": f"p{number // 2}", "mask": f"m{number}.png"})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    config = RunConfig(
        cohort=CohortConfig(table=str(folder / "table.csv"), mpp=MPP),
        split=SplitConfig(label_budget=1, val_patients=1, test_patients=1),
        prepare=PrepareConfig(patch_px=PATCH_PX, mpp=MPP, min_tissue=MIN_TISSUE),
    )
    prepare(folder / "data", config)
    return folder, pd.read_parquet(folder / "data" / "patches.parquet")


@settings(max_examples=150)
@given(
    mode=st.sampled_from(["nearby", "slide", "patient"]),
    place=st.floats(0, 1, exclude_max=True),
    size=st.integers(1, 12),
    radius_um=st.floats(150, 700),
    seed=st.integers(0, 9),
)
def test_style_sets_are_tissue_of_the_right_slide_beside_the_target(prepared, mode, place, size, radius_um, seed):
    _, patches = prepared
    sets = StyleSets(patches, mode=mode, size=size, nearby_um=radius_um, patch_um=PATCH_UM)
    i = int(place * len(patches))
    if not sets.has_candidates(i):
        assert mode == "nearby"  # every slide has tissue enough for a second patch
        return
    target = patches.iloc[i]
    for row in patches.iloc[sets.draw(i, np.random.default_rng(seed))].itertuples():
        assert row.patient == target["patient"] and (mode == "patient" or row.slide == target["slide"])
        offset_um = np.abs([row.x_um - target["x_um"], row.y_um - target["y_um"]])
        assert row.slide != target["slide"] or offset_um.max() >= PATCH_UM - 1e-6
        assert mode != "nearby" or np.hypot(*offset_um) <= radius_um
        y, x = round(row.y_um / MPP), round(row.x_um / MPP)
        share = tissue_of(int(row.slide[1:]))[y : y + PATCH_PX, x : x + PATCH_PX].mean()
        assert share >= MIN_TISSUE - 0.2  # the tissue's outline is blurred by a few pixels
        assert row.tissue_fraction == pytest.approx(share, abs=0.2)


def test_a_style_image_is_that_place_of_that_slide(prepared):
    folder, patches = prepared
    for row in patches.iloc[:: max(1, len(patches) // 12)].itertuples():
        with Slide.open(folder / f"{row.slide}.png", mpp=MPP) as slide:
            expected = slide.read(row.x_um, row.y_um, size_px=PATCH_PX, mpp=MPP)
        assert (np.asarray(Image.open(folder / "data" / row.image)) == expected).all()
