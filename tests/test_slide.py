"""Regions of slides: right place, right resolution, white where there is nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from stedm.data import slide_formats
from stedm.data.slide import Slide
from stedm.errors import UserError


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)


@pytest.fixture(scope="module", params=["plain.png", "pyramid.tif"])
def path(request, tmp_path_factory, pixels):
    """The same pixels at 0.5 microns per pixel as plain image and as tiled pyramid."""
    path = tmp_path_factory.mktemp("slides") / request.param
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
        return path
    quarter = pixels.reshape(75, 4, 100, 4, 3).mean((1, 3)).round().astype(np.uint8)
    options = {"tile": (128, 128), "photometric": "rgb", "resolutionunit": "CENTIMETER", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, resolution=(20_000, 20_000), **options)
        tiff.write(quarter, resolution=(5_000, 5_000), subfiletype=1, **options)
    return path


def test_region_at_full_resolution_is_exact(path, pixels):
    with Slide.open(path, mpp=0.5) as slide:
        assert (slide.width_px, slide.height_px, slide.mpp) == (400, 300, 0.5)
        assert (slide.read(20.0, 10.0, size_px=64, mpp=0.5) == pixels[20:84, 40:104]).all()


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_coarser_region_is_the_area_average(path, pixels, ratio):
    with Slide.open(path, mpp=0.5) as slide:
        region = slide.read(8.0, 4.0, size_px=16, mpp=0.5 * ratio)
    side = 16 * ratio
    mean = pixels[8 : 8 + side, 16 : 16 + side].reshape(16, ratio, 16, ratio, 3).mean((1, 3))
    assert np.abs(region - mean).max() <= 1.5  # two roundings


def test_outside_is_white(path, pixels):
    with Slide.open(path, mpp=0.5) as slide:
        region = slide.read(-8.0, -16.0, size_px=64, mpp=0.5)
        far = slide.read(1e5, 1e5, size_px=8, mpp=0.5)
    assert (region[:32] == 255).all() and (region[:, :16] == 255).all() and (far == 255).all()
    assert (region[32:, 16:] == pixels[:32, :48]).all()


def test_overview_is_the_whole_slide(path, pixels):
    with Slide.open(path, mpp=0.5) as slide:
        overview = slide.overview(2.0)
    assert np.abs(overview - pixels.reshape(75, 4, 100, 4, 3).mean((1, 3))).max() <= 1


def test_overview_in_blocks_is_the_same(path, monkeypatch):
    with Slide.open(path, mpp=0.5) as slide:
        whole = slide.overview(1.0)
        monkeypatch.setattr("stedm.data.slide._BLOCK_PX", 64)
        blocks = slide.overview(1.0)
    assert np.abs(blocks.astype(int) - whole).max() <= 1  # Pillow orders its two passes by the shape


def test_overview_by_threads_is_the_same(path, monkeypatch):
    monkeypatch.setattr("stedm.data.slide._BLOCK_PX", 64)
    readers, read = set(), Slide._read

    def spied(slide, *place, **size):
        readers.add(threading.get_ident())
        return read(slide, *place, **size)

    with Slide.open(path, mpp=0.5) as slide:
        alone = slide.overview(1.0)
        monkeypatch.setattr(Slide, "_read", spied)
        assert (slide.overview(1.0, threads=3) == alone).all()
    assert threading.main_thread().ident not in readers


def test_resolution_comes_from_the_user_or_the_file_and_is_never_guessed(tmp_path, path):
    if path.suffix == ".tif":
        with Slide.open(path) as slide:
            assert slide.mpp == pytest.approx(0.5)
    with Slide.open(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    with Slide.open(tmp_path / "bare.png") as slide, pytest.raises(UserError, match=r"bare\.png.*cohort\.mpp"):
        _ = slide.mpp


def test_transparent_pixels_are_white(tmp_path):
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:4, :, 3] = 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    with Slide.open(tmp_path / "layer.png", mpp=1) as slide:
        region = slide.read(0, 0, size_px=8, mpp=1)
    assert (region[:4] == 0).all() and (region[4:] == 255).all()


def test_files_that_cannot_be_read_are_named(tmp_path):
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:700])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.svs").write_text("no slide")
    for name, expected in (("gone.png", "not found"), ("text.svs", "unreadable")):
        with pytest.raises(UserError, match=f"{name}.*{expected}"):
            Slide.open(tmp_path / name)
    for name, expected in (("cut.jpg", "decoded"), ("deep.png", "8 bits")):
        with Slide.open(tmp_path / name, mpp=1) as slide, pytest.raises(UserError, match=f"{name}.*{expected}"):
            slide.read(0, 0, size_px=8, mpp=1)


def test_threads_share_the_pixels_of_a_plain_image(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = []
    flatten = slide_formats.flatten
    monkeypatch.setattr(slide_formats, "flatten", lambda image: decoded.append(image) or flatten(image))
    with Slide.open(tmp_path / "a.png", mpp=1.0) as slide, ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda k: slide.read(0, k, size_px=32, mpp=1.0), range(32)))
    assert len(decoded) == 1
    assert all((part == pixels[k : k + 32, :32]).all() for k, part in enumerate(parts))
