"""EBHI-Seg in its original folders -> mapping.csv and label maps for configs/ebhi.yaml.

FOLDER is the unpacked EBHI-SEG of https://doi.org/10.6084/m9.figshare.21540159 (Shi et al. 2023, CC BY 4.0):
  Adenocarcinoma/  High-grade IN/  Low-grade IN/  Normal/  Polyp/  Serrated adenoma/
  each with image/GT2001837-1-400-001.png ... and label/ with the same names

A file name is specimen-slide-magnification-image. The number in the specimen, GT2001837 or GTxc2001837, stands for the
patient: it occurs with several prefixes, and no closer thing to a patient is published.
"""

import argparse
import csv
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

NAME = re.compile(r"(?P<prefix>[A-Za-z]+)(?P<number>\d+)-(?P<slide>\d+)-(?P<magnification>\d+)-(?P<tile>\d+)")
COLUMNS = ["image", "mask", "group_id", "specimen_id", "slide_id", "class", "magnification", "tile_index"]


def write_mask(label: Path, mask: Path) -> None:
    """Label map of a published label, black and white with grey edges: 0 background, 1 gland or lesion."""
    with Image.open(label) as image:
        Image.fromarray((np.asarray(image.convert("L")) > 127).astype(np.uint8)).save(mask)


def convert(folder: Path, out: Path) -> tuple[int, int, list[Path]]:
    """Write the table and the label maps; the numbers of images and of those without a label, and files left out."""
    files = sorted(folder.glob("*/image/[!.]*"))
    images = [path for path in files if NAME.fullmatch(path.stem)]
    if not images:
        raise SystemExit(
            f"{folder}: no CLASS/image/GT2001837-1-400-001.png there; name the folder that holds the classes"
        )
    (out / "masks").mkdir(parents=True, exist_ok=True)
    rows = []
    for image in images:
        name = NAME.fullmatch(image.stem)
        assert name is not None
        lesion = re.sub(r"\W+", "_", image.parts[-3].lower())
        label, mask = image.parents[1] / "label" / image.name, ""
        if label.exists():
            mask = f"masks/{lesion}__{image.stem}.png"
            write_mask(label, out / mask)
        specimen = name["prefix"] + name["number"]
        row = [os.path.relpath(image, out), mask, name["number"], specimen, f"{specimen}-{name['slide']}", lesion]
        rows.append([*row, name["magnification"], int(name["tile"])])
    with open(out / "mapping.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows), sum(row[1] == "" for row in rows), [path for path in files if not NAME.fullmatch(path.stem)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder that holds the six classes")
    parser.add_argument(
        "--out", type=Path, default=Path("data/ebhi-seg"), help="folder to write (default: %(default)s)"
    )
    options = parser.parse_args()
    images, unlabelled, left_out = convert(options.folder, options.out)
    print(f"{images} rows in {options.out / 'mapping.csv'}, {unlabelled} of them without a label")
    for path in left_out:
        print(f"left out: {path} is not called like GT2001837-1-400-001.png")


if __name__ == "__main__":
    main()
