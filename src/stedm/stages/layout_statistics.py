"""What the layouts that were drawn look like beside the annotated patients' label maps: `synthetic/layouts.json`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stedm.data.layout_statistics import compare, measure
from stedm.data.patches import LabelMaps
from stedm.files import write_json
from stedm.stages.run_folder import RunFolder, train_patches

_MOST_MAPS = 2048
_SPLITS = 10


def write_layout_statistics(
    run: RunFolder, plan: pd.DataFrame, patches: pd.DataFrame, *, seed: int, folder: Path | None = None
) -> None:
    """Measure the layouts of the plan's rows, by kind, and the annotated training patients' label maps.

    Writes `layouts.json` into `folder` (`synthetic/` when not given): `statistics` of "annotated" and of each kind, by
    class; `distances` of each kind from "annotated", and under "halves" what two random halves of the annotated
    patients are apart (mean over draws of the halves; null with fewer than two patients); `composition`, whether a
    user's table gave the fractions.
    """
    folder = folder or run.synthetic
    classes = run.classes()
    annotated = train_patches(patches, annotated=True)
    maps = run.label_maps(annotated)
    wanted = measure(maps, len(classes))
    statistics: dict[str, Any] = {"annotated": wanted.as_json(classes)}
    distances: dict[str, Any] = {"halves": _halves(maps, annotated["patient"].to_numpy(), classes, seed=seed)}
    for kind, rows in plan.groupby("layout_kind"):
        names = [f"masks/{name}.png" for name in rows["id"].iloc[:_MOST_MAPS]]
        drawn = measure(LabelMaps(folder, names, cache_bytes=0).label_maps(range(len(names))), len(classes))
        statistics[str(kind)] = drawn.as_json(classes)
        distances[str(kind)] = compare(drawn, wanted).as_json(classes)
    content = {
        "statistics": statistics,
        "distances": distances,
        "composition": bool((plan["composition"] != "").any()),
    }
    write_json(folder / "layouts.json", content)


def _halves(maps: np.ndarray, patients: np.ndarray, classes: list[str], *, seed: int) -> dict[str, float] | None:
    """Mean distance of two random halves of the patients: what a perfect sampler could not be blamed for."""
    names = np.unique(patients)
    if len(names) < 2:
        return None
    rng, found = np.random.default_rng([seed, 8]), []
    for _ in range(_SPLITS):
        first = np.isin(patients, rng.permutation(names)[: len(names) // 2])
        if all((maps[half] < len(classes)).any() for half in (first, ~first)):
            found.append(compare(measure(maps[first], len(classes)), measure(maps[~first], len(classes))))
    keys = ("fraction_error", "region_error", "adjacency_distance")
    return {key: float(np.mean([getattr(distance, key) for distance in found])) for key in keys} if found else None
