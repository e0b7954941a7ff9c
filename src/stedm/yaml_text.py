"""YAML that anybody may have written: data only, in little time."""

from itertools import accumulate
from typing import Any

import yaml

_MOST_DEPTH = 100
"""Brackets within brackets; the parser's time grows with the square of their number."""
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def parse_yaml(text: str) -> Any:
    """The values in `text`: numbers, words, lists and mappings. Raises ValueError, in one line, for anything else."""
    depth = accumulate((_STEP[character] for character in text if character in _STEP), initial=0)
    if max(depth) > _MOST_DEPTH:
        raise ValueError("too many brackets within brackets")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
