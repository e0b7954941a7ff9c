"""Solvers as pure functions of a velocity, guidance as a linear combination of branches, one seed per image."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stedm.diffusion.flow import Velocity

MOST_NFE = 1000
GUIDANCES = ("nested", "composed")
Solver = Callable[[Velocity, Tensor, int], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled; its own settings travel in the model folder."""

    solver: str = "multistep"
    """`euler`, `heun` or `multistep`."""
    nfe: int = 4
    """Network function evaluations per image and guidance branch."""
    guidance: str = "nested"
    """`nested` or `composed`, see `guidance_weights`."""
    layout_guidance: float = 1.0
    """Layout guidance scale; 1 means none."""
    style_guidance: float = 1.5
    """Style guidance scale; 1 means none."""
    grain: float = 1.0
    """How much of the scanner's noise that the style set shows is added (see diffusion/grain.py); 0 adds none."""
    bands: float = 0.6
    """How far, 0 to 1, the octaves' colours are moved to those of the style set (see diffusion/bands.py)."""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver {self.solver!r}: use {', '.join(SOLVERS)}")
        if self.guidance not in GUIDANCES:
            raise ValueError(f"guidance {self.guidance!r}: use {' or '.join(GUIDANCES)}")
        if not 1 <= self.nfe <= MOST_NFE:
            raise ValueError(f"nfe {self.nfe}: use 1 to {MOST_NFE}")
        for name in ("layout_guidance", "style_guidance", "grain"):
            if not abs(getattr(self, name)) <= MOST_NFE:
                raise ValueError(f"{name} {getattr(self, name)}: use a number near 1")
        if not 0 <= self.bands <= 1:
            raise ValueError(f"bands {self.bands}: use a number from 0 to 1")


Branch = tuple[bool, bool]
"""(layout given, style given): one of the four ways the network can be asked."""


def noise_from_seeds(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """e ~ N(0, I), (len(seeds), *shape): image k depends on seeds[k] alone, whatever the batch around it.

    Drawn on the CPU, the same for every device, and by all of its threads: a GPU would have to wait for one.
    """

    def noise(seed: int) -> Tensor:
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(seed)))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return torch.stack(list(pool.map(noise, seeds)))


def _times(steps: int) -> list[float]:
    return [1 - k / steps for k in range(steps + 1)]


def _at(time: float, z: Tensor) -> Tensor:
    return torch.full((len(z),), time, device=z.device)


def euler(velocity: Velocity, z: Tensor, nfe: int) -> Tensor:
    """First order: from noise z (B, C, h, w) at t = 1 to data at t = 0 in `nfe` evaluations."""
    times = _times(nfe)
    for t, t_next in pairwise(times):
        z = z + (t_next - t) * velocity(z, _at(t, z))
    return z


def heun(velocity: Velocity, z: Tensor, nfe: int) -> Tensor:
    """Second order, two evaluations a step; an odd `nfe` spends its last evaluation on an Euler step."""
    times = _times((nfe + 1) // 2)
    for t, t_next in pairwise(times):
        v = velocity(z, _at(t, z))
        z_next = z + (t_next - t) * v
        if t_next > 0 or nfe % 2 == 0:
            z_next = z + (t_next - t) * (v + velocity(z_next, _at(t_next, z))) / 2
        z = z_next
    return z


def multistep(velocity: Velocity, z: Tensor, nfe: int) -> Tensor:
    """Second order, one evaluation a step (Adams-Bashforth 2, equal steps; the first step is Euler's)."""
    times, previous = _times(nfe), None
    for t, t_next in pairwise(times):
        v = velocity(z, _at(t, z))
        z = z + (t_next - t) * (v if previous is None else 1.5 * v - 0.5 * previous)
        previous = v
    return z


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "multistep": multistep}


def guidance_weights(
    kind: str, *, layout_guidance: float, style_guidance: float, has_layout: bool = True, has_style: bool = True
) -> dict[Branch, float]:
    """The branches to evaluate and the weight of each; weights sum to 1, branches of weight 0 are left out.

    nested:   v(0,0) + w_l [v(l,0) - v(0,0)] + w_s [v(l,s) - v(l,0)]     (Brooks 2023, eq. 3)
    composed: v(0,0) + w_l [v(l,0) - v(0,0)] + w_s [v(0,s) - v(0,0)]     (Liu 2022, eq. 11)

    Scales of 1 give v(l,s) alone when nested. A condition that is not there (`has_*` False) folds its branch into the
    one without it, so that nothing is evaluated twice.
    """
    w_l, w_s = layout_guidance, style_guidance
    if kind == "nested":
        terms = [((False, False), 1 - w_l), ((True, False), w_l - w_s), ((True, True), w_s)]
    elif kind == "composed":
        terms = [((False, False), 1 - w_l - w_s), ((True, False), w_l), ((False, True), w_s)]
    else:
        raise ValueError(f"guidance {kind!r}: use {' or '.join(GUIDANCES)}")
    weights: dict[Branch, float] = {}
    for (layout, style), weight in terms:
        branch = (layout and has_layout, style and has_style)
        weights[branch] = weights.get(branch, 0.0) + weight
    return {branch: weight for branch, weight in weights.items() if abs(weight) > 1e-9}


def guided(velocities: Callable[[Tensor, Tensor, list[Branch]], Tensor], weights: dict[Branch, float]) -> Velocity:
    """The guided velocity: all branches in ONE call of `velocities(z_t, t, branches) -> (K, B, C, h, w)`."""
    branches = list(weights)

    def velocity(z_t: Tensor, t: Tensor) -> Tensor:
        v = velocities(z_t, t, branches)  # (K, B, C, h, w)
        return sum(weights[branch] * v[k] for k, branch in enumerate(branches))  # type: ignore[return-value]

    return velocity
