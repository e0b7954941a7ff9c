"""What the studio's page can do with a run, without the page."""

import functools
import re
import shlex
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stedm.arms import SYNTHETIC_SETS
from stedm.config_file import load_config
from stedm.diffusion.pipeline import INDEX, read_index
from stedm.diffusion.sampling import Sampling
from stedm.errors import UserError
from stedm.experiment import is_experiment
from stedm.progress import Listener
from stedm.stages.generate_for_style import load_generator
from stedm.stages.grids import style_set_size
from stedm.stages.report_pictures import class_colours
from stedm.stages.run_folder import RunFolder
from stedm.studio.drawing import Drawing, Settings, StyleGenerator, quiet
from stedm.studio.layouts import LayoutBook, packed, unpacked
from stedm.studio.results import Results
from stedm.studio.segmentation import Segmented, SlideSegmenter
from stedm.studio.styles import Patient, Style, StyleBook, refuse_oversized
from stedm.studio.synthetic_view import SyntheticView

STYLES = 6
"""Styles that a layout is drawn in side by side."""
_FLAGS = {
    "--style-mpp": "microns per pixel",
    "--mpp": "microns per pixel",
    "lower --min-tissue": "pick another slide",
    "; set cohort.mpp or give the table a column 'mpp'": "; fill in the field",
}
"""Words of the command line in messages, and those of the page."""


