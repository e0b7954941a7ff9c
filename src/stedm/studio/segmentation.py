"""An image or slide that a person names, segmented: overlay, outlines for QuPath, areas."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stedm.config import IGNORE
from stedm.data.label_pyramid import LabelPyramid
from stedm.data.slide import Slide
from stedm.errors import UserError
from stedm.files import read_json
from stedm.models.model_folder import read_config
from stedm.progress import Listener, listened
from stedm.stages.grids import overlay
from stedm.stages.report_pictures import colour_layout
from stedm.stages.segment import SegmentOptions, segment_slide
from stedm.stages.segmenter_choice import chosen_segmenters
from stedm.studio.drawing import quiet

SHOWN_PX = 1024
"""Longer side of an overlay, at most."""
_TINT = 0.35
_ROWS_PX = 2048


@dataclass(frozen=True)
class Segmented:
    """What became of an image or slide."""

    image: np.ndarray
    """(h, w, 3) uint8, SHOWN_PX at most."""
    overlay: np.ndarray
    """The same, tinted and outlined in the colours of the classes."""
    geojson: Path
    """Outlines for QuPath."""
    label_map: Path
    """A pyramid whose pixels are class numbers, 255 where nothing was predicted."""
    area_mm2: dict[str, float]
    note: str
    """What to know of it."""


class SlideSegmenter:
    """The best arm of a run, for one slide at a time."""

    def __init__(self, run_root: Path, scratch: Path) -> None:
        """scratch: folder for results. Raises UserError for a run without segmenters."""
        self.model, self._scratch = chosen_segmenters(run_root), scratch
        self._lock = threading.Lock()

    @property
    def arm(self) -> str:
        """Name of the arm, the best without a look at test patients."""
        return self.model[0].parent.name

    def segment(
        self, path: str | Path, *, mpp: float | None = None, everywhere: bool = False, progress: Listener = quiet
    ) -> Segmented:
        """Segment a file; what was done before is kept. mpp: microns per pixel where the file does not say.

        An image that says nothing is taken at the model's microns per pixel, and the note says so. everywhere: predict
        glass too. Raises UserError for files that are no image or slide.
        """
        path = Path(path).resolve()
        with Slide.open(path, mpp=mpp) as slide:
            mpp, note = self._resolution(slide, mpp)
        out = self._scratch / hashlib.sha256(str(path).encode()).hexdigest()[:12]
        with self._lock, listened(progress):
            outcome = segment_slide(path, out, SegmentOptions(model=self.model, mpp=mpp, everywhere=everywhere))
        with Slide.open(path, mpp=mpp) as slide:
            image, shown = _pictures(slide, out / f"{path.stem}.tif")
        record = read_json(out / f"{path.stem}.json")
        notes = "; ".join(filter(None, [note, outcome.warning.removeprefix("; ")]))
        return Segmented(
            image, shown, out / f"{path.stem}.geojson", out / f"{path.stem}.tif", record["area_mm2"], notes
        )

    def _resolution(self, slide: Slide, given: float | None) -> tuple[float | None, str]:
        """Microns per pixel to name, None where the file says them, and a note."""
        try:
            slide.mpp  # noqa: B018 (asked whether it is known)
            return given, ""
        except UserError:
            mpp = read_config(self.model[0]).get("mpp")
        if mpp is None or slide.is_pyramid:
            raise UserError(f"{slide.path.name}: microns per pixel unknown; fill in the field") from None
        return mpp, f"the file does not say its microns per pixel: taken for the model's {mpp:g}"


def _pictures(slide: Slide, label_map: Path) -> tuple[np.ndarray, np.ndarray]:
    """The slide, no larger than SHOWN_PX, and the same with its label map over it."""
    view_mpp = max(slide.mpp, max(slide.width_px, slide.height_px) * slide.mpp / SHOWN_PX)
    image = slide.overview(view_mpp)
    labels = _sampled(label_map, image.shape[:2])
    colours = np.asarray(colour_layout(labels), float)
    tinted = np.where((labels == IGNORE)[..., None], image, (1 - _TINT) * image + _TINT * colours)
    return image, overlay(tinted.round().astype(np.uint8), labels)


def _sampled(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A label map at the size of a picture, nearest pixel; read by rows, so that memory does not grow with it."""
    height, width = shape
    with LabelPyramid(path) as labels:
        ys = ((np.arange(height) + 0.5) * labels.height_px / height).astype(int)
        xs = ((np.arange(width) + 0.5) * labels.width_px / width).astype(int)
        sampled = np.empty(shape, np.uint8)
        for start in range(0, labels.height_px, _ROWS_PX):
            stop = min(start + _ROWS_PX, labels.height_px)
            inside = (ys >= start) & (ys < stop)
            sampled[inside] = labels.rows(start, stop)[ys[inside] - start][:, xs]
    return sampled
