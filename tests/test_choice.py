"""Arms are chosen by validation patients or, with a second laboratory, by how steadily its images are read."""

import numpy as np
import pandas as pd
import pytest

from stedm.evaluation.choice import means, merits, mirror_agreement

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)
PATIENTS = ["a", "a", "b", "b"]


def by_colour(images: np.ndarray) -> np.ndarray:
    return (images[..., 0] > 127).astype(np.uint8)


def by_place(images: np.ndarray) -> np.ndarray:
    maps = np.zeros(images.shape[:3], np.uint8)
    maps[:, :, :4] = 1  # the left half, whatever is there
    return maps


def test_a_reading_that_moves_with_the_image_agrees_wholly_and_one_that_stays_not_at_all() -> None:
    options = {"patients": PATIENTS, "classes": ["no", "yes"]}
    assert mirror_agreement(by_colour, IMAGES, **options) == 1
    assert mirror_agreement(by_place, IMAGES, **options) == 0


def test_patients_count_alike_however_many_images_they_have() -> None:
    def of_a_only(images: np.ndarray) -> np.ndarray:  # the last image wavers
        return np.concatenate([by_colour(images[:-1]), by_place(images[-1:])])

    options = {"classes": ["no", "yes"]}
    assert mirror_agreement(of_a_only, IMAGES, patients=["a", "a", "a", "b"], **options) == pytest.approx(0.5)


def test_agreement_decides_only_where_every_arm_has_it() -> None:
    arms: dict[str, dict[str, float | None]] = {
        "real": {"validation_iou": 0.8, "mirror_agreement": 0.5},
        "real+synthetic": {"validation_iou": 0.7, "mirror_agreement": 0.6},
        "full": {"validation_iou": 0.9, "mirror_agreement": None},
    }
    assert merits(arms) == ("mirror_agreement", {"real": 0.5, "real+synthetic": 0.6})
    arms["real"]["mirror_agreement"] = None
    assert merits(arms) == ("validation_iou", {"real": 0.8, "real+synthetic": 0.7})
    assert merits({"real": {}}) == ("validation_iou", {})


def test_means_leave_out_what_is_not_known() -> None:
    table = pd.DataFrame({"validation_iou": [0.5, np.nan, 0.7], "mirror_agreement": [np.nan] * 3})
    assert means(table) == {"mirror_agreement": None, "validation_iou": pytest.approx(0.6)}
    assert means(pd.DataFrame({"iou": [0.5]})) == {"mirror_agreement": None, "validation_iou": None}
