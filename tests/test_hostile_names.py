"""Names that somebody chose badly, or to do harm: they make no paths, no markup, no formulas and no control codes."""

import csv
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import ROOT, UP
from PIL import Image
from test_report import full_run  # noqa: F401 (a fixture)

from stedm import files
from stedm.cli import main
from stedm.config import CohortConfig
from stedm.data.cohort import read_cohort, read_table
from stedm.data.tables import read_own_csv, write_csv
from stedm.errors import UserError
from stedm.segment import write_areas
from stedm.stages.report import report

PATIENTS = [
    f"{UP * 2}x",
    f"{ROOT}etc/x",
    "CON",
    "..",
    ".",
    "a b  c",
    "Müller 漢字 \U0001f9ec",
    "=1+1",
    "'\"&",
    "-rf",
    "p|q",
    "<script>alert(1)</script>",
    "x" * 5000,
    "%2e%2e%2f",
    "{{ 7*7 }}",
    "$(touch x)",
    f"a/{UP * 2}b",
]


def write_cohort(folder: Path, patients: list[str], suffix: str = "") -> Path:
    """One image and mask for each patient, in files named after the number and `suffix`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for k, patient in enumerate(patients):
        image, mask = f"i{k}{suffix}.png", f"m{k}{suffix}.png"
        Image.fromarray(rng.integers(60, 180, (32, 32, 3), dtype=np.uint8)).save(folder / image)
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(folder / mask)
        rows.append({"image": image, "mask": mask, "patient": patient, "slide": patient, "group": patient, "mpp": "1"})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def prepare(table: Path, out: Path, labels: str = "{a: [0], b: [1]}") -> int:
    options = ["--prepare.patch_px", "32", "--split.val_patients", "2", "--split.test_patients", "2", "--size", "smoke"]
    return main(["prepare", "--out", str(out), "--cohort.table", str(table), "--cohort.labels", labels, *options])


@pytest.mark.parametrize("suffix", ["", " 漢字 and  spaces", "'\"$(x);&|"])
def test_no_name_leads_out_of_the_run_folder(tmp_path: Path, suffix: str) -> None:
    table = write_cohort(tmp_path / "in" / "deep" / "cohort", PATIENTS, suffix)
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "in" / "deep" / "runs" / f"run{suffix}"
    labels = f'{{"{UP * 2}x": [0], "<b>|=1": [1]}}'
    assert prepare(table, out, labels) == 0
    assert [path for path in tmp_path.rglob("*") if path not in before and out not in [path, *path.parents]] == [
        out.parent
    ]
    patches = pd.read_parquet(out / "data" / "patches.parquet")
    assert set(patches["patient"]) == set(PATIENTS) and {f"fraction_{UP * 2}x", "fraction_<b>|=1"} <= set(patches)
    written = [path.name for folder in ("images", "masks", "slides") for path in (out / "data" / folder).iterdir()]
    assert written and all(re.fullmatch(r"[\w.-]+", name, re.ASCII) and len(name) < 200 for name in written)


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "\x1b[2J", "a\tb", "\x7f", "a\x85b"])
@pytest.mark.parametrize("column", ["patient", "slide", "group", "image"])
def test_control_characters_are_refused_and_never_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, column: str
) -> None:
    table = pd.DataFrame([{"image": f"{k}.png", "patient": f"p{k}", "slide": f"s{k}", "group": "g"} for k in range(3)])
    table.loc[1, column] = name
    table.to_csv(tmp_path / "cohort.csv", index=False)
    assert main(["prepare", "--out", str(tmp_path / "out"), "--cohort.table", str(tmp_path / "cohort.csv")]) == 2
    error = capsys.readouterr().err
    assert column in error and len(error.splitlines()) == 1 and error.rstrip("\n").isprintable()
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_unicode_are_printed_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file name is any bytes; Python stands surrogates in for those that are no UTF-8."""
    for words in (["run", "--config", "\udcff\x1b[2J.yaml"], ["\udcff"], ["run", "--\udcff", "1"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "\\udcff" in error and error.encode() and "\x1b" not in error


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=20), min_size=2, max_size=4), st.text(max_size=12), st.text(max_size=8))
def test_any_text_in_a_table_is_read_as_it_is_or_refused(
    tmp_path: Path, patients: list[str], group: str, mpp: str
) -> None:
    path = tmp_path / "any.csv"
    rows = [("image", "patient", "group", "mpp"), *((f"{k}.png", name, group, mpp) for k, name in enumerate(patients))]
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    config = CohortConfig(table=str(path))
    try:
        table = read_table(config)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert (
            table["patient"].tolist() == [name.strip() for name in patients] and (table["group"] == group.strip()).all()
        )
    with pytest.raises(UserError):  # the images are not there
        read_cohort(config)


