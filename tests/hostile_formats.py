"""Every kind of file that stedm reads, for the harness of mutations.py: a good one each, and all that reads it."""

import functools
import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import yaml
from mutations import Format, Kind
from PIL import Image

from stedm.config import CohortConfig
from stedm.config_file import load_config
from stedm.data.annotation import read_annotation
from stedm.data.cohort import read_cohort, resolve_labels
from stedm.data.composition import CompositionTable
from stedm.data.labels import LabelMap, read_mask
from stedm.data.slide import Slide
from stedm.data.slide_tissue import SlideTissue
from stedm.data.synthetic import SyntheticSet
from stedm.errors import UserError
from stedm.files import read_json, write_json
from stedm.run import fingerprint_in
from stedm.stages.report_evidence import read_evidence
from stedm.stages.run_folder import RunFolder

CLASSES = ["background", "gland"]


def pixels(width: int = 96, height: int = 80) -> np.ndarray:
    """Tissue-like pixels (height, width, 3)."""
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), 243, np.uint8)
    image[8:-8, 8:-8] = rng.integers(90, 200, (height - 16, width - 16, 3))
    return image


def read_slide(path: Path) -> Any:
    """Header, a region at two resolutions, the overview and the tissue, as `prepare` and `segment` read them."""
    with Slide.open(path, mpp=0.5) as slide:
        found = [slide.width_px, slide.height_px, slide.bounds_px, slide.is_pyramid]
        found += [slide.read(0, 0, size_px=64, mpp=mpp).mean() for mpp in (0.5, 1.0)]
        found += [SlideTissue(slide, patch_um=16.0).mask.mean(), slide.size_px(1.0)]
    with Slide.open(path) as slide, suppress(UserError):  # it may not say
        found.append(slide.mpp)
    return found


