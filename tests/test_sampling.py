"""Solvers against analytic solutions, guidance against its formula, one seed per image."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stedm.diffusion.sampling import SOLVERS, Branch, guidance_weights, guided, noise_from_seeds

ORDERS = {"euler": 1, "heun": 2, "multistep": 2}
NONE, LAYOUT, STYLE, BOTH = (False, False), (True, False), (False, True), (True, True)
DATA_STD = 0.4
scales = st.floats(-4, 8, allow_nan=False)


def gaussian_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The exact velocity when the data are N(0, DATA_STD^2); it carries noise e to DATA_STD e."""
    t = t.double()[:, None, None, None]
    variance = (1 - t) ** 2 * DATA_STD**2 + t**2
    return (t - (1 - t) * DATA_STD**2) / variance * x


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_an_order_to_be_held_to(name: str) -> None:
    assert name in ORDERS


@pytest.mark.parametrize("name", ORDERS)
def test_solver_converges_to_the_analytic_solution_with_its_order(name: str) -> None:
    e = noise_from_seeds(range(4), (2, 4, 4)).double()
    budgets = [32, 64, 128, 256]
    errors = [float((SOLVERS[name](gaussian_velocity, e, nfe) - DATA_STD * e).abs().max()) for nfe in budgets]
    assert errors == sorted(errors, reverse=True)
    order = math.log2(errors[-2] / errors[-1])
    assert abs(order - ORDERS[name]) < 0.15, errors


@pytest.mark.parametrize("name", ORDERS)
def test_second_order_beats_first_at_the_default_budget(name: str) -> None:
    e = noise_from_seeds(range(4), (2, 4, 4)).double()
    error = (SOLVERS[name](gaussian_velocity, e, 12) - DATA_STD * e).abs().max()
    first = (SOLVERS["euler"](gaussian_velocity, e, 12) - DATA_STD * e).abs().max()
    assert error <= first * (1.0 if name == "euler" else 0.5)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 8])
