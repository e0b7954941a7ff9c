"""Area averages: what a coarser microscope camera would have seen."""

import numpy as np
from PIL import Image
from scipy import sparse

Span = tuple[float, float, float, float]


def area_average(image: Image.Image, box: Span, size_px: tuple[int, int]) -> np.ndarray:
    """The part `box` (left, top, right, bottom; pixels) of an RGB image as (H, W, 3) uint8, `size_px` = (W, H).

    Each result pixel is the mean of what it covers, parts of pixels by their share. (Pillow's box filter takes or
    leaves whole pixels: at 1.5 pixels per pixel, it averages two and copies one by turns.) Coarser to finer is not
    meant; then the result repeats pixels.
    """
    ratios = (box[2] - box[0]) / size_px[0], (box[3] - box[1]) / size_px[1]
    if all(float(value).is_integer() for value in (*ratios, *box)):  # then Pillow is exact, and several times faster
        return np.asarray(image.resize(size_px, Image.Resampling.BOX, box=box))
    pixels = np.asarray(image).astype(np.float32)  # (h, w, 3)
    rows = _shares(box[1], ratios[1], size_px[1], image.height) @ pixels.reshape(image.height, -1)
    # Channels apart from here on: sparse products are slow on runs of three.
    planes = np.ascontiguousarray(rows.reshape(size_px[1], image.width, 3).transpose(1, 2, 0))  # (w, 3, H)
    columns = _shares(box[0], ratios[0], size_px[0], image.width) @ planes.reshape(image.width, -1)
    columns = np.rint(columns).astype(np.uint8).reshape(size_px[0], 3, size_px[1])
    return np.ascontiguousarray(columns.transpose(2, 0, 1))


def _shares(start: float, ratio: float, count: int, pixels: int) -> sparse.csr_array:
    """Share (count, pixels) of each pixel in the means over [start, start + ratio], [start + ratio, ...]."""
    edges = start + ratio * np.arange(count + 1)
    touched = np.floor(edges[:-1]).astype(int)[:, None] + np.arange(int(np.ceil(ratio)) + 1)  # (count, most touched)
    covered = np.minimum(edges[1:, None], touched + 1) - np.maximum(edges[:-1, None], touched)
    share = np.clip(covered, 0, None) / ratio
    ends = touched.shape[1] * np.arange(count + 1)
    return sparse.csr_array(
        (share.astype(np.float32).ravel(), np.minimum(touched, pixels - 1).ravel(), ends), (count, pixels)
    )
