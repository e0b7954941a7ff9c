"""Stage `generate`: write the plan, a table of independent rows; then draw the rows that are not there yet."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stedm.ahead import made_ahead, results
from stedm.arms import OUR_SETS, SECOND_ROUND
from stedm.config import RunConfig
from stedm.data.composition import CompositionTable
from stedm.data.patches import main_group
from stedm.data.tables import read_parquet
from stedm.device import best_device
from stedm.diffusion.pipeline import StyleDiffusion, Styles
from stedm.diffusion.sampling import Sampling
from stedm.errors import UserError
from stedm.files import atomic_path, write_json
from stedm.png import Writer
from stedm.progress import Bar
from stedm.ranks import everyones, is_first, place, share
from stedm.stages.grids import sampling_of, style_set_rows
from stedm.stages.latents import KeptPlaces
from stedm.stages.layout_statistics import write_layout_statistics
from stedm.stages.plan_layouts import LayoutSources, PlanLayouts
from stedm.stages.run_folder import RunFolder, train_patches

Conditions = tuple[np.ndarray, list[np.ndarray] | None]
"""Layouts (B, H, W) and style sets of a batch of rows."""
SEED_AFTER = {SECOND_ROUND: 2}
"""Which seed after the run's own a set's plan is drawn with, if not that one; the pairs of `few-step` take the next."""


def generate(run: RunFolder, config: RunConfig, *, name: str = "synthetic") -> None:
    """Write the folder of a synthetic set: plan.parquet, images/, masks/, manifest.parquet.

    name: `synthetic`; `second-round`, other rows of the same kind, whose `read` layouts are read by the first round's
    segmenters; or one of the controls: `unstyled`, drawn without a style, and `annotated-only`, drawn by the generator
    that saw annotated patients only, in their styles.
    """
    config, generator, folder = _of_set(config, name), _generator(run, config, name), run.synthetic_set(name)
    patches = run.patches()
    model = StyleDiffusion.from_pretrained(generator).to(best_device())
    seeded = dataclasses.replace(config, seed=config.seed + SEED_AFTER.get(name, 0))
    plan = make_plan(patches, seeded, sampling_of(model, config), composition=composition_of(run, config))
    if is_first():
        with atomic_path(folder / "plan.parquet") as temporary:
            plan.to_parquet(temporary)
    layouts = layouts_of(run, config, patches, name=name)
    mine = share(plan)
    todo = mine[[not (folder / "images" / f"{name}.png").exists() for name in mine["id"]]]
    started, size, done = time.perf_counter(), config.generate.batch_size, len(mine) - len(todo)
    batches = [todo.iloc[start : start + size] for start in range(0, len(todo), size)]

    def conditions(rows: pd.DataFrame) -> Conditions:
        return np.stack([layouts.of(row) for _, row in rows.iterrows()]), style_images_of(run, patches, rows)

    given, places = results(conditions, batches, ahead=made_ahead()), KeptPlaces.of(model.style_extractor, model.device)
    with Bar("drawing images", total=len(mine), completed=done, folder=folder) as bar, Writer() as writer:
        for rows, (maps, style_sets) in zip(batches, given, strict=True):
            styles = None if style_sets is None else model.extract_styles(style_sets, places=places)
            _draw(folder, config, model, rows, maps, styles, writer)
            bar.update(done := done + len(rows), unit="images")
    drawn = sum(everyones(len(todo)))
    if not is_first():
        return
    if drawn:
        seconds, cores = time.perf_counter() - started, torch.get_num_threads() * place().world
        figures = {"images": drawn, "seconds": seconds, "device": str(model.device), "cores": cores}
        write_json(folder / "throughput.json", figures)
    write_layout_statistics(run, plan, patches, seed=config.seed, folder=folder)
    manifest = plan.assign(image="images/" + plan["id"] + ".png", layout="masks/" + plan["id"] + ".png")
    manifest["mask"] = manifest["layout"]
    with atomic_path(folder / "manifest.parquet") as temporary:
        manifest.to_parquet(temporary)


def _generator(run: RunFolder, config: RunConfig, name: str) -> Path:
    """Folder of the generator that draws a set."""
    ours = dict.fromkeys(OUR_SETS, run.generator(config))
    return (ours | {"unstyled": run.diffusion, "annotated-only": run.control})[name]


def _of_set(config: RunConfig, name: str) -> RunConfig:
    """The config a set is drawn with; the controls are drawn by full generators, with everything else alike."""
    changes: dict[str, dict[str, Any]] = {ours: {} for ours in OUR_SETS} | {
        "unstyled": {"styles": "none", "generator": "full"},
        "annotated-only": {"generator": "full"},
    }
    return dataclasses.replace(config, generate=dataclasses.replace(config.generate, **changes[name]))


def layouts_of(run: RunFolder, config: RunConfig, patches: pd.DataFrame, *, name: str = "synthetic") -> PlanLayouts:
    """The layouts of a set's plan; `read` ones by the segmenters that the filter judges it by too."""
    return PlanLayouts(run, patches, teachers=run.teachers(config, name))


