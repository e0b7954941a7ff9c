"""Command line of `stedm export`."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from stedm.errors import UserError

HELP = "a synthetic set for other tools: folders, nnU-Net, Parquet, WebDataset"
_FORMATS = ("folders", "nnunet", "parquet", "webdataset")
_SHARDED = ("parquet", "webdataset")
_SHARD_SIZE = 1000
_EXAMPLE = """example:
  stedm export runs/my --format nnunet --out nnUNet_raw/Dataset501_my

folders     images/KEY.png, masks/KEY.png, metadata.jsonl
nnunet      nnU-Net v2 raw format: imagesTr/, labelsTr/, dataset.json; --out is a folder named DatasetNNN_NAME
parquet     data/*.parquet, which `datasets.load_dataset` reads
webdataset  shard-*.tar of KEY.image.png, KEY.mask.png, KEY.json

Each has a README.md (dataset card): classes, counts, generator, licence.
A killed command continues where it stopped."""


class _Parser(argparse.ArgumentParser):
    """A mistake is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"export: {message}; `stedm export --help` lists the options")


def parser() -> argparse.ArgumentParser:
    """The options of `stedm export`."""
    parser = _Parser(
        prog="stedm export",
        description=f"stedm export: {HELP}.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("set", metavar="FOLDER", help="run, or synthetic set: of a run, or written by `stedm generate --model`")
    add("--format", choices=_FORMATS, required=True, help="what to write, see below")
    add("--out", metavar="DIR", required=True, help="new folder for it")
    add("--all", action="store_true", help="also what the filter dropped (default: what it kept)")
    add("--with-real", action="store_true", help="the annotated training patches of the run too: images of patients")
    add("--shard-size", type=int, metavar="N", help=f"pairs a file, parquet and webdataset (default: {_SHARD_SIZE})")
    return parser


def export(words: Sequence[str]) -> int:
    """Run the command; the exit code. Raises UserError for mistakes."""
    options = parser().parse_args(words)
    if options.shard_size is not None and (options.shard_size < 1 or options.format not in _SHARDED):
        raise UserError(f"--shard-size {options.shard_size}: 1 or more, and of {' and '.join(_SHARDED)} only")
    from stedm.stages.export import CARD
    from stedm.stages.export import export as write
    from stedm.stages.export_set import find_set

    source = find_set(options.set, everything=options.all, with_real=options.with_real)
    write(source, options.out, format_name=options.format, shard_size=options.shard_size or _SHARD_SIZE)
    print(
        f"done: {len(source.pairs)} pairs in {options.out}; next: open {options.out}/{CARD}, which says how to read it"
    )
    return 0
