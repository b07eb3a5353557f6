"""Information and bounds against autograd, direct quadrature, closed forms and the tables of errata."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smlmtut.estimation.fisher import (
    bound,
    exact_pixel_information,
    fisher_information,
    localization_bound,
    mortensen_least_squares,
    mortensen_mle,
    rieger_stallinga,
    surrogate_pixel_information,
    thompson,
)
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, rate_gradient

F64 = torch.float64
ALL = ("u", "v", "photons", "background")


# One pixel


def test_exact_over_surrogate_is_table_a():
    table = {1.0: (1.140, 1.020, 1.000), 5.0: (1.077, 1.036, 1.004), 10.0: (1.044, 1.029, 1.006)}
    rate = torch.tensor([0.5, 2.0, 10.0], dtype=F64)
    for variance, expected in table.items():
        camera = Camera(read_variance=variance)
        ratio = exact_pixel_information(rate, camera) / surrogate_pixel_information(rate, camera)
        assert ratio.tolist() == pytest.approx(expected, abs=5.1e-4)  # three printed digits


@pytest.mark.parametrize("sd", [0.05, 0.09, 0.3, 0.7, 1.5, 5.0, 50.0])
@pytest.mark.parametrize("rate", [0.01, 0.5, 2.0, 10.0, 60.0])
def test_exact_information_agrees_with_direct_quadrature(rate, sd):
    """Plain trapezoid in numpy with dp/dω = p(z − 1) − p(z), the derivative of the Poisson weights."""
    step = min(sd / 6, sd**2 / 2) if sd < 0.7 else 0.05  # the nearest zeros of p lie π sd² off the axis
    step = 1 / math.ceil(1 / step)
    z = np.arange(-10 - 9 * sd, rate + 30 + 10 * math.sqrt(rate + sd**2), step)
    q = np.arange(0, int(rate + 40 + 12 * math.sqrt(rate)))
    log_pmf = scipy.stats.poisson.logpmf(q, rate)
    p = np.zeros_like(z)
    for count, weight in zip(q, log_pmf, strict=True):
        p += np.exp(weight - 0.5 * ((z - count) / sd) ** 2)
    p /= sd * math.sqrt(2 * math.pi)
    shift = round(1 / step)
    before = np.concatenate([np.zeros(shift), p[:-shift]])
    seen = p > 1e-290  # where p underflows so does its share
    direct = ((before - p)[seen] ** 2 / p[seen]).sum() * step
    value = exact_pixel_information(rate, Camera(read_variance=sd**2)).item()
    assert value == pytest.approx(direct, rel=1e-8)  # p(z − 1) − p(z) loses the digits of a small difference


@given(rate=st.floats(0, 1e5), sd=st.floats(0.05, 50), gain=st.floats(0.1, 30))
@settings(max_examples=60)
def test_exact_is_never_below_the_surrogate(rate, sd, gain):
    """Cauchy-Schwarz (erratum 3), and never above a camera without read noise."""
    camera = Camera(gain, 100.0, (sd * gain) ** 2)
    exact, surrogate = exact_pixel_information(rate, camera), surrogate_pixel_information(rate, camera)
    assert exact.item() >= surrogate.item() * (1 - 1e-10)
    if rate > 0:
        assert exact.item() <= (1 + 1e-10) / rate


def test_information_at_zero_rate():
    for v in (0.01, 1.0, 5.0, 2500.0):
        camera = Camera(read_variance=v)
        assert exact_pixel_information(0.0, camera).item() == pytest.approx(math.expm1(1 / v), rel=1e-12)
        if v >= 1:  # the limit is reached continuously
            assert exact_pixel_information(1e-9, camera).item() == pytest.approx(math.expm1(1 / v), rel=1e-6)
    assert exact_pixel_information(0.0, Camera(read_variance=1e-3)).item() == math.inf


@pytest.mark.parametrize(("rate", "v"), [(1e3, 2.0), (1e5, 2500.0), (1e4, 100.0)])
def test_information_at_high_rate(rate, v):
    """To the next order in 1/κ, κ = ω + v: I κ − 1 = v²/(2κ³), from the first Edgeworth correction."""
    camera, k = Camera(read_variance=v), rate + v
    excess = exact_pixel_information(rate, camera).item() * k - 1
    assert excess == pytest.approx(v**2 / (2 * k**3), rel=0.02, abs=1e-12)


def test_information_without_read_noise():
    rate = torch.tensor([0.0, 0.3, 7.0], dtype=F64)
    assert exact_pixel_information(rate, Camera.ideal()).tolist() == pytest.approx([math.inf, 1 / 0.3, 1 / 7])
    near = exact_pixel_information(rate[1:], Camera(read_variance=0.05**2))  # resolves single electrons
    assert near.tolist() == pytest.approx([1 / 0.3, 1 / 7], rel=1e-9)


def test_ignoring_the_gain_claims_too_much():
    """Erratum 2: the rate gω + var put on raw ADU claims 0.86, 0.72, 0.68 of the true sd."""
    gain, variance = 2.17, 5.0
    rate = torch.tensor([1.0, 10.0, 100.0], dtype=F64)
    right = surrogate_pixel_information(rate, Camera(gain, 100.0, variance)).rsqrt()
    wrong = surrogate_pixel_information(gain * rate, Camera(1.0, 100.0, variance)).rsqrt() / gain
    assert (wrong / right).tolist() == pytest.approx([0.86, 0.72, 0.68], abs=0.005)


def test_maps_give_each_pixel_its_own_information():
    variance = torch.tensor([[1.0, 4.0], [9.0, 0.0]], dtype=F64)
    camera = Camera(2.0, 100.0, variance)
    rate = torch.rand(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.5
    for function in (surrogate_pixel_information, exact_pixel_information):
        value = function(rate, camera)
        assert value.shape == (3, 2, 2)
        one = function(rate[2, 0, 1].item(), Camera(2.0, 100.0, 4.0))
        assert value[2, 0, 1].item() == pytest.approx(one.item(), rel=1e-12)
    with pytest.raises(ValueError, match="rate must have the camera maps' size"):
        surrogate_pixel_information(torch.ones(3, 4, 2), camera)
    with pytest.raises(ValueError, match="where the camera has maps"):
        surrogate_pixel_information(torch.ones(2), camera)


# From the pixel to the parameters


def two_emitters() -> Emitters:
    return Emitters(
        torch.tensor([[4.2, 6.1], [5.0, 3.3]], dtype=F64),
        torch.tensor([[5.1, 4.4], [2.9, 7.0]], dtype=F64),
        torch.tensor([[300.0, 800.0], [150.0, 500.0]], dtype=F64),
    )


def test_closed_form_information_agrees_with_autograd():
    emitters, psf, shape, background = two_emitters(), PSF(1.1), (11, 12), 3.0
    camera = Camera(2.0, 100.0, 20.0)

    def image(theta):  # (B, 8): u, v, N, sigma of each emitter in turn, then b in the last place
        u, v, n, sigma = theta[:, :-1].reshape(2, 2, 4).unbind(-1)
        return expected_photons(Emitters(u, v, n), PSF(sigma), shape, 0.0) + theta[:, -1, None, None]

    sigma = torch.full((2, 2), 1.1, dtype=F64)
    theta = torch.stack([emitters.u, emitters.v, emitters.photons, sigma], -1).reshape(2, 8)
    theta = torch.cat([theta, torch.full((2, 1), background, dtype=F64)], 1)
    jacobian = torch.autograd.functional.jacobian(image, theta)  # (B, H, W, B, P)
    jacobian = torch.stack([jacobian[b, :, :, b] for b in range(2)]).permute(0, 3, 1, 2)
    gradient = rate_gradient(emitters, psf, shape, ("u", "v", "photons", "sigma", "background"))
    pixel = surrogate_pixel_information(expected_photons(emitters, psf, shape, background), camera)
    ours, auto = fisher_information(gradient, pixel), fisher_information(jacobian, pixel)
    size = auto.diagonal(dim1=1, dim2=2).sqrt()
    scale = size[:, :, None] * size[:, None, :]  # off-diagonal entries may vanish: relative to their bound
    assert ((ours - auto).abs() / scale).max().item() < 1e-8
    assert ((ours - auto).abs() / auto.abs().clamp(min=1e-6 * scale)).max().item() < 1e-8


@given(u=st.floats(3, 7), v=st.floats(3, 7), n=st.floats(20, 1e4), b=st.floats(0.01, 100), s=st.floats(0.6, 2.5))
@settings(max_examples=40)
def test_information_is_symmetric_and_positive(u, v, n, b, s):
    emitters, camera = Emitters.single(u, v, n), Camera(2.0, 100.0, 20.0)
    rate = expected_photons(emitters, PSF(s), (11, 11), b)
    gradient = rate_gradient(emitters, PSF(s), (11, 11), (*ALL[:3], "sigma", "background"))
    information = fisher_information(gradient, surrogate_pixel_information(rate, camera))[0]
    assert torch.equal(information, information.T)
    scale = information.diagonal().rsqrt()
    assert torch.linalg.eigvalsh(scale[:, None] * information * scale).min().item() > 0


@given(u=st.floats(4, 6), v=st.floats(4, 6), n=st.floats(50, 5e3), b=st.floats(0.1, 50), s=st.floats(0.7, 2))
@settings(max_examples=40)
def test_nuisance_parameters_never_lower_a_bound_and_pixels_never_raise_it(u, v, n, b, s):
    emitters, psf, camera = Emitters.single(u, v, n), PSF(s), Camera(read_variance=2.0)
    slack = 1 - 1e-9
    previous = torch.zeros(2, dtype=F64)
    for names in (("u", "v"), ALL[:3], ALL, (*ALL[:3], "sigma", "background")):
        now = localization_bound(emitters, psf, camera, (11, 11), b, names)[0, :2]
        assert bool((now >= previous * slack).all())
        previous = now
    small = localization_bound(emitters, psf, camera, (9, 9), b, origin=(1, 1))  # part of the 11 by 11 window
    large = localization_bound(emitters, psf, camera, (11, 11), b)
    assert bool((large * slack <= small).all())


def test_a_neighbour_raises_the_bound_and_distance_lowers_it_again():
    alone = localization_bound(Emitters.single(10, 10, 500), PSF(1.0), Camera.ideal(), (21, 21), 5.0)[0, 0]
    pairs = Emitters(
        torch.tensor([[10.0, 10.5], [10.0, 12.0], [10.0, 19.0]], dtype=F64),
        torch.full((3, 2), 10.0, dtype=F64),
        torch.full((3, 2), 500.0, dtype=F64),
    )
    together = localization_bound(pairs, PSF(1.0), Camera.ideal(), (21, 21), 5.0)
    assert together.shape == (3, 7)
    assert together[0, 0] > 5 * alone and together[0, 0] > together[1, 0] > together[2, 0]
    assert together[2, 0].item() == pytest.approx(alone.item(), rel=1e-3)


def test_quantum_efficiency_thins_the_light():
    emitters, psf = Emitters.single(5, 5, 400), PSF(1.0)
    half = localization_bound(emitters, psf, Camera(quantum_efficiency=0.5), (11, 11), 4.0)
    same = localization_bound(Emitters.single(5, 5, 200), psf, Camera.ideal(), (11, 11), 2.0)
    unit = torch.tensor([1, 1, 2, 2], dtype=F64)  # photons and background are counted before the sensor
    torch.testing.assert_close(half, same * unit, rtol=1e-12, atol=0)


def test_absent_emitters_have_no_bound():
    emitters = two_emitters()
    present = torch.tensor([[True, False], [True, True]])
    padded = Emitters(emitters.u, emitters.v, emitters.photons, present)
    value = localization_bound(padded, PSF(1.0), Camera.ideal(), (11, 11), 1.0)
    first = Emitters(emitters.u[:1, :1], emitters.v[:1, :1], emitters.photons[:1, :1])
    alone = localization_bound(first, PSF(1.0), Camera.ideal(), (11, 11), 1.0)[0]
    torch.testing.assert_close(value[0, [0, 1, 2, 6]], alone, rtol=1e-12, atol=0)
    assert value[0, 3:6].tolist() == [math.inf] * 3 and bool(value[1].isfinite().all())


# The solve


def test_bound_is_the_root_of_the_inverse_diagonal_in_any_unit():
    a = torch.randn(3, 5, 9, dtype=F64, generator=torch.Generator().manual_seed(3))
    matrix = a @ a.mT
    units = torch.tensor([1e-9, 1e-3, 1.0, 1e4, 1e10], dtype=F64)
    expected = np.sqrt(np.diagonal(np.linalg.inv(matrix.numpy()), axis1=1, axis2=2))
    value = bound(matrix * units[:, None] * units)
    assert (value * units).flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-11)
    assert bound(matrix[0]).tolist() == pytest.approx(expected[0].tolist(), rel=1e-11)


def test_singular_information_is_named():
    same = Emitters(*(torch.tensor(x, dtype=F64) for x in ([[4.0, 6], [5, 5]], [[5.0, 5], [5, 5]], [[500.0, 500]] * 2)))
    named = r"batch entry 1: the image does not tell parameters .* apart \(two emitters at the same place"
    with pytest.raises(ValueError, match=named):
        localization_bound(same, PSF(1.0), Camera.ideal(), (11, 11), 1.0)
    with pytest.raises(ValueError, match="batch entry 0: parameter 0 has none"):
        localization_bound(Emitters.single(5, 5, 0.0), PSF(1.0), Camera.ideal(), (11, 11), 1.0)
    with pytest.raises(ValueError, match="more parameters than pixels"):
        localization_bound(Emitters.single(0.6, 0.4, 100), PSF(1.0), Camera.ideal(), (1, 3), 1.0)
    with pytest.raises(ValueError, match="must be symmetric"):
        bound(torch.tensor([[1.0, 0.5], [0.1, 1.0]]))
    with pytest.raises(ValueError, match="must be square"):
        bound(torch.ones(2, 3))
    with pytest.raises(ValueError, match="information must be finite"):
        bound(torch.full((2, 2), math.nan))


def test_dark_pixels():
    """Far from the emitter ω underflows to 0 and its gradient with it: nothing is added, nothing is NaN."""
    near = localization_bound(Emitters.single(10, 10, 100), PSF(0.9), Camera.ideal(), (21, 21), 0.0, ALL[:3])
    far = localization_bound(Emitters.single(60, 60, 100), PSF(0.9), Camera.ideal(), (121, 121), 0.0, ALL[:3])
    torch.testing.assert_close(far, near, rtol=1e-9, atol=0)
    gradient = rate_gradient(Emitters.single(5, 5, 0.0), PSF(1.0), (11, 11), ("photons",))
    with pytest.raises(ValueError, match="inf in batch entry 0: a rate of 0 without read noise"):
        fisher_information(gradient, surrogate_pixel_information(torch.zeros(1, 11, 11), Camera.ideal()))


def test_bad_shapes():
    with pytest.raises(ValueError, match="gradient must have 4 dimensions"):
        fisher_information(torch.ones(2, 3, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="pixel_information must have the batch"):
        fisher_information(torch.ones(2, 1, 3, 3), torch.ones(3, 3, 3))
    with pytest.raises(ValueError, match="pixel_information must not be negative or NaN"):
        fisher_information(torch.ones(1, 1, 2, 2), -torch.ones(2, 2))
    with pytest.raises(ValueError, match="rate must be finite and not negative"):
        exact_pixel_information(-1.0, Camera.ideal())


# The tables of errata


@pytest.mark.parametrize(
    ("photons", "nanometres"),
    [(50, 29.2), (100, 17.0), (200, 10.35), (300, 7.89), (500, 5.70), (1000, 3.76)],
)
def test_bound_table_of_errata(photons, nanometres):
    """PSF sd 0.92 px of 108.3 nm, read variance 5 e-², no background, emitter at a pixel's centre, surrogate.

    By symmetry position is uncorrelated with photons and background there, so it does not matter whether these
    are known; nor does the window, from 7 by 7 on.
    """
    emitters, psf, camera = Emitters.single(5, 5, photons), PSF(0.92), Camera(read_variance=5.0)
    for names in (("u", "v"), ALL):
        value = localization_bound(emitters, psf, camera, (11, 11), 0.0, names)[0, :2] * 108.3
        assert value.tolist() == pytest.approx([nanometres] * 2, rel=0.002)


def test_surrogate_costs_little():
    """The bound of the surrogate over the exact one: at most 1.6 % at N = 50, b = 0.1, below 0.5 % from N = 200 on."""
    psf, excess = PSF(0.92), {}
    for photons in (50.0, 200.0, 1000.0):
        ratios = []
        for v in (0.5, 1.0, 2.0, 5.0, 10.0):
            args = (Emitters.single(5, 5, photons), psf, Camera(read_variance=v), (11, 11), 0.1, ("u", "v"))
            ratios.append((localization_bound(*args) / localization_bound(*args, exact=True))[0, 0].item() - 1)
        excess[photons] = max(ratios)
    assert 0.015 < excess[50.0] < 0.0165
    assert 0.004 < excess[200.0] < 0.005
    assert 0 < excess[1000.0] < excess[200.0]


# Closed forms


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.25, 0.1), (0.5, 0.5)])
@pytest.mark.parametrize("sigma", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("background", [0.1, 1.0, 5.0, 20.0, 100.0])
@pytest.mark.parametrize("photons", [100.0, 1000.0, 10000.0])
def test_mortensen_mle_is_within_three_per_mille_of_the_numerical_bound(photons, background, sigma, offset):
    """From a PSF sd of one pixel on, in a window wide enough for the tails; below, pixels cannot be integrated over."""
    emitters = Emitters.single(12 + offset[0], 12 + offset[1], photons)
    numerical = localization_bound(emitters, PSF(sigma), Camera.ideal(), (25, 25), background, ALL)[0, 0].item()
    assert mortensen_mle(photons, sigma, background).item() == pytest.approx(numerical, rel=0.003)


def test_read_noise_adds_to_the_background():
    args = (Emitters.single(12, 12, 500), PSF(1.2))
    noisy = localization_bound(*args, Camera(2.0, 100.0, 20.0), (25, 25), 3.0)[0, 0].item()
    assert mortensen_mle(500, 1.2, 3.0 + 5.0).item() == pytest.approx(noisy, rel=0.003)


@given(photons=st.floats(10, 1e5), sigma=st.floats(0.1, 300), background=st.floats(0, 1e4), pixel=st.floats(0.1, 300))
def test_order_and_units_of_the_closed_forms(photons, sigma, background, pixel):
    args = (photons, sigma, background, pixel)
    t, ls, mle, rs = (f(*args).item() for f in (thompson, mortensen_least_squares, mortensen_mle, rieger_stallinga))
    shot = math.sqrt((sigma**2 + pixel**2 / 12) / photons)
    assert t <= ls * (1 + 1e-12) and mle <= ls * (1 + 1e-12)
    assert min(t, mle, rs) >= shot * (1 - 1e-9)
    assert rs == pytest.approx(mle, rel=0.02)
    for f, value in ((thompson, t), (mortensen_least_squares, ls), (mortensen_mle, mle), (rieger_stallinga, rs)):
        assert f(photons, 3 * sigma, background, 3 * pixel).item() == pytest.approx(3 * value, rel=1e-9)


def test_mortensen_mle_is_the_integral_and_the_dilogarithm():
    tau = torch.logspace(-12, 7, 96, dtype=F64)
    variance = 1 + 1 / 12
    background = tau * 100 / (2 * math.pi * variance)  # N = 100, sigma = pixel = 1
    value = mortensen_mle(100.0, 1.0, background) ** 2 * 100 / variance
    x = 1 / tau.numpy()
    # scipy's form loses about τ eps to cancellation
    expected = 1 / (1 + scipy.special.spence(1 + x[tau < 100]) / x[tau < 100])
    assert value[tau < 100].tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    t = torch.special.expit(torch.linspace(-40, 40, 4001, dtype=F64))  # logistic substitution of (0, 1)
    for i in (20, 50, 62, 70):
        integrand = t.log() / (1 + t / tau[i]) * t * (1 - t)
        assert value[i].item() == pytest.approx(1 / (1 + integrand.sum().item() * 0.02), rel=1e-8)
    large = tau[tau > 1e3]  # 1 + τ Li₂(−1/τ) = 1/(4τ) − 1/(9τ²) + 1/(16τ³) − …
    series = 1 / (1 / (4 * large) - 1 / (9 * large**2) + 1 / (16 * large**3))
    assert value[tau > 1e3].tolist() == pytest.approx(series.tolist(), rel=1e-9)


def test_limits_of_the_closed_forms():
    shot = math.sqrt((1.2**2 + 1 / 12) / 400)
    for f, factor in ((thompson, 1), (mortensen_mle, 1), (rieger_stallinga, 1), (mortensen_least_squares, 4 / 3)):
        assert f(400.0, 1.2).item() == pytest.approx(factor * shot, rel=1e-12)
        assert f(400.0, 1.2, 1e-12).item() == pytest.approx(factor * shot, rel=1e-5)
    # much background: all of them know the variance 8π σ_a⁴ b/(N a)², Thompson with σ for σ_a
    much, widened = 1e9, 1.2**2 + 1 / 12
    limit = math.sqrt(8 * math.pi * widened**2 * much) / 400
    for f in (mortensen_mle, rieger_stallinga, mortensen_least_squares):
        assert f(400.0, 1.2, much).item() == pytest.approx(limit, rel=1e-5)
    assert thompson(400.0, 1.2, much).item() == pytest.approx(limit * 1.2**2 / widened, rel=1e-5)


def test_thompson_by_hand():
    value = thompson(torch.tensor([200.0, 800.0]), 100.0, 9.0, 80.0)  # nm
    by_hand = [math.sqrt((100**2 + 80**2 / 12) / n + 8 * math.pi * 100**4 * 9 / (80**2 * n**2)) for n in (200, 800)]
    assert value.tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("form", [thompson, mortensen_least_squares, mortensen_mle, rieger_stallinga])
def test_closed_forms_name_a_bad_argument(form):
    for args, name in (
        ((0.0, 1.0), "photons"),
        ((9.0, -1.0), "sigma"),
        ((9.0, 1.0, -1.0), "background"),
        ((9.0, 1.0, 0.0, 0.0), "pixel"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            form(*args)
