"""The procedural cohort: patients whose tissue differs in more than colour, with exact label maps, made offline."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from stedm.config import PhantomConfig
from stedm.config_cohort import Family, Scanner
from stedm.data.phantom_render import BACKGROUND, EPITHELIUM, STROMA, PatientStyle, render, smooth_noise
from stedm.data.phantom_scanner import draw_scanner
from stedm.errors import UserError
from stedm.files import atomic_folder
from stedm.png import write_png

__all__ = ["PHANTOM_LABELS", "PatientStyle", "draw_layout", "draw_style", "render", "write_cohort"]

PHANTOM_LABELS: dict[str, list] = {"background": [BACKGROUND], "stroma": [STROMA], "epithelium": [EPITHELIUM]}
"""Class name -> values in the phantom's masks, as `cohort.labels` wants them."""
_WARP_REACH_PX = 15
"""Displacements of the warped grid stay below this, three standard deviations."""
_PLACEMENTS_PER_GLAND_AREA = 12.0
"""Attempted gland placements per mean gland area: enough for dense packing, few enough to leave stroma."""

Kind = tuple[Family, Scanner]
"""What a laboratory is made of: staining family and scanner."""

# Epithelium: (cytoplasm H, cytoplasm E, granularity, vacuoles, membrane, polarity, elongation)
_EPITHELIA = {
    "eosinophilic": (0.06, 0.85, 0.25, 0.0, 0.15, 0.5, 1.2),
    "basophilic": (0.38, 0.40, 0.10, 0.0, 0.05, 0.8, 1.7),
    "clear": (0.02, 0.18, 0.10, 0.0, 0.65, 0.2, 1.1),
    "mucinous": (0.22, 0.16, 0.10, 0.5, 0.30, 0.95, 1.3),
}
# Stroma: (matrix H, matrix E, fibre contrast, fibre width, fibre length, waviness, fibroblasts, lymphocytes)
_STROMATA = {
    "collagen": (0.02, 0.85, 0.30, 1.3, 10.0, 6.0, 0.17, 0.02),
    "loose": (0.12, 0.38, 0.50, 0.9, 5.0, 8.0, 0.20, 0.06),
    "desmoplastic": (0.15, 0.50, 0.25, 1.5, 8.0, 4.0, 0.45, 0.06),
    "inflamed": (0.08, 0.35, 0.35, 1.0, 5.0, 6.0, 0.17, 0.36),
    "muscle": (0.03, 0.75, 0.20, 2.4, 20.0, 3.0, 0.30, 0.02),
}
_STAINS = {  # optical density per RGB channel: haematoxylin; eosin or IHC's faint background; DAB
    "he": ((0.62, 0.71, 0.33), (0.10, 0.93, 0.35), (0.0, 0.0, 0.0)),
    "ihc": ((0.70, 0.62, 0.35), (0.56, 0.60, 0.57), (0.27, 0.57, 0.78)),
}
_STRENGTHS = {"he": (0.85, 0.42, 0.0), "ihc": (0.80, 0.32, 0.9)}
_LEAST_CONTRAST = 0.14
"""Least distance in optical density between cytoplasm and stroma: tissue nobody could segment is not drawn."""
# IHC score: (concentration, thickness in pixels, share) of stained membrane
_SCORES = ((0.0, 1.0, 0.0), (0.35, 0.7, 0.45), (0.75, 0.9, 0.8), (1.5, 1.5, 1.0))


def _around(values: Sequence[float], rng: np.random.Generator, *, spread: float = 0.25) -> list[float]:
    """Each value times a log-normal factor."""
    return [float(value * np.exp(rng.normal(0, spread))) for value in values]


def _stain_vectors(family: str, rng: np.random.Generator) -> np.ndarray:
    """Stain vectors (3, 3), rotated by a few degrees and scaled: the laboratory's reagents and times."""
    vectors = np.array(_STAINS[family]) * np.exp(rng.normal(0, 0.11, (3, 3)))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-8)
    return vectors * np.array(_around(_STRENGTHS[family], rng, spread=0.22))[:, None]


def _tissue(epithelium: str, stroma: str, stains: np.ndarray, *, rng: np.random.Generator) -> dict[str, Any]:
    """One patient's variety of the two kinds of tissue, as fields of `PatientStyle`."""
    contrast = 0.0
    while contrast < _LEAST_CONTRAST:
        cytoplasm, matrix = _around(_EPITHELIA[epithelium][:2], rng), _around(_STROMATA[stroma][:2], rng)
        contrast = float(np.linalg.norm(np.subtract(cytoplasm, matrix) @ stains[:2]))
    granularity, vacuoles, membrane, polarity, elongation = _around(_EPITHELIA[epithelium][2:], rng)
    *fibres, fibroblasts, lymphocytes = _around(_STROMATA[stroma][2:], rng)
    return {
        "epithelium": epithelium,
        "cytoplasm": tuple(cytoplasm),
        "granularity": granularity,
        "vacuoles": min(vacuoles, 0.7),
        "membrane": membrane,
        "membrane_px": rng.uniform(0.7, 1.2),
        "membrane_share": rng.uniform(0.6, 1.0),
        "polarity": min(polarity, 1.0),
        "elongation": max(elongation, 1.0),
        "stroma": stroma,
        "matrix": tuple(matrix),
        "fibres": tuple(fibres),
        "fibroblasts": fibroblasts,
        "lymphocytes": lymphocytes,
    }


