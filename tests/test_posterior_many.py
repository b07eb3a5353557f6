"""The sampler over several emitters against the grid, quadrature, its own prior, and its calibration."""

import math
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, poisson

from smlmtut.estimation.likelihood import surrogate_log_likelihood
from smlmtut.imaging import simulate
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.distributions import LogUniform
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, pixel_integral
from smlmtut.posterior import chains as markov
from smlmtut.posterior.many import Draws, chain_posterior, count_prior
from smlmtut.posterior.one import Prior, grid_posterior

READ = 5.0  # e⁻²
# short chains, many of them: quick in a small frame
MANY: dict[str, Any] = dict(chains=512, draws=12, thin=3, burn_in=60)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def z_scores(draws: torch.Tensor, mean: torch.Tensor | float) -> torch.Tensor:
    """Mean of draws (B, C, S) against a number, in standard errors over the chains, which are independent: (B,)."""
    of_chain = draws.double().mean(-1)  # (B, C)
    return (of_chain.mean(-1) - mean) / (of_chain.std(-1) / math.sqrt(of_chain.shape[-1]))


def test_one_emitter_is_that_of_the_grid():
    prior = Prior((100.0, 900.0), (0.0, 12.0), (0.92, 1.08))
    truth = Emitters(
        *(torch.tensor(x, dtype=torch.float64)[:, None] for x in ([4.2, -0.2], [4.4, 3.0], [300.0, 700.0]))
    )
    frames = simulate.frames(truth, PSF(1.0), Camera(read_variance=READ), (9, 9), 5.0, generator(1))
    drawn = chain_posterior(frames, [0.0, 1.0], generator(2), READ, prior, **MANY)
    mean, variance = drawn.kde_moments()
    assert torch.equal(drawn.count_probability(), torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64))
    for i in range(2):
        exact = grid_posterior(frames[i], READ, prior)
        for name, x in (
            ("u", drawn.u[..., 0]), ("v", drawn.v[..., 0]), ("photons", drawn.photons[..., 0]),
            ("background", drawn.background), ("sigma", drawn.sigma),
        ):  # fmt: skip
            # five standard errors for the mean; the sd's own standard error is below 2 % of it with 2000 draws
            assert abs(float(z_scores(x, exact.mean()[name])[i])) < 5, name
            assert float(x[i].std()) == pytest.approx(exact.sd()[name], rel=0.1), name
        e, v = exact.kde_moments()
        # 512 chains of about 4 independent draws: 1/√2000 = 2.2 % of a pixel's sd for the mean, 5 of them; a variance
        # has twice that
        assert float(((mean[i] - e).abs() / v.max().sqrt()).max()) < 0.12
        assert float((variance[i] - v).abs().max() / v.max()) < 0.2
    assert float(drawn.diagnostics().mean_difference.max()) < 0.24  # of two halves: twice the 0.12 above


def test_odds_of_an_emitter_are_those_of_the_grid():
    """p(K = 1 | x)/p(K = 0 | x) from the evidence on the grid and, without an emitter, an integral over b."""
    prior = Prior((100.0, 900.0), (0.0, 12.0))
    truth = Emitters.single(4.2, 3.4, 110.0)
    frames = simulate.frames(truth, PSF(1.0), Camera(read_variance=READ), (9, 9), 11.0, generator(12))
    exact = grid_posterior(frames[0], READ, prior)
    b = 12 * (torch.arange(400, dtype=torch.float64) + 0.5) / 400  # steps of 0.03 e⁻, 1/12 of the width of p(b | x)
    log_none = surrogate_log_likelihood(frames[0], b[:, None, None], Camera(read_variance=READ)).sum((1, 2))
    log_odds = exact.log_evidence - float(log_none.logsumexp(0) - math.log(400))
    p = torch.softmax(torch.tensor([log_odds, 0.0], dtype=torch.float64), 0)  # so that both are as likely given x
    drawn = chain_posterior(frames, p, generator(13), READ, prior, **MANY)
    assert abs(float(z_scores(drawn.count, 0.5))) < 5
    assert float(drawn.count_probability()[0, 1]) == pytest.approx(0.5, abs=0.05)


