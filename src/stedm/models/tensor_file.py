"""Files of tensors that torch wrote, which may be anybody's."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: Path) -> Any:
    """What torch saved in a file, on the CPU, without running anything of it.

    Raises ValueError for a file that would unpack to more than it is, and what torch raises for a damaged one.
    """
    refuse_packed(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def refuse_packed(path: Path) -> None:
    """Raise ValueError for an archive whose entries are more than the file: torch packs none, and would unpack them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"its {path.stat().st_size} bytes would unpack to {size}")
