"""The batched fit against scipy's optimizer, psf's gradient, fisher's information and Monte-Carlo."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import ndtr

from smlmtut.estimation import fisher, likelihood
from smlmtut.estimation.fit import Fit, first_guess, fit_spots
from smlmtut.imaging import camera, simulate
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, rate_gradient

SHAPE = (11, 11)
FULL = ("u", "v", "photons", "background", "sigma")
READ = 2.3  # photo-electrons², about 1.5 e- read noise


def scene(
    count,
    photons=500.0,
    background=5.0,
    sigma=1.0,
    variance: float | torch.Tensor = 0.0,
    shape=SHAPE,
    seed=0,
    spread=0.5,
):
    """Spots (B, h, w) in photo-electrons with emitters about the centre, and their emitters."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([(shape[1] - 1) / 2, (shape[0] - 1) / 2], dtype=torch.float64)
    position = centre + spread * (2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1)
    emitters = Emitters(position[:, :1], position[:, 1:], torch.full((count, 1), photons, dtype=torch.float64))
    rate = expected_photons(emitters, PSF(sigma), shape, background)
    noise = torch.randn(rate.shape, generator=generator, dtype=torch.float64)
    return torch.poisson(rate, generator=generator) + noise * torch.as_tensor(variance).sqrt(), emitters


def emitters_of(fit: Fit) -> Emitters:
    return Emitters(*(x.double()[:, None] for x in (fit.u, fit.v, fit.photons)))


def sigma_of(fit: Fit, fixed=1.0):
    return fit.sigma.double()[:, None] if "sigma" in fit.parameters else fixed


def rate_of(fit: Fit, shape=SHAPE, fixed=1.0):
    """ω of the estimates by psf, which knows nothing of the fit (its background may be negative: added here)."""
    return expected_photons(emitters_of(fit), PSF(sigma_of(fit, fixed)), shape) + fit.background[:, None, None]


def information_of(fit: Fit, variance, shape=SHAPE):
    """(B, P, P) in the fit's order, from psf and fisher."""
    names = [name for name in fit.parameters if name != "background"] + ["background"]
    gradient = rate_gradient(emitters_of(fit), PSF(sigma_of(fit)), shape, names)
    order = [names.index(name) for name in fit.parameters]
    sensor = camera.Camera(read_variance=variance)
    return fisher.fisher_information(
        gradient[:, order], fisher.surrogate_pixel_information(rate_of(fit, shape), sensor)
    )


def best_by_scipy(spot, start, variance):
    """Minimum of −log-likelihood of one spot by numpy and scipy alone: a search without derivatives."""
    scale = np.array([0.1, 0.1, 30.0, 0.5, 0.1])[: len(start)]
    counts, edges = spot.numpy() + variance, np.arange(-0.5, SHAPE[0])

    def cost(z):
        u, v, photons, background, sigma = [*(start + z * scale), 1.0][:5]
        if photons <= 0 or sigma < 0.2 or background + variance <= 0:
            return 1e9
        rows, columns = (np.diff(ndtr((edges - centre) / sigma)) for centre in (v, u))
        rate = photons * np.outer(rows, columns) + background + variance
        return (rate - counts * np.log(rate)).sum()

    options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 20000, "maxfev": 20000, "adaptive": True}
    found = minimize(cost, np.zeros(len(start)), method="Nelder-Mead", options=options)
    assert found.success
    return start + found.x * scale


@pytest.mark.parametrize("fit_sigma", [False, True])
@pytest.mark.parametrize("variance", [0.0, READ])
def test_scipy_finds_the_same_maximum(fit_sigma, variance):
    spots, emitters = scene(4, photons=400, variance=variance, seed=3)
    fit = fit_spots(spots, 1.0, fit_sigma, variance, tolerance=1e-7)
    assert bool(fit.converged.all())
    for k in range(len(spots)):
        start = np.array([emitters.u[k, 0], emitters.v[k, 0], 400.0, 5.0, 1.0])[: len(fit.parameters)]
        best = best_by_scipy(spots[k], start, variance)
        # Nelder-Mead stops where the cost is flat to 1e-10 nats, that is within about 1e-5 sd
        np.testing.assert_allclose((best - fit.estimate[k].numpy()) / fit.sd[k].numpy(), 0, atol=1e-3)


