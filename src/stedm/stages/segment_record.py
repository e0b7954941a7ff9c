"""NAME.json beside the results of a slide: which slide they are of, what they depend on, and the area of each class."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

from stedm.errors import UserError
from stedm.files import read_json, write_json

_PARTS, _PART_BYTES = 16, 2**16
"""What is compared of a slide that lies elsewhere than the one in the record."""
_OUTLINES = "outline_file"


def is_record(value: Any) -> bool:
    """Whether a JSON value is a NAME.json of ours."""
    if not isinstance(value, dict) or not isinstance(value.get("slide"), str):
        return False
    areas, fingerprints = value.get("area_mm2"), value.get("fingerprints")
    return (
        isinstance(areas, dict)
        and isinstance(fingerprints, dict)
        and all(isinstance(area, int | float) and 0 <= area < math.inf for area in areas.values())
    )


def identity(slide: Path) -> dict[str, str]:
    """What a record says of its slide."""
    return {"slide": slide.name, "slide_path": str(slide.resolve()), "slide_sample": _sample(slide)}


def record_of(slide: Path, path: Path) -> Any:
    """What file `path` holds; {} if there is none. Raises UserError if it is damaged, or the record of another slide.

    A slide with the path in the record may have changed; one with another path must have the same content.
    """
    record = read_json(path) if path.exists() else {}
    here = str(slide.resolve())
    there = record.get("slide_path", here) if is_record(record) else here
    if there != here and record.get("slide_sample") != _sample(slide):
        raise UserError(
            f"{path}: the results of {there}, another slide than {here}; choose another folder with --out, or remove "
            f"{path.stem}.json, {path.stem}.tif and the outlines there"
        )
    return record


def write_record(path: Path, record: dict[str, Any], work: Path) -> None:
    """Written in the working folder: what a killed process leaves half-written is then removed with it."""
    write_json(work / path.name, record)
    os.replace(work / path.name, path)


def written(outlines: Path) -> dict[str, Any]:
    """What a record says of the file of outlines, packed or not, so that it is known again."""
    with open(outlines, "rb") as file:
        return {_OUTLINES: {"name": outlines.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}}


def outlines_in(record: Any) -> dict[str, Any]:
    """What a record says of its file of outlines, if anything."""
    return {_OUTLINES: record[_OUTLINES]} if is_record(record) and _OUTLINES in record else {}


def is_written_by(record: Any, outlines: Path) -> bool:
    """Whether the file is there as it was written: not the user's own, nor one that was unpacked or changed."""
    return outlines.exists() and outlines_in(record) == written(outlines)


def remove_written_by(record: Any, *outlines: Path) -> None:
    """Remove those of the files that are there as they were written."""
    for path in outlines:
        if is_written_by(record, path):
            path.unlink()


def _sample(slide: Path) -> str:
    """SHA-256 of the size and parts of a file, so that slides of many gigabytes are told apart at once."""
    size, digest = slide.stat().st_size, hashlib.sha256()
    digest.update(f"{size}\n".encode())
    with open(slide, "rb") as file:
        for part in range(_PARTS):
            file.seek(max(0, size - _PART_BYTES) * part // (_PARTS - 1))
            digest.update(file.read(_PART_BYTES))
    return digest.hexdigest()