def test_more_cells_than_names_are_refused_instead_of_shifted(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image,patient\na.png,p0,x\nb.png,p1,y\n")
    with pytest.raises(UserError, match="more cells than the header"):
        read_table(CohortConfig(table=str(tmp_path / "c.csv")))


EVIL = {
    "test00": "<script>alert(1)</script>",
    "test01": "=HYPERLINK(1)",
    "he": "<img src=x onerror=alert(2)>|",
    "gland": "<b>|",
}
"""Good names of the report's run, and what is put in their place."""


@pytest.fixture(scope="module")
def evil_report(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The report of a run whose patients, groups and classes have names that are markup and formulas."""
    run = tmp_path_factory.mktemp("evil") / "<script>alert(0)<"
    shutil.copytree(full_run, run)
    for path in (run / "data/patches.parquet", run / "synthetic/manifest.parquet"):
        pd.read_parquet(path).replace(EVIL).to_parquet(path)
    table = pd.read_csv(run / "evaluation/per_patient.csv", dtype={"patient": str}).replace(EVIL)
    table.rename(columns={"iou_gland": f"iou_{EVIL['gland']}"}).to_csv(run / "evaluation/per_patient.csv", index=False)
    for path in (run / "data/classes.json", run / "evaluation/summary.json"):
        files.write_json(path, renamed(files.read_json(path)))
    (run / "config.yaml").write_text("cohort: {table: c.csv, licence: '<script>alert(3)</script>'}\n")
    report(run)
    return run


def renamed(value: object) -> object:
    """The JSON value with every good name exchanged, keys included."""
    if isinstance(value, dict):
        return {EVIL.get(key, key): renamed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry) for entry in value]
    return EVIL.get(value, value) if isinstance(value, str) else value


def test_names_in_the_report_are_text(evil_report: Path) -> None:
    page = (evil_report / "report" / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(3)" in page and "&lt;b&gt;|" in page and "&lt;img src=x" in page
    assert not re.search(r"<script|<img src=x|<b>\|", page)


def test_names_in_markdown_are_text(evil_report: Path) -> None:
    for path in (evil_report / "report" / "model_card.md", evil_report / "summary.md"):
        text = path.read_text(encoding="utf-8")
        assert "&lt;script>" in text and not re.search(r"<script|<img|<b>", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows and len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 2


def test_names_in_tables_are_no_formulas(evil_report: Path) -> None:
    tables = sorted((evil_report / "report" / "tables").glob("*.csv"))
    cells = [cell for path in tables for row in csv.reader(path.open(encoding="utf-8")) for cell in row]
    assert "'=HYPERLINK(1)" in cells and "<script>alert(1)</script>" in cells
    numbers = re.compile(r"-\d+\.?\d*(e-?\d+)?")
    assert [cell for cell in cells if cell[:1] in "=+-@" and cell and not numbers.fullmatch(cell)] == []


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "''-x", "-", "=", "+4 9", "-rf"]
OTHERS = ["-5", "+0.25", "'-5", "real+stain", "a=b", "'", "'x", "", "0012", "NA", "Müller"]


def test_a_table_of_ours_holds_no_formula_and_reads_back_as_it_was(tmp_path: Path) -> None:
    names = [*FORMULAS, *OTHERS]
    numbers = [-0.5 * k for k in range(len(names))]
    table = pd.DataFrame({"patient": names, "iou": numbers, "seed": range(len(names)), "=1+1": names})
    write_csv(table, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["patient", "iou", "seed", "'=1+1"]
    assert [row[0] for row in rows[len(FORMULAS) :]] == OTHERS and [row[1] for row in rows] == [*map(str, numbers)]
    assert all(row[0][0] == "'" for row in rows[: len(FORMULAS)])
    again = read_own_csv(tmp_path / "a.csv")
    assert again.fillna("").to_dict("list") == table.to_dict("list")


@given(st.lists(st.text(st.sampled_from("'=+-@\t\r\n15.ax"), min_size=1, max_size=6), min_size=1, max_size=20))
def test_no_two_names_become_one(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_csv(pd.DataFrame({"patient": names}), Path(folder) / "a.csv")
        assert read_own_csv(Path(folder) / "a.csv")["patient"].tolist() == names


def test_slides_and_classes_in_areas_are_no_formulas(tmp_path: Path) -> None:
    record = {"slide": "=cmd|' '!A0.tif", "area_mm2": {"@SUM(1)": 1.5, "gland": 0.5, "\udcff": 0.0}}
    files.write_json(tmp_path / "a.json", record | {"fingerprints": {}})
    (tmp_path / "a.tif").touch()
    write_areas(tmp_path)
    rows = list(csv.reader((tmp_path / "areas.csv").open(encoding="utf-8")))[1:]
    assert [row[:2] for row in rows] == [["'=cmd|' '!A0.tif", cell] for cell in ("'@SUM(1)", "gland", "\\udcff")]
    assert [row[2:] for row in rows] == [["1.5", "0.75"], ["0.5", "0.25"], ["0.0", "0.0"]]


def test_damaged_slides_named_like_formulas_are_left_out(tmp_path: Path) -> None:
    """skipped.csv is read again: the name in it must lead to the same slide."""
    table = write_cohort(tmp_path, [f"p{k}" for k in range(10)])
    rows = pd.read_csv(table, dtype=str)
    (tmp_path / "=1+1.png").write_bytes((tmp_path / "i0.png").read_bytes()[:300])
    rows.loc[0, ["image", "slide"]] = "=1+1.png"
    rows.to_csv(table, index=False)
    for _ in range(2):  # the second time from the file
        assert prepare(table, tmp_path / "run") == 0
    patches = pd.read_parquet(tmp_path / "run" / "data" / "patches.parquet")
    assert set(patches["patient"]) == {f"p{k}" for k in range(1, 10)}
    assert "'=1+1.png" in (tmp_path / "run" / "data" / "skipped.csv").read_text()


def test_only_one_place_writes_tables_of_names() -> None:
    """The phantom's names are our own; those of the inputs are hashed."""
    source = Path(files.__file__).parent
    found = {str(path.relative_to(source)) for path in source.rglob("*.py") if ".to_csv(" in path.read_text()}
    assert found == {"data/tables.py", "data/phantom.py", "stages/inputs.py"}
