"""Images as large as slides are opened and decoded, under our own limit and not under Pillow's."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from stedm.config import CohortConfig
from stedm.data import images
from stedm.data.cohort import read_cohort
from stedm.data.images import decode, open_image
from stedm.data.labels import read_mask
from stedm.data.slide import DamagedSlide, Slide
from stedm.errors import UserError

pytestmark = pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
VALUES = np.eye(30, 40, dtype=np.uint8)


@pytest.fixture(params=[700, 100], ids=["warns", "refuses"])
def pillows_limit(request, monkeypatch) -> int:
    """Pillow's limit so low that it warns of images of VALUES' size, or refuses them."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", request.param)
    return request.param


@pytest.fixture
def our_limit(monkeypatch) -> int:
    monkeypatch.setattr(images, "MOST_BYTES", 1000)
    return 1000


@pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.bmp"])
def test_pillows_limit_does_not_decide_on_masks_and_slides(tmp_path, pillows_limit, name):
    path = tmp_path / name
    Image.fromarray(VALUES.astype(bool) if name.endswith("png") else VALUES).save(path)
    assert (read_mask(path) == VALUES).all()
    with Slide.open(path, mpp=1.0) as slide:
        expected = VALUES[:8, :8, None] * (255 if name.endswith("png") else 1)
        assert (slide.read(0, 0, size_px=8, mpp=1.0) == expected).all()
    rows = [f"{name},{patient},{name},1" for patient in ("a", "b")]
    rows[1] = rows[1].replace(name, "b" + name)
    (tmp_path / f"b{name}").write_bytes(path.read_bytes())
    (tmp_path / "table.csv").write_text("\n".join(["image,patient,mask,mpp", *rows]))
    assert len(read_cohort(CohortConfig(table=str(tmp_path / "table.csv")))) == 2
    assert pillows_limit == Image.MAX_IMAGE_PIXELS


def test_a_mask_of_one_bit_and_the_size_of_a_slide_is_read(tmp_path):
    Image.new("1", (14_000, 13_500)).save(tmp_path / "large.png", compress_level=1)
    assert read_mask(tmp_path / "large.png").shape == (13_500, 14_000)


def test_our_limit_names_the_file_its_size_and_what_to_do(tmp_path, our_limit):
    Image.fromarray(VALUES).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: 40 x 30 px, .* GiB decoded.*GeoJSON"):
        read_mask(tmp_path / "a.png")
    with pytest.raises(DamagedSlide, match=r"a\.png: 40 x 30 px, .* GiB decoded.*TIFF pyramid"):
        Slide.open(tmp_path / "a.png")
    Image.fromarray(VALUES[:20]).save(tmp_path / "small.png")
    assert (read_mask(tmp_path / "small.png") == VALUES[:20]).all()
    with pytest.raises(DamagedSlide, match="small"):  # three bytes a pixel and one that Pillow adds
        Slide.open(tmp_path / "small.png")
    Image.fromarray(VALUES[:5]).save(tmp_path / "s.png")
    (tmp_path / "table.csv").write_text("image,patient,mask,mpp\ns.png,p,a.png,1\na.png,q,,1\n")
    with pytest.raises(UserError, match=r"row 2: mask .*a\.png: 40 x 30 px.*GeoJSON"):
        read_cohort(CohortConfig(table=str(tmp_path / "table.csv")))


def test_what_does_not_fit_into_the_memory_is_told_so(tmp_path, monkeypatch):
    Image.fromarray(VALUES).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")

    def load() -> None:
        raise MemoryError

    monkeypatch.setattr(image, "load", load)
    with pytest.raises(images.TooLarge, match="40 x 30 px do not fit into the memory"):
        decode(image)


def test_threads_leave_pillows_limit_as_it_was(tmp_path, pillows_limit):
    Image.fromarray(VALUES).save(tmp_path / "a.tif")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: (read_mask(tmp_path / "a.tif") == VALUES).all(), range(200)))
    assert all(found) and pillows_limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)):
        Image.open(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "tiles"), [("a.jpg", {}), ("a.png", {}), ("a.tif", {}), ("b.tif", {"tile": (64, 64)})]
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_image_that_viewers_turn_is_refused(tmp_path, name, tiles, orientation):
    """Its mask, drawn in one program or another, would fit or not: nobody can tell."""
    path, pixels = tmp_path / name, np.zeros((512, 640, 3), np.uint8)
    if name.endswith("tif"):
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=tags, **tiles)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(pixels).save(path, exif=exif)
    if orientation == 1:
        Slide.open(path, mpp=1.0).close()
        return
    with pytest.raises(DamagedSlide, match=rf"{name}: .*orientation {orientation}.*save it as it is shown"):
        Slide.open(path, mpp=1.0)
    with pytest.raises(UserError, match=rf"{name}: .*orientation {orientation}"):
        read_mask(path)


def test_metadata_that_cannot_be_read_turn_nothing(tmp_path):
    Image.fromarray(VALUES).save(tmp_path / "a.png", exif=b"Exif\0\0garbage!")
    assert (read_mask(tmp_path / "a.png") == VALUES).all()
