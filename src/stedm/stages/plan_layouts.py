"""Layouts of the synthetic set: where a plan's rows take them from, and the label map of a row."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.data.composition import CompositionTable
from stedm.data.layouts import PriorLayouts, RealLayouts
from stedm.device import best_device
from stedm.errors import UserError
from stedm.models.ensemble import Ensemble
from stedm.stages.run_folder import RunFolder, train_patches

_MOST_READ = 4096
"""Readings of training images that are kept in memory."""


@dataclass(frozen=True)
class LayoutSources:
    """What the layouts of a plan are made from; they take turns in its kinds."""

    kinds: tuple[str, ...]
    """Some of `config.LAYOUT_KINDS`."""
    annotated: np.ndarray
    """Ids of the annotated training patches."""
    unannotated: np.ndarray
    """Ids of the others."""
    composition: CompositionTable | None = None
    """The user's fractions for prior layouts; None for measured ones."""

    @classmethod
    def of(cls, patches: pd.DataFrame, kinds: str, *, composition: CompositionTable | None = None) -> "LayoutSources":
        """Of a patches table; kinds: `generate.layouts`. `read` is left out where every training patch is annotated.

        Raises UserError when no kind is left.
        """
        of_training = [train_patches(patches, annotated=kind)["patch_id"].to_numpy() for kind in (True, False)]
        possible = tuple(kind for kind in kinds.split("+") if kind != "read" or len(of_training[1]))
        if not possible:
            raise UserError("generate.layouts: read needs unannotated training patches; set it to real+prior")
        return cls(possible, *of_training, composition=composition)

    def choose(self, k: int, rng: np.random.Generator, *, group: str = "") -> dict[str, str]:
        """Columns layout_kind, layout_source and composition of row k, drawn in the style of a patient of `group`.

        The source is the patch whose annotation or reading is warped, or `prior`; composition the fractions (JSON)
        asked for, "" for measured ones.
        """
        kind = self.kinds[k % len(self.kinds)]
        if kind == "prior":
            wanted = (
                "" if self.composition is None else json.dumps(rng.choice(self.composition.rows_of(group)).tolist())
            )
            return {"layout_kind": kind, "layout_source": "prior", "composition": wanted}
        source = rng.choice(self.annotated if kind == "real" else self.unannotated)
        return {"layout_kind": kind, "layout_source": str(source), "composition": ""}


class PlanLayouts:
    """The layout of a plan row, a pure function of the row."""

    def __init__(self, run: RunFolder, patches: pd.DataFrame, *, teachers: Sequence[Path] = ()) -> None:
        """teachers: folders of the segmenters behind `read` layouts, together; not needed without them."""
        annotated = train_patches(patches, annotated=True)
        self.maps, self.num_classes = run.label_maps(annotated), len(run.classes())
        self.position = {name: k for k, name in enumerate(annotated["patch_id"])}
        self.real = RealLayouts(self.maps)
        self._run, self._patches, self._teacher_folders = run, patches.set_index("patch_id"), teachers
        self._read = functools.lru_cache(_MOST_READ)(self._read_image)

    @functools.cached_property
    def prior(self) -> PriorLayouts:
        """Fitted when a row first asks for it: it takes seconds."""
        return PriorLayouts.fit(self.maps, self.num_classes)

    @functools.cached_property
    def _teacher(self) -> Ensemble:
        return Ensemble.from_pretrained(self._teacher_folders).to(best_device())

    def of(self, row: pd.Series) -> np.ndarray:
        """Label map (H, W) uint8."""
        rng = np.random.default_rng(int(row["layout_seed"]))
        if row["layout_kind"] == "prior":
            wanted = json.loads(row["composition"]) if row["composition"] else None
            return self.prior.draw(rng, fractions=None if wanted is None else np.array(wanted))
        if row["layout_kind"] == "read":
            return RealLayouts(self._read(row["layout_source"])).warp(0, rng)
        return self.real.warp(self.position[row["layout_source"]], rng)

    def _read_image(self, patch_id: str) -> np.ndarray:
        """What the teachers see in a training image, (1, H, W) uint8: the mean of four views and all of them."""
        image = self._run.images(self._patches.loc[[patch_id]])
        return self._teacher.probabilities(image, views=4).argmax(1).astype(np.uint8)
