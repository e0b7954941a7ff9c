"""The report on annotation files: their outlines on the slides, and what the reader repaired or left out."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stedm.stages.alignment import alignment_notices, alignment_records
from stedm.stages.report_pictures import PAGE_PX, Picture

MOST, MOST_LARGE = 48, 6
"""Slides that are pictured, and those up to which the pictures are large."""


def alignments(run: Path) -> dict[str, Any] | None:
    """Pictures of at most MOST slides, evenly spaced, and the notices of all; None without annotation files."""
    entries = alignment_records(run / "data")
    if not entries:
        return None
    shown = np.unique(np.linspace(0, len(entries) - 1, min(MOST, len(entries))).round().astype(int))
    return {
        "slides": len(entries),
        "pictures": [_picture(*entries[k], width=PAGE_PX // (2 if len(shown) <= MOST_LARGE else 4)) for k in shown],
        "notices": alignment_notices(run / "data"),
    }


def _picture(path: Path, record: Mapping[str, Any], *, width: int) -> Picture:
    """The slide's picture, named after the slide, with the polygons of each class; shrunk where it is to be small."""
    counts = ", ".join(f"{name} {count}" for name, count in record["classes"].items())
    data = path.with_suffix(".jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        shown = min(width, image.width)
        if image.width > 2 * width:  # twice, for fine screens
            image.thumbnail((2 * width, image.height))
            small = io.BytesIO()
            image.save(small, "JPEG", quality=85)
            data = small.getvalue()
    uri = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
    return Picture(uri, shown, f"{record['slide']}: {counts}")
