"""The report's section on slides: what was found to be tissue on each, and which slides could not be read."""

from collections import Counter
from pathlib import Path
from typing import Any

from stedm.files import read_json
from stedm.stages.report_evidence import table_of
from stedm.stages.report_pictures import MOST_SLIDES, evenly, inline_slides

_MOST_NAMED = 5


def slides_section(data: Path) -> dict[str, Any] | None:
    """Overlay pictures (see `slide_overlay`) with names and numbers of patches; None where no slide is large.

    Args:
        data: the run's data folder.
    """
    paths = sorted((data / "overlays").glob("r*.png"))
    if not paths:
        return None
    counts = _patches(data)
    shown = evenly(paths, MOST_SLIDES)
    names = [_name(data, path.stem) for path in shown]
    return {
        "slides": [
            {"picture": picture, "name": picture.name, "patches": counts[path.stem]}
            for path, picture in zip(shown, inline_slides(shown, names=names), strict=True)
        ],
        "all": len(paths),
    }


def slide_warnings(data: Path) -> list[str]:
    """Say which slides were damaged and left out, and on which no tissue was found: a sentence each.

    Args:
        data: the run's data folder.
    """
    found = []
    skipped = table_of(data / "skipped.csv")
    if skipped is not None:
        found.append(f"{_slides(len(skipped))} damaged and left out: {_named(list(skipped['reason']))}.")
    counts = _patches(data)
    bare = [_name(data, path.stem) for path in sorted((data / "slides").glob("r*.json")) if not counts[path.stem]]
    if bare:
        found.append(
            f"{_slides(len(bare))} without any patch: {_named(bare)}; look at the overlays, lower prepare.min_tissue "
            "or give a mask of the tissue in the column 'tissue'."
        )
    return found


def _slides(number: int) -> str:
    return "One slide was" if number == 1 else f"{number} slides were"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return "; ".join(names[:_MOST_NAMED]) + more


def _patches(data: Path) -> Counter[str]:
    """Number of patches cut from each slide, by source."""
    extracted = table_of(data / "extracted.parquet")
    return Counter(extracted["source"] if extracted is not None else [])


def _name(data: Path, source: str) -> str:
    path = data / "slides" / f"{source}.json"
    return str(read_json(path)["slide"]) if path.exists() else source
