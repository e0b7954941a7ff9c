"""The composition table: what it says is what is drawn, and every mistake names file, row and column."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stedm.config_file import load_config
from stedm.data.composition import CompositionTable, composition_digest
from stedm.diffusion.sampling import Sampling
from stedm.errors import UserError
from stedm.files import write_json
from stedm.fingerprint import fingerprint_of
from stedm.graph import stages_of
from stedm.stages.generate import composition_of, make_plan
from stedm.stages.run_folder import RunFolder

CLASSES = ["background", "stroma", "epithelium"]
GOOD = "group,epithelium,stroma,background\nhe,0.5,0.3,0.2\nhe,0.1,0.8,0.1\n*,0,1,0\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "composition.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_of_a_group_in_class_order(tmp_path: Path):
    table = CompositionTable.read(write(tmp_path, GOOD), CLASSES)
    assert table.rows_of("he").tolist() == [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]
    assert table.rows_of("ihc2").tolist() == [[0, 1, 0]]


def test_sums_within_a_percent_are_made_exact(tmp_path: Path):
    table = CompositionTable.read(write(tmp_path, "group,background,stroma,epithelium\n*,0.33,0.33,0.335\n"), CLASSES)
    assert table.fractions.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group,background,stroma,epithelum\n*,0,1,0\n", "column 'epithelum' is no class; did you mean epithelium?"),
        ("group,background,stroma\n*,0,1\n", "0 columns named 'epithelium'"),
        ("background,stroma,epithelium\n0,1,0\n", "0 columns named 'group'"),
        ("group,background,stroma,epithelium\nhe,0,1,0\nhe,-0.1,1,0.1\n", "row 3, column 'background': '-0.1'"),
        ("group,background,stroma,epithelium\nhe,0,one,0\n", "row 2, column 'stroma': 'one'"),
        ("group,background,stroma,epithelium\nhe,0,nan,0\n", "row 2, column 'stroma': 'nan'"),
        ("group,background,stroma,epithelium\nhe,0.5,0.5,0.1\n", "row 2: the fractions sum to 1.1"),
        ("group,background,stroma,epithelium\n", "no rows"),
        ("", "unreadable"),
    ],
)
def test_mistakes_name_file_row_and_column(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        CompositionTable.read(path, CLASSES)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_a_group_without_row_and_a_missing_file(tmp_path: Path):
    path = write(tmp_path, "group,background,stroma,epithelium\nhe,0,1,0\n")
    with pytest.raises(UserError, match=r"composition.csv: no row for group 'ihc0' and none for `\*`; add one"):
        CompositionTable.read(path, CLASSES).rows_of("ihc0")
    for read in (composition_digest, lambda name: CompositionTable.read(name, CLASSES)):
        with pytest.raises(UserError, match=r"nowhere\.csv.*generate\.composition"):
            read(str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("he,0,1,0\nHE,0,1,0\n", "row 3: no patient of the cohort is of group 'HE'; did you mean he?"),
        ("he,0,1,0\nx,0,1,0\n*,0,1,0\n", "row 3: no patient of the cohort is of group 'x'; did you mean he, ihc?"),
        ("he,0,1,0\n", "composition.csv: no row for group 'ihc' and none for `*`; add one of them"),
    ],
)
def test_groups_are_those_of_the_cohort(tmp_path: Path, rows: str, message: str):
    table = CompositionTable.read(write(tmp_path, f"group,background,stroma,epithelium\n{rows}"), CLASSES)
    with pytest.raises(UserError) as error:
        table.check_groups(["he", "ihc", "he"])
    assert str(error.value).startswith(str(tmp_path)) and message in str(error.value)


def test_a_table_given_to_a_finished_run_is_compared_with_its_cohort(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    write_json(run.data / "classes.json", {"classes": CLASSES, "ignore": 255, "patch_px": 32})
    pd.DataFrame({"group": ["he", "ihc"]}).to_parquet(run.data / "cohort.parquet")
    path = write(tmp_path, "group,background,stroma,epithelium\nhee,0,1,0\n*,0,1,0\n")
    config = load_config(overrides=["size=smoke", f"generate.composition={path}"])
    with pytest.raises(UserError, match="did you mean he"):
        composition_of(run, config)


def test_groups_that_all_have_a_row_and_a_cohort_without_groups(tmp_path: Path):
    table = CompositionTable.read(write(tmp_path, GOOD), CLASSES)
    table.check_groups(["he"])
    table.check_groups(["", "he", "ihc"])
    with pytest.raises(UserError, match=r"row 2: no patient .* the cohort has no groups; name it `\*`"):
        table.check_groups([""])


def plan(table: CompositionTable | None, **changes: object) -> pd.DataFrame:
    """The plan for four unannotated patients, two of them of group `he`."""
    patches = pd.DataFrame(
        {
            "patch_id": [f"x{k}" for k in range(12)],
            "patient": [f"p{k // 2}" for k in range(12)],
            "group": ["he"] * 8 + ["ihc"] * 4,
            "split": ["train"] * 12,
            "annotated": [True] * 4 + [False] * 8,
        }
    )
    options = [f"generate.{key}={value}" for key, value in changes.items()]
    return make_plan(patches, load_config(overrides=["size=smoke", *options]), Sampling(), composition=table)


def test_the_plan_takes_a_row_of_the_style_patients_group(tmp_path: Path):
    rows = plan(CompositionTable.read(write(tmp_path, GOOD), CLASSES), images=60)
    prior = rows[rows["layout_kind"] == "prior"]
    assert (rows.loc[rows["layout_kind"] == "real", "composition"] == "").all()
    for patients, wanted in ((["p2", "p3"], {(0.2, 0.3, 0.5), (0.1, 0.8, 0.1)}), (["p4", "p5"], {(0.0, 1.0, 0.0)})):
        found = prior.loc[prior["style_patient"].isin(patients), "composition"]
        assert len(found) > 5
        assert {tuple(json.loads(text)) for text in found} == wanted
    assert (plan(None, images=8)["composition"] == "").all()


def test_relative_path_resolves_against_the_config_and_real_layouts_refuse_it(tmp_path: Path):
    write(tmp_path, GOOD)
    (tmp_path / "config.yaml").write_text("generate: {composition: composition.csv}\n", encoding="utf-8")
    assert load_config(tmp_path / "config.yaml").generate.composition == str(tmp_path.resolve() / "composition.csv")
    with pytest.raises(UserError, match=r"generate\.composition.*generate\.layouts"):
        load_config(tmp_path / "config.yaml", ["generate.layouts=real"])


def test_the_files_content_is_part_of_the_fingerprint(tmp_path: Path):
    path = write(tmp_path, GOOD)

    def fingerprints(*overrides: str) -> dict[str, str]:
        config = load_config(overrides=["size=smoke", *overrides])
        found: dict[str, str] = {}
        for stage in stages_of(config, RunFolder(tmp_path)):
            found[stage.name] = fingerprint_of(stage, config, found)
        return found

    given = f"generate.composition={path}"
    without, before = fingerprints(), fingerprints(given)
    write(tmp_path, GOOD.replace("0.5,0.3", "0.4,0.4"))
    after = fingerprints(given)
    assert len({found["generate"] for found in (without, before, after)}) == 3
    assert without["diffusion"] == before["diffusion"] == after["diffusion"]
    assert np.all([before[name] != after[name] for name in ("filter", "evaluate")])
