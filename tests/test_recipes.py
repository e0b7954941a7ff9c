"""Data set recipes: files laid out as published -> converter -> table -> shipped config -> patches and people."""

import csv
import gzip
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy.io import savemat

from stedm.config_file import load_config
from stedm.files import read_json
from stedm.stages.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("convert_*.py"))
RNG = np.random.default_rng(0)
Convert = Callable[..., str]
Prepared = tuple[pd.DataFrame, dict[str, list[str]], list[str]]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Convert:
    """Runs examples/convert_NAME.py with these words; what it prints."""

    def run(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"convert_{name}.py", *map(str, words)])
        runpy.run_path(str(ROOT / "examples" / f"convert_{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def prepared(name: str, out: Path, table: Path, **changes: Any) -> Prepared:
    """Patches table, roles and classes that the shipped config gives for this table, with these keys changed."""
    flags = {"cohort.table": table, "size": "smoke"} | {key.replace("__", "."): value for key, value in changes.items()}
    prepare(out, load_config(ROOT / "configs" / f"{name}.yaml", [f"{key}={value}" for key, value in flags.items()]))
    patches = pd.read_parquet(out / "patches.parquet")
    assert all((out / image).is_file() for image in patches["image"])
    return patches, read_json(out / "splits.json"), read_json(out / "classes.json")["classes"]


def tissue(height: int, width: int) -> np.ndarray:
    return RNG.integers((130, 50, 110), (190, 110, 170), (height, width, 3), dtype=np.uint8)


def save_svs(path: Path, *, mpp: float, px: int = 128) -> None:
    """A slide as Aperio scanners write it, all tissue but for a margin of glass below."""
    pixels = tissue(px, px)
    pixels[-px // 8 :] = 240
    words = f"Aperio Image Library v11.2.1\n{px}x{px} [0,0 {px}x{px}] (64x64) RGB|AppMag = 40|MPP = {mpp}"
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", description=words, metadata=None)


def people(patches: pd.DataFrame, column: str) -> dict[str, set[str]]:
    return {str(value): set(rows["patient"]) for value, rows in patches.groupby(column)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_converters_are_short_and_explain_themselves(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "--out" in text and "->" in text
    named = [word for word in path.read_text(encoding="utf-8").split() if word.startswith("configs/")]
    assert [name for name in named if not (ROOT / name.rstrip(".,")).is_file()] == []


# Flowers-102


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Classes 5 and 6 (annotated) and 1 and 2 (not), two photographs of each in every split: every third is test."""
    folder = tmp_path / "flowers"
    for name in ("jpg", "segmim"):
        (folder / name).mkdir(parents=True)
    labels = np.repeat([1, 2, 5, 6], 6)
    for number in range(1, 25):
        image = RNG.integers(20, 90, (100, 80, 3), dtype=np.uint8)
        image[25:75] = RNG.integers((180, 60, 120), (220, 100, 160), (50, 80, 3), dtype=np.uint8)
        cut = image.copy()
        cut[:25] = cut[75:] = (0, 0, 254)
        Image.fromarray(image).save(folder / "jpg" / f"image_{number:05d}.jpg")
        Image.fromarray(cut).save(folder / "segmim" / f"segmim_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    numbers = np.arange(1, 25)
    splits = {key: numbers[numbers % 3 == k][None] for k, key in enumerate(("tstid", "trnid", "valid"))}
    savemat(folder / "setid.mat", splits)
    return folder


def test_flowers102(flowers: Path, tmp_path: Path, convert: Convert) -> None:
    assert "24 rows" in convert("flowers102", flowers, "--out", tmp_path / "table")
    changes = {"prepare__patch_px": 16, "prepare__mpp": 5.0}
    patches, splits, classes = prepared("flowers102", tmp_path / "data", tmp_path / "table" / "mapping.csv", **changes)
    assert classes == ["background", "flower"] and len(patches) == 24 * 2  # two squares cover 80 x 100 px
    train = {f"photo{number:05d}" for number in range(1, 25) if number % 3 == 1}
    first, last = ({name for name in train if (int(name[5:]) > 12) == late} for late in (False, True))
    assert splits["train_annotated"] == sorted(last) and splits["train_unannotated"] == sorted(first)
    assert len(splits["val"]) == len(splits["test"]) == 8
    by_kind = people(patches, "group")
    assert set(by_kind) == {"annotated class", "unannotated class"} and last < by_kind["annotated class"]
    assert set(splits["test"]) & by_kind["annotated class"] and set(splits["test"]) & by_kind["unannotated class"]
    # The flower fills half of the photograph; JPEG blurs its edge by a pixel or two.
    assert patches["fraction_flower"].groupby(patches["patient"]).mean().dropna().between(0.45, 0.65).all()
    assert patches["fraction_flower"].notna().sum() == 2 * (4 + 8 + 8)


def test_flowers102_blue_petals_are_flowers(tmp_path: Path) -> None:
    cut = np.full((96, 96, 3), (0, 0, 254), np.uint8)
    cut[24:72, 24:72] = (40, 30, 210)
    Image.fromarray(cut).save(tmp_path / "cut.jpg")
    runpy.run_path(str(ROOT / "examples" / "convert_flowers102.py"))["write_mask"](
        tmp_path / "cut.jpg", tmp_path / "m.png"
    )
    mask = np.asarray(Image.open(tmp_path / "m.png"))
    assert mask[28:68, 28:68].mean() > 0.95 and not mask[:16].any() and not mask[:, 80:].any()


def test_flowers102_can_be_thinned_and_keeps_the_paper_s_classes(
    flowers: Path, tmp_path: Path, convert: Convert
) -> None:
    assert "12 rows" in convert("flowers102", flowers, "--out", tmp_path / "table", "--most", 1)
    source = runpy.run_path(str(ROOT / "examples" / "convert_flowers102.py"))
    assert len(source["ANNOTATED"]) == 48 and source["ANNOTATED"] < set(range(1, 103))


# EBHI-Seg and GlaS


@pytest.fixture
def ebhi(tmp_path: Path) -> Path:
    """Five patients, one of them under two prefixes; one image without a label."""
    names = {
        "Adenocarcinoma": ["GT2001837-1-400-001", "GTxc2001837-2-400-003"],
        "High-grade IN": ["GT2012149-1-400-001", "GT2012149-1-400-002"],
        "Low-grade IN": ["GTDC2012150-1-400-001"],
        "Normal": ["GT2000000-1-400-001"],
        "Polyp": ["GTXC2110491-4-400-006"],
        "Serrated adenoma": ["GT2012149-2-400-001"],
    }
    label = np.zeros((224, 224), np.uint8)
    label[:56], label[56] = 255, 90  # a quarter, with a grey edge
    for lesion, stems in names.items():
        for kind in ("image", "label"):
            (tmp_path / "EBHI-SEG" / lesion / kind).mkdir(parents=True)
        for stem in stems:
            Image.fromarray(tissue(224, 224)).save(tmp_path / "EBHI-SEG" / lesion / "image" / f"{stem}.png")
            mask = Image.fromarray(label)
            mask = mask.convert("RGB") if lesion == "Polyp" else mask
            mask.save(tmp_path / "EBHI-SEG" / lesion / "label" / f"{stem}.png")
    (tmp_path / "EBHI-SEG" / "High-grade IN" / "label" / "GT2012149-1-400-002.png").unlink()
    (tmp_path / "EBHI-SEG" / "readme.md").write_text("EBHI-Seg")
    return tmp_path / "EBHI-SEG"


def test_ebhi(ebhi: Path, tmp_path: Path, convert: Convert) -> None:
    assert "8 rows" in (text := convert("ebhi", ebhi, "--out", tmp_path / "table")) and "1 of them" in text
    assert "left out" not in text
    misnamed = ebhi / "Polyp" / "image" / "GT2110491-1-400-001 (1).png"
    Image.fromarray(tissue(224, 224)).save(misnamed)
    assert f"left out: {misnamed} " in convert("ebhi", ebhi, "--out", tmp_path / "table")
    sizes = {"label_budget": 1, "val_patients": 1, "test_patients": 2, "unseen_patients": 0}
    patches, splits, classes = prepared(
        "ebhi",
        tmp_path / "data",
        tmp_path / "table" / "mapping.csv",
        **{f"split__{key}": value for key, value in sizes.items()},
    )
    assert classes == ["background", "gland"] and len(patches) == 8
    assert set(patches["patient"]) == {"2001837", "2012149", "2012150", "2000000", "2110491"}
    assert people(patches, "group")["high_grade_in"] == people(patches, "group")["serrated_adenoma"] == {"2012149"}
    assert set(patches.loc[patches["patient"] == "2001837", "slide"]) == {"GT2001837-1", "GTxc2001837-2"}
    assert patches["has_mask"].sum() == 7 and (patches["mpp"] == 0.5).all()
    assert patches["fraction_gland"].dropna().between(0.24, 0.26).all()
    assert [len(splits[role]) for role in ("train_annotated", "train_unannotated", "val", "test")] == [1, 1, 1, 2]


@pytest.fixture
def glas(tmp_path: Path) -> Path:
    """Eight images of five patients; patient 4 is in the official training and test parts."""
    folder = tmp_path / "Warwick QU Dataset (Released 2016_07_08)"
    folder.mkdir()
    rows = ["train_1,1, benign, adenomatous", "train_2,2, malignant, moderately differentiated"]
    rows += ["train_3,3, benign, healthy", "train_4,4, malignant, poorly differentiated", "testA_1,4, benign, healthy"]
    rows += ["testA_2,5, malignant, poorly differentiated", "testB_1,5, benign, healthy", "testB_2,1, benign, healthy"]
    header = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
    (folder / "Grade.csv").write_bytes("\r".join([header, *rows, ""]).encode())
    glands = np.zeros((436, 436), np.uint8)
    glands[:109, :218], glands[:109, 218:] = 1, 2
    for row in rows:
        name = row.partition(",")[0]
        Image.fromarray(tissue(436, 436)).save(folder / f"{name}.bmp")
        Image.fromarray(glands).save(folder / f"{name}_anno.bmp")
    return folder


def test_glas(glas: Path, tmp_path: Path, convert: Convert) -> None:
    assert "8 rows" in convert("glas", glas, "--out", tmp_path / "table")
    table = tmp_path / "table" / "mapping.csv"
    assert set(pd.read_csv(table)["official_split"]) == {"train", "testA", "testB"}
    sizes = {"split__label_budget": 1, "split__val_patients": 1, "split__test_patients": 2}
    patches, splits, classes = prepared("glas", tmp_path / "data", table, **sizes)
    assert classes == ["background", "gland"] and set(patches["patient"]) == {"1", "2", "3", "4", "5"}
    assert people(patches, "group") == {"benign": {"1", "3", "4", "5"}, "malignant": {"2", "4", "5"}}
    assert len(splits["test"]) == 2 and (patches["mpp"] == 2.7).all()
    assert patches.groupby("source")["fraction_gland"].mean().dropna().between(0.15, 0.35).all()
    (glas / "train_9.bmp").touch()
    with pytest.raises(SystemExit, match=r"Grade\.csv: does not name train_9\.bmp"):
        convert("glas", glas, "--out", tmp_path / "table")
    (glas / "train_9.bmp").unlink()
    (glas / "train_3.bmp").unlink()
    with pytest.raises(SystemExit, match=r"train_3\.bmp"):
        convert("glas", glas, "--out", tmp_path / "table")


def test_ebhi_to_glas(ebhi: Path, glas: Path, tmp_path: Path, convert: Convert) -> None:
    convert("ebhi", ebhi, "--out", tmp_path / "ebhi")
    convert("glas", glas, "--out", tmp_path / "glas")
    changes = {"cohort__target__table": tmp_path / "glas" / "mapping.csv", "split__label_budget": 1}
    changes |= {"split__val_patients": 1, "split__test_patients": 2}
    patches, splits, _ = prepared("ebhi_to_glas", tmp_path / "data", tmp_path / "ebhi" / "mapping.csv", **changes)
    assert set(splits["test"]) <= {"1", "2", "3", "4", "5"} and len(splits["train_unannotated"]) == 3
    assert {len(name) for role in ("train_annotated", "val") for name in splits[role]} == {7}
    assert set(patches["laboratory"]) == {"source", "target"}


# Slides with polygons


CATEGORIES = ["Bone", "Cartilage", "Dermis", "Epidermis", "Subcutis", "Inflamm/Necrosis", "Melanoma", "Plasmacytoma"]
CATEGORIES += ["Mast Cell Tumor", "PNST", "SCC", "Trichoblastoma", "Histiocytoma"]
SUBTYPES = {"Melanoma": 7, "Plasmacytoma": 8, "MCT": 9, "PNST": 10, "SCC": 11, "Trichoblastoma": 12, "Histiocytoma": 13}


@pytest.fixture
def catch(tmp_path: Path) -> Path:
    """Four dogs of each subtype, two of them to train on, and two slides of one; half tumour, half dermis."""
    folder = tmp_path / "catch"
    split = {"01": "train", "02": "val", "03": "test", "04": "train"}
    names = [f"{subtype}_{dog}_1.svs" for subtype in SUBTYPES for dog in split] + ["Melanoma_01_2.svs"]
    rows = [["Slide", "Dataset", "Scanner"]]
    coco: dict[str, Any] = {"info": {}, "licenses": [], "images": [], "annotations": []}
    tissues = ["Tissue"] * 6 + ["Tumor"] * 7
    coco["categories"] = [
        {"id": k, "name": name, "supercategory": kind}
        for k, (name, kind) in enumerate(zip(CATEGORIES, tissues, strict=True), start=1)
    ]
    for number, name in enumerate(names, start=1):
        save_svs(folder / "slides" / name.split("_")[0] / name, mpp=1.0)
        rows.append([name, split[name.split("_")[1]], "ScanScope v1"])
        coco["images"].append({"license": 1, "file_name": name, "id": number, "width": 128, "height": 128})
        for category, (x0, x1) in ((SUBTYPES[name.split("_")[0]], (0, 64)), (3, (64, 128))):
            shape = {"segmentation": [x0, 0, x1, 0, x1, 96, x0, 96], "bbox": [x0, 0, x1 - x0, 96], "area": 6144}
            ids = {"image_id": number, "category_id": category, "id": len(coco["annotations"]) + 1}
            coco["annotations"].append(shape | ids | {"iscrowd": 0})
    rows.append(["Melanoma_05_1.svs", "train", "AT2"])
    (folder / "CATCH.json").write_text(json.dumps(coco))
    with open(folder / "datasets.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    return folder


def test_catch(catch: Path, tmp_path: Path, convert: Convert) -> None:
    table = tmp_path / "tables" / "cohort.csv"
    (catch / "slides" / "SCC_1_1.svs").touch()
    printed = convert("catch", catch / "slides", catch / "CATCH.json", catch / "datasets.csv", "--out", table)
    assert "29 rows" in printed and "1 slides" in printed and "1 .svs files not in it" in printed
    changes = {"prepare__patch_px": 16, "split__label_budget": 7}
    patches, splits, classes = prepared("catch", tmp_path / "data", table, **changes)
    assert classes[0] == "background" and len(classes) == 8
    assert people(patches, "group") == {
        kind: {f"{kind}_{dog}" for dog in ("01", "02", "03", "04")} for kind in SUBTYPES
    }
    assert splits["test"] == sorted(f"{kind}_03" for kind in SUBTYPES)
    assert {name.rpartition("_")[0] for name in splits["train_annotated"]} == set(SUBTYPES)  # one of each
    assert len(splits["train_annotated"]) == len(splits["train_unannotated"]) == 7
    assert set(patches.loc[patches["patient"] == "Melanoma_01", "slide"]) == {"Melanoma_01_1", "Melanoma_01_2"}
    own = {"MCT": "mast_cell_tumour", "PNST": "nerve_sheath_tumour", "SCC": "squamous_cell_carcinoma"}
    for kind, rows in patches.groupby("group"):
        fractions = rows[[f"fraction_{name}" for name in classes]].mean()
        tumour = own.get(str(kind), str(kind).lower())
        # Of four rows of patches, the last has no polygon: its glass is background, its tissue ignored.
        assert fractions["fraction_background"] == pytest.approx(0.625)
        assert fractions[f"fraction_{tumour}"] == pytest.approx(0.375)


@pytest.fixture
def her2(tmp_path: Path) -> Path:
    """Ten patients with scores; QuPath exports, in each of the ways it names them, of the first six."""
    folder = tmp_path / "her2"
    (folder / "exported").mkdir(parents=True)
    rows = [["slide", "patient", "score"]]
    for k in range(10):
        save_svs(folder / "slides" / f"case{k}.svs", mpp=1.0)
        rows.append([f"case{k}" if k % 2 else f"case{k}.svs", f"p{k}", ["0", "1+", "2+", "3+"][k % 4]])
        shapes = {"Tumor": (0, 0, 128, 64), "Stroma": (0, 64, 128, 96), "Necrosis": (0, 96, 128, 128)}
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
                "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}},
            }
            for name, (x0, y0, x1, y1) in shapes.items()
        ]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        if k == 0:
            (folder / "exported" / "case0.geojson.gz").write_bytes(gzip.compress(text.encode()))
        elif k < 6:
            (folder / "exported" / (f"case{k}.geojson" if k % 2 else f"case{k}.svs.geojson")).write_text(text)
    with open(folder / "scores.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_her2(her2: Path, tmp_path: Path, convert: Convert) -> None:
    table = tmp_path / "tables" / "cohort.csv"
    words = (her2 / "slides", her2 / "scores.csv", "--annotations", her2 / "exported", "--out", table)
    assert "10 rows" in (printed := convert("qupath", *words)) and "6 of them" in printed
    sizes = {"split__label_budget": 2, "split__val_patients": 1, "split__test_patients": 2, "prepare__patch_px": 16}
    patches, splits, classes = prepared("her2", tmp_path / "data", table, **sizes)
    assert classes == ["other", "tumour"] and people(patches, "has_mask")["True"] == {f"p{k}" for k in range(6)}
    assert people(patches, "group")["3+"] == {"p3", "p7"} and people(patches, "group")["0"] == {"p0", "p4", "p8"}
    assert set(splits["train_unannotated"]) >= {"p6", "p7", "p8", "p9"} and len(splits["train_annotated"]) == 2
    annotated = patches[patches["annotated"]]
    assert annotated["fraction_tumour"].mean() == pytest.approx(2 / 3, abs=0.05)


def annotated(table: Path) -> list[str]:
    with open(table, newline="", encoding="utf-8") as file:
        return [Path(row["annotation"]).name for row in csv.DictReader(file)]


def test_qupath_names_of_files_with_several_images_are_known(her2: Path, tmp_path: Path, convert: Convert) -> None:
    series = her2 / "exported" / "case2.svs - Series 0.geojson"
    (her2 / "exported" / "case2.svs.geojson").rename(series)
    (her2 / "exported" / "._case9.geojson").touch()
    words = (her2 / "slides", her2 / "scores.csv", "--annotations", her2 / "exported", "--out", tmp_path / "cohort.csv")
    assert "6 of them" in convert("qupath", *words) and annotated(tmp_path / "cohort.csv")[2] == series.name
    series.with_name("case2.svs - Series 1.geojson").touch()
    with pytest.raises(SystemExit, match=r"Series 0\.geojson and .*Series 1\.geojson: both of case2\.svs; leave"):
        convert("qupath", *words)


def test_no_annotation_gets_lost_without_a_word(her2: Path, tmp_path: Path, convert: Convert) -> None:
    words = (her2 / "slides", her2 / "scores.csv", "--out", tmp_path / "cohort.csv", "--annotations")
    for folder in ("exportd", "slides"):
        with pytest.raises(SystemExit, match=rf"{folder}: no \.geojson there"):
            convert("qupath", *words, her2 / folder)
    (her2 / "exported" / "case3.geojson").rename(her2 / "exported" / "Case_3.geojson")
    with pytest.raises(SystemExit, match=r"exported: of no slide in .*scores\.csv: Case_3\.geojson; name"):
        convert("qupath", *words, her2 / "exported")
    (her2 / "exported" / "Case_3.geojson").rename(her2 / "exported" / "case3.geojson")
    save_svs(her2 / "slides" / "case3.ndpi", mpp=1.0)
    (her2 / "scores.csv").write_text("slide,patient\ncase3.svs,a\ncase3.ndpi,b\n")
    with pytest.raises(SystemExit, match=r"case3\.geojson: of .*case3\.svs or of .*case3\.ndpi\? add its suffix"):
        convert("qupath", *words, her2 / "exported")
    assert not (tmp_path / "cohort.csv").exists()


def test_files_beside_the_slides_are_not_taken_for_slides(her2: Path, tmp_path: Path, convert: Convert) -> None:
    for k, text in ((3, "<x/>"), (4, "<x/>")):
        (her2 / "slides" / f"case{k}.xml").write_text(text)
        (her2 / "slides" / f"case{k}.svs.xml").write_text(text)
    (her2 / "slides" / "case5.svs").write_text("damaged: what `stedm prepare` names and leaves out")
    words = (her2 / "slides", her2 / "scores.csv", "--annotations", her2 / "exported", "--out", tmp_path / "cohort.csv")
    assert "10 rows" in convert("qupath", *words)


def test_a_list_that_excel_saved_in_another_way(her2: Path, tmp_path: Path, convert: Convert) -> None:
    words = (her2 / "slides", her2 / "scores.csv", "--out", tmp_path / "cohort.csv")
    text = "slide,patient\ncase1,Müller"
    (her2 / "scores.csv").write_text(text, encoding="utf-8-sig")
    assert "1 rows" in convert("qupath", *words)
    (her2 / "scores.csv").write_text(text, encoding="cp1252")
    with pytest.raises(SystemExit, match=r'scores\.csv: not a CSV in UTF-8 .*save it as "CSV UTF-8"'):
        convert("qupath", *words)
    (her2 / "scores.csv").write_text(text.replace(",", ";"))
    with pytest.raises(SystemExit, match="commas between values"):
        convert("qupath", *words)
    (her2 / "scores.csv").write_text(text + "\n,\n\n")
    assert "1 rows" in convert("qupath", *words)
    (her2 / "scores.csv").write_text("slide,patient\n,\n")
    with pytest.raises(SystemExit, match="a row per slide"):
        convert("qupath", *words)
    (her2 / "scores.csv").write_text("slide,patient,annotation\ncase1,Smith,yes\n")
    with pytest.raises(SystemExit, match="not image and annotation"):
        convert("qupath", *words)
    (her2 / "scores.csv").write_text(text + "\ncase2,Smith, John\n")
    with pytest.raises(SystemExit, match="commas between values"):
        convert("qupath", *words)


def test_a_listed_slide_must_be_there_once(her2: Path, tmp_path: Path, convert: Convert) -> None:
    (her2 / "slides" / "case3.svs").unlink()
    with pytest.raises(SystemExit, match=r"row 5: 0 files .* are called case3"):
        convert("qupath", her2 / "slides", her2 / "scores.csv", "--out", tmp_path / "cohort.csv")
    (her2 / "scores.csv").write_text("name\ncase1\n")
    with pytest.raises(SystemExit, match="columns slide and patient"):
        convert("qupath", her2 / "slides", her2 / "scores.csv", "--out", tmp_path / "cohort.csv")
    assert not (tmp_path / "cohort.csv").exists()