def on_a_line(u: torch.Tensor, photons: torch.Tensor, width: int, background: float) -> torch.Tensor:
    """Rates (n, W) of emitters (n, K) in a frame of one row, v = 0."""
    down = pixel_integral(torch.zeros((), dtype=torch.float64), 1.0, 1)
    return background + torch.einsum("nk,nkw->nw", photons * down, pixel_integral(u, 1.0, width))


def quadrature(frame: torch.Tensor, prior: Prior, background: float, photons: float | tuple[float, float]):
    """Evidence of K = 0, 1, 2 relative to K = 0; given K = 2, moments of u_1 + u_2 and |u_1 − u_2|: midpoint rule."""
    width = frame.shape[-1]
    u = (torch.arange(60, dtype=torch.float64) + 0.5) / 60 * width - 0.5
    low, high = photons if isinstance(photons, tuple) else (photons, photons)
    n = low + (high - low) * (torch.arange(20, dtype=torch.float64) + 0.5) / 20 if high > low else u.new_tensor([low])
    one = torch.cartesian_prod(u, n)  # (m, 2)
    counts = frame.flatten() + READ

    def log_l(rate):
        return (counts * (rate + READ).log() - rate).sum(-1)

    none = log_l(torch.full((1, width), background, dtype=torch.float64))
    single = log_l(on_a_line(one[:, :1], one[:, 1:], width, background)) - none
    light = on_a_line(one[:, :1], one[:, 1:], width, 0.0)  # (m, W)
    total = difference = square = weight = torch.zeros((), dtype=torch.float64)
    for i, first in enumerate(light):
        w = (log_l(first + light + background) - none).exp()  # the second emitter anywhere
        gap = (one[i, 0] - one[:, 0]).abs()
        weight, total = weight + w.sum(), total + (w * (one[i, 0] + one[:, 0])).sum()
        difference, square = difference + (w * gap).sum(), square + (w * gap**2).sum()
    pairs = len(one) ** 2
    evidence = torch.stack([torch.ones((), dtype=torch.float64), single.exp().mean(), weight / pairs])
    return evidence, total / weight, difference / weight, square / weight


@pytest.mark.parametrize("photons", [(100.0, 500.0), 40.0])
def test_two_emitters_on_a_line_are_those_of_quadrature(photons):
    """p(K | x) and the distance of the two, with N open and with N known."""
    prior = Prior(photons, 6.0, 1.0, (-0.5, 8.5, -1e-6, 1e-6))
    light = [photons, photons] if isinstance(photons, float) else [220.0, 210.0]
    u, n = (torch.tensor([x], dtype=torch.float64) for x in ([3.2, 4.6], light))
    rate = on_a_line(u, n, 9, 6.0)
    frame = torch.poisson(rate, generator=generator(3))[:, None]  # (1, 1, 9)
    p = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    evidence, total, gap, square = quadrature(frame, prior, 6.0, photons)
    expected = p * evidence / (p * evidence).sum()
    drawn = chain_posterior(frame, p, generator(4), READ, prior, **MANY)
    for k in range(3):
        if 0.02 < expected[k] < 0.98:  # a few events have no normal error; the next line holds for them
            assert abs(float(z_scores(drawn.count == k, float(expected[k])))) < 5, (k, expected)
    assert drawn.count_probability()[0].tolist() == pytest.approx(expected.tolist(), abs=0.03)
    two = drawn.count[0] == 2
    u = drawn.u[0][two]
    # at least 1000 independent draws: 3 % of the sd, 5 of them, and 1 % for the quadrature's steps of 0.15 px
    spread = math.sqrt(float(square - gap**2))
    assert int(two.sum()) > 1000
    assert float((u[:, 0] - u[:, 1]).abs().mean()) == pytest.approx(float(gap), abs=0.16 * spread)
    assert float(u.sum(1).mean()) == pytest.approx(float(total), abs=0.16 * float(u.sum(1).std()))


