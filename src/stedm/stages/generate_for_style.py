"""`stedm generate --model`: labelled images in the style of a slide that no stage has seen, without a run."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from stedm.data.layout_files import LayoutFiles
from stedm.data.slide import Slide
from stedm.data.style_pool import StylePatch, deal_style_sets, find_style_patches, read_style_set
from stedm.data.tables import read_parquet
from stedm.device import best_device
from stedm.diffusion.pipeline import INDEX, StyleDiffusion, Styles
from stedm.diffusion.sampling import Sampling
from stedm.errors import SharedError, UserError
from stedm.files import atomic_path, locked, refuse_links, remove_temporaries, write_json, writing
from stedm.png import Writer
from stedm.progress import Bar
from stedm.ranks import everyones, is_first, place, share
from stedm.stages.contact_sheet import save_contact_sheet
from stedm.stages.plan_layouts import LayoutSources, PlanLayouts
from stedm.stages.run_folder import RunFolder

STYLE_SETS = 16
"""Style sets dealt from a slide, at most; the images take turns in using them."""
LENT = ("real", "prior", "real+prior")
"""Layouts that a run lends: warped annotated label maps, random fields matched to them, or both in turns."""


class Layouts(Protocol):
    """Where layouts come from."""

    def choose(self, k: int, rng: np.random.Generator) -> dict[str, Any]:
        """Columns of a plan's row k that say which layout it has."""
        ...

    def of(self, row: Any) -> np.ndarray:
        """Layout (H, W) uint8 of a plan row."""
        ...

    def notices(self) -> list[str]:
        """What a user may not have meant: a sentence each."""
        ...


class RunLayouts:
    """Layouts of a run's annotated patients, as stage `generate` draws them."""

    def __init__(self, run: RunFolder, kind: str, model: StyleDiffusion) -> None:
        """kind: one of LENT. Raises UserError when the run has other classes or patches than the model."""
        patches = run.patches()
        if run.classes() != model.classes:
            raise UserError(
                f"{run.root}: its classes {run.classes()} are not the model's {model.classes}; name its run"
            )
        self.sources = LayoutSources.of(patches, kind)
        self.layouts = PlanLayouts(run, patches)
        if (side_px := self.layouts.maps.shape[1]) != model.patch_px:
            raise UserError(f"{run.root}: patches of {side_px} px, the model's are {model.patch_px} px; name its run")

    def choose(self, k: int, rng: np.random.Generator) -> dict[str, Any]:
        """See `Layouts`."""
        return {**self.sources.choose(k, rng), "layout_seed": int(rng.integers(2**31))}

    def of(self, row: Any) -> np.ndarray:
        """See `Layouts`."""
        return self.layouts.of(row)

    def notices(self) -> list[str]:
        """See `Layouts`."""
        return []


def load_generator(folder: str | Path, *, patch_px: int | None = None, mpp: float | None = None) -> StyleDiffusion:
    """The generator in a `diffusion/` or `few_step/` folder, or in a run folder, with a patch size and resolution.

    patch_px: instead of the width it was trained at. mpp: for generators that do not say it. Raises UserError when
    either is unknown, and for an `mpp` that contradicts the generator's.
    """
    inside = Path(folder) / "diffusion"
    folder = inside if (inside / INDEX).exists() else Path(folder)
    model = StyleDiffusion.from_pretrained(folder)
    if mpp and model.mpp and abs(mpp / model.mpp - 1) > 0.01:
        raise UserError(
            f"--mpp {mpp:g}: the model draws at {model.mpp:g} microns per pixel; leave it out, and say those of the"
            " style slide with --style-mpp"
        )
    model.patch_px, model.mpp = patch_px or model.patch_px, mpp or model.mpp
    flags = {"--patch-px": model.patch_px, "--mpp": model.mpp}
    if missing := [flag for flag, value in flags.items() if value is None]:
        raise UserError(
            f"{folder / INDEX}: does not say the one patch width and resolution the model was trained at (an older"
            f" version wrote it, or there were several); name them with {' and '.join(missing)}"
        )
    if model.patch_px % model.unet.grid_multiple:  # type: ignore[operator]
        raise UserError(f"--patch-px {model.patch_px}: not a multiple of {model.unet.grid_multiple}; correct it")
    return model.to(best_device())


