"""The files a cohort's tables name: which have changed since a data folder was made from them.

While a slide is cut its files are hashed, and the data folder records size and time, SHA-256 and place of each. A file
that later has another time or place is hashed again: with the same content it stands for what was recorded.
"""

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from stedm.config import CohortConfig
from stedm.data.cohort import FILES, FOLDERED, SCATTERED, read_table
from stedm.data.cohort_columns import LABELS
from stedm.data.laboratories import sections_of
from stedm.errors import UserError
from stedm.files import read_json, write_text
from stedm.stages.prepare_slide import source_name

INPUTS = "inputs.json"
"""In the data folder: a `Record` of every input file, when all slides are cut; until then slides have their own."""
EXTRACTED = "extracted.parquet"
"""In the data folder, written last: every patch, whatever roles the patients have."""
_UNREAD = "unread"
"""For a SHA-256: no pixel of it is used, and any content will do."""
_THREADS = 4


class InputFile(NamedTuple):
    """A file as it is now."""

    path: str
    mark: str
    """Size, modification time and place: relative to the table's folder where it is below."""
    stamp: str
    """Size and modification time that stand for the content in keys and fingerprints."""


class Record(NamedTuple):
    """A file as it was read; `mark` is the last one it was seen with."""

    stamp: str
    sha256: str
    mark: str


@dataclass(frozen=True)
class Inputs:
    """What the patches of a data folder depend on but the config."""

    files: dict[str, InputFile]
    """Those that are there, by `source column`, e.g. `r00003 mask`; none of the phantom."""
    digest: str
    """SHA-256 over what the tables say, folders of files left out, and the stamps of the files; "" for the phantom."""


def inputs_of(cohort: CohortConfig, data: Path) -> Inputs:
    """The cohort's files as data folder `data`, which may not be there yet, knows them.

    Only files that it has seen with another time or place are opened. Raises UserError for a table that cannot be read;
    files that are missing are left to `prepare` to report.
    """
    if not cohort.table:
        return Inputs({}, "")
    digest, files, first = hashlib.sha256(), dict[str, InputFile](), 0
    for _, section, options in sections_of(cohort):
        table = read_table(options, section=section)
        files.update(_files(table, Path(options.table or "").parent.resolve(), first))
        names = {column: table[column].map(os.path.basename) for column in FILES}
        digest.update(table.assign(**names).to_csv(index=False).encode())
        first += len(table)
    files = _as_recorded(files, data)
    for file in files.values():
        digest.update(f"{file.stamp}\n".encode())
    return Inputs(files, digest.hexdigest())


@functools.cache  # a file of annotations may be that of all slides
def sha256_of(file: InputFile) -> str:
    """SHA-256 of the content; "" where it cannot be told, or the file has changed since it was looked at."""
    path, digest = Path(file.path), hashlib.sha256()
    if path.suffix.lower() in SCATTERED:
        return ""
    parts = sorted(path.with_suffix("").glob("*")) if path.suffix.lower() == FOLDERED else []
    try:
        for part in (path, *parts):
            with open(part, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    except OSError:
        return ""
    return digest.hexdigest() if file.mark.startswith(f"{_stamp(file.path)} ") else ""


def record(data: Path, inputs: Inputs, *, cut: set[str]) -> None:
    """Write the records of all files, when the slides named in `cut` (their sources) are cut or found to be damaged.

    Of other slides only masks and annotations have been read. What has no record yet, as of damaged slides, is hashed.
    """
    known, records = _known(data), dict[str, Record]()
    for name, file in inputs.files.items():
        source, column = name.split()
        old, is_read = known.get(name), source in cut or column in LABELS
        if old and old.stamp == file.stamp and is_read == (old.sha256 != _UNREAD):
            records[name] = old._replace(mark=file.mark)
        else:
            records[name] = Record(file.stamp, sha256_of(file) if is_read else _UNREAD, file.mark)
    if records:
        _save(data, records)


def share_records(folders: Sequence[Path]) -> None:
    """Let each data folder know what another of the same cohort knows, so that files stand for the same in all."""
    known = [_known(data) for data in folders]
    for data, own in zip(folders, known, strict=True):
        joined = dict[str, Record]()
        for records in (*reversed(known), own):
            joined |= records
        if joined != own:
            _save(data, joined)


def _files(table: pd.DataFrame, folder: Path, first: int) -> Iterator[tuple[str, InputFile]]:
    """Files of a table in `folder`, whose first row is at `first` in all tables; as if never seen before."""
    for column in FILES:
        for k, path in enumerate(table[column]):
            if path and (stamp := _stamp(path)):
                mark = f"{stamp} {path.removeprefix(f'{folder}{os.sep}')}"
                yield f"{source_name(first + k)} {column}", InputFile(path, mark, stamp)


def _stamp(path: str) -> str:
    """Size and modification time of a file; "" if there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return ""
    return f"{state.st_size} {state.st_mtime_ns}" if stat.S_ISREG(state.st_mode) else ""


def _as_recorded(files: dict[str, InputFile], data: Path) -> dict[str, InputFile]:
    """The files, each with the stamp of its record if the content is still that one; new marks are remembered."""
    known = {name: old for name, old in _known(data).items() if name in files}
    same = {name for name, old in known.items() if old.mark == files[name].mark or old.sha256 == _UNREAD}
    doubtful = [
        name
        for name, old in known.items()
        if name not in same and old.sha256 and old.stamp.split(" ")[0] == files[name].stamp.split(" ")[0]
    ]
    if doubtful:
        once = list(dict.fromkeys(files[name] for name in doubtful))
        Console(stderr=True).print(f"{len(once)} input file(s) have another time or place: comparing their content")
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(once, pool.map(sha256_of, once), strict=True))
        agree = {name for name in doubtful if found[files[name]] == known[name].sha256}
        if agree:
            marks = {name: known[name]._replace(mark=files[name].mark) for name in agree}
            _save(data, _known(data) | marks)
        same |= agree
    others = {name for name, old in known.items() if name not in same and old.stamp == files[name].stamp}
    stamps = {name: known[name].stamp for name in same} | {name: files[name].mark for name in others}
    return {name: file._replace(stamp=stamps.get(name, file.stamp)) for name, file in files.items()}


def _known(data: Path) -> dict[str, Record]:
    """What is recorded of a data folder's files; of a damaged record nothing."""
    found = dict[str, Record]()
    slides = [] if (data / EXTRACTED).exists() else sorted((data / "slides").glob("*.json"))
    for path in (data / INPUTS, *slides):
        with suppress(UserError, OSError, LookupError, TypeError, AttributeError):
            found |= {name: Record(*map(str, entry)) for name, entry in read_json(path)["files"].items()}
    return found


def _save(data: Path, records: dict[str, Record]) -> None:
    write_text(data / INPUTS, json.dumps({"files": records}))  # in one line: ten times as fast
