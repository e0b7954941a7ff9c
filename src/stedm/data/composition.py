"""The user's prior knowledge of tissue composition: class fractions per group, from a CSV file."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stedm.data.cohort import row_name
from stedm.data.labels import nearest_name
from stedm.data.tables import read_csv
from stedm.errors import UserError
from stedm.files import reason_of

DEFAULT_GROUP = "*"
_TOLERANCE = 0.01


@dataclass(frozen=True)
class CompositionTable:
    """Class fractions per group; read it with `read`. Several rows of a group are alternatives."""

    path: Path
    """The file, for messages."""
    groups: list[str]
    """Group of each row; `*` is any group without rows of its own."""
    fractions: np.ndarray
    """(rows, C), each row's sum 1."""

    @classmethod
    def read(cls, path: str | Path, classes: list[str]) -> "CompositionTable":
        """Read a CSV with the column `group` and one column per class, fractions from 0 to 1 that sum to 1 in a row.

        Raises UserError naming file, row, column and fix.
        """
        path = Path(path)
        try:
            table = read_csv(path)
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{path}: composition table not found; correct generate.composition") from None
        except Exception as error:  # a damaged file can fail in many ways inside pandas
            raise UserError(
                f"{path}: unreadable composition table ({reason_of(error)}); save it as UTF-8 CSV"
            ) from None
        table.columns = [str(name).strip() for name in table.columns]
        _check_columns(path, list(table.columns), classes)
        if table.empty:
            raise UserError(f"{path}: the composition table has no rows; add one for each group, or one for `*`")
        fractions = np.array(
            [[_fraction(path, k, name, table[name][k]) for name in classes] for k in range(len(table))]
        )
        for k, total in enumerate(fractions.sum(axis=1)):
            if abs(total - 1) > _TOLERANCE:
                raise UserError(f"{row_name(path, k)}: the fractions sum to {total:g}; make them sum to 1")
        groups = [name.strip() for name in table["group"]]
        return cls(path, groups, fractions / fractions.sum(axis=1, keepdims=True))

    def check_groups(self, groups: Iterable[str]) -> None:
        """Compare the table with the groups of a cohort's patients, "" for none.

        Raises UserError naming file and row for a row of another group, and for a group without a row (see `rows_of`).
        """
        known = set(groups)
        named = sorted(known - {""})
        for k, name in enumerate(self.groups):
            if name != DEFAULT_GROUP and name not in known:
                near = nearest_name(name, named) or ", ".join(named)
                hint = f"did you mean {near}?" if named else "the cohort has no groups; name it `*`"
                raise UserError(f"{row_name(self.path, k)}: no patient of the cohort is of group '{name}'; {hint}")
        for group in sorted(known):
            self.rows_of(group)

    def rows_of(self, group: str) -> np.ndarray:
        """Fractions (n, C), n >= 1, for a group: its own rows, else those of `*`. Raises UserError without either."""
        for name in (group, DEFAULT_GROUP):
            rows = [k for k, known in enumerate(self.groups) if known == name]
            if rows:
                return self.fractions[rows]
        raise UserError(f"{self.path}: no row for group '{group}' and none for `*`; add one of them")


def composition_digest(path: str | None) -> str:
    """SHA-256 of a composition table's content; "" for None. Raises UserError when it cannot be read."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: unreadable ({error.strerror}); correct generate.composition") from None


def _check_columns(path: Path, columns: list[str], classes: list[str]) -> None:
    for name in columns:
        if name not in ("group", *classes):
            hint = nearest_name(name, classes) or ", ".join(classes)
            raise UserError(f"{path}: column '{name}' is no class; did you mean {hint}?")
    for name in ("group", *classes):
        if columns.count(name) != 1:
            raise UserError(f"{path}: {columns.count(name)} columns named '{name}'; give one")


def _fraction(path: Path, position: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UserError(f"{row_name(path, position)}, column '{name}': '{text}' is no fraction from 0 to 1; correct it")
    return value
