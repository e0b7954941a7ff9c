"""The synthetic set of a run: images, label maps and what the filter decided."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.data.patches import LabelMaps, PatchImages
from stedm.data.tables import read_parquet
from stedm.errors import UserError


class SyntheticSet:
    """The folder written by `generate` and judged by `filter`; positions are rows of `manifest`."""

    def __init__(self, folder: str | Path, *, mask: str = "mask") -> None:
        """mask: the manifest's column of label maps; `mask`: as filtered, `layout`: as drawn."""
        path = Path(folder) / "manifest.parquet"
        if not path.is_file():
            raise UserError(f"{path}: not found; run `stedm generate` first")
        self.manifest = read_parquet(path, needs=("image", mask))
        """One row per synthetic pair, with its provenance."""
        self._images = PatchImages(folder, self.manifest["image"].tolist(), cache_bytes=0)
        _refuse_outside(path, self.manifest)
        self._label_maps = LabelMaps(folder, self.manifest[mask].tolist(), cache_bytes=0)

    def __len__(self) -> int:
        return len(self.manifest)

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images (n, H, W, 3) uint8 of these rows."""
        return self._images.images(indices)

    def label_maps(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Label maps (n, H, W) uint8 of these rows: classes, 255 = ignore."""
        return self._label_maps.label_maps(indices)

    @property
    def kept(self) -> np.ndarray:
        """Rows (n,) that the filter kept, ascending. Raises UserError before the filter has run."""
        if "keep" not in self.manifest:
            raise UserError("the synthetic set has not been filtered; run `stedm filter` first")
        return np.flatnonzero(self.manifest["keep"].to_numpy(bool))

    @property
    def weights(self) -> np.ndarray:
        """How often each row (n,) is to be drawn in training, relative to the others. As `kept`, after the filter."""
        weights = pd.to_numeric(self.manifest.get("weight", pd.Series([None])), errors="coerce").to_numpy(float)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise UserError("the synthetic set has no weights, or some that are no numbers; run `stedm filter` again")
        return weights


def _refuse_outside(path: Path, manifest: pd.DataFrame) -> None:
    """What is written is named after these columns: they must name files in the folder, as `generate` does."""
    for column in ("id", "image", "mask", "layout"):
        for name in map(str, manifest.get(column, ())):
            if name in ("", "None") or Path(name).is_absolute() or ".." in Path(name).parts:
                raise UserError(f"{path}: {column} {name[:60]!r} is no file in the folder; run `stedm generate` again")
