"""What each step from the original method to ours is worth: one generator a row, the same optimiser steps for each.

    python benchmarks/ablation.py --out runs/ablation
    python benchmarks/ablation.py --out runs/ablation-ebhi --config configs/ebhi.yaml --table PATH/mapping.csv

First stage and segmenters without synthetic images are trained once and shared. Rows that are finished are not done
again, so that the command may be stopped, repeated, or run twice side by side with `--only`. Style and layout are
measured on never-seen patients. Writes OUT/ablation.json and prints a table.
"""

import argparse
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

from stedm.config import RunConfig
from stedm.config_file import load_config
from stedm.files import read_json, write_json
from stedm.presets import resolve
from stedm.run import run_all

ARMS = ["real+stain", "real+stain+synthetic"]
FIGURES = ("layout_agreement", "layout_agreement_relative", "kid", "colour_mean_error", "colour_std_error", "diversity")
SCORES = ("patient_iou_mean", "patient_iou_std", "worst_decile_iou")
Changes = dict[str, dict[str, Any]]
PAPER: Changes = {
    "diffusion": {
        "unlabelled_share": 0.0,
        "injection": "bottleneck",
        "style_pooling": "image",
        "style_prior": "standard",
        "pseudo_confidence": None,
        "unknown_share": 0.0,
    },
    "generate": {
        "solver": "euler",
        "nfe": 128,
        "layout_guidance": 1.0,
        "style_guidance": 1.5,
        "grain": 0.0,
        "bands": 0.0,
    },
}
"""Annotated images only, style a bias in the middle, guidance on style alone, 128 Euler steps (for DDIM's)."""
STEPS: dict[str, Changes] = {
    "paper-like": {},
    "8 evaluations, second order": {"generate": {"solver": "multistep", "nfe": 8}},
    "style in every block": {"diffusion": {"injection": "all"}},
    "unannotated images, null layout": {"diffusion": {"unlabelled_share": 0.5}},
    "pseudo-layouts": {"diffusion": {"pseudo_confidence": 0.8}},
    "partly unknown layouts": {"diffusion": {"unknown_share": 0.3}},
    "a style for each class": {"diffusion": {"style_pooling": "class"}},
    "style prior": {"diffusion": {"style_prior": "learned"}},
    "scanner's grain": {"generate": {"grain": None}},
    "colours of the octaves": {"generate": {"bands": None}},
    "4 evaluations": {"generate": {"nfe": 4}},
}
"""Each row keeps what the rows above it changed; the last is ours."""
INSTEAD: dict[str, Changes] = {
    "nested guidance on layout too": {"generate": {"guidance": "nested", "layout_guidance": 1.25}},
    "composed guidance": {"generate": {"guidance": "composed", "layout_guidance": 1.25}},
    "no guidance": {"generate": {"style_guidance": 1.0}},
    "without unannotated images": {"diffusion": {"unlabelled_share": 0.0}},
    "without pseudo-layouts": {"diffusion": {"pseudo_confidence": None}},
    "pseudo-layouts for the style encoder alone": {"diffusion": {"pseudo_use": "style"}},
    "without unknown parts": {"diffusion": {"unknown_share": 0.0}},
}
"""Each differs from ours in this alone."""
ROWS = [*STEPS, *INSTEAD]


def changes_of(row: str) -> Changes:
    """All keys of a row: the paper's, then those of every step up to it, or ours with one thing changed."""
    names = list(STEPS)
    steps = [STEPS[name] for name in names[: names.index(row) + 1 if row in STEPS else None]]
    merged = {section: dict(keys) for section, keys in PAPER.items()}
    for step in [*steps, INSTEAD.get(row, {})]:
        for section, keys in step.items():
            merged[section] |= keys
    return merged


def config_of(row: str, base: RunConfig) -> RunConfig:
    """The base configuration with a row's keys changed."""
    changes = {name: dataclasses.replace(getattr(base, name), **keys) for name, keys in changes_of(row).items()}
    return resolve(dataclasses.replace(base, **changes))