def draw_style(
    family: str,
    rng: np.random.Generator,
    *,
    scanner: Scanner = "first",
    score: int | None = None,
    epithelium: str | None = None,
    stroma: str | None = None,
) -> PatientStyle:
    """Draw a patient of a staining family, `he` or `ihc`, under a scanner; what is not given is drawn too.

    `score` is the IHC score, 0 to 3, unused for `he`: it decides the stained membranes alone. `epithelium` is
    eosinophilic, basophilic, clear or mucinous; `stroma` is collagen, loose, desmoplastic, inflamed or muscle.
    """
    drawn = int(rng.integers(4)), str(rng.choice(list(_EPITHELIA))), str(rng.choice(list(_STROMATA)))
    stains = _stain_vectors(family, rng)
    tissue = _tissue(epithelium or drawn[1], stroma or drawn[2], stains, rng=rng)
    group = family
    if family == "ihc":
        score = drawn[0] if score is None else score
        group = f"ihc{score}"
        amount, thickness_px, share = _SCORES[score]
        amount, thickness_px = _around((amount, thickness_px), rng, spread=0.15)
        tissue |= {"membrane": amount, "membrane_px": thickness_px, "membrane_share": share}
    return PatientStyle(
        group=group,
        stains=stains,
        **draw_scanner(scanner, rng),
        **tissue,
        nucleus_px=rng.uniform(5.5, 9.0),
        crowding=rng.uniform(0.82, 1.09),
        pleomorphism=rng.uniform(0.08, 0.3),
        chromatin=(rng.uniform(0.6, 1.2), rng.random()),
        cleft=max(0.0, rng.uniform(-1.5, 0.9)),
        secretion=_secretion(rng),
    )


def _secretion(rng: np.random.Generator) -> tuple[float, float]:
    """Haematoxylin and eosin in the lumina: something in two patients of five."""
    if rng.random() >= 0.4:
        return 0.0, 0.0
    haematoxylin, eosin = _around((0.02, 0.08), rng, spread=0.4)
    return haematoxylin, eosin


def _warped_grid(size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Pixel coordinates (2, H, W), smoothly displaced: ellipses drawn in them become lobulated outlines."""
    grid = np.indices((size_px, size_px), dtype=np.float32)
    for sigma_px, amplitude_px in ((14.0, 5.0), (5.0, 1.2)):
        grid += amplitude_px * np.stack([smooth_noise((size_px, size_px), sigma_px, rng) for _ in range(2)])
    return grid


def _draw_gland(layout: np.ndarray, grid: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one gland (epithelium around a lumen, or a solid nest) into `layout`, unless it would touch another."""
    centre = rng.uniform(-15, layout.shape[0] + 15, 2)
    semi_major = rng.triangular(22, 32, 54)  # pixels: glands measure 40 to 100 px across
    semi_minor = semi_major * rng.uniform(0.55, 1.0)
    cosine, sine = np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)
    wall_px, gap_px = rng.uniform(13, 21), rng.uniform(4, 10)
    solid = rng.random() < 0.25
    reach_px = semi_major * (1 + gap_px / semi_minor) + _WARP_REACH_PX
    window = tuple(slice(max(0, round(c - reach_px)), max(0, round(c + reach_px))) for c in centre)

    def depth_px(step: int) -> np.ndarray:  # inwards from the outline, on every `step`-th pixel of the window
        dy, dx = grid[(slice(None), *window)][:, ::step, ::step] - centre[:, None, None]
        radius = np.hypot((cosine * dx + sine * dy) / semi_major, (cosine * dy - sine * dx) / semi_minor)
        return (1 - radius) * semi_minor

    for step in (5, 1):  # most attempts fail, and a coarse look finds most of the failures
        if (layout[window][::step, ::step][depth_px(step) > -gap_px] == EPITHELIUM).any():
            return
    depth = depth_px(1)
    layout[window][depth > 0] = EPITHELIUM
    if not solid:
        layout[window][depth > wall_px] = BACKGROUND


