"""What the generator draws for a person: one image, one layout in several styles, the way from a style to another."""

import dataclasses
import io
import json
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stedm.diffusion.pipeline import StyleDiffusion, Styles
from stedm.errors import UserError
from stedm.files import atomic_path
from stedm.progress import Listener
from stedm.studio.styles import Style

MOST_STEPS = 100


def quiet(done: float, total: float, what: str) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Settings:
    """What a person can turn."""

    layout_guidance: float = 1.0
    """1: none."""
    style_guidance: float = 1.0
    """1: none."""
    steps: int = 4
    """Network evaluations per image and guidance branch, 1 to MOST_STEPS."""
    seed: int = 0
    """0 or more; the same seed, layout and style give the same image."""

    def check(self) -> None:
        """Raise UserError for values that cannot be drawn with."""
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(f"steps {self.steps}: from 1 to {MOST_STEPS}")
        if not (0 <= self.layout_guidance <= 10 and 0 <= self.style_guidance <= 10):
            raise UserError("guidance scales: from 0 to 10; 1 means none")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed {self.seed}: a whole number, 0 or more")


@dataclass(frozen=True)
class Drawing:
    """Images of one layout."""

    layout: np.ndarray
    """(H, H) uint8: the mask of every image."""
    images: np.ndarray
    """(B, H, H, 3) uint8."""
    names: tuple[str, ...]
    """What each image is drawn in."""
    settings: Settings

    def save(self, path: Path) -> Path:
        """Write a ZIP file: image.png (or image_0.png, ...), mask.png (class values) and drawing.json."""
        stems = ["image"] if len(self.images) == 1 else [f"image_{k}" for k in range(len(self.images))]
        said = {"styles": dict(zip(stems, self.names, strict=True)), **dataclasses.asdict(self.settings)}
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for stem, image in zip(stems, self.images, strict=True):
                archive.writestr(f"{stem}.png", _png(image))
            archive.writestr("mask.png", _png(self.layout))
            archive.writestr("drawing.json", json.dumps(said, indent=2) + "\n")
        return path


class StyleGenerator:
    """A generator that one person at a time draws with."""

    def __init__(self, model: StyleDiffusion, *, keeps_guidance: bool = False) -> None:
        """keeps_guidance: guidance is trained into the model (few-step generators) and must not be applied again."""
        self.model, self.keeps_guidance = model, keeps_guidance
        self._lock = threading.Lock()

    @property
    def set_size(self) -> int | None:
        """Style images the model needs; None: any number."""
        config = self.model.style_extractor.config
        return int(config["set_size"]) if config["aggregation"] == "linear" else None

    def draw(
        self, layout: np.ndarray, styles: Sequence[Style], settings: Settings, *, progress: Listener = quiet
    ) -> Drawing:
        """The layout (H, H) in each of these styles, all from the same seed."""
        with self._lock:
            extracted = self._extract(styles)
            return self._draw(layout, extracted, tuple(style.name for style in styles), settings, progress)

    def interpolate(
        self,
        layout: np.ndarray,
        first: Style,
        second: Style,
        settings: Settings,
        *,
        count: int = 7,
        progress: Listener = quiet,
    ) -> Drawing:
        """`count` >= 2 images on the straight line from the first style to the second, both included."""
        if count < 2:
            raise UserError(f"{count} image(s): an interpolation has 2 or more")
        shares = [k / (count - 1) for k in range(count)]
        names = tuple(f"{1 - share:.0%} {first.name}, {share:.0%} {second.name}" for share in shares)
        with self._lock:
            ends = self._extract([first, second])
            return self._draw(layout, ends.between(shares), names, settings, progress)

    def _extract(self, styles: Sequence[Style]) -> Styles:
        return self.model.extract_styles([style.images for style in styles])

    def _draw(
        self, layout: np.ndarray, styles: Styles, names: tuple[str, ...], settings: Settings, progress: Listener
    ) -> Drawing:
        """One by one: there is something to report, and no image depends on its neighbours in a batch."""
        settings.check()
        scales = {"layout_guidance": settings.layout_guidance, "style_guidance": settings.style_guidance}
        images = []
        for k, name in enumerate(names):
            progress(k, len(names), f"drawing: {name}")
            images.append(
                self.model(
                    layout[None],
                    styles=styles[k : k + 1],
                    seeds=[settings.seed],
                    nfe=settings.steps,
                    **({} if self.keeps_guidance else scales),
                )[0]
            )
        return Drawing(layout, np.stack(images), names, settings)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
