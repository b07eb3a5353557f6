"""The exact posterior against brute force, the Cramér-Rao bound, Monte-Carlo, the tower rule, and its calibration."""

import math

import pytest
import torch
from scipy.stats import kstest

from smlmtut.estimation.fisher import localization_bound
from smlmtut.estimation.fit import PARAMETERS
from smlmtut.estimation.likelihood import surrogate_log_likelihood
from smlmtut.imaging import simulate
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.posterior.one import Posterior, Prior, grid_posterior

READ = 2.3**2  # e⁻²


def draw(count, prior: Prior, shape, seed, read=READ):
    """Parameters (count, 5) from the prior and frames (count, H, W) from the exact camera, in photo-electrons."""
    generator = torch.Generator().manual_seed(seed)
    bounds = prior.bounds(shape)
    theta = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * torch.rand(
        count, 5, generator=generator, dtype=torch.float64
    )
    if prior.disc is not None:
        emitters = simulate.uniform_on_disc(count, 1, prior.disc[2], prior.disc[:2], 1.0, generator)
        theta[:, 0], theta[:, 1] = emitters.u[:, 0], emitters.v[:, 0]
    x = simulate.frames(
        emitters_of(theta), PSF(theta[:, 4:]), Camera(read_variance=read), shape, theta[:, 3], generator
    )
    return theta, x


def emitters_of(theta) -> Emitters:
    return Emitters(theta[:, :1], theta[:, 1:2], theta[:, 2:3])


def brute_force(frame, read, prior: Prior, ranges, counts):
    """log evidence, means (5,), E and Var of the KDE by the midpoint rule on a grid, from psf and likelihood."""
    nodes = []
    for (low, high), n in zip(ranges, counts, strict=True):
        step = (high - low) / n
        nodes.append(low + step * (torch.arange(n, dtype=torch.float64) + 0.5))
    theta = torch.cartesian_prod(*nodes)
    volume = math.prod((b - a) / n for (a, b), n in zip(ranges, counts, strict=True) if b > a)
    if prior.disc is not None:
        theta = theta[torch.hypot(theta[:, 0] - prior.disc[0], theta[:, 1] - prior.disc[1]) <= prior.disc[2]]
    sensor, shape = Camera(read_variance=read), tuple(frame.shape)
    log_l = []
    for part in theta.split(4000):
        rate = expected_photons(emitters_of(part), PSF(part[:, 4:]), shape, part[:, 3])
        log_l.append(surrogate_log_likelihood(frame, rate, sensor).sum((1, 2)))
    log_l = torch.cat(log_l)
    weight = torch.softmax(log_l, 0)
    pixel, place = torch.unique(theta[:, :2], dim=0, return_inverse=True)
    p = weight.new_zeros(len(pixel)).index_add_(0, place, weight)
    y = kde_image(Emitters(pixel[:, :1], pixel[:, 1:], torch.ones(len(pixel), 1, dtype=torch.float64)), shape)[:, 0]
    mean = torch.einsum("n,nhw->hw", p, y)
    variance = torch.einsum("n,nhw->hw", p, (y - mean) ** 2)
    log_evidence = float(torch.logsumexp(log_l, 0)) + math.log(volume) + prior.log_density(shape)
    return log_evidence, weight @ theta, mean, variance


def around(p: Posterior, prior: Prior, width=6.5):
    """Ranges of `width` sd about the means, within the prior."""
    bounds = prior.bounds((p.frame.shape[0], p.frame.shape[1])).tolist()
    pairs = zip(p.mean().values(), p.sd().values(), bounds, strict=True)
    return [(max(m - width * s, low), min(m + width * s, high)) for m, s, (low, high) in pairs]