def run_of(model_folder: str | Path) -> Path | None:
    """The run folder that a model folder is, or lies in; None for a model that was copied elsewhere."""
    folder = Path(model_folder).resolve()
    return next((run for run in (folder, folder.parent) if (run / "data" / "patches.parquet").exists()), None)


def find_layouts(layouts: str | None, run: str | Path | None, model: StyleDiffusion) -> Layouts:
    """Layouts of a folder, or one of LENT from a run; a folder of that name is named with a slash.

    Raises UserError when there is neither a folder nor a run.
    """
    if layouts is not None and layouts not in LENT:
        return LayoutFiles(layouts, classes=model.classes, size_px=model.patch_px or 0)
    if run is None:
        raise UserError("no layouts; name a folder of label maps with --layouts, or a run that lends some with --run")
    return RunLayouts(RunFolder(run), layouts or "real+prior", model)


def find_style_sets(
    sources: Sequence[str | Path], model: StyleDiffusion, *, set_size: int, source_mpp: float | None, **options: Any
) -> list[list[StylePatch]]:
    """Style sets of tissue patches of the sources at the model's resolution, STYLE_SETS at most.

    options: `min_tissue` and `seed` of `find_style_patches`.
    """
    for source in sources[:1]:
        with Slide.open(source, mpp=source_mpp) as slide:
            try:
                slide.mpp  # noqa: B018 (asked whether it is known)
            except UserError:
                raise UserError(f"{source}: microns per pixel unknown; say them with --style-mpp") from None
    aggregation = model.style_extractor.config
    set_size = aggregation["set_size"] if aggregation["aggregation"] == "linear" else set_size
    size = {"patch_px": model.patch_px, "mpp": model.mpp, "source_mpp": source_mpp}
    patches = find_style_patches(sources, **size, wanted=STYLE_SETS * set_size, **options)  # type: ignore[arg-type]
    if aggregation["aggregation"] == "linear" and len(patches) < set_size:
        raise UserError(f"{sources[0]}: {len(patches)} patch(es) of tissue; the model needs {set_size}: --min-tissue")
    return deal_style_sets(patches, set_size)


