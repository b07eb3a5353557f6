"""R̂ and effective size against chains whose autocorrelation is known in closed form."""

import math

import pytest
import torch

from smlmtut.posterior.convergence import effective_size, split_r_hat


def autoregressive(chains: int, draws: int, memory: float, seed: int) -> torch.Tensor:
    """x_t = memory x_{t−1} + noise, started in its own distribution N(0, 1): (C, S)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, draws, generator=generator, dtype=torch.float64)
    x = [noise[:, 0]]
    for t in range(1, draws):
        x.append(memory * x[-1] + math.sqrt(1 - memory**2) * noise[:, t])
    return torch.stack(x, 1)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregressive_chain(memory):
    """ρ_t = memory^t, so that 1 + 2 Σ ρ_t = (1 + memory)/(1 − memory)."""
    draws = torch.stack([autoregressive(8, 4000, memory, seed) for seed in range(8)])  # (8, C, S)
    expected = 8 * 4000 * (1 - memory) / (1 + memory)
    # the sum over lags has an error of some 10 % at memory 0.9 (1700 independent stretches, a few lags each); 8 repeats
    assert float(effective_size(draws).mean()) == pytest.approx(expected, rel=0.1)
    # R̂² − 1 is the variance of the 16 halves' means: a χ² of 15 degrees of freedom over 15 and over a half's own size
    most = (1 + 5 * math.sqrt(2 / 15)) * (1 + memory) / (1 - memory) / 2000
    assert 1 <= float(split_r_hat(draws).max()) < math.sqrt(1 + most)


def test_r_hat_of_chains_that_disagree():
    """Of sd 1 and 3 apart: R̂² is 1 and the variance of the four halves' means."""
    draws = autoregressive(2, 20_000, 0.0, 1)
    draws[1] += 3.0
    halves = torch.tensor([0.0, 0.0, 3.0, 3.0], dtype=torch.float64)
    assert float(split_r_hat(draws)) == pytest.approx(
        math.sqrt(1 + float(halves.var())), rel=0.02
    )  # 3/√20 000 on means
    assert float(effective_size(draws)) < 20


def test_r_hat_sees_a_chain_that_drifts():
    drift = torch.linspace(-3, 3, 1000, dtype=torch.float64) + autoregressive(4, 1000, 0.0, 2)
    assert float(split_r_hat(drift)) > 1.5


def test_chains_that_stand_still():
    assert float(split_r_hat(torch.ones(4, 10))) == 1
    assert float(effective_size(torch.ones(4, 10))) == 40
    stuck = torch.arange(4.0)[:, None].expand(4, 10)
    assert float(split_r_hat(stuck)) == math.inf


@pytest.mark.parametrize("function", [split_r_hat, effective_size])
def test_bad_input_is_named(function):
    with pytest.raises(ValueError, match=r"draws.*at least 4.*\(4, 3\)"):
        function(torch.ones(4, 3))
    with pytest.raises(ValueError, match="draws.*finite.*nan"):
        function(torch.full((2, 8), math.nan))
