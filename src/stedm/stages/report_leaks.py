"""Leaks: a patient with two roles, or an image that stands in two roles under other names."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

_MOST_NAMED = 3


def leaks(data: Path, patches: pd.DataFrame | None) -> list[str]:
    """Say, a sentence each, which patients have two roles and which images are in two roles byte for byte.

    Roles are train, val, test and unseen. Patches without tissue are not compared: one piece of bare glass may well
    equal another.

    Args:
        data: the run's data folder.
        patches: its patches table, if there.
    """
    if patches is None:
        return []
    roles = patches.groupby("patient")["split"].agg(lambda splits: sorted(set(splits)))
    found = [
        f"Leak: patient {patient} has the roles {' and '.join(splits)}; every patient must have one."
        for patient, splits in roles[roles.map(len) > 1].items()
    ]
    pairs = _identical(data, patches)
    if pairs:
        named = "; ".join(f"{a} = {b}" for a, b in pairs[:_MOST_NAMED])
        more = f" and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else ""
        found.append(
            f"Leak: the same image stands in two roles ({named}{more}); look for copies in the cohort table, or for "
            "one patient under two names."
        )
    return found


def _identical(data: Path, patches: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs "role patch" of equal images in different roles; only files of equal size are read."""
    tissue = patches[patches["tissue_fraction"] > 0] if "tissue_fraction" in patches else patches
    by_size: dict[int, list[tuple[str, str, str]]] = defaultdict(list)
    for split, patch_id, name in zip(tissue["split"], tissue["patch_id"], tissue["image"], strict=True):
        path = data / name
        if path.is_file():
            by_size[path.stat().st_size].append((split, patch_id, name))
    pairs = []
    for members in by_size.values():
        if len({split for split, *_ in members}) > 1:
            pairs += _equal_pairs(data, members)
    return sorted(pairs)


def _equal_pairs(data: Path, members: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """For each image that is there again in another role, its first occurrence and that one."""
    by_content: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split, patch_id, name in members:
        by_content[hashlib.sha256((data / name).read_bytes()).digest()].append((split, patch_id))
    pairs = []
    for same in by_content.values():
        first = same[0]
        pairs += [(" ".join(first), " ".join(other)) for other in same[1:] if other[0] != first[0]]
    return pairs
