"""Command line of `stedm generate --model`: its options, and the calls they stand for."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from stedm.errors import UserError
from stedm.ranks import together

EXAMPLE = "stedm generate --model runs/demo/diffusion --style-slide NEW.svs --layouts FOLDER --n 64 --out runs/new"
SAMPLING = {
    "nfe": (int, "network evaluations per image and guidance branch"),
    "solver": (str, "euler, heun or multistep"),
    "guidance": (str, "how the two scales combine: nested or composed"),
    "layout_guidance": (float, "layout guidance scale; 1 means none"),
    "style_guidance": (float, "style guidance scale; 1 means none"),
    "grain": (float, "how much of the scanner's noise in the style images is added; 0 adds none"),
    "bands": (float, "how far, 0 to 1, the colours of each octave are moved to those of the style images"),
}
"""Options that replace the model's own sampling settings."""


def asks_for(words: Sequence[str]) -> bool:
    """Whether the words after `stedm generate` ask for this command: they name a model or a style, not a run."""
    return any(word.split("=")[0] in ("--model", "--style-images", "--style-slide") for word in words)


class _Parser(argparse.ArgumentParser):
    """A mistake is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"generate: {message}; `stedm generate --model DIR --help` lists the options")


def parser() -> argparse.ArgumentParser:
    """The options of `stedm generate --model`."""
    parser = _Parser(
        prog="stedm generate",
        description="stedm generate --model: labelled images in the style of a slide or of a few images that no stage"
        " has seen. The same command continues what was interrupted, and with a larger --n adds to it.",
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", metavar="DIR", required=True, help="a trained generator: `diffusion` or `few_step` of a run")
    style = parser.add_mutually_exclusive_group(required=True)
    style.add_argument("--style-slide", metavar="FILE", help="slide to take the style from; only its tissue is read")
    style.add_argument("--style-images", metavar="PATH", nargs="+", help="images of one style, or folders of them")
    add("--layouts", help="folder of label maps with the model's class values, 255 unknown; larger ones lend windows,"
        " smaller ones are unknown around; or real, prior, real+prior (default), as in a run")  # fmt: skip
    add("--run", metavar="DIR", help="run that lends layouts (default: the one the model lies in)")
    add("--n", type=int, default=64, help="images (default: 64)")
    add("--out", metavar="DIR", required=True, help="folder for images, masks, plan, manifest and contact sheet")
    add("--style-set-size", type=int, default=4, help="style images per drawn image (default: 4)")
    add("--min-tissue", type=float, default=0.5, help="least share of tissue in a style image (default: 0.5; 0: any)")
    add("--style-mpp", type=float, help="microns per pixel of the style slide, for files that do not say, or of the"
        " style images (default: the model's, not what the files say)")  # fmt: skip
    add("--mpp", type=float, help="microns per pixel the model draws at, for models that do not say")
    add("--patch-px", type=int, help="width of the images in pixels (default: that of the model's patches)")
    for name, (kind, text) in SAMPLING.items():
        add(f"--{name.replace('_', '-')}", type=kind, help=f"{text} (default: the model's own)")
    add("--seed", type=int, default=0, help="seed of plan and images (default: 0)")
    add("--batch-size", type=int, default=16, help="images at a time; changes images by rounding alone (default: 16)")
    return parser


def run(words: Sequence[str]) -> int:
    """Run the command; the exit code. Raises UserError for mistakes."""
    options = parser().parse_args(words)
    for name in ("n", "style_set_size", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    for name in ("patch_px", "mpp", "style_mpp"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: give a number above 0")
    together(draw, options)
    print(
        f"done: {options.n} images in {options.out}, listed in manifest.parquet; next: look at"
        f" {options.out}/contact_sheet.png; for more, the same command with a larger --n"
    )
    return 0


def draw(options: argparse.Namespace) -> None:
    """Make and write the images; ranks share their rows out."""
    from stedm.data.style_pool import image_files
    from stedm.stages.generate_for_style import (
        find_layouts,
        find_style_sets,
        generate_for_style,
        load_generator,
        run_of,
    )

    model = load_generator(options.model, patch_px=options.patch_px, mpp=options.mpp)
    sources = [options.style_slide] if options.style_slide else image_files(options.style_images)
    source_mpp = options.style_mpp if options.style_slide or options.style_mpp else model.mpp
    if not options.style_slide and options.style_mpp is None and model.mpp is not None:
        print(f"style images are taken to have the model's {model.mpp:g} microns per pixel; --style-mpp says otherwise")
    layouts = find_layouts(options.layouts, options.run or run_of(options.model), model)
    for notice in layouts.notices():
        print(notice)
    chosen = {"source_mpp": source_mpp, "seed": options.seed}
    sets = find_style_sets(sources, model, set_size=options.style_set_size, min_tissue=options.min_tissue, **chosen)
    generate_for_style(
        model,
        layouts,
        sets,
        options.out,
        num_images=options.n,
        sampling={name: getattr(options, name) for name in SAMPLING},
        batch_size=options.batch_size,
        **chosen,
    )
