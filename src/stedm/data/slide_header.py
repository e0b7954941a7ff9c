"""What is known of a slide without its pixels, and how it is read off a file's fields."""

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[int, int, int, int]

_MOST_MPP = 20.0
"""No microscope is coarser: a resolution of 72 or 300 dots per inch is a program's default, not a measurement."""
_MOST_UNEQUAL = 1.02
"""How many times as wide as high a pixel may be: rounding in a file's fields is less than that."""


@dataclass(frozen=True)
class Header:
    """What is known of a slide without its pixels."""

    size_px: tuple[int, int]
    """Width and height of level 0, pixels."""
    mpp: float | None = None
    """Microns per pixel of level 0, None when the file does not say."""
    mpp_fault: str = "unknown"
    """What is the matter with the microns per pixel where there are none, for messages."""
    downsamples: tuple[float, ...] = (1.0,)
    """Downsampling factor of each level, rising, starting with 1."""
    bounds_px: Box | None = None
    """Scanned area (x, y, width, height) in pixels of level 0, None when the file does not say."""


def measured(mpp: Sequence[float] | None) -> tuple[float | None, str]:
    """Microns per pixel from those in x and y, and if there is no such number, why; two fields of `Header`.

    None for values that are missing or no microscope's, and for pixels that are not square.
    """
    if mpp is None or not all(0 < value < _MOST_MPP for value in mpp):
        return None, Header.mpp_fault
    if max(mpp) > _MOST_UNEQUAL * min(mpp):
        return None, f"differ, {mpp[0]:g} in x and {mpp[1]:g} in y, and pixels must be square"
    return sum(mpp) / 2, Header.mpp_fault


def downsamples(sizes_px: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Factor of each level from the widths and heights; whole where the level is level 0 less what did not fit."""
    (width, height), factors = sizes_px[0], []
    for level_width, level_height in sizes_px:
        factor = (width / level_width + height / level_height) / 2
        whole = round(factor)
        fits = abs(width / whole - level_width) <= 1 and abs(height / whole - level_height) <= 1
        factors.append(float(whole if fits else factor))
    return tuple(factors)
