"""The cohort table: what is read, and that every mistake is answered with the row and the fix."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import CohortConfig
from stedm.data.cohort import read_cohort, resolve_labels, same_name
from stedm.errors import UserError


@pytest.fixture
def rows(tmp_path):
    """Rows of a correct table, two images for each of three patients; the files exist."""
    rows = []
    for name in ("a0", "a1", "b0", "b1", "c0", "c1"):
        Image.fromarray(np.full((20, 30, 3), 180, np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(tmp_path / f"{name}_mask.png")
        rows.append({"image": f"{name}.png", "patient": name[0], "mask": f"{name}_mask.png", "mpp": "0.5"})
    return rows


def config(tmp_path, rows, **options):
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "table.csv", index=False)
    return CohortConfig(table=str(tmp_path / "table.csv"), **options)


def refusal(tmp_path, rows, **options) -> str:
    with pytest.raises(UserError) as refused:
        cohort = config(tmp_path, rows, **options)
        resolve_labels(cohort, read_cohort(cohort))
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_defaults_and_absolute_paths(tmp_path, rows):
    rows[0] |= {"mask": "", "mpp": ""}
    cohort = read_cohort(config(tmp_path, rows, mpp=0.25))
    assert cohort["slide"].tolist() == ["a0", "a1", "b0", "b1", "c0", "c1"]
    assert cohort["image"][0] == str(tmp_path / "a0.png") and cohort["mask"][0] == ""
    assert cohort["mpp"].tolist() == [0.25] + [0.5] * 5
    assert (cohort["split"] == "").all() and (cohort["group"] == "").all()


def test_columns_are_mapped_and_parquet_reads_the_same(tmp_path, rows):
    renamed = pd.DataFrame(rows).rename(columns={"patient": "case", "mask": "truth"})
    options = {"columns": {"patient": "case", "mask": "truth"}}
    from_csv = read_cohort(config(tmp_path, renamed, **options))
    renamed.to_parquet(tmp_path / "table.parquet")
    from_parquet = read_cohort(CohortConfig(table=str(tmp_path / "table.parquet"), **options))
    pd.testing.assert_frame_equal(from_csv, from_parquet)


def test_numbers_stay_names(tmp_path, rows):
    for row, patient in zip(rows, ["007", "007", "1e3", "1e3", "2", "2"], strict=True):
        row["patient"] = patient
    assert set(read_cohort(config(tmp_path, rows))["patient"]) == {"007", "1e3", "2"}


def test_labels_are_checked_in_every_mask(tmp_path, rows):
    cohort = config(tmp_path, rows, labels={"background": [0], "gland": [1]})
    assert resolve_labels(cohort, read_cohort(cohort)).classes == ["background", "gland"]
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(tmp_path / "b1_mask.png")
    message = refusal(tmp_path, rows, labels={"background": [0], "gland": [1]})
    assert "row 5" in message and "b1_mask.png" in message and "7" in message and "cohort.labels" in message


@pytest.mark.parametrize(
    ("position", "change", "expected"),
    [
        (1, {"image": "gone.png"}, ["row 3", "gone.png", "not found"]),
        (2, {"mask": "gone.png"}, ["row 4", "mask", "gone.png"]),
        (2, {"tissue": "gone.png"}, ["row 4", "tissue", "gone.png"]),
        (2, {"roi": "gone.png"}, ["row 4", "roi", "gone.png"]),
        (2, {"patient": ""}, ["row 4", "'patient' is empty"]),
        (3, {"mpp": "fast"}, ["row 5", "fast", "microns"]),
        (3, {"mpp": "-1"}, ["row 5", "-1"]),
        (1, {"image": "a0.png"}, ["row 3", "a0.png", "row 2"]),
    ],
)
def test_wrong_cells_are_refused_by_row(tmp_path, rows, position, change, expected):
    rows[position] |= change
    message = refusal(tmp_path, rows)
    assert all(part in message for part in [*expected, "table.csv"]), message


def test_mask_of_another_size_is_refused(tmp_path, rows):
    Image.fromarray(np.zeros((20, 31), np.uint8)).save(tmp_path / "c1_mask.png")
    message = refusal(tmp_path, rows)
    assert "row 7" in message and "31 x 20" in message and "30 x 20" in message


def test_unreadable_masks_are_refused_and_damaged_images_are_left_to_prepare(tmp_path, rows):
    (tmp_path / "b1.png").write_text("not an image")
    assert len(read_cohort(config(tmp_path, rows))) == 6
    (tmp_path / "b0_mask.png").write_text("not an image")
    assert all(part in refusal(tmp_path, rows) for part in ("row 4", "b0_mask.png", "unreadable"))


def test_an_image_of_unknown_resolution_is_refused(tmp_path, rows):
    rows[3] |= {"mpp": ""}
    assert all(part in refusal(tmp_path, rows) for part in ("row 5", "b1.png", "cohort.mpp"))


def test_files_of_one_name_are_several_slides(tmp_path, rows):
    """Of one patient or of two: with as much of the path as tells them apart, for those without a slide alone."""
    images = ["a/x/HE.png", "b/x/HE.png", "b/y/HE.tif", "b/y/HE.png", "b/y/IHC.png", "c/HE.png"]
    for row, image in zip(rows, images, strict=True):
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 180, np.uint8)).save(tmp_path / image)
        row["image"] = image
    rows[5]["slide"] = "HE"
    found = read_cohort(config(tmp_path, rows))["slide"].tolist()
    assert found == ["a/x/HE.png", "b/x/HE.png", "b/y/HE.tif", "b/y/HE.png", "IHC", "HE"]
    del rows[2]
    assert read_cohort(config(tmp_path, rows))["slide"].tolist() == ["a/x/HE", "b/x/HE", "b/y/HE", "IHC", "HE"]


def test_contradictions_are_refused(tmp_path, rows):
    split = [
        row | {"split": part} for row, part in zip(rows, ["train", "test", "val", "val", "test", "test"], strict=True)
    ]
    assert all(part in refusal(tmp_path, split) for part in ("row 3", "'a'", "'test'", "'train'"))
    split[5]["split"] = "holdout"
    assert all(part in refusal(tmp_path, split) for part in ("row 7", "holdout", "train, val, test"))
    split[5]["split"] = ""
    assert "row 7" in refusal(tmp_path, split)
    slides = [row | {"slide": "s"} for row in rows]
    assert all(part in refusal(tmp_path, slides) for part in ("row 4", "slide 's'"))
    assert "one patient only" in refusal(tmp_path, rows[:2])


def test_table_without_rows_columns_or_masks_is_refused(tmp_path, rows):
    (tmp_path / "empty.csv").write_text("image,patient\n")
    (tmp_path / "nothing.csv").write_text("")
    for name, expected in (("empty.csv", "no rows"), ("nothing.csv", "unreadable"), ("gone.csv", "not found")):
        with pytest.raises(UserError, match=f"{name}.*{expected}"):
            read_cohort(CohortConfig(table=str(tmp_path / name)))
    renamed = pd.DataFrame(rows).rename(columns={"patient": "patient_id"})
    message = refusal(tmp_path, renamed)
    assert "nearest: 'patient_id'" in message and "cohort.columns" in message
    assert "did you mean patient_id" in refusal(tmp_path, renamed, columns={"patient": "patientid"})
    assert "did you mean patient" in refusal(tmp_path, rows, columns={"pateint": "patient"})
    assert "no row has a mask" in refusal(tmp_path, [row | {"mask": ""} for row in rows])


def test_whom_one_may_annotate_is_said_in_the_usual_words_and_others_are_refused(tmp_path, rows):
    words = ["TRUE", "n", "1.0", "No", "Y", "0"]
    said = [row | {"may_annotate": word} for row, word in zip(rows, words, strict=True)]
    assert read_cohort(config(tmp_path, said))["may_annotate"].tolist() == [True, False] * 3
    pd.DataFrame(said).assign(may_annotate=[1.0, 0.0] * 3).to_parquet(tmp_path / "table.parquet")
    assert (
        read_cohort(CohortConfig(table=str(tmp_path / "table.parquet")))["may_annotate"].tolist() == [True, False] * 3
    )
    for word in ("x", "ja", ""):
        said[4]["may_annotate"] = word
        message = refusal(tmp_path, said)
        assert all(part in message for part in ("table.csv, row 6", f"may_annotate '{word}'", "yes or no")), message


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_with_other_separators_is_told_so(tmp_path, rows, separator, name):
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False, sep=separator)
    with pytest.raises(UserError, match=rf"table\.csv: .*separated by {name}; save it with commas between values"):
        read_cohort(CohortConfig(table=str(tmp_path / "table.csv")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("b", "B"),
        ("1", "1.0"),
        ("1", "001"),
        ("P 1", "P  1"),
        ("P-1", "P\u20131"),
        ("P1", "P1\u200b"),
        ("M\u00fcller", "Mu\u0308ller"),
    ],
)
def test_two_spellings_of_a_patient_are_refused(tmp_path, rows, one, other):
    for row in rows:
        row["patient"] = {"b": one}.get(row["patient"], row["patient"])
    rows[3]["patient"] = other
    assert f"row 5: patient '{other}' is '{one}' above" in refusal(tmp_path, rows)


@pytest.mark.parametrize(("one", "other"), [("1", "10"), ("P1", "P01"), ("1.5", "15"), ("0", "00a"), ("a b", "ab")])
def test_names_of_two_patients_stay_two(one, other):
    assert same_name(one) != same_name(other)


def test_masks_that_cannot_be_what_they_should_are_named_by_row(tmp_path, rows):
    Image.fromarray(np.full((20, 30), 3, np.uint8)).save(tmp_path / "mask.jpg")
    jpeg = [{**rows[0], "mask": "mask.jpg"}, *rows[1:]]
    labels = {"background": [0], "gland": [1]}
    assert "row 2" in (said := refusal(tmp_path, jpeg, labels=labels)) and "save masks as PNG" in said
    Image.fromarray(np.full((20, 30, 3), [0, 9, 0], np.uint8)).save(tmp_path / "colours.png")
    colours = [*rows[:2], {**rows[2], "mask": "colours.png"}, *rows[3:]]
    assert "row 4" in (said := refusal(tmp_path, colours, labels=labels)) and "colour image" in said


def test_tables_of_excel_and_paths_of_windows_are_told_what_to_do(tmp_path, rows):
    rows[2]["image"] = r"pictures\b0.png"
    assert "with / in place of \\" in refusal(tmp_path, rows)
    rows[2] |= {"image": "b0.png", "patient": "Müller"}
    table = pd.DataFrame(rows).to_csv(index=False)
    (tmp_path / "latin.csv").write_bytes(table.encode("cp1252"))
    with pytest.raises(UserError, match="not UTF-8; in Excel: save as, `CSV UTF-8`"):
        read_cohort(CohortConfig(table=str(tmp_path / "latin.csv")))
    (tmp_path / "table.xlsx").write_bytes(b"PK\x03\x04\x14\x00\xb5\xff")
    with pytest.raises(UserError, match="an Excel workbook"):
        read_cohort(CohortConfig(table=str(tmp_path / "table.xlsx")))
