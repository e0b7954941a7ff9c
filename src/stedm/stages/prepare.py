"""Stage `prepare`: from the cohort table to the run's `data/` folder of patches, splits and classes."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from stedm.config import IGNORE, CohortConfig, RunConfig, TargetConfig
from stedm.data.cohort import read_cohort, read_table, row_name
from stedm.data.composition import CompositionTable
from stedm.data.laboratories import Laboratory, joined, read_laboratories, resolve_label_maps, sections_of
from stedm.data.phantom import PHANTOM_LABELS, write_cohort
from stedm.data.splits import split_patients, usable_patients
from stedm.errors import UserError
from stedm.files import atomic_path, link, read_json, write_json
from stedm.stages.alignment import ALIGNMENT
from stedm.stages.prepare_slide import SlideCutter, open_slide

EXTRACTED = "extracted.parquet"
"""In the data folder, written last: every patch, whatever roles the patients have."""

FORMAT = 2
"""Raise it when the same settings give other patches: the procedural cohort drawn differently, for one."""


def prepare(out: Path, config: RunConfig) -> None:
    """Write the run's data folder `out`: cohort.parquet, patches.parquet, splits.json, classes.json, images/, masks/.

    Table, files, labels and splits are checked before the first patch is written. Killed and started again, it keeps
    the patches that are there, as long as table, files, `cohort` and `prepare` settings are the same; roles may change.
    Raises UserError.
    """
    key = _extraction_key(config)
    unchanged = _extracted_from(out) == key
    whole = unchanged and (out / EXTRACTED).exists()
    cohort_config = config.cohort if config.cohort.table else _phantom(out, config.cohort, reuse=unchanged)
    laboratories = read_laboratories(cohort_config, read=read_table if whole else read_cohort)
    cohort = joined(laboratories)
    if config.split.fold and not config.cohort.table:  # its own roles are a suggestion
        cohort["split"] = cohort["split"].where(cohort["split"] == "unseen", "")
    splits = split_patients(cohort, config.split)
    if not splits["train_unannotated"] and config.generate.styles == "unannotated" and config.split.label_budget:
        raise UserError("every training patient is annotated; set generate.styles: annotated, or a lower label budget")
    if not whole:
        _extract(out, config, laboratories, patients=usable_patients(cohort, config.split))
    classes = read_json(out / "classes.json")["classes"]
    patches = _with_roles(pd.read_parquet(out / EXTRACTED), classes, splits)
    for name, table in (("cohort", cohort), ("patches", patches)):
        with atomic_path(out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary)
    write_json(out / "splits.json", splits)


def _extract(out: Path, config: RunConfig, laboratories: list[Laboratory], *, patients: set[str]) -> None:
    """Cut the patches of `patients` into images/ and masks/, and write EXTRACTED: what is the same whoever has a role.

    Patches that an interrupted attempt with the same settings left are kept.
    """
    key, cohort = _extraction_key(config), joined(laboratories)
    with _progress() as progress:
        label_maps = resolve_label_maps(laboratories)
        classes = label_maps[0].classes
        if config.generate.composition:  # a mistake in it should not come to light after the training
            CompositionTable.read(config.generate.composition, classes)
        _check_pixels(laboratories, progress)
        if _extracted_from(out) != key:
            (out / EXTRACTED).unlink(missing_ok=True)
            for name in ("images", "masks", ALIGNMENT):
                shutil.rmtree(out / name, ignore_errors=True)
            write_json(out / "extraction.json", key)
        cutters = {
            laboratory.name: SlideCutter(out, config.prepare, labels)
            for laboratory, labels in zip(laboratories, label_maps, strict=True)
        }
        task = progress.add_task("cutting patches", total=len(cohort))
        records: list[dict[str, Any]] = []
        for position, row in enumerate(cohort.itertuples(index=False)):
            records += cutters[row.laboratory].patches(position, row) if row.patient in patients else []
            progress.advance(task)
    write_json(out / "classes.json", {"classes": classes, "ignore": IGNORE, "patch_px": config.prepare.patch_px})
    fractions = [f"fraction_{name}" for name in classes]
    columns = ["patch_id", "patient", "laboratory", "slide", "source", "group", "has_mask"]
    columns += ["x_um", "y_um", "mpp", "tissue_fraction", *fractions, "image", "mask"]
    with atomic_path(out / EXTRACTED) as temporary:
        pd.DataFrame(records).reindex(columns=columns).astype(dict.fromkeys(fractions, float)).to_parquet(temporary)


def share_patches(out: Path, others: Iterable[Path], config: RunConfig) -> None:
    """Let data folder `out` have the patches of one of `others` that cut the same: as hard links, where these work."""
    key = _extraction_key(config)
    if _extracted_from(out) == key and (out / EXTRACTED).exists():
        return
    for other in others:
        if _extracted_from(other) == key and (other / EXTRACTED).exists():
            (out / "extraction.json").unlink(missing_ok=True)
            for name in ("phantom", "images", "masks", ALIGNMENT, "classes.json", EXTRACTED):
                if (other / name).exists():
                    link(other / name, out / name)
            write_json(out / "extraction.json", key)  # the last, for a process that is killed here
            return


def _extracted_from(out: Path) -> Any:
    """The extraction key of the patches in `out`; None without any."""
    return read_json(out / "extraction.json") if (out / "extraction.json").exists() else None


def input_digest(config: RunConfig) -> str:
    """SHA-256 over the cohort tables and the size and modification time of every file they name; "" for the phantom.

    Raises UserError for a table that cannot be read; files that are missing are left to `prepare` to report.
    """
    if not config.cohort.table:
        return ""
    digest = hashlib.sha256()
    for _, section, options in sections_of(config.cohort):
        table = read_table(options, section=section)
        digest.update(Path(options.table or "").read_bytes())
        for name in pd.concat([table["image"], table["mask"], table["annotation"]]):
            path = Path(name)
            if name and path.is_file():
                digest.update(f"{path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _extraction_key(config: RunConfig) -> dict[str, str]:
    """What the patch files depend on."""
    cohort = dataclasses.replace(config.cohort, licence=None)  # words about the images change no patch
    content = [FORMAT, dataclasses.asdict(cohort), dataclasses.asdict(config.prepare), config.split.keep_source]
    settings = json.dumps(content, sort_keys=True)
    return {"settings": hashlib.sha256(settings.encode()).hexdigest(), "inputs": input_digest(config)}


def _phantom(out: Path, config: CohortConfig, *, reuse: bool) -> CohortConfig:
    """Draw the procedural cohort into `out` unless it is there; the cohort section that reads it."""
    table = out / "phantom" / "cohort.csv"
    if not (reuse and table.exists()):
        write_cohort(out / "phantom", config.phantom)
    second = out / "phantom" / "target.csv"
    target = TargetConfig(table=str(second)) if second.exists() else None
    return dataclasses.replace(config, table=str(table), columns={}, labels=PHANTOM_LABELS, mpp=None, target=target)


def _check_pixels(laboratories: list[Laboratory], progress: Progress) -> None:
    """Refuse images whose pixels cannot be decoded or whose microns per pixel nobody knows, naming the row."""
    task = progress.add_task("checking images", total=sum(len(laboratory.cohort) for laboratory in laboratories))
    for laboratory in laboratories:
        for position, row in enumerate(laboratory.cohort.itertuples(index=False)):
            try:
                with open_slide(row) as slide:
                    slide.read(0, 0, size_px=1, mpp=slide.mpp)
            except UserError as error:
                raise UserError(f"{row_name(str(laboratory.config.table), position)}: {error}") from None
            progress.advance(task)


def _with_roles(extracted: pd.DataFrame, classes: list[str], splits: dict[str, list[str]]) -> pd.DataFrame:
    """The patches table: patches of patients with a role, class fractions only of those whose annotation is used.

    Raises UserError when a role is left without patches.
    """
    role = extracted["patient"].map({patient: role for role, patients in splits.items() for patient in patients})
    extracted, role = (rows[role.notna()].reset_index(drop=True) for rows in (extracted, role))
    annotated = extracted["has_mask"].astype(bool) & ~role.isin(["train_unannotated", "unseen"])
    for name in ("train_annotated", "val", "test"):
        if not (annotated & (role == name)).any():
            raise UserError(
                f"no patch of the {name} patients {splits[name][:3]} holds tissue; lower prepare.min_tissue"
            )
    table = extracted.copy()
    table.insert(6, "split", role.str.partition("_")[0])
    table.insert(7, "annotated", annotated)
    for name in classes:
        table[f"fraction_{name}"] = table[f"fraction_{name}"].where(annotated)
    return table


class _Rate(ProgressColumn):
    """Rows per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f}/s")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
