"""How long a slide's worth of nuclei takes to load and to rasterise, and how much memory: a generated QuPath export.

    python benchmarks/annotations.py

Writes half a million outlines into a temporary folder and reads them, plain and gzipped, each in a fresh process.
Prints a table: wall time, processor time in brackets (what the wall time is on an idle core), and peak memory.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from stedm.data.annotation import read_annotation
from stedm.data.label_source import PolygonLabels
from stedm.data.labels import LabelMap
from stedm.data.polygon_classes import label_map_of, uncovered_label, values_of

SLIDE_PX = 100_000
MPP = 0.25
PATCH_PX, PATCH_MPP, PATCHES = 256, 0.5, 200
CLASSES = ("Tumor: Positive", "Tumor: Negative", "Stroma", "Immune cells")


def main() -> None:
    """Write the file, then measure it in a process of its own, plain and gzipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polygons", type=int, default=500_000, help="nuclei in the file, 20 to 40 vertices each")
    parser.add_argument("--measure", type=Path, help="measure this file, and nothing else")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "nuclei.geojson"
        write_nuclei(plain, options.polygons)
        packed = plain.with_suffix(".geojson.gz")
        packed.write_bytes(gzip.compress(plain.read_bytes(), compresslevel=6))
        print("| file | size | load and index | peak memory | rasterise 200 patches |\n|---|---|---|---|---|")
        for path in (plain, packed):
            command = [sys.executable, __file__, "--measure", str(path)]
            result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(
                f"| {path.name}, {result['polygons']:,} polygons | {path.stat().st_size / 1e6:.0f} MB"
                f" | {result['load_seconds']:.1f} s ({result['load_cpu_seconds']:.1f} s)"
                f" | {result['peak_bytes'] / 2**30:.2f} GiB"
                f" | {result['patches_seconds']:.2f} s, {result['polygons_per_patch']:.0f} polygons a patch |",
                flush=True,
            )


def write_nuclei(path: Path, count: int) -> None:
    """A feature collection as QuPath writes it: star-shaped outlines with classes and measurements."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for k in range(count):
            vertices = int(rng.integers(20, 41))
            angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
            radius = rng.uniform(10, 18) * (1 + 0.08 * rng.standard_normal(vertices))
            x, y = rng.uniform(20, SLIDE_PX - 20, 2)
            ring = np.round(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1), 2).tolist()
            feature = {
                "type": "Feature",
                "id": f"{k:08x}-0000-4000-8000-000000000000",
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": CLASSES[k % len(CLASSES)], "color": [200, 0, 0]},
                    "measurements": {"Nucleus: Area µm^2": 41.25, "Nucleus: Circularity": 0.83, "DAB: Mean": 0.21},
                },
            }
            file.write((",\n" if k else "") + json.dumps(feature))
        file.write("]}")


def measure(path: Path) -> dict[str, float]:
    """Seconds to load and index, seconds to rasterise patches, peak memory of this process (bytes)."""
    config = {"tumour": ["Tumor"], "other": ["Stroma", "Immune cells", "unannotated"]}
    labels: LabelMap = label_map_of(config, key="cohort.labels")
    start, cpu = time.perf_counter(), time.process_time()
    annotation = read_annotation(path)
    source: PolygonLabels = annotation.labels(
        values_of(labels, annotation), uncovered=uncovered_label(labels), size_px=(SLIDE_PX, SLIDE_PX), mpp=MPP
    )
    loaded, cpu = time.perf_counter(), time.process_time() - cpu
    corners = np.random.default_rng(1).uniform(0, (SLIDE_PX * MPP - PATCH_PX * PATCH_MPP), (PATCHES, 2))
    for x_um, y_um in corners:
        source.read(x_um, y_um, size_px=PATCH_PX, mpp=PATCH_MPP)
    density = len(annotation.polygons) / (SLIDE_PX * MPP) ** 2
    return {
        "polygons": len(annotation.polygons),
        "load_seconds": loaded - start,
        "load_cpu_seconds": cpu,
        "patches_seconds": time.perf_counter() - loaded,
        "polygons_per_patch": density * (PATCH_PX * PATCH_MPP) ** 2,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