def composition_of(run: RunFolder, config: RunConfig) -> CompositionTable | None:
    """The user's composition table, if the config names one. Raises UserError where it does not fit the cohort."""
    if not config.generate.composition:
        return None
    table = CompositionTable.read(config.generate.composition, run.classes())
    table.check_groups(read_parquet(run.data / "cohort.parquet", needs=("group",))["group"])
    return table


def make_plan(
    patches: pd.DataFrame, config: RunConfig, sampling: Sampling, *, composition: CompositionTable | None = None
) -> pd.DataFrame:
    """One row per synthetic image: layout source and seed, style patient and patches, image seed, guidance.

    Style patients take turns, so that each is drawn equally often; styles come from training patients only, and with
    `styles: unannotated` only from those whose annotation is not used. Prior layouts take their fractions from the
    rows that `composition` has for the style patient's group.
    """
    options = config.generate
    annotated = train_patches(patches, annotated=True)
    lenders = train_patches(patches, annotated=options.styles == "annotated")
    if options.styles != "annotated":  # images without a mask of an annotated patient have a style that is known
        lenders = lenders[~lenders["patient"].isin(annotated["patient"])]
    if config.split.label_budget is None and not len(lenders):  # everyone is annotated
        lenders = annotated
    if len(lenders) == 0:
        raise UserError(f"generate.styles: no {options.styles} training patient to take a style from")
    sources = LayoutSources.of(patches, options.layouts, composition=composition)
    by_patient = dict(list(lenders.groupby("patient")))
    rng = np.random.default_rng([config.seed, 5])
    turns = np.concatenate([rng.permutation(sorted(by_patient)) for _ in range(-(-options.images // len(by_patient)))])
    rows = []
    for k, patient in enumerate(turns[: options.images]):
        ids = by_patient[patient]["patch_id"].to_numpy()
        lent = [] if options.styles == "none" else rng.permutation(ids)[style_set_rows(len(ids), config)]
        group = main_group(by_patient[patient]["group"]) if composition is not None else ""
        rows.append(
            {
                "id": f"s{k:06d}",
                **sources.choose(k, rng, group=group),
                "layout_seed": int(rng.integers(2**31)),
                "style_patient": "" if options.styles == "none" else str(patient),
                "style_patches": json.dumps(list(map(str, lent))),
                "seed": int(rng.integers(2**31)),
                "layout_guidance": sampling.layout_guidance,
                "style_guidance": sampling.style_guidance,
            }
        )
    return pd.DataFrame(rows)


def style_images_of(run: RunFolder, patches: pd.DataFrame, rows: pd.DataFrame) -> list[np.ndarray] | None:
    """Style sets (N, H, W, 3) uint8 of plan rows; None when they are drawn without one."""
    by_id = patches.set_index("patch_id")
    lent = [json.loads(names) for names in rows["style_patches"]]
    return [run.images(by_id.loc[names]) for names in lent] if all(lent) else None


def _draw(
    folder: Path,
    config: RunConfig,
    model: StyleDiffusion,
    rows: pd.DataFrame,
    maps: np.ndarray,
    styles: Styles | None,
    writer: Writer,
) -> None:
    """Draw one batch of plan rows and have image and mask of each written, the image last."""
    # A last, smaller batch is filled up: on some processors a result depends on the batch size in its last bit.
    fill = np.arange(config.generate.batch_size) % len(rows)
    images = model(
        maps[fill],
        styles=None if styles is None else styles[torch.from_numpy(fill)],
        seeds=rows["seed"].to_numpy()[fill].tolist(),
        **dataclasses.asdict(sampling_of(model, config)),
    )
    for name, image, label_map in zip(rows["id"], images, maps, strict=False):
        writer.put((folder / "masks" / f"{name}.png", label_map), (folder / "images" / f"{name}.png", image))
