"""Stage `prepare`, one slide at a time: its patches, their label maps, and a record of each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stedm.config import IGNORE, PrepareConfig
from stedm.data.area import open_area
from stedm.data.label_source import LabelSource, MaskFile, open_annotation, polygon_labels
from stedm.data.labels import LabelMap
from stedm.data.patches import tile_grid
from stedm.data.polygon_classes import UNCOVERED, glass_label, uncovered_label
from stedm.data.slide import Slide
from stedm.data.slide_tissue import SlideTissue
from stedm.errors import UserError
from stedm.files import writing
from stedm.png import write_png
from stedm.stages.alignment import ALIGNMENT, write_alignment, write_mask_alignment
from stedm.stages.slide_overlay import overlay
from stedm.threads import in_threads

Corner = tuple[int, int]
Tick = Callable[[float, int], None]
"""Called as the work goes on with the share of the slide that is done (0 to 1) and the patches written."""

_MOST_ACROSS, _BLOCKS_PER_THREAD = 8, 4
"""Patches are cut in blocks of up to 8 by 8, as neighbours share the slide's tiles while these are still decoded; of
small slides in smaller ones, so that all threads have some."""
MOST_ENLARGED = 4
"""What makes an image larger than this many times is a mistake in its resolution: it has no such detail."""


def open_slide(row: Any) -> Slide:
    """The slide that a row of the cohort table names, with the table's microns per pixel if it has them."""
    return Slide.open(row.image, mpp=None if np.isnan(row.mpp) else row.mpp)


def source_name(position: int) -> str:
    """What patches of the row at `position` of all tables are known by: name of its files, value of column `source`."""
    return f"r{position:05d}"


