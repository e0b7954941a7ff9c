"""Is a condition used? Velocities that are known to use it, or not, must be told apart."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stedm.diffusion.validation import (
    LEAST_GAIN,
    ConditionalVelocity,
    Validation,
    ValidationBatch,
    other_patient_rows,
    other_rows,
    validate,
)

N = 24
PATIENTS = [f"p{k // 4}" for k in range(N)]
STYLE = torch.arange(6.0).repeat_interleave(4)[:, None] - 2.5  # (n, 1), a value a patient
LAYOUT = (torch.rand(N, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5).long()


def batch(patients: list[str] = PATIENTS) -> ValidationBatch:
    """Latents that are the style plus the layout; constant within a patch but for the layout."""
    n = len(patients)
    generator = torch.Generator().manual_seed(0)
    z = STYLE[:n, :, None, None] + LAYOUT[:n, None].float()
    e = torch.randn(n, 1, 8, 8, generator=generator)
    return ValidationBatch(z, e, LAYOUT[:n], other_rows(n), other_patient_rows(patients))


def velocity(*, uses_style: bool, uses_layout: bool) -> ConditionalVelocity:
    """v = (z_t - z') / t for the z' that the conditions promise: exact when both are used and right."""

    def v(z_t: Tensor, t: Tensor, layout: Tensor | None, style: Tensor | None) -> Tensor:
        z = torch.zeros_like(z_t)
        if uses_style and style is not None:
            z = z + style[:, :, None, None]
        z = z + (layout[:, None].float() if uses_layout and layout is not None else 0.5)
        return (z_t - z) / t[:, None, None, None] + 0.1

    return v


@pytest.mark.parametrize(
    ("uses_style", "uses_layout", "ignored"),
    [(True, True, ()), (False, True, ("style",)), (True, False, ("layout",)), (False, False, ("style", "layout"))],
)
def test_ignored_conditions_are_found_and_no_others(
    uses_style: bool, uses_layout: bool, ignored: tuple[str, ...]
) -> None:
    found = validate(velocity(uses_style=uses_style, uses_layout=uses_layout), batch(), style=STYLE)
    assert found.ignored == ignored
    for name, used in (("style", uses_style), ("layout", uses_layout)):
        gain, error = getattr(found, f"{name}_gain"), getattr(found, f"{name}_gain_se")
        assert gain > 2 * error > 0 if used else gain == error == 0


def test_losses_are_those_of_the_definition() -> None:
    """With every condition right, v is the truth + 0.1; a style off by d adds (d / t) twice in the same square."""
    found = validate(velocity(uses_style=True, uses_layout=True), batch(), style=STYLE, times=[0.5])
    assert found.loss == pytest.approx(0.01, rel=1e-3)
    off = STYLE[other_patient_rows(PATIENTS)] - STYLE
    assert found.loss_other_style == pytest.approx((0.1 - off / 0.5).square().mean().item(), rel=1e-3)
    assert found.style_gain == pytest.approx(found.loss_other_style / found.loss - 1)
    assert found.layout_gain == pytest.approx(found.loss_other_layout / found.loss - 1)
    assert found.loss_null > found.loss


def test_standard_error_is_the_one_seen_over_repetitions() -> None:
    """A velocity that is worse by noise under the wrong style: its gains scatter by the standard error it is given."""
    generator = torch.Generator().manual_seed(0)

    def noisy(z_t: Tensor, t: Tensor, layout: Tensor | None, style: Tensor | None) -> Tensor:
        size = 1 + torch.rand(len(z_t), 1, 1, 1, generator=generator)
        return velocity(uses_style=False, uses_layout=True)(z_t, t, layout, style) + size

    found = [validate(noisy, batch(), style=STYLE, times=[0.5]) for _ in range(300)]
    scatter = torch.tensor([one.style_gain for one in found]).std().item()
    assert scatter == pytest.approx(sum(one.style_gain_se for one in found) / 300, rel=0.25)
    false_alarms = [one for one in found if "style" not in one.ignored]
    assert len(false_alarms) < 0.06 * 300


@pytest.mark.parametrize("patients", [PATIENTS, ["a", "b"], ["a", "a", "a", "b"], ["a", "b", "b", "c", "a"]])
def test_exchanged_style_is_another_patients_and_exchanged_layout_another_images(patients: list[str]) -> None:
    styles = other_patient_rows(patients).tolist()
    assert [i for i, other in enumerate(styles) if patients[i] == patients[other]] == []
    layouts = other_rows(len(patients)).tolist()
    assert sorted(layouts) == list(range(len(patients))) and all(i != other for i, other in enumerate(layouts))


def test_styles_are_lent_by_all_other_patients_in_turn() -> None:
    lenders = {
        PATIENTS[i] for i, patient in zip(other_patient_rows(PATIENTS), PATIENTS, strict=True) if patient == "p0"
    }
    assert len(lenders) == 4


@pytest.mark.parametrize(("patients", "layout_known"), [(["a"], False), (["a", "a", "a"], True)])
def test_what_cannot_be_exchanged_is_not_called_ignored(patients: list[str], layout_known: bool) -> None:
    found: Validation = validate(
        velocity(uses_style=True, uses_layout=True), batch(patients), style=STYLE[: len(patients)]
    )
    assert math.isnan(found.style_gain) and math.isnan(found.style_gain_se) and found.ignored == ()
    assert math.isnan(found.layout_gain) != layout_known and math.isfinite(found.loss)


def test_a_steady_gain_that_is_next_to_nothing_counts_as_ignored() -> None:
    used, unused = (velocity(uses_style=uses_style, uses_layout=True) for uses_style in (True, False))

    def hardly(*given: Any) -> Tensor:
        return torch.lerp(unused(*given), used(*given), 0.0005)

    found = validate(hardly, batch(), style=STYLE)
    assert 2 * found.style_gain_se < found.style_gain < LEAST_GAIN and found.ignored == ("style",)