def test_known_number_of_emitters_is_the_conditional_of_the_unknown_one():
    truth = Emitters(*(torch.tensor([x], dtype=torch.float64) for x in ([3.0, 5.4], [4.0, 4.3], [500.0, 700.0])))
    frame = simulate.frames(truth, PSF(1.0), Camera(read_variance=READ), (9, 9), 5.0, generator(5))
    known = chain_posterior(frame, [0.0, 0.0, 1.0], generator(6), READ, **MANY)
    unknown = chain_posterior(frame, [0.0, 0.2, 0.6, 0.2], generator(7), READ, **MANY)
    two = unknown.count[0] == 2
    assert float(two.double().mean()) > 0.5
    for a, b in ((known.photons, unknown.photons), (known.u, unknown.u)):
        one, other = a.sum(-1)[0], b.sum(-1)[0][two]
        # some 1000 independent draws each: 1/√500 = 4.5 % of the sd, 5 of them
        assert float(one.mean()) == pytest.approx(float(other.mean()), abs=0.22 * float(one.std()))
        assert float(one.std()) == pytest.approx(float(other.std()), rel=0.15)


@pytest.mark.parametrize("position", [None, (1.0, 6.5, 2.0, 5.0), (4.0, 4.0, 3.0)])
def test_a_likelihood_of_nothing_gives_back_the_prior(position, monkeypatch):
    """Detailed balance of every move: the proposals follow the frame, only the likelihood does not count."""
    monkeypatch.setattr(markov.Target, "log_likelihood", lambda self, rate: rate.new_zeros(len(rate)))
    prior = Prior((100.0, 400.0), (0.0, 12.0), (0.92, 1.08), position)
    rate = expected_photons(Emitters.single(4.2, 3.9, 150.0), PSF(1.0), (8, 9), 5.0)
    frame = torch.poisson(rate, generator=generator(8))
    p = torch.tensor([0.1, 0.35, 0.3, 0.25], dtype=torch.float64)
    drawn = chain_posterior(frame, p, generator(9), READ, prior, **MANY)
    for k in range(4):
        assert float(z_scores(drawn.count == k, float(p[k])).abs().max()) < 5, k
    bounds = prior.bounds((8, 9))
    for i, x in enumerate((drawn.u, drawn.v, drawn.photons)):
        low, high = bounds[i].tolist()
        level = (x - low) / (
            high - low
        )  # of a uniform density: the mean of 2 level − 1 and of its square are 0 and 1/3
        here = drawn.photons > 0
        size = here.sum(-1)
        disc = position is not None and len(position) == 3 and i < 2
        square = 0.25 if disc else 1 / 3  # ∫ x² over the unit disc: 1/4
        assert float(z_scores((here * (2 * level - 1)).sum(-1), 0.0).abs().max()) < 5
        assert float(z_scores((here * (2 * level - 1) ** 2).sum(-1) - size * square, 0.0).abs().max()) < 5
    for i, x in ((3, drawn.background), (4, drawn.sigma)):
        level = (x - bounds[i, 0]) / (bounds[i, 1] - bounds[i, 0])
        assert float(z_scores(level, 0.5).abs().max()) < 5
        assert float(z_scores((level - 0.5) ** 2, 1 / 12).abs().max()) < 5


def draw_scenes(batch: int, p: torch.Tensor, prior: Prior, shape: tuple[int, int], seed: int):
    """Emitters, background and sigma drawn from the prior, and their frames from the exact camera."""
    g, most = generator(seed), len(p) - 1
    bounds = prior.bounds(shape)
    uniform = torch.rand(batch, most, 5, generator=g, dtype=torch.float64)
    theta = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * uniform
    number = torch.multinomial(p, batch, replacement=True, generator=g)
    emitters = Emitters(theta[..., 0], theta[..., 1], theta[..., 2], torch.arange(most) < number[:, None])
    background, sigma = theta[:, 0, 3], theta[:, 0, 4]
    frames = simulate.frames(emitters, PSF(sigma[:, None]), Camera(read_variance=READ), shape, background, g)
    return emitters, background, sigma, frames


