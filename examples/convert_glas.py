"""GlaS (Warwick-QU) in its original folder -> mapping.csv for configs/glas.yaml and configs/ebhi_to_glas.yaml.

FOLDER is the unpacked "Warwick QU Dataset (Released 2016_07_08)" of https://warwick.ac.uk/fac/cross_fac/tia/data/
(Sirinukunwattana et al., Medical Image Analysis 2017; research use):
  Grade.csv   train_1.bmp  train_1_anno.bmp ...   testA_1.bmp ...   testB_1.bmp ...

The annotation files are used as they are: 0 background, one value for each gland. The official split is kept as a
column and not used, because its parts share patients.
"""

import argparse
import csv
import os
from pathlib import Path

COLUMNS = ["image", "mask", "patient_id", "official_split", "grade_glas", "grade_sirinukunwattana"]


def convert(folder: Path, out: Path) -> int:
    """Write the table; the number of rows."""
    grades = folder / "Grade.csv"
    if not grades.exists():
        raise SystemExit(f"{grades}: not found; name the folder that holds Grade.csv and the .bmp files")
    # Fields have spaces around them, and lines may end as on an old Macintosh: text mode reads any line end.
    with open(grades, encoding="utf-8-sig") as file:
        lines = [[field.strip() for field in line] for line in csv.reader(file) if line]
    rows = []
    for name, patient, glas, sirinukunwattana in lines[1:]:
        image, mask = folder / f"{name}.bmp", folder / f"{name}_anno.bmp"
        for path in (image, mask):
            if not path.exists():
                raise SystemExit(f"{path}: not found, though Grade.csv names it; unpack the whole archive")
        paths = [os.path.relpath(path, out) for path in (image, mask)]
        rows.append([*paths, patient, name.partition("_")[0], glas, sirinukunwattana])
    listed = {f"{line[0]}.bmp" for line in lines[1:]} | {f"{line[0]}_anno.bmp" for line in lines[1:]}
    if unlisted := [path.name for path in sorted(folder.glob("[!.]*.bmp")) if path.name not in listed]:
        raise SystemExit(f"{grades}: does not name {', '.join(unlisted)}; unpack the whole archive")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "mapping.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder that holds Grade.csv")
    parser.add_argument("--out", type=Path, default=Path("data/glas"), help="folder to write (default: %(default)s)")
    options = parser.parse_args()
    print(f"{convert(options.folder, options.out)} rows in {options.out / 'mapping.csv'}")


if __name__ == "__main__":
    main()
