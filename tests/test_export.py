"""`stedm export`: each format is read again by the library it is for, and says what it is of.

nnU-Net is not among the development tools (it holds timm back): `assert_nnunet_reads` has the rules of its
`verify_dataset_integrity`, of its label manager and of its reader NaturalImage2DIO in our own words, and where nnunetv2
is installed a test asks nnU-Net itself: `make nnunet` puts it beside the environment and runs that test, as CI does.
"""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stedm.cli import main
from stedm.errors import UserError
from stedm.stages.export_formats import FORMATS, nnunet_labels
from stedm.stages.export_set import FACTS, ExportSet, find_set

PX, CLASSES = 16, ["stroma", "background", "tumour | <b>"]
OUT = "/".join(["..", "..", ""])
KEPT = [0, 1, 2, 4, 5]
NAMES = {"nnunet": "Dataset501_made"}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with six synthetic pairs, of which five are kept, and two annotated training patches of three."""
    root, rng = tmp_path / "run", np.random.default_rng(0)
    for folder in ("data", "synthetic"):
        (root / folder).mkdir(parents=True)
    (root / "config.yaml").write_text("cohort: {table: t.csv, licence: CC BY 4.0}\ngenerate: {generator: few-step}\n")
    (root / "environment.json").write_text('{"stedm": "0.0.7"}')
    (root / "data" / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    for k in range(6):
        name = f"s{k:06d}.png"
        drawn = rng.integers(0, 3, (PX, PX), dtype=np.uint8)
        save(root / "synthetic" / "images" / name, rng.integers(0, 256, (PX, PX, 3), dtype=np.uint8))
        save(root / "synthetic" / "masks" / name, drawn)
        save(root / "synthetic" / "filtered" / name, np.where(rng.random((PX, PX)) < 0.1, np.uint8(255), drawn))
    ids = [f"s{k:06d}" for k in range(6)]
    manifest = {"id": ids, "image": [f"images/{name}.png" for name in ids], "seed": range(6), "style_guidance": 1.25}
    manifest |= {"layout": [f"masks/{name}.png" for name in ids], "mask": [f"filtered/{name}.png" for name in ids]}
    manifest |= {"style_patient": ["0012", "p2"] * 3, "layout_kind": ["real", "prior"] * 3, "layout_source": "q"}
    manifest |= {"keep": [k in KEPT for k in range(6)], "agreement": np.linspace(1, 0.5, 6), "style_patches": "[]"}
    manifest |= {"ignored_fraction": 0.1, "nearest_real_distance": [0.5] * 5 + [np.nan]}
    pd.DataFrame(manifest).to_parquet(root / "synthetic" / "manifest.parquet")
    for k in range(3):
        save(root / "data" / "images" / f"a{k}.png", rng.integers(0, 256, (PX, PX, 3), dtype=np.uint8))
        save(root / "data" / "masks" / f"a{k}.png", rng.integers(0, 3, (PX, PX), dtype=np.uint8))
    patches = {"patch_id": ["a.0", "a.1", "a.2"], "patient": ["x", "y", "z"], "split": ["train", "train", "test"]}
    patches |= {"annotated": True, "image": [f"images/a{k}.png" for k in range(3)], "has_mask": True}
    patches |= {"mpp": [0.5, 0.5, 0.502]}
    patches |= {"mask": [f"masks/a{k}.png" for k in range(3)]}
    pd.DataFrame(patches).to_parquet(root / "data" / "patches.parquet")
    return root


def export(source: Path, name: str, *options: str, out: Path | None = None) -> Path:
    out = out or source.parent / NAMES.get(name, name)
    assert main(["export", str(source), "--format", name, "--out", str(out), *options]) == 0
    return out


def expected(run: Path, *, everything: bool = False, with_real: bool = False) -> dict[str, tuple[np.ndarray, ...]]:
    """Image and label map of each key."""
    inside = run / "synthetic"
    found = {
        f"s{k:06d}": (inside / "images" / f"s{k:06d}.png", inside / "filtered" / f"s{k:06d}.png")
        for k in (range(6) if everything else KEPT)
    }
    if with_real:
        found |= {f"r{k:06d}": tuple(run / "data" / kind / f"a{k}.png" for kind in ("images", "masks")) for k in (0, 1)}
    return {key: tuple(np.asarray(Image.open(path)) for path in paths) for key, paths in found.items()}


def assert_same(found: dict[str, tuple[Any, Any]], wanted: dict[str, tuple[np.ndarray, ...]]) -> None:
    assert list(found) == list(wanted)
    for key, (image, label_map) in wanted.items():
        assert np.array_equal(np.asarray(found[key][0]), image), key
        assert np.array_equal(np.asarray(found[key][1]), label_map), key
        assert np.asarray(found[key][1]).dtype == np.uint8


def read_datasets(*arguments: Any, cache: Path, **options: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(*map(str, arguments), split="train", cache_dir=str(cache), **options)


def assert_facts(row: dict[str, Any], key: str) -> None:
    assert row["mpp"] == 0.5
    if key.startswith("s"):
        k = int(key[1:])
        assert (row["synthetic"], row["patient"], row["seed"]) == (True, ["0012", "p2"][k % 2], k)
        assert row["kept"] is (k in KEPT) and row["agreement"] == pytest.approx(1 - 0.1 * k)
        assert row["nearest_real_distance"] == (None if k == 5 else 0.5) and row["patch_id"] is None
    else:
        assert (row["synthetic"], row["patient"], row["patch_id"]) == (False, "xy"[int(key[1:])], f"a.{int(key[1:])}")
        assert row["agreement"] is row["kept"] is row["seed"] is None


@pytest.mark.parametrize("everything", [False, True])
def test_folders_are_read_by_pillow_and_by_datasets(
    run: Path, tmp_path: Path, everything: bool, no_sockets: list[Any]
) -> None:
    options = ["--with-real", *(["--all"] if everything else [])]
    out, wanted = export(run, "folders", *options), expected(run, everything=everything, with_real=True)
    stems = sorted(path.stem for path in (out / "images").iterdir())
    assert stems == sorted(wanted) == sorted(path.stem for path in (out / "masks").iterdir())
    files = {key: tuple(Image.open(out / kind / f"{key}.png") for kind in ("images", "masks")) for key in wanted}
    assert {(image.mode, mask.mode) for image, mask in files.values()} == {("RGB", "L")}
    assert_same(files, wanted)
    rows = read_datasets("imagefolder", data_dir=str(out), cache=tmp_path / "cache")
    assert_same({row["key"]: (row["image"], row["mask"]) for row in rows}, wanted)
    for row in rows:
        assert_facts(row, row["key"])
    assert no_sockets == []


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parquet_is_read_by_datasets_as_images(run: Path, tmp_path: Path, size: int, no_sockets: list[Any]) -> None:
    out = export(run, "parquet", "--with-real", "--all", "--shard-size", str(size))
    assert len(list((out / "data").iterdir())) == -(-8 // size)
    rows = read_datasets(out, cache=tmp_path / "cache")
    kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
    assert kinds == {"image": "Image", "mask": "Image", "key": "Value"} | dict.fromkeys(FACTS, "Value")
    assert {name: rows.features[name].dtype for name in FACTS} == FACTS
    assert_same(
        {row["key"]: (row["image"], row["mask"]) for row in rows}, expected(run, everything=True, with_real=True)
    )
    for row in rows:
        assert_facts(row, row["key"])
    direct = read_datasets("parquet", data_files=str(out / "data" / "*"), cache=tmp_path / "other")
    assert direct.features == rows.features  # without the card: from the schema itself
    assert no_sockets == []


@pytest.mark.parametrize("size", [2, 1000])
def test_webdataset_shards_are_read_by_webdataset(run: Path, tmp_path: Path, size: int, no_sockets: list[Any]) -> None:
    webdataset = pytest.importorskip("webdataset")
    out, wanted = export(run, "webdataset", "--with-real", "--shard-size", str(size)), expected(run, with_real=True)
    shards = sorted(map(str, out.glob("shard-*.tar")))
    assert len(shards) == -(-7 // size)
    named = re.search(r'"webdataset/(shard-\S+tar)"', (out / "README.md").read_text())
    assert named is not None
    samples = list(webdataset.WebDataset(f"{out}/{named[1]}", shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(wanted)
    kinds = ("image.png", "mask.png")
    found = {s["__key__"]: tuple(Image.open(io.BytesIO(s[kind])) for kind in kinds) for s in samples}
    assert_same(found, wanted)
    for sample in samples:
        assert_facts(json.loads(sample["json"]), sample["__key__"])
    decoded = next(iter(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")))
    assert np.array_equal(decoded["image.png"], wanted["s000000"][0]) and decoded["json"]["key"] == "s000000"
    assert no_sockets == []


def assert_nnunet_reads(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What nnU-Net v2 demands of a raw data set of RGB PNG files; image and labels of each case."""
    dataset = json.loads((folder / "dataset.json").read_text())
    assert re.fullmatch(r"Dataset\d{3}_\w+", folder.name)
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= set(dataset)
    ending, labels = dataset["file_ending"], dataset["labels"]
    assert ending in (".png", ".bmp", ".tif")  # those of NaturalImage2DIO
    cases = sorted({re.fullmatch(r"(.+)_\d{4}\.png", path.name)[1] for path in (folder / "imagesTr").iterdir()})  # type: ignore[index]
    assert len(cases) == dataset["numTraining"]
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == [f"{case}{ending}" for case in cases]
    values = sorted(labels.values())
    assert labels["background"] == 0 and values == list(range(len(values)))
    assert labels["ignore"] == max(values)
    found = {}
    for case in cases:
        files = sorted((folder / "imagesTr").glob(f"{case}_*{ending}"))
        image, label_map = (np.asarray(Image.open(path)) for path in (*files, folder / "labelsTr" / f"{case}{ending}"))
        assert image.ndim == 3 and image.shape[-1] == len(dataset["channel_names"])  # one file: its channels are those
        assert label_map.ndim == 2 and image.shape[:2] == label_map.shape
        assert set(np.unique(label_map)) <= set(values)
        found[case] = (image, label_map)
    return found


