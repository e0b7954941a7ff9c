"""Segmentation scores over patients, and nearest neighbours against memorisation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stedm.config import IGNORE
from stedm.evaluation.memorisation import (
    are_copies,
    copied_share,
    copy_distance,
    nearest_distances,
    nearest_others,
    nearest_real_ratio,
)
from stedm.evaluation.segmentation import confusion, dice, iou, mean_over_classes, patient_scores
from stedm.stages.evaluate import _shown_arms

LABELS = arrays(np.uint8, (6, 5), elements=st.sampled_from([0, 1, 2, IGNORE]))
PREDICTIONS = arrays(np.uint8, (6, 5), elements=st.integers(0, 2))


def test_confusion_rows_are_truth():
    truth = np.array([[0, 0, 1, IGNORE]], np.uint8)
    guess = np.array([[0, 1, 1, 0]], np.uint8)
    assert confusion(guess, truth, 2).tolist() == [[1, 1], [0, 1]]


@given(guess=PREDICTIONS, truth=LABELS)
def test_scores_equal_their_set_definition(guess, truth):
    conf = confusion(guess, truth, 3)
    known = truth != IGNORE
    assert conf.sum() == known.sum()
    for c in range(3):
        a, b = (truth == c) & known, (guess == c) & known
        if not a.any():
            assert np.isnan(iou(conf)[c]) and np.isnan(dice(conf)[c])
            continue
        assert iou(conf)[c] == pytest.approx((a & b).sum() / (a | b).sum())
        assert dice(conf)[c] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    present = np.isfinite(iou(conf))
    assert np.allclose(dice(conf)[present], 2 * iou(conf)[present] / (1 + iou(conf)[present]))


def test_absent_class_is_nan_and_left_out_of_the_mean():
    conf = np.array([[90, 0, 10], [0, 50, 0], [0, 0, 0]])
    assert np.isnan(iou(conf)[2])
    assert mean_over_classes(iou(conf)) == pytest.approx((0.9 + 1.0) / 2)
    assert np.isnan(mean_over_classes(iou(np.zeros((3, 3), int))))


def test_values_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match="prediction"):
        confusion(np.array([3]), np.array([0]), 3)
    with pytest.raises(ValueError, match="label map"):
        confusion(np.array([0]), np.array([7]), 3)
    with pytest.raises(ValueError, match="shape"):
        confusion(np.zeros((2, 2)), np.zeros((2, 3)), 3)


def test_patient_scores_pool_patches_before_dividing():
    confusions = np.array([[[10, 0], [0, 0]], [[0, 10], [0, 10]], [[5, 0], [0, 5]]])
    table = patient_scores(["b", "b", "a"], confusions, classes=["background", "gland"], groups=["x", "x", "y"])
    assert table["patient"].tolist() == ["a", "b"] and table["group"].tolist() == ["y", "x"]
    assert table["patches"].tolist() == [1, 2]
    assert table.loc[1, "iou_background"] == pytest.approx(10 / 20)
    assert table.loc[1, "iou_gland"] == pytest.approx(10 / 20)
    assert table.loc[0, "iou"] == table.loc[0, "dice"] == 1.0
    assert list(table.columns[:5]) == ["patient", "group", "patches", "iou", "dice"]


def test_a_patient_of_several_groups_counts_in_that_of_most_patches():
    confusions = np.ones((5, 2, 2), int)
    groups = ["polyp", "cancer", "cancer", "polyp", "cancer"]
    table = patient_scores(["a", "a", "a", "b", "b"], confusions, classes=["background", "gland"], groups=groups)
    assert table["group"].tolist() == ["cancer", "cancer"], "the second by name"


@pytest.fixture(scope="module")
def real_images() -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    return blocks.repeat(4, 1).repeat(4, 2)


@pytest.mark.parametrize(
    "turn",
    [lambda x: x, lambda x: np.rot90(x, 1, (1, 2)), lambda x: x[:, ::-1], lambda x: np.rot90(x[:, :, ::-1], 3, (1, 2))],
)
def test_copies_are_found_however_turned(real_images, turn):
    distances, indices = nearest_distances(np.ascontiguousarray(turn(real_images)), real_images)
    assert np.allclose(distances, 0, atol=1e-5)
    assert indices.tolist() == list(range(40))


def test_distance_is_the_root_mean_square_of_pixels():
    black, grey = np.zeros((1, 32, 32, 3), np.uint8), np.full((1, 32, 32, 3), 51, np.uint8)
    assert nearest_distances(black, grey)[0] == pytest.approx(0.2)


def test_nearest_other_is_never_the_image_itself(real_images):
    distances, indices = nearest_others(real_images)
    assert (indices != np.arange(40)).all() and (distances > 0.05).all()
    again, _ = nearest_others(np.concatenate([real_images, real_images[:1]]))
    assert again[0] == pytest.approx(0, abs=1e-5) and np.allclose(again[1:40], distances[1:])
    with pytest.raises(ValueError, match="at least one other"):
        nearest_others(real_images[:1])


def test_ratio_is_near_one_for_fresh_images_and_zero_for_copies(real_images):
    own, _ = nearest_others(real_images)
    fresh = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    assert nearest_real_ratio(nearest_distances(fresh, real_images)[0], own) == pytest.approx(1, abs=0.1)
    assert nearest_real_ratio(nearest_distances(real_images, real_images)[0], own) == pytest.approx(0, abs=1e-4)
    assert np.isfinite(nearest_real_ratio(np.array([0.1]), np.zeros(3)))


def test_copies_are_counted_in_portions(real_images):
    fresh = np.random.default_rng(2).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    queries = np.concatenate([real_images[:10, :, ::-1], fresh])
    each = are_copies(queries, real_images, below=0.2)
    assert each[:10].all() and not each[10:].any()
    assert copied_share((queries[k : k + 7] for k in range(0, 40, 7)), real_images, below=0.2) == each.mean()


def test_neighbours_are_sought_in_other_patients_and_copies_lie_below_their_distance(real_images):
    twins = np.concatenate([real_images, real_images])
    patients = [f"p{k}" for k in range(40)] * 2  # each image twice, in one patient
    assert np.allclose(nearest_others(twins)[0], 0, atol=1e-5)
    assert np.allclose(nearest_others(twins, patients)[0][:40], nearest_others(real_images)[0])
    limit = copy_distance(twins, patients)
    fresh = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    noisy = (real_images // 2 * 2 + 1)[:, ::-1]
    assert are_copies(np.ascontiguousarray(noisy), twins, below=limit).all()
    assert are_copies(fresh, twins, below=limit).mean() <= 0.1


def _with_little_tissue(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Glass with a square of 6 % of each image somewhere."""
    pale = _glass(len(tissue), rng)
    for k, (y, x) in enumerate(rng.integers(0, 64 - 16, (len(tissue), 2))):
        pale[k, y : y + 16, x : x + 16] = tissue[k, y : y + 16, x : x + 16]
    return pale


