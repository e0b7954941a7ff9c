"""The optimiser: orthogonal steps for matrices, AdamW's for vectors."""

import copy

import pytest
import torch
from torch import nn

from stedm.training.muon import Muon, orthogonalise

OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99)}


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 72), (2, 72, 16), (1, 1, 5)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(1.0, 0.3, u.shape[-1])
    result = orthogonalise(u * values @ v)
    diagonal = u.mT @ result @ v.mT
    assert torch.allclose(diagonal, torch.diag_embed(diagonal.diagonal(dim1=-2, dim2=-1)), atol=1e-4)
    after = diagonal.diagonal(dim1=-2, dim2=-1)
    assert after.min() > 0.5
    assert after.max() < 1.3


def test_the_size_of_the_gradient_does_not_matter() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 6, 10)
    assert torch.allclose(orthogonalise(matrices), orthogonalise(1e-3 * matrices), atol=1e-5)
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 5))


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimiser.zero_grad()
        model(torch.randn(4, 3, 6, 6)).square().sum().backward()
        optimiser.step()


def test_vectors_take_adamw_s_step_and_matrices_one_of_its_usual_size() -> None:
    ours, plain = network(), network()
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    train(ours, Muon(ours.parameters(), **OPTIONS, fused=True), range(1))
    train(plain, torch.optim.AdamW(plain.parameters(), **OPTIONS, fused=True), range(1))
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if p.ndim == 1:
            assert torch.equal(p, q), name
        else:
            rms = (p - before[name] * (1 - 1e-3)).detach().square().mean().sqrt()
            assert 0.1e-2 < rms < 0.3e-2, name  # AdamW's updates have a root mean square of 0.2 to 0.4 of the rate


def test_a_restored_state_goes_on_as_if_nothing_had_happened() -> None:
    straight, broken = network(), network()
    optimiser = Muon(straight.parameters(), **OPTIONS)
    train(straight, optimiser, range(6))
    first = Muon(broken.parameters(), **OPTIONS)
    train(broken, first, range(3))
    state = copy.deepcopy(first.state_dict())
    second = Muon(broken.parameters(), **OPTIONS)
    second.load_state_dict(state)
    train(broken, second, range(3, 6))
    for p, q in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(p, q)


def test_gradients_survive_the_step_and_parameters_without_one_stay() -> None:
    model = network()
    optimiser = Muon(model.parameters(), **OPTIONS)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(model, optimiser, range(2))
    assert torch.equal(model[0].weight, before)
    assert model[3].weight.grad is not None
