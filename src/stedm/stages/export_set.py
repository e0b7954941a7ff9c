"""What `stedm export` exports: the pairs of a synthetic set, what is known about each, and where they come from."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stedm.arms import SECOND_ROUND
from stedm.config import IGNORE
from stedm.data.patches import LabelMaps, PatchImages
from stedm.data.synthetic import SyntheticSet
from stedm.data.tables import read_parquet
from stedm.errors import UserError
from stedm.files import whole
from stedm.stages.report_evidence import read_evidence
from stedm.stages.report_pictures import class_colours
from stedm.stages.report_run import data_source
from stedm.stages.run_folder import RunFolder, class_names, common_mpp, train_patches

CLASSES = "classes.json"
FACTS = {
    "synthetic": "bool",
    "patient": "string",
    "kept": "bool",
    "agreement": "float64",
    "ignored_fraction": "float64",
    "nearest_real_distance": "float64",
    "layout_kind": "string",
    "layout_source": "string",
    "seed": "int64",
    "patch_id": "string",
    "mpp": "float64",
}
"""What each pair of an export says about itself, and its type; None where it does not apply.

`patient` is the one whose style was asked for, of real pairs the one they show.
"""
_GENERATORS = {"synthetic-annotated-only": "annotated-only", "synthetic-unstyled": "full (asked without a style)"}
"""Which generator of the run drew a control set; the others are drawn by the one its config names."""
_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True)
class Pair:
    """An image, its label map and the FACTS about them; `key` is letters, digits, `_` and `-`."""

    key: str
    image: Path
    mask: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class ExportSet:
    """The pairs to export, in order."""

    name: str
    pairs: Sequence[Pair]
    classes: Sequence[str]
    colours: Sequence[str]
    """"#rrggbb" of each class."""
    licence: str
    """Of the images that the generator learned from, in the words of `cohort.licence`."""
    origin: Sequence[str]
    """Sentences on generator and filter."""
    digest: str
    """16 hexadecimal digits that change when the set does."""

    def count(self, *, synthetic: bool) -> int:
        """How many pairs are (not) synthetic."""
        return sum(pair.facts["synthetic"] is synthetic for pair in self.pairs)

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and label map (H, W), uint8: classes, 255 = ignore.

        Raises UserError for damaged files, sizes that differ, and values that are no class.
        """
        image = PatchImages(pair.image.parent, [pair.image.name], cache_bytes=0).images([0])[0]
        label_map = LabelMaps(pair.mask.parent, [pair.mask.name], cache_bytes=0).label_maps([0])[0]
        if image.shape[:2] != label_map.shape:
            raise UserError(f"{pair.mask}: {label_map.shape} pixels, its image {image.shape[:2]}; make the set again")
        unknown = label_map[(label_map >= len(self.classes)) & (label_map != IGNORE)]
        if unknown.size:
            raise UserError(
                f"{pair.mask}: value {unknown[0]} is none of the {len(self.classes)} classes; make the set again"
            )
        return image, label_map


def find_set(folder: str | Path, *, everything: bool = False, with_real: bool = False) -> ExportSet:
    """The synthetic set of a run, or in a folder that `stedm generate --model` has written.

    everything: also what the filter dropped. with_real: the training patches of annotated patients too. Raises
    UserError when there is no set, when nothing says which of its images to keep, and for real patches without a run.
    """
    folder = Path(folder)
    if (folder / "manifest.parquet").is_file():
        inside = folder.resolve().parent
        run = inside if (inside / "config.yaml").is_file() and (inside / "data").is_dir() else None
    elif (folder / "config.yaml").is_file():
        run = read_evidence(folder).run
        folder = RunFolder(run).synthetic
    else:
        raise UserError(f"{folder}: neither a run nor a synthetic set (no config.yaml, no manifest.parquet)")
    with whole(folder / "manifest.parquet", fix="make the set again"):
        return _set_in(folder, run, everything=everything, with_real=with_real)


def _set_in(folder: Path, run: Path | None, *, everything: bool, with_real: bool) -> ExportSet:
    """The set in a folder, of a run or of none."""
    manifest = _manifest(folder, run)
    again = run is not None and folder.resolve() == RunFolder(run).synthetic_set(SECOND_ROUND).resolve()
    judge = (
        "Segmenters trained with a first round of images, together," if again else "A segmenter trained on real images"
    )
    rows, filtering = _chosen(manifest, everything=everything, in_run=run is not None, judge=judge)
    pairs = [_synthetic(folder, row) for row in rows.to_dict("records")]
    if with_real:
        if run is None:
            raise UserError(f"{folder}: lies in no run, which would have real patches; leave out --with-real")
        pairs += _real(RunFolder(run))
    if not pairs:
        raise UserError(f"{folder}: the filter kept no image; --all exports what it dropped too")
    if len({pair.key for pair in pairs}) < len(pairs):
        raise UserError(f"{folder / 'manifest.parquet'}: ids come twice; make the set again")
    classes = _classes(folder, run)
    return ExportSet(
        name=_name(folder, run),
        pairs=pairs,
        classes=classes,
        colours=list(class_colours(classes).values()),
        licence=data_source(read_evidence(run).config)["licence"] if run else "not stated",
        origin=[*_origin(folder, manifest, run), _scale(pairs), filtering],
        digest=_digest(folder, run if with_real else None),
    )


