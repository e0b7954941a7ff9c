"""Command line of `stedm segment`."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from stedm.errors import UserError
from stedm.ranks import place

HELP = "slides -> label maps, outlines for QuPath, areas"
_EXAMPLE = """example:
  stedm segment slides/*.svs --model runs/my --out segmentation

For each slide, --out then holds NAME.tif (label map, a pyramid that QuPath and OpenSlide open; its pixels are class
numbers, 255 where nothing was predicted), NAME.geojson (outlines: drag it onto the slide in QuPath) and NAME.json;
areas.csv has the area of each class in mm^2. A killed command continues where it stopped. A slide that cannot be read
is skipped; the exit code is then 1."""


def segment(words: Sequence[str]) -> int:
    """Run the command; exit code 0, or 1 when slides were skipped. Raises UserError for wrong arguments."""
    options, unknown = parser().parse_known_args(words)
    _check(options, unknown)
    from stedm.data.slide_files import find_slides
    from stedm.segment import AREAS, segment_slides
    from stedm.stages.segment import SegmentOptions
    from stedm.stages.segmenter_choice import chosen_segmenters

    slides, out = find_slides(options.slides), Path(options.out)
    if options.tissue and len(slides) > 1 and not Path(options.tissue).is_dir():
        raise UserError(f"--tissue: for {len(slides)} slides name a folder of files with their names, NAME.geojson")
    settings = SegmentOptions(
        model=chosen_segmenters(Path(options.model)),
        mpp=options.mpp,
        window_px=options.window_px,
        overlap_px=options.overlap_px,
        everywhere=options.everywhere,
        tissue=Path(options.tissue) if options.tissue else None,
        min_area_um2=options.min_area_um2,
        tolerance_px=options.tolerance_px,
        classes=tuple(options.classes.split(",")) if options.classes else None,
        origin=options.origin,
        gz=options.gz,
    )
    print(f"model: {', '.join(map(str, settings.model))}")
    failed = segment_slides(slides, out, settings, jobs=min(options.jobs or _default_jobs(), len(slides)))
    made = [slide for slide in slides if slide not in failed]
    if made:
        geojson = out / f"{made[0].stem}.geojson"
        unpack = f"gunzip --keep {shlex.quote(f'{geojson}.gz')}, " if options.gz else ""
        print(f"next: {unpack}open {made[0]} in QuPath and drag {geojson} onto it; areas: {out / AREAS}")
    if failed:
        print(f"{len(failed)} of {len(slides)} slides were skipped; the same command tries them again")
    return 1 if failed else 0


def _check(options: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Raises UserError for what needs no file to be seen as wrong."""
    if unknown:
        raise UserError(f"unexpected argument {unknown[0]!r}; `stedm segment --help` lists the options")
    if not options.slides or options.model is None:
        raise UserError("name slides and a model: stedm segment SLIDE... --model RUN")
    if options.window_px < 1:
        raise UserError(f"--window_px {options.window_px}: give 1 or more")
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: give 1 or more")
    if not 0 <= 2 * options.overlap_px <= options.window_px:
        raise UserError("--overlap_px: from 0 to half of --window_px")
    if options.mpp is not None and not 0 < options.mpp < float("inf"):
        raise UserError("--mpp: microns per pixel, above 0")
    if not all(0 <= value < float("inf") for value in (options.min_area_um2, options.tolerance_px)):
        raise UserError("--min_area_um2, --tolerance_px: 0 or more")
    if options.tissue and options.everywhere:
        raise UserError("--tissue and --everywhere: leave one of them out")


def _default_jobs() -> int:
    import torch

    if place().world > 1:
        return 1
    return max(torch.cuda.device_count(), 1) if torch.cuda.is_available() else min(4, len(os.sched_getaffinity(0)))


def parser() -> argparse.ArgumentParser:
    """The options of `stedm segment`."""
    parser = argparse.ArgumentParser(
        prog="stedm segment",
        description=f"stedm segment: {HELP}.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("slides", nargs="*", metavar="SLIDE", help="slide or image, pattern in quotes, or folder")
    add("--model", help="segmenter's folder; an arm's: mean of its seeds; a run's: its best arm, not by test patients")
    add("--out", default="segmentation", help="folder of the results (default: segmentation)")
    add("--mpp", type=float, help="microns per pixel of the slides, where files do not say, or say it wrong")
    add(
        "--jobs",
        type=int,
        help="slides at the same time (default: one per CPU core, at most 4; one per GPU; 1 with torchrun)",
    )
    add("--origin", choices=["bounds", "slide"], default="bounds", help="(0, 0) of polygons (default: bounds, QuPath)")
    add("--gz", action="store_true", help="write NAME.geojson.gz; QuPath wants it unpacked: gunzip --keep")
    add("--classes", help="classes that get outlines, separated by commas (default: all)")
    add("--min_area_um2", type=float, default=100.0, help="no outlines of regions and holes below this (default: 100)")
    add("--tolerance_px", type=float, default=0.4, help="of outlines, label map pixels; 0: pixel edges (default: 0.4)")
    add("--everywhere", action="store_true", help="predict glass too; default: tissue and 50 microns around it")
    add(
        "--tissue",
        help="predict in here instead: mask or GeoJSON of the slide, or folder of NAME.png, NAME.geojson, ...",
    )
    add("--window_px", type=int, default=512, help="window the network sees at a time (default: 512)")
    add("--overlap_px", type=int, default=128, help="overlap of windows (default: 128)")
    return parser
