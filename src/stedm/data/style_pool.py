"""Style images of one style, a slide or a few images: patches of tissue, dealt into style sets."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stedm.data.patches import tile_grid
from stedm.data.slide import Slide
from stedm.data.slide_tissue import SlideTissue
from stedm.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
"""Files of a folder that are taken for images."""


@dataclass(frozen=True)
class StylePatch:
    """Where a style image comes from."""

    source: str
    """Absolute path of the slide or image."""
    x_um: float
    """Left edge, microns from the left of the source."""
    y_um: float
    """Upper edge, microns from the top of the source."""


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """Image files among these files and folders, those of a folder sorted. Raises UserError when there are none."""
    files = []
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in inside if not path.is_dir() or file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UserError(f"{paths[0]}: holds no image; put {', '.join(IMAGE_SUFFIXES)} files there")
    return files


def find_style_patches(
    sources: Sequence[str | Path],
    *,
    patch_px: int,
    mpp: float,
    source_mpp: float | None = None,
    min_tissue: float = 0.5,
    wanted: int = 64,
    seed: int = 0,
) -> list[StylePatch]:
    """Up to `wanted` patches of tissue of these slides or images, in random order and at random places.

    patch_px, mpp: width in pixels and microns per pixel of a patch. source_mpp: microns per pixel of the sources,
    instead of what their files say. min_tissue: least share of tissue in a patch, 0 to 1. Of more sources than
    `wanted`, as many are looked at, drawn at random. Raises UserError for sources that cannot be read, are smaller
    than a patch or do not say their resolution, and when none has a patch of tissue.
    """
    rng = np.random.default_rng([seed, 0])
    paths = [os.path.abspath(sources[k]) for k in rng.permutation(len(sources))[:wanted]]
    found = []
    for path in sorted(paths):
        with Slide.open(path, mpp=source_mpp) as slide:
            found += [StylePatch(path, x, y) for x, y in _tissue_corners(slide, patch_px, mpp, min_tissue)]
    if not found:
        raise UserError(
            f"{paths[0]}: no patch of {patch_px} px at {mpp:g} microns per pixel is at least {min_tissue:.0%} tissue;"
            " lower --min-tissue"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(found))
    return [found[k] for k in order[:wanted]]


def _tissue_corners(slide: Slide, patch_px: int, mpp: float, min_tissue: float) -> list[tuple[float, float]]:
    """Upper left corners (x_um, y_um) of the slide's patches that hold enough tissue, judged on an overview."""
    size_px = slide.size_px(mpp)
    if min(size_px) < patch_px:
        raise UserError(
            f"{slide.path}: {size_px[0]} x {size_px[1]} px at {mpp:g} microns per pixel, smaller than a patch of"
            f" {patch_px} px; give a larger image"
        )
    corners = [(x * mpp, y * mpp) for x, y in tile_grid(size_px[0], size_px[1], patch_px)]
    if min_tissue <= 0:
        return corners
    width_um = patch_px * mpp
    tissue = SlideTissue(slide, patch_um=width_um)
    enough = []
    for x_um, y_um in corners:
        first = [int(round(at / tissue.mpp, 6)) for at in (x_um, y_um)]
        last = [
            max(int(round((at + width_um) / tissue.mpp, 6)), k + 1) for at, k in zip((x_um, y_um), first, strict=True)
        ]
        if tissue.mask[first[1] : last[1], first[0] : last[0]].mean() >= min_tissue:
            enough.append((x_um, y_um))
    return enough


def deal_style_sets(patches: Sequence[StylePatch], set_size: int) -> list[list[StylePatch]]:
    """Disjoint style sets of `set_size` patches, in order; one smaller set when there are fewer patches than that."""
    whole = [list(patches[k : k + set_size]) for k in range(0, len(patches) - set_size + 1, set_size)]
    return whole or [list(patches)]


def read_style_set(
    patches: Sequence[StylePatch], *, patch_px: int, mpp: float, source_mpp: float | None = None
) -> np.ndarray:
    """Images (N, patch_px, patch_px, 3) uint8 of a style set; arguments as in `find_style_patches`."""
    with ExitStack() as stack:
        paths = dict.fromkeys(patch.source for patch in patches)
        slides = {path: stack.enter_context(Slide.open(path, mpp=source_mpp)) for path in paths}
        images = [slides[patch.source].read(patch.x_um, patch.y_um, size_px=patch_px, mpp=mpp) for patch in patches]
    return np.stack(images)
