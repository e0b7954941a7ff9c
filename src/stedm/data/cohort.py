"""The cohort table: all images with their masks, slides and patients, validated (DESIGN, data contract)."""

import os
import re
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any
from unicodedata import category, normalize

import numpy as np
import pandas as pd
from PIL import UnidentifiedImageError

from stedm.config import CohortConfig, TargetConfig
from stedm.data.cohort_columns import COLUMNS, REQUIRED, columns_of
from stedm.data.images import TooLarge, open_image
from stedm.data.label_source import resolve_polygon_classes
from stedm.data.labels import INSTEAD, LabelMap, read_mask
from stedm.data.slide import DamagedSlide, Slide
from stedm.errors import UserError
from stedm.files import reason_of

FILES = ("image", "mask", "annotation", "tissue", "roi")
"""Columns that name files."""
ORIGINS = ("slide", "bounds")
"""Where the coordinates of an annotation file begin: at the corner of the slide, or of its scanned bounds."""
LEAST_MPP, MOST_MPP = 1e-4, 1e4
"""Microns per pixel outside of this are a slip, and would make images of no or astronomically many pixels."""
SPLITS = ("train", "val", "test", "unseen")
_YES, _NO = ("true", "1", "1.0", "yes", "y"), ("false", "0", "0.0", "no", "n")
FOLDERED, SCATTERED = ".mrxs", (".dcm", ".vms", ".vmu")
"""Slides whose pixels are in a folder beside the file, and in other files that only OpenSlide finds."""
_FIRST_ROW = 2  # rows are counted as a spreadsheet shows them: the header is row 1


def row_name(table: str | Path, position: int) -> str:
    """How messages name the row at 0-based `position`."""
    return f"{table}, row {position + _FIRST_ROW}"


def read_table(config: CohortConfig | TargetConfig, *, section: str = "cohort") -> pd.DataFrame:
    """The user's table with our column names, stripped strings and absolute paths; nothing but the table is opened.

    Columns image, patient, slide (the image's `_short_names` if none), mask, annotation, tissue, roi ("" if none),
    annotation_origin (that of the config if none), mpp (float, NaN if none), split, group ("" if none), and
    may_annotate (bool) when the table has it. `section` is the config section that messages name. Raises UserError for
    an unreadable or empty table and missing columns.
    """
    path = Path(config.table or "")
    table = columns_of(path, config, section)
    _refuse_control_characters(table, path)
    for column in ("slide", *FILES[1:], "annotation_origin", "split", "group", "mpp"):
        if column not in table:
            table[column] = ""
    _refuse_empty(table, path)
    table["annotation_origin"] = table["annotation_origin"].replace("", config.annotation_origin)
    folder = path.parent.resolve()
    for column in FILES:
        table[column] = [
            _absolute(folder, name, f"{row_name(path, k)}: {column}") if name else ""
            for k, name in enumerate(table[column])
        ]
    unnamed = table["slide"] == ""
    table.loc[unnamed, "slide"] = table["image"].map(_short_names(table.loc[unnamed, "image"]))
    table["mpp"] = _mpp(table["mpp"], path, config.mpp, section)
    if "may_annotate" in table:
        table["may_annotate"] = _yes_or_no(table["may_annotate"], path)
    return table[[column for column in COLUMNS if column in table]]


def read_cohort(config: CohortConfig | TargetConfig, *, section: str = "cohort") -> pd.DataFrame:
    """`read_table`, checked against the files (headers only) and for patients, slides and splits that contradict.

    Raises UserError naming the table and row: missing files, unreadable masks, a mask of another size than its image,
    an image whose microns per pixel nobody knows, an image named twice, a slide of two patients, a patient in two
    splits, one patient only. An image that is there and cannot be read is no mistake in the table, and stays in it.
    """
    cohort = read_table(config, section=section)
    path = Path(config.table or "")
    _refuse_contradictions(cohort, path, section)
    for position, row in enumerate(cohort.itertuples(index=False)):
        where = row_name(path, position)
        if row.mask and row.annotation:
            raise UserError(f"{where}: both a mask and an annotation; leave one of the two empty")
        for column, name in ((column, getattr(row, column)) for column in FILES):
            if name and not Path(name).is_file():
                slashes = ", with / in place of \\" if "\\" in name else ""
                raise UserError(
                    f"{where}: {column} {name} not found; correct the path (relative to the table's folder{slashes})"
                )
        size_px = _image_size_px(row.image, row.mpp, where)
        if row.mask and (mask_px := _mask_size_px(row.mask, where)) != size_px and size_px is not None:
            raise UserError(
                f"{where}: mask {row.mask} is {mask_px[0]} x {mask_px[1]} px, its image {size_px[0]} x {size_px[1]};"
                " give a mask of the image's size"
            )
    return cohort


