"""The terms of the bound against closed forms of a Gaussian, and against torch's divergences."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from smlmtut.diffusion.elbo import prior_term, reconstruction_term, transition_term, variational_bound
from smlmtut.diffusion.gaussian_mixture import GaussianMixture
from smlmtut.diffusion.process import q_posterior, q_sample, reverse_step
from smlmtut.diffusion.schedule import NoiseSchedule

COSINE = NoiseSchedule.cosine(100)
PUBLISHED = NoiseSchedule.linear(100, 1e-4, 1e-2)
S, M = 0.3, 0.7
GAUSSIAN = GaussianMixture(torch.tensor([M], dtype=torch.float64), variance=S**2)
BIT = math.log(2)


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_terms(schedule, variance, data_variance=None):
    """L_0 … L_T of the exact denoiser, exactly: each is a quadratic in (y_0, ε), so 3 × 3 Gauss–Hermite nodes do."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(3))
    weights = weights / weights.sum()
    z, noise = (x.flatten() for x in torch.meshgrid(nodes, nodes, indexing="ij"))
    weight = (weights[:, None] * weights).flatten()
    y0 = M + S * z
    terms = []
    for t in range(1, schedule.steps + 1):
        gamma, before = (g.expand(9) for g in (schedule.gammas[t], schedule.gammas[t - 1]))
        y_t = q_sample(y0, gamma, noise)
        mean, v = reverse_step(y_t, GAUSSIAN.denoise(y_t, gamma), gamma, before, None, variance, data_variance)
        term = transition_term(y0, y_t, mean, v, gamma, before) if t > 1 else reconstruction_term(y0, mean, v)
        terms.append((weight * term).sum())
    terms.append((weight * prior_term(y0, schedule.gammas[-1].expand(9))).sum())
    return torch.stack(terms)


def closed_terms(schedule, reverse_variance):
    """The same by hand, from the reverse variances σ_t² (T,).

    The mean square by which the mean misses is (√γ_{t−1} β_t/(1 − γ_t))² Var(y_0 | y_t).
    """
    g, h = schedule.gammas[1:], schedule.gammas[:-1]
    left = S**2 * (1 - g) / (g * S**2 + 1 - g)
    missed = h * (schedule.betas / (1 - g)) ** 2 * left
    tilde = schedule.posterior_variance
    middle = ((tilde + missed) / reverse_variance - 1 + (reverse_variance / tilde).log()) / 2
    first = (missed[0] / reverse_variance[0] + (2 * math.pi * reverse_variance[0]).log()) / 2
    last = schedule.prior_kl(S**2 + M**2) * BIT
    return torch.cat([first[None], middle[1:], torch.tensor([last], dtype=torch.float64)]) / BIT


def optimal(schedule):
    g, h = schedule.gammas[1:], schedule.gammas[:-1]
    left = S**2 * (1 - g) / (g * S**2 + 1 - g)
    return schedule.posterior_variance + h * (schedule.betas / (1 - g)) ** 2 * left


