"""The few-step generator: pairs of noise and image, the task on them, and the stage in a run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stedm.config_file import load_config
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampling import Sampling, euler, noise_from_seeds
from stedm.errors import UserError
from stedm.graph import stages_of
from stedm.run import run_all
from stedm.stages.grids import sampling_of
from stedm.stages.run_folder import RunFolder
from stedm.training.augment import dihedral
from stedm.training.batches import PairBatches
from stedm.training.tasks import FewStepTask

SCALE = 0.5


def pairs(n: int = 64) -> dict[str, Tensor]:
    """Noise and the latent a linear teacher makes of it: z = e / 2."""
    seeds = torch.arange(n)
    return {
        "seeds": seeds,
        "z": SCALE * noise_from_seeds(seeds.tolist(), (2, 4, 4)),
        "layout": torch.arange(16, dtype=torch.uint8).view(1, 4, 4).repeat(n, 1, 1),
        "style": torch.zeros(n, 3),
    }


def test_noise_latent_and_layout_of_a_pair_turn_together() -> None:
    batches = PairBatches(pairs(), batch_size=8, seed=0)
    layout = pairs()["layout"][0]
    codes = set()
    for step in range(30):
        batch = batches(step)
        torch.testing.assert_close(batch["z"], SCALE * batch["e"])
        found = [code for code in range(8) if torch.equal(dihedral(layout, code), batch["layout"][0])]
        assert len(found) == 1
        codes.update(found)
    assert codes == set(range(8))


def test_a_batch_depends_on_the_step_alone() -> None:
    first, second = (PairBatches(pairs(), batch_size=4, seed=3) for _ in range(2))
    first(0)
    for name, value in second(7).items():
        assert torch.equal(first(7)[name], value)


class LinearNet(nn.Module):
    """v = gain(t) e-like: the velocity of pairs z = e / 2 is v = e / 2 = z_t / (1 + t)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Linear(3, 1)

    def forward(self, z_t: Tensor, t: Tensor, *, layout_given: Tensor, style_given: Tensor, **_: Any) -> Tensor:
        assert layout_given.all() and style_given.all()
        features = torch.stack([t, t.square(), t.pow(3)], 1)
        return z_t * self.gain(features)[:, :, None, None]


def test_trained_on_pairs_one_step_gives_the_teachers_latent() -> None:
    """Straight pairs leave one evaluation nothing to lose."""
    torch.manual_seed(0)
    task = FewStepTask(LinearNet(), learning_rate=0.1, steps=1500, seed=0)  # type: ignore[arg-type]
    batches = PairBatches(pairs(), batch_size=32, seed=0)
    optimiser = torch.optim.Adam(task.parameters(), lr=0.1)
    for step in range(1500):
        torch.manual_seed(step)
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 1500)
        loss = task.training_step(batches(step), 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    e = noise_from_seeds([100, 101], (2, 4, 4))
    given = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        z = euler(lambda z_t, t: task.unet(z_t, t, layout_given=given, style_given=given), e, 1)
    torch.testing.assert_close(z, SCALE * e, atol=0.05, rtol=0)


def test_few_step_is_a_stage_only_when_asked_for(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    full = {s.name: s for s in stages_of(load_config(overrides=["size=smoke"]), run)}
    few = {s.name: s for s in stages_of(load_config(overrides=["size=smoke", "generate.generator=few-step"]), run)}
    assert set(few) - set(full) == {"few-step"}
    assert full["generate"].needs[0] == "diffusion" and few["generate"].needs[0] == "few-step"
    assert full["generate"].needs[1:] == few["generate"].needs[1:] == few["few-step"].needs[1:]  # who reads layouts


def test_training_it_without_asking_for_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generate\.generator"):
        run_all(load_config(overrides=["size=smoke"]), tmp_path / "run", until="few-step")
    assert not (tmp_path / "run").exists()


def test_guidance_is_not_applied_a_second_time() -> None:
    """What `generate` gives guides the pairs; the generator that learned from them keeps its own scales of 1."""
    student = SimpleNamespace(sampling=Sampling(layout_guidance=1.0, style_guidance=1.0))
    given = ["size=smoke", "generate.layout_guidance=2", "generate.style_guidance=3", "generate.nfe=2"]
    found = {
        kind: sampling_of(cast(StyleDiffusion, student), load_config(overrides=[*given, f"generate.generator={kind}"]))
        for kind in ("full", "few-step")
    }
    assert (found["full"].layout_guidance, found["full"].style_guidance, found["full"].nfe) == (2, 3, 2)
    assert (found["few-step"].layout_guidance, found["few-step"].style_guidance, found["few-step"].nfe) == (1, 1, 2)


@pytest.mark.parametrize("wrong", [{"solver": "rk4"}, {"nfe": 0}])
def test_sampling_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_the_stage_writes_a_generator_with_its_own_settings(tmp_path: Path) -> None:
    options = ["size=smoke", "generate.generator=few-step", "few_step.nfe=2", "cohort.phantom.slide_px=64"]
    options += ["generate.images=6", "diffusion.annotated_only_control=false"]
    out = run_all(load_config(overrides=options), tmp_path / "run", until="generate")
    index = json.loads((out / "few_step" / "model_index.json").read_text())
    assert index["sampling"] == {
        "solver": "euler",
        "nfe": 2,
        "guidance": "nested",
        "layout_guidance": 1.0,
        "style_guidance": 1.0,
        "grain": 1.0,
        "bands": 0.6,
    }
    assert len(list((out / "synthetic" / "images").glob("*.png"))) == 6
    assert (out / "few_step" / "samples" / "style_by_layout.png").is_file()
    assert not (out / "few_step" / "training").exists()