def test_nnunet_raw_format_keeps_nnunets_rules(run: Path) -> None:
    out = export(run, "nnunet", "--with-real")
    found = assert_nnunet_reads(out)
    labels = json.loads((out / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "stroma": 1, "tumour | <b>": 2, "ignore": 3}
    for key, (image, label_map) in expected(run, with_real=True).items():
        assert np.array_equal(found[key][0], image)
        for value, name in {0: "stroma", 1: "background", 2: "tumour | <b>", 255: "ignore"}.items():
            assert np.array_equal(found[key][1] == labels[name], label_map == value)
    facts = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert all((out / row["file_name"]).is_file() and (out / row["mask_file_name"]).is_file() for row in facts)


def test_nnunet_itself_reads_its_raw_format(run: Path) -> None:
    """The library, where it is installed: its own check of a raw data set, and each case through its own reader."""
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed: make nnunet")
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    out = export(run, "nnunet", "--with-real")
    verify_dataset_integrity(str(out), num_processes=1)
    reader = NaturalImage2DIO()
    for key, (image, _) in expected(run, with_real=True).items():
        read, _ = reader.read_images([str(out / "imagesTr" / f"{key}_0000.png")])  # (3, 1, H, W)
        assert np.array_equal(read[:, 0], image.transpose(2, 0, 1))
        labels, _ = reader.read_seg(str(out / "labelsTr" / f"{key}.png"))
        assert labels.shape == (1, 1, *image.shape[:2])


def test_nnunets_background_stays_empty_where_no_class_is_called_that() -> None:
    labels, table = nnunet_labels(["stroma", "tumour"])
    assert labels == {"background": 0, "stroma": 1, "tumour": 2, "ignore": 3}
    assert table[[0, 1, 255]].tolist() == [1, 2, 3]
    with pytest.raises(UserError, match="ignore"):
        nnunet_labels(["background", "ignore"])


@pytest.mark.parametrize("name", FORMATS)
def test_each_export_says_what_it_is(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(run, name, "--with-real")
    assert "next: open" in capsys.readouterr().out
    _, header, card = (out / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(header)
    assert front["license"] == "cc-by-4.0" and "synthetic" in front["tags"]
    words = ["5 of these 7 images are synthetic", "The other 2 are real", "stedm 0.0.7, the few-step generator", "run"]
    words += ["kept 5 of 6", "CC BY 4.0", "#eceae4", "#d9774f", "tumour \\| &lt;b>", "Not a medical device"]
    words += ["Microns per pixel: 0.5.", "`mpp`"]
    assert [word for word in words if word not in card] == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FORMATS)
def test_a_killed_export_continues_and_is_the_same(
    run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--shard-size", "2"] if name in ("parquet", "webdataset") else []
    whole = contents(export(run, name, *options))
    reads: list[str] = []
    read = ExportSet.read

    def dies(self: ExportSet, pair: Any) -> Any:
        reads.append(pair.key)
        if len(reads) == 4:
            raise KeyboardInterrupt
        return read(self, pair)

    out = tmp_path / "again" / NAMES.get(name, name)
    monkeypatch.setattr(ExportSet, "read", dies)
    command = ["export", str(run), "--format", name, "--out", str(out), *options]
    assert main(command) == 130
    assert not (out / "README.md").exists()
    (out / ".part.stedm-0123abcd.png").write_bytes(b"left by kill -9")
    before = len(reads)
    assert main(command) == 0
    assert contents(out) == whole
    assert len(reads) - before < len(KEPT)  # what was there was not made again


@pytest.fixture
def standalone(run: Path, tmp_path: Path) -> Iterator[Path]:
    """A set as `stedm generate --model` leaves it: in no run, and unfiltered."""
    folder = Path(shutil.copytree(run / "synthetic", tmp_path / "elsewhere" / "drawn"))
    manifest = pd.read_parquet(folder / "manifest.parquet").drop(columns=["keep", "agreement", "style_patient"])
    manifest.assign(model="0123456789ab", mask=manifest["layout"]).to_parquet(folder / "manifest.parquet")
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    yield folder


def test_a_set_outside_of_a_run_is_exported_whole(standalone: Path) -> None:
    out = export(standalone, "folders")
    assert len(list((out / "images").iterdir())) == 6
    card = (out / "README.md").read_text()
    assert "Nobody has written down" in card  # by an older version
    path = standalone / "manifest.parquet"
    pd.read_parquet(path).assign(mpp=[0.25] * 5 + [0.5]).to_parquet(path)
    assert "Microns per pixel: 0.25 to 0.5." in (export(standalone, "parquet") / "README.md").read_text()
    assert "0123456789ab" in card and "No segmenter has judged" in card and "license: unknown" in card


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["export", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    return said


def test_mistakes_are_one_line(run: Path, standalone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    to = ("--format", "folders", "--out", out)
    assert "neither a run nor" in refused(capsys, tmp_path, *to)
    assert "invalid choice" in refused(capsys, run, "--format", "zip", "--out", out)
    assert "--shard-size" in refused(capsys, run, *to, "--shard-size", 5)
    assert "DatasetNNN_NAME" in refused(capsys, run, "--format", "nnunet", "--out", out)
    assert "--with-real" in refused(capsys, standalone, *to, "--with-real")
    (standalone / "classes.json").unlink()
    assert "classes.json" in refused(capsys, standalone, *to)
    assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    assert "something else" in refused(capsys, run, *to)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    export(run, "folders", out=out)
    assert "another export" in refused(capsys, run, *to, "--all")
    assert "another export" in refused(capsys, run, "--format", "parquet", "--out", out)


@pytest.mark.parametrize("column, value", [("image", f"{OUT}secret.png"), ("id", "a/b"), ("id", "a.b"), ("mask", "x")])
def test_a_hostile_manifest_exports_nothing_of_others(
    run: Path, tmp_path: Path, column: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "secret.png", np.zeros((PX, PX, 3), np.uint8))
    path = run / "synthetic" / "manifest.parquet"
    pd.read_parquet(path).assign(**{column: value}).to_parquet(path)
    refused(capsys, run, "--format", "folders", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()
    assert not list((tmp_path / "out").glob("images/*"))


def test_links_and_patches_that_lead_out_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "secret.png", np.zeros((PX, PX, 3), np.uint8))
    patches = pd.read_parquet(run / "data" / "patches.parquet")
    patches.assign(image=f"{OUT}secret.png").to_parquet(run / "data" / "patches.parquet")
    to = ("--format", "folders", "--out", tmp_path / "out")
    assert "leads out" in refused(capsys, run, *to, "--with-real")
    (run / "synthetic" / "images" / "s000000.png").unlink()
    (run / "synthetic" / "images" / "s000000.png").symlink_to(tmp_path / "secret.png")
    assert "leads out" in refused(capsys, run, *to)


def test_damaged_pairs_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = ("--format", "webdataset", "--out", tmp_path / "out")
    mask = run / "synthetic" / "filtered" / "s000001.png"
    for pixels in (np.full((PX, PX), 3, np.uint8), np.zeros((PX, PX - 1), np.uint8)):
        save(mask, pixels)
        assert "s000001.png" in refused(capsys, run, *to)
    mask.write_bytes(mask.read_bytes()[:30])
    assert "s000001.png" in refused(capsys, run, *to)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_second_round_says_who_judged_it(run: Path) -> None:
    again = run / "synthetic-second-round"
    shutil.copytree(run / "synthetic", again)
    said, of_first = (find_set(folder).origin[-1] for folder in (again, run / "synthetic"))
    assert said.startswith("Segmenters trained with a first round of images, together, kept ")
    assert of_first.startswith("A segmenter trained on real images kept ")


def test_a_filter_that_is_off_is_said_to_have_changed_nothing(run: Path) -> None:
    path = run / "synthetic" / "manifest.parquet"
    manifest = pd.read_parquet(path).assign(keep=True)
    for ignored, said in ((0.0, "changed nothing"), (0.1, "kept 6 of 6")):
        manifest.assign(ignored_fraction=ignored).to_parquet(path)
        found = find_set(run / "synthetic")
        assert said in found.origin[-1] and len(found.pairs) == 6


def test_a_control_set_says_which_generator_drew_it(run: Path) -> None:
    for name, words in (
        ("synthetic-annotated-only", "the annotated-only generator of the run"),
        ("synthetic-unstyled", "the full (asked without a style) generator of the run"),
    ):
        shutil.copytree(run / "synthetic", run / name)
        assert words in find_set(run / name).origin[0]


def test_an_unfiltered_set_is_exported_only_when_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "synthetic" / "manifest.parquet"
    pd.read_parquet(path).drop(columns=["keep", "agreement", "ignored_fraction"]).to_parquet(path)
    assert "stedm filter" in refused(capsys, run, "--format", "folders", "--out", run.parent / "out")
    assert len(list((export(run, "folders", "--all") / "masks").iterdir())) == 6