def plan_for_style(
    layouts: Layouts,
    style_sets: Sequence[Sequence[StylePatch]],
    sampling: Sampling,
    *,
    num_images: int,
    seed: int,
    model_digest: str,
) -> pd.DataFrame:
    """One row per image; row k depends on the seed and k alone, whatever `num_images`."""
    rows = []
    for k in range(num_images):
        rng = np.random.default_rng([seed, 2, k])
        style_set = (k + k // len(style_sets)) % len(style_sets)  # not in step with layouts, which take turns too
        rows.append(
            {
                "id": f"s{k:06d}",
                **layouts.choose(k, rng),
                "style_set": style_set,
                "style_patches": json.dumps([dataclasses.astuple(patch) for patch in style_sets[style_set]]),
                "seed": int(rng.integers(2**31)),
                **dataclasses.asdict(sampling),
                "model": model_digest,
            }
        )
    return pd.DataFrame(rows)


def generate_for_style(
    model: StyleDiffusion,
    layouts: Layouts,
    style_sets: Sequence[Sequence[StylePatch]],
    out: str | Path,
    *,
    num_images: int,
    source_mpp: float | None = None,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Write plan.parquet, images/, masks/, manifest.parquet and contact_sheet.png into `out`; the manifest.

    Images that are there are kept, so that a killed command continues and a larger `num_images` adds to a set.
    sampling: fields of `Sampling` instead of the model's own. Raises UserError when `out` holds another set.
    """
    out = Path(out)
    refuse_links(out)
    options = _sampling(model, sampling or {})
    identity: dict[str, Any] = {"seed": seed, "model_digest": _digest(model)}
    plan = plan_for_style(layouts, style_sets, options, num_images=num_images, **identity)
    with _alone_in(out):
        refuse_another_set(out, plan)
        if is_first():
            with atomic_path(out / "plan.parquet") as temporary:
                plan.to_parquet(temporary)
        sets = [
            read_style_set(patches, patch_px=model.patch_px or 0, mpp=model.mpp or 0.0, source_mpp=source_mpp)
            for patches in style_sets
        ]
        _draw_missing(model, layouts, model.extract_styles(sets), plan, out, options, batch_size=batch_size)
        manifest = plan.assign(image="images/" + plan["id"] + ".png", mask="masks/" + plan["id"] + ".png")
        manifest["layout"], manifest["mpp"] = manifest["mask"], model.mpp
        if is_first():
            with atomic_path(out / "manifest.parquet") as temporary:
                manifest.to_parquet(temporary)
            write_json(out / "classes.json", {"classes": model.classes})
            save_contact_sheet(out, manifest, np.concatenate(sets))
        return manifest


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder, without what a killed process left half-written in it; the first rank does it for all."""
    busy = "another stedm process is drawing there; wait for it or use --out"
    lock = locked(out / ".lock", folder=out, fix="choose another folder with --out", busy=busy)
    with writing(out / "plan.parquet"), lock if is_first() else nullcontext():
        if is_first():
            for pattern in (".*", "images/.*", "masks/.*"):
                remove_temporaries(out, pattern)
        everyones(None)  # nobody writes before all is clean
        yield


def _draw_missing(
    model: StyleDiffusion,
    layouts: Layouts,
    styles: Styles,
    plan: pd.DataFrame,
    out: Path,
    options: Sampling,
    *,
    batch_size: int,
) -> None:
    """Draw the rows whose image is not there: the mask is written first, so that an image stands for a pair."""
    mine = share(plan)
    todo = mine[[not (out / "images" / f"{name}.png").exists() for name in mine["id"]]]
    already, started = len(mine) - len(todo), time.perf_counter()
    with Bar("drawing images", total=len(mine), completed=already, folder=out) as bar, Writer() as writer:
        for start in range(0, len(todo), batch_size):
            rows = todo.iloc[start : start + batch_size]
            maps = np.stack([layouts.of(row) for _, row in rows.iterrows()])
            # A last, smaller batch is filled up: a result can depend on the batch size in its last bit.
            fill = np.arange(batch_size) % len(rows)
            images = model(
                maps[fill],
                styles=styles[torch.from_numpy(rows["style_set"].to_numpy()[fill])],
                seeds=rows["seed"].to_numpy()[fill].tolist(),
                **dataclasses.asdict(options),
            )
            for name, image, label_map in zip(rows["id"], images, maps, strict=False):
                writer.put((out / "masks" / f"{name}.png", label_map), (out / "images" / f"{name}.png", image))
            bar.update(already + start + len(rows), unit="images")
    drawn = sum(everyones(len(todo)))
    if drawn and is_first():
        figures = {"images": drawn, "seconds": time.perf_counter() - started, "device": str(model.device)}
        write_json(out / "throughput.json", figures | {"cores": torch.get_num_threads() * place().world})


def _sampling(model: StyleDiffusion, given: Mapping[str, Any]) -> Sampling:
    try:
        return dataclasses.replace(
            model.sampling, **{name: value for name, value in given.items() if value is not None}
        )
    except ValueError as error:
        raise UserError(f"{error}") from None


def _digest(model: StyleDiffusion) -> str:
    """12 hexadecimal digits that stand for the weights."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def refuse_another_set(out: Path, plan: pd.DataFrame) -> None:
    """Raises UserError unless `out` is new or holds the beginning of this plan, or this plan and more."""
    path = out / "plan.parquet"
    if not path.exists():
        return
    there = read_parquet(path)
    same = min(len(there), len(plan))
    if list(there) != list(plan) or not there.head(same).equals(plan.head(same)):
        raise SharedError(f"{path}: another set is there (other model, style, layouts or options); give another --out")
    if len(there) > len(plan):
        raise SharedError(
            f"{path}: {len(there)} images are planned there already; give --n {len(there)} or another --out"
        )
