"""The variational bound −log p(y_0) ≤ L_0 + … + L_T, term by term, in bits per dimension.

y_0 is continuous, so L_0 and the whole bound are log-densities: they may be negative, and they change with y_0's unit.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .._validate import positive
from .process import DataVariance, Denoise, ReverseVariance, per_row, q_posterior, q_sample, reverse_step
from .schedule import NoiseSchedule, widest

BIT = math.log(2)  # nats in a bit


def prior_term(y0: Tensor, gamma: Tensor) -> Tensor:
    """L_T = KL(q(y_T | y_0) ‖ N(0, I)), with gamma = γ_T in (0, 1): (B, ...) and (B,) to (B,) bits per dimension.

    Raises ValueError where gamma is not below 1.
    """
    positive("1 - gamma", 1 - gamma)
    g = per_row(gamma, y0)
    return _per_dimension(g * (y0.square() - 1) - per_row(torch.log1p(-gamma), y0))


def transition_term(
    y0: Tensor, y_t: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, gamma_before: Tensor
) -> Tensor:
    """L_{t−1} = KL(q(y_{t−1} | y_t, y_0) ‖ N(mean, variance)) for t > 1: (B,) bits per dimension.

    mean, variance: of p(y_{t−1} | y_t), from `process.reverse_step`. gamma_before: γ_{t−1} < 1.
    Raises ValueError where a variance is not above 0.
    """
    wanted, tilde = q_posterior(y0, y_t, gamma, gamma_before)
    ratio = positive("1 - gamma_before", tilde) / positive("variance", variance)
    return _per_dimension(ratio - 1 - ratio.log() + (wanted - mean).square() / variance)


def reconstruction_term(y0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """L_0 = −log p(y_0 | y_1) of p = N(mean, variance), a density: (B,) bits per dimension.

    Raises ValueError where the variance is not above 0; the variance "posterior" is 0 in this step.
    """
    variance = positive("variance", variance)
    return _per_dimension((2 * math.pi * variance).log() + (y0 - mean).square() / variance)


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    schedule: NoiseSchedule,
    y0: Tensor,
    generator: torch.Generator,
    cond: Any = None,
    variance: str | ReverseVariance = "beta",
    data_variance: DataVariance | None = None,
) -> Tensor:
    """L_0, …, L_T of each y_0, every term at its own draw of y_t ~ q(y_t | y_0): (B, T + 1) bits per dimension.

    Their sum over t is an unbiased estimate of the bound. variance, data_variance: see `process.reverse_step`;
    "posterior" makes L_0 infinite and is refused. Raises ValueError where reverse_step does.
    """
    gammas = schedule.gammas.to(y0.device, widest(y0.device))
    terms = []
    for t in range(1, schedule.steps + 1):
        gamma, before = (g.expand(len(y0)) for g in (gammas[t], gammas[t - 1]))
        noise = torch.randn(y0.shape, generator=generator, dtype=y0.dtype, device=y0.device)
        y_t = q_sample(y0, gamma, noise)
        estimate = denoise(y_t, gamma, cond)
        mean, spread = reverse_step(y_t, estimate, gamma, before, cond, variance, data_variance)
        if t == 1:
            terms.append(reconstruction_term(y0, mean, spread))
        else:
            terms.append(transition_term(y0, y_t, mean, spread, gamma, before))
    return torch.stack([*terms, prior_term(y0, gammas[-1].expand(len(y0)))], 1)


def _per_dimension(twice_nats: Tensor) -> Tensor:
    """Half the mean over a row's dimensions, in bits: (B, ...) to (B,)."""
    return twice_nats.reshape(len(twice_nats), -1).mean(1) / (2 * BIT)
