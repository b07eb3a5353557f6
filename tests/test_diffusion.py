"""The forward process against sums of its steps, its posterior against Bayes' rule, conversions there and back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smlmtut.diffusion.process import (
    KINDS,
    denoising_loss,
    loss_weight,
    q_posterior,
    q_sample,
    q_step,
    target,
    to_noise,
    to_x0,
)
from smlmtut.diffusion.schedule import NoiseSchedule, log_snr

COSINE = NoiseSchedule.cosine(100)
kinds = pytest.mark.parametrize("kind", KINDS)


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(batch, seed=0):
    return COSINE.draw_gamma(batch, torch.Generator().manual_seed(seed))


def test_steps_add_up_to_the_jump():
    """Row k has noise in step k alone, the last row none: y_T is linear in y_0 and in each step's noise."""
    steps = COSINE.steps
    y = torch.ones(steps + 1, dtype=torch.float64)
    y[:steps] = 0  # rows of noise start from no signal
    for t in range(steps):
        noise = torch.zeros_like(y)
        noise[t] = 1
        y = q_step(y, COSINE.betas[t].expand(steps + 1), noise)
        gamma = COSINE.gammas[t + 1]
        assert y[-1].item() == pytest.approx(gamma.sqrt().item(), rel=1e-12)
        assert y[:-1].square().sum().item() == pytest.approx(1 - gamma.item(), rel=1e-12)
    jump = q_sample(torch.ones(1).double(), COSINE.gammas[-1:], torch.zeros(1).double())
    torch.testing.assert_close(y[-1:], jump, rtol=1e-12, atol=0)


@given(st.floats(0.01, 0.98), st.floats(0.05, 0.95), st.floats(-2, 2), st.floats(-3, 3))
def test_posterior_is_bayes_rule_on_a_grid(gamma, kept, y0, y_t):
    """q(y_{t−1} | y_t, y_0) ∝ q(y_t | y_{t−1}) q(y_{t−1} | y_0), normalized by sums over y_{t−1}."""
    before = gamma + (0.999 - gamma) * kept
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    alpha = gamma / before
    log = -((y_t - math.sqrt(alpha) * grid) ** 2) / (2 * (1 - alpha)) - (grid - math.sqrt(before) * y0) ** 2 / (
        2 * (1 - before)
    )
    weight = (log - log.max()).exp()
    mean = (weight * grid).sum() / weight.sum()
    variance = (weight * (grid - mean) ** 2).sum() / weight.sum()
    row = [torch.tensor([x], dtype=torch.float64) for x in (y0, y_t, gamma, before)]
    found_mean, found_variance = q_posterior(*row)
    # sums over an even grid are exact for a Gaussian that is many steps wide; here sd ≥ .02, 150 steps
    assert found_mean.item() == pytest.approx(mean.item(), abs=1e-9)
    assert found_variance.item() == pytest.approx(variance.item(), rel=1e-7)


