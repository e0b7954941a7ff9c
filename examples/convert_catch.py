"""CATCH, canine skin tumours -> cohort.csv for configs/catch.yaml.

SLIDES is the folder of .svs files, at any depth, and ANNOTATIONS is CATCH.json, both of
https://doi.org/10.7937/TCIA.2M93-FX66 (Wilm et al., Scientific Data 2022). SPLIT is datasets.csv of
https://github.com/DeepMicroscopy/CanineCutaneousTumors, with the columns Slide;Dataset;Scanner.

A slide's name is subtype, patient and slide: Melanoma_15_2.svs is the second slide of the 15th dog with a melanoma.
Slides that were not downloaded are left out.
"""

import argparse
import csv
import os
from pathlib import Path

COLUMNS = ["image", "annotation", "patient", "subtype", "scanner", "split"]


def convert(slides: Path, annotations: Path, split: Path, out: Path) -> tuple[int, int, int]:
    """Write the table; the numbers of its rows, of listed slides that are not there, and of files not listed."""
    there = {path.name: path for path in sorted(slides.rglob("*.svs"))}
    with open(split, newline="", encoding="utf-8-sig") as file:
        listed = list(csv.DictReader(file, delimiter=";"))
    found = [entry for entry in listed if entry["Slide"] in there]
    if not found:
        raise SystemExit(
            f"{slides}: none of the {len(listed)} slides that {split} lists; name the folder of .svs files"
        )
    if not annotations.exists():
        raise SystemExit(f"{annotations}: not found; name CATCH.json")
    rows = []
    for entry in found:
        patient = Path(entry["Slide"]).stem.rpartition("_")[0]
        paths = [os.path.relpath(path, out.parent) for path in (there[entry["Slide"]], annotations)]
        rows.append([*paths, patient, patient.rpartition("_")[0], entry["Scanner"], entry["Dataset"]])
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows), len(listed) - len(found), len(there) - len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, metavar="SLIDES", help="folder of .svs files")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="CATCH.json")
    parser.add_argument("split", type=Path, metavar="SPLIT", help="datasets.csv")
    parser.add_argument("--out", type=Path, default=Path("data/catch/cohort.csv"), help="default: %(default)s")
    options = parser.parse_args()
    rows, missing, unlisted = convert(options.slides, options.annotations, options.split, options.out)
    print(f"{rows} rows in {options.out}; {missing} slides of the list are not there, {unlisted} .svs files not in it")


if __name__ == "__main__":
    main()
