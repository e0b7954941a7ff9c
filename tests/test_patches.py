"""Tiles cover every pixel, each counts once; patches read back as written; memory stays bounded."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stedm.config import IGNORE
from stedm.data.patches import (
    LabelMaps,
    PatchImages,
    counted_once,
    extract_label_patch,
    main_group,
    tile_grid,
)
from stedm.errors import UserError

sizes = st.integers(1, 70)
patch_sizes = st.integers(1, 20)


@pytest.mark.parametrize(
    ("groups", "main"),
    [(["b", "a", "b"], "b"), (["b", "a"], "a"), (["", "", "a"], "a"), (["", None, float("nan")], ""), ([], "")],
    ids=str,
)
def test_a_patient_counts_in_the_group_of_most_rows(groups, main):
    assert main_group(groups) == main


@given(width=sizes, height=sizes, patch_px=patch_sizes)
def test_every_pixel_of_an_image_lies_in_a_tile(width, height, patch_px):
    covered = np.zeros((height, width), bool)
    for x, y in tile_grid(width, height, patch_px):
        covered[y : y + patch_px, x : x + patch_px] = True
    assert covered.all()


def tiles_of(corners: list[tuple[int, int]], image: str, mpp: float) -> pd.DataFrame:
    x, y = np.array(corners, float).reshape(-1, 2).T * mpp
    return pd.DataFrame({"source": image, "x_um": x, "y_um": y, "mpp": mpp})


@given(
    width=sizes,
    height=sizes,
    patch_px=patch_sizes,
    mpp=st.sampled_from([0.4991, 1.0, 2.7]),
    left_out=st.integers(0),
)
def test_every_pixel_that_a_patch_shows_counts_once(width, height, patch_px, mpp, left_out):
    corners = tile_grid(width, height, patch_px)
    left_out %= len(corners) + 1  # glass, whose neighbours show some of it; or none
    corners = corners[:left_out] + corners[left_out + 1 :]
    numbers = np.arange(height * width).reshape(height, width) % 251
    padded = np.pad(numbers.astype(np.uint8), ((0, patch_px), (0, patch_px)), constant_values=IGNORE)
    maps = np.array([padded[y : y + patch_px, x : x + patch_px] for x, y in corners], np.uint8)
    maps = maps.reshape(-1, patch_px, patch_px)
    twice = pd.concat([tiles_of(corners, "one", mpp), tiles_of(corners, "two", mpp)])
    once = counted_once(np.concatenate([maps, maps]), twice)
    shown = np.zeros((height + patch_px, width + patch_px), int)
    counted = np.zeros_like(shown)
    for (x, y), before, after in zip(corners, maps, once, strict=False):
        shown[y : y + patch_px, x : x + patch_px] += before != IGNORE
        counted[y : y + patch_px, x : x + patch_px] += after != IGNORE
        assert (after[after != IGNORE] == before[after != IGNORE]).all()
    assert (counted == (shown > 0)).all()
    assert (once[: len(maps)] == once[len(maps) :]).all()  # images have nothing to do with each other


@given(width=sizes, height=sizes, patch_px=patch_sizes)
def test_tiles_lie_inside_images_that_are_large_enough(width, height, patch_px):
    for x, y in tile_grid(width, height, patch_px):
        assert x == 0 or x + patch_px <= width
        assert y == 0 or y + patch_px <= height


def test_label_patch_follows_place_and_scale():
    label_map = np.kron(np.arange(12).reshape(3, 4), np.ones((2, 2))).astype(np.uint8)  # 6 x 8, cells of 2 x 2
    assert extract_label_patch(label_map, 0, 0, scale=2, patch_px=3).tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    assert (extract_label_patch(label_map, 3, 1, scale=1, patch_px=4) == label_map[1:5, 3:7]).all()


def test_label_patch_ignores_what_is_outside():
    patch = extract_label_patch(np.ones((4, 4), np.uint8), -1, 2, scale=1, patch_px=4)
    assert (patch[:2, 1:] == 1).all() and (patch[:, 0] == IGNORE).all() and (patch[2:] == IGNORE).all()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_patches_read_in_the_order_asked_for(folder):
    patches = PatchImages(folder, [f"{i}.png" for i in range(4)])
    images = patches.images([2, 0, 2])
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
    assert (images[0] == images[2]).all() and (images[1] == np.asarray(Image.open(folder / "0.png"))).all()


def test_cache_is_bounded_and_changes_nothing(folder):
    paths = [f"{i}.png" for i in range(4)]
    bounded, unbounded = PatchImages(folder, paths, cache_bytes=2 * 192), PatchImages(folder, paths)
    for _ in range(2):
        assert (bounded.images(range(4)) == unbounded.images(range(4))).all()
    assert len(bounded._cache) == 2 and len(unbounded._cache) == 4


def test_missing_patches_are_refused(folder):
    with pytest.raises(LookupError):
        LabelMaps(folder, [""]).label_maps([0])
    with pytest.raises(UserError, match=r"gone\.png"):
        PatchImages(folder, ["gone.png"]).images([0])
