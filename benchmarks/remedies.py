"""What each of the generator's remedies is worth on the procedural cohort: one row per generator, all else equal.

    python benchmarks/remedies.py --out runs/remedies

First stage and teacher are trained once and shared. Generators that are finished are not trained again, so that the
command may be stopped, repeated, or run twice side by side with `--only`. Writes OUT/remedies.json and prints a table.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from stedm.config import RunConfig
from stedm.config_file import load_config
from stedm.files import read_json, write_json
from stedm.presets import resolve
from stedm.run import run_all

ARMS = ["real+stain", "real+stain+synthetic"]
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ours": {},
    "annotated only": {"diffusion": {"unlabelled_share": 0.0}},
    "no joint stain change": {"diffusion": {"joint_stain": 0.0}},
    "null layouts, no pseudo-layouts": {"diffusion": {"pseudo_confidence": None}},
    "layouts never partly unknown": {"diffusion": {"unknown_share": 0.0}},
    "style in the bottleneck only": {"diffusion": {"injection": "bottleneck"}},
    "composed guidance": {"generate": {"guidance": "composed"}},
    "no guidance": {"generate": {"layout_guidance": 1.0, "style_guidance": 1.0}},
}


def config_of(variant: str, base: RunConfig) -> RunConfig:
    """The base configuration with a variant's keys changed."""
    changes = {name: dataclasses.replace(getattr(base, name), **keys) for name, keys in VARIANTS[variant].items()}
    return resolve(dataclasses.replace(base, **changes))


def base_config(path: str, seeds: list[int]) -> RunConfig:
    """The configuration the variants start from: two arms, no control."""
    config = load_config(path)
    return dataclasses.replace(
        config,
        diffusion=dataclasses.replace(config.diffusion, annotated_only_control=False),
        segmentation=dataclasses.replace(config.segmentation, arms=ARMS, seeds=seeds),
    )


def slug(variant: str) -> str:
    """A variant's name as a file name."""
    return variant.replace(" ", "_").replace(",", "")


def run_variant(variant: str, out: Path, base: RunConfig) -> dict[str, Any]:
    """Run one variant in its own folder, started from the shared one (or from `ours`, for the sampling's variants)."""
    folder, shared = out / slug(variant), out / "shared"
    if not folder.exists():
        origin = shared if "diffusion" in VARIANTS[variant] or variant == "ours" else out / "ours"
        temporary = folder.with_name(folder.name + ".copying")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(origin, temporary)
        temporary.rename(folder)
    run_all(config_of(variant, base), folder, jobs=1)
    generation, summary = (
        read_json(folder / "evaluation/generation.json"),
        read_json(folder / "evaluation/summary.json"),
    )
    arm = summary["arms"][ARMS[1]]
    return {
        "matched": generation["style_distance_matched"],
        "matched_over_shuffled": generation["style_distance_matched"] / generation["style_distance_shuffled"],
        "layout_agreement": generation["layout_agreement"],
        "kid": generation["kid"],
        **{key: arm[key] for key in ("patient_iou_mean", "patient_iou_std", "worst_decile_iou")},
        "baseline": summary["arms"][ARMS[0]],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row per variant, the arm without synthetic images first."""
    lines = [
        "| generator | matched / shuffled | layout agreement | KID | IoU | std over patients | worst decile |",
        "|---|---|---|---|---|---|---|",
    ]
    if rows:
        baseline = next(iter(rows.values()))["baseline"]
        cells = [f"{baseline[k]:.3f}" for k in ("patient_iou_mean", "patient_iou_std", "worst_decile_iou")]
        lines.append("| none (real+stain) | | | | " + " | ".join(cells) + " |")
    keys = ("matched_over_shuffled", "layout_agreement", "kid", "patient_iou_mean", "patient_iou_std")
    for variant, row in rows.items():
        cells = [f"{row[key]:.3f}" for key in (*keys, "worst_decile_iou")]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    base = base_config(options.config, options.seeds)
    if not (options.out / "shared").exists():  # made under another name: a second process must not copy half of it
        beginning = options.out / "shared.beginning"
        for until in ("autoencoder", *(f"segmentation real+stain seed {seed}" for seed in options.seeds)):
            run_all(base, beginning, until=until, jobs=2)
        beginning.rename(options.out / "shared")
    for variant in options.only:
        row = run_variant(variant, options.out, base)
        write_json(options.out / f"{slug(variant)}.json", row)
    done = {name: options.out / f"{slug(name)}.json" for name in VARIANTS}
    rows = {name: read_json(path) for name, path in done.items() if path.exists()}
    write_json(options.out / "remedies.json", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