@pytest.mark.parametrize("schedule", [COSINE, PUBLISHED, COSINE.resample(10)])
def test_terms_of_the_exact_denoiser_are_the_closed_forms(schedule):
    for name, values, known in (("beta", schedule.betas, None), ("optimal", optimal(schedule), S**2)):
        found = expected_terms(schedule, name, known)
        torch.testing.assert_close(found, closed_terms(schedule, values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [COSINE, PUBLISHED, COSINE.resample(3)])
def test_bound_of_the_exact_reverse_process_is_the_entropy_and_the_priors_mismatch(schedule):
    """Then p(y_0:T) differs from q(y_0:T) in the start alone, by KL(q(y_T) ‖ N(0, 1))."""
    last = schedule.gammas[-1]
    entropy = 0.5 * math.log(2 * math.pi * math.e * S**2)
    marginal = Normal(last.sqrt() * M, (last * S**2 + 1 - last).sqrt())
    start = kl_divergence(marginal, Normal(torch.zeros(()).double(), torch.ones(()).double()))
    bound = expected_terms(schedule, "optimal", S**2).sum().item()
    assert bound == pytest.approx((entropy + start.item()) / BIT, rel=1e-9)
    assert expected_terms(schedule, "beta").sum().item() > bound


@pytest.mark.parametrize("variance", ["beta", "optimal"])
def test_drawn_terms_have_these_means(variance):
    known = S**2 if variance == "optimal" else None
    schedule = COSINE.resample(20)
    y0 = GAUSSIAN.draw(20_000, torch.Generator().manual_seed(1))
    terms = variational_bound(
        GAUSSIAN.denoise, schedule, y0, torch.Generator().manual_seed(2), variance=variance, data_variance=known
    )
    assert terms.shape == (20_000, 21)
    error = terms.std(0) / math.sqrt(20_000)
    miss = (terms.mean(0) - expected_terms(schedule, variance, known)).abs()
    assert (miss < 4.5 * error).all()  # 21 terms, each beyond 4.5 standard errors with probability 7e-6
    total = terms.sum(1)
    wanted = expected_terms(schedule, variance, known).sum()
    assert (total.mean() - wanted).abs() < 4.5 * total.std() / math.sqrt(20_000)


def test_a_worse_denoiser_has_a_higher_bound():
    y0 = GAUSSIAN.draw(2_000, torch.Generator().manual_seed(1))
    good, bad = (
        variational_bound(f, COSINE, y0, torch.Generator().manual_seed(2)).sum(1).mean()
        for f in (GAUSSIAN.denoise, lambda y_t, gamma, cond: GAUSSIAN.denoise(y_t, gamma) + 0.1)
    )
    # each step's mean is off by 0.1 √γ_{t−1} β_t/(1 − γ_t), which costs half its square over β_t
    g, h = COSINE.gammas[1:], COSINE.gammas[:-1]
    cost = (0.01 * h * COSINE.betas / (1 - g) ** 2).sum() / 2 / BIT
    # the cross term has mean 0, and noise of some 2 × 0.1 × 0.3/√2000 of the squared shift's 0.01
    assert (bad - good).item() == pytest.approx(cost.item(), rel=0.2)


def test_terms_are_torchs_divergences_and_densities():
    y0, y_t, mean = images(6, 2, 3), images(6, 2, 3, seed=1), images(6, 2, 3, seed=2)
    gamma, before = torch.linspace(0.1, 0.6, 6).double(), torch.linspace(0.2, 0.9, 6).double()
    variance = images(6, 2, 3, seed=3).square() + 0.1
    wanted, tilde = q_posterior(y0, y_t, gamma, before)
    exact = kl_divergence(Normal(wanted, tilde.sqrt().expand_as(y0)), Normal(mean, variance.sqrt())).mean((1, 2)) / BIT
    torch.testing.assert_close(transition_term(y0, y_t, mean, variance, gamma, before), exact, rtol=1e-12, atol=0)
    density = -Normal(mean, variance.sqrt()).log_prob(y0).mean((1, 2)) / BIT
    torch.testing.assert_close(reconstruction_term(y0, mean, variance), density, rtol=1e-12, atol=0)


def test_last_term_is_the_schedules_mismatch():
    y0 = images(5, 4)
    for schedule in (COSINE, PUBLISHED):
        found = prior_term(y0, schedule.gammas[-1].expand(5))
        wanted = [schedule.prior_kl(row.square().mean().item()) for row in y0]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: prior_term(images(1, 2), torch.ones(1).double()), ("gamma", "0")),
        (lambda: reconstruction_term(images(1, 2), images(1, 2), torch.zeros(1, 1)), ("variance", "0")),
        (
            lambda: variational_bound(GAUSSIAN.denoise, COSINE, images(2), torch.Generator(), variance="posterior"),
            ("variance", "positive"),
        ),
        (
            lambda: variational_bound(GAUSSIAN.denoise, COSINE, images(2), torch.Generator(), variance="optimal"),
            ("data_variance", "must be given"),
        ),
        (
            lambda: transition_term(
                images(1), images(1), images(1), torch.ones(1), torch.full((1,), 0.5), torch.ones(1)
            ),
            ("gamma_before", "0"),
        ),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError) as error:
        call()
    for part in says:
        assert part in str(error.value)
