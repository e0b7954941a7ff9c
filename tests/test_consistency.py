"""Consistency on unannotated images: views that belong together, targets that move with them, an average by hand."""

import copy
import math

import numpy as np
import pytest
import torch

from stedm.config import IGNORE
from stedm.models.segmenter import Segmenter
from stedm.training.augment import cut_mix, random_boxes
from stedm.training.batches import Pairs, SegmentationBatches, ViewBatches
from stedm.training.consistency import MeanTeacher, PseudoLabels, ramp_up
from stedm.training.tasks import SegmentationTask

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
MAPS = RNG.integers(0, 3, (6, 32, 32), dtype=np.uint8)


def segmenter(seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(classes=["a", "b", "c"], encoder="tu-test_resnet")


def batches(stain: float = 1.0) -> ViewBatches:
    labelled = SegmentationBatches(
        Pairs(IMAGES[:2], MAPS[:2]), None, batch_size=4, synthetic_share=0.5, stain=1.0, seed=0
    )
    return ViewBatches(labelled, IMAGES[2:], stain=stain)


def test_boxes_cover_a_tenth_to_a_half() -> None:
    boxes = random_boxes(500, 64, np.random.default_rng(0))
    share = boxes.float().mean((1, 2))
    assert boxes.shape == (500, 64, 64) and 0.08 < share.min() < 0.15 and 0.42 < share.max() < 0.55
    rows, columns = boxes.any(2), boxes.any(1)
    assert torch.equal(boxes, rows[:, :, None] & columns[:, None, :])
    assert boxes.float().mean(0)[:, 5].max() > 0.02  # they reach the border


def test_cut_mix_takes_the_inside_of_the_box_from_the_row_before() -> None:
    x = torch.arange(3.0)[:, None, None].expand(3, 4, 4)
    boxes = torch.zeros(3, 4, 4, dtype=torch.bool)
    boxes[:, 1:3, 1:3] = True
    mixed = cut_mix(x, boxes)
    assert [mixed[k, 1, 1].item() for k in range(3)] == [2, 0, 1] and (mixed[:, 0] == x[:, 0]).all()


def test_views_are_a_function_of_the_step_and_leave_the_labelled_batch_as_it_is() -> None:
    one, other = batches()(5), batches()
    other(3)
    again = other(5)
    assert all(torch.equal(one[key], again[key]) for key in one)
    alone = other.labelled(5)
    assert all(torch.equal(one[key], alone[key]) for key in alone)
    assert not torch.equal(one["weak"], other(6)["weak"])
    assert one["weak"].shape == one["strong"].shape == (4, 3, 32, 32) and one["boxes"].shape == (4, 32, 32)


def test_strong_view_shows_the_same_pixels_outside_of_its_box() -> None:
    batch = batches()(0)
    weak, strong, boxes = (batch[key] for key in ("weak", "strong", "boxes"))

    def likeness(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
        a, b = (v.mean(1)[where] for v in (a, b))
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    for k in range(4):
        assert likeness(weak[k, None], strong[k, None], ~boxes[k, None]) > 0.3
        assert likeness(weak[k - 1, None], strong[k, None], boxes[k, None]) > 0.3
    assert not torch.allclose(cut_mix(weak, boxes[:, None]), strong, atol=0.05)


def test_ramp_rises_to_one_and_stays() -> None:
    values = [ramp_up(t / 20) for t in range(21)]
    assert values[0] == pytest.approx(math.exp(-5)) and values == sorted(values) and values[-1] == values[6] == 1


def test_teacher_is_the_average_of_the_students_by_hand() -> None:
    """At first the plain mean of all students, later mixed with the decay; whole numbers are copied."""
    net = segmenter()
    term = MeanTeacher(net, steps=30, weight=1.0)  # horizon 3 steps: decay 2/3
    students, expected = [], None
    for step in range(6):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        term.follow(net, step=step)
        weight = net.net.segmentation_head[0].weight.detach().clone()
        students.append(weight)
        decay = min(2 / 3, step / (step + 1))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        torch.testing.assert_close(term.teacher.net.segmentation_head[0].weight, expected)
    assert not any(parameter.requires_grad for parameter in term.teacher.parameters())
    assert all(torch.isfinite(value).all() for value in term.teacher.state_dict().values())
    early = MeanTeacher(net, steps=3000, weight=1.0)
    for step in range(3):
        net.load_state_dict({k: v * 0 + step if v.is_floating_point() else v for k, v in net.state_dict().items()})
        early.follow(net, step=step)
    assert early.teacher.net.segmentation_head[0].weight.flatten()[0].item() == pytest.approx(1.0)


def test_teacher_is_validated_and_kept_the_student_is_trained() -> None:
    net = segmenter()
    plain = SegmentationTask(net, learning_rate=1e-3, steps=10, seed=0)
    assert plain.trained is net
    term = MeanTeacher(net, steps=10, weight=1.0)
    task = SegmentationTask(net, consistency=[term], learning_rate=1e-3, steps=10, seed=0)
    assert task.trained is term.teacher
    optimised = {id(p) for group in task.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in net.parameters()}
    assert any(key.startswith("consistency.0.teacher.") for key in task.state_dict())  # so it is in the checkpoint


def loss_of(term: MeanTeacher | PseudoLabels, net: Segmenter, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(0)
    return term(net, batch, progress=1.0)


@pytest.mark.parametrize("kind", ["mean-teacher", "consistency"])
def test_gradient_reaches_the_student_only_and_falls_with_agreement(kind: str) -> None:
    net = segmenter()
    term = (
        MeanTeacher(net, steps=10, weight=1.0) if kind == "mean-teacher" else PseudoLabels(confidence=0.0, weight=1.0)
    )
    batch = batches()(0)
    loss = loss_of(term, net, batch)
    loss.backward()
    assert loss > 0 and all(p.grad is not None for p in net.net.decoder.parameters())
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = term(net, batch, progress=1.0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["mean-teacher", "consistency"])
def test_batch_norm_remembers_annotated_images_alone(kind: str) -> None:
    net = segmenter().train()
    term = (
        MeanTeacher(net, steps=10, weight=1.0) if kind == "mean-teacher" else PseudoLabels(confidence=0.0, weight=1.0)
    )

    def running() -> list[torch.Tensor]:
        return [value.clone() for name, value in net.named_buffers() if "running" in name]

    before = running()
    loss_of(term, net, batches()(0))
    assert before and all(torch.equal(a, b) for a, b in zip(before, running(), strict=True))
    net(batches()(0)["images"])
    assert not any(torch.equal(a, b) for a, b in zip(before, running(), strict=True))


def test_weight_scales_the_loss_and_no_confidence_means_no_labels() -> None:
    net, batch = segmenter(), batches()(0)
    one, two = (loss_of(PseudoLabels(confidence=0.0, weight=w), copy.deepcopy(net), batch).item() for w in (1.0, 2.0))
    assert two == pytest.approx(2 * one, rel=1e-5)
    assert loss_of(PseudoLabels(confidence=1.01, weight=1.0), net, batch).item() == 0


def test_labels_are_the_sure_pixels_of_the_weak_view_and_move_with_the_boxes() -> None:
    net, batch = segmenter(), batches()(0)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    labels = PseudoLabels(confidence=0.35, weight=1.0).labels(net, batch["weak"])
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with torch.no_grad():
        p = net.eval()(batch["weak"]).softmax(1)
    assert torch.equal(labels == IGNORE, p.max(1).values < 0.35) and 0 < (labels == IGNORE).float().mean() < 1
    assert torch.equal(labels[labels != IGNORE], p.argmax(1)[labels != IGNORE])
    mixed = cut_mix(labels, batch["boxes"])
    assert torch.equal(mixed[1][batch["boxes"][1]], labels[0][batch["boxes"][1]])


def test_dropped_features_change_the_scores_and_none_dropped_are_the_plain_network() -> None:
    net, x = segmenter().eval(), batches()(0)["weak"]
    with torch.no_grad():
        assert torch.equal(net(x), net(x, feature_dropout=0.0))
        assert not torch.allclose(net(x), net(x, feature_dropout=0.5))
        plain = net.net(x)
    torch.testing.assert_close(net(x), plain)