def resolve_labels(
    config: CohortConfig | TargetConfig,
    cohort: pd.DataFrame,
    *,
    labels: dict[str, list[Any]] | None = None,
    section: str = "cohort",
) -> LabelMap:
    """Label map of the section's labels, or of the values in the masks when empty; every mask and annotation is read.

    `labels` stands in for the section's own.

    Raises UserError naming table, row, file and values for values that `cohort.labels` does not name, naming the
    polygon classes that it does not name, and when no row has a mask or an annotation.
    """
    masked = [(position, name) for position, name in enumerate(cohort["mask"]) if name]
    drawn = (cohort["annotation"] != "").any()
    if not masked and not drawn:
        raise UserError(
            f"{config.table}: no row has a mask; annotate some patients and fill the column 'mask' or 'annotation'"
        )
    named = config.labels if labels is None else labels
    if drawn:
        rows = [(row_name(str(config.table), at), row) for at, row in enumerate(cohort.itertuples(index=False))]
        label_map = resolve_polygon_classes(
            [(where, row) for where, row in rows if row.annotation],
            named,
            table=str(config.table),
            key=f"{section}.labels",
        )
    elif not named:
        values = {int(value) for _, name in masked for value in np.unique(read_mask(name))}
        return LabelMap.from_values(values, key=f"{section}.labels")
    else:
        label_map = LabelMap.from_config(named, key=f"{section}.labels")
    for position, name in masked:
        where = row_name(str(config.table), position)
        try:
            values = read_mask(name)
        except UserError as error:
            raise UserError(f"{where}: mask {error}") from None
        label_map.apply(values, source=f"{where}: mask {name}")
    return label_map


def _refuse_control_characters(table: pd.DataFrame, path: Path) -> None:
    """Line breaks and the like in a name would break file names, tables and terminals."""
    for column in table:
        for k, text in enumerate(table[column]):
            if not text.isprintable() and any(category(c) in ("Cc", "Cs") for c in text):
                raise UserError(
                    f"{row_name(path, k)}: column '{column}' holds a line break or another control character"
                    f" ({text[:60]!r}); write it in printable characters"
                )


def _absolute(folder: Path, name: str, where: str) -> str:
    """Whole path with the file's own name: what a link is called says more than what it points to."""
    try:
        path = folder / name
        path = path.resolve() if path.suffix.lower() in (FOLDERED, *SCATTERED) else path.parent.resolve() / path.name
        path.resolve()
        path.is_file()
        return str(path)
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, links that lead in a circle
        raise UserError(f"{where} {name[:200]} cannot be a file ({reason_of(error)}); correct the path") from None


def _short_names(images: Iterable[str]) -> dict[str, str]:
    """Name of each image file: its stem, and before it as many of its folders as tell it from others of that stem.

    Files of one folder that differ in their suffixes keep them: two files are two slides.
    """
    of_stem: dict[str, list[Path]] = {}
    for path in map(Path, dict.fromkeys(images)):
        of_stem.setdefault(path.stem, []).append(path)
    names = {}
    for paths in of_stem.values():
        bare = [path.with_suffix("") for path in paths]
        shown = [path.parts for path in (bare if len(set(bare)) == len(bare) else paths)]
        depth = next(n for n in count(1) if len({parts[-n:] for parts in shown}) == len(shown))
        names |= {str(path): "/".join(parts[-depth:]) for path, parts in zip(paths, shown, strict=True)}
    return names


def _refuse_empty(table: pd.DataFrame, path: Path) -> None:
    for column in REQUIRED:
        empty = np.flatnonzero(table[column] == "")
        if len(empty):
            raise UserError(f"{row_name(path, empty[0])}: column '{column}' is empty; fill it in or remove the row")
    for column, allowed in (("split", SPLITS), ("annotation_origin", ORIGINS)):
        wrong = np.flatnonzero(~table[column].isin([*allowed, ""]))
        if len(wrong):
            value = table[column].iloc[wrong[0]]
            where = row_name(path, wrong[0])
            raise UserError(f"{where}: {column} '{value}' is none of {', '.join(allowed)}; correct it")
    blank = np.flatnonzero(table["split"] == "")
    if 0 < len(blank) < len(table):
        raise UserError(f"{row_name(path, blank[0])}: split is empty here but not in other rows; fill in all or none")