def test_straight_path_is_exact_in_any_number_of_steps(name: str, nfe: int) -> None:
    z, e = noise_from_seeds(range(3), (2, 4, 4)), noise_from_seeds(range(3, 6), (2, 4, 4))
    torch.testing.assert_close(SOLVERS[name](lambda z_t, t: e - z, e, nfe), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("nfe", range(1, 14))
def test_requested_steps_are_evaluated_steps(name: str, nfe: int) -> None:
    """The original asked for 128 steps and took 143."""
    times = []

    def velocity(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(t)
        return gaussian_velocity(z_t, t)

    SOLVERS[name](velocity, noise_from_seeds([0, 1], (1, 2, 2)), nfe)
    assert len(times) == nfe
    assert all(t.shape == (2,) and t[0] == t[1] for t in times)
    assert float(times[0][0]) == 1 and all(0 <= float(t[0]) <= 1 for t in times)
    assert [float(t[0]) for t in times] == sorted((float(t[0]) for t in times), reverse=True)


@pytest.mark.parametrize("name", ORDERS)
def test_solver_is_a_pure_function_of_the_row(name: str) -> None:
    e = noise_from_seeds([5, 6, 7], (2, 4, 4))
    together = SOLVERS[name](gaussian_velocity, e, 7)
    alone = torch.cat([SOLVERS[name](gaussian_velocity, e[k : k + 1], 7) for k in range(3)])
    assert torch.equal(together, alone)
    assert torch.equal(e, noise_from_seeds([5, 6, 7], (2, 4, 4)))


def test_noise_of_an_image_depends_on_its_seed_alone() -> None:
    batch = noise_from_seeds([3, 1, 2], (4, 8, 8))
    for position, seed in enumerate([3, 1, 2]):
        assert torch.equal(batch[position], noise_from_seeds([seed], (4, 8, 8))[0])
    assert not torch.equal(batch[0], batch[1])
    state = torch.get_rng_state()
    noise_from_seeds([0], (1,))
    assert torch.equal(state, torch.get_rng_state())


Velocities = Callable[[torch.Tensor, torch.Tensor, list[Branch]], torch.Tensor]


def branch_velocities(calls: list[list[Branch]] | None = None) -> Velocities:
    """Four fixed random fields, one per branch, linear in z_t."""
    fields = {branch: noise_from_seeds([10 + k], (2, 4, 4))[0] for k, branch in enumerate([NONE, LAYOUT, STYLE, BOTH])}

    def velocities(z_t: torch.Tensor, t: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
        if calls is not None:
            calls.append(branches)
        return torch.stack([z_t * fields[branch] + t[:, None, None, None] for branch in branches])

    return velocities


def ask(kind: str, w_l: float, w_s: float) -> torch.Tensor:
    weights = guidance_weights(kind, layout_guidance=w_l, style_guidance=w_s)
    return guided(branch_velocities(), weights)(noise_from_seeds([0, 1], (2, 4, 4)), torch.full((2,), 0.5))


def branch(which: Branch) -> torch.Tensor:
    return branch_velocities()(noise_from_seeds([0, 1], (2, 4, 4)), torch.full((2,), 0.5), [which])[0]


@given(w_l=scales, w_s=scales)
def test_nested_guidance_is_its_formula(w_l: float, w_s: float) -> None:
    expected = branch(NONE) + w_l * (branch(LAYOUT) - branch(NONE)) + w_s * (branch(BOTH) - branch(LAYOUT))
    torch.testing.assert_close(ask("nested", w_l, w_s), expected, atol=1e-4, rtol=1e-4)


@given(w_l=scales, w_s=scales)
def test_composed_guidance_is_its_formula(w_l: float, w_s: float) -> None:
    expected = branch(NONE) + w_l * (branch(LAYOUT) - branch(NONE)) + w_s * (branch(STYLE) - branch(NONE))
    torch.testing.assert_close(ask("composed", w_l, w_s), expected, atol=1e-4, rtol=1e-4)


def test_scale_one_is_the_conditional_model_exactly() -> None:
    assert torch.equal(ask("nested", 1, 1), branch(BOTH))
    assert torch.equal(ask("composed", 1, 0), branch(LAYOUT))
    assert torch.equal(ask("composed", 0, 1), branch(STYLE))


@pytest.mark.parametrize("kind", ["nested", "composed"])
def test_guidance_is_linear_in_each_scale(kind: str) -> None:
    for first, second, middle in (((0, 1.5), (4, 1.5), (2, 1.5)), ((1.5, 0), (1.5, 4), (1.5, 2))):
        torch.testing.assert_close(
            (ask(kind, *first) + ask(kind, *second)) / 2, ask(kind, *middle), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("kind", "w_l", "w_s", "has_layout", "has_style", "expected"),
    [
        ("nested", 1, 1, True, True, {BOTH}),
        ("nested", 1.5, 1.5, True, True, {NONE, BOTH}),
        ("nested", 2, 1, True, True, {NONE, LAYOUT, BOTH}),
        ("nested", 1, 2, True, True, {LAYOUT, BOTH}),
        ("nested", 0, 0, True, True, {NONE}),
        ("nested", 2, 3, True, False, {NONE, LAYOUT}),
        ("nested", 2, 3, False, True, {NONE, STYLE}),
        ("nested", 2, 3, False, False, {NONE}),
        ("composed", 1.5, 1.5, True, True, {NONE, LAYOUT, STYLE}),
        ("composed", 0.5, 0.5, True, True, {LAYOUT, STYLE}),
        ("composed", 2, 3, True, False, {NONE, LAYOUT}),
        ("composed", 1, 3, True, False, {LAYOUT}),
        ("composed", 2, 3, False, False, {NONE}),
    ],
)
def test_no_branch_is_evaluated_needlessly(
    kind: str, w_l: float, w_s: float, has_layout: bool, has_style: bool, expected: set[Branch]
) -> None:
    weights = guidance_weights(
        kind, layout_guidance=w_l, style_guidance=w_s, has_layout=has_layout, has_style=has_style
    )
    assert set(weights) == expected
    calls: list[list[Branch]] = []
    guided(branch_velocities(calls), weights)(noise_from_seeds([0], (2, 4, 4)), torch.ones(1))
    assert len(calls) == 1 and set(calls[0]) == expected and len(calls[0]) == len(expected)


@given(kind=st.sampled_from(["nested", "composed"]), w_l=scales, w_s=scales, layout=st.booleans(), style=st.booleans())
def test_weights_sum_to_one_and_ask_only_for_what_is_there(
    kind: str, w_l: float, w_s: float, layout: bool, style: bool
) -> None:
    weights = guidance_weights(kind, layout_guidance=w_l, style_guidance=w_s, has_layout=layout, has_style=style)
    assert math.isclose(sum(weights.values()), 1, abs_tol=1e-6)
    assert all((layout or not branch[0]) and (style or not branch[1]) for branch in weights)


def test_conditions_that_are_missing_fold_into_the_branch_without_them() -> None:
    nested = guidance_weights("nested", layout_guidance=3, style_guidance=2, has_layout=False)
    assert nested == pytest.approx({NONE: -1, STYLE: 2})


def test_unknown_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="nested or composed"):
        guidance_weights("rescaled", layout_guidance=1, style_guidance=1)
