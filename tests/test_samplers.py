"""Samplers with an exact denoiser: the spread and the probabilities that they report, their order, their noise."""

import math
from functools import partial

import pytest
import torch

from smlmtut.diffusion.gaussian_mixture import GaussianMixture
from smlmtut.diffusion.process import reverse_step, to_noise
from smlmtut.diffusion.samplers import STREAM, ancestral, ddim, dpm_solver, sample
from smlmtut.diffusion.schedule import NoiseSchedule

COSINE = NoiseSchedule.cosine(100)
PUBLISHED = NoiseSchedule.linear(100, 1e-4, 1e-2)
SDS = torch.tensor([0.02, 0.05, 0.1, 0.3, 1.0], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3], dtype=torch.float64)
GAUSSIAN = GaussianMixture(MEAN[None], variance=SDS**2)  # five pixels, each with a sd of its own
OPTIMAL = partial(ancestral, variance="optimal", data_variance=SDS**2, noise_at_last_step=True)
SAMPLERS = {
    "beta": ancestral,
    "posterior": partial(ancestral, variance="posterior"),
    "optimal": OPTIMAL,
    "ddim": ddim,
    "ddim, half the noise": partial(ddim, eta=0.5),
    "dpm-solver": dpm_solver,
}
every = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def end(points):
    return list(points)[-1].y


def moments(sampler, schedule, y_mean: float | torch.Tensor = 0.0, y_sd: float | torch.Tensor = 1.0):
    """Exact mean and sd of the samples: a sampler with a linear denoiser is linear in y_T and in each noise.

    Row 0 has no noise at all, row k + 1 a one in the k-th of them, y_T being the first.
    """
    rows = schedule.steps + 2
    drawn = iter(range(2, rows))

    def noise(like):
        k = next(drawn)
        return torch.zeros_like(like).index_fill_(0, torch.tensor([k]), 1.0)

    start = torch.zeros(rows, 5, dtype=torch.float64) + y_mean
    start[1] += y_sd
    y = end(sampler(GAUSSIAN.denoise, schedule, start, None, noise))
    return y[0], (y[1:] - y[0]).square().sum(0).sqrt()


# Table D of the errata: sd of the samples over that of the data; half a unit of the last digit, 1 % where that is more
@pytest.mark.parametrize(
    ("sampler", "schedule", "wanted"),
    [
        (ancestral, COSINE, (0.84, 1.02, 1.03, 1.02, 1.00)),
        (SAMPLERS["posterior"], COSINE, (0.57, 0.78, 0.87, 0.95, 0.98)),
        (ddim, COSINE, (0.60, 0.84, 0.93, 0.98, 0.99)),
        (ancestral, COSINE.resample(10), (3.8, 3.2, 2.0, 1.2, 1.0)),
        (SAMPLERS["posterior"], COSINE.resample(10), (0.49, 0.46, 0.48, 0.70, 0.81)),
        (dpm_solver, COSINE.resample(50, "log-snr", first=15.0), (1.01, 1.01, 1.01, 1.01, 1.01)),
        (OPTIMAL, COSINE, (1.00, 1.00, 1.00, 1.00, 1.00)),
    ],
    ids=["beta", "posterior", "ddim", "beta 10", "posterior 10", "dpm 50", "optimal"],
)
def test_spread_is_that_of_the_table(sampler, schedule, wanted):
    _, sd = moments(sampler, schedule)
    for found, figure in zip((sd / SDS).tolist(), wanted, strict=True):
        printed = 0.05 if figure in (3.8, 3.2, 2.0, 1.2) or (figure == 1.0 and wanted[0] == 3.8) else 0.005
        assert found == pytest.approx(figure, abs=max(printed, 0.01 * figure))


@every
def test_mean_of_the_samples_is_right_whatever_the_variance(sampler):
    """Started at the right mean; from 0 what is left of the wrong start is √γ_T = 5e-4 of it."""
    mean, _ = moments(sampler, COSINE, y_mean=COSINE.gammas[-1].sqrt() * MEAN)
    torch.testing.assert_close(mean, MEAN, rtol=1e-10, atol=1e-10)


