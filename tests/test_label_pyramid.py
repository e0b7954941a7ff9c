"""Label maps in files: bands that are read by rows, and pyramids that other programs open."""

from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import tifffile

from stedm.data.label_bands import LabelBands
from stedm.data.label_pyramid import LabelPyramid, halved, write_label_pyramid
from stedm.errors import UserError

COLOURS = ["#eceae4", "#2f7f86", "#d9774f"]


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """(1300, 1790): three classes in large regions, and a part that was not predicted."""
    y, x = np.mgrid[:1300, :1790]
    labels = (((x // 130) + (y // 90)) % 3).astype(np.uint8)
    labels[:200, 1000:] = 255
    return labels


@pytest.fixture(scope="module")
def written(labels, tmp_path_factory):
    """Path of the pyramid, and the counts."""
    folder = tmp_path_factory.mktemp("pyramid")
    starts = [0, 350, 1290]
    bands = LabelBands(folder / "bands", width_px=1790, height_px=1300, starts=starts)
    for band, start in enumerate(starts):
        assert not bands.has(band)
        bands.write(band, labels[start : [*starts, 1300][band + 1]])
    assert len(bands) == 3 and (bands.rows(340, 1295) == labels[340:1295]).all()
    path = folder / "labels.tif"
    names = ["background", "stroma", "epithelium"]
    counts = write_label_pyramid(path, bands, mpp=0.8, classes=names, colours=COLOURS, scratch=folder / "scratch")
    return path, counts


def test_counts_and_rows_are_exact(labels, written) -> None:
    path, counts = written
    assert (counts == np.bincount(labels.ravel(), minlength=256)).all()
    with LabelPyramid(path) as pyramid:
        assert (pyramid.height_px, pyramid.width_px) == labels.shape
        for start, stop in ((0, 1300), (500, 530), (511, 1025), (1299, 1300)):
            assert (pyramid.rows(start, stop) == labels[start:stop]).all()


def test_pixels_are_classes_and_the_file_says_which(labels, written) -> None:
    with tifffile.TiffFile(written[0]) as tiff:
        assert tiff.is_bigtiff and len(tiff.pages) == 3
        assert (tiff.pages[0].asarray() == labels).all()
        assert (tiff.pages[1].asarray() == halved(labels)).all()
        assert "1 stroma; 2 epithelium; 255 not predicted" in tiff.pages[0].description


def test_levels_are_sub_images_and_in_line(labels, written) -> None:
    """What Bio-Formats looks for, and what OpenSlide does, are the same images."""
    with tifffile.TiffFile(written[0]) as tiff:
        tiff.pages.useframes = False
        offsets = [page.offset for page in tiff.pages]
        assert len(offsets) == 3 and list(tiff.pages.first.subifds) == offsets[1:]
        for level, page in enumerate(tiff.pages):
            dots, divisor = page.tags["XResolution"].value
            assert page.is_tiled and page.is_reduced == (level > 0)
            assert 1e4 * divisor / dots == pytest.approx(0.8 * 1790 / page.imagewidth, rel=1e-6)


def test_ome_xml_says_that_it_is_one_plane_with_levels_and_its_resolution(labels, written) -> None:
    with tifffile.TiffFile(written[0]) as tiff:
        assert tiff.is_ome
        (series,) = tiff.series
        assert [level.shape for level in series.levels] == [(1300, 1790), (650, 895), (325, 448)]
        (pixels,) = ElementTree.fromstring(tiff.ome_metadata).iterfind(".//{*}Pixels")
    assert [pixels.get(f"Size{axis}") for axis in "XYCZT"] == ["1790", "1300", "1", "1", "1"]
    assert [float(pixels.get(f"PhysicalSize{axis}")) for axis in "XY"] == [0.8, 0.8]


@pytest.mark.parametrize("name", ["épithélium & <'1'>", 'a"b'])
def test_names_of_classes_are_kept_whatever_they_are(name, tmp_path) -> None:
    bands = LabelBands(tmp_path / "bands", width_px=5, height_px=3, starts=[0])
    bands.write(0, np.zeros((3, 5), np.uint8))
    path = tmp_path / "labels.tif"
    write_label_pyramid(path, bands, mpp=0.5, classes=[name], colours=COLOURS[:1], scratch=tmp_path / "scratch")
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 1 and not tiff.pages.first.subifds
        (said,) = ElementTree.fromstring(tiff.ome_metadata).iterfind(".//{*}Description")
    assert said.text == f"label map: 0 {name}; 255 not predicted"


def test_openslide_shows_every_level_in_colour(labels, written) -> None:
    table = np.full((256, 3), 255)
    table[:3] = [list(bytes.fromhex(colour[1:])) for colour in COLOURS]
    with openslide.OpenSlide(written[0]) as slide:
        assert slide.level_dimensions == ((1790, 1300), (895, 650), (448, 325))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.8, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.8, rel=1e-6)
        expected = labels
        for level, size in enumerate(slide.level_dimensions):
            shown = np.asarray(slide.read_region((0, 0), level, size))[..., :3]
            assert (shown == table[expected]).all()
            expected = halved(expected)


def test_halving_takes_the_commonest() -> None:
    fours = np.stack(np.meshgrid(*[np.arange(3)] * 4, indexing="ij"), -1).reshape(-1, 4)
    for four in fours.astype(np.uint8):
        counts = np.bincount(four, minlength=3)
        (chosen,) = halved(four.reshape(2, 2)).ravel()
        assert counts[chosen] == counts.max()
        assert (counts == counts.max()).sum() == 1 or chosen in four
    assert halved(np.full((1, 1), 7, np.uint8)).tolist() == [[7]]
    assert halved(np.zeros((3, 5), np.uint8)).shape == (2, 3)


def test_a_damaged_label_map_is_named(tmp_path) -> None:
    (tmp_path / "cut.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"cut\.tif.*segment again"):
        LabelPyramid(tmp_path / "cut.tif")
