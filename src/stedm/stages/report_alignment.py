"""The report on annotation files: their outlines on the slides, and what the reader repaired or left out."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stedm.stages.alignment import alignment_notices, alignment_records
from stedm.stages.report_pictures import PAGE_PX, Picture

MOST = 6


def alignments(run: Path) -> dict[str, Any] | None:
    """Pictures of at most MOST slides, evenly spaced, and the notices of all; None without annotation files."""
    entries = alignment_records(run / "data")
    if not entries:
        return None
    shown = np.unique(np.linspace(0, len(entries) - 1, min(MOST, len(entries))).round().astype(int))
    return {
        "slides": len(entries),
        "pictures": [_picture(*entries[k]) for k in shown],
        "notices": alignment_notices(run / "data"),
    }


def _picture(path: Path, record: Mapping[str, Any]) -> Picture:
    """The slide's picture, named after the slide, with the polygons of each class."""
    image = path.with_suffix(".jpg")
    uri = "data:image/jpeg;base64," + base64.b64encode(image.read_bytes()).decode("ascii")
    counts = ", ".join(f"{name} {count}" for name, count in record["classes"].items())
    with Image.open(image) as opened:
        return Picture(uri, min(PAGE_PX // 2, opened.width), f"{record['slide']}: {counts}")