def test_optimal_variance_gives_the_exact_distribution_at_any_number_of_steps():
    last = COSINE.gammas[-1]
    right = (last * SDS**2 + 1 - last).sqrt()
    for steps in (1, 2, 7, 100):
        mean, sd = moments(OPTIMAL, COSINE.resample(steps), last.sqrt() * MEAN, right)
        torch.testing.assert_close(mean, MEAN, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sd, SDS, rtol=1e-10, atol=0)


def test_optimal_variance_is_beta_at_variance_one_and_the_posteriors_at_zero():
    y = torch.zeros(3, 1, dtype=torch.float64)
    gamma, before = (torch.tensor(g, dtype=torch.float64) for g in ((0.2, 0.5, 0.9), (0.4, 0.9, 1.0)))
    kinds = [
        reverse_step(y, y, gamma, before, None, "beta"),
        reverse_step(y, y, gamma, before, None, "optimal", 1.0),
        reverse_step(y, y, gamma, before, None, "posterior"),
        reverse_step(y, y, gamma, before, None, "optimal", torch.zeros(1)),
    ]
    torch.testing.assert_close(kinds[1][1], kinds[0][1], rtol=1e-12, atol=0)
    torch.testing.assert_close(kinds[3][1], kinds[2][1], rtol=1e-12, atol=0)


