"""Two processes: every style set, aggregation and injection trains, and both processes hold the same weights."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_training import COMBINATIONS, diffusion_batches, diffusion_task
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stedm.models.style import StyleExtractor
from stedm.training.tasks import Batch, DiffusionTask
from stedm.training.trainer import _has_backbone


class _Loss(nn.Module):
    """A task whose forward is its training step: what Lightning makes of it under DDP."""

    def __init__(self, task: DiffusionTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.training_step(batch, 0)


def _train_all(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    weights = {}
    for style_set, aggregation, injection in COMBINATIONS:
        task = diffusion_task(aggregation=aggregation, injection=injection)
        batches = diffusion_batches(style_set, layout_dropout=0.5, style_dropout=0.5)
        optimiser = task.configure_optimizers()["optimizer"]
        model = DistributedDataParallel(_Loss(task))  # a parameter without a gradient would stop the second step
        for step in range(2):
            optimiser.zero_grad()
            model(batches(2 * step + rank)).backward()
            optimiser.step()
        weights[style_set, aggregation, injection] = task.state_dict()
    torch.save(weights, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_every_combination_trains_in_two_processes(tmp_path: Path) -> None:
    """In the original `none` and the set transformer cannot train under DDP."""
    mp.spawn(_train_all, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert set(first) == set(second) == set(COMBINATIONS)
    for combination, weights in first.items():
        task = diffusion_task(aggregation=combination[1], injection=combination[2])
        for name, start in task.state_dict().items():
            assert torch.equal(weights[name], second[combination][name]), (combination, name)
            assert not torch.equal(weights[name], start), (combination, name)


def _train_backbone(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    task = diffusion_task()
    task.style_extractor = StyleExtractor(dim=8, set_size=2, latent_channels=4, regions=1, encoder="test_convnext")
    model = DistributedDataParallel(task.style_extractor, find_unused_parameters=_has_backbone(task))
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        images, latents = (torch.rand(1, 2, *shape, generator=generator) for shape in ((3, 32, 32), (4, 8, 8)))
        model(images, latents).sum().backward()
    dist.destroy_process_group()


def test_a_backbone_with_layers_that_its_features_skip_trains_in_two_processes(tmp_path: Path) -> None:
    mp.spawn(_train_backbone, args=(str(tmp_path),), nprocs=2)
    assert not _has_backbone(diffusion_task())