class Workbench:
    """A finished run and its models, each loaded when it is first used."""

    def __init__(self, folder: str | Path, *, scratch: Path) -> None:
        """scratch: an existing folder for uploads and downloads. Raises UserError for a folder that is no run."""
        self.run, self.scratch = RunFolder(folder), scratch
        saved = self.run.root / "config.yaml"
        if not saved.is_file():
            raise UserError(f"{folder}: no run there (no config.yaml); `stedm demo` makes one in runs/demo")
        self.config = load_config(saved)
        if is_experiment(self.config):
            parts = sorted(path.parent.parent.name for path in self.run.root.glob("*/data/patches.parquet"))
            example = self.run.root / parts[0] if parts else "one of its sub-runs"
            raise UserError(f"{folder}: holds several runs; name one of them, for instance {example}")
        self.patches = self.run.patches()
        self.classes = self.run.classes()
        self.patch_px = self.config.prepare.patch_px
        """Width of the images that are drawn."""
        self.colours = class_colours(self.classes)
        """Class name -> "#rrggbb"."""

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.run.root.resolve().name

    @property
    def uploads(self) -> Path:
        """Folder of what is uploaded to the page."""
        return self.scratch / "uploads"

    @functools.cached_property
    def generator(self) -> StyleGenerator:
        """The generator that drew the run's synthetic set. Raises UserError before it is trained."""
        folder, few_step = self.run.generator(self.config), self.config.generate.generator == "few-step"
        if not (folder / INDEX).is_file():
            command = f"stedm train {'few-step' if few_step else 'diffusion'} {shlex.quote(str(self.run.root))}"
            raise UserError(f"{folder}: no generator there; `{command}` trains it")
        model = load_generator(folder, patch_px=self.patch_px, mpp=self._mpp())
        return StyleGenerator(model, keeps_guidance=few_step)

    @functools.cached_property
    def layouts(self) -> LayoutBook:
        """Layouts of the run."""
        return LayoutBook(self.run, self.patches, classes=self.classes, patch_px=self.patch_px)

    @functools.cached_property
    def styles(self) -> StyleBook:
        """Styles of the run and of the disk."""
        return StyleBook(self.run, self.patches, patch_px=self.patch_px, mpp=self._mpp())

    @functools.cached_property
    def synthetic(self) -> SyntheticView:
        """The synthetic set. Raises UserError before it is drawn."""
        return SyntheticView(self.run, self.patches)

    @functools.cached_property
    def synthetic_sets(self) -> dict[str, SyntheticView]:
        """The synthetic set by its name, then the run's others. Raises UserError before it is drawn."""
        others = [name for name in SYNTHETIC_SETS if self.run.synthetic_set(name) != self.run.synthetic]
        drawn = [name for name in others if (self.run.synthetic_set(name) / "manifest.parquet").is_file()]
        return {"synthetic": self.synthetic} | {name: SyntheticView(self.run, self.patches, name) for name in drawn}

    @functools.cached_property
    def results(self) -> Results:
        """Arms and patients. Raises UserError before they are evaluated."""
        return Results(self.run, self.patches)

    @functools.cached_property
    def segmenter(self) -> SlideSegmenter:
        """The segmenter. Raises UserError before one is trained."""
        return SlideSegmenter(self.run.root, self.scratch / "segmented")

    def settings(self) -> Settings:
        """The generator's own settings, as far as a person can turn them."""
        own: Sampling = self.generator.model.sampling
        return Settings(own.layout_guidance, own.style_guidance, own.nfe)

    def set_size(self) -> int:
        """Images of a style set, as the run drew with."""
        return self.generator.set_size or style_set_size(self.config)

    def patients(self) -> list[Patient]:
        """Patients that can lend a style."""
        return self.styles.patients()

    def layout(self, kind: str, *, seed: int = 0, path: str | Path | None = None) -> str:
        """A layout for the canvas: `annotated`, `prior` or `file`. Raises UserError."""
        if kind == "file":
            if path is None:
                raise UserError("no file; choose a label map (PNG or TIFF of class values)")
            refuse_oversized(path)
            return packed(self.layouts.from_file(path))
        makers: dict[str, Callable[[int], np.ndarray]] = {
            "annotated": self.layouts.annotated,
            "prior": self.layouts.prior,
        }
        return packed(makers[kind](seed))

    @property
    def has_annotated(self) -> bool:
        """Whether there are label maps that layouts can follow."""
        return bool((self.patches["annotated"].astype(bool) & (self.patches["split"] == "train")).any())

    def blank_layout(self) -> str:
        """A canvas of the first class."""
        return packed(self.layouts.blank())

    def painted(self, text: str) -> np.ndarray:
        """The layout (H, H) uint8 that the canvas sent. Raises UserError."""
        return unpacked(text, num_classes=len(self.classes), size_px=self.patch_px)

    def generate(
        self, layout: np.ndarray, styles: Sequence[Style], settings: Settings, *, progress: Listener = quiet
    ) -> Drawing:
        """One layout in each of these styles."""
        return self.generator.draw(layout, styles, settings, progress=progress)

    def interpolate(
        self, layout: np.ndarray, first: Style, second: Style, settings: Settings, *, progress: Listener = quiet
    ) -> Drawing:
        """One layout on the way from a style to another."""
        return self.generator.interpolate(layout, first, second, settings, progress=progress)

    def saved(self, drawing: Drawing) -> Path:
        """A ZIP file of images, mask and settings, for download."""
        return drawing.save(self.scratch / "drawings" / uuid.uuid4().hex[:12] / "drawing.zip")

    def segment(
        self, path: str | Path, *, mpp: float | None = None, everywhere: bool = False, progress: Listener = quiet
    ) -> Segmented:
        """An image or slide, segmented by the run's best arm."""
        return self.segmenter.segment(path, mpp=mpp, everywhere=everywhere, progress=progress)

    def _mpp(self) -> float:
        """Microns per pixel the generator draws at; those of the patches before it is trained."""
        folder = self.run.generator(self.config)
        known = read_index(folder)["mpp"] if (folder / INDEX).exists() else None
        return float(known or self.patches["mpp"].median())


def in_page_words(message: str) -> str:
    """A message for the command line, as the page says it: fields instead of flags, names instead of paths."""
    for flag, words in _FLAGS.items():
        message = message.replace(flag, words)
    return re.sub(r"(?<![\w.])/(?:[^/:]+/)+([^/:]+)(?=:)", r"\1", message)
