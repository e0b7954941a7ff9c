"""The columns of the cohort table: found in the user's table by their names, or by those the config maps them to."""

from pathlib import Path

import pandas as pd

from stedm.config import CohortConfig, TargetConfig
from stedm.data.labels import nearest_name
from stedm.data.tables import read_csv, read_modest_parquet
from stedm.errors import UserError
from stedm.files import reason_of

REQUIRED = ("image", "patient")
LABELS = ("mask", "annotation", "annotation_origin")
COLUMNS = ("image", "patient", "slide", *LABELS, "tissue", "roi", "mpp", "split", "group", "may_annotate")
_SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""What some programs write between the values of a CSV file, and its name."""


def columns_of(path: Path, config: CohortConfig | TargetConfig, section: str) -> pd.DataFrame:
    """Our columns of the table, as far as it has them, as stripped text.

    `section` is the config section that messages name. Raises UserError for an unreadable or empty table, and for
    columns that are missing or that nobody knows.
    """
    try:
        raw = read_csv(path) if path.suffix != ".parquet" else read_modest_parquet(path)
        if raw.empty:
            raise UserError(f"{path}: the cohort table has no rows; add one row per image")
        names = _column_names(config, raw, section)
        return pd.DataFrame({ours: _text(raw[theirs]) for ours, theirs in names.items()})
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: cohort table not found; correct {section}.table") from None
    except UnicodeDecodeError:
        kind = "an Excel workbook" if path.suffix.lower() in (".xls", ".xlsx", ".ods") else "not UTF-8"
        raise UserError(f"{path}: the cohort table is {kind}; in Excel: save as, `CSV UTF-8`, with commas") from None
    except Exception as error:  # a damaged file can fail in many ways inside pandas and pyarrow
        raise UserError(
            f"{path}: unreadable cohort table ({reason_of(error)}); save it as UTF-8 CSV or Parquet"
        ) from None


def _column_names(config: CohortConfig | TargetConfig, raw: pd.DataFrame, section: str) -> dict[str, str]:
    """Our column name -> the table's, for every column the table has."""
    known = [str(name) for name in raw.columns]
    if len(known) == 1 and (between := next((word for mark, word in _SEPARATORS.items() if mark in known[0]), None)):
        raise UserError(f"{config.table}: its columns are separated by {between}; save it with commas between values")
    for ours, theirs in config.columns.items():
        if ours not in COLUMNS:
            hint = nearest_name(ours, COLUMNS) or ", ".join(COLUMNS)
            raise UserError(f"{section}.columns: unknown column '{ours}'; did you mean {hint}?")
        if theirs not in known:
            hint = nearest_name(theirs, known) or ", ".join(known)
            raise UserError(f"{config.table}: no column '{theirs}' ({section}.columns.{ours}); did you mean {hint}?")
    names = {ours: config.columns.get(ours, ours) for ours in COLUMNS}
    for ours in REQUIRED:
        if names[ours] not in known:
            near = nearest_name(ours, known)
            example = f"{{{ours}: {near or 'YOUR_COLUMN'}}}"
            raise UserError(
                f"{config.table}: no column '{ours}'"
                + (f" (nearest: '{near}')" if near else "")
                + f"; set {section}.columns to {example} or rename it"
            )
    return {ours: theirs for ours, theirs in names.items() if theirs in known}


def _text(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").map(lambda value: str(value).strip())
