"""Sharded training: the training of copies and of one process, with half of it on each of two ranks."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from spawned import call_ranks
from test_ranks import few_step_task, losses
from test_training import Interrupted, diffusion_batches, diffusion_task, equal, interrupted
from torch import Tensor
from torch.distributed.tensor import DTensor

from stedm import device
from stedm.config_file import load_config
from stedm.diffusion.pipeline import Sampling
from stedm.fingerprint import fingerprint_of
from stedm.graph import stages_of
from stedm.models.autoencoder import FirstStage
from stedm.ranks import everyones, is_first, place
from stedm.stages.diffusion import _untrained
from stedm.stages.run_folder import RunFolder
from stedm.training.divergence import Diverged, check_weights
from stedm.training.log import Observation
from stedm.training.muon import Muon
from stedm.training.sharding import copy_whole, rows_here, shard, whole
from stedm.training.tasks import DiffusionTask, Task
from stedm.training.trainer import fit


def size(task: Task, step: int) -> Observation:
    """A watch: sees whole, averaged weights, in `eval` mode, and may draw random numbers."""
    assert not task.training and not any(isinstance(p, DTensor) for p in task.parameters())
    torch.rand(3)
    return Observation({"val_loss": sum(float(p.abs().sum()) for p in task.parameters())})


def train(folder: Path, *, stop_at: int | None = None, sharded: bool = True) -> dict[str, Tensor]:
    device.has_fast_bf16 = lambda _: False  # single precision: what is left is the order of sums
    batches = diffusion_batches() if stop_at is None else interrupted(diffusion_batches(), stop_at)
    task = diffusion_task()
    options = {"ema_decay": 0.9, "watch": size, "stretches": 4, "sharded": sharded}
    fit(task, batches, folder=folder, description="diffusion", **options)
    return task.state_dict()


def stopped(folder: Path, at_step: int) -> Path:
    with pytest.raises(Interrupted):
        train(folder, stop_at=at_step)
    return folder


def check_parts(task: DiffusionTask) -> None:
    """Each rank has its rows of everything, half in all; what is not finite on one is found by all."""
    numbers, before = sum(p.numel() for p in task.parameters()), {k: v.clone() for k, v in task.state_dict().items()}
    shard(task)
    held = everyones(sum(rows_here(p).numel() for p in task.parameters()))
    assert sum(held) == numbers and max(held) < 0.55 * numbers
    assert equal(before, {name: whole(value) for name, value in task.state_dict().items()})
    again = diffusion_task()
    copy_whole(task, again)
    assert equal(before, again.state_dict())
    check_weights(task, step=1)
    if not is_first():
        rows_here(task.unet.conv_in.weight.detach())[-1] = torch.nan
    with pytest.raises(Diverged, match=r"unet\.conv_in\.weight"):
        check_weights(task, step=1)


def check_muon(rows: int) -> None:
    """A step of matrices with as many rows is that of whole matrices, however unevenly they are shared out."""
    torch.manual_seed(rows)
    matrices = [torch.nn.Parameter(torch.randn(rows, 6)) for _ in range(3)]
    gradients = [torch.randn(rows, 6) for _ in matrices]
    ours = torch.nn.ParameterList([torch.nn.Parameter(p.detach().clone()) for p in matrices])
    network = torch.nn.Module()
    network.ours = ours
    shard(torch.nn.ModuleList([network]))
    for p, gradient in zip(matrices, gradients, strict=True):
        p.grad = gradient
    for p, gradient in zip(network.ours, gradients, strict=True):
        p.grad = torch.zeros_like(p)
        rows_here(p.grad).copy_(gradient.chunk(place().world)[place().rank] if rows > place().rank else gradient[:0])
    for some in (matrices, list(network.ours)):
        Muon(some, lr=0.1, fused=True).step()
    for p, own in zip(matrices, network.ours, strict=True):
        torch.testing.assert_close(whole(own.detach()), p.detach(), rtol=0, atol=1e-6)


def train_in_parts(out: Path) -> None:
    held = []
    hook = DiffusionTask.on_before_optimizer_step

    def looks(task: DiffusionTask, optimizer: torch.optim.Optimizer) -> None:
        hook(task, optimizer)
        state = [x for values in optimizer.state.values() for x in values.values() if x.ndim]
        parts = [*task.parameters(), *(p.grad for p in task.parameters() if p.grad is not None), *state]
        held.append(sum(rows_here(x).numel() for x in parts) / sum(x.numel() for x in parts))

    DiffusionTask.on_before_optimizer_step = looks
    trained = train(out / "sharded")
    DiffusionTask.on_before_optimizer_step = hook
    assert len(held) == 8 and max(held) < 0.55
    assert all(type(x) is Tensor for x in trained.values())
    for other in everyones(trained):
        assert equal(trained, other)
    stopped(out / "stopped", 5)
    if is_first():
        shutil.copytree(out / "stopped", out / "left-behind")
    everyones(None)  # copied
    assert equal(train(out / "stopped"), trained)
    task, batches = few_step_task()
    fit(task, batches, folder=out / "few-step", description="few-step", ema_decay=0.9, stretches=1, sharded=True)
    if is_first():
        torch.save(trained, out / "trained.pt")
    check_parts(diffusion_task())
    for rows in (1, 4, 5):
        check_muon(rows)


def test_sharded_training_is_the_training_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses within 1e-4, as with copies; the same bits when resumed; one process can continue from a checkpoint."""
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: False)
    one, two = tmp_path / "one", tmp_path / "two"
    call_ranks(2, train_in_parts, two)
    alone = train(one / "sharded")  # has no effect
    trained = torch.load(two / "trained.pt", weights_only=True)
    for name, weights in alone.items():
        torch.testing.assert_close(trained[name], weights, rtol=0, atol=1e-5)
    task, batches = few_step_task()
    fit(task, batches, folder=one / "few-step", description="few-step", ema_decay=0.9, stretches=1)
    checkpoint = torch.load(two / "left-behind" / "training" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == alone.keys() and checkpoint["global_step"] == 4
    train(two / "left-behind")
    for some, others in (("sharded", "sharded"), ("few-step", "few-step"), ("sharded", "left-behind")):
        np.testing.assert_allclose(losses(two / others), losses(one / some), rtol=1e-4, err_msg=others)
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (one / "sharded", two / "sharded")]
    assert tables[0]["val_loss"].notna().sum() == 4
    np.testing.assert_allclose(*(table["val_loss"] for table in tables), rtol=1e-5)
    assert (two / "stopped" / "metrics.csv").read_bytes() == (two / "sharded" / "metrics.csv").read_bytes()


