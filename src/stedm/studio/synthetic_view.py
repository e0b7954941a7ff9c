"""The synthetic sets of a run, as a person looks through them."""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from stedm.data.synthetic import SyntheticSet
from stedm.errors import UserError
from stedm.stages.run_folder import RunFolder

Fate = Literal["all", "kept", "dropped"]
ORDERS = {
    "as drawn": ("id", True),
    "lowest agreement": ("agreement", True),
    "highest agreement": ("agreement", False),
    "nearest to a real image": ("nearest_real_distance", True),
}
"""How a page can be ordered: column, and whether it ascends."""


@dataclass(frozen=True)
class Pair:
    """A synthetic pair beside what it came from."""

    id: str
    image: np.ndarray
    """(H, H, 3) uint8."""
    layout: np.ndarray
    """(H, H) uint8, as drawn."""
    mask: np.ndarray
    """(H, H) uint8, as filtered: 255 where the filter did not believe it."""
    style_patient: str
    style_images: np.ndarray
    """(N, H, H, 3) uint8; N = 0 for pairs drawn without a style."""
    nearest: np.ndarray | None
    """(H, H, 3) uint8, the most similar training image; None before the filter has run."""
    nearest_name: str
    agreement: float
    """Agreement of layout and image as the filter judged, 0 to 1; NaN before it has run."""
    distance: float
    """From the nearest real image; NaN before the filter has run."""
    keep: bool


class SyntheticView:
    """Filters over the manifest of a set, and the pictures of single rows."""

    def __init__(self, run: RunFolder, patches: pd.DataFrame, name: str = "synthetic") -> None:
        """name: one of `arms.SYNTHETIC_SETS`. Raises UserError before it is drawn."""
        self._run, self._patches = run, patches.set_index("patch_id")
        self._drawn = SyntheticSet(run.synthetic_set(name), mask="layout")
        self._filtered = SyntheticSet(run.synthetic_set(name))
        self._row = {str(name): k for k, name in enumerate(self.manifest["id"])}

    @property
    def manifest(self) -> pd.DataFrame:
        """One row per pair."""
        return self._drawn.manifest

    @property
    def judged(self) -> bool:
        """Whether the filter has run."""
        return "keep" in self.manifest

    def patients(self) -> list[str]:
        """Patients who lent a style."""
        return sorted(set(map(str, self.manifest["style_patient"])) - {""})

    def select(
        self,
        *,
        patient: str | None = None,
        fate: Fate = "all",
        agreement: tuple[float, float] = (0.0, 1.0),
        order: str = "as drawn",
    ) -> pd.DataFrame:
        """Rows of the manifest; fate and agreement (both ends included) mean nothing before the filter has run."""
        rows = self.manifest
        if patient:
            rows = rows[rows["style_patient"].astype(str) == patient]
        if self.judged:
            if fate != "all":
                rows = rows[rows["keep"].astype(bool) == (fate == "kept")]
            inside = rows["agreement"].between(*agreement) | (rows["agreement"].isna() & (agreement == (0.0, 1.0)))
            rows = rows[inside]
        column, ascending = ORDERS[order]
        column = column if column in rows else "id"
        return rows.sort_values([column, "id"], ascending=[ascending, True]).reset_index(drop=True)

    def images(self, rows: pd.DataFrame) -> list[np.ndarray]:
        """Images (H, H, 3) uint8 of these rows."""
        return [self._drawn.images([self._row[str(name)]])[0] for name in rows["id"]]

    def pair(self, name: str) -> Pair:
        """One pair by its id; raises UserError when there is none."""
        if name not in self._row:
            raise UserError(f"{name}: no such synthetic pair; pick one of the pictures")
        k = self._row[name]
        row = self.manifest.iloc[k]
        lent = [str(patch) for patch in json.loads(row["style_patches"])]
        image = self._drawn.images([k])[0]
        nearest_name = str(row["nearest_real"]) if self.judged and isinstance(row["nearest_real"], str) else ""
        return Pair(
            id=name,
            image=image,
            layout=self._drawn.label_maps([k])[0],
            mask=self._filtered.label_maps([k])[0],
            style_patient=str(row["style_patient"]),
            style_images=self._run.images(self._patches.loc[lent]) if lent else np.empty((0, *image.shape), np.uint8),
            nearest=self._run.images(self._patches.loc[[nearest_name]])[0] if nearest_name else None,
            nearest_name=nearest_name,
            agreement=float(row["agreement"]) if self.judged else float("nan"),
            distance=float(row["nearest_real_distance"]) if self.judged else float("nan"),
            keep=bool(row["keep"]) if self.judged else True,
        )