def test_drawn_samples_have_the_spread_that_the_sum_over_the_noises_gives():
    n = 20_000
    start = torch.randn(n, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = end(ancestral(GAUSSIAN.denoise, COSINE.resample(20), start, None, torch.Generator().manual_seed(1)))
    mean, sd = moments(ancestral, COSINE.resample(20))
    assert ((y.mean(0) - mean).abs() < 4 * sd / math.sqrt(n)).all()  # 4 standard errors, and below for a Gaussian
    assert ((y.std(0) / sd - 1).abs() < 4 / math.sqrt(2 * n)).all()


# Table C of the errata. The emitter's KDE is a Gaussian of sd 1.5 px and peak 1, scaled to [−1, 1]: without it the
# image is −1 everywhere, and 2 exp(−r²/2σ²) more with it. Along the line between the two images, whose distance
# is 2√π σ, the problem has one dimension, and across it there is nothing but noise.
LINE = 2 * math.sqrt(math.pi) * 1.5
TABLE_C = [
    (PUBLISHED, 0.5, False, 0.979),
    (PUBLISHED, 0.1, False, 0.967),
    (PUBLISHED, 0.5, True, 0.505),
    (COSINE, 0.5, False, 0.496),
    (COSINE, 0.1, False, 0.097),
]


def two_modes(p):
    # −Σ(2 exp)/2 over the distance, the place of the empty image, is −2πσ²/(√π σ) = −LINE
    return GaussianMixture(torch.tensor([-LINE, 0.0], dtype=torch.float64), torch.tensor([1 - p, p]).double())


def start_at(data, schedule, n, right):
    noise = torch.randn(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    if not right:
        return noise
    last = schedule.gammas[-1]
    return last.sqrt() * data.draw(n, torch.Generator().manual_seed(6)) + (1 - last).sqrt() * noise


@pytest.mark.parametrize(("schedule", "p", "right", "wanted"), TABLE_C)
def test_probabilities_are_those_of_the_table(schedule, p, right, wanted):
    n = 20_000
    start = start_at(two_modes(p), schedule, n, right)
    y = end(ancestral(two_modes(p).denoise, schedule, start, None, torch.Generator().manual_seed(7)))
    share = (y > -LINE / 2).double().mean().item()
    # the table's tolerance; a share of a half from 20 000 samples has a standard error of .0035
    assert share == pytest.approx(wanted, abs=0.01)
    assert share == pytest.approx(share_on_a_grid(schedule, p, right), abs=4 * math.sqrt(wanted * (1 - wanted) / n))


def share_on_a_grid(schedule, p, right):
    """The same without samples: the density of y_t, carried from step to step by a sum over a grid."""
    data = two_modes(p)
    grid = torch.linspace(-10, 5, 501, dtype=torch.float64)
    width = grid[1] - grid[0]
    gammas = schedule.gammas

    def normal(mean, variance):
        return (-(grid[:, None] - mean).square() / (2 * variance)).exp() / (2 * math.pi * variance).sqrt()

    if right:
        density = data.log_density(grid, gammas[-1].expand(501)).exp()
    else:
        density = normal(torch.zeros(1), torch.ones(1))[:, 0]
    for t in range(schedule.steps, 0, -1):
        level = gammas[t].expand(501), gammas[t - 1].expand(501)
        mean, variance = reverse_step(grid, data.denoise(grid, level[0]), *level)
        if t == 1:  # the mean, without noise
            return (density * width)[mean > -LINE / 2].sum().item()
        if variance[0].sqrt() < 2 * width:  # too narrow for the grid, and too small to move a sample between modes
            return (density * width)[mean > -LINE / 2].sum().item()
        density = normal(mean, variance) @ (density * width)
    raise AssertionError


def test_ddim_with_all_the_noise_is_ancestral_with_the_posteriors_variance():
    start = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = [
        end(sampler(GAUSSIAN.denoise, COSINE, start, None, torch.Generator().manual_seed(1)))
        for sampler in (partial(ddim, eta=1.0), SAMPLERS["posterior"])
    ]
    # the two divide by √(1 − γ) ≥ .024 in another order, 100 times
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-11)


def flow(schedule, start):
    """Where the probability flow takes y_T: (y − √γ m)/√(γ s² + 1 − γ) stays what it is."""
    first, last = schedule.gammas[1], schedule.gammas[-1]
    place = (start - last.sqrt() * MEAN) / (last * SDS**2 + 1 - last).sqrt()
    return first.sqrt() * MEAN + (first * SDS**2 + 1 - first).sqrt() * place


def test_dpm_solver_is_of_second_order_and_ddim_of_first():
    """Error of y_1 on the way from γ = .1 to γ = .9: halving the steps divides it by 4, and by 2."""
    start = torch.full((1, 5), 1.3, dtype=torch.float64)

    def error(sampler, steps):
        levels = torch.linspace(math.log(9), -math.log(9), steps + 1, dtype=torch.float64).sigmoid()
        schedule = NoiseSchedule(torch.cat([torch.ones(1).double(), levels]))
        at_first = list(sampler(GAUSSIAN.denoise, schedule, start))[-2]
        assert at_first.t == 1
        return (at_first.y - flow(schedule, start)).abs().max().item()

    for sampler, order in ((ddim, 1), (dpm_solver, 2)):
        found = [math.log2(error(sampler, n) / error(sampler, 2 * n)) for n in (40, 80)]
        # the next order adds about 1/n
        assert found == pytest.approx([order, order], abs=0.15), sampler


def test_first_step_of_dpm_solver_is_ddims_and_the_last_is_the_estimate():
    start = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (list(s(GAUSSIAN.denoise, COSINE.resample(10), start)) for s in (dpm_solver, ddim))
    torch.testing.assert_close(ours[1].y, theirs[1].y, rtol=1e-12, atol=1e-12)
    assert ours[-1].y.equal(ours[-1].estimate)
    assert not torch.allclose(ours[2].y, theirs[2].y, rtol=1e-6)


@every
def test_a_trajectory_has_all_its_points(sampler):
    schedule = COSINE.resample(5)
    start = torch.ones(2, 5, dtype=torch.float64)
    kept = start.clone()
    points = list(sampler(GAUSSIAN.denoise, schedule, start, None, torch.Generator().manual_seed(0)))
    assert [p.t for p in points] == [5, 4, 3, 2, 1, 0]
    assert points[0].y.equal(kept)
    assert start.equal(kept)
    for point in points[:-1]:
        gamma = schedule.gammas[point.t].expand(2)
        torch.testing.assert_close(point.estimate, GAUSSIAN.denoise(point.y, gamma))


@every
def test_one_step_returns_the_estimate_or_a_draw_around_it(sampler):
    start = torch.zeros(3, 5, dtype=torch.float64)
    points = list(sampler(GAUSSIAN.denoise, COSINE.resample(1), start, None, torch.Generator().manual_seed(0)))
    if sampler is OPTIMAL:
        assert not torch.allclose(points[-1].y, points[-1].estimate)
    else:
        torch.testing.assert_close(points[-1].y, points[-1].estimate, rtol=1e-12, atol=1e-15)


@every
def test_condition_and_level_reach_the_denoiser_and_no_gradient_leaves_it(sampler):
    weight = torch.ones(5, dtype=torch.float64, requires_grad=True)
    seen = []

    def denoise(y_t, gamma, cond):
        assert cond == "what is known"
        assert gamma.shape == (2,)
        seen.append(gamma[0].item())
        return weight * GAUSSIAN.denoise(y_t, gamma)

    start = torch.zeros(2, 5, dtype=torch.float64)
    y = end(sampler(denoise, COSINE.resample(4), start, "what is known", torch.Generator().manual_seed(0)))
    assert seen == COSINE.resample(4).gammas[1:].flip(0).tolist()
    assert not y.requires_grad


def test_variance_and_data_variance_can_be_functions():
    start = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def learned(y_t, estimate, gamma, gamma_before, cond):
        assert cond == "known"
        return ((gamma_before - gamma) / gamma_before)[:, None]  # β

    def run(**options):
        return end(ancestral(GAUSSIAN.denoise, COSINE, start, "known", torch.Generator().manual_seed(1), **options))

    torch.testing.assert_close(run(variance=learned), run(variance="beta"), rtol=1e-12, atol=1e-14)
    exact = run(variance="optimal", data_variance=GAUSSIAN.posterior_variance)
    torch.testing.assert_close(exact, run(variance="optimal", data_variance=SDS**2), rtol=1e-9, atol=1e-11)


def test_optimal_variance_of_two_modes_reports_their_probability():
    """Not Gaussian, so the step with the right mean and variance is not exact, but at 100 steps it is close."""
    data = two_modes(0.1)
    n = 10_000
    y = end(
        ancestral(
            data.denoise, COSINE, start_at(data, COSINE, n, True), None, torch.Generator().manual_seed(7),
            variance="optimal", data_variance=data.posterior_variance, noise_at_last_step=True,
        )
    )  # fmt: skip
    assert (y > -LINE / 2).double().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / n))


