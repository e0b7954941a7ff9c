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
from stedm.stages.grids import sampling_of, style_set_rows, style_set_size
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
    """One style patient: its real images, what the judge reads in them, and what is drawn in its style."""

    patient: str
    lent: int
    """The first so many images are the style set; what is drawn is compared with the others."""
    images: np.ndarray
    annotated: np.ndarray
    readings: np.ndarray
    maps: np.ndarray
    """Annotation, used or not; the judge's reading where there is none."""
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
    images = {name: _draw_twice(config, model, group) for name, group in plans.items()}
    seconds = time.perf_counter() - started
    groups = {
        name: [_probe(judge, *parts) for parts in zip(group, *images[name], strict=True)]
        for name, group in plans.items()
    }
    drawn = sum(len(probe.drawn) + len(probe.elsewhere) for group in groups.values() for probe in group)
    return Drawing(groups, drawn, seconds, model.device, sampling_of(model, config).nfe)


def _draw_twice(
    config: RunConfig, model: StyleDiffusion, plans: list[_Plan]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The images of each plan of a group in its own style, and in the next one's; none of a patient that is alone."""
    if not plans:
        return [], []
    drawn = _draw(config, model, plans, lenders=plans)
    if len(plans) == 1:
        return drawn, [drawn[0][:0]]
    return drawn, _draw(config, model, plans, lenders=[*plans[1:], plans[0]])


def _chosen(candidates: pd.DataFrame, config: RunConfig, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Up to `evaluate.style_patients` patients, drawn from those with enough images; with two at least, if all lack."""
    sizes = candidates.groupby("patient").size()
    enough = sizes[sizes >= (_ENOUGH if (sizes >= _ENOUGH).sum() >= 2 else 2)].index
    drawn = sorted(rng.permutation(sorted(enough))[: config.evaluate.style_patients])
    return [candidates[candidates["patient"] == name] for name in drawn]


def _plan(rows: pd.DataFrame, run: RunFolder, config: RunConfig, judge: Segmenter, rng: np.random.Generator) -> _Plan:
    """At most half of the patient's images lend the style: the others are what the drawn ones are compared with."""
    rows = rows.iloc[rng.permutation(len(rows))]
    lent = min(style_set_size(config), len(rows) // 2)
    images, annotated = run.images(rows), rows["has_mask"].to_numpy(bool)
    readings = judge.predict(images)
    maps = readings.copy()
    if annotated.any():
        maps[annotated] = run.hidden_label_maps(rows[annotated])
    real = RealLayouts(maps[lent:])
    different = max(1, config.evaluate.images_per_style - REPEATS + 1)
    layouts = [real.draw(rng)[0] for _ in range(different)]
    layouts += [layouts[-1]] * (config.evaluate.images_per_style - different)
    seeds = rng.integers(2**31, size=len(layouts)).tolist()
    patient = str(rows["patient"].iloc[0])
    return _Plan(patient, lent, images, annotated, readings, maps, np.stack(layouts), seeds)


def _draw(config: RunConfig, model: StyleDiffusion, plans: list[_Plan], *, lenders: list[_Plan]) -> list[np.ndarray]:
    """Each plan's images in the style of its lender, with the `generate` section, in batches of one size."""
    styles = None
    if config.generate.styles != "none":
        sets = [lender.images[style_set_rows(lender.lent, config)] for lender in lenders]
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


def _probe(judge: Segmenter, plan: _Plan, drawn: np.ndarray, elsewhere: np.ndarray) -> StyleProbe:
    return StyleProbe(
        patient=plan.patient,
        style_images=plan.images[: plan.lent],
        style_maps=plan.maps[: plan.lent],
        references=plan.images[plan.lent :],
        reference_maps=plan.maps[plan.lent :],
        annotated=plan.annotated,
        readings=plan.readings,
        drawn=drawn,
        layouts=plan.layouts,
        drawn_readings=judge.predict(drawn),
        elsewhere=elsewhere,
        repeats=REPEATS,
        num_classes=len(judge.classes),
    )
