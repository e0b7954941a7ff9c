"""The formats of `stedm export`: how pairs become files, and how a reader of the format opens them."""

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stedm.config import IGNORE
from stedm.errors import UserError
from stedm.files import atomic_path, write_json, write_text
from stedm.png import png_bytes, write_png_atomically
from stedm.stages.export_set import CLASSES, FACTS, ExportSet, Pair

_NNUNET_FOLDER = re.compile(r"Dataset\d{3}_\w+")
_FOLDERS_NAMES = ("images/{}.png", "masks/{}.png")
_NNUNET_NAMES = ("imagesTr/{}_0000.png", "labelsTr/{}.png")
_ROWS_A_GROUP = 100
"""Rows that a reader of Parquet decodes at a time."""

Writer = Callable[[ExportSet, Path, int], Iterator[int]]


@dataclass(frozen=True)
class Format:
    """`write` yields how many pairs are there, skipping what is; `finish` writes what comes last."""

    write: Writer
    finish: Callable[[ExportSet, Path], None]
    check: Callable[[ExportSet, Path], None]
    """Raises UserError before anything is written."""
    reading: str
    """Markdown for the card: how the files are opened; {out} is the folder's name."""


def portions(pairs: Sequence[Pair], size: int) -> Iterator[tuple[int, Sequence[Pair]]]:
    """Numbered portions of `size` pairs, the last one smaller."""
    for number, start in enumerate(range(0, len(pairs), size)):
        yield number, pairs[start : start + size]


def _write_pairs(source: ExportSet, out: Path, images: str, masks: str, values: np.ndarray) -> Iterator[int]:
    """A PNG per image and per mask at these names; `values` (256,) uint8 replaces those of the label map."""
    for done, pair in enumerate(source.pairs, 1):
        image_path, mask_path = (out / name.format(pair.key) for name in (images, masks))
        if not image_path.exists():  # written after its mask, so that it stands for both
            image, label_map = source.read(pair)
            for path, pixels in ((mask_path, values[label_map]), (image_path, image)):
                write_png_atomically(path, pixels)
        yield done


def _write_folders(source: ExportSet, out: Path, shard_size: int) -> Iterator[int]:
    yield from _write_pairs(source, out, *_FOLDERS_NAMES, np.arange(256, dtype=np.uint8))


def _finish_folders(source: ExportSet, out: Path) -> None:
    _write_facts(source, out, *_FOLDERS_NAMES)
    _write_classes(source, out)


def _write_facts(source: ExportSet, out: Path, images: str, masks: str) -> None:
    """metadata.jsonl: a line a pair, its files by the names that `datasets` knows."""
    lines = [
        json.dumps({"file_name": images.format(p.key), "mask_file_name": masks.format(p.key), "key": p.key, **p.facts})
        for p in source.pairs
    ]
    write_text(out / "metadata.jsonl", "\n".join(lines) + "\n")


def nnunet_labels(classes: Sequence[str]) -> tuple[dict[str, int], np.ndarray]:
    """Labels of nnU-Net's dataset.json, and the table (256,) uint8 from our values to them.

    nnU-Net takes 0 for background, wants labels without gaps, and `ignore` as the highest. A class named background
    becomes 0; without one 0 stays empty, for a class in its place would be left out of losses and scores.
    """
    if "ignore" in classes:
        raise UserError("a class is named ignore, which nnU-Net keeps for itself; rename it")
    background = next((k for k, name in enumerate(classes) if name.strip().lower() == "background"), None)
    others = [k for k in range(len(classes)) if k != background]
    labels = {"background": 0, **{classes[k]: label for label, k in enumerate(others, 1)}, "ignore": len(others) + 1}
    table = np.zeros(256, np.uint8)
    table[others] = np.arange(1, len(others) + 1)
    table[IGNORE] = len(others) + 1
    return labels, table


def _check_nnunet(source: ExportSet, out: Path) -> None:
    nnunet_labels(source.classes)
    if not _NNUNET_FOLDER.fullmatch(out.resolve().name):
        raise UserError(
            f"--out {out}: nnU-Net reads folders named DatasetNNN_NAME (letters, digits, _); use"
            f" {out.parent / 'Dataset501_synthetic'}, say, in the folder that $nnUNet_raw names"
        )


def _write_nnunet(source: ExportSet, out: Path, shard_size: int) -> Iterator[int]:
    table = nnunet_labels(source.classes)[1]
    yield from _write_pairs(source, out, *_NNUNET_NAMES, table)


def _finish_nnunet(source: ExportSet, out: Path) -> None:
    dataset: dict[str, Any] = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},  # one PNG holds the three
        "labels": nnunet_labels(source.classes)[0],
        "numTraining": len(source.pairs),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": out.resolve().name,
        "description": f"{source.count(synthetic=True)} synthetic and {source.count(synthetic=False)} real images: "
        "README.md",
        "licence": source.licence,
    }
    _write_facts(source, out, *_NNUNET_NAMES)
    write_json(out / "dataset.json", dataset)


