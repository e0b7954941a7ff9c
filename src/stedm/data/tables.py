"""Tables: the user's CSV files, and the CSV and Parquet files that stages leave in a run folder."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stedm.errors import UserError
from stedm.files import whole

MOST_BYTES = 2**32
"""Memory that the cells of one Parquet table may take: the plan of ten million synthetic images needs 2.7e9."""
_CELL_BYTES, _ROWS_AT_ONCE = 8, 2**12
_FORMULA = re.compile(r"(?![-+]?\d+(\.\d+)?\Z)[-=+@\t\r\n]")
"""How a text begins that spreadsheets calculate with: an apostrophe tells them not to. Numbers may stay."""


def read_csv(path: str | Path) -> pd.DataFrame:
    """A CSV table of the user's, every cell as text.

    Raises UserError when rows have more cells than the header (pandas would call the first column an index, and shift
    all others), and what pandas raises for damaged files.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: rows have more cells than the header; name every column, and quote cells with commas")
    return table


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table of ours, without its index; `read_own_csv` reads the same names again.

    Names are anybody's. One that a spreadsheet would take for a formula gets an apostrophe before it, and so does one
    of which nothing but apostrophes kept it from that; what is no Unicode is written out.
    """
    texts = _each_text(table, _as_text)
    cells = [*texts, *texts.select_dtypes(["object", "string"]).to_numpy().ravel()]
    # A carriage return ends a row, but csv quotes it as of Python 3.13 only.
    returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    texts.to_csv(path, index=False, errors="backslashreplace", quoting=quoting)


def read_own_csv(path: Path, *, dtype: Any = None) -> pd.DataFrame:
    """A table that `write_csv` wrote. Raises UserError for a damaged one, FileNotFoundError without one.

    dtype: as of pandas; when not given, patients and groups are text (0012 stays 0012, and NA a name).
    """
    dtype = dtype or {"patient": str, "group": str}
    with whole(path):
        return _each_text(pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=[""]), _as_it_was)


def _each_text(table: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """The table with its texts and the names of its columns changed."""
    changed = table.copy()
    for name in table.select_dtypes(["object", "string"]):
        changed[name] = table[name].map(change)
    return changed.rename(columns=change)


def _as_text(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell.lstrip("'")) else cell


def _as_it_was(cell: Any) -> Any:
    quoted = isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell.lstrip("'"))
    return cell[1:] if quoted else cell


def read_parquet(path: str | Path, *, needs: Sequence[str] = ()) -> pd.DataFrame:
    """A table that a stage has written, with the columns `needs` at least.

    Raises UserError for a damaged one, FileNotFoundError without one.
    """
    with whole(path):
        table = read_modest_parquet(path)
        for name in table.select_dtypes(["object", "string"]):
            table[name].tolist()  # text is decoded when it is first used: that should fail here
        if missing := [name for name in needs if name not in table]:
            raise ValueError(f"no column {missing[0]!r}")
    return table


def read_modest_parquet(path: str | Path) -> pd.DataFrame:
    """A Parquet table of anybody's, without columns of lists and the like.

    Raises ValueError for more than MOST_BYTES, and what pandas and pyarrow raise for damaged files.
    """
    with pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    chunks = [group.column(k) for group in groups for k in range(group.num_columns)]
    size = max(_CELL_BYTES * metadata.num_rows * len(flat), sum(chunk.total_uncompressed_size for chunk in chunks))
    if size > MOST_BYTES or _text_bytes(path, flat) > MOST_BYTES:
        raise ValueError(
            f"its {metadata.num_rows} rows would take more than {MOST_BYTES / 2**30:g} GiB of memory; leave out what is"
            " not needed"
        )
    return pd.read_parquet(path, columns=flat if len(flat) < len(schema) else None)


def _text_bytes(path: str | Path, names: Sequence[str]) -> int:
    """Bytes of all text, or somewhat more than MOST_BYTES where it is more than that.

    A file holds a text that comes a million times once: it is read like that, and its copies are only counted.
    """
    size = 0
    with pq.ParquetFile(path, read_dictionary=names) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=names, use_threads=False):
            for column in batch.columns:
                if isinstance(column, pa.DictionaryArray) and not pa.types.is_primitive(column.type.value_type):
                    size += pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0
                elif not pa.types.is_primitive(column.type):
                    size += column.nbytes
            if size > MOST_BYTES:
                break
    return size
