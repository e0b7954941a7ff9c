"""Reading regions of slides: `Slide.read` beside bare OpenSlide, by file format and resolution.

    python benchmarks/reading.py --out runs/reading-benchmark

One generated image, as a pyramid in JPEG tiles (read by OpenSlide, below `Slide` too) and as an OME-TIFF of the same
tiles (read by tifffile and our own cache). Regions of 256 px at places drawn at random, so that hardly a tile is met
twice, or side by side, as `prepare` reads; at a resolution that the file has, and at one between two levels, which is
averaged. By turns with it a plain loop reads the same regions of the pyramid with OpenSlide: `read_region` of the level
that is fine enough, RGB, Pillow's box filter. One thread; every turn opens the file anew.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from common import report, rounds
from PIL import Image
from prepare import MPP, rendered, write_slide

from stedm.data.slide import Slide

PX = 256
Corners = list[tuple[float, float]]


def write_ome(path: Path, pyramid: Path) -> None:
    """The levels of a pyramid as an OME-TIFF, whose smaller levels are sub-images of the first."""
    with tifffile.TiffFile(pyramid) as file, tifffile.TiffWriter(path, bigtiff=True, ome=True) as ome:
        levels = [page.asarray() for page in file.pages]
        options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg"}
        options["compressionargs"] = {"level": 85}
        sizes = {"PhysicalSizeX": MPP, "PhysicalSizeY": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
        ome.write(levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS"} | sizes, **options)
        for level in levels[1:]:
            ome.write(level, subfiletype=1, **options)


def corners(side_um: float, mpp: float, count: int, *, at_random: bool) -> Corners:
    """Of so many regions that lie in the slide and begin at a pixel of it, microns."""
    step, rng = PX * mpp, np.random.default_rng(0)
    if at_random:
        return [tuple(pair) for pair in (rng.integers(0, int((side_um - step) / MPP), (count, 2)) * MPP).tolist()]
    across = int(side_um // step)
    return [(k % across * step, k // across * step) for k in range(min(count, across**2))]


def read(path: Path, places: Corners, mpp: float) -> None:
    """By the product's own code."""
    with Slide.open(path) as slide:
        for x_um, y_um in places:
            slide.read(x_um, y_um, size_px=PX, mpp=mpp)


def read_bare(path: Path, places: Corners, mpp: float) -> None:
    """By OpenSlide alone."""
    with openslide.OpenSlide(str(path)) as slide:
        level = slide.get_best_level_for_downsample(mpp / MPP * 1.001)
        side = round(PX * mpp / MPP / slide.level_downsamples[level])
        for x_um, y_um in places:
            image = slide.read_region((round(x_um / MPP), round(y_um / MPP)), level, (side, side)).convert("RGB")
            np.asarray(image if side == PX else image.resize((PX, PX), Image.Resampling.BOX))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=12_000, help="of the slide, pixels")
    parser.add_argument("--regions", type=int, default=300, help="read in a turn")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pyramid, ome = options.out / "pyramid.tif", options.out / "pyramid.ome.tif"
    write_slide(pyramid, options.side, rendered(0))
    write_ome(ome, pyramid)
    rows: list[dict[str, Any]] = []
    for at_random in (True, False):
        for mpp in (MPP, 1.5 * MPP):
            places = corners(options.side * MPP, mpp, options.regions, at_random=at_random)
            actions: dict[str, Callable[[], object]] = {
                "pyramid, bare OpenSlide": partial(read_bare, pyramid, places, mpp),
                "pyramid": partial(read, pyramid, places, mpp),
                "OME-TIFF": partial(read, ome, places, mpp),
            }
            times = {name: found[:, 0] for name, found in rounds(actions, options.repeats).items()}
            for name, found in times.items():
                speed = times["pyramid, bare OpenSlide"] / found
                row = {"regions": "at random" if at_random else "side by side", "microns per pixel": mpp, "read": name}
                row |= {
                    "regions/s processor": len(places) / float(np.median(found)),
                    "times bare": float(np.median(speed)),
                }
                rows.append(row | {"least": float(speed.min()), "most": float(speed.max())})
    report(options.out / "reading.json", rows)


if __name__ == "__main__":
    main()
