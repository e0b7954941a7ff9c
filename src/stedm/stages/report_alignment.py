"""The report on annotations: their outlines on the slides, and what the reader repaired or left out."""

from pathlib import Path
from typing import Any

from stedm.stages.alignment import alignment_notices, alignment_records
from stedm.stages.report_pictures import MOST_SLIDES, evenly, inline_slides


def alignments(run: Path) -> dict[str, Any] | None:
    """A picture of each slide, named after it, and the notices of all; None without annotated slides."""
    entries = alignment_records(run / "data")
    if not entries:
        return None
    shown = evenly(entries, MOST_SLIDES)
    names = [
        f"{record['slide']}: {', '.join(f'{name} {held}' for name, held in record['classes'].items())}"
        for _, record in shown
    ]
    return {
        "slides": len(entries),
        "pictures": inline_slides([path.with_suffix(".jpg") for path, _ in shown], names=names),
        "notices": alignment_notices(run / "data"),
    }