@pytest.mark.parametrize("photons", [250.0, 1500.0])
def test_brute_force_in_three_dimensions_with_a_map_of_the_read_noise(photons):
    read = READ * (0.2 + 1.6 * torch.rand(9, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    prior = Prior(background=4.0, sigma=1.05)
    theta = torch.tensor([[4.3, 3.6, photons, 4.0, 1.05]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    x = simulate.frames(emitters_of(theta), PSF(1.05), Camera(read_variance=read), (9, 10), 4.0, generator)[0]
    p = grid_posterior(x, read, prior)
    # the midpoint rule with steps of 13/32 sd over ±6.5 sd: 1e-9 is left out, aliasing is far below
    log_evidence, mean, y, var = brute_force(x, read, prior, around(p, prior), (32, 32, 32, 1, 1))
    assert p.log_evidence == pytest.approx(log_evidence, abs=1e-6)
    for i, name in enumerate(PARAMETERS):
        assert abs(p.mean()[name] - float(mean[i])) <= 1e-6 * max(1, float(mean[i]))
    e, v = p.kde_moments()
    assert e.shape == (36, 40)
    assert float((e - y).abs().max()) < 1e-6
    assert float((v - var).abs().max()) < 1e-6


def test_brute_force_in_five_dimensions():
    prior = Prior(sigma=(0.6, 1.5))  # wide: nothing but the photons' tail is cut, and the midpoint rule converges
    theta = torch.tensor([[3.2, 2.7, 600.0, 6.0, 1.02]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x = simulate.frames(emitters_of(theta), PSF(1.02), Camera(read_variance=READ), (7, 7), 6.0, generator)[0]
    p = grid_posterior(x, READ, prior)
    # 13 steps of 0.85 sd over ±5.5 sd: 2e-7 of the mass is left out, and the rule's aliasing, 2 exp(−2π²/.85²)
    # for independent parameters, is some 1e-6 for those of this frame, whose correlations reach 0.6
    log_evidence, mean, y, var = brute_force(x, READ, prior, around(p, prior, 5.5), (13, 13, 13, 13, 13))
    assert p.log_evidence == pytest.approx(log_evidence, abs=2e-5)
    for i, name in enumerate(PARAMETERS):
        assert abs(p.mean()[name] - float(mean[i])) < 1e-4 * p.sd()[name]
    e, v = p.kde_moments()
    assert float((e - y).abs().max()) < 1e-5
    assert float((v - var).abs().max()) < 1e-5


@pytest.mark.parametrize("place", ["edge", "disc", "rim"])
def test_brute_force_where_the_prior_cuts(place):
    """Emitters at the corner of the frame, at the side of a disc, and at its end along u, where chords vanish."""
    position = {"edge": None, "disc": (4.0, 4.0, 3.0), "rim": (4.0, 4.0, 3.0)}[place]
    u, v = {"edge": (-0.3, 0.1), "disc": (6.0, 6.15), "rim": (6.95, 4.1)}[place]
    prior = Prior(background=5.0, sigma=1.0, position=position)
    theta = torch.tensor([[u, v, 400.0, 5.0, 1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    x = simulate.frames(emitters_of(theta), PSF(1.0), Camera(read_variance=READ), (9, 9), 5.0, generator)[0]
    p = grid_posterior(x, READ, prior)
    log_evidence, mean, y, var = brute_force(x, READ, prior, around(p, prior), (90, 90, 10, 1, 1))
    # the midpoint rule misjudges a straight edge by h²/24 of the slope (h = 0.15 sd), a curved one by cells cut in two:
    # 1e-3 of the mass; E and Var are at most 1 and 1/4 and change by that share
    assert p.log_evidence == pytest.approx(log_evidence, abs=2e-3)
    e, v_y = p.kde_moments()
    assert float((e - y).abs().max()) < 2e-3
    assert float((v_y - var).abs().max()) < 2e-3
    assert abs(p.mean()["u"] - float(mean[0])) < 5e-3 * p.sd()["u"] + 1e-4


@pytest.mark.parametrize("photons", [130.0, 700.0, 1900.0])
def test_a_grid_with_half_as_many_nodes_more_per_axis_changes_nothing(photons):
    prior = Prior()
    theta = torch.tensor([[5.3, 2.8, photons, 8.0, 0.96]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    x = simulate.frames(emitters_of(theta), PSF(0.96), Camera(read_variance=READ), (10, 10), 8.0, generator)[0]
    coarse, fine = grid_posterior(x, READ, prior), grid_posterior(x, READ, prior, resolution=1.5)
    for a, b in zip(coarse.kde_moments(), fine.kde_moments(), strict=True):
        assert float((a - b).abs().max()) < 2e-6  # DEPTH leaves out exp(−18) per sd of the edge, the rule about 1e-7
    assert coarse.log_evidence == pytest.approx(fine.log_evidence, abs=2e-6)


def test_bright_emitters_reach_the_cramer_rao_bound():
    theta = torch.tensor([[5.2, 4.9, 1e5, 10.0, 1.0]], dtype=torch.float64)
    prior = Prior(photons=(5e4, 2e5), background=(0.0, 30.0), sigma=(0.8, 1.2))
    generator = torch.Generator().manual_seed(6)
    x = simulate.frames(emitters_of(theta), PSF(1.0), Camera(read_variance=READ), (11, 11), 10.0, generator)[0]
    names = ["u", "v", "photons", "sigma", "background"]
    bound = localization_bound(emitters_of(theta), PSF(1.0), Camera(read_variance=READ), (11, 11), 10.0, names)[0]
    sd = grid_posterior(x, READ, prior).sd()
    for name, value in zip(names, bound.tolist(), strict=True):
        # corrections are of the order 1/√N = 0.3 %; but b has information from 121 pixels of 10 e⁻ only: 1/√1210 = 3 %
        assert sd[name] == pytest.approx(value, rel=0.1 if name == "background" else 0.01)


def test_moments_of_the_kde_and_of_the_parameters_are_those_of_its_samples():
    _, frames = draw(1, Prior(photons=(200.0, 600.0)), (9, 9), seed=7)
    p = grid_posterior(frames[0], READ, Prior(photons=(200.0, 600.0)))
    n = 4000
    samples = p.sample(n, torch.Generator().manual_seed(8))
    assert samples.shape == (n, 5)
    assert torch.equal(samples, p.sample(n, torch.Generator().manual_seed(8)))
    for i, name in enumerate(PARAMETERS):
        z = (float(samples[:, i].mean()) - p.mean()[name]) / p.sd()[name] * math.sqrt(n)
        assert abs(z) < 5  # standard errors
        assert float(samples[:, i].std()) == pytest.approx(p.sd()[name], rel=5 * 1.2 / math.sqrt(2 * n))
        values, density = p.marginal(name)
        assert float(density.sum() * (values[1] - values[0])) == pytest.approx(1, abs=1e-5)
        assert kstest(p.cdf(name, samples[:500, i]).numpy(), "uniform").pvalue > 1e-6
    y = kde_image(emitters_of(samples), (9, 9))[:, 0]
    e, v = p.kde_moments()
    assert bool(((y.mean(0) - e).abs() <= 5 * (v / n).sqrt() + 3e-3 * e + 1e-6).all())
    level = [p.credible_level(float(a), float(b)) for a, b in samples[:500, :2]]
    assert kstest(level, "uniform").pvalue > 1e-6


def test_samples_of_an_emitter_at_a_corner_follow_its_correlations():
    """Cut by the frame on two sides, N hangs together with u and v there: the covariance shows it."""
    prior = Prior(photons=(100.0, 600.0), background=3.0, sigma=1.0)
    theta = torch.tensor([[-0.45, -0.4, 250.0, 3.0, 1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(11)
    x = simulate.frames(emitters_of(theta), PSF(1.0), Camera(read_variance=READ), (9, 9), 3.0, generator)[0]
    p, n = grid_posterior(x, READ, prior), 8000
    samples = p.sample(n, generator)
    columns = [("u", p.u), ("v", p.v)]
    for i, (name, values) in enumerate(columns):
        z = (samples[:, [i, 2]] - samples.new_tensor([p.mean()[name], p.mean()["photons"]])) / samples.new_tensor(
            [p.sd()[name], p.sd()["photons"]]
        )
        centred = (values - p.mean()[name])[:, None] * (p.photons.nodes - p.mean()["photons"])
        correlation = float((p.mass * centred).sum()) / p.sd()[name] / p.sd()["photons"]
        assert abs(float(z.mean(0).abs().max())) < 5 / math.sqrt(n)  # standard errors
        assert float(z.prod(1).mean()) == pytest.approx(correlation, abs=5 * 2 / math.sqrt(n))  # sd of a product: < 2


CALIBRATED = {
    "position and photons, disc": (Prior((100.0, 900.0), 5.0, 1.0, (4.0, 4.0, 3.5)), 150),
    "all five": (Prior((150.0, 900.0), (0.5, 12.0)), 25),
}


@pytest.mark.parametrize("case", CALIBRATED)
def test_calibrated_over_frames_drawn_from_the_prior(case):
    """Ranks of the truth and levels of its credible sets are uniform, and E[E[y | x]] = E[y] (the tower rule)."""
    prior, count = CALIBRATED[case]
    theta, frames = draw(count, prior, (9, 9), seed=9)
    bounds = prior.bounds((9, 9))
    open_names = [name for name, (low, high) in zip(PARAMETERS, bounds.tolist(), strict=True) if low < high]
    ranks: dict[str, list[float]] = {name: [] for name in [*open_names, "level"]}
    mean, error, variance = (torch.zeros(36, 36, dtype=torch.float64) for _ in range(3))
    y = kde_image(emitters_of(theta), (9, 9))[:, 0]
    for frame, truth, image in zip(frames, theta, y, strict=True):
        p = grid_posterior(frame, READ, prior)
        for name in open_names:
            ranks[name].append(float(p.cdf(name, float(truth[PARAMETERS.index(name)]))))
        ranks["level"].append(p.credible_level(float(truth[0]), float(truth[1])))
        e, v = p.kde_moments()
        mean, error, variance = mean + e, error + (image - e) ** 2, variance + v
    for name, values in ranks.items():
        # the surrogate stands in for the exact mixture: its error is far below what so many frames can see
        assert kstest(values, "uniform").pvalue > 1e-6, name
    # y − E[y | x] has mean 0 and variance E[Var[y | x]]: the sums over all pixels, in standard errors
    total = float((y.sum(0) - mean).abs().max())
    assert total < 6 * math.sqrt(float(variance.max()))
    # Σ (y − E)² / Σ Var is 1 within some 5/√count times the spread of a frame's ratio, about 1
    assert float(error.sum() / variance.sum()) == pytest.approx(1, abs=6 / math.sqrt(count))


def test_two_equal_modes_are_both_found():
    """Two equal emitters in a frame that holds one by the prior: the mass is shared evenly, by symmetry."""
    rate = expected_photons(
        Emitters(*(torch.tensor([x], dtype=torch.float64) for x in ([2.2, 9.8], [6.0, 6.0], [300.0, 300.0]))),
        PSF(1.0),
        (13, 13),
        6.0,
    )[0]
    p = grid_posterior(rate, READ, Prior(sigma=1.0))
    left = p.u < 6
    assert float(p.mass[left].sum()) == pytest.approx(0.5, abs=1e-6)
    assert p.mean()["u"] == pytest.approx(6, abs=1e-5)
    e, _ = p.kde_moments()
    torch.testing.assert_close(e, e.flip(1), rtol=0, atol=1e-6)


def test_log_density_is_likelihood_times_prior():
    prior = Prior(position=(1.0, 6.0, 2.0, 7.0))
    theta, frames = draw(1, prior, (9, 8), seed=10)
    p = grid_posterior(frames[0], READ, prior)
    rate = expected_photons(emitters_of(theta), PSF(theta[:, 4:]), (9, 8), theta[:, 3])
    expected = surrogate_log_likelihood(frames[0], rate[0], Camera(read_variance=READ)).sum()
    assert float(p.log_density(theta)) == pytest.approx(float(expected) - math.log(25 * 1900 * 20 * 0.16), abs=1e-8)
    theta[0, 0] = 0.9
    assert float(p.log_density(theta)) == -math.inf


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda x: Prior(photons=(5.0, 1.0)), ("photons", "low < high", "(5.0, 1.0)")),
        (lambda x: Prior(background=-1.0), ("background", "not negative", "-1")),
        (lambda x: Prior(sigma=0.0), ("sigma", "positive", "0")),
        (lambda x: Prior(position=(1.0, 2.0)), ("position", "radius", "(1.0, 2.0)")),
        (lambda x: Prior(position=(1.0, 2.0, -3.0)), ("position", "area", "-3")),
        (lambda x: grid_posterior(x[None]), ("frame", "2 dimensions", "(1, 8, 8)")),
        (lambda x: grid_posterior(x * math.nan), ("frame", "finite", "nan")),
        (lambda x: grid_posterior(x - 9), ("frame", "not be negative", "-")),
        (lambda x: grid_posterior(x, -1.0), ("read_variance", "not negative", "-1")),
        (lambda x: grid_posterior(x, torch.ones(7, 8)), ("read_variance", "(8, 8)", "(7, 8)")),
        (lambda x: grid_posterior(x, 1.0, resolution=0.0), ("resolution", "positive", "0")),
        (lambda x: bright(x).cdf("sigma", 1.0), ("name", "leaves open", "'sigma'")),
        (lambda x: bright(x).cdf("gain", 1.0), ("name", "'u'", "'gain'")),
        (lambda x: bright(x).credible_level(math.nan, 1.0), ("u", "finite", "nan")),
        (lambda x: bright(x).kde_moments(sigma=0.0), ("sigma", "positive", "0")),
        (lambda x: bright(x).kde_moments(sigma=0.1), ("sigma", "resolution", "0.1")),
        (lambda x: bright(x).sample(0, torch.Generator()), ("n", "at least 1", "0")),
    ],
)
def test_bad_input_is_named(call, says):
    x = expected_photons(Emitters.single(3.2, 4.1, 300.0), PSF(1.0), (8, 8), 5.0)[0]
    with pytest.raises(ValueError) as error:
        call(x)
    for words in says:
        assert words in str(error.value)


def bright(x) -> Posterior:
    return grid_posterior(x, 1.0, Prior(background=5.0, sigma=1.0))
