"""Windows: every pixel once, weights that add up to one, and no seam where one window hands over to the next."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from stedm.data.slide import Slide
from stedm.data.windows import Blender, WindowGrid, mirrored
from stedm.models.ensemble import Ensemble
from stedm.models.segmenter import Segmenter
from stedm.stages.predict import Prediction

GRIDS = st.builds(
    lambda width, height, overlap, more: WindowGrid(width, height, 2 * overlap + more, overlap),
    *(st.integers(1, 90), st.integers(1, 90), st.integers(0, 12), st.integers(1, 20)),
)


def blended(grid: WindowGrid, predict, *, left_out=()) -> np.ndarray:
    """Predictions (N, height, width); NaN where no window was given."""
    result, blender = None, None
    for row in range(grid.rows):
        windows = [
            (column, predict(grid.corner(row), grid.corner(column)))
            for column in range(grid.columns)
            if (row, column) not in left_out
        ]
        for ys, xs, values in (blender := blender or Blender(grid, 2)).row(row, windows):
            result = np.full((len(values), grid.height_px, grid.width_px), np.nan) if result is None else result
            assert np.isnan(result[:, ys, xs]).all(), "a pixel was finished twice"
            result[:, ys, xs] = values
    return result


@settings(max_examples=60)
@given(GRIDS)
def test_every_pixel_is_finished_once_with_weights_that_add_up_to_one(grid: WindowGrid) -> None:
    ones = np.ones((2, grid.window_px, grid.window_px), np.float32)
    assert np.abs(blended(grid, lambda y, x: ones) - 1).max() < 1e-6


@settings(max_examples=40)
@given(GRIDS, st.integers(0, 2**31))
def test_a_filter_that_sees_no_further_than_the_margin_knows_no_seams(grid: WindowGrid, seed: int) -> None:
    image = np.random.default_rng(seed).random((grid.height_px, grid.width_px))
    reach = grid.margin_px
    whole = ndimage.uniform_filter(image, 2 * reach + 1, mode="reflect")

    def predict(y: int, x: int) -> np.ndarray:
        ys = mirrored(y, grid.window_px, grid.height_px) + y
        xs = mirrored(x, grid.window_px, grid.width_px) + x
        seen = ndimage.uniform_filter(image[ys[:, None], xs], 2 * reach + 1, mode="constant")
        return np.stack([seen, 1 - seen]).astype(np.float32)

    inside = (slice(reach, grid.height_px - reach), slice(reach, grid.width_px - reach))
    difference = np.abs(blended(grid, predict)[0] - whole)[inside]
    assert difference.size == 0 or difference.max() < 1e-5


def test_windows_left_out_change_nothing_where_the_others_are_enough() -> None:
    grid = WindowGrid(200, 150, 64, 16)
    rng = np.random.default_rng(0)
    tiles: dict[tuple[int, int], np.ndarray] = {}

    def predict(y: int, x: int) -> np.ndarray:
        return tiles.setdefault((y, x), rng.random((2, 64, 64), np.float32))

    whole, left_out = blended(grid, predict), (1, 2)
    some = blended(grid, predict, left_out=[left_out])
    touched = np.zeros(whole.shape[1:], bool)
    touched[grid.used(1, 150), grid.used(2, 200)] = True
    assert (some[:, ~touched] == whole[:, ~touched]).all()
    assert np.isnan(some[:, touched]).any()


def test_mirror() -> None:
    assert mirrored(-3, 8, 20).tolist() == [5, 4, 3, 3, 4, 5, 6, 7]
    assert mirrored(16, 8, 20).tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert mirrored(-2, 7, 2).tolist() == [3, 2, 2, 3, 3, 2, 2]


def test_overlap_is_at_most_half_a_window() -> None:
    with pytest.raises(ValueError, match="half"):
        WindowGrid(100, 100, 64, 33)


def test_a_network_predicts_the_same_in_windows_as_on_the_whole_image(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("stedm.models.segmenter.autocast", lambda device: contextlib.nullcontext())
    torch.manual_seed(0)
    network = Segmenter(classes=["a", "b"], encoder="tu-resnet10t", decoder_channels=[16, 8, 8], mpp=1.0).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (704, 640, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    whole = network.probabilities(pixels[None])[0]
    with Slide.open(tmp_path / "image.png", mpp=1.0) as slide:
        plan = Prediction.plan(
            slide, Ensemble([network]), window_px=512, overlap_px=256, everywhere=True, folder=tmp_path / "bands"
        )
        assert (plan.grid.rows, plan.grid.columns, plan.grid.window_px) == (3, 3, 512)
        blender, tiled = Blender(plan.grid, 2), np.empty_like(whole)
        with ThreadPoolExecutor(1) as reader:
            for row in range(3):
                for ys, xs, values in blender.row(row, plan._windows(row, [0, 1, 2], reader)):
                    tiled[:, ys, xs] = values
    assert np.abs(tiled - whole)[:, 64:-64, 64:-64].max() < 1e-5
    assert whole.std() > 1e-3  # the network does tell pixels apart
