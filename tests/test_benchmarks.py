"""Every benchmark still runs, at its smallest, and says what it found: its figures are recorded, so it must not rot."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from test_end_to_end import OPTIONS

from stedm.data.phantom import draw_layout, draw_style
from stedm.data.phantom_render import render
from stedm.diffusion.sampling import Sampling
from stedm.stages.sampling_settings import in_force

ROOT = Path(__file__).parents[1]


def run(name: str, *arguments: object) -> str:
    """What a benchmark prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_training_step(tmp_path: Path) -> None:
    run("train", "--out", tmp_path, "--size", "smoke", "--steps", 4, "--turns", 1, "--frozen", "test_resnet")
    found = {row["what"]: row["/ network, processor"] for row in rows(tmp_path, "train-smoke.json")["rows"]}
    assert found["forward and backward"] == 1 and all(ratio > 0 for ratio in found.values())
    assert "bare step that asks the backbone" in found


def test_sampling(tmp_path: Path) -> None:
    run("sample", "--out", tmp_path, "--size", "smoke", "--sides", 64, "--nfe", 1, "--batch", 2, "--repeats", 1)
    *drawn, read = rows(tmp_path, "sample-smoke.json")["rows"]
    assert drawn and all(row["images/s processor"] > 0 for row in drawn) and read["style sets/s processor"] > 0


def test_throughput(tmp_path: Path) -> None:
    given = ["--sizes", "smoke", "--sides", 64, "--batch", 2, "--repeats", 1, "--samplers", "full", "--write"]
    run("throughput", "--out", tmp_path, *given)
    found = rows(tmp_path, "throughput.json")["rows"]
    assert [row["sampler"] for row in found] == ["full", "full, and PNG written"]
    assert all(row["least"] <= row["images/s"] <= row["most"] for row in found)


def test_first_stage(tmp_path: Path) -> None:
    run("first_stage", "--out", tmp_path, "--size", "smoke", "--sides", 64, "--batch", 2, "--repeats", 1)
    assert {row["what"] for row in rows(tmp_path, "first-stage-smoke.json")["rows"]} == {"encode", "decode"}


def test_speedups(tmp_path: Path) -> None:
    run("speedups", "--out", tmp_path, "--size", "smoke", "--batch", 2, "--repeats", 1)
    found = rows(tmp_path, "speedups-smoke.json")["rows"]
    assert {row["without"] for row in found} >= {"channels last", "cached latents", "guidance in one batch"}
    assert all(row["least"] <= row["median"] <= row["most"] for row in found)


def test_reading(tmp_path: Path) -> None:
    run("reading", "--out", tmp_path, "--side", 2000, "--regions", 4, "--repeats", 1)
    found = rows(tmp_path, "reading.json")["rows"]
    assert {row["read"] for row in found} == {"pyramid, bare OpenSlide", "pyramid", "OME-TIFF"} and len(found) == 12


def test_demo_by_stage(tmp_path: Path) -> None:
    config = tmp_path / "least.yaml"
    config.write_text("segmentation: {arms: [real], seeds: [0]}\n")
    few = [word for key, value in OPTIONS.items() if "segmentation" not in key for word in (f"--{key}", value)]
    run("demo", "--out", tmp_path, "--config", config, "--", *few)
    stages = {row["stage"]: row["seconds"] for row in rows(tmp_path, "demo.json")["rows"]}
    assert {"data", "diffusion", "segmentation", "evaluation"} <= set(stages)
    assert stages["diffusion"] < stages["all of it, wall"]


def test_annotations() -> None:
    assert "nuclei.geojson, 500 polygons" in run("annotations", "--polygons", 500)


def test_the_steps_of_the_ablation_end_at_what_is_shipped() -> None:
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "benchmarks/ablation.py")
    assert spec is not None and spec.loader is not None
    ablation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ablation)
    base = ablation.base_config(str(ROOT / "configs/demo.yaml"), [], [0])
    shipped = ablation.resolve(base)
    rows = {row: ablation.config_of(row, base) for row in ablation.ROWS}

    def drawn(config: Any) -> dict[str, Any]:
        return in_force(dataclasses.asdict(Sampling()), dataclasses.asdict(config.generate))

    ours = rows[list(ablation.STEPS)[-1]]
    assert ours.diffusion == shipped.diffusion and drawn(ours) == drawn(shipped)
    settings = [json.dumps([dataclasses.asdict(row.diffusion), drawn(row)]) for row in rows.values()]
    assert len(set(settings)) == len(settings)  # each row differs from every other


def test_prepare(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tissue = render(draw_layout(512, rng), draw_style("he", rng), rng)
    tifffile.imwrite(tmp_path / "slide.tif", tissue, tile=(256, 256), photometric="rgb")
    slide = ("--slide", tmp_path / "slide.tif", "--mpp", 0.5)
    found = json.loads(run("prepare", "--out", tmp_path / "out", *slide, "--repeats", 1))
    assert 0 < found["patches"] <= 4 and found["wall"]["prepare_over_bare_reads_and_writes"]["median"] > 0