def draw_layout(size_px: int, rng: np.random.Generator) -> np.ndarray:
    """A label map of glands with lumina in stroma, vessels or fat, and glass where the tissue ends.

    Returns uint8 (size_px, size_px) with the values of `PHANTOM_LABELS`. The statistics are the same for every patient.
    """
    layout = np.full((size_px, size_px), STROMA, np.uint8)
    grid = _warped_grid(size_px, rng)
    attempts = _PLACEMENTS_PER_GLAND_AREA * rng.uniform(0.7, 1.3) * size_px**2 / (np.pi * 32**2)
    for _ in range(max(1, round(attempts))):
        _draw_gland(layout, grid, rng)
    room_px = ndimage.distance_transform_edt(layout == STROMA)
    for _ in range(rng.poisson(size_px**2 / 9000)):  # vessels and clefts lie within the stroma
        y, x = rng.integers(0, size_px, 2)
        radius_px = min(rng.uniform(4, 9), room_px[y, x] - 3)
        if radius_px > 2.5:
            layout[np.hypot(grid[0] - grid[0][y, x], (grid[1] - grid[1][y, x]) * 0.7) < radius_px] = BACKGROUND
    if rng.random() < 0.6:  # the tissue's edge crosses this slide
        direction = rng.uniform(0, 2 * np.pi)
        along = np.cos(direction) * (grid[0] - size_px / 2) + np.sin(direction) * (grid[1] - size_px / 2)
        edge_px = rng.uniform(0.22, 0.5) * size_px + 4 * smooth_noise(layout.shape, 9, rng)
        layout[along > edge_px] = BACKGROUND
    return layout


def _laboratories(config: PhantomConfig) -> tuple[list[Kind], list[Kind]]:
    """Kinds (family, scanner) of the source, whose patients may be annotated, and of the target; possibly none."""
    kinds = list(itertools.product(config.families, config.scanners))
    families = config.families if config.annotated_families is None else config.annotated_families
    scanners = config.scanners if config.annotated_scanners is None else config.annotated_scanners
    source = [kind for kind in kinds if kind[0] in families and kind[1] in scanners]
    for key, values in (("families", config.families), ("scanners", config.scanners)):
        if not values:
            raise UserError(f"cohort.phantom.{key} is empty: name one or both, as `stedm run --help` lists them")
    if not source:
        raise UserError(
            "cohort.phantom: no patient may be annotated; name one of `families` in `annotated_families` and one of"
            " `scanners` in `annotated_scanners`"
        )
    return source, [kind for kind in kinds if kind not in source]


def _patients(config: PhantomConfig) -> Iterator[tuple[str, str, Kind, PatientStyle, np.random.Generator]]:
    """(split, patient, kind, style, generator of the slides).

    Kinds alternate, and scores and kinds of tissue take turns, so that a small cohort has something of each; they
    step at different paces, so that within a few dozen patients each score comes with each kind. With a target
    laboratory, validation patients are the source's, test and unseen ones the target's.
    """
    source, target = _laboratories(config)
    counts = {"train": config.train_patients, "val": config.val_patients, "test": config.test_patients}
    counts["unseen"] = config.unseen_patients
    epithelia, stromata = list(_EPITHELIA), list(_STROMATA)
    for split_number, (split, count) in enumerate(counts.items()):
        kinds = source if split == "val" else target if target and split != "train" else [*source, *target]
        for number in range(count):
            rng = np.random.default_rng([config.seed, split_number, number])
            turn, place = divmod(number, len(kinds))
            family, scanner = kinds[place]
            style = draw_style(
                family,
                rng,
                scanner=scanner,
                score=turn % 4,
                epithelium=epithelia[(turn + turn // 4 + split_number) % len(epithelia)],
                stroma=stromata[(2 * turn + turn // 5 + place) % len(stromata)],
            )
            yield split, f"{split}{number:03d}", kinds[place], style, rng


def _write_slide(folder: Path, name: str, style: PatientStyle, *, size_px: int, rng: np.random.Generator) -> None:
    layout = draw_layout(size_px, rng)
    write_png(folder / "images" / f"{name}.png", render(layout, style, rng))
    write_png(folder / "masks" / f"{name}.png", layout)


def write_cohort(folder: Path, config: PhantomConfig) -> Path:
    """Draw the cohort of `config` into `folder` (replaced as a whole) and return the path of its table, `cohort.csv`.

    Columns: image, patient, slide, mask, mpp (microns per pixel), split, group (`he`, `ihc0` ... `ihc3`). Patients of
    families or scanners that are not annotated are in a second table, `target.csv`. Every slide has a mask; hiding
    masks is the label budget's business. A patient depends on the seed, the split, its kinds and the patient's number
    alone, not on how many others there are.
    """
    source, target = _laboratories(config)
    tables: dict[str, list[dict[str, Any]]] = {"cohort": [], "target": []}
    with atomic_folder(folder) as temporary:
        (temporary / "images").mkdir()
        (temporary / "masks").mkdir()
        for split, patient, kind, style, rng in _patients(config):
            for slide_number in range(config.slides_per_patient):
                name = f"{patient}_s{slide_number}"
                _write_slide(temporary, name, style, size_px=config.slide_px, rng=rng)
                row = {"image": f"images/{name}.png", "patient": patient, "slide": name, "mask": f"masks/{name}.png"}
                row |= {"mpp": config.mpp, "split": split, "group": style.group}
                tables["cohort" if kind in source else "target"].append(row)
        for name in ("cohort", "target") if target else ("cohort",):
            pd.DataFrame(tables[name]).to_csv(temporary / f"{name}.csv", index=False)
    return Path(folder) / "cohort.csv"
