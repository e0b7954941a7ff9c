"""Which of many files differ between two runs, and where: a failure that says it, not kilobytes of both."""

import re


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> dict[str, str]:
    """Of each file that is not the same in both: what is wrong with it. Keys: names; values: contents."""
    found = {}
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            found[name] = "only in the " + ("first" if name in one else "second")
        elif one[name] != other[name]:
            found[name] = _first_difference(one[name], other[name])
    return found


def _first_difference(one: bytes, other: bytes) -> str:
    places = [k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    place = places[0] if places else min(len(one), len(other))
    nearby = [re.sub(rb"\s+", b" ", content[max(0, place - 40) : place + 40]) for content in (one, other)]
    return f"{len(places)} of {len(one)} and {len(other)} bytes, first at {place}: {nearby[0]!r}, {nearby[1]!r}"
