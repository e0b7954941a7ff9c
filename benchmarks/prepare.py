"""What `stedm prepare` adds to reading and writing: patches per second beside bare OpenSlide, and memory by slides.

Two generated pyramids (JPEG tiles, rendered tissue with glass around it) are cut in one process by `prepare`'s own
code: `large` has the patches' resolution, 0.5 microns; `fine` is as scanners write at 40x, 0.2527 microns and levels 1,
4 and 16. By turns with it plain loops read the same regions (also those that prove to be glass: someone must look) with
bare OpenSlide (`read_region`, RGB, `resize` where needed): one only reads, one also writes with `prepare`'s PNG
encoder; and `prepare` writes nothing, to see what its reading costs. The loops use one core, `prepare` all there are:
its threads read and write. So both ratios are given, of processor time (what the work costs) and of wall time (when it
is done), with the cores there were (`cores`) and those that each had, processor by wall time (`cores_used`): 1 for a
loop that nothing disturbed. What is written stays until all rounds are over: ext4 looks past every inode that was freed
within the last minute, so that a new file costs ten times as much where many were just removed.
Then 2 and 20 such slides are cut, in one process and in two, each time from a fresh process; its peak memory is taken,
and that of the largest process below it.

    python benchmarks/prepare.py --out runs/prepare
    python benchmarks/prepare.py --out runs/prepare-mine --slide MINE.svs    # the same of your slide, without memory
    python benchmarks/prepare.py --out runs/prepare-real --tissue SMALL.svs  # of a 20x slide with a small one's tissue
    taskset -c 0 python benchmarks/prepare.py --out runs/prepare             # on one core
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import openslide
import tifffile
from PIL import Image

from stedm.config import PrepareConfig
from stedm.data.labels import LabelMap
from stedm.data.phantom import draw_layout, draw_style
from stedm.data.phantom_render import render
from stedm.data.slide import Slide
from stedm.files import write_json
from stedm.png import write_png
from stedm.stages import prepare_slide, prepare_slides
from stedm.stages.prepare_slides import SlideTask, cut_slides, records_of

PATCH_PX, MPP = 256, 0.5
COLUMNS = ("patch_id", "slide", "x_um", "y_um", "mpp", "image")


def rendered(seed: int) -> np.ndarray:
    """Procedural tissue (1024, 1024, 3) uint8."""
    rng = np.random.default_rng(seed)
    return render(draw_layout(1024, rng), draw_style("he", rng), rng)


def pixels_of(path: Path) -> np.ndarray:
    """The pixels (H, W, 3) uint8 of a small slide's finest level."""
    with openslide.OpenSlide(str(path)) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def write_slide(path: Path, side_px: int, piece: np.ndarray, *, mpp: float = MPP, factor: int = 2) -> None:
    """A pyramid in tiles of 256 px, each level a `factor`-th of the last: tissue repeated, with glass all round."""
    repeats = [-(-side_px // size) for size in piece.shape[:2]]
    image = np.tile(piece, (*repeats, 1))[:side_px, :side_px]
    margin = side_px // 8
    image[:margin], image[-margin:], image[:, :margin], image[:, -margin:] = 240, 240, 240, 240
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 85}}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(4 if factor == 2 else 3):
            dots = 1e4 / mpp / factor**level
            resolution = {"resolution": (dots, dots), "resolutionunit": "CENTIMETER"}
            tiff.write(image, subfiletype=int(level > 0), metadata=None, **resolution, **options)
            height, width = (size // factor for size in image.shape[:2])
            squares = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
            image = np.stack([row.mean((0, 2)) for row in squares]).astype(np.uint8)  # row by row: less memory


def write_slides(folder: Path, options: argparse.Namespace) -> Path:
    """The timed slides and those whose memory is measured, unless they are there."""
    folder.mkdir(exist_ok=True)
    sides = {"large.tif": options.side} | {f"s{number:02d}.tif": options.small for number in range(20)}
    for seed, (name, side_px) in enumerate(sides.items()):
        if not (folder / name).exists():
            write_slide(folder / name, side_px, rendered(seed))
    if not (folder / "fine.tif").exists():
        write_slide(folder / "fine.tif", options.side, rendered(0), mpp=0.2527, factor=4)
    return folder


def tasks_of(paths: list[Path], mpp: float = float("nan")) -> list[SlideTask]:
    """One unannotated slide a patient; `mpp`: for slides that do not say."""
    empty = {
        "mask": "",
        "tissue": "",
        "roi": "",
        "group": "",
        "mpp": mpp,
        "laboratory": "source",
        "annotation": "",
        "annotation_origin": "slide",
    }
    rows = [{"image": str(path), "slide": path.stem, "patient": path.stem, **empty} for path in paths]
    return [SlideTask(number, SimpleNamespace(**row), f"row {number}", "", {}) for number, row in enumerate(rows)]


def cut(out: Path, tasks: list[SlideTask], jobs: int) -> None:
    """What `stedm prepare` does once the table is read and checked."""
    prepare_slides._BYTES_PER_PROCESS = 1  # as many processes as asked for, however small the slides
    labels = {"source": LabelMap.from_values([0, 1])}
    cut_slides(out, tasks, PrepareConfig(PATCH_PX, mpp=MPP), labels, jobs=jobs)


def cut_without_writing(out: Path, task: SlideTask) -> None:
    """The same, but its threads find nothing to do."""
    with mock.patch.object(prepare_slide, "write_png", lambda path, pixels: None):
        cut(out, [task], 1)


@dataclass(frozen=True)
class Regions:
    """Where patches lie, for a script that reads them with OpenSlide."""

    path: Path
    corners_um: list[tuple[float, float]]
    kept: set[tuple[float, float]]
    """Those with tissue enough to be cut."""
    mpp: float
    """Of the slide's level 0."""

    @classmethod
    def of(cls, out: Path, task: SlideTask) -> "Regions":
        """What `prepare` reads: the patches it cuts, and those it had to look at to see that they are nearly glass."""
        looked_at = []
        read = Slide.read

        def noted(slide: Slide, x_um: float, y_um: float, **size: Any) -> np.ndarray:
            looked_at.append((x_um, y_um))
            return read(slide, x_um, y_um, **size)

        with mock.patch.object(Slide, "read", noted):
            cut(out, [task], 1)
        kept = {(row.x_um, row.y_um) for row in records_of(out, [task], COLUMNS).itertuples()}
        with prepare_slide.open_slide(task.row) as slide:
            return cls(slide.path, sorted(looked_at, key=lambda corner: corner[::-1]), kept, slide.mpp)

    def read(self) -> Iterator[tuple[bool, Image.Image]]:
        """Whether it is kept, and the image: of the level `prepare` reads too, shrunk where that is finer."""
        with openslide.OpenSlide(str(self.path)) as slide:
            level = slide.get_best_level_for_downsample(MPP / self.mpp * 1.001)
            side = round(PATCH_PX * MPP / self.mpp / slide.level_downsamples[level])
            for x_um, y_um in self.corners_um:
                corner = round(x_um / self.mpp), round(y_um / self.mpp)
                image = slide.read_region(corner, level, (side, side)).convert("RGB")
                if side != PATCH_PX:
                    image = image.resize((PATCH_PX, PATCH_PX), Image.Resampling.BOX)
                yield (x_um, y_um) in self.kept, image


def read_bare(regions: Regions) -> None:
    for _ in regions.read():
        pass


def read_and_write_bare(folder: Path, regions: Regions) -> None:
    folder.mkdir(parents=True)
    for number, (kept, image) in enumerate(regions.read()):
        if kept:
            write_png(folder / f"{number}.png", np.asarray(image))


def kilobytes(folder: Path) -> float:
    """Mean size of the files."""
    return float(np.mean([path.stat().st_size for path in folder.glob("*.png")])) / 1e3


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def throughput(out: Path, task: SlideTask, repeats: int) -> dict[str, object]:
    """Patches per second of each, by turns, and what follows."""
    regions = Regions.of(out / "first", task)  # also warms the file cache up
    patches = len(regions.kept)
    actions: dict[str, Callable[[Path], None]] = {
        "prepare": lambda folder: cut(folder, [task], 1),
        "prepare_without_writing": lambda folder: cut_without_writing(folder, task),
        "bare_reads": lambda _: read_bare(regions),
        "bare_reads_and_writes": lambda folder: read_and_write_bare(folder, regions),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for number in range(repeats):
        for name, action in actions.items():
            folder = out / f"{name}-{number}"
            times[name].append(seconds(lambda action=action, folder=folder: action(folder)))
    found: dict[str, object] = {
        "patches": patches,
        "looked_at": len(regions.corners_um),
        "kb_per_patch": kilobytes(out / "first" / "images"),
        "cores": len(os.sched_getaffinity(0)),
        "cores_used": {name: max(cpu / wall for cpu, wall in times[name]) for name in actions},
    }
    for kind, name in enumerate(("processor", "wall")):
        of_rounds = {action: np.array([time[kind] for time in times[action]]) for action in actions}
        found[name] = {f"{action}_patches_per_s": patches / np.median(t) for action, t in of_rounds.items()} | {
            "prepare_over_bare_reads": _ratio(of_rounds, "prepare", "bare_reads"),
            "prepare_over_bare_reads_and_writes": _ratio(of_rounds, "prepare", "bare_reads_and_writes"),
            "the_first_without_writing": _ratio(of_rounds, "prepare_without_writing", "bare_reads"),
        }
    return found


def timings(out: Path, slides: list[Path], options: argparse.Namespace) -> dict[str, object]:
    """`throughput` of each slide by its name; what was written is removed when all is over, not before."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        return {
            slide.stem: throughput(Path(folder) / slide.stem, *tasks_of([slide], options.mpp), options.repeats)
            for slide in slides
        }


def _ratio(times: dict[str, np.ndarray], ours: str, other: str) -> dict[str, float]:
    """How much faster than another, round by round: a shared processor is steadier within one than between."""
    ratios = times[other] / times[ours]
    return {"median": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())}


def peak_mib(out: Path, slides: Path, number: int, jobs: int) -> dict[str, float]:
    """Peak memory of a fresh process that cuts so many slides, and of the largest process below it."""
    command = [sys.executable, __file__, "--out", str(out), "--slides", str(slides), "--cut", str(number), str(jobs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def cut_and_watch(out: Path, paths: list[Path], jobs: int) -> dict[str, float]:
    """Cut; peak memory of this process and of the largest of its workers, MiB."""
    largest, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.1):
            largest = max([largest, *(_peak(process.pid) for process in active_children())])

    thread = threading.Thread(target=watch)
    thread.start()
    shutil.rmtree(out, ignore_errors=True)
    cut(out, tasks_of(paths), jobs)
    ended.set()
    thread.join()
    return {"parent": _peak("self"), "largest_worker": largest}


def _peak(process: int | str | None) -> float:
    """Peak resident memory of a process since it runs its own program, MiB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=12_000, help="width and height of the timed slides, pixels")
    parser.add_argument("--small", type=int, default=4_000, help="the same of the slides whose memory is measured")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--slide", type=Path, help="time this slide and measure no memory")
    parser.add_argument("--tissue", type=Path, help="the same of a large slide, 20x, made of this small one's pixels")
    parser.add_argument("--mpp", type=float, default=float("nan"), help="microns per pixel of --slide, if it has none")
    parser.add_argument("--slides", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cut", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cut:
        paths = sorted(options.slides.glob("s*.tif"))[: options.cut[0]]
        print(json.dumps(cut_and_watch(options.out, paths, options.cut[1])))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tissue:
        options.slide = options.out / "tissue.tif"
        write_slide(options.slide, options.side, pixels_of(options.tissue), mpp=0.499)
    if options.slide:
        print(json.dumps(timings(options.out, [options.slide], options)[options.slide.stem], indent=2))
        return
    slides = write_slides(options.out / "slides", options)
    result = timings(options.out, [slides / "large.tif", slides / "fine.tif"], options)
    result["peak_mib"] = {
        f"{number} slides, {jobs} process(es)": peak_mib(options.out / "memory", slides, number, jobs)
        for number, jobs in ((2, 1), (20, 1), (2, 2), (20, 2))
    }
    write_json(options.out / "prepare.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
