"""Tables: the user's CSV files, and the Parquet files that stages leave in a run folder."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stedm.errors import UserError
from stedm.files import whole


def read_csv(path: str | Path) -> pd.DataFrame:
    """A CSV table of the user's, every cell as text.

    Raises UserError when rows have more cells than the header (pandas would call the first column an index, and shift
    all others), and what pandas raises for damaged files.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: rows have more cells than the header; name every column, and quote cells with commas")
    return table


def read_parquet(path: str | Path, *, needs: Sequence[str] = ()) -> pd.DataFrame:
    """A table that a stage has written, with the columns `needs` at least.

    Raises UserError for a damaged one, FileNotFoundError without one.
    """
    with whole(path):
        table = pd.read_parquet(path)
        for name in table.select_dtypes(["object", "string"]):
            table[name].tolist()  # text is decoded when it is first used: that should fail here
        if missing := [name for name in needs if name not in table]:
            raise ValueError(f"no column {missing[0]!r}")
    return table
