"""Stage `prepare`: from the cohort table to the run's `data/` folder of patches, splits and classes."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from stedm.config import IGNORE, CohortConfig, RunConfig, TargetConfig
from stedm.config_cohort import wherever_tables_are
from stedm.data.cohort import read_cohort, read_table
from stedm.data.composition import CompositionTable
from stedm.data.laboratories import Laboratory, joined, read_laboratories, resolve_label_maps
from stedm.data.phantom import PHANTOM_LABELS, write_cohort
from stedm.data.splits import split_patients, usable_patients
from stedm.data.tables import read_own_csv, read_parquet, write_csv
from stedm.errors import UserError
from stedm.files import atomic_path, link, read_json, whole, write_json
from stedm.stages.alignment import alignment_notices
from stedm.stages.inputs import EXTRACTED, INPUTS, Inputs, inputs_of, record
from stedm.stages.prepare_slides import FOLDERS, FORMAT, cut_slides, records_of, slide_tasks
from stedm.stages.roles import cohort as cohort_roles
from stedm.stages.run_folder import class_names

_TOLD = 5
"""Notices about annotation files on the terminal, at most."""

SKIPPED = "skipped.csv"
"""In the data folder, when slides were damaged: which, and what is wrong with them."""
PHANTOM_FORMAT = 2
"""Raise it when the procedural cohort is drawn differently; for other patches see `prepare_slides.FORMAT`."""
CUT_AS = (PHANTOM_FORMAT, FORMAT)
"""How patches come about, beside config and inputs: when it changes they are cut anew, in finished runs too."""


def prepare(out: Path, config: RunConfig, *, jobs: int = 1) -> None:
    """Write the run's data folder `out`: cohort.parquet, patches.parquet, splits.json, classes.json, images/, masks/.

    Table, files, labels and splits are checked before the first patch is written. Killed and started again, it keeps
    the slides that are done (see `prepare_slides`); roles may change without cutting anything. Damaged slides are left
    out, and named in skipped.csv. jobs: processes that cut slides; the result does not depend on it. Raises UserError.
    """
    inputs = inputs_of(config.cohort, out)
    key = _extraction_key(config, inputs)
    unchanged = _extracted_from(out) == key
    is_cut = unchanged and (out / EXTRACTED).exists()
    cohort_config = config.cohort if config.cohort.table else _phantom(out, config.cohort, reuse=unchanged)
    laboratories = read_laboratories(cohort_config, read=read_table if is_cut else read_cohort)
    cohort = joined(laboratories)
    if config.split.fold and not config.cohort.table:  # its own roles are a suggestion
        cohort["split"] = cohort["split"].where(cohort["split"] == "unseen", "")
    splits = _splits(cohort, config)
    if not is_cut:
        patients = usable_patients(cohort, config.split)
        _extract(out, config, inputs, laboratories, patients=patients, jobs=jobs)
    skipped = skipped_slides(out)
    if len(skipped):
        cohort = cohort[~cohort["image"].isin(skipped["image"])].reset_index(drop=True)
        splits = _splits_of_the_rest(cohort, config, skipped)
    fix = f"remove {out / EXTRACTED}, and run the same command again"
    classes = class_names(out / "classes.json", fix=fix)
    with whole(out / EXTRACTED, fix=fix):
        patches = _with_roles(read_parquet(out / EXTRACTED), classes, splits)
        _tell_roles(patches, classes)
    for name, table in (("cohort", cohort), ("patches", patches)):
        with atomic_path(out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary)
    write_json(out / "splits.json", splits)


def _tell_roles(patches: pd.DataFrame, classes: list[str]) -> None:
    """Say who has which role, and how much of each class the annotation in use shows: a mistake is seen here first."""
    told = [
        f"{row['role']}: {row['patients']} patients, {row['patches']} patches" for row in cohort_roles(patches) or []
    ]
    shares = patches[[f"fraction_{name}" for name in classes]].mean()
    of_classes = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(classes, shares, strict=True))
    for line in (*told, f"annotated pixels: {of_classes}"):
        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def skipped_slides(out: Path) -> pd.DataFrame:
    """The damaged slides that data folder `out` does without: slide, patient, image, reason; possibly none."""
    path = out / SKIPPED
    return read_own_csv(path, dtype=str).fillna("") if path.exists() else pd.DataFrame(columns=["image"])


def _splits(cohort: pd.DataFrame, config: RunConfig) -> dict[str, list[str]]:
    splits = split_patients(cohort, config.split)
    if not splits["train_unannotated"] and config.generate.styles == "unannotated" and config.split.label_budget:
        raise UserError("every training patient is annotated; set generate.styles: annotated, or a lower label budget")
    return splits


def _splits_of_the_rest(cohort: pd.DataFrame, config: RunConfig, skipped: pd.DataFrame) -> dict[str, list[str]]:
    """Roles when damaged slides are left out, with patients of whom nothing is left."""
    console = Console(stderr=True)
    for row in skipped.itertuples(index=False):
        console.print(f"skipped: {row.reason}", style="yellow", markup=False, soft_wrap=True)
    try:
        return _splits(cohort, config)
    except UserError as error:
        reasons = "; ".join(skipped["reason"])
        raise UserError(f"{error} ({len(skipped)} damaged slide(s) were left out: {reasons})") from None


def _extract(
    out: Path, config: RunConfig, inputs: Inputs, laboratories: list[Laboratory], *, patients: set[str], jobs: int
) -> None:
    """Cut the patches of `patients` into images/ and masks/, and write EXTRACTED, the same whoever has which role."""
    label_maps = resolve_label_maps(laboratories)
    classes = label_maps[0].classes
    if config.generate.composition:  # a mistake in it should not come to light after the training
        CompositionTable.read(config.generate.composition, classes).check_groups(joined(laboratories)["group"])
    key = _extraction_key(config, inputs)
    if _extracted_from(out) != key:
        for name in (EXTRACTED, SKIPPED):
            (out / name).unlink(missing_ok=True)
        write_json(out / "extraction.json", key)
    settings: list[Any] = [dataclasses.asdict(config.prepare)]
    if not config.cohort.table:  # what is drawn follows from these, whenever it was drawn
        settings += [PHANTOM_FORMAT, dataclasses.asdict(config.cohort.phantom)]
    tasks = slide_tasks(laboratories, label_maps, patients, settings=settings, files=inputs.files)
    labels = {laboratory.name: label_map for laboratory, label_map in zip(laboratories, label_maps, strict=True)}
    skipped = cut_slides(out, tasks, config.prepare, labels, jobs=jobs)
    _tell(alignment_notices(out))
    if len(skipped) == len(tasks):
        raise UserError(f"none of the {len(tasks)} slides can be read; the first: {skipped['reason'][0]}")
    write_json(out / "classes.json", {"classes": classes, "ignore": IGNORE, "patch_px": config.prepare.patch_px})
    fractions = [f"fraction_{name}" for name in classes]
    columns = ["patch_id", "patient", "laboratory", "slide", "source", "group", "has_mask"]
    columns += ["x_um", "y_um", "mpp", "tissue_fraction", *fractions, "image", "mask"]
    records = records_of(out, tasks, columns).astype(dict.fromkeys(fractions, float))
    if len(skipped):
        with atomic_path(out / SKIPPED) as temporary:
            write_csv(skipped, temporary)
    record(out, inputs, cut={task.source for task in tasks})
    with atomic_path(out / EXTRACTED) as temporary:
        records.to_parquet(temporary)


def _tell(notices: list[str]) -> None:
    """Say what was repaired and left out in annotation files; of many, the first few."""
    console = Console(stderr=True)
    more = [f"{len(notices) - _TOLD} more in the report"] if len(notices) > _TOLD else []
    for notice in [*notices[:_TOLD], *more]:
        console.print(f"annotations: {notice}", markup=False, soft_wrap=True)


def share_patches(out: Path, others: Iterable[Path], config: RunConfig) -> None:
    """Let data folder `out` have the patches of one of `others` that cut the same: as hard links, where these work."""
    key = _extraction_key(config, inputs_of(config.cohort, out))
    if _extracted_from(out) == key and (out / EXTRACTED).exists():
        return
    for other in others:
        if _extracted_from(other) == key and (other / EXTRACTED).exists():
            (out / "extraction.json").unlink(missing_ok=True)
            for name in ("phantom", "slides", *FOLDERS, "classes.json", SKIPPED, INPUTS, EXTRACTED):
                if (other / name).exists():
                    link(other / name, out / name)
            write_json(out / "extraction.json", key)  # the last, for a process that is killed here
            return


def _extracted_from(out: Path) -> Any:
    """The extraction key of the patches in `out`; None without any."""
    try:
        return read_json(out / "extraction.json") if (out / "extraction.json").exists() else None
    except UserError:  # damaged: they are cut again
        return None


def _extraction_key(config: RunConfig, inputs: Inputs) -> dict[str, str]:
    """What the patch files depend on."""
    cohort = dataclasses.replace(wherever_tables_are(config.cohort), licence=None)  # words that change no patch
    content = [
        *CUT_AS,
        dataclasses.asdict(cohort),
        dataclasses.asdict(config.prepare),
        config.split.keep_source,
    ]
    settings = json.dumps(content, sort_keys=True)
    return {"settings": hashlib.sha256(settings.encode()).hexdigest(), "inputs": inputs.digest}


def _phantom(out: Path, config: CohortConfig, *, reuse: bool) -> CohortConfig:
    """Draw the procedural cohort into `out` unless it is there; the cohort section that reads it."""
    table = out / "phantom" / "cohort.csv"
    if not (reuse and table.exists()):
        write_cohort(out / "phantom", config.phantom)
    second = out / "phantom" / "target.csv"
    target = TargetConfig(table=str(second)) if second.exists() else None
    return dataclasses.replace(config, table=str(table), columns={}, labels=PHANTOM_LABELS, mpp=None, target=target)


def _with_roles(extracted: pd.DataFrame, classes: list[str], splits: dict[str, list[str]]) -> pd.DataFrame:
    """The patches table: patches of patients with a role, class fractions only of those whose annotation is used.

    Raises UserError when a role is left without a labelled pixel.
    """
    role = extracted["patient"].map({patient: role for role, patients in splits.items() for patient in patients})
    extracted, role = (rows[role.notna()].reset_index(drop=True) for rows in (extracted, role))
    annotated = extracted["has_mask"].astype(bool) & ~role.isin(["train_unannotated", "unseen"])
    labelled = extracted[[f"fraction_{name}" for name in classes]].sum(axis=1) > 0
    for name in ("train_annotated", "val", "test"):
        patients = f"the {name} patients {splits[name][:3]}"
        if not (annotated & (role == name)).any():
            raise UserError(
                f"no patch of {patients} holds tissue; lower prepare.min_tissue or, where images are smaller than a"
                " patch, prepare.mpp or prepare.patch_px"
            )
        if not (labelled & annotated & (role == name)).any():
            raise UserError(
                f"no patch of {patients} shows a pixel of any class; look at their masks or annotations, at "
                "cohort.labels, or name other patients in the table's column `split`"
            )
    shown = [name for name in classes if (extracted.loc[annotated, f"fraction_{name}"] > 0).any()]
    if len(shown) < 2:
        missing = ", ".join(name for name in classes if name not in shown)
        raise UserError(
            f"the masks of annotated, validation and test patients show {shown[0]} and nothing of {missing}; look at"
            " their values and cohort.labels (255 is ignored unless a class names it)"
        )
    table = extracted.copy()
    table.insert(6, "split", role.str.partition("_")[0])
    table.insert(7, "annotated", annotated)
    for name in classes:
        table[f"fraction_{name}"] = table[f"fraction_{name}"].where(annotated)
    return table