# --- sample --------------------------------------------------------------------------------------------------------

IMAGE = (3, 1, 2, 2)


def toward(y_t, gamma, cond):
    """The exact denoiser of y_0 ~ N(cond, .09)."""
    g = gamma.to(y_t)[:, None, None, None]
    return cond + 0.09 * g.sqrt() / (0.09 * g + 1 - g) * (y_t - g.sqrt() * cond)


def conditions():
    return torch.tensor([-2.0, 0.0, 3.0])[:, None, None, None].expand(IMAGE).clone()


@pytest.mark.parametrize("chunk", [1, 5, STREAM - 1, STREAM, 33, 1000])
def test_samples_do_not_depend_on_the_chunk(chunk):
    schedule = COSINE.resample(4)
    draw = partial(sample, ancestral, toward, schedule, IMAGE, conditions(), 13)
    # a row goes through the same operations in any batch, but vector and scalar code may round differently
    torch.testing.assert_close(
        draw(torch.Generator().manual_seed(0), chunk=chunk), draw(torch.Generator().manual_seed(0)), rtol=0, atol=1e-6
    )


def test_samples_are_those_of_their_condition():
    y = sample(
        OPTIMAL_FOR_IMAGES, toward, COSINE, IMAGE, conditions(), 400, torch.Generator().manual_seed(3), chunk=512
    )
    assert y.shape == (3, 400, 1, 2, 2)
    assert y.dtype == torch.float32
    rows = y.flatten(2).permute(0, 2, 1).double()  # (3, 4, 400)
    assert ((rows.mean(2) - torch.tensor([[-2.0], [0.0], [3.0]])).abs() < 4 * 0.3 / 20).all()  # 4 standard errors
    assert ((rows.std(2) / 0.3 - 1).abs() < 4 / math.sqrt(800)).all()
    correlation = torch.corrcoef(rows.reshape(12, 400)) - torch.eye(12)
    assert correlation.abs().max() < 4.5 / 20  # 66 pairs, each with a standard error of 1/√400


OPTIMAL_FOR_IMAGES = partial(ancestral, variance="optimal", data_variance=0.09, noise_at_last_step=True)


