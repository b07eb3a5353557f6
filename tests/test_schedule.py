"""Noise schedules: published formulas, the prior's mismatch, fewer steps, the density of the levels to train at."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch.distributions import Normal, kl_divergence

from smlmtut.diffusion.schedule import BELOW_ONE, NoiseSchedule, from_log_snr, log_snr

PUBLISHED = NoiseSchedule.linear(100, 1e-4, 1e-2)
COSINE = NoiseSchedule.cosine(100)
ALL = {
    "linear": PUBLISHED,
    "cosine": COSINE,
    "sigmoid": NoiseSchedule.sigmoid(100),
    "log-linear": NoiseSchedule.log_linear(100),
}
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())


# Table B of the errata: γ_T and KL to the digits printed there
@pytest.mark.parametrize(
    ("schedule", "last", "kl"),
    [
        (PUBLISHED, 0.6025, 0.665),
        (NoiseSchedule.linear(100, 1e-4, 2e-2), 0.364, 0.326),
        (NoiseSchedule.linear(100, 1e-3, 0.2), 2.0e-5, 1.5e-5),
        (NoiseSchedule.linear(100, 1e-4, 0.2075), 1.4e-5, 1.0e-5),
        (COSINE, 2.4e-7, 1.8e-7),
    ],
)
def test_mismatch_of_the_prior_is_that_of_the_table(schedule, last, kl):
    def digit(x):  # half a unit of the last printed digit: four digits in .6025, three in .665, two in 2.0e-5
        digits = 4 if x == 0.6025 else 3 if x > 0.1 else 2
        return 0.5 * 10.0 ** (math.floor(math.log10(x)) - digits + 1)

    assert schedule.gammas[-1].item() == pytest.approx(last, abs=digit(last))
    assert schedule.prior_kl(1.0) == pytest.approx(kl, abs=digit(kl))


def test_published_betas_would_need_2208_steps():
    enough, too_few = (NoiseSchedule.linear(steps, 1e-4, 1e-2).prior_kl(1.0) for steps in (2208, 2207))
    assert enough <= 1e-5 < too_few


@every
@pytest.mark.parametrize("y0", [0.0, 0.3, 2.0])
def test_prior_kl_is_the_divergence_of_two_gaussians(schedule, y0):
    last = schedule.gammas[-1]
    nats = kl_divergence(Normal(last.sqrt() * y0, (1 - last).sqrt()), Normal(torch.zeros(()).double(), 1.0))
    # terms of order one cancel in torch's version: some 1e-16 is left of each
    assert schedule.prior_kl(y0**2) == pytest.approx(nats.item() / math.log(2), rel=1e-9, abs=1e-15)


def test_linear_betas_are_even():
    torch.testing.assert_close(
        PUBLISHED.betas, torch.linspace(1e-4, 1e-2, 100, dtype=torch.float64), rtol=1e-11, atol=0
    )


def test_cosine_levels_follow_the_squared_cosine_where_no_beta_is_capped():
    share = torch.arange(101, dtype=torch.float64) / 100
    level = torch.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(COSINE.gammas[:-1], (level / level[0])[:-1], rtol=1e-12, atol=0)
    assert COSINE.betas[-1].item() == pytest.approx(0.999, rel=1e-12)  # the cosine is 0 at t = T


def test_sigmoid_levels_are_symmetric_about_the_middle():
    schedule = NoiseSchedule.sigmoid(40, -4, 4, last=1e-4)
    both = schedule.gammas + schedule.gammas.flip(0)
    torch.testing.assert_close(both, torch.full_like(both, 1 + 1e-4), rtol=1e-14, atol=0)
    assert schedule.gammas[-1].item() == pytest.approx(1e-4, rel=1e-12)


def test_log_linear_levels_have_an_even_log_snr():
    schedule = NoiseSchedule.log_linear(50, 9.0, -11.0)
    torch.testing.assert_close(
        schedule.log_snr[1:], torch.linspace(9, -11, 50, dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert schedule.log_snr[0] == math.inf


@every
def test_steps_multiply_up_to_levels(schedule):
    torch.testing.assert_close(schedule.alphas.cumprod(0), schedule.gammas[1:], rtol=1e-13, atol=0)
    torch.testing.assert_close(schedule.alphas + schedule.betas, torch.ones(100).double(), rtol=1e-15, atol=0)
    torch.testing.assert_close(NoiseSchedule.from_betas(schedule.betas).gammas, schedule.gammas, rtol=1e-12, atol=0)


@every
def test_variance_of_the_posterior_adds_the_precisions_of_its_two_parts(schedule):
    """y_{t−1} is known from y_0 with variance 1 − γ_{t−1}, and from y_t with β_t/α_t."""
    precision = 1 / (1 - schedule.gammas[1:-1]) + (schedule.alphas / schedule.betas)[1:]
    torch.testing.assert_close(schedule.posterior_variance[1:], 1 / precision, rtol=1e-12, atol=0)
    assert schedule.posterior_variance[0] == 0


@given(st.floats(-30, 30))
def test_log_snr_there_and_back(level):
    gamma = from_log_snr(torch.tensor(level, dtype=torch.float64))
    # a rounding of γ near 1 moves its log-SNR by 1.1e-16/(1 − γ), and one of the logarithm by 1e-16
    assert log_snr(gamma).item() == pytest.approx(level, rel=1e-14, abs=1e-14 + 2.3e-16 * math.exp(max(level, 0)))


@given(st.integers(1, 100))
def test_fewer_steps_keep_both_ends(steps):
    in_time, in_snr = COSINE.resample(steps), COSINE.resample(steps, "log-snr")
    for fewer in (in_time, in_snr):
        assert fewer.steps == steps
        assert fewer.gammas[0] == 1
        assert fewer.gammas[-1] == COSINE.gammas[-1]
    assert torch.isin(in_time.gammas, COSINE.gammas).all()
    if steps > 2:
        gaps = in_snr.log_snr[1:].diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(steps - 1), rtol=1e-9, atol=0)
        assert in_snr.log_snr[1].item() == pytest.approx(COSINE.log_snr[1].item(), rel=1e-9)


def test_all_steps_kept_in_time_is_the_schedule_itself():
    assert torch.equal(COSINE.resample(100).gammas, COSINE.gammas)


def test_first_log_snr_can_be_chosen():
    fewer = COSINE.resample(10, "log-snr", first=15.0)
    assert fewer.log_snr[1].item() == pytest.approx(15.0, rel=1e-9)
    assert fewer.gammas[-1] == COSINE.gammas[-1]


@every
def test_levels_to_train_at_are_piecewise_uniform(schedule):
    """The distribution function is 1 − t/T at γ_t and straight in between."""
    drawn = schedule.draw_gamma(20_000, torch.Generator().manual_seed(1))
    assert drawn.dtype == torch.float64
    assert bool(((drawn >= schedule.gammas[-1]) & (drawn < 1)).all())
    order = schedule.gammas.flip(0)
    step = torch.searchsorted(order, drawn, right=True).clamp(1, 100)  # γ lies in [order[step − 1], order[step])
    share = (drawn - order[step - 1]) / (order[step] - order[step - 1])
    # a right density fails each of these with probability 1e-4
    assert kstest(((step - 1 + share) / 100).numpy(), "uniform").pvalue > 1e-4
    assert kstest(share.numpy(), "uniform").pvalue > 1e-4
    assert chisquare(torch.bincount(step - 1, minlength=100).numpy()).pvalue > 1e-4


@every
def test_a_schedule_begun_where_training_was_has_draws_on_both_sides_of_its_start(schedule):
    begun = schedule.trained()
    assert torch.equal(begun.gammas[:-1], schedule.gammas[:-1])
    drawn = schedule.draw_gamma(200_000, torch.Generator().manual_seed(1))
    below = (drawn < begun.gammas[-1]).double().mean() * schedule.steps  # half of the last interval's share
    assert float(below) == pytest.approx(0.5, abs=5 * math.sqrt(0.5 * schedule.steps / 200_000))


def test_cosine_begins_six_units_of_the_log_snr_before_the_level_that_training_hardly_saw():
    assert float(COSINE.trained().log_snr[-1] - COSINE.log_snr[-1]) > 6
    assert COSINE.trained().prior_kl(1.0) < 1e-4  # bits per dimension: what is left of the image does not count


def test_levels_stay_below_one_in_float32():
    # the first step is so short that all of its levels round to 1
    schedule = NoiseSchedule(torch.tensor([1.0, 1 - 1e-9, 0.5], dtype=torch.float64))
    drawn = schedule.draw_gamma(100, torch.Generator().manual_seed(0)).float()
    assert drawn.max().item() == BELOW_ONE
    assert bool(log_snr(drawn).isfinite().all())


def test_same_seed_same_levels():
    first, again, other = (COSINE.draw_gamma(8, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_schedule_keeps_its_own_numbers():
    given_levels = torch.tensor([1.0, 0.5])
    schedule = NoiseSchedule(given_levels)
    given_levels[1] = 0.1
    assert schedule.gammas[1] == 0.5


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: NoiseSchedule(tensor(1.0)), ("gammas", "two or more")),
        (lambda: NoiseSchedule(tensor(0.9, 0.5)), ("gammas", "start at 1")),
        (lambda: NoiseSchedule(tensor(1.0, 0.5, 0.5)), ("gammas", "fall")),
        (lambda: NoiseSchedule(tensor(1.0, 0.5, 0.0)), ("gammas", "positive")),
        (lambda: NoiseSchedule(tensor(1.0, math.nan)), ("gammas", "nan")),
        (lambda: NoiseSchedule(torch.ones(2, 2)), ("gammas", "dimensions")),
        (lambda: NoiseSchedule.from_betas(tensor(0.5, 1.0)), ("betas", "below 1")),
        (lambda: NoiseSchedule.from_betas(tensor(0.5, 0.0)), ("betas", "positive")),
        (lambda: NoiseSchedule.linear(0, 1e-4, 1e-2), ("steps", "0")),
        (lambda: NoiseSchedule.linear(10, 1e-4, 1.5), ("betas", "1.5")),
        (lambda: NoiseSchedule.cosine(10, offset=-0.1), ("offset", "-0.1")),
        (lambda: NoiseSchedule.cosine(10, cap=1.0), ("betas", "below 1")),
        (lambda: NoiseSchedule.cosine(10, cap=2.0), ("cap", "2")),
        (lambda: NoiseSchedule.sigmoid(10, 1.0, 1.0), ("end", "above start")),
        (lambda: NoiseSchedule.sigmoid(10, last=0.0), ("last", "positive")),
        (lambda: NoiseSchedule.log_linear(10, -3.0, 3.0), ("gammas", "fall")),
        (lambda: COSINE.prior_kl(-1.0), ("second_moment", "-1")),
        (lambda: COSINE.resample(0), ("steps", "0")),
        (lambda: COSINE.resample(101), ("steps", "101")),
        (lambda: COSINE.resample(10, "gamma"), ("spacing", "'gamma'")),
        (lambda: COSINE.resample(10, "log-snr", first=-20.0), ("first", "-20")),
        (lambda: COSINE.draw_gamma(0, torch.Generator()), ("batch", "0")),
        (lambda: log_snr(tensor(1.5)), ("gamma", "1.5")),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError) as error:
        call()
    for part in says:
        assert part in str(error.value)