def _yes_or_no(column: pd.Series, path: Path) -> pd.Series:
    """`may_annotate` as bool. Raises UserError for empty cells too: these would otherwise take a patient out."""
    words = column.str.lower()
    wrong = np.flatnonzero(~words.isin([*_YES, *_NO]))
    if len(wrong):
        raise UserError(
            f"{row_name(path, wrong[0])}: may_annotate '{column.iloc[wrong[0]]}' is neither yes nor no;"
            " write yes or no in every row, or leave the column out"
        )
    return words.isin(_YES)


def _mpp(column: pd.Series, path: Path, default: float | None, section: str) -> pd.Series:
    """Microns per pixel as floats: the table's cell, else `mpp` of the config section, else NaN."""
    if default is not None and not LEAST_MPP <= default <= MOST_MPP:
        raise UserError(f"{section}.mpp: {default} is no positive number; give microns per pixel, e.g. 0.5")
    numbers = pd.to_numeric(column.where(column != ""), errors="coerce").astype(float)
    wrong = np.flatnonzero((column != "") & ~((numbers >= LEAST_MPP) & (numbers <= MOST_MPP)))
    if len(wrong):
        raise UserError(
            f"{row_name(path, wrong[0])}: mpp '{column.iloc[wrong[0]]}' is no positive number; give microns per pixel"
        )
    return numbers.fillna(np.nan if default is None else default)


def _refuse_contradictions(cohort: pd.DataFrame, path: Path, section: str) -> None:
    files = cohort["image"].map(os.path.realpath)
    double = np.flatnonzero(files.duplicated())
    if len(double):
        name, file = cohort["image"].iloc[double[0]], files.iloc[double[0]]
        first = np.flatnonzero(files == file)[0]
        raise UserError(f"{row_name(path, double[0])}: image {name} is already in row {first + _FIRST_ROW}; remove one")
    for owned, owner, fix in (
        ("slide", "patient", "give each patient's slides names of their own (column 'slide')"),
        ("patient", "split", "put all of a patient's rows into one split"),
    ):
        first_owner = cohort.groupby(owned)[owner].transform("first")
        wrong = np.flatnonzero(first_owner != cohort[owner])
        if len(wrong):
            row = cohort.iloc[wrong[0]]
            raise UserError(
                f"{row_name(path, wrong[0])}: {owned} '{row[owned]}' is in {owner} '{row[owner]}' here but in"
                f" '{first_owner.iloc[wrong[0]]}' above; {fix}"
            )
    spelled = cohort["patient"].groupby(cohort["patient"].map(same_name)).transform("first")
    wrong = np.flatnonzero(spelled != cohort["patient"])
    if len(wrong):
        one, other = cohort["patient"].iloc[wrong[0]], spelled.iloc[wrong[0]]
        raise UserError(
            f"{row_name(path, wrong[0])}: patient '{one}' is '{other}' above: one person, who must not be trained and"
            " tested on? write a patient in one way; two patients must differ in more than capitals, blanks, dashes and"
            " zeros"
        )
    if cohort["patient"].nunique() < 2:
        raise UserError(
            f"{path}: one patient only ('{cohort['patient'].iloc[0]}'); training, validation and test need"
            f" different patients: add patients or correct {section}.columns.patient"
        )


def same_name(patient: str) -> str:
    """What all spellings of a patient have in common: 1, 01 and 1.0, capitals, blanks, dashes, composed letters."""
    visible = "".join(c for c in normalize("NFKC", patient) if category(c) != "Cf").casefold()
    plain = " ".join("".join("-" if category(c) == "Pd" else c for c in visible).split())
    number = re.fullmatch(r"0*([0-9]+?)(?:\.0*)?", plain)
    return number[1] if number else plain


def _image_size_px(name: str, mpp: float, where: str) -> tuple[int, int] | None:
    """None for a damaged image."""
    try:
        with Slide.open(name, mpp=None if np.isnan(mpp) else mpp) as slide:
            _ = slide.mpp  # an error where nobody knows it
            return slide.width_px, slide.height_px
    except DamagedSlide:
        return None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _mask_size_px(name: str, where: str) -> tuple[int, int]:
    try:
        with open_image(name) as image:
            return image.size
    except TooLarge as error:
        raise UserError(f"{where}: mask {name}: {error}; {INSTEAD}") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"{where}: unreadable mask {name} ({error}); replace the file") from None
