"""The report on annotation files: their outlines on the slides, and what the reader repaired or left out."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stedm import files
from stedm.stages.alignment import ALIGNMENT
from stedm.stages.report_pictures import PAGE_PX, Picture

MOST = 6


def alignments(run: Path) -> dict[str, Any] | None:
    """Pictures of at most MOST slides, evenly spaced, and the notices of all; None without annotation files."""
    records = sorted((run / "data" / ALIGNMENT).glob("*.json"))
    if not records:
        return None
    entries = [(path, files.read_json(path)) for path in records]
    shown = np.unique(np.linspace(0, len(entries) - 1, min(MOST, len(entries))).round().astype(int))
    return {
        "slides": len(records),
        "pictures": [_picture(*entries[k]) for k in shown],
        "notices": notices([record for _, record in entries]),
    }


def notices(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every thing that a reader repaired or left out, once a file, with the file's name."""
    found = [f"{record['file']}: {notice}" for record in records for notice in record["notices"]]
    return list(dict.fromkeys(found))


def _picture(path: Path, record: Mapping[str, Any]) -> Picture:
    """The slide's picture, named after the slide, with the polygons of each class."""
    image = path.with_suffix(".jpg")
    uri = "data:image/jpeg;base64," + base64.b64encode(image.read_bytes()).decode("ascii")
    counts = ", ".join(f"{name} {count}" for name, count in record["classes"].items())
    with Image.open(image) as opened:
        return Picture(uri, min(PAGE_PX // 2, opened.width), f"{record['slide']}: {counts}")