def base_task() -> DiffusionTask:
    """The generator of `size: base`, untrained."""
    config, options = load_config(overrides=["size=base"]), {"learning_rate": 1e-4, "steps": 1, "seed": 0}
    names = {"latent_channels": config.autoencoder.latent_channels, "space_to_depth": config.autoencoder.space_to_depth}
    first_stage = FirstStage.new(config.autoencoder.channels, **names)
    model = _untrained(first_stage, config, ["a", "b"], Sampling(), mpp=1.0)
    return DiffusionTask(model.unet, model.style_extractor, **options)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What is really held: a part that is a view of something whole would hold the whole."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def check_base() -> None:
    """Each rank holds half of either network, in memory too, and half of the gradients of a training step."""
    task = base_task()
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in task.named_children()}
    shard(task)
    parts = {name: [rows_here(p.detach()) for p in network.parameters()] for name, network in task.named_children()}
    assert set(parts) == {"unet", "style_extractor"} and sizes["unet"] > 5e7
    for name, rows in parts.items():
        held = everyones(sum(x.numel() for x in rows))
        assert sum(held) == sizes[name] and max(held) < 0.51 * sizes[name], (name, held)
        assert bytes_of(rows) < 0.52 * 4 * sizes[name], name
    z = torch.randn(1, task.unet.config["latent_channels"], 8, 8)
    layout = torch.zeros(1, *(8 * task.unet.config["factor"] for _ in range(2)), dtype=torch.long)
    style = {"style_images": torch.rand(1, 1, 3, *layout.shape[1:]), "style_latents": z[None]}
    given = torch.ones(1, dtype=torch.bool)
    batch = {"z": z, "layout": layout, "layout_given": given, "style_given": given, "style_layouts": layout[None]}
    task.training_step(batch | style, 0).backward()
    gradients = [rows_here(p.grad) for p in task.parameters() if p.grad is not None]
    assert sum(everyones(sum(x.numel() for x in gradients))) > 0.9 * sum(sizes.values())
    assert bytes_of(gradients) < 0.52 * 4 * sum(sizes.values())


def test_base_is_held_by_halves_on_two_ranks() -> None:
    """The networks of `size: base`, 60 million numbers: not only those of a smoke run are shared out evenly."""
    call_ranks(2, check_base)


def test_finished_stages_stay_when_they_were_trained_otherwise(tmp_path: Path) -> None:
    def fingerprints(sharded: str) -> dict[str, str]:
        overrides = ["size=smoke", "generate.generator=few-step", f"diffusion.sharded={sharded}"]
        config, found = load_config(overrides=overrides), {}
        for stage in stages_of(config, RunFolder(tmp_path)):
            found[stage.name] = fingerprint_of(stage, config, found)
        return found

    assert fingerprints("true") == fingerprints("false")