def _plain(suffix: str, **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        Image.fromarray(pixels()).save(folder / f"slide{suffix}", **options)
        return folder / f"slide{suffix}"

    return write


def _pyramid(
    name: str, *, description: str | None = None, ome: bool = False, big: bool = False, **options: Any
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = pixels(256, 192)
        with tifffile.TiffWriter(folder / name, ome=ome, bigtiff=big) as tiff:
            for level in range(2):
                extra: dict[str, Any] = {"subifds": 1} if ome and level == 0 else {}
                extra |= (
                    {"subfiletype": level}
                    if level or not ome
                    else {"metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}}
                )
                extra |= {} if ome else {"metadata": None, "description": description}
                tiff.write(image[:: 2**level, :: 2**level], tile=(64, 64), photometric="rgb",
                           resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **extra, **options)  # fmt: skip
        return folder / name

    return write


def _mask(folder: Path) -> Path:
    values = np.zeros((80, 96), np.uint8)
    values[20:60, 20:60] = 1
    Image.fromarray(values).save(folder / "mask.png")
    return folder / "mask.png"


def _mask_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "mask.tif", (pixels()[..., 0] > 200).astype(np.uint16), compression="zlib")
    return folder / "mask.tif"


def _read_mask(path: Path) -> Any:
    return LabelMap.from_config({"background": [0], "gland": ["1-65535"]}).apply(read_mask(path), source=path)


def _geojson(folder: Path) -> Path:
    ring = [[10.0, 10.0], [60.5, 12.0], [55.0, 60.0], [10.0, 10.0]]
    hole = [[20, 20], [30, 20], [30, 30], [20, 20]]
    names = ["Tumor", "Tumor: Positive", "Stroma"]
    features = [
        {
            "type": "Feature",
            "id": str(k),
            "geometry": {"type": "Polygon", "coordinates": [ring, hole] if k else [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}},
        }
        for k, name in enumerate(names)
    ]
    features.append({"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[ring], [hole]]}})
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def _geojson_gz(folder: Path) -> Path:
    path = folder / "a.geojson.gz"
    path.write_bytes(gzip.compress(_geojson(folder).read_bytes(), mtime=0))
    return path


def _coco(folder: Path) -> Path:
    path = folder / "coco.json"
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[10, 10, 60, 10, 60, 60]], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": {"counts": [5, 10, 85], "size": [10, 10]}},
        {"id": 3, "image_id": 2, "category_id": 2, "segmentation": [[0, 0, 9, 0, 9, 9]]},
    ]
    images = [{"id": k, "file_name": f"slide{k}.png", "width": 96, "height": 80} for k in (1, 2)]
    categories = [{"id": 1, "name": "Tumor", "supercategory": "x"}, {"id": 2, "name": "Stroma"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return path


def _read_annotation(path: Path) -> Any:
    annotation = read_annotation(path, slide_names=["slide1.png", "slide1"])
    annotation.refuse_misplaced(width_px=96, height_px=80)
    labels = annotation.labels(np.arange(len(annotation.names)) % 255, uncovered=0, size_px=(96, 80), mpp=0.5)
    return labels.read(0, 0, size_px=64, mpp=0.5).sum()


def _cohort(folder: Path) -> pd.DataFrame:
    """Four patients with an image each, two of them with masks."""
    _mask(folder)
    rows = []
    for k in range(4):
        Image.fromarray(pixels()).save(folder / f"i{k}.png", compress_level=1)
        rows.append({"image": f"i{k}.png", "patient": f"p{k}", "slide": f"s{k}", "mask": "mask.png" if k < 2 else "",
                     "mpp": "0.5", "group": "he", "split": ["train", "train", "val", "test"][k]})  # fmt: skip
    return pd.DataFrame(rows)


def _csv(folder: Path) -> Path:
    _cohort(folder).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def _parquet(folder: Path) -> Path:
    _cohort(folder).to_parquet(folder / "cohort.parquet")
    return folder / "cohort.parquet"


def _read_cohort(path: Path) -> Any:
    config = CohortConfig(table=str(path), labels={"background": [0], "gland": [1]})
    return resolve_labels(config, read_cohort(config))


def _composition(folder: Path) -> Path:
    (folder / "composition.csv").write_text("group,background,gland\nhe,0.5,0.5\n*,0.25,0.75\n")
    return folder / "composition.csv"


def _yaml(folder: Path) -> Path:
    config = {
        "size": "smoke",
        "seed": 3,
        "cohort": {
            "table": "cohort.csv",
            "columns": {"patient": "case"},
            "labels": {"a": [0], "b": ["1-9"]},
            "mpp": 0.5,
        },
        "split": {"label_budget": 4, "annotated": ["p0", "p1"]},
        "diffusion": {"learning_rate": 1e-3, "steps": 8, "multipliers": [1, 2]},
        "experiment": {"folds": 1},
        "segmentation": {"arms": ["real", "real+stain"], "seeds": [0, 1]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def _run(folder: Path, spoiled: str) -> Path:
    """What a run folder's readers read."""
    run = RunFolder(folder)
    for sub in ("data/images", "data/masks", "synthetic/images", "synthetic/masks", "evaluation"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    _yaml(folder)
    rows, drawn = [], []
    for k in range(4):
        for name in (f"data/images/i{k}.png", f"synthetic/images/i{k}.png"):
            Image.fromarray(pixels(16, 16)).save(folder / name)
        for name in (f"data/masks/i{k}.png", f"synthetic/masks/i{k}.png"):
            Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / name)
        files = {"image": f"images/i{k}.png", "mask": f"masks/i{k}.png"}
        split = ["train", "train", "val", "test"][k]
        rows.append({"patch_id": f"i{k}", "patient": f"p{k}", "slide": f"s{k}", "split": split, "annotated": True,
                     "group": "he", "mpp": 0.5, **files})  # fmt: skip
        drawn.append({"id": f"i{k}", "keep": True, "weight": 1.0, "layout": files["mask"], **files})
    pd.DataFrame(rows).to_parquet(run.data / "patches.parquet")
    pd.DataFrame(drawn).to_parquet(run.synthetic / "manifest.parquet")
    pd.DataFrame({"patient": ["p3"], "group": ["he"], "arm": ["real"], "seed": [0], "iou": [0.5]}).to_csv(
        run.evaluation / "per_patient.csv", index=False
    )
    write_json(run.data / "classes.json", {"classes": CLASSES, "ignore": 255, "patch_px": 16})
    write_json(run.data / "fingerprint.json", {"fingerprint": "0" * 64, "seconds": 1.0})
    return folder / spoiled


def _read_run(spoiled: str, path: Path) -> Any:
    root = path.parents[spoiled.count("/")]
    run = RunFolder(root)
    fingerprint_in(run.data / "fingerprint.json")
    patches = run.patches()
    run.classes()
    run.images(patches)
    run.label_maps(patches)
    synthetic = SyntheticSet(run.synthetic)
    kept = synthetic.kept  # the filter may drop all
    found = [synthetic.images(kept), synthetic.label_maps(kept), synthetic.weights] if len(kept) else []
    return found, read_evidence(root)


def _json(folder: Path) -> Path:
    write_json(folder / "splits.json", {"train_annotated": ["p0"], "val": ["p1"], "n": [1, 2.5, None]})
    return folder / "splits.json"


@functools.cache
def models() -> Path:
    """Model folders, made once: `generator` and `segmenter`."""
    from stedm.models.segmenter import Segmenter
    from stedm.selftest import untrained

    folder = Path(tempfile.mkdtemp(prefix="stedm-models-"))
    untrained().save_pretrained(folder / "generator")
    Segmenter(classes=CLASSES, encoder="tu-test_resnet", decoder_channels=[16, 8], space_to_depth=2, mpp=0.5,
              patch_px=64, colours=["#112233", "#445566"]).save_pretrained(folder / "segmenter")  # fmt: skip
    return folder


def _model(spoiled: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        shutil.copytree(models(), folder, dirs_exist_ok=True)
        return folder / spoiled

    return write


def _read_part(name: str, path: Path) -> Any:
    """Load the network whose folder the spoiled file lies in."""
    from stedm.models import autoencoder, segmenter, style, unet

    kinds = {"autoencoder": autoencoder.FirstStage, "style_encoder": style.StyleExtractor, "unet": unet.UNet}
    return {**kinds, "segmenter": segmenter.Segmenter}[name].from_pretrained(path.parent)


def _read_index(path: Path) -> Any:
    from stedm.diffusion.pipeline import read_index

    return read_index(path.parent)


class Killed(Exception):
    """Stands for the end of a process."""


def train(folder: Path, *, killed_at: int = -1) -> None:
    """Train a tiny segmenter for four steps in `folder`, a checkpoint each; or until it is killed."""
    import torch

    from stedm.models.segmenter import Segmenter
    from stedm.training.tasks import SegmentationTask
    from stedm.training.trainer import fit

    def batch_of_step(step: int) -> dict[str, torch.Tensor]:
        if step == killed_at:
            raise Killed
        return {"images": torch.zeros(2, 3, 16, 16), "label_maps": torch.zeros(2, 16, 16, dtype=torch.uint8)}

    torch.manual_seed(0)
    segmenter = Segmenter(classes=CLASSES, encoder="tu-test_resnet", decoder_channels=[8, 8])
    task = SegmentationTask(segmenter, learning_rate=1e-3, steps=4, seed=0)
    fit(task, batch_of_step, folder=folder, description="tiny", ema_decay=0.9, stretches=4)


def _checkpoint(folder: Path) -> Path:
    """A training that is killed after its second checkpoint."""
    with suppress(Killed):
        train(folder, killed_at=3)
    return folder / "training" / "last.ckpt"


def _resume(path: Path) -> Any:
    train(path.parents[1])


def _part(name: str, file: str) -> Format:
    folder = "segmenter" if name == "segmenter" else f"generator/{name}"
    kind = "json" if file.endswith("json") else "safetensors"
    return Format(
        f"{name} {kind}",
        _model(f"{folder}/{file}"),
        functools.partial(_read_part, name),
        "json" if kind == "json" else "bytes",
    )


def _of_run(spoiled: str) -> Format:
    write, read = functools.partial(_run, spoiled=spoiled), functools.partial(_read_run, spoiled)
    kinds: dict[str, Kind] = {
        ".json": "json", ".csv": "text", ".yaml": "text", ".png": "png", ".parquet": "parquet"
    }  # fmt: skip
    return Format(f"run: {spoiled}", write, read, kinds.get(Path(spoiled).suffix, "bytes"))


PARTS = ("autoencoder", "style_encoder", "unet", "segmenter")
APERIO = "Aperio Image Library v12\n256x192 [0,0 256x192] (64x64) RAW|AppMag = 20|MPP = 0.4990"
FORMATS = (
    Format("PNG", _plain(".png"), read_slide, "png"),
    Format("JPEG", _plain(".jpg"), read_slide),
    Format("BMP", _plain(".bmp"), read_slide),
    Format("WebP", _plain(".webp", lossless=True), read_slide),
    Format("TIFF", _plain(".tif", compression="tiff_lzw"), read_slide),
    Format("TIFF pyramid", _pyramid("slide.tif", compression="zlib"), read_slide),
    Format("TIFF pyramid, JPEG", _pyramid("slide.tif", compression="jpeg"), read_slide),
    Format("OME-TIFF", _pyramid("slide.ome.tif", ome=True, compression="zlib"), read_slide),
    Format("SVS", _pyramid("slide.svs", description=APERIO, compression="jpeg"), read_slide),
    Format("mask PNG", _mask, _read_mask, "png"),
    Format("mask TIFF", _mask_tiff, _read_mask),
    Format("GeoJSON", _geojson, _read_annotation, "json"),
    Format("GeoJSON, gzipped", _geojson_gz, _read_annotation),
    Format("COCO JSON", _coco, _read_annotation, "json"),
    Format("cohort CSV", _csv, _read_cohort, "text"),
    Format("cohort Parquet", _parquet, _read_cohort, "parquet"),
    Format("composition CSV", _composition, lambda path: CompositionTable.read(path, CLASSES), "text"),
    Format("YAML config", _yaml, load_config, "text"),
    Format("JSON", _json, read_json, "json"),
    *(_of_run(name) for name in ("data/patches.parquet", "synthetic/manifest.parquet", "evaluation/per_patient.csv")),
    *(_of_run(name) for name in ("config.yaml", "data/classes.json", "data/fingerprint.json", "data/images/i0.png")),
    Format("model_index.json", _model("generator/model_index.json"), _read_index, "json"),
    *(_part(name, "config.json") for name in PARTS),
    *(_part(name, "model.safetensors") for name in PARTS),
    Format("training/last.ckpt", _checkpoint, _resume),
)
"""Those with networks at the end: they need torch."""
