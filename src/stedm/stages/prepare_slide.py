"""Stage `prepare`, one slide at a time: its patches, their label maps, and a record of each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stedm.config import IGNORE, PrepareConfig
from stedm.data.label_source import LabelSource, MaskFile, open_annotation, polygon_labels
from stedm.data.labels import LabelMap
from stedm.data.patches import tile_grid
from stedm.data.slide import Slide
from stedm.data.tissue import tissue_fraction, tissue_mask, white_point
from stedm.files import atomic_path
from stedm.stages.alignment import ALIGNMENT, write_alignment

_OVERVIEW_PX = 8
"""Overview pixels per patch width: enough to see which patches are bare glass."""


def open_slide(row: Any) -> Slide:
    """The slide that a row of the cohort table names, with the table's microns per pixel if it has them."""
    return Slide.open(row.image, mpp=None if np.isnan(row.mpp) else row.mpp)


class SlideCutter:
    """Cuts the patches of one cohort row after the other into images/ and masks/."""

    def __init__(self, out: Path, config: PrepareConfig, labels: LabelMap) -> None:
        self._out, self._config, self._labels = out, config, labels
        for name in ("images", "masks"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def patches(self, position: int, row: Any) -> Iterator[dict[str, Any]]:
        """Records of the patches of the image in `row`, without roles."""
        with open_slide(row) as slide:
            source = self._label_source(position, row, slide)
            mpp = self._config.mpp or slide.mpp
            white, corners = self._occupied(slide, mpp)
            for x, y in corners:
                patch_id = f"{_safe(row.slide)}-r{position:05d}-x{x:06d}-y{y:06d}"
                image = self._image(patch_id, slide, x * mpp, y * mpp, mpp)
                fraction = tissue_fraction(image, white=white)
                if fraction < self._config.min_tissue:
                    continue
                self._write(f"images/{patch_id}.png", image)
                record = self._record(patch_id, position, row)
                if source is not None:
                    patch = source.read(x * mpp, y * mpp, size_px=self._config.patch_px, mpp=mpp)
                    record |= self._labelled(patch_id, patch)
                yield record | {"x_um": x * mpp, "y_um": y * mpp, "mpp": mpp, "tissue_fraction": fraction}

    def _label_source(self, position: int, row: Any, slide: Slide) -> LabelSource | None:
        """What gives the slide's label maps; of polygons a picture is left behind."""
        if row.mask:
            return MaskFile(row.mask, self._labels, mpp=slide.mpp)
        if not row.annotation:
            return None
        annotation = open_annotation(row.annotation, slide, origin=row.annotation_origin, slide_name=row.slide)
        folder, name = self._out / ALIGNMENT, f"r{position:05d}"
        write_alignment(folder, name, slide=slide, annotation=annotation, labels=self._labels)
        return polygon_labels(annotation, self._labels, slide)

    def _occupied(self, slide: Slide, mpp: float) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Colour of the slide's glass, and the corners of the patches that are not all glass in an overview."""
        patch_px = self._config.patch_px
        # Rounded down, so that no patch hangs over the border by a fraction of a pixel.
        size_px = [max(1, int(px * slide.mpp / mpp + 1e-6)) for px in (slide.width_px, slide.height_px)]
        corners = tile_grid(size_px[0], size_px[1], patch_px)
        overview_mpp = mpp * max(1.0, patch_px / _OVERVIEW_PX)
        overview = slide.overview(overview_mpp)
        white = white_point(overview)
        if self._config.min_tissue <= 0:
            return white, corners
        tissue = tissue_mask(overview, white=white, smooth_px=1)
        step = mpp / overview_mpp  # overview pixels per patch pixel
        spans = [[slice(int(at * step), int((at + patch_px) * step) + 1) for at in corner] for corner in corners]
        return white, [corner for corner, (x, y) in zip(corners, spans, strict=True) if tissue[y, x].any()]

    def _image(self, patch_id: str, slide: Slide, x_um: float, y_um: float, mpp: float) -> np.ndarray:
        """The patch's pixels, from its file when that is there already."""
        path = self._out / "images" / f"{patch_id}.png"
        if path.exists():
            with Image.open(path) as image:
                return np.asarray(image)
        return slide.read(x_um, y_um, size_px=self._config.patch_px, mpp=mpp)

    def _write(self, name: str, pixels: np.ndarray) -> str:
        """Write a PNG unless it is there already; its name."""
        if not (self._out / name).exists():
            with atomic_path(self._out / name) as temporary:
                Image.fromarray(pixels).save(temporary, compress_level=4)
        return name

    def _record(self, patch_id: str, position: int, row: Any) -> dict[str, Any]:
        return {
            "patch_id": patch_id,
            "patient": row.patient,
            "laboratory": row.laboratory,
            "slide": row.slide,
            "source": f"r{position:05d}",
            "group": row.group,
            "has_mask": bool(row.mask or row.annotation),
            "image": f"images/{patch_id}.png",
            "mask": "",
        }

    def _labelled(self, patch_id: str, patch: np.ndarray) -> dict[str, Any]:
        """Write the label map of a patch; its path and the share of each class."""
        fields: dict[str, Any] = {"mask": self._write(f"masks/{patch_id}.png", patch)}
        counts = np.bincount(patch[patch != IGNORE], minlength=len(self._labels.classes))
        if counts.sum():
            shares = (counts / counts.sum()).tolist()
            fields |= {f"fraction_{name}": share for name, share in zip(self._labels.classes, shares, strict=True)}
        return fields


def _safe(name: str) -> str:
    """`name` as part of a file name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)[:48]
