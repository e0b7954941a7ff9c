"""Quality against the number of network evaluations, for each solver and for the few-step generator.

    python benchmarks/evaluations.py --run runs/demo --out runs/evaluations

Takes a finished run (its generator, judge and cohort) and draws the never-seen patients' styles anew with each setting;
`exactness` is the distance of the pixels (root mean square, 0 to 1) from those of 50 Heun evaluations with the same
seeds. Trains the few-step generator if the run has none. Writes OUT/evaluations.json and a plot, and prints a table.
"""

import argparse
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stedm.config import RunConfig
from stedm.config_file import load_config
from stedm.files import atomic_path, write_json
from stedm.run import run_all
from stedm.stages.measure import measure_generator
from stedm.stages.probe import draw_probes
from stedm.stages.run_folder import RunFolder

SOLVERS = ("euler", "heun", "multistep")
BUDGETS = (2, 4, 8, 12, 20, 50)
FEW = (1, 2, 3, 4, 8)
REFERENCE = {"solver": "heun", "nfe": 50}
FIGURES = ("style_ratio", "layout_agreement_relative", "kid", "diversity", "colour_mean_error")


def drawn_by(run: RunFolder, config: RunConfig) -> np.ndarray:
    """The never-seen patients' drawn images (n, H, W, 3)."""
    return np.concatenate([probe.drawn for probe in draw_probes(run, config).groups["unseen"]])


def measure(run: RunFolder, config: RunConfig, reference: np.ndarray | None, **keys: Any) -> dict[str, Any]:
    """Figures with some keys of `generate` replaced."""
    config = dataclasses.replace(config, generate=dataclasses.replace(config.generate, **keys))
    started = time.perf_counter()
    found = measure_generator(run, config)
    row = {key: found["unseen"][key] for key in FIGURES}
    if reference is not None:
        difference = (drawn_by(run, config).astype(float) - reference) / 255
        row["exactness"] = float(np.sqrt((difference**2).mean()))
    print(keys, {k: round(v, 3) for k, v in row.items()}, f"{time.perf_counter() - started:.0f} s", flush=True)
    return row | {"images_per_second": found["images_per_second"]} | keys


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a figure, one line a solver."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(FIGURES)), FIGURES, strict=True):
        for name in (*SOLVERS, "few-step"):
            mine = [row for row in rows if row["name"] == name]
            axes.plot([row["nfe"] for row in mine], [row[key] for row in mine], ".-", label=name)
        axes.set(xscale="log", xlabel="evaluations", title=key.replace("_", " "))
    figure.axes[0].legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--solvers", nargs="*", choices=SOLVERS, default=SOLVERS)
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other keys, few_step.steps=... say")
    options = parser.parse_args()
    if not options.out.exists():
        shutil.copytree(options.run, options.out)
    config = load_config(str(options.run / "config.yaml"), [*options.set, "generate.generator=few-step"])
    run_all(config, options.out, until="few-step")
    run = RunFolder(options.out)
    full = dataclasses.replace(config, generate=dataclasses.replace(config.generate, generator="full"))
    reference = drawn_by(run, dataclasses.replace(full, generate=dataclasses.replace(full.generate, **REFERENCE)))
    rows = []
    for solver in options.solvers:
        for nfe in options.budgets:
            rows.append(measure(run, full, reference.astype(float), solver=solver, nfe=nfe) | {"name": solver})
    rows += [measure(run, config, None, nfe=nfe) | {"name": "few-step"} for nfe in FEW]
    write_json(options.out / "evaluations.json", rows)
    plot(rows, options.out / "evaluations.png")
    columns = ["name", "nfe", *FIGURES, "images_per_second"]
    print("\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]))
    for row in rows:
        cells = [f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in columns]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
