"""Every style patch comes from the slide or patient asked for and does not overlap the target."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stedm.data.patches import tile_grid
from stedm.data.style_sets import StyleSets

PATCH_UM = 16.0


def patches() -> pd.DataFrame:
    """Three patients, two slides each; the second slide of each patient is two images."""
    rows = []
    for patient in range(3):
        for image in range(3):
            slide = f"p{patient}s{min(image, 1)}"
            for x, y in tile_grid(40, 56, 16):  # the last tiles overlap their neighbours
                place = {"x_um": float(x), "y_um": float(y)}
                rows.append({"patient": f"p{patient}", "slide": slide, "source": f"r{patient}{image}", **place})
    return pd.DataFrame(rows)


TABLE = patches()


def overlaps(a: pd.Series, b: pd.Series) -> bool:
    same_image = a["source"] == b["source"]
    return same_image and abs(a["x_um"] - b["x_um"]) < PATCH_UM and abs(a["y_um"] - b["y_um"]) < PATCH_UM


@settings(max_examples=60)
@given(
    mode=st.sampled_from(["nearby", "slide", "patient"]),
    i=st.integers(0, len(TABLE) - 1),
    size=st.integers(1, 30),
    radius_um=st.floats(0, 60),
    seed=st.integers(0, 9),
)
def test_style_patches_are_of_the_right_place_and_disjoint(mode, i, size, radius_um, seed):
    sets = StyleSets(TABLE, mode=mode, size=size, nearby_um=radius_um, patch_um=PATCH_UM)
    target, candidates = TABLE.iloc[i], sets.candidates(i)
    key = {"nearby": "source", "slide": "slide", "patient": "patient"}[mode]
    expected = []
    for j, row in TABLE.iterrows():
        near = mode != "nearby" or np.hypot(row["x_um"] - target["x_um"], row["y_um"] - target["y_um"]) <= radius_um
        if row[key] == target[key] and near and not overlaps(row, target):
            expected.append(j)
    assert candidates.tolist() == expected
    assert sets.has_candidates(i) == bool(expected)
    if expected:
        drawn = sets.draw(i, np.random.default_rng(seed))
        assert len(drawn) == size and set(drawn) <= set(expected)
        assert len(set(drawn)) == min(size, len(set(drawn))) and (size > len(expected) or len(set(drawn)) == size)
        assert (drawn == sets.draw(i, np.random.default_rng(seed))).all()


def test_self_is_the_target():
    sets = StyleSets(TABLE, mode="self", size=3, nearby_um=0, patch_um=PATCH_UM)
    assert sets.draw(5, np.random.default_rng(0)).tolist() == [5, 5, 5]


def test_adjacent_tiles_do_not_overlap_despite_rounding():
    table = pd.DataFrame({"patient": "p", "slide": "s", "source": "r", "x_um": [0.3 * 21, 0.1 * 63 + 6.4], "y_um": 0.1})
    sets = StyleSets(table, mode="slide", size=1, nearby_um=0, patch_um=6.4)
    assert sets.candidates(0).tolist() == [1] and sets.candidates(1).tolist() == [0]


def test_row_widths_may_differ():
    table = pd.DataFrame({"patient": "p", "slide": "s", "source": "r", "x_um": [0.0, 10.0], "y_um": 0.0})
    narrow = StyleSets(table, mode="slide", size=1, nearby_um=0, patch_um=np.array([10.0, 5.0]))
    wide = StyleSets(table, mode="slide", size=1, nearby_um=0, patch_um=np.array([12.0, 5.0]))
    assert narrow.has_candidates(0) and not wide.has_candidates(0) and not wide.has_candidates(1)


def test_patient_with_one_patch_has_no_style_set():
    sets = StyleSets(TABLE.iloc[:1], mode="patient", size=2, nearby_um=0, patch_um=PATCH_UM)
    assert not sets.has_candidates(0)
    with pytest.raises(LookupError, match="patient"):
        sets.draw(0, np.random.default_rng(0))