def test_posterior_has_the_schedules_variance_and_ends_in_y0():
    y0, y_t = images(100, 2), images(100, 2, seed=1)
    mean, variance = q_posterior(y0, y_t, COSINE.gammas[1:], COSINE.gammas[:-1])
    torch.testing.assert_close(variance[:, 0], COSINE.posterior_variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(mean[0], y0[0], rtol=1e-14, atol=0)


@kinds
@given(st.lists(st.integers(1, 4), min_size=0, max_size=4), st.integers(0, 1000))
def test_outputs_are_one_another_for_images_of_any_rank(kind, shape, seed):
    y0, noise, gamma = images(5, *shape, seed=seed), images(5, *shape, seed=seed + 1), levels(5, seed)
    y_t, output = q_sample(y0, gamma, noise), target(kind, y0, noise, gamma)
    # "noise" divides by √γ ≥ 4.9e-4 and "x0" by √(1 − γ) ≥ 1e-4 here: a rounding grows as much, some 1e-12
    torch.testing.assert_close(to_x0(kind, output, y_t, gamma), y0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_noise(kind, output, y_t, gamma), noise, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        q_sample(to_x0(kind, output, y_t, gamma), gamma, to_noise(kind, output, y_t, gamma)), y_t, rtol=1e-9, atol=1e-9
    )


def test_v_and_the_noisy_image_are_a_rotation_of_image_and_noise():
    y0, noise, gamma = images(64, 3), images(64, 3, seed=1), levels(64)
    y_t, v = q_sample(y0, gamma, noise), target("v", y0, noise, gamma)
    torch.testing.assert_close(y_t**2 + v**2, y0**2 + noise**2, rtol=1e-12, atol=1e-12)
    assert target("v", y0, noise, torch.ones(64).double()).equal(noise)  # no noise in y_t: v is the noise
    assert target("v", y0, noise, torch.zeros(64).double()).equal(-y0)  # no signal: v is −y_0


@kinds
def test_float32_images_stay_float32(kind):
    y0, noise, gamma = images(3, 2).float(), images(3, 2, seed=1).float(), levels(3)
    y_t = q_sample(y0, gamma, noise)
    for found in (y_t, target(kind, y0, noise, gamma), to_x0(kind, noise, y_t, gamma), *q_posterior(
        y0, y_t, gamma, torch.ones(3).double()
    )):  # fmt: skip
        assert found.dtype == torch.float32
    # noise of variance 1 − γ = 1e-9 is not lost, as it would be in a float32 γ
    barely = torch.full((3,), 1 - 1e-9, dtype=torch.float64)
    torch.testing.assert_close(q_sample(0 * y0, barely, noise), noise * 1e-9**0.5, rtol=1e-6, atol=0)


@kinds
def test_loss_is_the_double_mean_written_out(kind):
    y0, noise, gamma = images(4, 1, 3, 2), images(4, 1, 3, 2, seed=1), levels(4)
    output = images(4, 1, 3, 2, seed=2)
    wanted = 0.0
    for b in range(4):
        signal, spread = math.sqrt(gamma[b]), math.sqrt(1 - gamma[b])
        aim = {"noise": noise[b], "x0": y0[b], "v": signal * noise[b] - spread * y0[b]}[kind]
        wanted += float(((output[b] - aim) ** 2).sum()) / 6 / 4
    assert denoising_loss(kind, output, y0, noise, gamma).item() == pytest.approx(wanted, rel=1e-12)
    # one number a row is an image of rank 0
    out, image, eps = (x[:, :, 0, 0] for x in (output, y0, noise))  # (4, 1)
    flat = denoising_loss(kind, out[:, 0], image[:, 0], eps[:, 0], gamma)
    assert flat.item() == denoising_loss(kind, out, image, eps, gamma).item()


def test_min_snr_loss_is_the_same_whatever_the_network_predicts():
    y0, noise, gamma = images(64, 5), images(64, 5, seed=1), levels(64)
    y_t, estimate = q_sample(y0, gamma, noise), images(64, 5, seed=2)
    outputs = {
        "x0": estimate,
        "noise": to_noise("x0", estimate, y_t, gamma),
        "v": target("v", estimate, to_noise("x0", estimate, y_t, gamma), gamma),
    }
    snr = gamma / (1 - gamma)
    wanted = (snr.clamp(max=5) * (estimate - y0).square().mean(1)).mean().item()
    for kind, output in outputs.items():
        found = denoising_loss(kind, output, y0, noise, gamma, "min-snr").item()
        assert found == pytest.approx(wanted, rel=1e-9), kind  # divisions by √(1 − γ), as above
    # at an SNR of 0.5 and of 20, by hand
    for kind, low, high in (("x0", 0.5, 5.0), ("noise", 1.0, 5 / 20), ("v", 0.5 / 1.5, 5 / 21)):
        found = loss_weight(kind, torch.tensor([0.5, 20.0]).log(), "min-snr")
        torch.testing.assert_close(found, torch.tensor([low, high]))


def test_weight_can_be_any_function_of_the_log_snr():
    y0, noise, gamma = images(8, 2), images(8, 2, seed=1), levels(8)
    rows = (0 * y0 - noise).square().mean(1)
    found = denoising_loss("noise", 0 * y0, y0, noise, gamma, lambda level: level.square())
    assert found.item() == pytest.approx((log_snr(gamma).square() * rows).mean().item(), rel=1e-12)


def test_gradient_of_the_loss_is_that_of_a_mean_of_squares():
    y0, noise, gamma = images(4, 3), images(4, 3, seed=1), levels(4)
    output = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    denoising_loss("noise", output, y0, noise, gamma).backward()
    torch.testing.assert_close(output.grad, -2 * noise / 12, rtol=1e-12, atol=0)


Y, E, G = images(3, 2), images(3, 2, seed=1), levels(3)


def at(value):
    return torch.full((3,), value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: q_sample(Y, G[:2], E), ("gamma", "(3,)", "(2,)")),
        (lambda: q_sample(Y, G[:, None], E), ("gamma", "dimensions")),
        (lambda: q_sample(Y, at(1.5), E), ("gamma", "1.5")),
        (lambda: q_sample(Y, at(math.nan), E), ("gamma", "nan")),
        (lambda: q_sample(Y, G, E[:, :1]), ("shape", "(3, 2)", "(3, 1)")),
        (lambda: q_step(Y, at(-0.1), E), ("beta", "-0.1")),
        (lambda: q_posterior(Y, E, at(0.5), at(0.5)), ("gamma", "below gamma_before")),
        (lambda: q_posterior(Y, E, at(0.5), at(1.5)), ("gamma_before", "1.5")),
        (lambda: target("epsilon", Y, E, G), ("kind", "'epsilon'")),
        (lambda: to_x0("y0", Y, E, G), ("kind", "'y0'")),
        (lambda: to_noise("y0", Y, E, G), ("kind", "'y0'")),
        (lambda: to_x0("noise", Y, E, at(0.0)), ("gamma", "0")),
        (lambda: to_noise("x0", Y, E, at(1.0)), ("gamma", "1")),
        (lambda: denoising_loss("v", Y, Y, E, G, "snr"), ("weight", "'snr'")),
        (lambda: denoising_loss("v", Y[:, :1], Y, E, G), ("shape", "(3, 1)")),
        (lambda: loss_weight("u", G), ("kind", "'u'")),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError) as error:
        call()
    for part in says:
        assert part in str(error.value)