def base_config(path: str, overrides: list[str], seeds: list[int]) -> RunConfig:
    """The configuration the rows start from: two arms, no control."""
    config = load_config(path, overrides)
    return dataclasses.replace(
        config,
        diffusion=dataclasses.replace(config.diffusion, annotated_only_control=False),
        segmentation=dataclasses.replace(config.segmentation, arms=ARMS, seeds=seeds),
    )


def slug(row: str) -> str:
    """A row's name as a file name."""
    return re.sub(r"\W+", "_", row)


def origin_of(row: str, out: Path) -> Path:
    """The folder a row starts from: one whose generator it shares, where there is one; else the shared stages."""
    same_generator = {"8 evaluations, second order": "paper-like", "scanner's grain": "style prior"}
    drawn = (
        "colours of the octaves",
        "4 evaluations",
        "nested guidance on layout too",
        "composed guidance",
        "no guidance",
    )
    same_generator |= {name: "scanner's grain" for name in drawn}
    folder = out / slug(same_generator.get(row, ""))
    return folder if row in same_generator and (folder.with_suffix(".json")).exists() else out / "shared"


def run_row(row: str, out: Path, base: RunConfig) -> dict[str, Any]:
    """Run one row in its own folder and return its figures."""
    folder = out / slug(row)
    if not folder.exists():
        temporary = folder.with_name(folder.name + ".copying")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(origin_of(row, out), temporary)
        temporary.rename(folder)
    run_all(config_of(row, base), folder, jobs=1)
    generation = read_json(folder / "evaluation/generation.json")
    arms = read_json(folder / "evaluation/summary.json")["arms"]
    return {
        **{f"style_ratio_{group}": generation[group]["style_ratio"] for group in ("seen", "unseen")},
        **{key: generation[key] for key in FIGURES},
        **{key: arms[ARMS[1]][key] for key in SCORES},
        "nfe": generation["nfe"],
        "baseline": arms[ARMS[0]],
        "ceiling": generation["layout_agreement_real"],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row per generator, the arm without synthetic images first."""
    keys = {
        "style_ratio_unseen": "style ratio, never seen",
        "style_ratio_seen": "seen",
        "layout_agreement_relative": "layout agreement, relative",
        "kid": "KID",
        "colour_mean_error": "colour error",
        "patient_iou_mean": "IoU",
        "patient_iou_std": "std",
        "worst_decile_iou": "worst decile",
    }
    lines = ["| generator | " + " | ".join(keys.values()) + " |", "|---" * (len(keys) + 1) + "|"]
    if rows:
        baseline = next(iter(rows.values()))["baseline"]
        lines.append("| none (real+stain) |" + " |" * 5 + "".join(f" {baseline[key]:.3f} |" for key in SCORES))
    for name, row in rows.items():
        lines.append(
            f"| {'+ ' if name in list(STEPS)[1:] else ''}{name} |" + "".join(f" {row[key]:.3f} |" for key in keys)
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--table", help="cohort table of the config, if it lies elsewhere")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other keys, for all rows")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    overrides = options.set + ([f"cohort.table={options.table}"] if options.table else [])
    base = base_config(options.config, overrides, options.seeds)
    if not (options.out / "shared").exists():  # made under another name: a second process must not copy half of it
        beginning = options.out / "shared.beginning"
        for until in ("autoencoder", f"segmentation full seed {base.seed}", "segmentation real+stain "):
            run_all(base, beginning, until=until, jobs=2)
        beginning.rename(options.out / "shared")
    for row in options.only:
        write_json(options.out / f"{slug(row)}.json", run_row(row, options.out, base))
    done = {name: options.out / f"{slug(name)}.json" for name in ROWS}
    rows = {name: read_json(path) for name, path in done.items() if path.exists()}
    write_json(options.out / "ablation.json", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
