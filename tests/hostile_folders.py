"""What stedm reads of folders, for the harness of mutations.py: runs, results, layouts, networks from elsewhere."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from hostile_formats import (
    APERIO,
    CLASSES,
    FORMATS,
    _cohort,
    _geojson,
    _mask,
    _mask_tiff,
    _plain,
    _pyramid,
    models,
    pixels,
    read_slide,
)
from hostile_slides import SLIDES
from mutations import Format, Kind
from PIL import Image

from stedm.config_file import load_config
from stedm.data.area import open_area
from stedm.data.layout_files import LayoutFiles
from stedm.data.slide import Slide
from stedm.errors import UserError
from stedm.run import run_all
from stedm.segment import write_areas
from stedm.stages.export_set import find_set
from stedm.stages.report import report
from stedm.stages.run_folder import RunFolder
from stedm.stages.segment import SegmentOptions, segment_slide

KINDS: dict[str, Kind] = {".json": "json", ".csv": "text", ".yaml": "text", ".png": "png", ".parquet": "parquet"}


def _copied(make: Callable[[], Path], spoiled: str) -> Callable[[Path], Path]:
    """Writes a copy of a folder that is made once."""

    def write(folder: Path) -> Path:
        shutil.copytree(make(), folder, dirs_exist_ok=True)
        return folder / spoiled

    return write


def _folder(name: str, make: Callable[[], Path], spoiled: str, read: Callable[[Path], Any]) -> Format:
    """A file of such a folder; `read` gets the folder."""
    kind = KINDS.get(Path(spoiled).suffix, "bytes")
    return Format(
        f"{name}: {spoiled}", _copied(make, spoiled), lambda path: read(path.parents[spoiled.count("/")]), kind
    )


def _new(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"stedm-{name}-")) / "folder"


# Runs


@functools.cache
def reported() -> Path:
    """A run with something of all that its report shows."""
    from test_report import VALIDATION, write_run

    run = _new("reported")
    write_run(run)
    (run / "data" / "alignment").mkdir()
    Image.fromarray(pixels()).save(run / "data" / "alignment" / "r00000.jpg")
    record = {"slide": "s0", "file": "a.geojson", "classes": {"gland": 3}, "notices": ["one thing"]}
    (run / "data" / "alignment" / "r00000.json").write_text(json.dumps(record))
    (run / "diffusion" / "validation.json").write_text(json.dumps(VALIDATION))
    return run


@functools.cache
def prepared() -> Path:
    """A run that is prepared, its cohort beside it."""
    folder = _new("prepared")
    folder.mkdir()
    _cohort(folder).assign(mask="mask.png").to_csv(folder / "cohort.csv", index=False)
    _prepare(folder)
    return folder


def _prepare(folder: Path) -> Path:
    """What `stedm prepare` does where all is done but for the mark of it."""
    (folder / "run" / "data" / "fingerprint.json").unlink(missing_ok=True)
    table = f"cohort.table={folder / 'cohort.csv'}"
    labels = "cohort.labels={background: [0], gland: [1]}"
    sizes = ["size=smoke", "prepare.patch_px=32", "prepare.mpp=0.5", "split.label_budget=1"]
    return run_all(load_config(None, [*sizes, table, labels]), folder / "run", until="prepare", slide_jobs=1)


def _plan() -> pd.DataFrame:
    rows = [{"id": f"s{k:06d}", "layout_kind": "file", "layout_source": "a.png", "seed": k, "nfe": 4} for k in range(4)]
    return pd.DataFrame(rows)


@functools.cache
def drawn() -> Path:
    """What `stedm generate --model` writes."""
    folder = _new("drawn")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    plan = _plan()
    for name in plan["id"]:
        Image.fromarray(pixels(16, 16)).save(folder / "images" / f"{name}.png")
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "masks" / f"{name}.png")
    plan.to_parquet(folder / "plan.parquet")
    files = {"image": "images/" + plan["id"] + ".png", "mask": "masks/" + plan["id"] + ".png"}
    plan.assign(**files, layout=files["mask"], mpp=0.5, model="0" * 12).to_parquet(folder / "manifest.parquet")
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    return folder


def _continue(folder: Path) -> None:
    from stedm.stages.generate_for_style import refuse_another_set

    refuse_another_set(folder, _plan())


def _export(folder: Path) -> Any:
    from stedm.stages.export import export

    shutil.rmtree(folder / "out", ignore_errors=True)
    source = find_set(folder)
    export(source, folder / "out", format_name="folders")
    return source


# Results of `stedm segment`


@functools.cache
def segmented() -> Path:
    """A slide and its results."""
    folder = _new("segmented")
    folder.mkdir()
    Image.fromarray(pixels()).save(folder / "slide.png")
    _segment(folder)
    return folder


def _segment(folder: Path, *, again: bool = False) -> Any:
    """again: with other outlines, which are traced on the label map that is there."""
    options = SegmentOptions((models() / "segmenter",), mpp=0.5, window_px=64, overlap_px=16, everywhere=True)
    if again:
        options = replace(options, tolerance_px=1.0)
    outcome = segment_slide(folder / "slide.png", folder / "out", options)
    write_areas(folder / "out")
    return outcome


def _tissue(path: Path) -> Any:
    with Slide.open(path.parent / "slide.png", mpp=0.5) as slide:
        area = open_area(str(path), slide)
        return area and area.read(0, 0, size_px=64, mpp=0.5).sum()


def _of_slide(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def both(folder: Path) -> Path:
        _plain(".png")(folder)
        return write(folder)

    return both


def _polygons(folder: Path) -> Path:
    return _geojson(folder)


def _layout(folder: Path) -> Path:
    (folder / "layouts").mkdir(exist_ok=True)
    return _mask(folder / "layouts")


def _layout_tiff(folder: Path) -> Path:
    (folder / "layouts").mkdir(exist_ok=True)
    tifffile.imwrite(folder / "layouts" / "a.tif", np.eye(40, dtype=np.uint8), compression="zlib")
    return folder / "layouts" / "a.tif"


def _read_layouts(path: Path) -> Any:
    layouts = LayoutFiles(path.parent, classes=CLASSES, size_px=32)
    return layouts.notices(), layouts.of(layouts.choose(0, np.random.default_rng(0)))


# Uploads to the studio


def _lend_style(path: Path) -> Any:
    from stedm.studio.styles import StyleBook

    return StyleBook(RunFolder(path.parent), pd.DataFrame(), patch_px=32, mpp=0.5).of_images([path, path]).images


def _open_layout(path: Path) -> Any:
    from stedm.studio.layouts import LayoutBook
    from stedm.studio.styles import refuse_oversized

    refuse_oversized(path)
    return LayoutBook(RunFolder(path.parent), pd.DataFrame(), classes=CLASSES, patch_px=32).from_file(path)


# Networks from elsewhere


@functools.cache
def elsewhere() -> Path:
    """Folders that diffusers and timm wrote, and pairs of the few-step generator."""
    import timm
    import torch

    from stedm.models.autoencoder import FirstStage

    folder = _new("elsewhere")
    FirstStage.new([16, 16], latent_channels=4, space_to_depth=1).kl.save_pretrained(folder / "diffusers")
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=0), folder / "timm", safe_serialization=True)
    pairs = {"seeds": torch.arange(2), "z": torch.zeros(2, 4, 2, 2), "layout": torch.zeros(2, 8, 8)}
    torch.save(pairs | {"style": torch.zeros(2, 3, 4)}, folder / "0.pt")
    return folder


def _diffusers(folder: Path) -> Any:
    from stedm.models.autoencoder import FirstStage

    return FirstStage.from_diffusers(str(folder / "diffusers"))


def _timm(folder: Path) -> Any:
    from stedm.evaluation.encoders import kid_encoder
    from stedm.models.segmenter import Segmenter
    from stedm.models.style import TimmStyleEncoder

    weights, refused = str(folder / "timm"), []
    for read in (
        lambda: kid_encoder(weights),
        lambda: TimmStyleEncoder("test_resnet", 4, 1, weights=weights),
        lambda: Segmenter(classes=["a"], encoder="tu-test_resnet").load_encoder(weights),
    ):
        try:
            read()
        except UserError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _pairs(folder: Path) -> Any:
    from stedm.stages.few_step import read_pairs

    return read_pairs([folder / "0.pt", elsewhere() / "0.pt"])


REPORTED = (
    "config.yaml", "environment.json", "evaluation/summary.json", "evaluation/generation.json",
    "evaluation/per_patient.csv", "diffusion/validation.json", "diffusion/metrics.csv", "synthetic/layouts.json",
    "synthetic/manifest.parquet", "data/patches.parquet", "data/alignment/r00000.json", "data/fingerprint.json",
    "diffusion/samples/style_by_layout.png",
)  # fmt: skip
PREPARED = (
    "run/data/inputs.json", "run/data/extraction.json", "run/data/slides/r00000.json", "run/data/extracted.parquet",
    "run/data/classes.json", "run/data/splits.json", "run/data/cohort.parquet",
)  # fmt: skip
FOLDERS = (
    Format("JPEG 2000", _plain(".jp2"), read_slide),
    Format("TIFF pyramid, JPEG 2000", _pyramid("slide.tif", compression="jpeg2000"), read_slide),
    Format("tissue mask PNG", _of_slide(_mask), _tissue, "png"),
    Format("tissue GeoJSON", _of_slide(_polygons), _tissue, "json"),
    Format("layouts PNG", _layout, _read_layouts, "png"),
    Format("layouts TIFF", _layout_tiff, _read_layouts),
    *(_folder("prepared", prepared, name, _prepare) for name in PREPARED),
    _folder("drawn", drawn, "plan.parquet", _continue),
    *(_folder("drawn", drawn, name, _export) for name in ("manifest.parquet", "classes.json", "masks/s000000.png")),
    *(_folder("segmented", segmented, f"out/slide.{end}", _segment) for end in ("json", "tif", "geojson")),
    _folder("outlined again", segmented, "out/slide.tif", functools.partial(_segment, again=True)),
    *(_folder("reported", reported, name, report) for name in REPORTED),
    Format("studio: PNG of a style", _plain(".png"), _lend_style, "png"),
    Format("studio: JPEG of a style", _plain(".jpg"), _lend_style),
    Format("studio: TIFF of a style", _plain(".tif", compression="tiff_lzw"), _lend_style, "tiff"),
    Format(
        "studio: SVS of a style", _pyramid("slide.svs", description=APERIO, compression="jpeg"), _lend_style, "tiff"
    ),
    Format("studio: PNG of a layout", _mask, _open_layout, "png"),
    Format("studio: TIFF of a layout", _mask_tiff, _open_layout, "tiff"),
    _folder("first stage", elsewhere, "diffusers/config.json", _diffusers),
    _folder("first stage", elsewhere, "diffusers/diffusion_pytorch_model.safetensors", _diffusers),
    _folder("backbone", elsewhere, "timm/config.json", _timm),
    _folder("backbone", elsewhere, "timm/model.safetensors", _timm),
    _folder("few-step pairs", elsewhere, "0.pt", _pairs),
)
"""Those with networks at the end: they need torch."""
ALL = (*FORMATS, *SLIDES, *FOLDERS)
