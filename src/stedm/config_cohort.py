"""Sections of the config that say where the images come from: tables of one laboratory or two, or the phantom."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Optional

Family = Literal["he", "ihc"]
Scanner = Literal["first", "second"]
Origin = Literal["slide", "bounds"]


@dataclass
class PhantomConfig:
    """The procedural cohort of `stedm demo`; used when `cohort.table` is not given."""

    train_patients: int = 28
    """Training patients; `split.label_budget` of them are annotated."""
    val_patients: int = 4
    """Validation patients, all annotated."""
    test_patients: int = 24
    """Test patients, all annotated."""
    unseen_patients: int = 8
    """Patients that no stage trains on; they lend styles when the generator is measured."""
    slides_per_patient: int = 2
    """Slides (plain images) drawn for each patient."""
    slide_px: int = 192
    """Width and height of each slide, pixels."""
    mpp: float = 1.0
    """Microns per pixel the slides are drawn at."""
    families: list[Family] = field(default_factory=lambda: ["he", "ihc"])
    """Staining families: H&E-like, and DAB immunohistochemistry with scores 0 to 3+."""
    scanners: list[Scanner] = field(default_factory=lambda: ["first"])
    """Scanners: `second` has a warm lamp and overlapping colour filters, is darker, softer and noisier than `first`."""
    annotated_families: Optional[list[Family]] = None
    """Only these families are annotated: the others are a target laboratory, as `cohort.target` is for tables."""
    annotated_scanners: Optional[list[Scanner]] = None
    """Only slides of these scanners are annotated: the others are a target laboratory."""
    seed: int = 0
    """Seed of patients, layouts and rendering."""


@dataclass
class TargetConfig:
    """A second laboratory, of which nothing is annotated: unannotated training patients and the test patients."""

    table: Optional[str] = None
    """CSV or Parquet table of the target laboratory; masks are needed for its test patients only."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the column's name in the target's table."""
    labels: dict[str, list[Any]] = field(default_factory=dict)
    """Class name -> values in the target's masks, with the class names of `cohort.labels`; those when not given."""
    mpp: Optional[float] = None
    """Microns per pixel of every image of the target; overrides what a slide's metadata says."""
    annotation_origin: Origin = "bounds"
    """Where coordinates of the target's annotation files begin, as `cohort.annotation_origin`."""
    patient_prefix: str = ""
    """Put before the target's patient names, for two tables that use the same names for different people."""


@dataclass
class CohortConfig:
    """Where the images are and how the user's table is to be read."""

    table: Optional[str] = None
    """CSV or Parquet cohort table; the procedural phantom when not given."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the column's name in the table, e.g. {patient: case_id, group: subtype}."""
    labels: dict[str, list[Any]] = field(default_factory=dict)
    """Class name -> values in the mask, in class order, e.g. {background: [0], gland: ["1-254"], ignore: [255]}, or
    names of polygon classes, e.g. {tumour: [Tumor], other: [Stroma, unannotated], ignore: [Necrosis]}. In no polygon:
    `glass` stands for what is no tissue, `unannotated` for the rest, and what neither names is ignored."""
    annotation_origin: Origin = "bounds"
    """Where coordinates of annotation files begin: at the corner of a slide's scanned `bounds`, as QuPath's do, or of
    the whole `slide`; the same unless the file states bounds. A table column of this name overrides it."""
    mpp: Optional[float] = None
    """Microns per pixel of every image; a table column `mpp` and this override what a slide's metadata says."""
    target: Optional[TargetConfig] = None
    """A second laboratory that lends unannotated and test patients; annotated and validation ones stay here."""
    licence: Optional[str] = None
    """Licence of the images and masks, e.g. CC-BY-4.0; shown in the report and the model card, used for nothing."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """The procedural cohort."""


def wherever_tables_are(cohort: CohortConfig) -> CohortConfig:
    """The section without the places of its tables: what is in them counts, and whether there are any."""
    target = cohort.target and replace(cohort.target, table="table")
    return replace(cohort, table=cohort.table and "table", target=target)
