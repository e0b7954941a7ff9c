"""Images drawn to measure the generator, in memory: styles of patients it was not told the annotation of, or never saw.

Nothing here trains, filters or chooses anything; that is why the judge and hidden label maps may be used.
"""

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from stedm.config import RunConfig
from stedm.data.layouts import RealLayouts
from stedm.device import best_device
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.evaluation.probe import StyleProbe
from stedm.models.segmenter import Segmenter
from stedm.stages.grids import sampling_of, style_set_size
from stedm.stages.run_folder import JUDGE_ARM, RunFolder, train_patches

REPEATS = 4
"""The last images of each patient share one layout: what differs between them is the generator's own variety."""
_ENOUGH = 4  # images a patient should have, so that two lend the style and two are compared with


@dataclass(frozen=True)
class Drawing:
    """The probes of each group of style patients, and how fast their images were drawn."""

    groups: dict[str, list[StyleProbe]]
    """`seen` (unannotated training patients) and `unseen` -> probes, patients sorted; possibly none."""
    images: int
    seconds: float
    device: torch.device
    nfe: int


@dataclass(frozen=True)
class _Plan:
    """What one style patient lends and what is drawn in its style."""

    lent: pd.DataFrame
    references: pd.DataFrame
    layouts: np.ndarray  # (n, H, W)
    seeds: list[int]


def style_groups(patches: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of the patients whose styles are measured: `seen` and `unseen`.

    Validation patients take the part of unseen ones where there are none. Test patients never do: the figures are
    there to choose a generator by.
    """
    annotated = train_patches(patches, annotated=True)["patient"]
    seen = train_patches(patches, annotated=False)
    unseen = patches[patches["split"] == "unseen"]
    return {
        "seen": seen[~seen["patient"].isin(annotated)],
        "unseen": unseen if len(unseen) else patches[patches["split"] == "val"],
    }


def draw_probes(run: RunFolder, config: RunConfig) -> Drawing:
    """Draw `evaluate.images_per_style` images for each measured patient, and let the judge read everything.

    Layouts are warped label maps of the patient's own reference images, so that what is compared with those differs
    from them in style alone. They are drawn once in the patient's style and once in another's.
    """
    rng = np.random.default_rng([config.seed, 7])
    judge = Segmenter.from_pretrained(run.segmenter(JUDGE_ARM, config.seed)).to(best_device())
    plans = {
        name: [_plan(rows, run, config, judge, rng) for rows in _chosen(candidates, config, rng)]
        for name, candidates in style_groups(run.patches()).items()
    }
    model = StyleDiffusion.from_pretrained(run.generator(config)).to(best_device())
    started = time.perf_counter()
    groups = {name: _probes(run, config, model, judge, group) for name, group in plans.items()}
    seconds = time.perf_counter() - started
    drawn = sum(len(probe.drawn) + len(probe.elsewhere) for group in groups.values() for probe in group)
    return Drawing(groups, drawn, seconds, model.device, sampling_of(model, config).nfe)


def _probes(
    run: RunFolder, config: RunConfig, model: StyleDiffusion, judge: Segmenter, plans: list[_Plan]
) -> list[StyleProbe]:
    """The probes of a group; the other patient is the next one, of the last the first."""
    if not plans:
        return []
    places = np.arange(len(plans))
    drawn = _draw(run, config, model, plans, lenders=places)
    elsewhere = [drawn[0][:0]] if len(plans) == 1 else _draw(run, config, model, plans, lenders=np.roll(places, -1))
    return [_probe(run, judge, *parts) for parts in zip(plans, drawn, elsewhere, strict=True)]


def _chosen(candidates: pd.DataFrame, config: RunConfig, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Up to `evaluate.style_patients` patients, drawn from those with enough images; with two at least, if all lack."""
    sizes = candidates.groupby("patient").size()
    enough = sizes[sizes >= (_ENOUGH if (sizes >= _ENOUGH).sum() >= 2 else 2)].index
    drawn = sorted(rng.permutation(sorted(enough))[: config.evaluate.style_patients])
    return [candidates[candidates["patient"] == name] for name in drawn]


def _plan(rows: pd.DataFrame, run: RunFolder, config: RunConfig, judge: Segmenter, rng: np.random.Generator) -> _Plan:
    """At most half of the patient's images lend the style: the others are what the drawn ones are compared with."""
    rows = rows.iloc[rng.permutation(len(rows))]
    size = min(style_set_size(config), len(rows) // 2)
    real = RealLayouts(_label_maps(run, judge, rows.iloc[size:]))
    different = max(1, config.evaluate.images_per_style - REPEATS + 1)
    maps = [real.draw(rng)[0] for _ in range(different)]
    layouts = np.stack(maps + [maps[-1]] * (config.evaluate.images_per_style - different))
    return _Plan(rows.iloc[:size], rows.iloc[size:], layouts, rng.integers(2**31, size=len(layouts)).tolist())


def _label_maps(run: RunFolder, judge: Segmenter, rows: pd.DataFrame) -> np.ndarray:
    """Annotation (n, H, W), used or not, and the judge's reading where there is none."""
    annotated = rows["has_mask"].to_numpy(bool)
    maps = judge.predict(run.images(rows))
    if annotated.any():
        maps[annotated] = run.hidden_label_maps(rows[annotated])
    return maps


def _draw(
    run: RunFolder, config: RunConfig, model: StyleDiffusion, plans: list[_Plan], *, lenders: np.ndarray
) -> list[np.ndarray]:
    """Each plan's images in the style of plan `lenders[k]`, with the `generate` section, in batches of one size."""
    styles = None
    if config.generate.styles != "none":
        fixed = config.diffusion.aggregation == "linear"  # takes its number of images, if need be one twice
        sets = [run.images(plans[k].lent) for k in lenders]
        size = style_set_size(config)
        sets = [images[np.arange(size) % len(images)] for images in sets] if fixed else sets
        styles = model.extract_styles(sets)[torch.arange(len(plans)).repeat_interleave(len(plans[0].seeds))]
    layouts = np.concatenate([plan.layouts for plan in plans])
    seeds = np.concatenate([plan.seeds for plan in plans])
    parts = []
    for start in range(0, len(seeds), config.generate.batch_size):
        # A last, smaller batch is filled up: on some processors a result depends on the batch size in its last bit.
        rows = np.arange(start, start + config.generate.batch_size) % len(seeds)
        images = model(
            layouts[rows],
            styles=None if styles is None else styles[torch.from_numpy(rows)],
            seeds=seeds[rows].tolist(),
            **dataclasses.asdict(sampling_of(model, config)),
        )
        parts.append(images[: len(seeds) - start])
    return np.split(np.concatenate(parts), len(plans))


def _probe(run: RunFolder, judge: Segmenter, plan: _Plan, drawn: np.ndarray, elsewhere: np.ndarray) -> StyleProbe:
    rows = pd.concat([plan.lent, plan.references])
    images, maps = run.images(rows), _label_maps(run, judge, rows)
    size = len(plan.lent)
    return StyleProbe(
        patient=str(rows["patient"].iloc[0]),
        style_images=images[:size],
        style_maps=maps[:size],
        references=images[size:],
        reference_maps=maps[size:],
        annotated=rows["has_mask"].to_numpy(bool),
        readings=judge.predict(images),
        drawn=drawn,
        layouts=plan.layouts,
        drawn_readings=judge.predict(drawn),
        elsewhere=elsewhere,
        repeats=REPEATS,
        num_classes=len(run.classes()),
    )
