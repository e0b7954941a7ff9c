"""Command line of `stedm studio`."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from stedm.errors import UserError

HELP = "a local page: paint, draw, look through, compare, segment"
EXAMPLE = "stedm studio runs/demo"


class _Parser(argparse.ArgumentParser):
    """A mistake is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"studio: {message}; `stedm studio --help` lists the options")


def parser() -> argparse.ArgumentParser:
    """The options of `stedm studio`."""
    parser = _Parser(
        prog="stedm studio",
        description=f"stedm studio: {HELP}. The page is served to this machine alone (127.0.0.1) and loads nothing from"
        " any other. Whoever can open it can read images with it that you can read: paths of slides are yours to type.",
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, finished as far as you want to use it")
    parser.add_argument("--port", type=int, default=7860, help="port on this machine (default: 7860)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    return parser


def run(words: Sequence[str]) -> int:
    """Run the command until it is interrupted; the exit code. Raises UserError for mistakes."""
    options = parser().parse_args(words)
    from stedm.studio.server import serve

    serve(options.run, port=options.port, open_browser=not options.no_browser)
    return 0
