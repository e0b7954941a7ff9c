"""Flow matching against what can be computed by hand: the straight path, Gaussian data, logit-normal times."""

import torch

from stedm.diffusion.flow import flow_matching_loss, interpolate, sample_times

SHAPE = (4, 3, 5, 7)


def pair(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_path_starts_at_data_and_ends_in_pure_noise() -> None:
    z, e = pair()
    assert torch.equal(interpolate(z, e, torch.zeros(4)), z)
    assert torch.equal(interpolate(z, e, torch.ones(4)), e)


def test_velocity_is_the_derivative_of_the_path() -> None:
    z, e = (x.double() for x in pair())
    t = torch.tensor([0.1, 0.3, 0.5, 0.8], dtype=torch.float64)
    slope = (interpolate(z, e, t + 1e-5) - interpolate(z, e, t - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, e - z, atol=1e-8, rtol=0)


def test_every_sample_has_its_own_time() -> None:
    z, e = pair()
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    mixed = interpolate(z, e, t)
    for k in range(4):
        torch.testing.assert_close(mixed[k], (1 - t[k]) * z[k] + t[k] * e[k])


def test_true_velocity_has_no_loss_and_a_constant_error_its_square() -> None:
    z, e = pair()
    t = torch.full((4,), 0.4)
    assert flow_matching_loss(lambda z_t, t: e - z, z, t=t, e=e) == 0
    torch.testing.assert_close(flow_matching_loss(lambda z_t, t: e - z + 0.5, z, t=t, e=e), torch.tensor(0.25))


def test_network_is_asked_at_the_noisy_latent_and_its_time() -> None:
    z, e = pair()
    t = torch.tensor([0.1, 0.2, 0.3, 0.4])
    asked = []
    flow_matching_loss(lambda z_t, time: asked.append((z_t, time)) or e, z, t=t, e=e)
    assert torch.equal(asked[0][0], interpolate(z, e, t)) and torch.equal(asked[0][1], t)


def test_best_velocity_for_gaussian_data_leaves_the_closed_form_loss() -> None:
    """z ~ N(0, s^2): v*(x, t) = (t - (1-t) s^2) / var_t x, var_t = (1-t)^2 s^2 + t^2; the loss left is s^2 / var_t."""
    s, t = 0.6, 0.3
    z, e = pair(1, (256, 4, 16, 16))
    var_t = (1 - t) ** 2 * s**2 + t**2
    slope = (t - (1 - t) * s**2) / var_t
    times = torch.full((256,), t)
    best = flow_matching_loss(lambda z_t, _: slope * z_t, s * z, t=times, e=e)
    torch.testing.assert_close(best, torch.tensor(s**2 / var_t), rtol=0.01, atol=0)
    for other in (slope - 0.1, slope + 0.1):
        assert flow_matching_loss(lambda z_t, _, a=other: a * z_t, s * z, t=times, e=e) > best


def test_times_are_logit_normal_and_reproducible() -> None:
    t = sample_times(20_000, generator=torch.Generator().manual_seed(0))
    assert ((t > 0) & (t < 1)).all()
    logits = torch.logit(t.double())
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03
    assert torch.equal(t, sample_times(20_000, generator=torch.Generator().manual_seed(0)))
