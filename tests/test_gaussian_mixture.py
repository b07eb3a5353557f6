"""The exact denoiser against sums over a grid and against its two limits, and the density against its slope."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from smlmtut.diffusion.gaussian_mixture import GaussianMixture

THREE = GaussianMixture(
    torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64), torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64), 0.04
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.floats(0.001, 0.99), st.floats(-3, 3))
def test_denoiser_is_bayes_rule_on_a_grid(gamma, y_t):
    grid = torch.linspace(-4, 5, 20_001, dtype=torch.float64)
    modes = Normal(tensor(-1.0, 0.2, 1.5), tensor(0.2))
    prior = modes.log_prob(grid[:, None]).exp() @ tensor(0.25, 0.125, 0.625)
    log = Normal(math.sqrt(gamma) * grid, tensor(math.sqrt(1 - gamma))).log_prob(tensor(y_t))
    weight = prior * (log - log.max()).exp()
    mean = (weight * grid).sum() / weight.sum()
    variance = (weight * (grid - mean) ** 2).sum() / weight.sum()
    density = weight.sum().log() + log.max() + math.log(9 / 20_000)
    # sums over an even grid, whose step is a hundredth of the narrowest sd, are exact but for roundings
    assert THREE.denoise(tensor(y_t), tensor(gamma)).item() == pytest.approx(mean.item(), abs=1e-9)
    assert THREE.posterior_variance(tensor(y_t), tensor(gamma)).item() == pytest.approx(variance.item(), rel=1e-7)
    assert THREE.log_density(tensor(y_t), tensor(gamma)).item() == pytest.approx(density.item(), abs=1e-9)


def test_estimate_is_the_slope_of_the_density():
    """Tweedie: E[y_0 | y_t] = (y_t + (1 − γ) ∂ ln q/∂y_t)/√γ, and its own slope gives the variance."""
    y_t, gamma = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_(), torch.full((9,), 0.4).double()
    (slope,) = torch.autograd.grad(THREE.log_density(y_t, gamma).sum(), y_t)
    estimate = THREE.denoise(y_t, gamma)
    torch.testing.assert_close(estimate, (y_t + (1 - gamma) * slope) / gamma.sqrt(), rtol=1e-10, atol=1e-12)
    (bend,) = torch.autograd.grad(estimate.sum(), y_t)
    wanted = (1 - gamma) / gamma.sqrt() * bend
    torch.testing.assert_close(THREE.posterior_variance(y_t, gamma), wanted, rtol=1e-10, atol=1e-12)


def test_images_are_told_apart_by_all_their_pixels():
    modes = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = GaussianMixture(modes, tensor(0.9, 0.1))
    y_t, gamma = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double(), tensor(*[0.3] * 5)
    # along the line between the modes it is a problem of one dimension
    half = (modes[1] - modes[0]) / 2
    along = ((y_t - 0.3**0.5 * (modes[0] + modes[1]) / 2) * half).sum((1, 2, 3)) / half.norm()
    odds = math.log(1 / 9) + 2 * 0.3**0.5 * half.norm() * along / 0.7
    torch.testing.assert_close(data.mode_probability(y_t, gamma)[:, 1], odds.sigmoid(), rtol=1e-10, atol=1e-14)
    wanted = modes[0] + odds.sigmoid()[:, None, None, None] * 2 * half
    torch.testing.assert_close(data.denoise(y_t, gamma), wanted, rtol=1e-10, atol=1e-12)


def test_limits_of_no_and_of_all_noise():
    y = torch.linspace(-2, 2, 5, dtype=torch.float64)
    no_noise = torch.full((5,), 1 - 1e-12, dtype=torch.float64)
    torch.testing.assert_close(THREE.denoise(y, no_noise), y, rtol=0, atol=1e-9)  # (1 − γ)/v of the distance to a mode
    only_noise = torch.full((5,), 1e-20, dtype=torch.float64)
    mean = torch.full((5,), 0.25 * -1 + 0.125 * 0.2 + 0.625 * 1.5, dtype=torch.float64)
    torch.testing.assert_close(THREE.denoise(y, only_noise), mean, rtol=0, atol=1e-9)  # √γ = 1e-10


def test_samples_have_the_mixtures_moments():
    n = 200_000
    y0 = THREE.draw(n, torch.Generator().manual_seed(2))
    weights = tensor(0.25, 0.125, 0.625)
    mean = float(weights @ THREE.modes)
    variance = float(weights @ THREE.modes**2) - mean**2 + 0.04
    assert y0.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    fourth = (y0 - mean).pow(4).mean().item()
    assert y0.var().item() == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / n))
    assert THREE.draw(3, torch.Generator().manual_seed(2)).equal(THREE.draw(3, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: GaussianMixture(torch.tensor(1.0)), ("modes", "()")),
        (lambda: GaussianMixture(tensor(1.0, math.nan)), ("modes", "nan")),
        (lambda: GaussianMixture(tensor(1.0, 2.0), tensor(1.0)), ("weights", "(2,)", "(1,)")),
        (lambda: GaussianMixture(tensor(1.0, 2.0), tensor(1.0, 0.0)), ("weights", "positive")),
        (lambda: GaussianMixture(tensor(1.0), variance=-0.1), ("variance", "-0.1")),
        (lambda: GaussianMixture(torch.zeros(1, 3), variance=torch.ones(2)), ("variance", "(3,)", "(2,)")),
        (lambda: THREE.draw(0, torch.Generator()), ("count", "0")),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError) as error:
        call()
    for part in says:
        assert part in str(error.value)
