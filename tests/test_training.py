"""Training: resumes bit for bit, trains everything, keeps the averaged weights, stops at a loss that is not finite."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from stedm.config_file import load_config
from stedm.data.style_sets import StyleSets
from stedm.errors import UserError
from stedm.interruption import Terminated, terminable
from stedm.models.autoencoder import FirstStage
from stedm.models.segmenter import Segmenter
from stedm.models.style import StyleExtractor
from stedm.models.unet import UNet
from stedm.stages import diffusion, latents
from stedm.stages.autoencoder import _check_grid, train_autoencoder
from stedm.stages.latents import frozen_places
from stedm.stages.run_folder import RunFolder, common_mpp
from stedm.training import loader, trainer
from stedm.training.batches import (
    AutoencoderBatches,
    DiffusionBatches,
    Pairs,
    SegmentationBatches,
    StylePatches,
    Variants,
    ViewBatches,
)
from stedm.training.consistency import MeanTeacher, PseudoLabels
from stedm.training.faults import explained
from stedm.training.loader import Batches
from stedm.training.log import Observation
from stedm.training.stain_transfer import StainStatistics, StainTransfer
from stedm.training.tasks import AutoencoderTask, Batch, DiffusionTask, SegmentationTask, Task, warmup_cosine
from stedm.training.trainer import BestByValidation, fit

PX, STEPS = 32, 8
RNG = np.random.default_rng(0)
PATCHES = pd.DataFrame(
    {
        "patch_id": [f"p{k}" for k in range(16)],
        "patient": [f"patient{k // 4}" for k in range(16)],
        "slide": [f"slide{k // 2}" for k in range(16)],
        "source": [f"r{k // 2}" for k in range(16)],
        "x_um": [float(PX * (k % 2)) for k in range(16)],
        "y_um": 0.0,
    }
)
ANNOTATED = torch.arange(16) < 8
TINTS = RNG.uniform(60, 200, (4, 1, 1, 3))
LAYOUTS = np.zeros((16, PX, PX), np.uint8)
for _k in range(16):
    LAYOUTS[_k, : 8 + _k, :], LAYOUTS[_k, :, : 4 + _k] = 1, 2
IMAGES = np.stack([np.clip(TINTS[k // 4] + 40 * (LAYOUTS[k][..., None] - 1.0), 0, 255) for k in range(16)]).astype(
    np.uint8
)


def diffusion_batches(style_set: str = "patient", **changes: Any) -> DiffusionBatches:
    z = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    layout = torch.from_numpy(LAYOUTS).clone()
    layout[~ANNOTATED] = 255
    variants = Variants(z, layout, torch.arange(16), ANNOTATED)
    lent = StylePatches(IMAGES, z.clone(), layout.clone())
    options: dict[str, Any] = {
        "batch_size": 8,
        "set_size": 2,
        "unlabelled_share": 0.5,
        "layout_dropout": 0.3,
        "style_dropout": 0.3,
        "unknown_share": 0.3,
        "zoom_style": style_set == "self",
        "seed": 0,
    } | changes
    size = options["set_size"]
    sets = StyleSets(PATCHES, mode=style_set, size=size, nearby_um=100.0, patch_um=float(PX))  # type: ignore[arg-type]
    return DiffusionBatches(variants, lent, sets, **options)


def diffusion_task(
    steps: int = STEPS, *, aggregation: str = "attention", injection: str = "all", **style: Any
) -> DiffusionTask:
    torch.manual_seed(0)
    unet = UNet(
        latent_channels=4, num_classes=3, factor=4, channels=16, multipliers=[1, 2], style_dim=8, injection=injection
    )
    extractor = StyleExtractor(dim=8, set_size=2, latent_channels=4, aggregation=aggregation, **style)
    return DiffusionTask(unet, extractor, learning_rate=2e-3, steps=steps, seed=0)


def autoencoder_task(steps: int = STEPS) -> AutoencoderTask:
    torch.manual_seed(0)
    stage = FirstStage.new([16, 16], latent_channels=4, space_to_depth=2)
    return AutoencoderTask(stage, kl_weight=1e-4, latent_noise=0.5, learning_rate=2e-3, steps=steps, seed=0)


def segmentation_task(steps: int = STEPS) -> SegmentationTask:
    torch.manual_seed(0)
    segmenter = Segmenter(classes=["a", "b", "c"], encoder="tu-test_resnet")
    return SegmentationTask(segmenter, learning_rate=2e-3, steps=steps, seed=0)


def segmentation_batches(**changes: Any) -> SegmentationBatches:
    options: dict[str, Any] = {"batch_size": 6, "synthetic_share": 0.5, "stain": 1.0, "seed": 0} | changes
    return SegmentationBatches(Pairs(IMAGES[:4], LAYOUTS[:4]), Pairs(IMAGES[4:], LAYOUTS[4:]), **options)


def semi_supervised_task(steps: int = STEPS) -> SegmentationTask:
    """Both losses on unannotated images: the teacher's average and the dropped features must survive a resume."""
    segmenter = segmentation_task().segmenter
    terms = [MeanTeacher(segmenter, steps=steps, weight=1.0), PseudoLabels(confidence=0.4, weight=1.0)]
    return SegmentationTask(segmenter, consistency=terms, learning_rate=2e-3, steps=steps, seed=0)


