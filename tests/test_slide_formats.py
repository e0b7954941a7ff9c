"""Slides of every format, against the image they were made from: place, resolution, white, handles, damage."""

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from stedm.data import slide_formats, slide_tiff
from stedm.data.slide import DamagedSlide, Slide
from stedm.data.slide_formats import OpenSlideImage, PlainImage, open_backend
from stedm.data.slide_tiff import TiffPyramid
from stedm.errors import UserError

WIDTH, HEIGHT, MPP = 1003, 757, 0.25
"""Odd sizes: no level fits exactly."""
OPTIONS = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
MICRONS = {"PhysicalSizeX": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": MPP * 1e-3, "PhysicalSizeYUnit": "mm"}


def truth() -> np.ndarray:
    """Level 0 (H, W, 3) float: smooth waves, so that a shift by a pixel is seen and rounding is not."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 31), np.cos(y / 37), np.sin((x + y) / 49)]
    return (127 + 100 * np.stack(waves, -1)).round()


EDGE = 600
_PAPER = np.pad(truth(), ((EDGE, EDGE), (EDGE, EDGE), (0, 0)), constant_values=255)
INTEGRAL = np.pad(_PAPER.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))


def average(image: np.ndarray, factor: int) -> np.ndarray:
    """Area average; what does not fill a pixel is left out, as scanners do."""
    height, width = (size // factor for size in image.shape[:2])
    cells = image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    return cells.mean((1, 3)).round().astype(np.uint8)


def write(path: Path, kind: str) -> Path:
    """The true image as a file of some kind."""
    image = truth().astype(np.uint8)
    levels = {"odd": (3, 9), "plain": ()}.get(kind.split(" ")[0], (2, 4, 8))
    if kind == "plain":
        Image.fromarray(image).save(path.with_suffix(".png"))
        return path.with_suffix(".png")
    path = path.with_suffix(".ome.tif" if "ome" in kind else ".tif")
    with tifffile.TiffWriter(path) as tiff:
        if "ome" in kind and "planar" in kind:
            options = {"tile": (128, 128), "photometric": "minisblack", "compression": "zlib"}
            tiff.write(image.transpose(2, 0, 1), subifds=3, metadata={"axes": "CYX", **MICRONS}, **options)
            for factor in levels:
                tiff.write(average(image, factor).transpose(2, 0, 1), subfiletype=1, **options)
        elif "ome" in kind:
            tiff.write(image, subifds=len(levels), metadata={"axes": "YXS", **MICRONS}, **OPTIONS)
            for factor in levels:
                tiff.write(average(image, factor), subfiletype=1, **OPTIONS)
        elif "strips" in kind:  # OpenSlide reads tiles only
            for factor in (1, *levels):
                rest = {"photometric": "rgb", "rowsperstrip": 64, "metadata": None, "subfiletype": int(factor > 1)}
                tiff.write(average(image, factor), **rest)
        else:
            for factor in (1, *levels):
                dots = (10_000 / MPP / factor,) * 2
                rest = {"resolution": dots, "resolutionunit": "CENTIMETER", "metadata": None}
                rest |= {"subifds": len(levels)} if "sub" in kind and factor == 1 else {}
                tiff.write(
                    average(image, factor), subfiletype=int(factor > 1), **rest, **OPTIONS | _CODECS.get(kind, {})
                )
    return path


_CODECS = {"webp tiles": {"compression": "webp", "compressionargs": {"lossless": True}}}
KINDS = {
    "plain": PlainImage,
    "tiles": OpenSlideImage,
    "odd tiles": OpenSlideImage,
    "sub tiles": TiffPyramid,  # OpenSlide would see one level
    "webp tiles": TiffPyramid,  # OpenSlide knows no such compression
    "strips": TiffPyramid,
    "ome": TiffPyramid,
    "odd ome": TiffPyramid,
    "planar ome": TiffPyramid,
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> dict[str, Slide]:
    folder = tmp_path_factory.mktemp("formats")
    paths = {kind: write(folder / kind.replace(" ", "_"), kind) for kind in KINDS}
    return {kind: Slide.open(path, mpp=MPP) for kind, path in paths.items()}


def test_each_format_has_its_reader_its_resolution_and_its_levels(slides):
    for kind, slide in slides.items():
        backend = open_backend(slide.path)
        assert type(backend) is KINDS[kind], kind
        assert backend.header.size_px == (WIDTH, HEIGHT)
        assert backend.header.mpp == (None if kind in ("plain", "strips") else pytest.approx(MPP)), kind
        odd, plain = "odd" in kind, kind == "plain"
        assert backend.header.downsamples == ((1.0,) if plain else (1.0, 3.0, 9.0) if odd else (1.0, 2.0, 4.0, 8.0))
        backend.close()


@settings(max_examples=50)
@example(kind="tiles", ratio=9.0, x=0.0, y=124.0, size_px=30)
@given(
    kind=st.sampled_from(list(KINDS)),
    ratio=st.one_of(st.sampled_from([1.0, 2.0, 3.0, 4.0, 8.0, 9.0]), st.floats(1.0, 12.0)),
    x=st.floats(-20, 200),
    y=st.floats(-20, 150),
    size_px=st.integers(1, 40),
)
def test_any_region_is_the_area_average_of_level_0(slides, kind, ratio, x, y, size_px):
    region = slides[kind].read(x, y, size_px=size_px, mpp=MPP * ratio)
    assert region.shape == (size_px, size_px, 3) and region.dtype == np.uint8
    edges_x, edges_y = (at / MPP + ratio * np.arange(size_px + 1) for at in (x, y))
    # The integral is bilinear between pixel borders, so that its values at any corners are exact.
    corners = np.meshgrid(edges_y + EDGE, edges_x + EDGE, indexing="ij")
    integral = np.stack([ndimage.map_coordinates(INTEGRAL[..., k], corners, order=1) for k in range(3)], -1)
    expected = np.diff(np.diff(integral, axis=0), axis=1) / ratio**2
    # Levels leave out what does not fill a pixel, so that the last one may be white; and they are rounded.
    last = np.array([HEIGHT, WIDTH]) - (9 if "odd" in kind else 8)
    inside = (edges_y[1:] <= last[0])[:, None] & (edges_x[1:] <= last[1])[None, :]
    inside &= (edges_y[:-1] >= 0)[:, None] & (edges_x[:-1] >= 0)[None, :]
    # OpenSlide blends the edge of a level into the glass beside it, as far as that level's next pixel.
    off = 9 if KINDS[kind] is OpenSlideImage else 0
    far = ((edges_y[:-1] >= HEIGHT + off) | (edges_y[1:] <= -off))[:, None]
    far = far | (edges_x[:-1] >= WIDTH + off) | (edges_x[1:] <= -off)
    error = np.abs(region - expected)[inside]
    if error.size:  # levels are rounded, and OpenSlide starts at whole pixels of level 0: half a pixel off at most
        assert error.max() <= (1.01 if kind == "plain" else 5) and error.mean(0).max() <= 2
    assert (region[far] == 255).all()


def region_of(slide: Slide) -> np.ndarray:
    return slide.read(20.0, 30.0, size_px=24, mpp=0.5)


def process_and_region(slide: Slide) -> tuple[list[tuple[int, int]], np.ndarray]:
    region = region_of(slide)
    return [worker for worker in slide._handles], region


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["plain", "tiles", "ome"])
def test_workers_read_with_handles_of_their_own(slides, kind, method):
    slide, expected = slides[kind], region_of(slides[kind])
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        workers, region = pool.submit(process_and_region, slide).result()
    assert (region == expected).all()
    assert len(workers) == 1 and workers[0] not in slide._handles


def test_forked_worker_that_inherits_an_open_slide_reads_it(slides):
    expected = region_of(slides["tiles"])

    def child() -> None:
        same = (region_of(slides["tiles"]) == expected).all()
        raise SystemExit(0 if same and len(slides["tiles"]._handles) == 2 else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_threads_read_with_handles_of_their_own_and_close_releases_them_all(slides):
    slide = Slide.open(slides["tiles"].path)
    expected, found = region_of(slide), []
    barrier = threading.Barrier(4)

    def read() -> None:
        barrier.wait()  # all alive at once: a thread that has ended lends its number to the next
        for _ in range(20):
            found.append((region_of(slide) == expected).all())
        barrier.wait()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(found) and len(slide._handles) == 5
    slide.close()
    assert slide._handles == {} and (region_of(slide) == expected).all()


def test_a_pickled_slide_keeps_what_the_user_said(slides):
    slide = pickle.loads(pickle.dumps(slides["strips"]))
    assert (slide.mpp, slide.width_px, slide.bounds_px) == (MPP, WIDTH, (0, 0, WIDTH, HEIGHT))
    assert (region_of(slide) == region_of(slides["strips"])).all()


def test_the_tile_cache_is_bounded_and_changes_nothing(slides, monkeypatch):
    monkeypatch.setattr(slide_tiff, "CACHE_BYTES", 3 * 128 * 128 * 3)
    backend = open_backend(slides["ome"].path)
    first = np.asarray(backend.region(0, 0, 0, WIDTH, HEIGHT))
    assert len(backend._tiles) <= 3 and (first == truth()).all()
    assert (np.asarray(backend.region(0, 0, 0, WIDTH, HEIGHT)) == first).all()


def test_a_resolution_that_is_a_programs_default_is_no_measurement(tmp_path):
    image = truth().astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "dpi.tif") as tiff:
        tiff.write(image, resolution=(72, 72), resolutionunit="INCH", metadata=None, **OPTIONS)
    with Slide.open(tmp_path / "dpi.tif") as slide, pytest.raises(UserError, match=r"dpi\.tif.*cohort\.mpp"):
        _ = slide.mpp


def write_unequal(path: Path, kind: str, *, x: float, y: float) -> Path:
    """A slide that states `x` and `y` microns per pixel."""
    image = truth().astype(np.uint8)
    if kind == "ome":
        tifffile.imwrite(path, image, ome=True, metadata={"axes": "YXS", "PhysicalSizeX": x, "PhysicalSizeY": y})
        return path
    options = OPTIONS if kind == "tiles" else {"photometric": "rgb", "rowsperstrip": 64}
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 2):
            dots = {"resolution": (10_000 / x / factor, 10_000 / y / factor), "resolutionunit": "CENTIMETER"}
            tiff.write(average(image, factor), subfiletype=int(factor > 1), metadata=None, **dots, **options)
    return path


@pytest.mark.parametrize("kind", ["ome", "tiles", "strips"])
def test_pixels_that_are_not_square_have_no_resolution_until_the_user_says(tmp_path, kind):
    path = write_unequal(tmp_path / "flat.tif", kind, x=0.25, y=0.5)
    with Slide.open(path) as slide:
        with pytest.raises(UserError, match=r"flat\.tif.*0\.25 in x and 0\.5 in y.*cohort\.mpp.*column 'mpp'"):
            _ = slide.mpp
        with pytest.raises(UserError, match=r"flat\.tif"):
            slide.read(0, 0, size_px=8, mpp=0.5)
    with Slide.open(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5
        assert (slide.read(0, 0, size_px=50, mpp=0.5) == truth()[:50, :50]).all()
    nearly = write_unequal(tmp_path / "nearly.tif", kind, x=0.25, y=0.2525)
    with Slide.open(nearly) as slide:
        assert slide.mpp == pytest.approx(0.25125, rel=1e-3)


@pytest.mark.parametrize("kind", ["ome", "tiles", "one level"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_several_images_in_a_file_the_largest_is_the_slide(tmp_path, kind, place):
    """Thumbnail and label, of resolutions of their own, before or behind the slide."""
    image, path = truth().astype(np.uint8), tmp_path / "series.tif"
    others = [(np.full((100, 120, 3), 7, np.uint8), 5.0), (np.full((80, 60, 3), 9, np.uint8), 3.0)]
    with tifffile.TiffWriter(path, ome=kind == "ome") as tiff:
        for pixels, mpp in [*others[:place], (image, MPP), *others[place:]]:
            levels = int(pixels is image and kind != "one level")
            if kind == "ome":
                microns = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
                tiff.write(pixels, subifds=levels, metadata=microns, **OPTIONS)
            else:
                dots = {"resolution": (10_000 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
                tiff.write(pixels, metadata=None, **dots, **OPTIONS)
            if levels:
                tiff.write(average(pixels, 2), subfiletype=1, metadata=None if kind != "ome" else {}, **OPTIONS)
    with Slide.open(path) as slide:
        assert (slide.width_px, slide.height_px, slide.is_pyramid) == (WIDTH, HEIGHT, kind != "one level")
        assert slide.mpp == pytest.approx(MPP)
        assert (slide.read(0, 0, size_px=300, mpp=MPP) == truth()[:300, :300]).all()


def test_images_of_one_size_are_told_apart_by_their_place_in_the_file(tmp_path):
    image, path = truth().astype(np.uint8), tmp_path / "twins.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image[:64, :64], metadata={"axes": "YXS", "PhysicalSizeX": 9.0, "PhysicalSizeY": 9.0}, **OPTIONS)
        for mpp in (MPP, 2 * MPP):
            tiff.write(image, metadata={"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}, **OPTIONS)
    with Slide.open(path) as slide:
        assert slide.mpp == MPP


def test_sparse_tiles_and_transparent_pixels_are_white(tmp_path):
    layer = np.dstack([truth().astype(np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    layer[:200, :, 3] = 0
    with tifffile.TiffWriter(tmp_path / "layer.ome.tif") as tiff:
        tiff.write(layer, metadata={"axes": "YXS", **MICRONS}, extrasamples=["UNASSALPHA"], **OPTIONS)
    with Slide.open(tmp_path / "layer.ome.tif") as slide:
        region = slide.read(0, 0, size_px=400, mpp=MPP)
    assert (region[:200] == 255).all() and (region[200:] == truth()[200:400, :400]).all()


def test_bounds_are_those_the_file_states(tmp_path, slides, monkeypatch):
    properties = {
        "openslide.bounds-x": "40",
        "openslide.bounds-y": "30",
        "openslide.mpp-x": "0.5",
        "openslide.mpp-y": "0.496",
    }
    properties |= {"openslide.bounds-width": "600", "openslide.bounds-height": "500"}
    monkeypatch.setattr(slide_formats.openslide.OpenSlide, "properties", properties)
    with Slide.open(slides["tiles"].path) as slide:
        assert slide.bounds_px == (40, 30, 600, 500) and slide.mpp == pytest.approx(0.498)


@pytest.mark.parametrize("kind", ["tiles", "ome", "strips"])
def test_damage_is_told_from_a_mistake(tmp_path, slides, kind):
    whole = slides[kind].path.read_bytes()
    path = tmp_path / slides[kind].path.name
    path.write_bytes(bytes(byte ^ 90 if 5000 < place < 20000 else byte for place, byte in enumerate(whole)))
    if kind != "strips":  # uncompressed: other pixels, no damage
        with Slide.open(path, mpp=MPP) as slide, pytest.raises(DamagedSlide, match="decoded"):
            slide.read(0, 0, size_px=400, mpp=MPP)
    path.write_bytes(whole[:100])
    with pytest.raises(DamagedSlide, match="unreadable"):
        Slide.open(path, mpp=MPP).read(0, 0, size_px=8, mpp=MPP)
    with pytest.raises(UserError, match="not found") as missing:
        Slide.open(tmp_path / "gone.tif")
    assert not isinstance(missing.value, DamagedSlide)


def test_grey_is_right_whichever_end_is_white(tmp_path):
    grey = truth()[..., 0].astype(np.uint8)
    for kind, pixels in (("minisblack", grey), ("miniswhite", 255 - grey)):
        path = tmp_path / f"{kind}.ome.tif"
        options = OPTIONS | {"photometric": kind}
        tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "YX", **MICRONS}, **options)
        with Slide.open(path) as slide:
            assert (slide.read(0, 0, size_px=400, mpp=MPP) == grey[:400, :400, None]).all()
            assert (slide.read(-100, -100, size_px=200, mpp=MPP) == 255).all()
            assert (slide.read(WIDTH * MPP, 0, size_px=64, mpp=MPP) == 255).all()


@pytest.mark.parametrize(("kind", "channels"), [("palette", 1), ("separated", 4), ("ycbcr", 3)])
def test_colours_of_another_kind_are_not_taken_for_rgb(tmp_path, kind, channels):
    pixels = np.zeros((256, 256, channels), np.uint8).squeeze()
    options = {"colormap": np.zeros((3, 256), np.uint16)} if kind == "palette" else {"planarconfig": "contig"}
    tifffile.imwrite(
        tmp_path / "other.ome.tif", pixels, photometric=kind, metadata={"axes": "YXS"[: pixels.ndim]}, **options
    )
    with pytest.raises(DamagedSlide, match=rf"other\.ome\.tif.*{kind.upper()} pixels; save an 8-bit RGB image"):
        Slide.open(tmp_path / "other.ome.tif")


def test_other_kinds_of_pixels_are_refused_in_words(tmp_path):
    tifffile.imwrite(tmp_path / "deep.ome.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb")
    with pytest.raises(DamagedSlide, match=r"deep\.ome\.tif.*uint16.*8-bit RGB"):
        Slide.open(tmp_path / "deep.ome.tif")


@pytest.mark.parametrize(("share", "description"), [(0.6, "Aperio Image Library v1"), (0.95, "Aperio"), (0.2, "")])
def test_a_slide_that_was_copied_in_part_is_damage_and_no_slide_without_resolution(tmp_path, share, description):
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "whole.tif") as tiff:
        for level in (pixels, pixels[::2, ::2]):
            tiff.write(level, tile=(256, 256), photometric="rgb", description=description, metadata=None)
    whole = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "part.tif").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedSlide, match=r"part\.tif: .*replace the file"):
        Slide.open(tmp_path / "part.tif")


def test_a_tiff_cut_off_in_its_header_is_damage(tmp_path):
    whole = tmp_path / "whole.tif"
    tifffile.imwrite(whole, np.zeros((64, 64, 3), np.uint8), tile=(32, 32), description="cut off below" * 20)
    for length in (4, 8, 40):
        cut = tmp_path / f"cut{length}.tif"
        cut.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(DamagedSlide, match="unreadable image"):
            Slide.open(cut)
