"""Self-training: who labels the unannotated images, what becomes a label, and that no hidden mask is read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stedm.arms import self_training_teacher, self_training_teachers
from stedm.config import IGNORE
from stedm.config_file import load_config
from stedm.errors import UserError
from stedm.files import write_json
from stedm.models.segmenter import Segmenter
from stedm.stages.run_folder import RunFolder
from stedm.stages.self_training import label_unannotated, self_labelled, sure_labels
from stedm.training.batches import Pairs

ARMS = "segmentation.arms=[real, real+self-training]"
CONFIG = load_config(overrides=["size=smoke", "segmentation.seeds=[0, 1]", ARMS])
RNG = np.random.default_rng(0)


def make_run(root: Path, *, unannotated: int) -> RunFolder:
    """Two annotated patches, as many others as said, one of a validation patient; their masks do not exist."""
    run = RunFolder(root)
    (run.data / "images").mkdir(parents=True)
    write_json(run.data / "classes.json", {"classes": ["background", "gland"]})
    rows = []
    for k in range(3 + unannotated):
        split, annotated = ("val", True) if k == 2 else ("train", k < 2)
        rows.append((f"p{k}", f"patient{k}", split, annotated, f"images/p{k}.png", f"masks/p{k}.png"))
        Image.fromarray(RNG.integers(0, 256, (32, 32, 3), np.uint8)).save(run.data / "images" / f"p{k}.png")
    columns = ["patch_id", "patient", "split", "annotated", "image", "mask"]
    pd.DataFrame(rows, columns=columns).to_parquet(run.data / "patches.parquet")
    for seed in (0, 1):
        torch.manual_seed(seed)
        Segmenter(classes=run.classes(), decoder_channels=[8, 8]).save_pretrained(run.segmenter("real", seed))
    return run


def test_the_segmenters_of_the_arm_label_unannotated_training_patches_together(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unannotated=3)
    label_unannotated(run, CONFIG, arm="real")
    found, images = self_labelled(run, "real"), run.images(run.patches().iloc[3:])
    assert found is not None and found.weight is None
    np.testing.assert_array_equal(found.images, images)
    members = [Segmenter.from_pretrained(run.segmenter("real", seed)) for seed in (0, 1)]
    mean = np.mean([member.probabilities(images, views=4) for member in members], 0)
    np.testing.assert_array_equal(found.label_maps, sure_labels(mean, 0.6))
    alone = [sure_labels(member.probabilities(images, views=4), 0.6) for member in members]
    assert len(np.unique(found.label_maps)) > 1 and all((found.label_maps != maps).any() for maps in alone)
    assert {path.name for path in (run.self_training / "real" / "masks").iterdir()} == {"p3.png", "p4.png", "p5.png"}
    table = pd.read_parquet(run.self_training / "real" / "manifest.parquet")
    np.testing.assert_allclose(table["known_fraction"], (found.label_maps != IGNORE).mean((1, 2)))


def test_where_everyone_is_annotated_there_is_nothing_to_label(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unannotated=0)
    label_unannotated(run, CONFIG, arm="real")
    assert self_labelled(run, "real") is None


def test_pixels_that_are_not_sure_enough_are_ignored() -> None:
    probabilities = np.array([[[[0.5, 0.59, 0.6, 0.1]], [[0.5, 0.41, 0.4, 0.9]]]], np.float32)  # (1, 2, 1, 4)
    assert sure_labels(probabilities, 0.6).tolist() == [[[IGNORE, IGNORE, 0, 1]]]
    assert sure_labels(probabilities, 0.0).tolist() == [[[0, 0, 0, 1]]]


def test_sets_are_drawn_evenly_whatever_their_size_and_weights() -> None:
    few, many = np.zeros((2, 4, 4, 3), np.uint8), np.ones((30, 4, 4, 3), np.uint8)
    both = Pairs.evenly(Pairs(few, few[..., 0], np.array([3.0, 1.0])), Pairs(many, many[..., 0]))
    counts = np.bincount(both.draw(8000, RNG), minlength=32) / 8000
    np.testing.assert_allclose(counts[:2], [3 / 8, 1 / 8], atol=0.02)
    assert abs(counts[2:].sum() - 0.5) < 0.02 and counts[2:].max() < 0.03
    np.testing.assert_array_equal(both.label_maps, both.images[..., 0])


def test_the_teacher_is_the_same_arm_without_self_training() -> None:
    assert self_training_teacher("real+stain+second-round+self-training+consistency") == (
        "real+stain+second-round+consistency"
    )
    assert self_training_teacher("real+stain") is None and self_training_teacher("full") is None
    arms = ["real+self-training", "real", "real+stain", "real+stain+self-training", "full"]
    assert self_training_teachers(arms) == ["real", "real+stain"] and self_training_teachers(["real"]) == []


def test_self_training_without_its_teacher_is_refused_with_the_arm_to_add() -> None:
    with pytest.raises(
        UserError, match=r"^segmentation\.arms: 'real\+stain\+self-training' .*'real\+stain'; add that arm$"
    ):
        load_config(overrides=["segmentation.arms=[real, real+stain+self-training]"])


def test_a_second_round_may_have_self_training_beside_it() -> None:
    arms = ["real+synthetic", "real+second-round", "real+second-round+self-training"]
    assert load_config(overrides=[f"segmentation.arms=[{', '.join(arms)}]"]).segmentation.arms == arms
