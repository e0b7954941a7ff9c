"""Whole slides: all of the tissue whatever its stain, and no pen marks, dust or glass; areas that users give."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from stedm.data.area import AreaImage, open_area
from stedm.data.ink import FRINGE_UM
from stedm.data.phantom import draw_layout, draw_style
from stedm.data.phantom_render import render
from stedm.data.slide import Slide
from stedm.data.slide_tissue import SlideTissue, clean_tissue
from stedm.data.tissue import tissue_fraction
from stedm.errors import UserError

MPP = 8.0
SIDE = 72
"""Width of an overview, pixels: 576 microns."""
INKS = {
    "blue": (40, 60, 170),
    "dark blue": (30, 30, 130),
    "green": (30, 130, 80),
    "black": (45, 45, 50),
    "red": (200, 30, 45),
    "yellow": (245, 235, 80),
    "orange": (240, 130, 30),
}
KINDS = [(family, scanner, score) for family in ("he", "ihc") for scanner in ("first", "second") for score in (0, 3)]


def shrunk(image: np.ndarray) -> np.ndarray:
    return image.reshape(SIDE, 8, SIDE, 8, -1).mean((1, 3))


@functools.cache
def overview(family: str, scanner: str, score: int) -> tuple[np.ndarray, np.ndarray]:
    """A slide seen from afar (H, W, 3) uint8, and the share of each pixel that is tissue: glass on the left third."""
    rng = np.random.default_rng(score)
    layout = np.zeros((8 * SIDE, 8 * SIDE), np.uint8)
    layout[64:-64, 192:-64] = draw_layout(8 * SIDE, rng)[64:-64, 192:-64]
    style = draw_style(family, rng, scanner=scanner, score=score)
    return shrunk(render(layout, style, rng)).round().astype(np.uint8), shrunk(layout != 0)[..., 0]


def covered(image: np.ndarray, share: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """`image` under ink that lets a tenth of what is below through; share (H, W): how much of a pixel it covers."""
    transmitted = 0.9 * ink + 0.1 * ink * image / 255
    return (image + share[..., None] * (transmitted - image)).round().astype(np.uint8)


@pytest.mark.parametrize(("family", "scanner", "score"), KINDS)
def test_stained_tissue_is_found_and_glass_is_not(family, scanner, score):
    image, truth = overview(family, scanner, score)
    found = clean_tissue(image, mpp=MPP)
    assert found[truth > 0.6].mean() > 0.97 and found[:, :20].mean() == 0


@settings(max_examples=60)
@example(kind=("he", "first", 0), name="dark blue", jitter=[2, 0, -5], ends=[(19, 9), (31, 31)], width_um=150)
@given(
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(sorted(INKS)),
    jitter=st.lists(st.integers(-6, 6), min_size=3, max_size=3),
    ends=st.lists(st.tuples(st.integers(8, SIDE - 8), st.integers(8, SIDE - 8)), min_size=2, max_size=4, unique=True),
    width_um=st.integers(150, 400),
)
def test_pen_marks_are_left_out_and_tissue_beyond_them_is_kept(kind, name, jitter, ends, width_um):
    assume(all(np.hypot(a[0] - b[0], a[1] - b[1]) > 25 for a, b in itertools.pairwise(ends)))  # a stroke, not a dot
    image, truth = overview(*kind)
    canvas = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(canvas).line(
        [(4 * x, 4 * y) for x, y in ends], fill=255, width=round(4 * width_um / MPP), joint="curve"
    )
    share = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX)) / 255
    found = clean_tissue(covered(image, share, np.array(INKS[name]) + np.array(jitter)), mpp=MPP)
    rows, columns = np.nonzero(share)
    away = np.ones_like(truth, bool)
    for dy, dx in zip(rows, columns, strict=True):
        reach = int(FRINGE_UM / MPP) + 2
        away[max(0, dy - reach) : dy + reach + 1, max(0, dx - reach) : dx + reach + 1] = False
    glass = (truth == 0) & (share > 0)
    assert found[glass].sum() <= 0.03 * glass.sum() + 2
    kept = (truth > 0.6) & away
    assert found[kept].sum() >= 0.95 * kept.sum() - 4


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    specks=st.lists(st.tuples(st.integers(2, 15), st.integers(3, SIDE - 3)), min_size=1, max_size=6),
    grey=st.integers(0, 200),
    width_px=st.integers(1, 6),
)
def test_dust_is_left_out(kind, specks, grey, width_px):
    image, truth = overview(*kind)
    image = image.copy()
    for x, y in specks:
        image[y : y + width_px, x : x + width_px] = grey
    isolated = all(abs(a[0] - b[0]) > 8 or abs(a[1] - b[1]) > 8 for a in specks for b in specks if a != b)
    found = clean_tissue(image, mpp=MPP)
    assert not isolated or found[:, :22].sum() == 0
    assert found[truth > 0.6].mean() > 0.97


def test_a_bare_slide_has_no_tissue():
    glass = np.random.default_rng(0).normal(236, 2, (80, 80, 3)).clip(0, 255).astype(np.uint8)
    assert clean_tissue(glass, mpp=MPP).sum() == 0


def on_glass(colour, *, glass=(243, 243, 243), noise: float = 2.0, size_px: int = 50) -> np.ndarray:
    """An overview (100, 100, 3) uint8 of bare glass with a square of one colour in its middle."""
    image = np.full((100, 100, 3), glass, float)
    start = 50 - size_px // 2
    image[start : start + size_px, start : start + size_px] = colour
    image += noise * np.random.default_rng(0).standard_normal(image.shape)
    return image.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("glass", [(210, 210, 210), (200, 200, 202), (243, 236, 212)])
def test_on_dim_or_tinted_glass_only_the_tissue_is_tissue(glass):
    found = clean_tissue(on_glass((150, 70, 130), glass=glass), mpp=MPP)
    assert found[25:75, 25:75].all() and found.mean() == 0.25


@pytest.mark.parametrize("noise", [0.0, 4.0])
@pytest.mark.parametrize(
    "colour",
    [(45, 33, 29), (36, 29, 27), (225, 120, 180), (60, 42, 115), (60, 35, 20)],
    ids=["melanin", "dense melanin", "eosin", "haematoxylin", "DAB"],
)
def test_broad_pigment_and_stain_are_no_pen_marks(colour, noise):
    assert clean_tissue(on_glass(colour, noise=noise), mpp=MPP)[25:75, 25:75].mean() > 0.99


@pytest.mark.parametrize(("colour", "least"), [((226, 222, 226), 0.97), ((230, 227, 228), 0.85)])
@pytest.mark.parametrize("width_px", [100, 140, 180])
def test_pale_tissue_is_found_however_much_of_the_slide_it_fills(colour, least, width_px):
    image = np.full((200, 200, 3), 240.0)
    image[:, :width_px] = colour + 6 * np.random.default_rng(0).standard_normal((200, width_px, 3))
    found = clean_tissue(image.round().astype(np.uint8), mpp=MPP)
    assert found[:, :width_px].mean() > least and not found[:, width_px + 1 :].any()


GREY_AND_BRIGHT_INK = [(110, 110, 112), (85, 82, 80), (250, 240, 80), (245, 130, 30), (0, 160, 200)]
RED_INK = [(220, 20, 60), (255, 0, 0), (200, 0, 0), (180, 30, 40), (210, 40, 50), (220, 50, 50), (200, 30, 45)]


@pytest.mark.parametrize("width_px", [20, 30])
@pytest.mark.parametrize("colour", GREY_AND_BRIGHT_INK + RED_INK)
def test_broad_strokes_on_bare_glass_are_left_out(colour, width_px):
    image, ink = on_glass((190, 110, 170), size_px=20), on_glass(colour, size_px=100)
    image[2 : 2 + width_px], image[:, -width_px:] = ink[:width_px], ink[:, :width_px]
    found = clean_tissue(image, mpp=MPP)
    assert found[40:60, 40:60].all() and found.mean() == 0.04


@pytest.mark.parametrize("colour", [(110, 110, 112), (195, 50, 70), (180, 40, 60)], ids=["grey", "blood", "dark blood"])
def test_grey_and_blood_within_tissue_stay(colour):
    image = on_glass((190, 110, 170), size_px=80)
    image[35:65, 35:65] = on_glass(colour, size_px=100)[35:65, 35:65]
    assert clean_tissue(image, mpp=MPP)[10:90, 10:90].all()


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    image = np.full((300, 400, 3), 240, np.uint8)
    image[100:200, 100:300] = (180, 90, 160)
    image[20:40, 20:380] = (40, 60, 170)
    Image.fromarray(image).save(tmp_path / "slide.png")
    return Slide.open(tmp_path / "slide.png", mpp=4.0)


def test_patches_do_not_count_what_the_overview_leaves_out(slide):
    tissue = SlideTissue(slide, patch_um=128.0)
    assert tissue.may_hold(400, 400, width_um=128) and not tissue.may_hold(400, 64, width_um=128)
    patch = slide.read(400, 64, size_px=32, mpp=4.0)
    assert tissue.of_patch(patch, 400, 64, mpp=4.0) == (0, None)
    corner, _ = tissue.of_patch(slide.read(336, 336, size_px=32, mpp=4.0), 336, 336, mpp=4.0)
    assert (14 / 32) ** 2 <= corner <= (18 / 32) ** 2  # the edge is blurred
    marked = slide.read(272, 48, size_px=256, mpp=2.0)  # the lower part of the stroke of ink, and tissue below it
    assert tissue.of_patch(marked, 272, 48, mpp=2.0)[0] < tissue_fraction(marked, white=tissue.white)


@pytest.mark.parametrize("size_px", [64, 200, 256, 300])
def test_a_coarser_mask_has_the_share_of_the_pixels_it_stands_for(slide, tmp_path, size_px):
    """Patches of 128 and more pixels are judged by every second, third, ... pixel, which need not fit in."""
    Image.fromarray(np.ones((300, 400), np.uint8)).save(tmp_path / "all.png")
    whole = AreaImage(tmp_path / "all.png", slide)
    plain, restricted = SlideTissue(slide, patch_um=128.0), SlideTissue(slide, patch_um=128.0, roi=whole)
    for x, y in ((300, 300), (350, 420), (1100, 700), (60, 60)):
        image = slide.read(x, y, size_px=size_px, mpp=1.0)
        share, roi = restricted.of_patch(image, x, y, mpp=1.0)
        assert roi.shape == (size_px, size_px) and 0 <= share <= 1
        assert plain.of_patch(image, x, y, mpp=1.0)[0] == share


def test_patches_of_pale_tissue_on_dim_glass_count_as_the_overview_does(tmp_path):
    image = np.full((300, 400, 3), (205, 204, 200), np.uint8)
    image[100:200, 100:300] = (194, 192, 190)
    image = image + np.random.default_rng(0).integers(-1, 2, image.shape)
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "slide.png")
    with Slide.open(tmp_path / "slide.png", mpp=4.0) as slide:
        tissue = SlideTissue(slide, patch_um=128.0)
        inside, outside = (slide.read(at, at, size_px=32, mpp=4.0) for at in (500, 64))
        assert tissue.may_hold(500, 500, width_um=128) and not tissue.may_hold(64, 64, width_um=128)
        assert tissue.of_patch(inside, 500, 500, mpp=4.0)[0] > 0.95
        assert tissue.of_patch(outside, 64, 64, mpp=4.0)[0] == 0


def test_small_images_are_taken_as_they_are(slide, tmp_path):
    small = Slide.open(slide.path, mpp=2.0)
    tissue = SlideTissue(small, patch_um=64.0)
    assert not tissue.is_slide and tissue.may_hold(200, 32, width_um=64)


@given(x=st.integers(-50, 450), y=st.integers(-50, 350), size=st.integers(1, 60), fine=st.sampled_from([1, 2, 4]))
@settings(max_examples=50)
def test_an_area_of_any_resolution_lies_where_it_was_drawn(tmp_path_factory, x, y, size, fine):
    folder = tmp_path_factory.mktemp("area")
    Image.new("RGB", (400, 300), "white").save(folder / "slide.png")
    coarse = np.zeros((30, 40), np.uint8)
    coarse[5:20, 10:30] = 9
    Image.fromarray(np.kron(coarse, np.ones((fine, fine), np.uint8))).save(folder / "area.png")
    with Slide.open(folder / "slide.png", mpp=0.5) as slide:
        inside = AreaImage(folder / "area.png", slide).read(x * 0.5, y * 0.5, size_px=size, mpp=0.5)
    expected = np.zeros((600, 700), bool)
    expected[100 + 50 : 100 + 200, 100 + 100 : 100 + 300] = True
    assert (inside == expected[100 + y : 100 + y + size, 100 + x : 100 + x + size]).all()


def test_areas_of_other_proportions_are_refused_and_none_is_none(slide, tmp_path):
    assert open_area("", slide) is None
    Image.new("L", (100, 80), 1).save(tmp_path / "area.png")
    with pytest.raises(UserError, match=r"area\.png: 100 x 80.*400 x 300"):
        open_area(str(tmp_path / "area.png"), slide)
    Image.new("L", (13, 10), 1).save(tmp_path / "coarse.png")  # rounded to whole pixels
    assert open_area(str(tmp_path / "coarse.png"), slide).read(0, 0, size_px=4, mpp=4.0).all()