def test_calibrated_over_frames_drawn_from_the_prior():
    """Levels of credible regions and ranks of the light are uniform; E[y | x] and p(K | x) keep their word."""
    prior, p = Prior((150.0, 900.0), (1.0, 8.0)), torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    count = 32
    emitters, background, sigma, frames = draw_scenes(count, p, prior, (7, 7), seed=10)
    drawn = chain_posterior(frames, p, generator(11), READ, prior, chains=16, draws=24, thin=4, burn_in=100)
    levels = drawn.credible_level(emitters, background, sigma)
    some = emitters.mask.any(1)
    light = (emitters.photons * emitters.mask).sum(1)
    ranks = (drawn.photons.sum(-1) < light[:, None, None]).double().mean((1, 2))[some]
    # the surrogate stands in for the exact mixture: its error is far below what so many frames can see
    for values in (levels, ranks, (drawn.background < background[:, None, None]).double().mean((1, 2))):
        assert kstest(values, "uniform").pvalue > 1e-4
    y = kde_image(emitters, (7, 7))[:, 0]
    mean, variance = drawn.kde_moments()
    error = (y - mean).sum((1, 2)) / count  # the tower rule, summed over pixels
    spread = drawn.mass()[1] / count
    assert abs(float(error.sum())) < 5 * float(spread.square().sum().sqrt())
    assert float(((y - mean) ** 2).sum() / variance.sum()) == pytest.approx(1, abs=6 / math.sqrt(count))
    probability = drawn.count_probability()
    number = emitters.mask.sum(1)
    for k in range(4):
        expected = probability[:, k]
        surprise = ((number == k).double() - expected).sum() / (expected * (1 - expected)).sum().sqrt().clamp(min=0.3)
        assert abs(float(surprise)) < 5


def test_diagnostics_see_chains_that_have_not_arrived():
    rate = expected_photons(Emitters.single(4.2, 3.4, 800.0), PSF(1.0), (9, 9), 5.0)
    early, late = (
        chain_posterior(rate, [0.3, 0.4, 0.3], generator(14), READ, None, 32, draws, thin, burn_in)
        for draws, thin, burn_in in ((4, 1, 0), (20, 2, 40))
    )
    start = early.diagnostics(), late.diagnostics()
    assert start[0].r_hat.shape == start[0].size.shape == (1,)
    assert float(start[0].r_hat) > 1.1 > float(start[1].r_hat)  # above 1.1 is the textbook's sign of trouble
    assert float(start[0].size) < 64 < 128 < float(start[1].size) <= 32 * 20
    assert float(start[0].count_difference) > float(start[1].count_difference)
    assert set(late.acceptance) == {
        "birth and death", "split and merge", "position", "pair", "photons", "background", "sigma",
    }  # fmt: skip
    assert all(0.1 < float(late.acceptance[name]) < 1 for name in ("position", "photons", "background", "sigma"))


def small(seed: int = 1, **kwargs) -> Draws:
    frames = torch.full((2, 6, 7), 4.0, dtype=torch.float64)
    return chain_posterior(
        frames, [0.5, 0.3, 0.2], generator(seed), READ, chains=4, draws=6, thin=1, burn_in=2, **kwargs
    )


def test_same_seed_same_draws_and_what_they_say_is_theirs():
    a, b, c = small(), small(), small(seed=2)
    assert torch.equal(a.u, b.u) and torch.equal(a.count, b.count) and not torch.equal(a.background, c.background)
    assert a.u.shape == (2, 4, 6, 2) and a.count.shape == a.sigma.shape == (2, 4, 6)
    images = torch.stack([kde_image(a.emitters(i), (6, 7))[:, 0] for i in range(2)])  # (2, 24, 24, 28)
    mean, variance = a.kde_moments()
    torch.testing.assert_close(mean, images.mean(1))
    torch.testing.assert_close(variance, images.var(1, correction=0))
    torch.testing.assert_close(a.mass()[0], images.sum((2, 3)).mean(1))
    torch.testing.assert_close(a.mass()[1], images.sum((2, 3)).std(1))
    assert bool((a.photons > 0).sum(-1).eq(a.count).all())


