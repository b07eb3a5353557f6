"""Pixel integrals, expected images and their derivatives against independent mathematics."""

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special
from torch import Tensor

from smlmtut.imaging.fast_psf import pixel_factors, pixel_integral_fast
from smlmtut.imaging.psf import (
    PSF,
    Emitters,
    expected_photons,
    pixel_integral,
    pixel_integral_gradient,
    present_mask,
    rate_gradient,
)

EPS = torch.finfo(torch.float64).eps
ALL = ("u", "v", "photons", "sigma_u", "sigma_v", "background")
SHAPE = (9, 12)

positions = st.floats(-3, 14)
sigmas = st.floats(0.2, 5)
counts = st.floats(0, 1e4)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def density(center: float, sigma: float) -> Callable[[float], float]:
    return lambda x: math.exp(-((x - center) ** 2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)


def share(position: float, sigma: float, size: int, start: int = 0) -> Tensor:
    return pixel_integral(torch.tensor(position, dtype=torch.float64), sigma, size, start)


def scene(*rows: tuple[float, float, float]) -> Emitters:
    """One frame of emitters (u, v, N)."""
    u, v, photons = torch.tensor(rows, dtype=torch.float64).T[:, None]
    return Emitters(u, v, photons)


def draw(batch: int, count: int, seed: int = 0) -> Emitters:
    """Emitters inside and a little outside a frame of SHAPE."""
    uniform = torch.rand(3, batch, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Emitters(14 * uniform[0] - 2, 11 * uniform[1] - 2, 900 * uniform[2] + 100)


# -- Eq. 11: one axis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 0.92, 4.0])
@pytest.mark.parametrize("position", [-1.7, 0.0, 4.5, 5.31])
def test_pixel_integral_is_the_area_under_the_density(position, sigma):
    got = share(position, sigma, 10)
    for k in range(10):
        points = [position] if k - 0.5 < position < k + 0.5 else None
        area, error, *_ = integrate.quad(density(position, sigma), k - 0.5, k + 0.5, points=points, epsabs=1e-13)
        assert got[k] == pytest.approx(area, abs=error + 4 * EPS)


@given(position=positions, sigma=sigmas)
def test_pixel_integral_is_a_difference_of_normal_distribution_functions(position, sigma):
    edges = np.arange(12) - 0.5
    expected = torch.from_numpy(np.diff(special.ndtr((edges - position) / sigma)))
    assert torch.allclose(share(position, sigma, 11), expected, rtol=0, atol=4 * EPS)  # two roundings near 1


@pytest.mark.parametrize("pixel", [3, 8, 12, 20, 30, 36])
@pytest.mark.parametrize("side", [-1, 1])
def test_the_tails_keep_their_digits(pixel, side):
    position, sigma = 0.3, 1.0
    with mpmath.workdps(40):
        near, far = (mpmath.mpf(pixel) + s - side * mpmath.mpf(position) for s in (-0.5, 0.5))
        exact = float((mpmath.erfc(near / mpmath.sqrt(2)) - mpmath.erfc(far / mpmath.sqrt(2))) / 2)
    assert exact > 0
    # erfc(z) changes by 2 z² relative to its argument, whose rounding is eps
    allowed = (pixel**2 + 20) * EPS
    assert share(position, sigma, 1, start=side * pixel)[0].item() == pytest.approx(exact, rel=allowed, abs=0)


def test_a_tail_that_underflows_is_zero_and_not_nan():
    values = share(0.0, 1.0, 201, start=-100)
    assert torch.isfinite(values).all() and values[0] == 0 and values[-1] == 0


@given(position=positions, sigma=sigmas, size=st.integers(1, 30), start=st.integers(-10, 10))
def test_shares_lie_between_0_and_1_and_telescope(position, sigma, size, start):
    values = share(position, sigma, size, start)
    assert ((values >= 0) & (values <= 1)).all()
    inside = special.ndtr((start + size - 0.5 - position) / sigma) - special.ndtr((start - 0.5 - position) / sigma)
    assert values.sum().item() == pytest.approx(inside, abs=(size + 4) * EPS)


@given(position=positions, sigma=st.floats(0.2, 3))
def test_a_wide_window_holds_all_light(position, sigma):
    # the nearest edge is more than 12 sd away
    assert share(position, sigma, 100, start=-40).sum().item() == pytest.approx(1, abs=100 * EPS)


@given(position=st.integers(-64, 64).map(lambda n: n / 16), sigma=sigmas, shift=st.integers(-40, 40))
def test_moving_emitter_and_window_together_changes_nothing(position, sigma, shift):
    # sixteenths of a pixel: both sums are exact in binary
    assert torch.equal(share(position + shift, sigma, 9, shift), share(position, sigma, 9))


@given(position=positions, sigma=sigmas)
def test_mirror_image(position, sigma):
    mirrored = share(-position, sigma, 11, start=-10).flip(0)
    assert torch.allclose(mirrored, share(position, sigma, 11), rtol=1e-12, atol=0)


def test_a_point_source_fills_one_pixel():
    assert torch.allclose(share(3.2, 1e-3, 6), torch.eye(6, dtype=torch.float64)[3], rtol=0, atol=EPS)


def test_a_wide_spot_approaches_the_density_at_the_centre():
    sigma = tensor(3.0, 6.0, 12.0)
    height = 1 / (math.sqrt(2 * math.pi) * sigma)
    deficit = 1 - pixel_integral(torch.zeros_like(sigma), sigma, 1)[:, 0] / height
    # ∫ e^{-d²/2σ²} = 1 − 1/(24σ²) + 1/(640σ⁴) − …, an alternating series
    assert ((deficit - 1 / (24 * sigma**2)).abs() < 1 / (640 * sigma**4)).all()


def test_sigma_may_differ_between_emitters():
    position, sigma = tensor(2.0, 3.0, 4.0), tensor(0.8, 1.0, 1.3)
    together = pixel_integral(position, sigma, 7)
    one_by_one = torch.stack([share(float(p), float(s), 7) for p, s in zip(position, sigma, strict=True)])
    assert torch.equal(together, one_by_one)


def test_pixel_integral_can_be_differentiated():
    position, sigma = tensor(-0.4, 2.0, 5.5).requires_grad_(), tensor(0.7, 1.0, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, s: pixel_integral(p, s, 6, start=-1), (position, sigma))


@given(position=positions, sigma=st.floats(0.3, 4))
def test_derivatives_by_position_and_width_obey_the_heat_equation(position, sigma):
    # ∂G/∂σ = σ ∂²G/∂u² holds for the density, and so for its integral over a pixel
    at = torch.tensor(position, dtype=torch.float64, requires_grad=True)
    by_position, by_sigma = pixel_integral_gradient(at, sigma, 9)
    curvature = torch.stack([torch.autograd.grad(y, at, retain_graph=True)[0] for y in by_position])
    assert torch.allclose(by_sigma, sigma * curvature, rtol=1e-9, atol=1e-13 / sigma)


@given(position=positions, sigma=sigmas, size=st.integers(1, 30))
def test_the_fast_integral_is_the_plain_one(position, sigma, size):
    at, width = tensor(position), tensor(sigma)
    fast = pixel_integral_fast(at, width, size)
    # erf is rounded at both edges, to 1 eps each where it is near 1, and halved; the edges' own rounding is z eps
    assert torch.allclose(fast, pixel_integral(at, width, size), rtol=0, atol=2 * EPS)


@given(position=positions, sigma=sigmas, size=st.integers(1, 30))
def test_the_factors_are_the_plain_integral_and_its_gradient(position, sigma, size):
    at, width = tensor(position), tensor(sigma)
    share, by_position, by_sigma = (x[:, 0] for x in pixel_factors(at, width, size))
    plain = pixel_integral(at, width, size)[0]
    plain_by_position, plain_by_sigma = (x[0] for x in pixel_integral_gradient(at, width, size))
    far = max(abs(position), abs(position - size)) / sigma + 1  # sd to the farthest edge
    # in the tails erfc and exp(−z²/2) change by z² relative to their argument, whose rounding is eps
    rel = 6 * (1 + far**2) * EPS
    assert torch.allclose(share, plain, rtol=rel, atol=0)
    # a derivative is a difference of two terms of up to 0.4/σ, or 0.25/σ
    assert torch.allclose(by_position, plain_by_position, rtol=rel, atol=4 * EPS / sigma)
    assert torch.allclose(by_sigma, plain_by_sigma, rtol=rel, atol=4 * EPS / sigma)


def test_the_factors_keep_the_digits_of_both_tails():
    for position in (-20.0, 49.0):
        at, width = tensor(position), tensor(1.0)
        fast, plain = pixel_factors(at, width, 30)[0][:, 0], pixel_integral(at, width, 30)[0]
        assert 0 < float(plain[plain > 0].min()) < 1e-300
        # the distance of 30 sd and more squared, times eps, as above; the fast integral has lost all digits there
        assert torch.allclose(fast, plain, rtol=1500 * EPS, atol=1e-307)
        assert float(pixel_integral_fast(at, width, 30).max()) == 0


def test_the_fast_variants_take_a_batch_of_any_width():
    position, sigma = tensor(2.0, 3.0, 4.0), tensor(0.8, 1.0, 1.3)
    assert torch.allclose(pixel_integral_fast(position, sigma, 7), pixel_integral(position, sigma, 7), atol=2 * EPS)
    assert torch.allclose(pixel_factors(position, sigma, 7)[0].T, pixel_integral(position, sigma, 7), atol=2 * EPS)
    single = pixel_factors(position.float(), sigma.float(), 7)  # the fits' type: 24 bits
    for fast, plain in zip(single, pixel_factors(position, sigma, 7), strict=True):
        assert fast.dtype == torch.float32 and torch.allclose(fast.double(), plain, rtol=1e-5, atol=1e-6)


def test_present_emitters_come_first():
    counts = torch.tensor([2, 0, 3])
    assert present_mask(counts).int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert present_mask(counts, 4).int().tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert present_mask(torch.zeros(2)).tolist() == [[False], [False]]  # a place at least


# -- Eq. 10: the image -------------------------------------------------------------------------------------


def test_image_against_quadrature_over_pixels():
    u, v, photons, sigma_u, sigma_v, background = 4.3, 3.8, 250.0, 0.8, 1.3, 2.5
    rate = expected_photons(scene((u, v, photons)), PSF(sigma_u, sigma_v), SHAPE, background)[0]
    along_u, along_v = density(u, sigma_u), density(v, sigma_v)
    for row, column in ((4, 4), (0, 0), (2, 5), (8, 11), (7, 3)):
        light, *_ = integrate.dblquad(
            lambda y, x: along_u(x) * along_v(y), column - 0.5, column + 0.5, row - 0.5, row + 0.5, epsabs=1e-12
        )
        assert rate[row, column].item() == pytest.approx(background + photons * light, abs=1e-9)


@given(u=positions, v=positions, photons=counts, sigma=sigmas, background=st.floats(0, 50))
def test_pixels_sum_to_photons_caught_plus_background(u, v, photons, sigma, background):
    height, width = SHAPE
    rate = expected_photons(scene((u, v, photons)), PSF(sigma), SHAPE, background)
    caught = photons
    for position, size in ((u, width), (v, height)):
        caught *= special.ndtr((size - 0.5 - position) / sigma) - special.ndtr((-0.5 - position) / sigma)
    total = caught + background * height * width
    assert rate.sum().item() == pytest.approx(total, rel=1e-12, abs=1e-11 * photons)


@given(u=positions, v=positions, photons=counts, sigma_u=sigmas, sigma_v=sigmas)
def test_swapping_the_axes_transposes_the_image(u, v, photons, sigma_u, sigma_v):
    image = expected_photons(scene((u, v, photons)), PSF(sigma_u, sigma_v), SHAPE)
    swapped = expected_photons(scene((v, u, photons)), PSF(sigma_v, sigma_u), (SHAPE[1], SHAPE[0]))
    assert torch.allclose(image, swapped.mT, rtol=4 * EPS, atol=1e-300)  # below, numbers lose digits


def test_u_runs_along_columns_and_v_along_rows():
    image = expected_photons(scene((8.0, 2.0, 100.0)), PSF(1.0), SHAPE)[0]
    assert divmod(int(image.argmax()), SHAPE[1]) == (2, 8)


@given(origin=st.tuples(st.integers(-6, 6), st.integers(-6, 6)))
def test_a_window_is_a_part_of_the_plane(origin):
    emitters, psf = draw(2, 3), PSF(1.1)
    plane = expected_photons(emitters, psf, (30, 30), 1.5, origin=(-10, -10))
    left, top = origin[0] + 10, origin[1] + 10
    window = expected_photons(emitters, psf, SHAPE, 1.5, origin=origin)
    assert torch.allclose(window, plane[:, top : top + SHAPE[0], left : left + SHAPE[1]], rtol=1e-14, atol=0)


def test_light_of_emitters_adds():
    emitters, psf = draw(3, 4), PSF(0.92)
    single = [
        expected_photons(Emitters(*(x[:, k : k + 1] for x in (emitters.u, emitters.v, emitters.photons))), psf, SHAPE)
        for k in range(4)
    ]
    total = expected_photons(emitters, psf, SHAPE, 3.0)
    assert torch.allclose(total, torch.stack(single).sum(0) + 3.0, rtol=1e-14, atol=0)


def test_padding_emits_nothing():
    emitters = draw(2, 3)
    present = torch.tensor([[True, False, True], [False, False, False]])
    padded = Emitters(emitters.u, emitters.v, emitters.photons, present)
    dark = Emitters(emitters.u, emitters.v, emitters.photons * present)
    assert torch.equal(expected_photons(padded, PSF(1.0), SHAPE), expected_photons(dark, PSF(1.0), SHAPE))
    assert (expected_photons(padded, PSF(1.0), SHAPE, 2.0)[1] == 2.0).all()


@pytest.mark.parametrize("size", [(), (3,), SHAPE, (3, *SHAPE)])
def test_every_form_of_background(size):
    background = torch.rand(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    emitters = draw(3, 2)
    full = background[:, None, None] if len(size) == 1 else background
    expected = expected_photons(emitters, PSF(1.0), SHAPE) + full
    assert torch.equal(expected_photons(emitters, PSF(1.0), SHAPE, background), expected)


def test_one_sigma_for_each_emitter():
    emitters, sigma_u, sigma_v = draw(2, 3), tensor(0.8, 1.0, 1.2), tensor(1.3, 1.1, 0.9)
    image = expected_photons(emitters, PSF(sigma_u, sigma_v), SHAPE)
    for b in range(2):
        rows = torch.stack([emitters.u[b], emitters.v[b], emitters.photons[b]], 1).tolist()
        parts = [
            expected_photons(scene(tuple(row)), PSF(float(su), float(sv)), SHAPE)[0]
            for row, su, sv in zip(rows, sigma_u, sigma_v, strict=True)
        ]
        assert torch.allclose(image[b], torch.stack(parts).sum(0), rtol=1e-14, atol=0)


def test_single_precision_stays_and_agrees():
    emitters = draw(2, 3)
    image = expected_photons(emitters.to(dtype=torch.float32), PSF(0.92), SHAPE, 5.0)
    assert image.dtype == torch.float32
    # positions near 10 px have a rounding error of 5e-7 px, on slopes of up to 0.3 photons a px for each photon
    limit = 20 * torch.finfo(torch.float32).eps * emitters.photons.sum()
    assert (image - expected_photons(emitters, PSF(0.92), SHAPE, 5.0)).abs().max() < limit


def test_emitters_from_three_numbers():
    one = Emitters.single(1.0, 2.0, 300.0)
    assert (len(one), one.u.shape, one.mask.tolist()) == (1, (1, 1), [[True]])
    assert (one.u.item(), one.v.item(), one.photons.item()) == (1.0, 2.0, 300.0)


# -- derivatives -------------------------------------------------------------------------------------------


def jacobian(emitters: Emitters, psf: PSF, origin: tuple[int, int], shape: tuple[int, int] = SHAPE) -> Tensor:
    """(B, E, P, H, W) by autograd, in the order of ALL without the background."""
    sigma_u, sigma_v = (torch.as_tensor(s, dtype=torch.float64).expand_as(emitters.u) for s in psf.sigmas)
    theta = torch.stack([emitters.u, emitters.v, emitters.photons, sigma_u, sigma_v])  # (P, B, E)

    def image(theta: Tensor) -> Tensor:
        u, v, photons, su, sv = theta
        return expected_photons(Emitters(u, v, photons, emitters.mask), PSF(su, sv), shape, 5.0, origin).sum(0)

    return torch.autograd.functional.jacobian(image, theta).permute(3, 4, 2, 0, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("psf", [PSF(0.92), PSF(0.7, 1.6), PSF(tensor(0.8, 1.2), tensor(1.0, 0.9))])
@pytest.mark.parametrize("origin", [(0, 0), (-3, 2)])
def test_gradient_against_autograd(psf, origin):
    emitters = draw(3, 2)
    automatic = jacobian(emitters, psf, origin)
    got = rate_gradient(emitters, psf, SHAPE, ALL, origin)
    assert got.shape == (3, 2 * 5 + 1, *SHAPE)
    got_emitters = got[:, :-1].reshape(3, 2, 5, *SHAPE)
    scale = automatic.abs().amax((0, 1, 3, 4)).view(1, 1, 5, 1, 1)
    assert ((got_emitters - automatic).abs() <= 1e-13 * scale).all()
    assert (got[:, -1] == 1).all()


@settings(max_examples=30)  # autograd goes pixel by pixel
@given(u=positions, v=positions, photons=st.floats(1, 1e4), sigma=st.floats(0.3, 4))
def test_gradient_against_autograd_anywhere(u, v, photons, sigma):
    emitters, psf, corner = scene((u, v, photons)), PSF(sigma), (4, 5)
    automatic = jacobian(emitters, psf, (0, 0), corner)[0, 0]
    got = rate_gradient(emitters, psf, corner, ALL)[0, :-1]
    # a term is at most photons · density / σ with density ≤ 1/σ
    assert ((got - automatic).abs() <= 20 * EPS * photons * max(1, sigma**-2)).all()


def test_the_isotropic_width_moves_both_axes():
    both = rate_gradient(draw(2, 3), PSF(1.1), SHAPE, ("sigma",))
    each = rate_gradient(draw(2, 3), PSF(1.1), SHAPE, ("sigma_u", "sigma_v")).reshape(2, 3, 2, *SHAPE)
    assert torch.allclose(both, each.sum(2), rtol=1e-12, atol=1e-12)


def test_rows_stand_emitter_by_emitter_with_the_background_last():
    emitters = draw(1, 2)
    first, second = (
        rate_gradient(scene((float(emitters.u[0, k]), float(emitters.v[0, k]), float(emitters.photons[0, k]))),
                      PSF(1.0), SHAPE, ("photons", "u"))
        for k in range(2)
    )  # fmt: skip
    got = rate_gradient(emitters, PSF(1.0), SHAPE, ("photons", "u", "background"))
    assert torch.allclose(got, torch.cat([first, second, torch.ones(1, 1, *SHAPE)], 1), rtol=1e-14, atol=0)


def test_rows_of_padding_are_zero():
    emitters = draw(2, 3)
    present = torch.tensor([[True, False, True], [True, True, False]])
    padded = Emitters(emitters.u, emitters.v, emitters.photons, present)
    rows = rate_gradient(padded, PSF(1.0), SHAPE, ALL[:-1]).reshape(2, 3, 5, -1)
    assert torch.equal(rows.abs().amax(-1).amin(-1) > 0, present)
    assert (rows[~present] == 0).all()


def test_light_that_moves_is_not_lost():
    # in a window that holds all light, neither a shift nor a wider spot changes the total
    rows = rate_gradient(scene((20.2, 19.7, 500.0)), PSF(1.0, 1.4), (41, 41), ALL[:-1])[0]
    totals = rows.sum((1, 2)) / rows.abs().sum((1, 2))
    assert totals.abs()[[0, 1, 3, 4]].max() < 1e-13
    assert totals[2].item() == pytest.approx(1)


def test_only_the_background():
    assert torch.equal(rate_gradient(draw(2, 1), PSF(1.0), SHAPE, ("background",)),
                       torch.ones(2, 1, *SHAPE, dtype=torch.float64))  # fmt: skip
