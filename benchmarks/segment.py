"""Time and memory of `stedm segment` on slides of growing size: does memory stay flat, and what does the network take?

    python benchmarks/segment.py --model runs/demo/segmentation/real+stain+synthetic/seed0 --out runs/segment-benchmark

Draws square pyramids (JPEG tiles, procedural tissue in a twentieth of the area, at the model's own resolution, so that
the label map is as large as the slide), segments each in a fresh process and prints a table. The slides are deleted.
"""

import argparse
import functools
import importlib
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from stedm.data.phantom import draw_layout, draw_style
from stedm.data.phantom_render import render
from stedm.models.model_folder import read_config

TILE_PX = 512
GLASS = (240, 240, 238)
PARTS = {
    "prediction": ("stages.predict", "Prediction", "run"),
    "network": ("models.ensemble", "Ensemble", "probabilities"),
    "label map": ("stages.segment", "write_label_pyramid"),
    "outlines": ("stages.segment", "write_features"),
}
"""What is timed: the network is a part of the prediction."""
COLUMNS = ("wall", "total", *PARTS)


class Drawing:
    """A square slide: sections of procedural tissue on glass, each a disc of tiles."""

    def __init__(self, size_px: int, *, share: float, sections: int = 6, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        style = draw_style("he", rng)
        self._tissue = [Image.fromarray(render(draw_layout(TILE_PX, rng), style, rng)) for _ in range(6)]
        self.tiles = -(-size_px // TILE_PX)
        self._radius = self.tiles * np.sqrt(share / sections / np.pi)
        spots = [(x, y) for y in (0.3, 0.7) for x in (0.2, 0.5, 0.8)]
        self._centres = [(x * self.tiles, y * self.tiles) for x, y in spots[:sections]]

    @functools.lru_cache(maxsize=512)  # noqa: B019 (lives as long as the script)
    def tile(self, level: int, x: int, y: int) -> Image.Image | None:
        """A tile of a level; None where there is glass only."""
        if level == 0:
            near = any(np.hypot(x + 0.5 - cx, y + 0.5 - cy) < self._radius for cx, cy in self._centres)
            return self._tissue[(x * 7 + y * 13) % len(self._tissue)] if near else None
        quarters = {(i, j): self.tile(level - 1, 2 * x + i, 2 * y + j) for i in (0, 1) for j in (0, 1)}
        if not any(quarters.values()):
            return None
        whole = Image.new("RGB", (TILE_PX, TILE_PX), GLASS)
        for (i, j), quarter in quarters.items():
            if quarter is not None:
                whole.paste(quarter.reduce(2), (i * TILE_PX // 2, j * TILE_PX // 2))
        return whole


def write_slide(path: Path, drawing: Drawing, *, size_px: int, mpp: float) -> None:
    """Write a tiled pyramid as BigTIFF with JPEG tiles; all tiles of glass share their bytes."""
    with open(path, "wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        link_at, glass = 8, _jpeg(Image.new("RGB", (TILE_PX, TILE_PX), GLASS))
        glass_at = file.tell()
        file.write(glass)
        for level in range(max(1, drawing.tiles.bit_length() - 1)):
            level_px, offsets, lengths = -(-size_px // 2**level), list[int](), list[int]()
            count = -(-level_px // TILE_PX)
            for y in range(count):
                for x in range(count):
                    tile = drawing.tile(level, x, y)
                    offsets.append(glass_at if tile is None else file.tell())
                    lengths.append(len(glass) if tile is None else file.write(_jpeg(tile)))
            link_at = _write_directory(file, link_at, level, level_px, mpp * 2**level, offsets, lengths)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, subsampling=0)
    return buffer.getvalue()


def _write_directory(
    file: BinaryIO, link_at: int, level: int, level_px: int, mpp: float, offsets: list[int], lengths: list[int]
) -> int:
    """Write a TIFF directory, link it at `link_at`; where the next one is to be linked."""
    offsets_at = file.tell()
    file.write(struct.pack(f"<{len(offsets)}Q", *offsets))
    lengths_at = file.tell()
    file.write(struct.pack(f"<{len(lengths)}Q", *lengths))
    count = len(offsets)
    tags = [(254, 4, 1, int(level > 0)), (256, 4, 1, level_px), (257, 4, 1, level_px)]
    tags += [(258, 3, 3, 8 | 8 << 16 | 8 << 32), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3)]
    tags += [(282, 5, 1, round(1e6 / mpp) | 100 << 32), (283, 5, 1, round(1e6 / mpp) | 100 << 32), (284, 3, 1, 1)]
    tags += [(296, 3, 1, 3), (322, 3, 1, TILE_PX), (323, 3, 1, TILE_PX)]
    tags += [(324, 16, count, offsets_at if count > 1 else offsets[0])]
    tags += [(325, 16, count, lengths_at if count > 1 else lengths[0]), (530, 3, 2, 1 | 1 << 16)]
    at = file.tell()
    file.write(struct.pack("<Q", len(tags)) + b"".join(struct.pack("<HHQQ", *tag) for tag in tags))
    next_link_at = file.tell()
    file.write(struct.pack("<Q", 0))
    file.seek(link_at)
    file.write(struct.pack("<Q", at))
    file.seek(0, io.SEEK_END)
    return next_link_at


def measure(slide: Path, model: Path, out: Path) -> dict[str, Any]:
    """Segment a slide in this process: processor seconds of all and of each part, and memory in GiB before and at most.

    Processor time is the same when other programs take turns; with one thread it is the time of an idle machine.
    """
    from stedm.models.ensemble import Ensemble
    from stedm.stages.segment import SegmentOptions, segment_slide

    Ensemble.from_pretrained([model]).probabilities(np.zeros((1, 512, 512, 3), np.uint8))
    seconds = dict.fromkeys(PARTS, 0.0)
    for part, (module, *owners, name) in PARTS.items():
        owner = functools.reduce(getattr, owners, importlib.import_module(f"stedm.{module}"))
        setattr(owner, name, _timed(getattr(owner, name), seconds, part))
    before, started, processor = _peak_gib(), time.perf_counter(), time.process_time()
    outcome = segment_slide(slide, out, SegmentOptions(model=(model,)))
    return {
        "wall": time.perf_counter() - started,
        "total": time.process_time() - processor,
        **seconds,
        "before": before,
        "peak": _peak_gib(),
        "says": str(outcome),
    }


def _timed(function: Any, seconds: dict[str, float], part: str) -> Any:
    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[part] += time.thread_time() - started

    return timed


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _rows(options: argparse.Namespace) -> Iterator[str]:
    for size_px in options.sizes:
        slide, out = options.out / f"{size_px}.tif", options.out / f"{size_px}"
        shutil.rmtree(out, ignore_errors=True)
        mpp = read_config(options.model)["mpp"]
        write_slide(slide, Drawing(size_px, share=options.share), size_px=size_px, mpp=mpp)
        command = [sys.executable, __file__, "--model", str(options.model), "--out", str(out), "--measure", str(slide)]
        result = json.loads(
            subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            ).stdout
        )
        regions = sum(json.loads((out / f"{size_px}.json").read_text())["outlines"].values())
        parts = " | ".join(f"{result[part]:.0f}" for part in COLUMNS)
        yield (
            f"| {size_px:,} x {size_px:,} | {parts} | {result['network'] / result['total']:.2f} "
            f"| {result['before']:.2f} | {result['peak']:.2f} | {regions:,} |"
        )
        slide.unlink()
        shutil.rmtree(out)


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a segmenter's folder")
    parser.add_argument("--out", type=Path, required=True, help="working folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[15_000, 30_000, 60_000], help="pixels")
    parser.add_argument("--share", type=float, default=0.05, help="of the area that is tissue")
    parser.add_argument("--measure", type=Path, help="segment this slide into --out, and print what it took as JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.model, options.out)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    words = [*(f"{part}, s" for part in COLUMNS), "network / total", "GiB before", "GiB peak", "regions"]
    print(f"| slide | {' | '.join(words)} |")
    print("|---" * (len(PARTS) + 6) + "|")
    for row in _rows(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
