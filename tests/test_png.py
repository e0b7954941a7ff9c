"""PNG files: nothing is lost, and they are no larger than those of Pillow's fast settings."""

import io

import numpy as np
import pytest
from PIL import Image

from stedm.data.phantom import draw_layout, draw_style
from stedm.data.phantom_render import render
from stedm.png import write_png


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64), (1, 1, 3), (7, 5, 3), (64, 33, 3)])
def test_pixels_come_back(tmp_path, shape) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.mode == ("RGB" if len(shape) == 3 else "L")
        assert (np.asarray(image) == pixels).all()


def test_a_part_of_an_array_is_written_as_it_is_seen(tmp_path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    write_png(tmp_path / "a.png", whole.transpose(1, 2, 0)[::2, ::-1])
    assert (np.asarray(Image.open(tmp_path / "a.png")) == whole.transpose(1, 2, 0)[::2, ::-1]).all()


def test_files_are_small(tmp_path) -> None:
    rng = np.random.default_rng(0)
    layout = draw_layout(256, rng)
    for pixels in (render(layout, draw_style("he", rng), rng), layout):
        write_png(tmp_path / "a.png", pixels)
        pillow = io.BytesIO()
        Image.fromarray(pixels).save(pillow, "PNG", compress_level=1)
        assert (tmp_path / "a.png").stat().st_size < 1.02 * len(pillow.getvalue()) < 1.02 * pixels.nbytes


def test_a_full_disk_is_an_os_error(tmp_path) -> None:
    with pytest.raises(OSError):
        write_png(tmp_path / "missing" / "a.png", np.zeros((4, 4), np.uint8))
