"""Pictures of tissue for the report: inlined files, and galleries of synthetic images beside what they came from."""

import base64
import colorsys
import functools
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from stedm.config import IGNORE

PAGE_PX = 1040
CELL_PX = 125
GAP_PX = 5
COLUMNS = 8
MOST_SLIDES = 1000
"""Slides that are pictured: their pictures are some 25 MB of the page, and those of their annotations as many."""
FEW_SLIDES = 48
"""More than these are shown small."""
_CLASS_COLOURS = ("#eceae4", "#2f7f86", "#d9774f", "#7a5ba6", "#c9a227", "#4f8f4a", "#b5486a", "#54708f")
_MOST_COLOURS = 64
"""Colours before they come again."""
UNKNOWN_COLOUR = "#ffffff"
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """An inlined picture."""

    uri: str
    """Data URI."""
    width_px: int
    """Width to show it at."""
    name: str = ""
    """What it shows."""


def inline(image: Image.Image, *, name: str = "") -> Picture:
    """Inline an image as PNG, no wider than twice the page and shown at up to three times its size."""
    image = image.convert("RGB")
    if image.width > 2 * PAGE_PX:
        image = image.resize((2 * PAGE_PX, round(image.height * 2 * PAGE_PX / image.width)), Image.Resampling.LANCZOS)
    return Picture(_uri(image, "PNG", optimize=True), min(PAGE_PX, 3 * image.width), name)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def inline_slides(paths: Sequence[Path], *, names: Sequence[str]) -> list[Picture]:
    """Inline pictures of slides as JPEG, the smaller the more there are: a page of a thousand still opens."""
    width_px = PAGE_PX // (2 if len(paths) <= 6 else 4 if len(paths) <= FEW_SLIDES else 8)
    return [_slide(path, width_px, name) for path, name in zip(paths, names, strict=True)]


def _slide(path: Path, width_px: int, name: str) -> Picture:
    with Image.open(path) as image:
        image = image.convert("RGB")
    image.thumbnail((2 * width_px, 2 * width_px))  # twice, for fine screens
    return Picture(_uri(image, "JPEG", quality=75), min(width_px, image.width), name)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spaced, with the first and the last."""
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(most, len(items)))]


def inline_files(paths: Sequence[Path]) -> list[Picture]:
    """Inline picture files, named after their stems."""
    return [inline(Image.open(path), name=path.stem.replace("_", " ")) for path in paths]


@functools.cache
def _palette() -> list[str]:
    """Colours `#rrggbb` of the classes: eight, then each the one farthest from those before it and from white."""
    hues, lightnesses, saturations = np.arange(24) / 24, (0.25, 0.4, 0.55, 0.7), (0.35, 0.8)
    rgb = [colorsys.hls_to_rgb(*hls) for hls in itertools.product(hues, lightnesses, saturations)]
    candidates = np.round(255 * np.array(rgb)).astype(int)
    chosen = list(_CLASS_COLOURS)
    while len(chosen) < _MOST_COLOURS:
        taken = np.array([list(bytes.fromhex(colour[1:])) for colour in [*chosen, UNKNOWN_COLOUR]])
        farthest = np.linalg.norm(candidates[:, None] - taken, axis=2).min(1).argmax()
        chosen.append("#" + bytes(candidates[farthest].tolist()).hex())
    return chosen


def class_colour(label: int) -> str:
    """Colour of a class, `#rrggbb`."""
    return _palette()[label % _MOST_COLOURS]


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """Give every class the colour layouts are drawn in."""
    return {name: class_colour(label) for label, name in enumerate(classes)}


def colour_layout(label_map: np.ndarray) -> Image.Image:
    """Draw a label map uint8 (H, W) in the classes' colours; ignored pixels are white."""
    table = np.array([list(bytes.fromhex(class_colour(label)[1:])) for label in range(256)], np.uint8)
    table[IGNORE] = list(bytes.fromhex(UNKNOWN_COLOUR[1:]))
    return Image.fromarray(table[label_map])


def _mosaic(rows: Sequence[Sequence[Image.Image]]) -> Picture:
    """Set images of any size into a grid of equal cells, at twice the shown size where there is detail for it."""
    zoom = 2 if rows[0][0].width > CELL_PX else 1
    cell, gap = zoom * CELL_PX, zoom * GAP_PX
    pitch = cell + gap
    sheet = Image.new("RGB", (pitch * max(map(len, rows)) - gap, pitch * len(rows) - gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            resampling = Image.Resampling.LANCZOS if image.width > cell else Image.Resampling.BICUBIC
            sheet.paste(image.convert("RGB").resize((cell, cell), resampling), (x * pitch, y * pitch))
    return Picture(inline(sheet).uri, sheet.width // zoom)


def _open(run: Path, row: pd.Series) -> tuple[Image.Image, Image.Image]:
    image = Image.open(run / "synthetic" / row["image"])
    return image, colour_layout(np.asarray(Image.open(run / "synthetic" / row["mask"])))


def _real(run: Path, patch_id: str, patches: pd.DataFrame) -> Image.Image:
    (name,) = patches.loc[patches["patch_id"] == patch_id, "image"]
    return Image.open(run / "data" / name)


def drawn_gallery(run: Path, manifest: pd.DataFrame, patches: pd.DataFrame) -> Picture | None:
    """Show kept images of as many styles as fit: an image of the style set, the layout, the drawn image."""
    kept = manifest[manifest["keep"].astype(bool) & manifest["style_patches"].notna()]
    chosen = kept.sort_values("id").drop_duplicates("style_patient").head(COLUMNS)
    rows: list[list[Image.Image]] = [[], [], []]
    for _, row in chosen.iterrows():
        style_patches = json.loads(row["style_patches"])
        if not style_patches:
            continue
        image, layout = _open(run, row)
        for cells, picture in zip(rows, (_real(run, style_patches[0], patches), layout, image), strict=True):
            cells.append(picture)
    return _mosaic(rows) if rows[0] else None


def dropped_gallery(run: Path, manifest: pd.DataFrame) -> Picture | None:
    """Show the dropped images that agree least with their layouts, under those layouts."""
    dropped = manifest[~manifest["keep"].astype(bool)].sort_values(["agreement", "id"]).head(COLUMNS)
    pairs = [_open(run, row) for _, row in dropped.iterrows()]
    return _mosaic([[layout for _, layout in pairs], [image for image, _ in pairs]]) if pairs else None


def nearest_gallery(run: Path, manifest: pd.DataFrame, patches: pd.DataFrame) -> Picture | None:
    """Show the synthetic images nearest to a training image, above that image."""
    nearest = manifest.dropna(subset=["nearest_real", "nearest_real_distance"])
    nearest = nearest.sort_values(["nearest_real_distance", "id"]).head(COLUMNS)
    if nearest.empty:
        return None
    synthetic = [Image.open(run / "synthetic" / name) for name in nearest["image"]]
    return _mosaic([synthetic, [_real(run, patch_id, patches) for patch_id in nearest["nearest_real"]]])
