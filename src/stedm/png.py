"""PNG files of patches and label maps: lossless, and written as fast as they are small."""

from pathlib import Path

import imagecodecs
import numpy as np


def png_bytes(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) or a label map (H, W), uint8, as a PNG file.

    One filter for all rows (Paeth), then zlib's run lengths: on tissue as small as zlib's level 4 with the best of all
    filters for each row, and written in a quarter of the time.
    """
    level, run_lengths, paeth = 1, 3, 128
    return imagecodecs.png_encode(np.ascontiguousarray(pixels), level=level, strategy=run_lengths, filter=paeth)


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write `png_bytes` in place. Raises OSError as `Path.write_bytes` does."""
    Path(path).write_bytes(png_bytes(pixels))
