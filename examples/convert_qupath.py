"""A folder of slides, their annotations exported from QuPath and a list of patients -> cohort.csv.

SLIDES is a folder of slides, at any depth. LIST is a CSV with one row per slide and the columns `slide` (its file name,
with or without the suffix) and `patient`; other columns, a score or a subtype for one, go into the table as they are.
--annotations is the folder of exported files: NAME.geojson or NAME.svs.geojson, .gz or not. Slides without one are
unannotated: they lend styles.
"""

import argparse
import csv
import os
from pathlib import Path

ENDINGS = (".geojson", ".json", ".geojson.gz", ".json.gz")


def convert(slides: Path, listed: Path, annotations: Path | None, out: Path) -> tuple[int, int]:
    """Write the table; the numbers of its rows and of those with annotation."""
    with open(listed, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"slide", "patient"} <= rows[0].keys():
        raise SystemExit(f"{listed}: needs the columns slide and patient, and a row per slide")
    files = [path for path in sorted(slides.rglob("*")) if path.is_file()]
    table = []
    for number, row in enumerate(rows, start=2):
        found = [path for path in files if row["slide"] in (path.name, path.stem)]
        if len(found) != 1:
            raise SystemExit(f"{listed}, row {number}: {len(found)} files in {slides} are called {row['slide']}")
        names = [stem + ending for stem in (found[0].stem, found[0].name) for ending in ENDINGS]
        exported = [annotations / name for name in names if annotations and (annotations / name).is_file()]
        paths = [os.path.relpath(path, out.parent) for path in (found[0], *exported[:1])]
        others = {key: value for key, value in row.items() if key not in ("slide", "patient")}
        table.append({"image": paths[0], "annotation": "".join(paths[1:]), "patient": row["patient"], **others})
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
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
