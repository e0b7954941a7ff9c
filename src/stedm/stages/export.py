"""`stedm export`: a synthetic set in a format that other tools read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stedm.errors import UserError
from stedm.files import locked, read_json, refuse_links, remove_temporaries, write_json, write_text, writing
from stedm.progress import Bar
from stedm.stages.export_card import card
from stedm.stages.export_formats import FORMATS
from stedm.stages.export_set import ExportSet

INDEX = "export.json"
"""What an export is of; written first, so that a folder without it holds something else."""
CARD = "README.md"


def export(source: ExportSet, out: str | Path, *, format_name: str, shard_size: int = 1000) -> None:
    """Write the set into `out`; files that are there already are kept, so that a killed export continues.

    format_name: one of FORMATS. shard_size: pairs a file of `parquet` and `webdataset`. Raises UserError when `out`
    holds anything but this export or its beginning.
    """
    out, form = Path(out), FORMATS[format_name]
    form.check(source, out)
    index = {"format": format_name, "set": source.digest, "pairs": len(source.pairs), "shard_size": shard_size}
    _refuse_another(out, index)
    busy = "another stedm process exports there; wait for it or use --out"
    lock = locked(out / ".lock", folder=out, fix="choose another folder with --out", busy=busy)
    with writing(out / INDEX), lock:
        remove_temporaries(out)
        write_json(out / INDEX, index)
        with Bar("exporting", total=len(source.pairs), folder=out) as bar:
            for done in form.write(source, out, shard_size):
                bar.update(done, unit="images")
        form.finish(source, out)
        write_text(out / CARD, card(source, out, format_name=format_name, shard_size=shard_size))


def _refuse_another(out: Path, index: Mapping[str, Any]) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give another --out")
    refuse_links(out)
    if not (out / INDEX).is_file():
        if [path for path in out.iterdir() if path.name != ".lock"]:
            raise UserError(f"{out}: holds something else than an export; give an empty or a new folder with --out")
    elif read_json(out / INDEX) != index:
        raise UserError(f"{out / INDEX}: another export is there (other set, format or options); give another --out")