def _glass(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(236, 244, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.1])
@pytest.mark.parametrize("kind", ["blank", "shaded glass", "little tissue", "twice", "twice, saved again"])
def test_a_few_odd_training_images_do_not_hide_copies(kind: str, share: float):
    """Blank images are near to each other, and the same tissue under two patients to itself: both by no chance."""
    rng = np.random.default_rng(3)
    blocks = torch.from_numpy(rng.integers(60, 230, (200, 3, 8, 8))).double()
    tissue = (
        torch.nn.functional.interpolate(blocks, (64, 64), mode="bicubic").clamp(0, 255).byte().movedim(1, -1).numpy()
    )
    odd = slice(0, round(share * 200))
    training = tissue.copy()
    if kind == "blank":
        training[odd] = _glass(odd.stop, rng)
    elif kind == "shaded glass":  # by the same lamp
        training[odd] = _glass(odd.stop, rng) - np.linspace(0, 8, 64, dtype=np.uint8)[None, :, None, None]
    elif kind == "little tissue":
        training[odd] = _with_little_tissue(tissue[odd], rng)
    else:
        training[odd] = training[100 : 100 + odd.stop] ^ (kind != "twice")  # 30 images lie between two of a patient
    limit = copy_distance(training, [f"p{k % 30}" for k in range(200)])
    noise = rng.normal(15, 10, tissue[100:].shape)
    copies = np.clip(tissue[100:] + noise, 0, 255).astype(np.uint8)
    assert are_copies(copies, training, below=limit).all()
    assert not are_copies(tissue[odd], training[odd.stop :], below=limit).any() or kind.startswith("twice")
    assert not are_copies(_glass(6, rng), training, below=limit).any()


def test_where_all_training_images_are_blank_the_limit_is_half_of_the_contrast():
    assert copy_distance(_glass(6, np.random.default_rng(0)), ["a", "b"] * 3) == 0.5


def test_images_of_one_colour_are_no_copies_of_each_other_but_copied_tissue_is(real_images):
    glass = np.random.default_rng(2).integers(236, 244, (12, 64, 64, 3), dtype=np.uint8)
    training = np.concatenate([real_images, glass[:6]])
    assert (nearest_distances(glass[6:], training)[0] < 0.01).all()
    assert not are_copies(glass[6:], training, below=0.1).any()
    assert are_copies(np.ascontiguousarray(real_images[:, ::-1]), training, below=0.1).all()
    assert not are_copies(255 - real_images, training, below=0.1).any()


@pytest.mark.parametrize("arms", [["real+synthetic", "real"], ["real", "real+synthetic"]])
def test_best_and_worst_patients_are_told_by_the_arm_of_the_headline(arms: list[str]) -> None:
    summary = {"arms": dict.fromkeys(arms), "headline": {"baseline": "real", "arm": "real+synthetic"}}
    assert _shown_arms(summary) == ["real", "real+synthetic"]