def view_batches() -> ViewBatches:
    statistics = [StainStatistics.measure(IMAGES[4 * k : 4 * k + 4]) for k in range(4)]
    transfer = (StainTransfer(statistics[:2], statistics[2:]), np.array([0, 0, 1, 1]))
    return ViewBatches(segmentation_batches(transfer=transfer), IMAGES[8:], stain=1.0)


def autoencoder_batches() -> AutoencoderBatches:
    return AutoencoderBatches(IMAGES, batch_size=4, crop_px=16, seed=0)


def validation_score(task: Task) -> float:
    """Falls again after the best stretch, so that the best is not the last."""
    return -abs(task.global_step - 4)


def best_of(task: Task) -> BestByValidation | None:
    return BestByValidation(validation_score, name="val_score") if isinstance(task, SegmentationTask) else None


RECIPES: dict[str, tuple[Callable[..., Task], Callable[[], Any], float | None]] = {
    "autoencoder": (autoencoder_task, autoencoder_batches, 0.9),
    "diffusion": (diffusion_task, diffusion_batches, 0.9),
    "segmentation": (segmentation_task, segmentation_batches, None),
    "semi-supervised": (semi_supervised_task, view_batches, None),
}


def train(name: str, folder: Path, batches: Any = None) -> dict[str, Tensor]:
    make, default_batches, ema = RECIPES[name]
    task = make()
    fit(
        task,
        batches or default_batches(),
        folder=folder,
        description=name,
        ema_decay=ema,
        best=best_of(task),
        stretches=4,
    )
    return task.state_dict()


class Interrupted(Exception):
    pass


