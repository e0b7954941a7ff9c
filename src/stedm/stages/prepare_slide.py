"""Stage `prepare`, one slide at a time: its patches, their label maps, and a record of each."""

from collections.abc import Callable, Iterator
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
from stedm.png import Writer, write_png
from stedm.stages.alignment import ALIGNMENT, write_alignment
from stedm.stages.slide_overlay import overlay

Corner = tuple[int, int]
Tick = Callable[[float, int], None]
"""Called as the work goes on with the share of the slide that is done (0 to 1) and the patches written."""

_BLOCK = 8
"""Patches are cut in blocks of so many by so many: neighbours share the slide's tiles while these are still decoded."""


def open_slide(row: Any) -> Slide:
    """The slide that a row of the cohort table names, with the table's microns per pixel if it has them."""
    return Slide.open(row.image, mpp=None if np.isnan(row.mpp) else row.mpp)


def source_name(position: int) -> str:
    """What patches of the row at `position` of all tables are known by: name of its files, value of column `source`."""
    return f"r{position:05d}"


class SlideCutter:
    """Cuts the patches of one cohort row after the other into images/ and masks/.

    Files are written in place, beside the reading: whoever calls must remove those of a slide that was not finished.
    """

    def __init__(self, out: Path, config: PrepareConfig, labels: LabelMap) -> None:
        self._out, self._config, self._labels = out, config, labels
        self._of_uncovered = np.uint8(glass_label(labels)), np.uint8(uncovered_label(labels))
        for name in ("images", "masks"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def cut(self, position: int, row: Any, tick: Tick) -> list[dict[str, Any]]:
        """Write the patches of the slide in `row`; their records, without roles, row by row.

        Raises DamagedSlide, and UserError for what is wrong with its annotation or areas.
        """
        patch_px = self._config.patch_px
        with open_slide(row) as slide, Writer(write_png) as writer:
            mpp = self._config.mpp or slide.mpp
            origin = row.annotation_origin
            areas = {name: open_area(getattr(row, name), slide, origin=origin) for name in ("tissue", "roi")}
            tissue = SlideTissue(slide, patch_um=patch_px * mpp, **areas)
            corners = self._occupied(slide, tissue, mpp)
            records = list(self._patches(position, row, slide, tissue, corners, mpp, tick, writer))
        if tissue.is_slide or any(areas.values()):
            self._show(position, tissue, records, mpp)
        return sorted(records, key=lambda record: (record["y_um"], record["x_um"]))

    def _patches(
        self,
        position: int,
        row: Any,
        slide: Slide,
        tissue: SlideTissue,
        corners: list[Corner],
        mpp: float,
        tick: Tick,
        writer: Writer,
    ) -> Iterator[dict[str, Any]]:
        patch_px = self._config.patch_px
        source = self._label_source(position, row, slide)
        for x, y in _in_blocks(corners, patch_px):
            image = slide.read(x * mpp, y * mpp, size_px=patch_px, mpp=mpp)
            fraction, roi = tissue.of_patch(image, x * mpp, y * mpp, mpp=mpp)
            kept = fraction >= self._config.min_tissue and (roi is None or bool(roi.any()))
            if kept:
                record = self._record(position, row, f"x{x:06d}-y{y:06d}")
                files = [(self._out / record["image"], image)]
                if source is not None:
                    label_map = source.read(x * mpp, y * mpp, size_px=patch_px, mpp=mpp)
                    if (uncovered := label_map == UNCOVERED).any():
                        glass = tissue.glass(image, x * mpp, y * mpp, mpp=mpp)
                        label_map[uncovered] = np.where(glass, *self._of_uncovered)[uncovered]
                    if roi is not None:
                        label_map[~roi] = IGNORE
                    record |= self._labelled(record["patch_id"], label_map)
                    files.insert(0, (self._out / record["mask"], label_map))
                writer.put(*files)
                yield record | {"x_um": x * mpp, "y_um": y * mpp, "mpp": mpp, "tissue_fraction": fraction}
            tick(1 / len(corners), int(kept))

    def _label_source(self, position: int, row: Any, slide: Slide) -> LabelSource | None:
        """What gives the slide's label maps; of polygons, a picture is left behind."""
        if row.mask:
            return MaskFile(row.mask, self._labels, mpp=slide.mpp)
        if not row.annotation:
            return None
        annotation = open_annotation(row.annotation, slide, origin=row.annotation_origin, slide_name=row.slide)
        folder, name = self._out / ALIGNMENT, source_name(position)
        write_alignment(folder, name, slide=slide, annotation=annotation, labels=self._labels)
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

    def _record(self, position: int, row: Any, place: str) -> dict[str, Any]:
        patch_id = f"{_safe(row.slide)}-{source_name(position)}-{place}"
        return {
            "patch_id": patch_id,
            "patient": row.patient,
            "laboratory": row.laboratory,
            "slide": row.slide,
            "source": source_name(position),
            "group": row.group,
            "has_mask": bool(row.mask or row.annotation),
            "image": f"images/{patch_id}.png",
            "mask": "",
        }

    def _labelled(self, patch_id: str, label_map: np.ndarray) -> dict[str, Any]:
        """Path of a patch's label map, and the share of each class in it."""
        fields: dict[str, Any] = {"mask": f"masks/{patch_id}.png"}
        counts = np.bincount(label_map[label_map != IGNORE], minlength=len(self._labels.classes))
        if counts.sum():
            shares = (counts / counts.sum()).tolist()
            fields |= {f"fraction_{name}": share for name, share in zip(self._labels.classes, shares, strict=True)}
        return fields

    def _show(self, position: int, tissue: SlideTissue, records: list[dict[str, Any]], mpp: float) -> None:
        places_um = [(record["x_um"], record["y_um"]) for record in records]
        (self._out / "overlays").mkdir(exist_ok=True)
        picture = overlay(tissue, places_um, patch_um=self._config.patch_px * mpp)
        picture.save(self._out / "overlays" / f"{source_name(position)}.png")


def _in_blocks(corners: list[Corner], patch_px: int) -> list[Corner]:
    side = _BLOCK * patch_px
    return sorted(corners, key=lambda corner: (corner[1] // side, corner[0] // side, corner[1], corner[0]))


def _safe(name: str) -> str:
    """`name` as part of a file name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)[:48]
