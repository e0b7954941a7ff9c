"""Which files a user means by names, patterns and folders of slides."""

import glob
from collections.abc import Iterable
from pathlib import Path

import openslide

from stedm.data.label_pyramid import is_label_pyramid
from stedm.data.slide_formats import PLAIN_SUFFIXES
from stedm.errors import UserError

_SCANNERS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu")
_SUFFIXES = (*PLAIN_SUFFIXES, *_SCANNERS, ".tif", ".tiff")


def find_slides(names: Iterable[str | Path]) -> list[Path]:
    """Files named one by one, by patterns with `*`, or by their folder (of which all images and slides, not deeper).

    Each once, in the order given, those of a pattern or folder by name, without label maps of ours. Raises UserError
    for names that stand for nothing, for a label map of ours, and for two slides of a stem: results are named by it.
    """
    slides: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = [file for file in _files(path.iterdir()) if is_slide(file)]
        elif path.exists():
            if is_label_pyramid(path):
                raise UserError(f"{path}: a label map that `stedm segment` wrote; name the slide")
            found = [path]
        else:
            found = _files(map(Path, glob.glob(str(name))))
        if not found:
            raise UserError(f"{name}: {'no slide or image in it' if path.is_dir() else 'not found'}; correct the path")
        slides.update(dict.fromkeys(found))
    of_stem: dict[str, Path] = {}
    for path in slides:
        other = of_stem.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"{path} and {other}: results would have the same name; segment one into another --out")
    return list(slides)


def _files(paths: Iterable[Path]) -> list[Path]:
    """Files by name, without label maps of ours."""
    return [path for path in sorted(paths) if path.is_file() and not is_label_pyramid(path)]


def is_slide(path: Path) -> bool:
    """Whether a file is an image or a slide, by its suffix, damaged or not, or by its beginning."""
    if path.name.startswith("."):
        return False
    return path.suffix.lower() in _SUFFIXES or openslide.OpenSlide.detect_format(str(path)) is not None