class SlideCutter:
    """Cuts the patches of one cohort row after the other into images/ and masks/.

    Files are written in place: whoever calls must remove those of a slide that was not finished.
    """

    def __init__(self, out: Path, config: PrepareConfig, labels: LabelMap, *, threads: int = 1) -> None:
        """threads: that read, look at and write patches of a slide, each on its own."""
        self._out, self._config, self._labels, self._threads = out, config, labels, threads
        for name in ("images", "masks"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def cut(self, position: int, row: Any, tick: Tick) -> list[dict[str, Any]]:
        """Write the patches of the slide in `row`; their records, without roles, row by row.

        Raises DamagedSlide, and UserError for what is wrong with its annotation or areas.
        """
        patch_px = self._config.patch_px
        with open_slide(row) as slide:
            mpp = self._config.mpp or slide.mpp
            if slide.mpp > MOST_ENLARGED * mpp:
                raise UserError(
                    f"{row.image}: at {slide.mpp:g} microns per pixel it would be enlarged {slide.mpp / mpp:.0f} times"
                    f" to {mpp:g}; correct its mpp (table, cohort.mpp) or prepare.mpp"
                )
            known = {"origin": row.annotation_origin, "slide_name": row.slide}
            areas = {name: open_area(getattr(row, name), slide, **known) for name in ("tissue", "roi")}
            tissue = SlideTissue(slide, patch_um=patch_px * mpp, threads=self._threads, **areas)
            corners = self._occupied(slide, tissue, mpp)
            source = self._label_source(position, row, slide, pictured=tissue.is_slide)
            patches = _Patches(self._out, self._config, self._labels, position, row, slide, tissue, source, mpp)
            records = []
            for block, found in in_threads(patches.write, self._in_blocks(corners), self._threads):
                records += found
                tick(len(block) / len(corners), len(found))
        if tissue.is_slide or any(areas.values()):
            self._show(position, tissue, records, mpp)
        return sorted(records, key=lambda record: (record["y_um"], record["x_um"]))

    def _in_blocks(self, corners: list[Corner]) -> list[list[Corner]]:
        across = math.isqrt(len(corners) // (_BLOCKS_PER_THREAD * self._threads))
        side_px = min(max(1, across), _MOST_ACROSS) * self._config.patch_px
        blocks: dict[Corner, list[Corner]] = {}
        for x, y in corners:
            blocks.setdefault((y // side_px, x // side_px), []).append((x, y))
        return [blocks[place] for place in sorted(blocks)]

    def _label_source(self, position: int, row: Any, slide: Slide, *, pictured: bool) -> LabelSource | None:
        """What gives the slide's label maps; a picture is left behind of polygons, and of a mask if `pictured`."""
        path = self._out / ALIGNMENT / source_name(position)
        if row.mask:
            mask = MaskFile(row.mask, self._labels, mpp=slide.mpp)
            if pictured:
                write_mask_alignment(path, slide=slide, mask=mask, labels=self._labels)
            return mask
        if not row.annotation:
            return None
        annotation = open_annotation(row.annotation, slide, origin=row.annotation_origin, slide_name=row.slide)
        write_alignment(path, slide=slide, annotation=annotation, labels=self._labels)
        return polygon_labels(annotation, self._labels, slide)

    def _occupied(self, slide: Slide, tissue: SlideTissue, mpp: float) -> list[Corner]:
        """Corners of the patches in the scanned area that are not all glass in an overview."""
        patch_px = self._config.patch_px
        size_px = slide.size_px(mpp)
        left, top, width, height = (px * slide.mpp / mpp for px in slide.bounds_px)
        return [
            (x, y)
            for x, y in tile_grid(size_px[0], size_px[1], patch_px)
            if x < left + width and y < top + height and x + patch_px > left and y + patch_px > top
            if self._config.min_tissue <= 0 or tissue.may_hold(x * mpp, y * mpp, width_um=patch_px * mpp)
        ]

    def _show(self, position: int, tissue: SlideTissue, records: list[dict[str, Any]], mpp: float) -> None:
        places_um = [(record["x_um"], record["y_um"]) for record in records]
        (self._out / "overlays").mkdir(exist_ok=True)
        picture = overlay(tissue, places_um, patch_um=self._config.patch_px * mpp)
        picture.save(self._out / "overlays" / f"{source_name(position)}.png")


@dataclass(frozen=True)
class _Patches:
    """The patches of one slide, for several threads."""

    out: Path
    config: PrepareConfig
    labels: LabelMap
    position: int
    row: Any
    slide: Slide
    tissue: SlideTissue
    source: LabelSource | None
    mpp: float

    def write(self, corners: list[Corner]) -> list[dict[str, Any]]:
        """Read patches and write those with tissue to cut; the records of these."""
        return [record for x, y in corners if (record := self._write_one(x, y)) is not None]

    def _write_one(self, x: int, y: int) -> dict[str, Any] | None:
        place = {"x_um": x * self.mpp, "y_um": y * self.mpp, "mpp": self.mpp}
        image = self.slide.read(**place, size_px=self.config.patch_px)
        fraction, roi = self.tissue.of_patch(image, **place)
        if fraction < self.config.min_tissue or not (roi is None or roi.any()):
            return None
        record = self._record(f"x{x:06d}-y{y:06d}")
        if self.source is not None:
            label_map = self._label_map(self.source, image, roi, place)
            record |= self._labelled(record["patch_id"], label_map)
            self._save(record["mask"], label_map)
        self._save(record["image"], image)
        return record | place | {"tissue_fraction": fraction}

    def _label_map(
        self, source: LabelSource, image: np.ndarray, roi: np.ndarray | None, place: dict[str, float]
    ) -> np.ndarray:
        label_map = source.read(**place, size_px=self.config.patch_px)
        if (uncovered := label_map == UNCOVERED).any():
            glass = self.tissue.glass(image, **place)
            values = np.uint8(glass_label(self.labels)), np.uint8(uncovered_label(self.labels))
            label_map[uncovered] = np.where(glass, *values)[uncovered]
        if roi is not None:
            label_map[~roi] = IGNORE
        return label_map

    def _save(self, name: str, pixels: np.ndarray) -> None:
        with writing(self.out / name):
            write_png(self.out / name, pixels)

    def _record(self, place: str) -> dict[str, Any]:
        row, source = self.row, source_name(self.position)
        patch_id = f"{_safe(row.slide)}-{source}-{place}"
        return {
            "patch_id": patch_id,
            "patient": row.patient,
            "laboratory": row.laboratory,
            "slide": row.slide,
            "source": source,
            "group": row.group,
            "has_mask": bool(row.mask or row.annotation),
            "image": f"images/{patch_id}.png",
            "mask": "",
        }

    def _labelled(self, patch_id: str, label_map: np.ndarray) -> dict[str, Any]:
        """Path of a patch's label map, and the share of each class in it."""
        fields: dict[str, Any] = {"mask": f"masks/{patch_id}.png"}
        counts = np.bincount(label_map[label_map != IGNORE], minlength=len(self.labels.classes))
        if counts.sum():
            shares = (counts / counts.sum()).tolist()
            fields |= {f"fraction_{name}": share for name, share in zip(self.labels.classes, shares, strict=True)}
        return fields


def _safe(name: str) -> str:
    """`name` as part of a file name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)[:48]
