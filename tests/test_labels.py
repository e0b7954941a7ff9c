"""Mask values become classes; what nobody named is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stedm.config import IGNORE
from stedm.data.labels import LabelMap, nearest_name, read_mask
from stedm.errors import UserError


def test_values_ranges_and_ignore():
    labels = LabelMap.from_config({"background": [0], "gland": ["1-254", 300], "ignore": [255]})
    mask = np.array([[0, 1, 254], [255, 300, 7]], np.uint16)
    assert labels.classes == ["background", "gland"]
    assert labels.apply(mask, source="m.png").tolist() == [[0, 1, 1], [IGNORE, 1, 1]]


@pytest.mark.parametrize(("gland", "expected"), [([1], IGNORE), ([1, 255], 1)])
def test_255_is_ignored_unless_a_class_names_it(gland, expected):
    labels = LabelMap.from_config({"background": [0], "gland": gland})
    assert labels.apply(np.array([[0, 1, 255]], np.uint8), source="m.png").tolist() == [[0, 1, expected]]


@pytest.mark.parametrize("source", ["m.jpg", Path("m.JPG")])
def test_unknown_values_of_a_jpeg_are_said_to_be_its_blur(source):
    labels = LabelMap.from_config({"a": [0], "b": [1]})
    with pytest.raises(UserError, match=r"m\.(jpg|JPG).*JPEG blurs"):
        labels.apply(np.array([[0, 9]], np.uint8), source=source)


def test_unknown_value_names_file_and_values():
    labels = LabelMap.from_config({"a": [0], "b": [1]})
    with pytest.raises(UserError, match=r"m\.png.*9.*cohort\.labels"):
        labels.apply(np.array([[0, 9]], np.uint8), source="m.png")


@pytest.mark.parametrize(
    "labels",
    [
        {"only": [0]},
        {"a": [0], "b": [0]},
        {"a": [0], "b": ["5-2"]},
        {"a": [0], "b": ["x"]},
        {"a": [True], "b": [2]},
        {"a": [0], "b": [-1]},
        {"a": [0], "b": [70000]},
    ],
)
def test_nonsense_is_refused(labels):
    with pytest.raises(UserError, match=r"cohort\.labels"):
        LabelMap.from_config(labels)


def test_labels_taken_from_the_masks():
    assert LabelMap.from_values([3, 0, 255, 0]).classes == ["class0", "class3"]
    assert LabelMap.from_values([0, 255]).classes == ["class0", "class255"]
    for values in ([0], range(100)):
        with pytest.raises(UserError, match=r"cohort\.labels"):
            LabelMap.from_values(values)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_mask_files_of_every_mode_give_their_values(tmp_path, mode):
    values = np.array([[0, 1], [1, 0]], np.uint8)
    image = Image.fromarray(values)
    if mode == "1":
        image = Image.fromarray(values.astype(bool))
    elif mode == "P":
        image.putpalette([10, 20, 30, 200, 100, 50])
    elif mode == "I;16":
        values = values.astype(np.uint16) * 4000
        image = Image.fromarray(values)
    image.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == values).all()


def test_grey_stored_as_colour_is_read_and_true_colour_refused(tmp_path):
    grey = np.full((4, 4, 3), 2, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (read_mask(tmp_path / "grey.png") == 2).all()
    Image.fromarray(grey[..., 0]).convert("LA").save(tmp_path / "alpha.png")
    assert (read_mask(tmp_path / "alpha.png") == 2).all()
    grey[0, 0, 1] = 200
    Image.fromarray(grey).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match=r"colour\.png.*colour"):
        read_mask(tmp_path / "colour.png")


def test_broken_mask_is_refused(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(UserError, match=r"broken\.png"):
        read_mask(tmp_path / "broken.png")


def test_nearest_name():
    assert nearest_name("patient", ["image", "Patient_ID"]) == "Patient_ID"
    assert nearest_name("pateint", ["image", "patient"]) == "patient"
    assert nearest_name("zzz", ["image"]) is None


def test_a_label_map_travels_light_to_other_processes() -> None:
    labels = LabelMap.from_config({"a": [0], "b": ["1-254"], "ignore": [255]})
    packed = pickle.dumps(labels)
    again = pickle.loads(packed)
    assert len(packed) < 4096 and again.classes == labels.classes and again.key == labels.key
    assert np.array_equal(again.lookup, labels.lookup)
