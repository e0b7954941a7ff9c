"""Stage `measure`: the generator's figures, from drawn probes to `evaluation/generation.json`.

They need data, generator, synthetic set and judge alone: arms and seeds come and go without it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stedm.config import RunConfig
from stedm.data.synthetic import SyntheticSet
from stedm.device import best_device
from stedm.evaluation.encoders import FIXED, Encoder, kid_encoder, standardised
from stedm.evaluation.memorisation import (
    are_copies,
    copied_share,
    copy_distance,
    nearest_distances,
    nearest_others,
    nearest_real_ratio,
)
from stedm.evaluation.probe import FIGURES, StyleProbe, group_figures, probe_scale, real_agreement
from stedm.files import read_json, write_json
from stedm.ranks import PORTION
from stedm.stages.grids import save_probe_grid
from stedm.stages.own_encoders import kid_digest
from stedm.stages.probe import draw_probes
from stedm.stages.run_folder import RunFolder, train_patches

NEVER_SEEN_GRID = Path("samples") / "never_seen.png"
"""The picture of styles that no stage has seen, in `evaluation/`."""
_QUANTILES = 41
"""Of the distances between real training images, from the least to the largest, evenly."""
_SCALE_IMAGES = 512
"""Images that the fixed features of the KID are standardised on, at most."""


def measure(run: RunFolder, config: RunConfig) -> None:
    """Write generation.json and the grid of never-seen styles.

    Number, speed and likeness to training images are those of the synthetic set as drawn, before the filter: it must
    not flatter the generator.
    """
    drawn = SyntheticSet(run.synthetic)
    manifest = drawn.manifest
    measured = measure_generator(run, config) | {"images": len(manifest)}
    if (run.synthetic / "throughput.json").exists():
        throughput = read_json(run.synthetic / "throughput.json")
        measured["images_per_second"] = throughput["images"] / throughput["seconds"]
        measured["device"] = f"{throughput['device']} ({throughput['cores']} threads)"
    training = run.images(train_patches(run.patches()))
    between = np.array(measured["nearest_real_between"])  # their median is that of the distances
    measured |= {
        "nearest_real_ratio": nearest_real_ratio(manifest["nearest_real_distance"].to_numpy(), between),
        "memorised_rate_set": copied_share(_portions(drawn), training, below=measured["memorised_below"]),
    }
    write_json(run.evaluation / "generation.json", measured)


def _portions(drawn: SyntheticSet) -> Iterator[np.ndarray]:
    """The images of a set, a few at a time."""
    rows = np.arange(len(drawn.manifest))
    return (drawn.images(rows[start : start + PORTION]) for start in range(0, len(rows), PORTION))


def measure_generator(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Draw probes, write their grid, and return the content of `generation.json`.

    Figures of style, colour, layout and KID at the top level are those of the never-seen patients, the hardest test of
    a style that is given as images; `seen` and `unseen` hold the same for both groups. All of them are None where every
    patient has a single image: there is none to compare with what is drawn in its style.
    """
    encoder_name, encoder = kid_encoder(config.evaluate.kid_encoder, device=best_device())
    weights = kid_digest(config.evaluate.kid_encoder, measured=run.evaluation / "generation.json")
    patches = run.patches()
    drawing = draw_probes(run, config)
    if drawing.groups["unseen"]:
        save_probe_grid(drawing.groups["unseen"], run.evaluation / NEVER_SEEN_GRID)
    training = train_patches(patches)
    if encoder_name == FIXED:
        encoder = standardised(encoder, run.images(not_compared(training, drawing.groups)))
    groups = _groups(drawing.groups, run, config, encoder)
    hardest = "unseen" if drawing.groups["unseen"] else "seen"
    return {
        "nfe": drawing.nfe,
        "images": drawing.images,
        "images_per_second": drawing.images / drawing.seconds,
        "device": f"{drawing.device} ({torch.get_num_threads()} threads)",
        "figures_of": hardest,
        **{key: groups[hardest][key] for key in FIGURES},
        **_memorisation(drawing.groups, groups, run.images(training), training["patient"].tolist()),
        "kid_encoder": encoder_name,
        "kid_weights": weights,
        "unseen_are": "unseen" if (patches["split"] == "unseen").any() else "val",
        **groups,
    }


def not_compared(training: pd.DataFrame, groups: dict[str, list[StyleProbe]]) -> pd.DataFrame:
    """Evenly spaced training patches of patients without a probe: those with annotations in use never have one."""
    probed = [probe.patient for group in groups.values() for probe in group]
    others = training[~training["patient"].isin(probed)]
    return others.iloc[np.linspace(0, len(others) - 1, min(len(others), _SCALE_IMAGES)).astype(int)]


def _groups(
    groups: dict[str, list[StyleProbe]], run: RunFolder, config: RunConfig, encoder: Encoder
) -> dict[str, dict[str, Any]]:
    """The figures of each group, all on one scale."""
    probes = [probe for group in groups.values() for probe in group]
    scale = probe_scale(probes) if probes else None
    found: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        figures = group_figures(
            group,
            scale=scale,
            classes=run.classes(),
            encoder=encoder,
            agreement_real=real_agreement(groups["unseen"]),
        )
        patients = [probe.patient for probe in group]
        found[name] = {"patients": patients, "images": sum(len(probe.drawn) for probe in group), **figures}
    return found


def _memorisation(
    groups: dict[str, list[StyleProbe]], found: dict[str, dict[str, Any]], training: np.ndarray, patients: list[str]
) -> dict[str, float | list[float] | None]:
    """Shares of images that are copies of a training image (`are_copies`), also written into each group.

    At the top level `memorised_rate` is that of all drawn images, and `memorised_rate_real`, the floor, that of the
    never-seen patients' own images.
    """
    limit = copy_distance(training, patients)

    def copied(images: list[np.ndarray]) -> float | None:
        return float(are_copies(np.concatenate(images), training, below=limit).mean()) if images else None

    drawn = [probe.drawn for group in groups.values() for probe in group]
    for name, group in groups.items():
        found[name]["memorised_rate"] = copied([probe.drawn for probe in group])
    between = nearest_others(training)[0]
    return {
        "nearest_real_ratio": nearest_real_ratio(nearest_distances(np.concatenate(drawn), training)[0], between)
        if drawn
        else None,
        "nearest_real_between": np.quantile(between, np.linspace(0, 1, _QUANTILES)).tolist(),
        "memorised_rate": copied(drawn),
        "memorised_rate_real": copied([probe.real for probe in groups["unseen"]]),
        "memorised_below": limit,
    }
