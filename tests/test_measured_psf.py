"""A measured PSF against the Gaussian that it samples, autograd, and the bound on frames of an Airy pattern."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from smlmtut.estimation.beads import psf_of_beads
from smlmtut.estimation.fisher import localization_bound
from smlmtut.estimation.fit import fit_spots
from smlmtut.estimation.joint import fit_emitters
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.measured_psf import PAD, MeasuredPSF
from smlmtut.imaging.psf import PSF, AnyPSF, Emitters, expected_photons, pixel_integral, rate_gradient
from smlmtut.imaging.scenes import Scene, draw_batch
from smlmtut.imaging.simulate import frames

SHAPE = (16, 15)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(oversampling: int, sigma_u: float = 1.0, sigma_v: float = 1.0) -> MeasuredPSF:
    """A Gaussian in pixels of 1/oversampling, out to 8 px, where it has lost all but 1e-15."""
    size = 16 * oversampling + 1
    middle = torch.tensor((size - 1) / 2, dtype=torch.float64)
    rows, columns = (pixel_integral(middle, oversampling * s, size) for s in (sigma_v, sigma_u))
    return MeasuredPSF.from_image(rows[:, None] * columns, oversampling)


def airy(oversampling: int, half: int = 12, zero: float = 2.9, points: int = 8) -> MeasuredPSF:
    """An Airy pattern with its first zero at 2.9 px, summed over points² places in each pixel of the image."""
    size = 2 * half * oversampling + 1
    x = (np.arange(size * points) - (size * points - 1) / 2) / (oversampling * points)
    r = np.maximum(3.8317 * np.hypot(x[:, None], x) / zero, 1e-6)
    light = ((2 * special.j1(r) / r) ** 2).reshape(size, points, size, points).sum((1, 3))
    return MeasuredPSF.from_image(torch.from_numpy(light), oversampling)


def lone(count: int, photons: float, middle: float = 7.0, seed: int = 0) -> Emitters:
    """One emitter a frame, anywhere in its middle pixel."""
    u, v = middle - 0.5 + torch.rand(2, count, 1, generator=dice(seed), dtype=torch.float64)
    return Emitters(u, v, torch.full_like(u, photons))


def differences(oversampling: int) -> tuple[float, float, float]:
    """From the Gaussian: largest of the shares and of their derivatives by u and v, and of the bounds, relative."""
    emitters, both = lone(200, 1.0), (PSF(1.0), sampled(oversampling))
    values = [expected_photons(emitters, psf, SHAPE) for psf in both]
    slopes = [rate_gradient(emitters, psf, SHAPE, ("u", "v")) for psf in both]
    bright = replace(emitters, photons=1000 * emitters.photons)
    bounds = [localization_bound(bright, psf, Camera(), SHAPE, 5.0) for psf in both]
    value, slope = (float((b - a).abs().max()) for a, b in (values, slopes))
    return value, slope, float((bounds[1] / bounds[0] - 1).abs().max())


def test_a_sampled_gaussian_is_the_gaussian_to_the_order_of_the_spline():
    # cubic interpolation at steps h is wrong by at most 5/384 h⁴ |f''''| in each axis and its slope by h³ |f''''| / 24
    # (Hall and Meyer 1976). f is Eq. 11's share: below the Gaussian's values, |f''''| ≤ 3/√2π, beside the other axis's
    # share, at most 0.3829
    fourth = 3 / math.sqrt(2 * math.pi) * math.erf(0.5 / math.sqrt(2))
    errors = {f: differences(f) for f in (2, 4, 8)}
    for f, (value, slope, bound) in errors.items():
        assert value < 2 * 5 / 384 * fourth / f**4
        assert slope < 2 * fourth / 24 / f**3
        assert bound < 0.01 / f**4  # 0.5 % at f = 1, doubled
    for fine, coarse in ((4, 2), (8, 4)):  # the orders: 2⁴ and 2³, to the next term of the series
        ratios = [a / b for a, b in zip(errors[coarse], errors[fine], strict=True)]
        assert ratios == pytest.approx([16, 8, 16], rel=0.35)


@pytest.mark.parametrize(
    "psf", [sampled(1), sampled(3), airy(4), airy(3, 6)], ids=["f = 1", "f = 3", "airy", "cut airy"]
)
def test_no_light_is_lost_on_a_large_sensor(psf: MeasuredPSF):
    emitters = lone(20, 1.0, middle=20.0)
    # over a background that keeps the spline's last coefficients from being cut off at 0
    total = (expected_photons(emitters, psf, (41, 41), 1.0) - 1).sum((1, 2))
    # rounding of 1681 numbers near 1; and at an edge where there is light, what the padding leaves of its ripples
    edges = torch.cat([psf.samples[[0, -1]].flatten(), psf.samples[:, [0, -1]].flatten()]).abs().sum()
    assert (total - 1).abs().max() < 1e-12 + 0.268**PAD * edges


@pytest.mark.parametrize("origin", [(0, 0), (-3, 2)])
def test_gradients_are_those_of_autograd_and_of_differences(origin: tuple[int, int]):
    psf = airy(3, 6)
    u, v, photons = (x.requires_grad_() for x in torch.rand(3, 2, 3, generator=dice(1), dtype=torch.float64) * 9 + 1)
    present = torch.tensor([[True, True, False], [True, True, True]])

    def image(u: Tensor, v: Tensor, photons: Tensor) -> Tensor:
        return expected_photons(Emitters(u, v, photons, present), psf, (8, 9), 1.0, origin)

    assert torch.autograd.gradcheck(image, (u, v, photons))
    automatic = torch.autograd.functional.jacobian(lambda *x: image(*x).sum(0), (u, v, photons))
    wanted = torch.stack(automatic).permute(3, 4, 0, 1, 2).reshape(2, 9, 8, 9)  # type: ignore[arg-type]
    got = rate_gradient(Emitters(u, v, photons, present).to(), psf, (8, 9), origin=origin)
    torch.testing.assert_close(got[:, :-1], wanted, rtol=1e-12, atol=1e-13)
    assert bool((got[:, -1] == 1).all())


def test_float32_stays_and_emitters_add():
    emitters = Emitters(*(torch.rand(3, 2, 4, generator=dice(2), dtype=torch.float64) * 14 + 1))
    fine = expected_photons(emitters, airy(4), SHAPE, 5.0)
    coarse = expected_photons(emitters.to(dtype=torch.float32), airy(4), SHAPE, 5.0)
    # places of up to 2^7 knots are rounded to 2^-17 knots, on slopes below 0.1 a pixel for each photon, beside 8 eps b
    assert coarse.dtype == torch.float32 and (coarse - fine).abs().max() < 15 * 8 * 2**-17 * 0.1 / 4 + 40 * 2**-24
    alone = [Emitters(emitters.u[:, [i]], emitters.v[:, [i]], emitters.photons[:, [i]]) for i in range(4)]
    together = sum(expected_photons(one, airy(4), SHAPE, 5.0) - 5.0 for one in alone) + 5.0
    torch.testing.assert_close(fine, together, rtol=1e-12, atol=1e-12)


def test_a_fit_of_airy_patterns_reaches_the_bound_and_that_of_gaussians_does_not():
    truth, count = airy(4), 2000
    emitters = lone(count, 2000.0)
    spots = frames(emitters, airy(8), Camera.ideal(), (15, 15), 5.0, dice(3))  # the fit's PSF has half as many samples
    bound = localization_bound(emitters, truth, Camera.ideal(), (15, 15), 5.0)
    wanted = torch.cat([emitters.u, emitters.v, emitters.photons, torch.full_like(emitters.u, 5.0)], 1)
    fit, gaussian = fit_spots(spots, psf=truth), fit_spots(spots, fit_sigma=True)
    assert bool(fit.converged.all()) and bool(gaussian.converged.all())
    z, rough = ((x.estimate[:, :4] - wanted) / bound for x in (fit, gaussian))
    assert (z.mean(0).abs() < 5 / math.sqrt(count)).all()
    assert (z.std(0) - 1).abs().max() < 5 / math.sqrt(2 * count)  # 5 standard errors of an sd
    assert ((fit.sd / bound).mean(0) - 1).abs().max() < 0.01
    assert rough[:, 2].mean() < -2  # photons, of which the rings are missing
    assert rough[:, :2].std() > z[:, :2].std() * (1 + 2 / math.sqrt(2 * count))


def test_all_emitters_of_a_frame_are_fitted_with_it():
    u, v = 8 + 2 * torch.tensor([[-1.0, 1.0]]).double().expand(300, 2), torch.full((300, 2), 8.0).double()
    truth = Emitters(u, v, torch.full_like(u, 1000.0))
    for psf in (airy(4), PSF(1.0, 1.4)):
        electrons = frames(truth, psf, Camera.ideal(), (17, 17), 5.0, dice(4))
        fit = fit_emitters(electrons, truth, psf=psf)
        bound = localization_bound(truth, psf, Camera.ideal(), (17, 17), 5.0)[:, :6]
        found = torch.stack([fit.emitters.u, fit.emitters.v, fit.emitters.photons], 2)
        z = (found - torch.stack([truth.u, truth.v, truth.photons], 2)).flatten(1) / bound
        assert bool(fit.converged.all()) and bool(fit.sigma.isnan().all())
        assert z.mean(0).abs().max() < 5 / math.sqrt(300) and (z.std(0) - 1).abs().max() < 5 / math.sqrt(600)
        sd = fit.covariance().diagonal(dim1=1, dim2=2)[:, :6].sqrt() / bound
        assert (sd.mean(0) - 1).abs().max() < 0.03  # of the prior's information, N 100 to 2000


@pytest.mark.parametrize("psf", [PSF(1.0, 1.3), sampled(4, 1.0, 1.3)], ids=["Gaussian", "measured"])
def test_beads_give_their_psf(psf: AnyPSF):
    count, photons = 100, 1e4
    stack = frames(lone(count, photons, 10.0), psf, Camera.ideal(), (21, 21), 5.0, dice(5))
    found = psf_of_beads(stack, 4)
    side = torch.arange(-20, 21).double() / 4  # px from the emitter
    v, u = (x.reshape(-1, 1) for x in torch.meshgrid(side, side, indexing="ij"))
    got, wanted = (expected_photons(Emitters(-u, -v, torch.ones_like(u)), x, (1, 1)).flatten() for x in (found, psf))
    # the sd of the mean of `count` pixels at one place; a spline through pixels has no more, what the second fit
    # restores at the shortest waves up to twice as much
    z = (got - wanted) / ((wanted / photons + 5 / photons**2) / count).sqrt()
    assert 0.5 < z.square().mean().sqrt() < 2
    assert (got - wanted).abs().max() < 0.01 * wanted.max()
    assert (found.samples.sum() - 16).abs() < 1e-9


def test_a_psf_that_is_negative_where_it_is_dark_is_fitted():
    """As one is from which a constant was taken for background; the image of all emitters is positive."""
    samples = airy(4).samples - 1e-4
    psf, emitters = MeasuredPSF(16 * samples / samples.sum(), 4), lone(20, 1e5)
    assert psf.samples.min() < -5e-5
    image = expected_photons(emitters, psf, (15, 15), 20.0)
    wanted = torch.cat([emitters.u, emitters.v, emitters.photons, torch.full_like(emitters.u, 20.0)], 1)
    fit, joint = (
        fit_spots(image, psf=psf),
        fit_emitters(image, emitters, psf=psf, photons=(1e4, 2e5), background=(0, 50)),
    )
    assert bool(fit.converged.all()) and bool(joint.converged.all())
    assert ((fit.estimate - wanted) / fit.sd).abs().max() < 0.02  # twice the tolerance of a step
    assert ((joint.emitters.photons - 1e5) / fit.photons_sd[:, None]).abs().max() < 0.1


def test_an_elliptic_gaussian_goes_through_the_whole_chain():
    psf, count = PSF(0.9, 1.4), 1000
    emitters = lone(count, 2000.0)
    spots = frames(emitters, psf, Camera.ideal(), (15, 15), 5.0, dice(6))
    names = ("u", "v", "photons", "sigma_u", "sigma_v", "background")
    bound = localization_bound(emitters, psf, Camera.ideal(), (15, 15), 5.0, names)
    fit = fit_spots(spots, psf=PSF(1.1, 1.1), fit_sigma=True)
    values = [emitters.u[:, 0], emitters.v[:, 0], 2000.0, 0.9, 1.4, 5.0]
    z = torch.stack([getattr(fit, name) - value for name, value in zip(names, values, strict=True)], 1) / bound
    assert fit.converged.double().mean() > 0.99
    assert z.mean(0).abs().max() < 5 / math.sqrt(count) and (z.std(0) - 1).abs().max() < 5 / math.sqrt(2 * count)
    assert (fit.sigma_u_sd / bound[:, 3]).mean() == pytest.approx(1, abs=0.01)


def test_scenes_draw_with_any_psf():
    measured, narrow = sampled(4, 0.9, 1.4), Scene(sigma=math.sqrt(0.9 * 1.4), ellipticity=0.9 / 1.4)
    for scene, psf in ((replace(narrow, ellipticity=1.0, psf=measured), measured), (narrow, PSF(0.9, 1.4))):
        batch = draw_batch(scene, 8, SHAPE, dice(7))
        wanted = expected_photons(batch.emitters, psf, SHAPE, batch.background)
        torch.testing.assert_close(batch.expected, wanted, rtol=1e-4, atol=1e-3)
        assert torch.equal(batch.expected, draw_batch(scene, 8, SHAPE, dice(7)).expected)


ONE, SQUARE = Emitters.single(4, 4, 500.0), torch.ones(5, 5)
WRONG = {
    "even": (lambda: MeasuredPSF.from_image(torch.ones(4, 5)), "image must have odd sides.*4, 5"),
    "dark": (lambda: MeasuredPSF.from_image(0 * SQUARE), "image must have a positive sum, got 0"),
    "NaN": (lambda: MeasuredPSF.from_image(SQUARE / 0 * 0), "image must be finite, got nan"),
    "oversampling": (lambda: MeasuredPSF.from_image(SQUARE, 0), "oversampling must be a whole number.*got 0"),
    "a sum": (lambda: MeasuredPSF(SQUARE, 2), "samples must have the sum.*4, got 25"),
    "a sigma": (lambda: rate_gradient(ONE, sampled(1), (9, 9), ("u", "sigma")), "MeasuredPSF must be .*'sigma'"),
    "a fit of sigma": (lambda: fit_spots(torch.ones(1, 9, 9), psf=sampled(1), fit_sigma=True), "fit_sigma must be"),
    "no PSF": (lambda: fit_spots(torch.ones(1, 9, 9), psf=1.0), "psf must be a AnyPSF, got 1.0"),  # type: ignore[arg-type]
    "an elliptic measured PSF": (lambda: Scene(psf=sampled(1), ellipticity=1.2), "ellipticity must be 1"),
    "no ellipticity": (lambda: Scene(ellipticity=0.0), "ellipticity must be finite and positive, got 0"),
    "small beads": (lambda: psf_of_beads(torch.ones(5, 5, 5)), "stack must have square images.*5, 5, 5"),
    "flat beads": (lambda: psf_of_beads(torch.ones(5, 9, 9)), "stack must show at least 4 beads"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_named(case: str):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
