"""A folder of slides, their annotations exported from QuPath and a list of patients -> cohort.csv.

SLIDES: a folder, of any depth. LIST: a CSV with a row per slide and the columns `slide` (file name, suffix or not) and
`patient`; other columns, a score for one, go into the table as they are. --annotations: a folder of NAME.geojson or
NAME.svs.geojson, .gz or not, or "NAME.svs - Series 0.geojson". Slides without one are unannotated: they lend styles.
"""

import argparse
import csv
import os
import re
from pathlib import Path

from stedm.data.slide_files import is_slide

ENDING, SERIES = re.compile(r"\.(geo)?json(\.gz)?$"), re.compile(r" - Series \d+$")


def listed_slides(path: Path) -> dict[int, dict[str, str]]:
    """The rows of LIST by their numbers, without blank ones, as Excel leaves them."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = {number: row for number, row in enumerate(csv.DictReader(file), start=2) if any(row.values())}
    except (UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f'{path}: not a CSV in UTF-8 ({error}); save it as "CSV UTF-8", as Excel calls it') from None
    columns = set().union(*rows.values())
    if not {"slide", "patient"} <= columns or columns & {None, "image", "annotation"}:
        needs = "the columns slide and patient (not image and annotation), commas between values, and a row per slide"
        raise SystemExit(f"{path}: needs {needs}")
    return rows


def annotation_of(slide: Path, exported: list[Path]) -> Path | None:
    """The exported file of a slide."""
    names = {path: ENDING.sub("", path.name) for path in exported}
    found = [path for path in exported if {names[path], SERIES.sub("", names[path])} & {slide.stem, slide.name}]
    if len(found) > 1:
        raise SystemExit(f"{found[0]} and {found[1].name}: both of {slide.name}; leave the one to be used")
    return found[0] if found else None


def convert(slides: Path, listed: Path, annotations: Path | None, out: Path) -> tuple[int, int]:
    """Write the table; the numbers of its rows and of those with annotation."""
    files, table, of_file = sorted(slides.rglob("*")), [], dict[Path, Path]()
    exported = [path for path in sorted(annotations.glob("[!.]*")) if ENDING.search(path.name)] if annotations else []
    if annotations and not exported:
        raise SystemExit(f"{annotations}: no .geojson there; name the folder of the files exported from QuPath")
    for number, row in listed_slides(listed).items():
        found = [path for path in files if row["slide"] in (path.name, path.stem) and path.is_file() and is_slide(path)]
        if len(found) != 1:
            raise SystemExit(f"{listed}, row {number}: {len(found)} files in {slides} are called {row['slide']}")
        annotation = annotation_of(found[0], exported)
        if annotation and of_file.setdefault(annotation, found[0]) != found[0]:
            raise SystemExit(f"{annotation}: of {of_file[annotation]} or of {found[0]}? add its suffix")
        paths = [os.path.relpath(path, out.parent) for path in (found[0], annotation) if path]
        others = {key: value for key, value in row.items() if key not in ("slide", "patient")}
        table.append({"image": paths[0], "annotation": "".join(paths[1:]), "patient": row["patient"], **others})
    if unused := ", ".join(path.name for path in exported if path not in of_file):
        fix = "name each as its slide, case0.svs.geojson for one, or list the slide, or move it away"
        raise SystemExit(f"{annotations}: of no slide in {listed}: {unused}; {fix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, table[0]).writeheader()
        csv.DictWriter(file, table[0]).writerows(table)
    return len(table), sum(row["annotation"] != "" for row in table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, metavar="SLIDES", help="folder of slides")
    parser.add_argument("list", type=Path, metavar="LIST", help="CSV with the columns slide and patient")
    parser.add_argument("--annotations", type=Path, help="folder of files exported from QuPath")
    parser.add_argument("--out", type=Path, default=Path("cohort.csv"), help="table to write (default: %(default)s)")
    options = parser.parse_args()
    rows, annotated = convert(options.slides, options.list, options.annotations, options.out)
    print(f"{rows} rows in {options.out}, {annotated} of them with annotation")


if __name__ == "__main__":
    main()