def parquet_schema() -> pa.Schema:
    """Columns image and mask as `datasets` keeps images (file and name), key, and FACTS, with its own description."""
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = {"bool": pa.bool_(), "string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    columns = {"image": picture, "mask": picture, "key": pa.string(), **{n: types[kind] for n, kind in FACTS.items()}}
    features: dict[str, Any] = {name: {"_type": "Image"} for name in ("image", "mask")}
    features |= {name: {"dtype": kind, "_type": "Value"} for name, kind in ({"key": "string"} | FACTS).items()}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _write_parquet(source: ExportSet, out: Path, shard_size: int) -> Iterator[int]:
    schema, shards = parquet_schema(), -(-len(source.pairs) // shard_size)
    done = 0
    for number, pairs in portions(source.pairs, shard_size):
        path = out / "data" / f"train-{number:05d}-of-{shards:05d}.parquet"
        if path.exists():
            done += len(pairs)
        else:
            with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
                for _, group in portions(pairs, _ROWS_A_GROUP):
                    file.write_table(pa.Table.from_pylist([_row(source, pair) for pair in group], schema))
                    done += len(group)
                    yield done
        yield done


def _row(source: ExportSet, pair: Pair) -> dict[str, Any]:
    name, (image, label_map) = f"{pair.key}.png", source.read(pair)
    pictures = {"image": image, "mask": label_map}
    files = {column: {"bytes": png_bytes(pixels), "path": name} for column, pixels in pictures.items()}
    return {**files, "key": pair.key, **pair.facts}


def _write_webdataset(source: ExportSet, out: Path, shard_size: int) -> Iterator[int]:
    done = 0
    for number, pairs in portions(source.pairs, shard_size):
        path = out / f"shard-{number:06d}.tar"
        if path.exists():
            done += len(pairs)
        else:
            with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for pair in pairs:
                    _add_pair(tar, source, pair)
                    done += 1
                    yield done
        yield done


def _add_pair(tar: tarfile.TarFile, source: ExportSet, pair: Pair) -> None:
    """Three members with nothing in their headers but name and size: the same pairs are the same file."""
    image, label_map = source.read(pair)
    facts = json.dumps({"key": pair.key, **pair.facts}).encode()
    for ending, content in (("image.png", png_bytes(image)), ("mask.png", png_bytes(label_map)), ("json", facts)):
        member = tarfile.TarInfo(f"{pair.key}.{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _write_classes(source: ExportSet, out: Path) -> None:
    named: Mapping[str, Any] = {"classes": source.classes, "colours": source.colours, "ignore": IGNORE}
    write_json(out / CLASSES, named)


def _anything(source: ExportSet, out: Path) -> None:
    """No demand on set or folder."""


FORMATS = {
    "folders": Format(
        _write_folders,
        _finish_folders,
        _anything,
        "`images/KEY.png` is RGB, `masks/KEY.png` has class values in one channel, `metadata.jsonl` a line a pair.\n"
        "Hugging Face reads it too:\n\n"
        "```python\nfrom datasets import load_dataset\n\n"
        'pairs = load_dataset("imagefolder", data_dir="{out}", split="train")  # columns image, mask, key, ...\n```',
    ),
    "nnunet": Format(
        _write_nnunet,
        _finish_nnunet,
        _check_nnunet,
        "nnU-Net v2 raw format, 2D: an RGB PNG an image, labels as `dataset.json` says; `metadata.jsonl` is\n"
        "not its own. In the folder that $nnUNet_raw names:\n\n"
        "```bash\nnnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity\n"
        "nnUNetv2_train {number} 2d all\n```\n\n"
        "nnU-Net's own folds are cases drawn at random: synthetic ones, and patches of patients it trains on, judge\n"
        "it there, and `all` has no validation. Test it on real patients that are not in here.",
    ),
    "parquet": Format(
        _write_parquet,
        _write_classes,
        _anything,
        "```python\nfrom datasets import load_dataset\n\n"
        'pairs = load_dataset("{out}", split="train")  # columns image and mask are Pillow images\n```',
    ),
    "webdataset": Format(
        _write_webdataset,
        _write_classes,
        _anything,
        "Each pair is `KEY.image.png`, `KEY.mask.png` and `KEY.json` in a tar file of WebDataset:\n\n"
        "```python\nimport io, json\nimport webdataset\nfrom PIL import Image\n\n"
        'for pair in webdataset.WebDataset("{out}/shard-{{000000..{last}}}.tar", shardshuffle=False):\n'
        '    image, mask = (Image.open(io.BytesIO(pair[name])) for name in ("image.png", "mask.png"))\n'
        '    facts = json.loads(pair["json"])\n```\n\n'
        'The library\'s `decode("pil")` makes three channels of a mask: decode masks yourself, as here.',
    ),
}
"""By the name that `--format` takes."""