def test_log_likelihood_is_that_of_the_drawn_emitters():
    drawn = small()
    for i in range(2):
        emitters = drawn.emitters(i)
        sigma, background = drawn.sigma[i].flatten(), drawn.background[i].flatten()
        rate = expected_photons(emitters, PSF(sigma[:, None]), (6, 7), background) + READ
        log_l = ((drawn.frames[i] + READ) * rate.log() - rate).sum((1, 2))
        torch.testing.assert_close(log_l, drawn.log_likelihood[i].flatten(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("density", [LogUniform(0.1, 8.0), LogUniform(2.0, 2.0), 3.0])
def test_count_prior_is_the_poisson_averaged_over_the_density(density):
    area = (10 * 0.108) * (12 * 0.108)
    p = count_prior(4, (8, 10), density, margin=1.0)
    if isinstance(density, LogUniform) and density.low < density.high:
        low, high = math.log(density.low * area), math.log(density.high * area)
        raw = [quad(lambda t, k=k: poisson.pmf(k, math.exp(t)), low, high)[0] for k in range(5)]
    else:
        raw = poisson.pmf(range(5), (density if isinstance(density, float) else density.low) * area).tolist()
    assert p.tolist() == pytest.approx([x / sum(raw) for x in raw], rel=1e-9)


X = torch.full((2, 6, 6), 4.0)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: chain_posterior(X[0], [1.0], generator(1)), ("frames", "3 dimensions", "(6, 6)")),
        (lambda: chain_posterior(X * math.nan, [1.0], generator(1)), ("frames", "finite", "nan")),
        (lambda: chain_posterior(X - 5, [1.0], generator(1)), ("frames", "not be negative", "-1")),
        (lambda: chain_posterior(X, [1.0], generator(1), -1.0), ("read_variance", "not negative", "-1")),
        (lambda: chain_posterior(X, [1.0], generator(1), torch.ones(5, 6)), ("read_variance", "(6, 6)", "(5, 6)")),
        (lambda: chain_posterior(X, [0.5, 0.4], generator(1)), ("counts", "sum to 1", "0.9")),
        (lambda: chain_posterior(X, [1.5, -0.5], generator(1)), ("counts", "not negative", "-0.5")),
        (lambda: chain_posterior(X, [0.5, 0.0, 0.5], generator(1)), ("counts", "between", "0.5")),
        (lambda: chain_posterior(X, [1.0], generator(1), chains=5), ("chains", "even", "5")),
        (lambda: chain_posterior(X, [1.0], generator(1), draws=2), ("draws", "at least 4", "2")),
        (lambda: chain_posterior(X, [1.0], generator(1), thin=0), ("thin", "at least 1", "0")),
        (lambda: chain_posterior(X, [1.0], generator(1), burn_in=-1), ("burn_in", "at least 0", "-1")),
        (
            lambda: chain_posterior(X, [1.0], generator(1), prior=Prior(sigma=1.0), jumps=True),
            ("prior", "intervals", "1.0"),
        ),
        (lambda: chain_posterior(X, [1.0], generator(1), prior=Prior(position=(2.0, 2.0, 1.0)), jumps=True), ("disc",)),
        (lambda: count_prior(-1, (6, 6)), ("most", "at least 0", "-1")),
        (lambda: count_prior(2, (6, 6), 0.0), ("density", "positive", "0")),
        (lambda: count_prior(2, (6, 6), margin=-1.0), ("margin", "not negative", "-1")),
        (lambda: small().mass(sigma=0.0), ("sigma", "positive", "0")),
        (lambda: level(Emitters.single(2.0, 2.0, 300.0)), ("truth", "batch", "2", "1")),
        (lambda: level(pairs([9.0, 2.0])), ("truth", "within the prior")),
        (lambda: level(Emitters(*[torch.full((2, 3), 300.0)] * 3)), ("truth", "at most 2")),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError) as error:
        call()
    for words in says:
        assert words in str(error.value)


def pairs(u: list[float]) -> Emitters:
    return Emitters(torch.tensor([u, u]), torch.full((2, 2), 2.0), torch.full((2, 2), 300.0))


def level(truth: Emitters) -> torch.Tensor:
    return small().credible_level(truth, torch.full((2,), 4.0), torch.full((2,), 1.0))
