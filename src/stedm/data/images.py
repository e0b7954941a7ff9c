"""Images that Pillow reads, under a limit of our own: slides are larger than what it takes for an attack."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

MOST_PX = 2**20
"""Most pixels along a side: a slide of 25 cm at 0.25 microns. A header that claims more is damaged or a trap."""
MOST_BYTES = 2**31
"""Memory that the decoded pixels of one image may take: 23,000 x 23,000 in colour, 46,000 x 46,000 label values."""
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""What Pillow holds a pixel in; in all other modes 4."""
_WHITE = (255, 255, 255)

_lifting = threading.Lock()
os.register_at_fork(before=_lifting.acquire, after_in_parent=_lifting.release, after_in_child=_lifting.release)


class TooLarge(ValueError):
    """An image whose header claims more pixels than are held in memory."""


class NotUpright(ValueError):
    """An image that is to be turned, or mirrored, when it is shown: what a mask of it fits, nobody knows."""


@contextmanager
def _pillows_limit(pixels: int) -> Iterator[None]:
    """Pillow's limit, which is one for the process, at `pixels` in the block; one thread at a time."""
    with _lifting:
        kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = kept


def open_image(path: str | Path, *, as_rgb: bool = False) -> Image.Image:
    """Open an image, reading its header only; `decode` its pixels. as_rgb: they are to become RGB, whatever they are.

    Raises TooLarge for more than MOST_PX a side or MOST_BYTES decoded, NotUpright for one that is to be turned, and
    what Pillow raises for unreadable files.
    """
    with _pillows_limit(sys.maxsize):  # no header exceeds it: ours decides, at once
        image = Image.open(path)
    size = image.width * image.height * (4 if as_rgb else _PIXEL_BYTES.get(image.mode, 4))
    if max(image.size) > MOST_PX or size > MOST_BYTES:
        image.close()
        raise TooLarge(
            f"{image.width} x {image.height} px, {size / 2**30:.1f} GiB decoded, are more than an image may have"
            f" ({MOST_PX} px a side, {MOST_BYTES / 2**30:g} GiB)"
        )
    try:
        refuse_turned(_orientation(image))
    except NotUpright:
        image.close()
        raise
    return image


def _orientation(image: Image.Image) -> Any:
    """What EXIF or TIFF metadata in the header say; None if nothing, or nothing that can be read."""
    if image.format != "TIFF" and "exif" not in image.info:
        return None  # looked for in a PNG all the same, it would be decoded
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except SyntaxError:
        return None


def refuse_turned(orientation: Any) -> None:
    """Raise NotUpright for an EXIF or TIFF orientation other than 1; missing ones, and nonsense, are upright."""
    if orientation in range(2, 9):
        raise NotUpright(
            f"its metadata ask to turn it when it is shown (orientation {orientation}), which some programs do and"
            " others do not, so that masks may not fit; save it as it is shown, without that"
        )


def decode(image: Image.Image) -> Image.Image:
    """The same image of `open_image`, its pixels decoded. Raises TooLarge where the memory does not hold them."""
    try:
        if image.format == "TIFF":  # the only one that asks for Pillow's limit again
            with _pillows_limit(MOST_BYTES):
                image.load()
        image.load()
    except MemoryError:
        raise TooLarge(f"{image.width} x {image.height} px do not fit into the memory") from None
    return image


def flatten(image: Image.Image) -> Image.Image:
    """An image as RGB, itself if it is; transparent pixels on white. Raises ValueError for modes that are not 8-bit."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{image.mode} pixels; save the image with 8 bits per channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = layer.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return layer.convert("RGB")
        paper = Image.new("RGB", image.size, _WHITE)
        paper.paste(layer, mask=alpha)
        return paper
    return image if image.mode == "RGB" else image.convert("RGB")


def colours(image: Image.Image) -> np.ndarray:
    """RGB (H, W, 3) uint8 of an RGBA image, transparent pixels on white."""
    if np.frombuffer(image.tobytes("raw", "A"), np.uint8).min() < 255:
        return np.asarray(flatten(image))
    pixels = np.frombuffer(image.tobytes("raw", "RGB"), np.uint8)  # a third of the time of `convert` and `asarray`
    return pixels.reshape(image.height, image.width, 3)
