"""Stain transfer: moments and stain vectors by construction, and patients with hardly any tissue."""

import dataclasses

import numpy as np
import pytest
import torch

from stedm.diffusion.pipeline import to_network
from stedm.training import stain_transfer
from stedm.training.augment import StainChange
from stedm.training.stain_transfer import (
    UNCHANGED,
    StainStatistics,
    StainTransfer,
    macenko,
    reinhard,
    restained,
    stain_vectors,
)

AXES = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
H, E = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
H, E = H / np.linalg.norm(H), E / np.linalg.norm(E)
DAB = np.array([0.268, 0.570, 0.776])


def mixed(stains: np.ndarray, amounts: tuple[float, float], seed: int = 0, n: int = 40_000) -> np.ndarray:
    """Optical densities (n, 3) of two stains: a tenth of the pixels is pure in each, the others mix them."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.3, 1, (n, 2))
    c[: n // 10, 1], c[n // 10 : n // 5, 0] = 0, 0
    return (c * amounts) @ stains


def image(od: np.ndarray, side: int = 200) -> np.ndarray:
    """One image (1, side, side, 3) uint8 of densities."""
    return np.round(255 * np.exp(-od)).astype(np.uint8).reshape(1, side, side, 3)


def as_images(x: torch.Tensor) -> np.ndarray:
    """(n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8."""
    return np.round((x.movedim(1, -1).numpy() + 1) * 127.5).astype(np.uint8)


SOURCE = image(mixed(np.stack([H, E]), (0.9, 0.6)))
TARGET = image(mixed(np.stack([H + np.array([0.1, 0, 0.1]), DAB]), (0.5, 0.9), seed=1))


def applied(change: tuple[np.ndarray, np.ndarray], images: np.ndarray) -> torch.Tensor:
    matrix, offset = (torch.from_numpy(np.stack([value] * len(images))).float() for value in change)
    return StainChange(matrix, offset).apply(to_network(images))


@pytest.mark.parametrize("method", [reinhard, macenko])
def test_image_transferred_to_itself_is_itself(method) -> None:  # type: ignore[no-untyped-def]
    statistics = StainStatistics.measure(SOURCE)
    matrix, offset = method(statistics, statistics)
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(offset, 0, atol=1e-9)


def test_reinhard_gives_the_targets_mean_and_deviation_along_his_axes() -> None:
    source, target = (StainStatistics.measure(images) for images in (SOURCE, TARGET))
    matrix, offset = reinhard(source, target)
    od = -np.log(SOURCE.reshape(-1, 3) / 255) @ matrix + offset
    np.testing.assert_allclose((od @ AXES.T).mean(0), target.mean, atol=1e-9)
    np.testing.assert_allclose((od @ AXES.T).std(0), target.std, rtol=1e-4)
    changed = StainStatistics.measure(as_images(applied((matrix, offset), SOURCE)))
    np.testing.assert_allclose(changed.mean, target.mean, atol=0.02)


def test_two_stains_are_recovered_from_their_mixture() -> None:
    found = stain_vectors(mixed(np.stack([H, E]), (0.9, 0.6)))
    assert found is not None
    np.testing.assert_allclose(found, np.stack([H, E]), atol=0.01)
    np.testing.assert_allclose(StainStatistics.measure(SOURCE).stains, np.stack([H, E]), atol=0.03)


def test_macenko_exchanges_stains_and_amounts() -> None:
    source, target = (StainStatistics.measure(images) for images in (SOURCE, TARGET))
    changed = StainStatistics.measure(as_images(applied(macenko(source, target), SOURCE)))
    assert changed.stains is not None and target.stains is not None
    np.testing.assert_allclose(changed.stains, target.stains, atol=0.05)
    np.testing.assert_allclose(changed.amounts, target.amounts, rtol=0.1)
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    np.testing.assert_allclose(applied(macenko(source, target), white).numpy(), 1, atol=1e-4)


BLANK = np.full((2, 64, 64, 3), 250, np.uint8)
ONE_STAIN = image(np.random.default_rng(2).uniform(0.2, 1, (40_000, 1)) * H)
FLAT, BLACK = np.full((1, 64, 64, 3), [180, 120, 190], np.uint8), np.zeros((1, 64, 64, 3), np.uint8)
SPECK = BLANK.copy()
SPECK[0, :6, :6] = [120, 60, 140]


@pytest.mark.parametrize("poor", [BLANK, ONE_STAIN, FLAT, BLACK, SPECK])
def test_patient_without_two_stains_falls_back_to_reinhard_and_stays_finite(poor: np.ndarray) -> None:
    lacking, good = StainStatistics.measure(poor), StainStatistics.measure(SOURCE)
    assert lacking.stains is None and lacking.amounts is None
    for source, target, images in ((lacking, good, poor), (good, lacking, SOURCE), (lacking, lacking, poor)):
        change = macenko(source, target)
        for mine, theirs in zip(change, reinhard(source, target), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        x = applied(change, images)
        assert torch.isfinite(x).all() and x.abs().max() <= 1
    assert np.abs(np.linalg.eigvals(reinhard(lacking, good)[0])).max() <= 4 + 1e-9


def test_stains_that_are_hardly_told_apart_are_not_exchanged_for_others() -> None:
    good = StainStatistics.measure(SOURCE)
    close = StainStatistics.measure(image(mixed(np.stack([H, 0.8 * H + 0.2 * E]), (0.9, 0.6))))
    assert close.stains is not None and close.amounts is not None  # two there are, 0.14 radians apart
    for mine, theirs in zip(macenko(close, good), reinhard(close, good), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    near = dataclasses.replace(good, stains=good.stains + 0.05, amounts=good.amounts * 1.5)  # type: ignore[operator]
    assert not np.array_equal(macenko(good, near)[0], reinhard(good, near)[0])


def test_draw_takes_both_methods_every_target_and_leaves_some_as_they_are() -> None:
    sources = [StainStatistics.measure(images) for images in (SOURCE, TARGET)]
    targets = [StainStatistics.measure(np.clip(SOURCE.astype(int) + k, 0, 255).astype(np.uint8)) for k in (-30, 20, 40)]
    transfer = StainTransfer(sources, targets)
    patients = np.arange(3000) % 2
    change = transfer.draw(patients, np.random.default_rng(0))
    again = transfer.draw(patients, np.random.default_rng(0))
    assert torch.equal(change.matrix, again.matrix) and torch.equal(change.offset, again.offset)
    kinds = torch.cat([change.matrix.flatten(1), change.offset], 1)
    for patient in (0, 1):
        distinct, counts = kinds[patients == patient].unique(dim=0, return_counts=True)
        assert len(distinct) == 1 + 2 * len(targets)
        still = (distinct[:, :9] == torch.eye(3).flatten()).all(1)
        assert counts[still].item() / 1500 == pytest.approx(UNCHANGED, abs=0.04)
        assert counts[~still].min() > 0.7 * counts[~still].max()


def test_restained_images_are_all_changed_patient_by_patient_and_always_alike() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(60, 200, (6, 16, 16, 3), dtype=np.uint8)
    pale = StainStatistics.measure((255 - (255 - images) // 4).astype(np.uint8))
    patients = ["a", "b", "a", "b", "a", "b"]
    found = restained(images, patients, [pale])
    assert found.dtype == np.uint8 and found.shape == images.shape
    assert (found.mean(axis=(1, 2, 3)) > images.mean(axis=(1, 2, 3)) + 50).all()
    assert np.array_equal(found, restained(images, patients, [pale]))


def test_of_very_many_images_some_are_measured_from_the_first_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(60, 200, (9, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(stain_transfer, "_MOST_PIXELS", 3 * 16 * 16)
    some, own = StainStatistics.measure(images), StainStatistics.measure(images[[0, 4, 8]])
    assert np.array_equal(some.mean, own.mean) and np.array_equal(some.std, own.std)