@pytest.mark.parametrize("fit_sigma", [False, True])
def test_the_score_vanishes_at_the_estimate_and_the_default_tolerance_is_far_below_the_noise(fit_sigma):
    spots, _ = scene(200, photons=300, variance=READ, seed=4)
    fit = fit_spots(spots, 1.1, fit_sigma, READ)
    names = [name for name in fit.parameters if name != "background"] + ["background"]
    gradient = rate_gradient(emitters_of(fit), PSF(sigma_of(fit, 1.1)), SHAPE, names)
    rate = rate_of(fit, fixed=1.1)
    score = (gradient * ((spots + READ) / (rate + READ) - 1)[:, None]).sum((2, 3))  # (B, P)
    order = [names.index(name) for name in fit.parameters]
    # a step below 1e-2 sd stops the search: score times sd is of that order, more where parameters correlate
    assert float((score[:, order] * fit.sd).abs().max()) < 0.05
    exact = fit_spots(spots, 1.1, fit_sigma, READ, tolerance=1e-9)
    assert float(((fit.estimate - exact.estimate) / exact.sd).abs().max()) < 0.02


@pytest.mark.parametrize("fit_sigma", [False, True])
def test_claimed_sd_is_the_bound_of_psf_and_fisher_at_the_estimate(fit_sigma):
    spots, _ = scene(50, variance=READ, seed=5)
    fit = fit_spots(spots, 1.0, fit_sigma, READ)
    expected = fisher.bound(information_of(fit, READ))
    torch.testing.assert_close(fit.sd, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance", [0.0, READ])
def test_deviance_and_chi_square_are_those_of_likelihood(variance):
    spots, _ = scene(300, photons=150, background=0.3 if variance else 1.0, variance=variance, seed=6)
    assert bool(((spots + variance) < 0).any()) == (variance > 0)  # the case x' < 0 is among them
    fit = fit_spots(spots, 1.0, True, variance)
    rate = rate_of(fit)
    good = (rate >= 0).all(2).all(1)  # likelihood takes no negative ω
    sensor = camera.Camera(read_variance=variance)
    expected = likelihood.deviance(spots[good], rate[good], sensor).sum((1, 2))
    torch.testing.assert_close(fit.deviance[good], expected, rtol=1e-10, atol=1e-9)
    chi_square = ((spots - rate) ** 2 / (rate + variance)).sum((1, 2))
    torch.testing.assert_close(fit.chi_square, chi_square, rtol=1e-10, atol=0)
    assert int(good.sum()) > 250


@pytest.mark.parametrize("variance", [0.0, READ])
@pytest.mark.parametrize("fit_sigma", [False, True])
def test_unbiased_efficient_and_honest_about_it(fit_sigma, variance):
    """At N = 1000: mean error, sd over bound, and claimed over observed sd, each within 5 standard errors."""
    count = 4000
    spots, emitters = scene(count, photons=1000, variance=variance, seed=7)
    fit = fit_spots(spots, 1.0, fit_sigma, variance)
    assert bool(fit.converged.all())
    truth = torch.cat([emitters.u, emitters.v, torch.tensor([[1000.0, 5.0, 1.0]]).expand(count, -1)], 1)
    names = ["u", "v", "photons", *(["sigma"] if fit_sigma else []), "background"]
    bound = fisher.localization_bound(emitters, PSF(1.0), camera.Camera(read_variance=variance), SHAPE, 5.0, names)[
        :, [names.index(name) for name in fit.parameters]
    ]
    z = (fit.estimate - truth[:, : len(fit.parameters)]) / bound
    assert float(z[:, :2].mean(0).abs().max()) < 5 / math.sqrt(count)
    # sd of n normal numbers has a standard error of 1/√(2n). The maximum-likelihood excess over the bound is of
    # order 1/N, below 1 % here, and so are the biases of N, b and σ in units of their sd.
    assert float((z.std(0) - 1).abs().max()) < 0.01 + 5 / math.sqrt(2 * count)
    assert float(z.mean(0).abs().max()) < 0.05 + 5 / math.sqrt(count)
    claimed = fit.sd.square().mean(0).sqrt() / (fit.estimate - truth[:, : len(fit.parameters)]).std(0)
    assert float((claimed - 1).abs().max()) < 0.01 + 5 / math.sqrt(2 * count)
    freedom = 121 - len(fit.parameters)
    assert abs(float(fit.chi_square.mean()) - freedom) < 5 * math.sqrt(2.2 * freedom / count) + 0.5


def test_float32_agrees_with_float64():
    for photons in (100.0, 1000.0, 1e6, 1e8):
        spots, _ = scene(300, photons=photons, seed=8)
        spots = spots.float()  # the same numbers for both: counts above 2^24 are rounded first
        single, double = (fit_spots(x, 1.0, True) for x in (spots, spots.double()))
        both = single.converged & double.converged
        assert int(both.sum()) >= 297 and single.estimate.dtype == torch.float32
        apart = (single.estimate.double() - double.estimate).abs() / double.sd
        assert float(apart[both].max()) < 0.05  # each stops within 1e-2 sd or so of the maximum
        torch.testing.assert_close(single.sd.double()[both], double.sd[both], rtol=0.02, atol=0)
        torch.testing.assert_close(single.deviance.double()[both], double.deviance[both], rtol=2e-3, atol=0.02)


@pytest.mark.parametrize("photons", [1e3, 1e6, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bright_spots_converge(photons, dtype):
    spots, _ = scene(300, photons=photons, seed=9)
    assert bool(fit_spots(spots.to(dtype), 1.0, True).converged.all())


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_chunks_do_not_matter(chunk):
    spots, _ = scene(20, photons=120, variance=READ, seed=10)
    maps = READ * torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, parts = (fit_spots(spots, 1.0, True, maps + 1, chunk=c) for c in (None, chunk))
    for name in ("estimate", "sd", "deviance", "chi_square"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    assert torch.equal(parts.converged, whole.converged) and torch.equal(parts.iterations, whole.iterations)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_devices_do_not_matter(device):
    available = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if not available:
        pytest.skip(f"no {device} device")
    spots, _ = scene(500, seed=11)
    here, there = fit_spots(spots.float(), 1.0, True), fit_spots(spots.float(), 1.0, True, device=device)
    assert there.estimate.device == spots.device
    both = here.converged & there.converged
    assert int(both.sum()) > 490
    assert float(((here.estimate - there.estimate) / here.sd)[both].abs().max()) < 0.05


def test_one_map_for_all_and_a_map_for_each():
    spots, _ = scene(20, variance=READ, seed=12)
    shared = torch.full(SHAPE, READ, dtype=torch.float64)
    results = [fit_spots(spots, 1.0, True, v) for v in (READ, shared, shared.expand(20, *SHAPE))]
    for other in results[1:]:
        torch.testing.assert_close(other.estimate, results[0].estimate, rtol=1e-10, atol=0)
    bumpy = shared.repeat(20, 1, 1)
    bumpy[3, 5, 6] = 400.0  # a hot pixel in one spot only
    hot = fit_spots(spots, 1.0, True, bumpy)
    others = torch.arange(20) != 3
    torch.testing.assert_close(hot.estimate[others], results[0].estimate[others], rtol=1e-10, atol=0)
    assert float(hot.u_sd[3]) > 1.02 * float(results[0].u_sd[3])  # that pixel now says less


def test_the_right_map_beats_no_map():
    variance = torch.full(SHAPE, READ, dtype=torch.float64)
    variance[5, 6] = 900.0  # read noise 30 e- beside the emitter
    spots, emitters = scene(2000, photons=300, variance=variance, seed=13)
    right, wrong = fit_spots(spots, 1.0, False, variance), fit_spots(spots.clamp(min=0), 1.0)
    error = [(fit.u - emitters.u[:, 0])[fit.converged].square().mean().sqrt() for fit in (right, wrong)]
    # the right map claims what is seen: 5 standard errors of an sd from 2000 spots, and 3 % for N = 300
    assert abs(float(right.u_sd.square().mean().sqrt() / error[0]) - 1) < 0.03 + 5 / math.sqrt(4000)
    assert float(error[1]) > 1.5 * float(error[0])


def test_transposing_a_spot_swaps_u_and_v():
    spots, _ = scene(30, shape=(9, 13), variance=READ, seed=14)
    fit, turned = fit_spots(spots, 1.0, True, READ), fit_spots(spots.mT.contiguous(), 1.0, True, READ)
    torch.testing.assert_close(turned.estimate[:, [1, 0, 2, 3, 4]], fit.estimate, rtol=1e-8, atol=1e-8)


def test_a_noiseless_spot_gives_the_truth_back():
    _, emitters = scene(20, seed=15)
    rate = expected_photons(emitters, PSF(1.3), SHAPE, 5.0)
    fit = fit_spots(rate, 1.0, True, tolerance=1e-8)
    truth = torch.cat(
        [emitters.u, emitters.v, torch.tensor([[500.0, 5.0, 1.3]], dtype=torch.float64).expand(20, -1)], 1
    )
    torch.testing.assert_close(fit.estimate, truth, rtol=1e-8, atol=1e-8)
    assert float(fit.deviance.abs().max()) < 1e-8


def test_a_start_of_ones_own():
    spots, _ = scene(40, seed=16)
    own = first_guess(spots, 1.0, True) + torch.tensor([0.4, -0.4, 100.0, 1.0, 0.3])
    mine, usual = fit_spots(spots, 1.0, True, start=own, tolerance=1e-7), fit_spots(spots, 1.0, True, tolerance=1e-7)
    assert bool((mine.converged & usual.converged).all())
    assert float(((mine.estimate - usual.estimate) / usual.sd).abs().max()) < 1e-5


def degenerate():
    """Spots that no fit can make sense of, by name, with the read variance that allows them."""
    flat, empty = torch.full(SHAPE, 5.0), torch.zeros(SHAPE)
    pixel, corner, ramp = flat.clone(), flat.clone(), torch.arange(121.0).reshape(SHAPE)
    pixel[5, 5] = 1e6
    corner[0, 0] = 3000.0
    two = expected_photons(simulate.emitter_pair(3.0, (5.0, 5.0), 500.0), PSF(1.0), SHAPE, 5.0)[0].float()
    edge = expected_photons(Emitters.single(-0.4, 5.0, 500.0), PSF(1.0), SHAPE, 5.0)[0].float()
    outside = expected_photons(Emitters.single(-3.0, 5.0, 5000.0), PSF(1.0), SHAPE, 5.0)[0].float()
    cases = [empty, flat, pixel, corner, ramp, two, edge, outside, torch.eye(11) * 100, 1e7 * flat, 1e-6 * flat]
    names = ["empty", "flat", "pixel", "corner", "ramp", "two", "edge", "outside", "line", "bright", "dark"]
    return names, torch.stack(cases)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fit_sigma", [False, True])
@pytest.mark.parametrize("variance", [0.0, READ])
def test_degenerate_spots_are_finite_and_flagged(dtype, fit_sigma, variance):
    names, spots = degenerate()
    fit = fit_spots(spots.to(dtype), 1.0, fit_sigma, variance)
    for table in (fit.estimate, fit.deviance, fit.chi_square):
        assert bool(table.isfinite().all())
    assert not bool(fit.sd.isnan().any()) and bool((fit.sd > 0).all())
    assert bool(fit.sd.isfinite().all(1).eq(fit.converged).all())  # an sd is claimed where the search converged
    state = dict(zip(names, fit.converged.tolist(), strict=True))
    assert not state["empty"] and not state["outside"]
    assert state["two"] and state["edge"]
    assert abs(float(fit.u[names.index("edge")]) + 0.4) < 0.05
    huge = dict(zip(names, fit.chi_square.tolist(), strict=True))["two"]
    assert huge > 121 + 5 * math.sqrt(2 * 121)  # two emitters do not pass for one


def test_negative_spots_are_fitted_where_read_noise_allows_them():
    spots, _ = scene(100, photons=200, background=0.0, variance=20.0, seed=17)
    fit = fit_spots(spots, 1.0, False, 20.0)
    assert bool((spots < 0).any()) and bool(fit.estimate.isfinite().all())
    assert float(fit.background.min()) >= -10 and float(fit.background.min()) < 0  # unbiased needs both signs
    bias = float(fit.background.mean() / fit.background.std() * math.sqrt(100))
    assert abs(bias) < 5


def test_no_spots_at_all():
    fit = fit_spots(torch.zeros(0, 11, 11), 1.0, True)
    assert len(fit) == 0 and fit.estimate.shape == (0, 5) and fit.u_sd.shape == (0,)


def test_columns_by_name_and_pickling():
    spots, _ = scene(3)
    fit = fit_spots(spots)
    assert fit.parameters == FULL[:4] and torch.equal(fit.photons_sd, fit.sd[:, 2])
    assert torch.equal(pickle.loads(pickle.dumps(fit)).estimate, fit.estimate)
    with pytest.raises(AttributeError, match="'sigma'; fitted parameters: u, v, photons, background"):
        _ = fit.sigma
    with pytest.raises(AttributeError, match="'photon_sd'"):
        _ = fit.photon_sd


def test_iterations_stop_at_the_maximum():
    spots, _ = scene(50, photons=100, seed=18)
    fit = fit_spots(spots, 1.5, True, max_iterations=1)
    assert int(fit.iterations.max()) == 1 and not bool(fit.converged.all())
    assert bool(fit.estimate.isfinite().all()) and bool(fit.sd[~fit.converged].isinf().all())


GOOD = torch.full((2, 11, 11), 5.0)
BAD = {
    "rank": (lambda: fit_spots(GOOD[0]), "spots must have 3 dimensions"),
    "integers": (lambda: fit_spots(GOOD.int()), "spots must be float32 or float64"),
    "nan": (lambda: fit_spots(GOOD * math.nan), "spots must be finite, got nan"),
    "small": (lambda: fit_spots(GOOD[:, :2]), "spots must be at least 3 × 3 pixels, got 2 × 11"),
    "negative": (lambda: fit_spots(GOOD - 6), "spots must not be negative where read_variance is 0, got -1"),
    "sigma": (lambda: fit_spots(GOOD, 0.0), "sigma must be finite and positive, got 0"),
    "tolerance": (lambda: fit_spots(GOOD, tolerance=-1.0), "tolerance must be finite and positive, got -1"),
    "iterations": (lambda: fit_spots(GOOD, max_iterations=0), "max_iterations must be a whole number of at least 1"),
    "chunk": (lambda: fit_spots(GOOD, chunk=0), "chunk must be a whole number of at least 1, got 0"),
    "variance": (lambda: fit_spots(GOOD, read_variance=-1.0), "read_variance must be finite and not negative, got -1"),
    "map": (lambda: fit_spots(GOOD, read_variance=torch.ones(3, 3)), r"read_variance must be a number or have shape"),
    "start": (lambda: fit_spots(GOOD, start=torch.ones(2, 5)), r"start must have shape \(2, 4\)"),
    "start nan": (lambda: fit_spots(GOOD, start=torch.full((2, 4), math.nan)), "start must be finite, got nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("fit_sigma", [False, True])
@pytest.mark.parametrize("size", [5, 7, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_saturated_spot_has_no_place(dtype, size, fit_sigma):
    """As from a camera of 16 bits at its largest value: the claimed sd was 2,670 px and more, of a converged fit."""
    flat = torch.full((2, size, size), 65535.0, dtype=dtype)
    flat[1, 2, 2] -= 1
    fit = fit_spots(flat, fit_sigma=fit_sigma)
    assert not fit.converged.any() and fit.sd.isinf().all()


@pytest.mark.parametrize("size", [5, 7, 11])
@pytest.mark.parametrize("background", [1.0, 10.0])
def test_good_spots_are_never_left_out_for_an_sd_beyond_the_window(size, background):
    """At most 0.1 % of those with N = 50 (of 100,000, 0.005 % are); a limit of a window/√12 would leave out 0.5 %."""
    spots, _ = scene(20_000, 50.0, background, shape=(size, size), seed=size)
    fit = fit_spots(spots.float())
    # With this tolerance no step is too long: what is inside the limits and still not converged has too large an sd.
    again = fit_spots(spots.float()[~fit.converged], start=fit.estimate[~fit.converged], tolerance=1e9)
    inside = ((again.estimate[:, :2] > -1) & (again.estimate[:, :2] < size)).all(1) & (again.photons > 1e-3)
    assert int((inside & ~again.converged).sum()) <= 0.001 * len(spots)
