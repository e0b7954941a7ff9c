"""The contact sheet of a set of drawn images: style patches above, pairs of layout and image below."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stedm.files import atomic_path
from stedm.stages.report_pictures import colour_layout

COLUMNS, PAIR_ROWS = 8, 3
SHEET_PX = 1200
"""Small cells are enlarged to about this width of the sheet."""


def save_contact_sheet(out: Path, manifest: pd.DataFrame, style_images: np.ndarray) -> None:
    """Write `out`/contact_sheet.png: COLUMNS style images, then layouts over the images that follow them.

    manifest: columns image and mask, paths in `out`; its first COLUMNS * PAIR_ROWS rows are shown.
    style_images: (N, H, W, 3) uint8, of which evenly spaced ones are shown.
    """
    shown = np.linspace(0, len(style_images) - 1, min(COLUMNS, len(style_images))).round().astype(int)
    rows = [[Image.fromarray(style_images[k]) for k in shown]]
    for start in range(0, min(len(manifest), COLUMNS * PAIR_ROWS), COLUMNS):
        part = manifest.iloc[start : min(start + COLUMNS, COLUMNS * PAIR_ROWS)]
        rows.append([colour_layout(np.asarray(Image.open(out / name))) for name in part["mask"]])
        rows.append([Image.open(out / name) for name in part["image"]])
    with atomic_path(out / "contact_sheet.png") as temporary:
        _sheet(rows).save(temporary)


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Cells of equal size; a wide gap below the first row and below every second one after it."""
    side = rows[0][0].width
    cell = side * max(1, SHEET_PX // (COLUMNS * side))
    gap = max(4, cell // 32)
    tops = [y * (cell + gap) + gap + 3 * gap * ((y + 1) // 2) for y in range(len(rows))]
    sheet = Image.new("RGB", (COLUMNS * (cell + gap) + gap, tops[-1] + cell + gap), "white")
    for top, row in zip(tops, rows, strict=True):
        for x, image in enumerate(row):
            enlarged = image.convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x * (cell + gap) + gap, top))
    return sheet