def _manifest(folder: Path, run: Path | None) -> pd.DataFrame:
    """The manifest of the set; in a run with the microns per pixel of its patches, if these have one number."""
    manifest = SyntheticSet(folder).manifest
    if run is None or not (path := run / "data" / "patches.parquet").is_file():
        return manifest
    return manifest.assign(mpp=common_mpp(read_parquet(path, needs=("mpp",))))


def _chosen(manifest: pd.DataFrame, *, everything: bool, in_run: bool, judge: str) -> tuple[pd.DataFrame, str]:
    """The rows to export, and a sentence on what the filter did."""
    if "keep" not in manifest:
        if in_run and not everything:
            raise UserError("the synthetic set has not been filtered; run `stedm filter` first, or export --all of it")
        return manifest, "No segmenter has judged the images: label maps are layouts as drawn."
    kept = manifest["keep"].to_numpy(bool)
    if kept.all() and not manifest.get("ignored_fraction", pd.Series([1.0])).any():
        return manifest, f"{judge} read the images and changed nothing: all are here, with their layouts as drawn."
    counts = f"{judge} kept {kept.sum()} of {len(kept)} images"
    masks = "pixels where it disagrees with the layout are 255 (ignore)"
    if everything:
        return manifest, f"{counts}; all are here, `kept` says which; {masks}."
    return manifest[kept], f"{counts}, which are here; {masks}."


def _synthetic(folder: Path, row: Mapping[str, Any]) -> Pair:
    key = str(row["id"]) if "id" in row else Path(row["image"]).stem
    if not _KEY.fullmatch(key):
        raise UserError(f"{folder / 'manifest.parquet'}: id {key[:60]!r} is no name of a pair; make the set again")
    facts = {name: _plain(row.get(name)) for name in FACTS}
    facts |= {"synthetic": True, "patient": _plain(row.get("style_patient")), "kept": _plain(row.get("keep"))}
    return Pair(key, _inside(folder, row["image"]), _inside(folder, row["mask"]), facts | {"patch_id": None})


def _real(run: RunFolder) -> list[Pair]:
    """The patches a segmenter may learn from, numbered: their own names hold those of slides."""
    found = []
    for k, row in enumerate(train_patches(run.patches(), annotated=True).to_dict("records")):
        facts = {"synthetic": False, **{name: row.get(name) for name in ("patient", "patch_id", "mpp")}}
        facts = dict.fromkeys(FACTS) | facts
        found.append(Pair(f"r{k:06d}", _inside(run.data, row["image"]), _inside(run.data, row["mask"]), facts))
    return found


def _plain(value: Any) -> Any:
    """A cell as Python's own type; None for NaN and empty text."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or value == "" or value != value else value


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: leads out of {folder}; stedm copies nothing from there")
    return path


def _classes(folder: Path, run: Path | None) -> list[str]:
    if run is not None:
        return RunFolder(run).classes()
    path = folder / CLASSES
    if not path.is_file():
        raise UserError(
            f"{path}: not found; the same `stedm generate --model` command again writes it, and draws nothing"
        )
    fix = "run the same `stedm generate --model` command again"
    classes = class_names(path, fix=fix)
    if not all(map(str.isprintable, classes)):
        raise UserError(f"{path}: a class's name has control characters; {fix}")
    return classes


def _name(folder: Path, run: Path | None) -> str:
    own = folder.resolve().name
    return own if run is None else f"{run.resolve().name}, {own} set"


def _origin(folder: Path, manifest: pd.DataFrame, run: Path | None) -> list[str]:
    """Sentences on the generator, as far as manifest and run say."""
    if run is None:
        model = sorted(set(manifest["model"].astype(str))) if "model" in manifest else ["unknown"]
        said = [f"Drawn by `stedm generate --model` with a generator of digest {', '.join(model)}."]
    else:
        evidence = read_evidence(run)
        generator = _GENERATORS.get(folder.name) or (evidence.config.get("generate") or {}).get("generator", "full")
        version = (evidence.environment or {}).get("stedm", "of unknown version")
        said = [f"Drawn by stedm {version}, the {generator} generator of the run {evidence.name}."]
    for column, words in {
        "layout_guidance": "layout guidance",
        "style_guidance": "style guidance",
        "nfe": "NFE",
    }.items():
        if column in manifest:
            said.append(f"{words[0].upper()}{words[1:]} {', '.join(f'{x:g}' for x in sorted(set(manifest[column])))}.")
    if "layout_kind" in manifest:
        kinds = manifest["layout_kind"].value_counts().sort_index()
        said.append(f"Layouts drawn: {', '.join(f'{kind} {count}' for kind, count in kinds.items())}.")
    if "style_patient" in manifest and (styles := set(manifest["style_patient"]) - {""}):
        said.append(f"In the styles of {len(styles)} patients.")
    return said


def _scale(pairs: Sequence[Pair]) -> str:
    """A sentence on the resolution of the images."""
    known = [pair.facts["mpp"] for pair in pairs if pair.facts["mpp"] is not None]
    if not known:
        return "Nobody has written down their microns per pixel."
    ends = dict.fromkeys(f"{end:.3g}" for end in (min(known), max(known)))
    return f"Microns per pixel: {' to '.join(ends)}."


def _digest(folder: Path, run: Path | None) -> str:
    paths = [folder / "manifest.parquet", folder / "fingerprint.json"]
    paths += [run / "data" / "patches.parquet"] if run else []
    digest = hashlib.sha256(" ".join(FACTS).encode())
    for path in paths:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]
