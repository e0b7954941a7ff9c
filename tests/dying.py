"""`python dying.py RANK FUNCTION CALL WORDS...`: `stedm WORDS`, killed in that rank at the n-th call of a function.

It dies as by `kill -9`, but always at the same place. FUNCTION: module:name or module:class.name. Ranks take two images
at a time, so that each has some.
"""

import importlib
import itertools
import os
import signal
import sys
from typing import Any

from stedm import cli, ranks


def die_at(function: str, call: int) -> None:
    """Let the process be killed when `function` is called for the n-th time."""
    module, _, names = function.partition(":")
    *owners, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    real, calls = getattr(owner, name), itertools.count(1)

    def killed(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, name, killed)


if __name__ == "__main__":
    rank, function, call, *words = sys.argv[1:]
    ranks.PORTION = 2
    if os.environ["RANK"] == rank:
        die_at(function, int(call))
    sys.exit(cli.main(words))