def test_same_seed_same_samples_and_another_seed_others():
    draw_two = partial(sample, ancestral, toward, COSINE.resample(3), IMAGE, conditions(), 2)

    def draw(seed):
        return draw_two(torch.Generator().manual_seed(seed))

    assert draw(0).equal(draw(0))
    assert not torch.isclose(draw(0), draw(1)).any()
    one = torch.Generator().manual_seed(0)  # and the second call of one generator too
    first, second = (draw_two(one) for _ in range(2))
    assert not torch.isclose(first, second).any()


def test_no_two_samples_share_their_noise():
    y = sample(ddim, lambda y, g, c: 0 * y, COSINE.resample(1), (5, 1), None, 20, torch.Generator().manual_seed(0))
    assert y.shape == (5, 20, 1)
    seen = []

    def keep(y_t, gamma, cond):
        seen.append(y_t)
        return y_t

    sample(ddim, keep, COSINE.resample(1), (5, 1), None, 20, torch.Generator().manual_seed(0), chunk=7)
    assert max(len(y) for y in seen) == 7
    assert len(torch.cat(seen).unique()) == 100


def test_condition_can_be_a_tuple():
    def denoise(y_t, gamma, cond):
        centre, (shift,) = cond
        return toward(y_t, gamma, centre + shift)

    whole, parts = (
        sample(ancestral, f, COSINE.resample(3), IMAGE, c, 4, torch.Generator().manual_seed(0), chunk=5)
        for f, c in ((toward, conditions()), (denoise, (conditions() / 2, (conditions() / 2,))))
    )
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_progress_counts_every_call(capsys):
    sample(ddim, toward, COSINE.resample(3), IMAGE, conditions(), 4, torch.Generator(), chunk=5, progress=True)
    assert "36/36" in capsys.readouterr().err
    sample(ddim, toward, COSINE.resample(3), IMAGE, conditions(), 4, torch.Generator(), chunk=5)
    assert capsys.readouterr().err == ""


Y = torch.zeros(3, 5, dtype=torch.float64)


def first(sampler, generator=None, **options):
    return list(sampler(GAUSSIAN.denoise, COSINE.resample(2), Y, None, generator, **options))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: first(ancestral), ("generator", "must be given")),
        (lambda: first(ddim, eta=0.5), ("generator", "must be given")),
        (lambda: first(ddim, eta=1.5), ("eta", "1.5")),
        (lambda: first(ancestral, torch.Generator(), variance="learned"), ("variance", "'learned'")),
        (lambda: first(ancestral, torch.Generator(), variance="optimal"), ("data_variance", "must be given")),
        (lambda: first(ancestral, torch.Generator(), data_variance=1.0), ("data_variance", "only there")),
        (lambda: first(OPTIMAL, torch.Generator(), data_variance=-1.0), ("data_variance", "-1")),
        (lambda: first(ancestral, torch.Generator(), variance=lambda *a: -a[0] - 1), ("variance", "-1")),
        (lambda: first(lambda f, *a: ancestral(lambda *b: Y[:, :1], *a), torch.Generator()), ("shape", "(3, 1)")),
        (lambda: sample(ddim, toward, COSINE, (), None, 1, torch.Generator()), ("shape", "()")),
        (lambda: sample(ddim, toward, COSINE, (2, 0), None, 1, torch.Generator()), ("shape", "0")),
        (lambda: sample(ddim, toward, COSINE, (2, 1), torch.zeros(3, 1), 1, torch.Generator()), ("cond", "2", "3")),
        (lambda: sample(ddim, toward, COSINE, (2, 1), None, 0, torch.Generator()), ("samples", "0")),
        (lambda: sample(ddim, toward, COSINE, (2, 1), None, 1, torch.Generator(), chunk=0), ("chunk", "0")),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError) as error:
        call()
    for part in says:
        assert part in str(error.value)


def test_noise_of_the_estimate_is_what_ddim_keeps():
    """With a denoiser that knows y_0, DDIM stays on y_t = √γ y_0 + √(1 − γ) ε of one ε."""
    y0 = torch.linspace(-1, 1, 5, dtype=torch.float64).expand(3, 5)
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = to_noise("x0", y0, start, COSINE.gammas[-1].expand(3))
    for point in ddim(lambda *a: y0, COSINE, start):
        gamma = COSINE.gammas[point.t]
        torch.testing.assert_close(point.y, gamma.sqrt() * y0 + (1 - gamma).sqrt() * noise, rtol=1e-9, atol=1e-10)
