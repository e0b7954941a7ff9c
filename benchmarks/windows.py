"""What context is worth to a segmenter: training patches one by one, and overlapping windows over whole images.

    python benchmarks/windows.py --run runs/demo

Segments the images of the test patients of a run with its best arm, seed 0, in each way, and prints the IoU over
patients. Windows as `stedm segment` takes them; `white` leaves white what lies beyond the border of an image.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import stedm.stages.predict
from stedm.data.slide import Slide
from stedm.evaluation.segmentation import confusion, patient_scores
from stedm.models.ensemble import Ensemble
from stedm.stages.predict import Prediction
from stedm.stages.run_folder import RunFolder
from stedm.stages.segmenter_choice import chosen_segmenters


def windowed(model: Ensemble, path: str, mpp: float, *, overlap_px: int, window_px: int) -> np.ndarray:
    """Label map of an image, predicted everywhere in overlapping windows."""
    with tempfile.TemporaryDirectory() as folder, Slide.open(path, mpp=mpp) as slide:
        plan = Prediction.plan(
            slide,
            model,
            window_px=window_px,
            overlap_px=overlap_px,
            everywhere=True,
            folder=Path(folder) / "bands",
        )
        return plan.run().rows(0, plan.grid.height_px)


def score(run: RunFolder, test: pd.DataFrame, maps: list[np.ndarray]) -> str:
    """IoU over patients, mean and standard deviation."""
    classes = run.classes()
    confusions = [confusion(a, b, len(classes)) for a, b in zip(maps, run.label_maps(test), strict=True)]
    iou = patient_scores(test["patient"].tolist(), np.stack(confusions), classes=classes)["iou"]
    return f"{iou.mean():.3f} | {iou.std():.3f}"


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of plain images")
    options = parser.parse_args()
    run = RunFolder(options.run)
    patches = run.patches()
    test = patches[(patches["split"] == "test") & patches["annotated"]].reset_index(drop=True)
    cohort = pd.read_parquet(run.data / "cohort.parquet")
    images = {source: cohort.iloc[int(source[1:])] for source in test["source"].unique()}
    patch_px = run.images(test.head(1)).shape[1]
    model = Ensemble.from_pretrained(chosen_segmenters(options.run)[:1])
    print("| way | patient IoU | std |\n|---|---|---|")
    alone = list(model.probabilities(run.images(test)).argmax(1))
    print(f"| training patches of {patch_px} px | {score(run, test, alone)} |")
    mirrored = stedm.stages.predict.mirrored
    for border, overlap_px in (("mirrored", 128), ("mirrored", 64), ("mirrored", 0), ("white", 128)):
        stedm.stages.predict.mirrored = (
            mirrored if border == "mirrored" else lambda start, size, length: np.arange(size)
        )
        maps = {
            source: windowed(model, row.image, row.mpp, overlap_px=overlap_px, window_px=512)
            for source, row in images.items()
        }
        corners = zip(test["source"], test["x_um"] / test["mpp"], test["y_um"] / test["mpp"], strict=True)
        cut = [maps[name][round(y) : round(y) + patch_px, round(x) : round(x) + patch_px] for name, x, y in corners]
        print(f"| windows, overlap {overlap_px} px, {border} border | {score(run, test, cut)} |")


if __name__ == "__main__":
    main()