def interrupted(batches: Any, at_step: int) -> Callable[[int], Batch]:
    def batch_of_step(step: int) -> Batch:
        if step == at_step:
            raise Interrupted
        return batches(step)

    return batch_of_step


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_at_any_stretch_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """Stretches of two steps: one interruption in the first, one at a border, one in the last."""
    expected = train(name, tmp_path / "whole")
    for at_step in (1, 2, 5, 7):
        folder = tmp_path / f"at{at_step}"
        with pytest.raises(Interrupted):
            train(name, folder, interrupted(RECIPES[name][1](), at_step))
        assert equal(train(name, folder), expected), at_step
        assert (folder / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_interrupted_twice_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected = train("diffusion", tmp_path / "whole")
    for at_step in (3, 6):
        with pytest.raises(Interrupted):
            train("diffusion", tmp_path / "twice", interrupted(diffusion_batches(), at_step))
    assert equal(train("diffusion", tmp_path / "twice"), expected)


@pytest.mark.parametrize("name", RECIPES)
def test_every_step_is_taken_once_and_in_order(name: str, tmp_path: Path) -> None:
    asked: list[int] = []
    batches = RECIPES[name][1]()
    train(name, tmp_path, lambda step: asked.append(step) or batches(step))
    assert asked == list(range(STEPS))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == ("step,loss,val_score" if name in ("segmentation", "semi-supervised") else "step,loss") and [
        int(line.split(",")[0]) for line in lines[1:]
    ] == list(range(1, STEPS + 1))
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.parametrize("name", RECIPES)
def test_every_trainable_parameter_is_in_the_optimiser_and_changes(name: str, tmp_path: Path) -> None:
    """The original's style encoder started random and stayed so."""
    task = RECIPES[name][0]()
    optimised = {id(p) for group in task.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert optimised == {id(parameter) for parameter in task.parameters() if parameter.requires_grad}
    before = {key: parameter.detach().clone() for key, parameter in task.named_parameters()}
    batches = RECIPES[name][1]
    trained = fit(task, batches(), folder=tmp_path, description=name, stretches=2)
    assert [key for key, parameter in trained.named_parameters() if torch.equal(parameter, before[key])] == []


def test_averaged_weights_are_the_ones_kept_and_cover_the_style_network(tmp_path: Path) -> None:
    """EMA by hand: the first update copies, every later one mixes with the decay."""
    decay = 0.7
    plain: list[dict[str, Tensor]] = []
    task = diffusion_task()
    original = task.on_train_batch_start

    def record(batch: Batch, batch_idx: int) -> None:
        plain.append({key: value.detach().clone() for key, value in task.named_parameters()})
        original(batch, batch_idx)

    task.on_train_batch_start = record  # type: ignore[method-assign]
    averaged = dict(
        fit(task, diffusion_batches(), folder=tmp_path / "ema", description="ema", ema_decay=decay).named_parameters()
    )
    last = diffusion_task()
    fit(last, diffusion_batches(), folder=tmp_path / "plain", description="plain")
    expected: dict[str, Tensor] = {}
    for weights in [*plain[1:], dict(last.named_parameters())]:
        expected = {key: decay * expected[key] + (1 - decay) * w if expected else w for key, w in weights.items()}
    for part in (
        "unet.null_style",
        "unet.layout.null",
        "style_extractor.aggregation.query",
        "style_extractor.encoder.pool.head.0.weight",
    ):
        assert part in averaged and not torch.equal(averaged[part], dict(last.named_parameters())[part])
    for key, value in averaged.items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-5)


def test_averages_lie_where_the_task_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, Lightning copies the task before it moves it to its GPU, and averages on the CPU."""
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(trainer, "best_device", lambda: torch.device("cuda"))
    assert trainer.training_device() == torch.device("cuda", 1)
    monkeypatch.undo()
    assert trainer.training_device().type in ("cpu", "cuda")
    devices = []

    class Spied(trainer.WeightAveraging):
        def __init__(self, device: torch.device | None = None, **options: Any) -> None:
            devices.append(device)
            super().__init__(device, **options)

    monkeypatch.setattr(trainer, "WeightAveraging", Spied)
    fit(diffusion_task(), diffusion_batches(), folder=tmp_path, description="averaged", ema_decay=0.9)
    assert devices == [trainer.training_device()]


class RecordingWatch:
    """Uses up random numbers, changes the mode of the task, and remembers the weights it saw."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}

    def __call__(self, task: Task, step: int) -> Observation:
        assert not task.training and not torch.is_grad_enabled()
        self.seen[step] = {key: value.detach().clone() for key, value in task.state_dict().items()}
        torch.manual_seed(99)
        checksum = sum(float(value.double().abs().sum()) for value in task.parameters())
        picture = np.full((4, 4, 3), round(checksum) % 256, np.uint8)
        return Observation({"val_checksum": checksum, "val_noise": torch.rand(()).item()}, picture)


def watched(folder: Path, batches: Any = None, watch: RecordingWatch | None = None) -> dict[str, Tensor]:
    watch = watch or RecordingWatch()
    options: dict[str, Any] = {"folder": folder, "description": "watched", "ema_decay": 0.9, "stretches": 4}
    return fit(diffusion_task(), batches or diffusion_batches(), watch=watch, **options).state_dict()


def test_watching_changes_nothing_and_sees_the_averaged_weights(tmp_path: Path) -> None:
    watch = RecordingWatch()
    trained = watched(tmp_path / "watched", watch=watch)
    assert equal(trained, train("diffusion", tmp_path / "alone"))
    assert list(watch.seen) == [2, 4, 6, 8] and equal(watch.seen[8], trained)
    losses, alone = (pd.read_csv(tmp_path / name / "metrics.csv")["loss"] for name in ("watched", "alone"))
    assert losses.equals(alone)


def test_watched_and_interrupted_ends_with_the_same_bits_metrics_and_pictures(tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        paths = [folder / "metrics.csv", *sorted((folder / "samples").iterdir())]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    expected = watched(tmp_path / "whole")
    assert [f"samples/step_{step:06d}.png" for step in (2, 4, 6, 8)] == list(files(tmp_path / "whole"))[1:]
    for at_step in (1, 2, 3, 7):
        folder, watch = tmp_path / f"at{at_step}", RecordingWatch()
        with pytest.raises(Interrupted):
            watched(folder, interrupted(diffusion_batches(), at_step), watch)
        assert equal(watched(folder, watch=watch), expected), at_step
        assert files(folder) == files(tmp_path / "whole"), at_step


def test_metrics_are_there_while_training(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train("diffusion", tmp_path, interrupted(diffusion_batches(), 5))
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [1, 2, 3, 4]


def test_best_by_validation_is_the_one_kept(tmp_path: Path) -> None:
    seen: dict[int, dict[str, Tensor]] = {}

    def score(task: Task) -> float:
        seen[task.global_step] = {key: value.detach().clone() for key, value in task.state_dict().items()}
        return validation_score(task)

    task = segmentation_task()
    best = BestByValidation(score, name="val_score")
    fit(task, segmentation_batches(), folder=tmp_path, description="best", best=best, stretches=4)
    assert [step for step, _ in best.history] == [2, 4, 6, 8]
    assert equal(task.state_dict(), seen[4]) and not equal(task.state_dict(), seen[8])


def test_validation_without_a_score_keeps_weights_all_the_same(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def score(task: Task) -> float:
        seen.append({key: value.detach().clone() for key, value in task.state_dict().items()})
        return float("nan")

    task = segmentation_task(4)
    best = BestByValidation(score, name="val_score")
    fit(task, segmentation_batches(), folder=tmp_path, description="no score", best=best, stretches=2)
    assert [equal(task.state_dict(), state) for state in seen] == [True, False]


@pytest.mark.parametrize("step", [0, 3])
def test_loss_that_is_not_finite_is_a_clear_error(tmp_path: Path, step: int) -> None:
    batches = diffusion_batches()

    def poisoned(asked: int) -> Batch:
        batch = batches(asked)
        return batch | {"z": batch["z"] * float("nan")} if asked == step else batch

    with pytest.raises(UserError, match="loss is nan") as caught:
        train("diffusion", tmp_path, poisoned)
    message = str(caught.value)
    assert "diffusion: " in message and f"at step {step + 1};" in message and "\n" not in message
    assert "lower diffusion.learning_rate (now 0.002)" in message
    assert ("the state of step 2 stays" if step else "no state was saved yet") in message
    train("diffusion", tmp_path)


def diverges(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> str:
    """Message of a training of which `what` goes wrong at step 4; then it is continued without, and compared."""
    make, batches, _ = RECIPES[name]
    task_type = type(make())
    healthy = task_type.training_step

    def training_step(self: Task, batch: Batch, batch_idx: int) -> Tensor:
        loss, weights = healthy(self, batch, batch_idx), next(iter(self.parameters()))
        if self.global_step == 3 and what == "loss":
            return loss * float("nan")
        if self.global_step == 3 and what == "gradient":  # of a root at zero
            return loss + (weights - weights.detach()).sum().abs().sqrt()
        return loss

    def poison(self: Task, batch: Batch, batch_idx: int) -> None:
        if self.global_step == 4 and what == "weights":
            with torch.no_grad():
                list(self.parameters())[-1].fill_(float("inf"))

    with monkeypatch.context() as patch:
        patch.setattr(task_type, "training_step", training_step)
        patch.setattr(task_type, "on_train_batch_end", lambda self, outputs, *rest: poison(self, *rest), raising=False)
        with pytest.raises(UserError) as caught:
            train(name, folder, batches())
    whole = train(name, folder.with_name("whole"))
    assert equal(train(name, folder), whole)  # from the last good state
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("what", "words"), [("loss", "the loss is nan"), ("gradient", "the gradient's norm is"), ("weights", "not finite")]
)
def test_a_training_that_diverges_stops_with_its_last_good_state(
    name: str, what: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = diverges(name, tmp_path / "stopped", monkeypatch, what)
    assert words in message and "the state of step 2 stays" in message
    section = "segmentation" if name == "semi-supervised" else name
    assert message.startswith(f"{name}: ") and f"lower {section}.learning_rate (now 0.002)" in message


@pytest.mark.parametrize("values", [{"val_loss": float("nan")}, {"val_loss": float("inf")}, {"val_psnr": float("nan")}])
def test_a_validation_that_is_not_finite_stops_the_training(tmp_path: Path, values: dict[str, float]) -> None:
    task = diffusion_task()
    options: dict[str, Any] = {"folder": tmp_path, "description": "watched", "stretches": 4}
    with pytest.raises(UserError, match="validation is not finite after step 2"):
        fit(task, diffusion_batches(), watch=lambda task, step: Observation(values), **options)
    unmeasured = Observation({"val_loss": 1.0, "val_style_gain": float("nan")})
    fit(diffusion_task(), diffusion_batches(), watch=lambda task, step: unmeasured, **options)


@pytest.mark.usefixtures("ctrl_c_works")
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_an_interruption_ends_a_training_and_it_continues(
    tmp_path: Path, number: int, kind: type[BaseException]
) -> None:
    batches = diffusion_batches()

    def interrupting(step: int) -> Batch:
        if step == 5:
            os.kill(os.getpid(), number)
        return batches(step)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(kind), terminable():
        train("diffusion", tmp_path / "interrupted", interrupting)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert equal(train("diffusion", tmp_path / "interrupted"), train("diffusion", tmp_path / "whole"))


COMBINATIONS = [
    (s, a, i)
    for s in ("self", "nearby", "slide", "patient")
    for a in ("mean", "max", "linear", "attention")
    for i in ("all", "bottleneck")
]


def two_steps(style_set: str, task: DiffusionTask, **changes: Any) -> set[str]:
    """Names of the parameters without a gradient after two steps."""
    batches = diffusion_batches(style_set, layout_dropout=0.5, style_dropout=0.5, **changes)
    optimiser = task.configure_optimizers()["optimizer"]
    untouched = {name for name, _ in task.named_parameters()}
    for step in range(2):
        optimiser.zero_grad()
        loss = task.training_step(batches(step), step)
        assert torch.isfinite(loss)
        loss.backward()
        untouched -= {n for n, p in task.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimiser.step()
    return untouched


@pytest.mark.parametrize(("style_set", "aggregation", "injection"), COMBINATIONS)
def test_every_combination_trains_everything_within_two_steps(style_set: str, aggregation: str, injection: str) -> None:
    """In the original `none` and the set transformer could not train at all."""
    assert two_steps(style_set, diffusion_task(aggregation=aggregation, injection=injection)) == set()


def test_timm_style_encoder_trains_within_two_steps() -> None:
    assert two_steps("patient", diffusion_task(encoder="test_resnet")) == set()


def test_features_of_a_frozen_backbone_are_kept_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = diffusion_task(encoder="test_resnet", trainable=False).style_extractor
    asked, kept = diffusion_batches(), diffusion_batches()
    kept.style_patches.places = frozen_places(extractor, IMAGES)
    one, other = asked(3), kept(3)
    extractor.eval()
    seen = extractor.describe(one["style_images"], one["style_latents"])
    monkeypatch.setattr(extractor.encoder, "places", None)  # the backbone is not asked again
    again = extractor.describe(None, other["style_latents"], places=other["style_places"])
    assert "style_images" not in other and seen[0].std() > 0.1
    for mine, theirs in zip(again, seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.01, atol=0.01)


def test_features_are_kept_of_a_frozen_backbone_only_and_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert frozen_places(diffusion_task(encoder="test_resnet").style_extractor, IMAGES) is None
    frozen = diffusion_task(encoder="test_resnet", trainable=False).style_extractor
    places = frozen_places(frozen, IMAGES)
    assert places is not None and places.shape[:2] == (16, 8)
    monkeypatch.setattr(latents, "MOST_BYTES", places.nbytes - 1)
    assert frozen_places(frozen, IMAGES) is None
    assert frozen.training and frozen.aggregation.training, "as it was"


@pytest.mark.parametrize(("unannotated", "steps"), [(2, 6), (0, 8)])
def test_the_control_sees_as_many_annotated_images_as_ours(
    unannotated: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three quarters of the steps, where ours has others in a quarter of each batch; all where there are no others."""
    patches = pd.DataFrame({"split": "train", "annotated": [True] * 2 + [False] * unannotated})
    trained: list[int] = []
    monkeypatch.setattr(diffusion, "_train", lambda run, config, *rest, **_: trained.append(config.diffusion.steps))
    config = load_config(overrides=["size=smoke", "diffusion.steps=8", "diffusion.unlabelled_share=0.25"])
    diffusion.train_control(cast(Any, SimpleNamespace(patches=lambda: patches, control=Path())), config)
    assert trained == [steps]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (torch.distributed.DistBackendError("no peer"), torch.distributed.DistError),
        (RuntimeError("truncated"), UserError),
    ],
)
def test_only_what_a_checkpoint_can_be_blamed_for_is(error: Exception, told: type[Exception], tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    last.touch()
    with pytest.raises(told), explained("a training", diffusion_task(), last, lambda: None):
        raise error


@pytest.mark.parametrize(("mpp", "common"), [([0.5, 0.4991, 0.5], 0.5), ([0.25, 0.5, 0.5], None)])
def test_a_model_has_a_resolution_if_its_patches_have_one(mpp: list[float], common: float | None) -> None:
    assert common_mpp(pd.DataFrame({"mpp": mpp})) == common


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_annotated_or_unannotated_images_alone_train(share: float) -> None:
    batch = diffusion_batches(unlabelled_share=share)(0)
    loss = diffusion_task().training_step(batch, 0)
    assert torch.isfinite(loss)


def test_diffusion_learns_one_batch_by_heart() -> None:
    batch = diffusion_batches(style_dropout=0.0, layout_dropout=0.0)(0)
    task = diffusion_task()
    optimiser = torch.optim.AdamW(task.parameters(), lr=5e-3)
    losses = []
    for _ in range(150):
        torch.manual_seed(0)  # the same times and noise as well: a regression that must go to zero
        optimiser.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0], (losses[0], losses[-1])


def test_first_stage_learns_one_batch_by_heart() -> None:
    batch, task = (
        {"images": torch.from_numpy(IMAGES[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1},
        autoencoder_task(150),
    )
    optimiser = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0], (losses[0], losses[-1])


def test_segmenter_learns_one_batch_by_heart() -> None:
    batch, task = segmentation_batches(stain=0.0)(0), segmentation_task(100)
    optimiser = torch.optim.AdamW(task.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0], (losses[0], losses[-1])


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    factors = [warmup_cosine(step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1 and factors[-1] < 1e-3
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert all(0 < warmup_cosine(step, 1) <= 1 for step in range(1))


# Batches


@pytest.mark.parametrize("make", [autoencoder_batches, diffusion_batches, segmentation_batches, view_batches])
def test_batch_is_a_function_of_its_step(make: Callable[[], Any]) -> None:
    one, again = make()(5), make()
    again(3)
    again = again(5)
    assert list(one) == list(again) and all(torch.equal(one[key], again[key]) for key in one)
    other = make()(6)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("style_set", ["patient", "self"])
def test_images_go_to_the_device_and_are_augmented_there(style_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without memory stands for a GPU: like one, it refuses what lies elsewhere."""
    makers = [autoencoder_batches, view_batches, lambda: diffusion_batches(style_set)]
    made = [make() for make in makers]
    monkeypatch.setattr("stedm.training.batches.best_device", lambda: torch.device("meta"))
    there = [{name for name, x in batches(3).items() if x.is_meta} for batches in made]
    assert there == [{"images"}, {"images", "label_maps", "weak", "strong", "boxes"}, {"style_images"}]


def test_batches_made_ahead_come_in_order_and_only_some_ahead() -> None:
    made: list[int] = []

    def batch(step: int) -> Batch:
        time.sleep(0.02 * (step % 3))  # later ones may be ready first
        made.append(step)
        return {"step": torch.tensor(step)}

    ahead = iter(Batches(batch, 5, 15, ahead=2))
    first = int(next(ahead)["step"])
    time.sleep(0.2)
    assert first == 5 and sorted(made) == [5, 6, 7]
    assert [int(x["step"]) for x in ahead] == list(range(6, 15))
    assert sorted(made) == list(range(5, 15)), "each is made once"


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_goes_wrong_with_a_batch_is_raised_at_its_step(ahead: int) -> None:
    def batch(step: int) -> Batch:
        if step == 3:
            raise UserError("slide3.png: damaged")
        return {"step": torch.tensor(step)}

    batches = iter(Batches(batch, 0, 6, ahead=ahead))
    assert [int(next(batches)["step"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="damaged"):
        next(batches)


@pytest.mark.parametrize("name", ["diffusion", "semi-supervised"])
def test_a_training_on_batches_made_ahead_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train(name, tmp_path / "alone")
    monkeypatch.setattr(loader, "made_ahead", lambda: 3)
    assert equal(train(name, tmp_path / "ahead"), alone)


def test_style_set_never_holds_the_target_and_stays_with_its_patient() -> None:
    """In the original, style patches were read with another slide's tissue map."""
    marked = np.stack([np.full((PX, PX, 3), 10 * k, np.uint8) for k in range(16)])
    for style_set in ("nearby", "slide", "patient"):
        batches = diffusion_batches(style_set)
        batches.style_patches.images = marked
        batches.variants.z[:] = torch.arange(16.0)[:, None, None, None].half()
        for step in range(10):
            batch = batches(step)
            targets = batch["z"][:, 0, 0, 0].int().tolist()
            lenders = ((batch["style_images"][:, :, 0, 0, 0] + 1) * 127.5 / 10).round().int().tolist()
            for target, lent in zip(targets, lenders, strict=True):
                assert target not in lent
                assert {PATCHES["patient"][k] for k in lent} == {PATCHES["patient"][target]}
                if style_set != "patient":
                    assert {PATCHES["slide"][k] for k in lent} == {PATCHES["slide"][target]}


@pytest.mark.parametrize("style_set", ["patient", "self"])
def test_image_latent_and_layout_of_a_style_patch_turn_together(style_set: str) -> None:
    """All three show the same cells: bright where the layout is 1 and the latent is 1."""
    batches = diffusion_batches(style_set, set_size=2 if style_set == "patient" else 1)
    cells = RNG.integers(0, 2, (16, PX // 4, PX // 4)).astype(np.uint8)
    whole = cells.repeat(4, 1).repeat(4, 2)
    batches.style_patches = StylePatches(
        np.repeat(255 * whole[..., None], 3, 3),
        torch.from_numpy(cells)[:, None].repeat(1, 4, 1, 1).half(),
        torch.from_numpy(whole),
    )
    for step in range(4):
        batch = batches(step)
        x, z = batch["style_images"][:, :, 0], batch["style_latents"][:, :, 0].float()  # (B, N, H, W), (B, N, h, w)
        shown = torch.nn.functional.avg_pool2d((x + 1) / 2, 4)
        torch.testing.assert_close(shown, z, atol=0.02 if style_set == "patient" else 0.45, rtol=0)
        assert ((x > 0) == (batch["style_layouts"] == 1)).float().mean() > (0.999 if style_set == "patient" else 0.9)


def test_annotation_of_unannotated_images_never_enters() -> None:
    batches = diffusion_batches(layout_dropout=0.0)
    for step in range(5):
        batch = batches(step)
        assert (batch["layout"][4:] == 255).all() and not batch["layout_given"][4:].any()
        assert batch["layout_given"][:4].all()


@pytest.mark.parametrize("use", ["layout", "style"])
def test_unannotated_images_get_the_reading_of_a_teacher_that_is_sure_of_the_whole_image(
    monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """Single sure pixels do not count, and unsure ones of a sure image do: else the easy parts stand for a class.

    What is read always tells the style encoder where classes are; it is a layout to draw by only if asked.
    """
    probabilities = np.full((2, 2, PX, PX), 0.5)
    probabilities[0, 0], probabilities[0, 1] = 0.9, 0.1
    probabilities[0, :, :2] = [[[0.4]], [[0.6]]]
    probabilities[1, :, :2] = [[[0.01]], [[0.99]]]
    monkeypatch.setattr(diffusion, "_READ_AT_ONCE", 1)  # portion by portion
    second = lambda images: [int((image == IMAGES[2]).all()) for image in images]  # noqa: E731
    teacher = SimpleNamespace(probabilities=lambda images, views: probabilities[second(images)])
    teacher.to = lambda device: teacher
    monkeypatch.setattr(diffusion.Segmenter, "from_pretrained", lambda folder: teacher)
    run = SimpleNamespace(label_maps=lambda rows: LAYOUTS[: len(rows)], segmenter=lambda arm, seed: None)
    patches = pd.DataFrame({"annotated": [True, False, False]})
    config = load_config(overrides=["size=smoke", "diffusion.pseudo_confidence=0.8", f"diffusion.pseudo_use={use}"])
    layouts, regions = diffusion._layouts(cast(RunFolder, run), config, patches, IMAGES[:3])
    assert (regions[0] == LAYOUTS[0]).all() and (regions[1, :2] == 1).all() and (regions[1, 2:] == 0).all()
    assert (regions[2] == 255).all()
    assert (layouts[0] == LAYOUTS[0]).all()
    assert (layouts[1:] == regions[1:]).all() if use == "layout" else (layouts[1:] == 255).all()


def test_layout_and_style_are_dropped_independently_at_their_rates() -> None:
    batches = diffusion_batches(unlabelled_share=0.0, layout_dropout=0.2, style_dropout=0.4, batch_size=64)
    given = torch.cat([torch.stack([b["layout_given"], b["style_given"]], 1) for b in map(batches, range(30))]).float()
    assert given.mean(0).tolist() == pytest.approx([0.8, 0.6], abs=0.04)
    assert (1 - given).prod(1).mean() == pytest.approx(0.08, abs=0.02)


def test_target_without_style_candidates_gets_the_null_style() -> None:
    batches = diffusion_batches("nearby")
    batches.style_sets = StyleSets(PATCHES, mode="nearby", size=2, nearby_um=1.0, patch_um=float(PX))
    batch = batches(0)
    assert not batch["style_given"].any() and torch.isfinite(diffusion_task().training_step(batch, 0))


@pytest.mark.parametrize(("share", "synthetic"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_synthetic_share_of_a_batch(share: float, synthetic: int) -> None:
    real, fake = np.zeros((4, PX, PX, 3), np.uint8), np.full((9, PX, PX, 3), 255, np.uint8)
    maps = np.zeros((9, PX, PX), np.uint8)
    batches = SegmentationBatches(
        Pairs(real, maps[:4]), Pairs(fake, maps), batch_size=6, synthetic_share=share, stain=0.0, seed=0
    )
    for step in range(4):
        assert int((batches(step)["images"].mean((1, 2, 3)) > 0).sum()) == synthetic
    alone = SegmentationBatches(Pairs(real, maps[:4]), None, batch_size=6, synthetic_share=share, stain=0.0, seed=0)
    assert (alone(0)["images"] < -0.99).all()


def test_patches_too_small_for_the_measures_are_refused_before_any_training(tmp_path: Path) -> None:
    config = load_config(overrides=["size=smoke", "prepare.patch_px=16"])
    with pytest.raises(UserError, match=r"prepare\.patch_px: 16: texture is measured on 32 or more"):
        train_autoencoder(RunFolder(tmp_path), config)


@pytest.mark.parametrize(("side_px", "multipliers", "fits"), [(48, [1, 2], True), (48, [1, 2, 2], False)])
def test_patches_that_a_pretrained_first_stage_does_not_divide_are_refused(
    side_px: int, multipliers: list[int], fits: bool
) -> None:
    config = load_config(
        overrides=["size=smoke", f"prepare.patch_px={side_px}", f"diffusion.multipliers={multipliers}"]
    )
    with nullcontext() if fits else pytest.raises(UserError, match=r"patch_px: 48 is not a multiple of 32"):
        _check_grid(8, config)
