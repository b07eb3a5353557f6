"""Importance sampling from the modes, held against a grid, a quadrature, Markov chains and permutations."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from smlmtut import data
from smlmtut._random import step_generator
from smlmtut.evaluation import against_exact
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.posterior import Prior, chain_posterior, count_prior, grid_posterior, mode_posterior, modes, sweeps
from smlmtut.posterior.mode_search import Mode, Problem
from smlmtut.posterior.normal_modes import NormalModes

SHAPE = (9, 9)
PRIOR = Prior(position=(-0.5, 8.5, -0.5, 8.5))
WIDE = (-3.5, 18.5, -3.5, 18.5)  # of the reference: 3 px beyond its frames


def frame(*places: tuple[float, float, float], seed: int = 0, variance: float = 2.0) -> torch.Tensor:
    """(1, 9, 9) photo-electrons of emitters (u, v, N) on a background of 5 with photon and read noise."""
    u, v, photons = (torch.tensor([x], dtype=torch.float64) for x in zip(*places, strict=True))
    rate = expected_photons(Emitters(u, v, photons), PSF(1.0), SHAPE, 5.0)
    noise = torch.randn(rate.shape, generator=step_generator(seed, 1), dtype=rate.dtype)
    return torch.poisson(rate, step_generator(seed, 0)) + math.sqrt(variance) * noise


def start(*places: tuple[float, float, float]) -> Emitters:
    u, v, photons = (torch.tensor([x], dtype=torch.float64) for x in zip(*places, strict=True))
    return Emitters(u, v, photons)


def test_one_emitter_has_the_grids_mean_and_sd():
    """Known that there is one. 4,000 draws: the error of a mean is 1.6 % of the sd, that of an sd 1.1 %."""
    x, one = frame((4.2, 3.7, 300.0)), torch.tensor([0.0, 1.0])
    grid = grid_posterior(x[0], 2.0, PRIOR)
    guess = start((4.0, 4.0, 500.0))
    found = mode_posterior(x, one, guess, step_generator(1, 0), 2.0, PRIOR, 4000, draws=20_000)
    drawn = {"u": found.u[0, :, 0], "v": found.v[0, :, 0], "photons": found.photons[0, :, 0]}
    drawn |= {"background": found.background[0], "sigma": found.sigma[0]}
    exact = grid.sample(40_000, step_generator(2, 0))
    for k, (name, values) in enumerate(drawn.items()):
        mean, sd = float(exact[:, k].mean()), float(exact[:, k].std())
        assert float(values.mean()) == pytest.approx(mean, abs=0.07 * sd), name
        assert float(values.std()) == pytest.approx(sd, rel=0.05), name
    assert found.count_probability.tolist() == [[0.0, 1.0]] and float(found.size) > 4000


def test_no_draw_within_the_prior_is_told(monkeypatch):
    """As in a crowd of thirty: not the draw that comes last, silently, but the mode, with an effective size of 0."""
    monkeypatch.setattr(modes, "_inside", lambda problem, theta, present: torch.zeros(len(theta), dtype=torch.bool))
    x, guess = frame((4.2, 3.7, 300.0)), start((4.0, 4.0, 300.0))
    found = mode_posterior(x, torch.tensor([0.0, 1.0]), guess, step_generator(1, 0), 2.0, PRIOR, 32)
    assert found.size.tolist() == [0] and not found.count_probability.any()
    assert found.u.shape == (1, 32, 1) and bool((found.u - 4.2).abs().max() < 0.5)
    assert bool((found.photons - 300).abs().max() < 100) and not float(found.photons.var())


@pytest.mark.parametrize("photons", [50.0, 55.0, 60.0])
def test_one_or_none_has_the_evidence_of_grid_and_quadrature(photons):
    """A dim emitter, which the prior allows from 30 photons on: both numbers are possible.

    At 40 photons p(K = 1) is .002, spread over the frame, and its log evidence has an error of .3.
    """
    prior = Prior(photons=(30.0, 2000.0), position=PRIOR.position)
    x = frame((4.2, 3.7, photons), seed=3)
    one = grid_posterior(x[0], 2.0, prior).log_evidence
    counts, flat = x[0] + 2.0, lambda b: torch.tensor(b + 2.0, dtype=torch.float64)
    constant = float(-torch.lgamma(counts + 1).sum())
    at = lambda b: float((counts * flat(b).log() - flat(b)).sum()) + constant  # noqa: E731
    peak = at(float(x.mean().clamp(0, 20)))
    none = peak + math.log(quad(lambda b: math.exp(at(b) - peak), 0, 20, epsabs=0, epsrel=1e-9)[0] / 20)
    found = mode_posterior(x, torch.tensor([0.5, 0.5]), start((4.0, 4.0, 200.0)), step_generator(4, 0), 2.0, prior,
                           draws=20_000)  # fmt: skip
    difference = float(found.log_evidence[0, 1] - found.log_evidence[0, 0])
    assert difference == pytest.approx(one - none, abs=0.1)
    assert float(found.count_probability[0, 1]) == pytest.approx(1 / (1 + math.exp(none - one)), abs=0.03)


def reference(kind: str, most: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """The first frames of the reference, their photo-electrons and read variance."""
    found = data.reference_posteriors("dev", kind)
    known = {name: torch.from_numpy(np.asarray(values[:most], dtype="f8")) for name, values in found.items()}
    camera = Camera(known["gain"], known["offset"], known["read_variance"])
    return known, to_photoelectrons(known["adu"], camera), torch.as_tensor(camera.read_variance_electrons)


def posterior_of(kind: str, most: int):
    """What the modes say of the first frames of the reference, from one emitter at the brightest pixel on."""
    known, electrons, variance = reference(kind, most)
    bright = electrons.flatten(1).argmax(1)
    guess = Emitters((bright % 16).double()[:, None], (bright // 16).double()[:, None], torch.full((most, 1), 800.0))
    prior = Prior(position=WIDE)
    return known, mode_posterior(
        electrons, count_prior(12, (16, 16), margin=3.0), guess, step_generator(5, 0), variance, prior
    )


def images(u: torch.Tensor, v: torch.Tensor, photons: torch.Tensor) -> torch.Tensor:
    flat = Emitters(u.flatten(0, 1), v.flatten(0, 1), photons.flatten(0, 1), photons.flatten(0, 1) > 0)
    return kde_image(flat, (16, 16)).float().reshape(*u.shape[:2], 64, 64)


@pytest.mark.parametrize("kind", ["lone", "pair", "sparse"])
def test_the_draws_are_those_of_markov_chains(kind):
    """8 frames, K unknown: the energy distance of both kinds of draws is 0 within three errors."""
    known, found = posterior_of(kind, 8)
    exact = images(known["draw_u"], known["draw_v"], known["draw_photons"])
    regret = against_exact.energy_regret(images(found.u, found.v, found.photons), exact)
    assert regret.relative() < 3 * regret.error() + 0.01
    assert float(found.size.median()) > 100
    inside = (found.photons > 0) & (found.u > -0.5) & (found.u < 15.5) & (found.v > -0.5) & (found.v < 15.5)
    number = inside.sum(2)
    said = torch.stack([(number == k).double().mean(1) for k in range(known["p_inside"].shape[1])], 1)
    assert float((said - known["p_inside"]).square().mean().sqrt()) < 0.05


def test_ten_times_the_prior_odds_are_ten_times_the_posterior_odds():
    known, electrons, variance = reference("pair", 6)
    guess = Emitters(known["truth_u"][:, :1], known["truth_v"][:, :1], torch.full((6, 1), 800.0))
    counts = count_prior(6, (16, 16), margin=3.0)
    tilted = counts * 10.0 ** torch.arange(7)
    plain, more = (
        mode_posterior(electrons, p / p.sum(), guess, step_generator(6, 0), variance, Prior(position=WIDE), draws=4000)
        for p in (counts, tilted)
    )
    odds = [(x.log_evidence[:, 2] - x.log_evidence[:, 1]) for x in (plain, more)]
    both = odds[0].isfinite() & odds[1].isfinite()
    assert int(both.sum()) >= 3
    assert torch.allclose((odds[1] - odds[0])[both], torch.tensor(math.log(10.0)).double(), atol=0.2)


def test_the_order_and_the_number_of_the_first_guess_do_not_matter():
    x = frame((3.0, 4.0, 900.0), (5.2, 4.4, 700.0), seed=7)
    counts = count_prior(4, SHAPE)
    guesses = [start((3.0, 4.0, 800.0), (5.0, 4.0, 800.0)), start((5.0, 4.0, 800.0), (3.0, 4.0, 800.0)),
               start((4.0, 4.0, 800.0))]  # fmt: skip
    found = [mode_posterior(x, counts, guess, step_generator(8, 0), 2.0, PRIOR, draws=4000) for guess in guesses]
    for other in found[1:]:
        assert float((other.count_probability - found[0].count_probability).abs().max()) < 0.03
        assert float((other.log_evidence.logsumexp(1) - found[0].log_evidence.logsumexp(1)).abs()) < 0.1


def test_the_same_generator_gives_the_same_draws_and_padding_is_zero():
    x = torch.cat([frame((4.0, 4.0, 900.0)), frame((2.0, 2.0, 900.0), (6.0, 6.0, 900.0), seed=9)])
    place, present = torch.tensor([[4.0, 0.0], [2.0, 6.0]]).double(), torch.tensor([[True, False], [True, True]])
    guess = Emitters(place, place, torch.full_like(place, 800.0), present)
    first, second = (
        mode_posterior(x, count_prior(3, SHAPE), guess, step_generator(1, 0), 2.0, PRIOR) for _ in range(2)
    )
    assert torch.equal(first.u, second.u) and len(first) == 2 and first.u.shape[1] == 64
    assert not first.u[first.photons == 0].any() and first.emitters(1).mask.sum(1).float().mean() > 1.5
    assert bool((first.size >= 1).all()) and torch.allclose(first.count_probability.sum(1), torch.ones(2).double())


def test_a_set_counts_once_whatever_its_order_and_however_close_its_emitters_are():
    """Three and two emitters within a pixel: one order of each is drawn, and all have the sum of the densities."""
    places = torch.tensor([(4.0, 4.0, 700.0), (4.5, 4.2, 600.0), (4.2, 5.0, 500.0)]).double()
    x, draws = frame(*places.tolist(), seed=11), 200
    problem = Problem(x, torch.full_like(x, 2.0), count_prior(3, SHAPE).log(), PRIOR.bounds(SHAPE))
    sets = (places, places.flip(0) + torch.tensor([0.2, -0.1, 50.0]), places[:2], places[1:])
    modes = NormalModes.of(problem, [[Mode(emitters, 0.0, 0.0) for emitters in sets]])
    share = torch.zeros_like(modes.log_share)
    for count in (2, 3):
        r = int((modes.number[0] == count).nonzero()[0])
        own, number = torch.full((1, draws), r), torch.full((1, draws), count)
        noise = torch.randn(1, draws, modes.mean.shape[2], generator=step_generator(0, 0), dtype=torch.float64)
        theta, named, said = modes.draw(own, noise), 0, []
        for order in itertools.permutations(range(count)):
            kept, other = [3 * k + j for k in order for j in range(3)], theta.clone()
            other[..., : 3 * count] = theta[..., kept]
            named = named + modes.named_as_drawn(own, other).int()
            said.append(modes.log_density(other, number, share))
        assert bool((torch.as_tensor(named) == 1).all())
        assert all(torch.allclose(density, said[0]) for density in said)
        good = modes.named_as_drawn(own, theta)
        assert 0.2 < float(good.double().mean()) < 1  # some draws are void
        alone = torch.full_like(share, -math.inf)
        alone[0, r] = 0.0  # a normal distribution's density where its mode names the emitters as they are
        cut = torch.cat([torch.arange(3 * count), torch.tensor([-2, -1]) + modes.mean.shape[2]])
        precision = (modes.factor[0, r] @ modes.factor[0, r].mT)[cut][:, cut]
        normal = torch.distributions.MultivariateNormal(modes.mean[0, r, cut], precision_matrix=precision)
        density = modes.log_density(theta, number, alone)
        assert torch.allclose(density[good], normal.log_prob(theta[..., cut])[good])


@pytest.mark.parametrize("margin", [0.0, 3.0])
def test_jumps_alone_leave_the_posterior_as_it_is(margin, monkeypatch):
    """K changes by jumps only: p(K) of the chains that other moves give, on a pair that may be one, or three.

    A K! or a density of the wrong measure would change the odds of one and two by 2 or more.
    """
    x, ends = frame((4.0, 4.0, 250.0), (4.9, 4.6, 250.0), seed=12), (-0.5 - margin, 8.5 + margin)
    prior, counts = Prior(position=(*ends, *ends)), torch.tensor([0.01, 0.09, 0.5, 0.4])
    settings: dict[str, Any] = {"chains": 256, "draws": 40, "thin": 5, "burn_in": 100}
    guess = start((4.0, 4.0, 250.0), (4.9, 4.6, 250.0))
    plain = chain_posterior(x, counts, step_generator(1, 0), 2.0, prior, **settings)
    both = chain_posterior(x, counts, step_generator(2, 0), 2.0, prior, **settings, jumps=True)
    all_moves = sweeps.sweep_of
    of_fixed = {"birth and death", "split and merge"}
    monkeypatch.setattr(sweeps, "sweep_of", lambda target: [m for m in all_moves(target) if m[0] not in of_fixed])
    alone = chain_posterior(x, counts, step_generator(3, 0), 2.0, prior, **settings, start=guess, jumps=True)
    p = [draws.count_probability()[0] for draws in (plain, both, alone)]
    assert 0.05 < float(p[0][1]) < 0.95 and 0.02 < float(p[0][2]) < 0.95
    assert float((p[1] - p[0]).abs().max()) < 0.02
    if margin == 0:  # beyond the border no jump adds or removes an emitter
        # chains that start empty may stay so long: those that start with two are compared
        late = alone.count[0, 128:].flatten()
        assert float((torch.stack([(late == k).double().mean() for k in range(4)]) - p[0]).abs().max()) < 0.03
    assert float(alone.acceptance["jump"].mean()) > 0.02
    mean, variance = (m[0] for m in plain.kde_moments())
    other = both.kde_moments()[0][0]
    assert float(((other - mean) / variance.max().sqrt()).abs().max()) < 0.06


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"start": start((1.0, 1.0, 1.0)), "frames": torch.ones(2, 9, 9)}, "start must have a row for each of the 2"),
        ({"frames": torch.full((1, 9, 9), math.nan)}, "frames must be finite"),
        ({"prior": Prior(sigma=1.0)}, "prior must have intervals for all parameters and no disc"),
        ({"prior": Prior(position=(4.0, 4.0, 2.0))}, "prior must have intervals for all parameters and no disc"),
        ({"counts": torch.tensor([0.5, 0.6])}, "counts must"),
        ({"samples": 0}, "samples must be"),
        ({"draws": 0}, "draws must be"),
        ({"rounds": 0}, "rounds must be"),
    ],
)
def test_bad_input(change, why):
    good = {"frames": torch.ones(1, 9, 9), "counts": torch.tensor([0.5, 0.5]), "start": start((4.0, 4.0, 300.0)),
            "generator": step_generator(0, 0), "read_variance": 1.0}  # fmt: skip
    with pytest.raises(ValueError, match=why):
        mode_posterior(**(good | change))
