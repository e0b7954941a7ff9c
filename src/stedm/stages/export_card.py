"""README.md of an export: a dataset card as the Hugging Face hub reads it, for anybody who is handed the folder."""

from pathlib import Path
from typing import Any

import jinja2
import yaml

import stedm
from stedm.config import IGNORE
from stedm.stages.export_formats import FORMATS, nnunet_labels
from stedm.stages.export_set import FACTS, ExportSet
from stedm.stages.report_tables import in_markdown, markdown_table

_LICENCES = ("apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mit")
"""Licences that a dataset card names by an identifier; others are `other` with their name."""
_WORDS = {
    "synthetic": "drawn by the generator",
    "patient": "whose style was asked for; of real pairs, whom they show",
    "kept": "whether the filter kept it",
    "agreement": "mean IoU of the filter's segmenter with the layout",
    "ignored_fraction": "share of pixels that the filter set to ignore",
    "nearest_real_distance": "distance to the nearest training image, thumbnail to thumbnail",
    "layout_kind": "real (a warped annotation), prior (drawn at random), read (in an unannotated image) or file",
    "layout_source": "what the layout was made from",
    "seed": "of the image",
    "patch_id": "of real pairs",
    "mpp": "microns per pixel",
}


def card(source: ExportSet, out: Path, *, format_name: str, shard_size: int) -> str:
    """The card, Markdown after a YAML header: what is in `out`, and how to read it."""
    name, shards = out.resolve().name, -(-len(source.pairs) // shard_size)
    words = {"out": name, "last": f"{shards - 1:06d}", "number": name[len("Dataset") :].split("_")[0].lstrip("0")}
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("export_card.md.j2").render(
        front_matter=_front_matter(source, format_name),
        name=in_markdown(source.name),
        drawn=source.count(synthetic=True),
        real=source.count(synthetic=False),
        version=stedm.__version__,
        classes=_class_table(source, format_name),
        origin=list(map(in_markdown, source.origin)),
        licence=in_markdown(source.licence),
        reading=FORMATS[format_name].reading.format(**words),
        facts="\n".join(f"- `{name}`: {_WORDS[name]}" for name in FACTS),
    )


def _front_matter(source: ExportSet, format_name: str) -> str:
    """The header as YAML; the licence is that of the images the generator learned from."""
    licence = source.licence.strip().lower().replace(" ", "-")
    found: dict[str, Any] = {"pretty_name": source.name, "task_categories": ["image-segmentation"]}
    found["tags"] = ["synthetic", "histopathology", "stedm"]
    if licence in _LICENCES:
        found["license"] = licence
    else:
        known = source.licence != "not stated"
        found |= {"license": "other", "license_name": source.licence} if known else {"license": "unknown"}
    if format_name == "parquet":
        files = [{"split": "train", "path": "data/*.parquet"}]
        found["configs"] = [{"config_name": "default", "data_files": files}]
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _class_table(source: ExportSet, format_name: str) -> str:
    values = {name: value for value, name in enumerate(source.classes)} | {"ignore": IGNORE}
    if format_name == "nnunet":
        values = nnunet_labels(source.classes)[0]
    colours = {name.strip().lower(): colour for name, colour in zip(source.classes, source.colours, strict=True)}
    rows = [[str(value), name, colours.get(name.strip().lower(), "")] for name, value in values.items()]
    return markdown_table(["value", "class", "colour"], rows)
