"""Patient-wise statistics of anybody's predictions: IoU and Dice per patient, mean, spread, worst decile, interval.

    python examples/evaluate_predictions.py predictions.csv --classes background,gland --out per_patient.csv

predictions.csv has the columns patient, truth and prediction (label maps as PNG, paths relative to the table; 255 in
the truth is not counted). Patches of a patient are pooled first: the patient is the unit.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stedm.evaluation.segmentation import confusion, patient_scores
from stedm.evaluation.statistics import summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--classes", required=True, help="names in label order, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("per_patient.csv"))
    options = parser.parse_args()
    classes, table = options.classes.split(","), pd.read_csv(options.table, dtype=str)
    maps = table[["prediction", "truth"]].map(lambda name: np.asarray(Image.open(options.table.parent / name)))
    confusions = [confusion(row.prediction, row.truth, len(classes)) for row in maps.itertuples()]
    scores = patient_scores(table["patient"].tolist(), np.stack(confusions), classes=classes)
    scores.to_csv(options.out, index=False)
    found = summarise(scores["iou"].to_numpy())
    print(f"{len(scores)} patients: IoU {found.mean:.3f} (95 % interval {found.ci95[0]:.3f} to {found.ci95[1]:.3f}),")
    print(f"std over patients {found.std:.3f}, worst decile {found.worst_decile:.3f}; written to {options.out}")


if __name__ == "__main__":
    main()
