"""YAML that anybody may have written: data only, in little time."""

import re
from itertools import accumulate
from typing import Any

import yaml

_MOST_DEPTH = 100
"""Brackets within brackets; the parser's time grows with the square of their number."""
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


class _Loader(yaml.SafeLoader):
    """Nothing is guessed: a key named twice is a mistake, and 010 or 1:30 are names, not 8 and 90 as in YAML 1.1."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the class above)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        named: dict[str, yaml.ScalarNode] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (first := named.setdefault(key.value, key)) is not key:
                lines = f"line {first.start_mark.line + 1} and again in line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(problem=f"{key.value[:60]!r} is in {lines}; keep one of them")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The values in `text`: numbers, words, lists and mappings. Raises ValueError, in one line, for anything else."""
    depth = accumulate((_STEP[character] for character in text if character in _STEP), initial=0)
    if max(depth) > _MOST_DEPTH:
        raise ValueError("too many brackets within brackets")
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
