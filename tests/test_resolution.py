"""Fourier ring correlation against closed forms."""

import math

import numpy as np
import pytest
import torch

from smlmtut.evaluation.localization import Points
from smlmtut.evaluation.resolution import (
    bit_curve,
    correlation_band,
    crossing,
    fourier_ring_correlation,
    independent_share,
    nena,
    tapered,
)
from smlmtut.imaging.kde import render


def two_images(sites: int, times: int, sd: float, side: int = 32, factor: int = 4) -> list[torch.Tensor]:
    """Histograms of localizations of random sites, each found `times` times in each half with an error of sd px."""
    generator = torch.Generator().manual_seed(0)
    u, v = side * torch.rand(2, sites, 1, generator=generator, dtype=torch.float64) - 0.5
    out = []
    for _ in range(2):
        du, dv = sd * torch.randn(2, sites, times, generator=generator, dtype=torch.float64)
        # periodic, so that the image has no border
        columns, rows = (((x + d + 0.5) % side - 0.5).flatten() for x, d in ((u, du), (v, dv)))
        out.append(render(columns, rows, (side, side), factor))
    return out


@pytest.mark.parametrize("times, sd", [(1, 0.2), (4, 0.2), (4, 0.5)])
def test_of_random_sites_is_the_closed_form(times: int, sd: float) -> None:
    """E F₁F₂* = M Q² e^{−(2πqσ)²} and E|F|² = M [Q + Q(Q − 1) e^{−(2πqσ)²}] for M sites found Q times."""
    frequency, found, pixels = fourier_ring_correlation(*two_images(4000, times, sd))
    fall = torch.exp(-((2 * math.pi * 4 * frequency * sd) ** 2))  # frequency per camera pixel is 4 times that
    expected = times * fall / (1 + (times - 1) * fall)
    # the real part of a product of two unit normals has a variance of ½; each pixel comes with its mirror image
    error = ((1 - expected**2) / pixels).sqrt().clamp(min=1e-3)
    # ring k reaches from k − ½ to k + ½: where the curve is steep its mean is not the value in the middle
    rings = slice(3, None)
    z = ((found - expected) / error)[rings]
    assert z.square().mean() < 1.6 and z.abs().max() < 5


def test_of_an_image_with_itself_is_one() -> None:
    image = torch.rand(16, 16, dtype=torch.float64)
    _, found, pixels = fourier_ring_correlation(image, image)
    torch.testing.assert_close(found, torch.ones(8, dtype=torch.float64))
    assert pixels[0] == 8  # (±1, 0), (0, ±1) and the four corners at √2


def test_of_an_image_with_its_negative_is_minus_one() -> None:
    image = torch.rand(16, 16, dtype=torch.float64)
    torch.testing.assert_close(fourier_ring_correlation(image, -image)[1], -torch.ones(8, dtype=torch.float64))


def test_says_nothing_of_an_empty_image() -> None:
    assert fourier_ring_correlation(torch.zeros(8, 8), torch.rand(8, 8))[1].isnan().all()


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="second must be square"):
        fourier_ring_correlation(torch.rand(8, 8), torch.rand(8, 9))


def test_tapered_keeps_the_middle_and_ends_at_zero() -> None:
    faded = tapered(torch.ones(41, 41, dtype=torch.float64))
    assert faded[20, 20] == 1 and faded[0].abs().max() == 0 and faded[:, -1].abs().max() < 1e-12


def test_bad_tapers_are_named() -> None:
    for share in (0.0, 0.6):
        with pytest.raises(ValueError, match="share must be"):
            tapered(torch.ones(8, 8), share)
    with pytest.raises(ValueError, match=r"image must be square, got \(8, 9\)"):
        tapered(torch.ones(8, 9))


def held(images: int, share: float, taper: float | None) -> float:
    """Share of rings 3 and beyond whose 95 % band holds the correlation of two images with this much in common."""
    generator, inside, rings = torch.Generator().manual_seed(1), 0, 0
    for _ in range(images):
        common, *own = torch.randn(3, 48, 48, generator=generator, dtype=torch.float64)
        pair = [
            math.sqrt(share) * common + math.sqrt(1 - share) * x for x in own
        ]  # correlation `share` at every frequency
        pair = pair if taper is None else [tapered(x, taper) for x in pair]
        _, found, pixels = fourier_ring_correlation(*pair)
        low, high = correlation_band(found, pixels * (1 if taper is None else independent_share(taper)))
        inside += int(((low <= share) & (share <= high))[2:].sum())
        rings += len(found) - 2
    return inside / rings


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_band_holds_the_correlation_in_as_many_rings_as_it_claims(share: float) -> None:
    """Of 200 × 22 rings: a standard error of .0033; a band of n/2 or 2n pixels would hold 99.4 or 83 %."""
    assert abs(held(200, share, None) - 0.95) < 0.012


def test_the_band_of_tapered_images_holds_at_least_as_many() -> None:
    """Neighbours in a ring share noise: all pixels as independent would hold 92 %, mixing in two dimensions 98 %."""
    assert 0.945 < held(200, 0.3, 0.25) < 0.975


def test_the_independent_share_is_that_of_the_window() -> None:
    window = tapered(torch.ones(2001, 2001, dtype=torch.float64), 0.2)[1000]
    expected = window.square().mean() ** 2 / window.pow(4).mean()
    assert independent_share(0.2) == pytest.approx(float(expected), rel=2e-3)


def test_the_band_of_two_images_of_known_sites_holds_the_closed_form() -> None:
    """The oracle above, as a band. Pixels of 1/16 px: larger ones round positions, and lower the curve by sinc².

    Of 62 rings 95 %, with a standard error of 2.8 %.
    """
    frequency, found, pixels = fourier_ring_correlation(*two_images(4000, 2, 0.2, factor=16))
    fall = torch.exp(-((2 * math.pi * 16 * frequency * 0.2) ** 2))
    low, high = correlation_band(found, pixels)
    expected = 2 * fall / (1 + fall)
    assert ((low <= expected) & (expected <= high))[2:64].double().mean() > 0.95 - 3 * 0.028


def test_a_band_of_few_pixels_says_nothing_and_bad_levels_are_named() -> None:
    low, high = correlation_band(torch.tensor([0.5]), torch.tensor([2.0]))
    assert (low.item(), high.item()) == (-1, 1)
    with pytest.raises(ValueError, match=r"level must be in \[0, 1\], got 1.2"):
        correlation_band(torch.tensor([0.5]), torch.tensor([9.0]), 1.2)


def test_bit_curves_are_the_published_ones() -> None:
    """van Heel & Schatz 2005, Eqs. 17 and 14: their constants for one bit and for half a bit."""
    n = torch.tensor([4.0, 100.0, 1e12])
    one = (0.5 + 2.4142 / n.sqrt()) / (1.5 + 1.4142 / n.sqrt())
    half = (0.2071 + 1.9102 / n.sqrt()) / (1.2071 + 0.9102 / n.sqrt())
    torch.testing.assert_close(bit_curve(n), one, atol=1e-4, rtol=0)
    torch.testing.assert_close(bit_curve(n, 0.5), half, atol=1e-4, rtol=0)
    assert bit_curve(n)[-1] == pytest.approx(1 / 3, abs=1e-5)


def test_the_crossing_lies_between_the_rings() -> None:
    frequency = torch.tensor([0.1, 0.2, 0.3])
    assert crossing(frequency, torch.tensor([0.9, 0.5, 0.1]), 0.3) == pytest.approx(1 / 0.25)
    assert math.isnan(crossing(frequency, torch.tensor([0.9, 0.5, 0.4]), 0.3))
    assert math.isnan(crossing(frequency, torch.tensor([0.1, 0.5, 0.1]), 0.3))


def two_frames(sd: float, again: int, others: int, side: float = 100.0) -> Points:
    """`again` molecules in both of two frames, and in each frame `others` that are in it alone."""
    rng = np.random.default_rng(2)
    sites = side * rng.random((again, 2))
    frames = [
        np.concatenate([sites + sd * rng.standard_normal((again, 2)), side * rng.random((others, 2))]) for _ in "ab"
    ]
    u, v = np.concatenate(frames).T
    return Points(np.repeat([0, 1], again + others), u, v)


@pytest.mark.parametrize("again, others", [(4000, 10), (2000, 2000)])
def test_nena_finds_error_share_and_density(again: int, others: int) -> None:
    """The error of σ of n Rayleigh distances is σ/√(4n): .8 % of 4000. Others take a part of the information.

    Where all are seen again, a fit without the others is 5 % off; where half are, the mean distance 300 %.
    """
    found = nena(two_frames(0.15, again, others))
    assert found.sd == pytest.approx(0.15, rel=0.04)
    assert found.share == pytest.approx(again / (again + others), abs=0.04)
    # others of a molecule: all but itself, of both kinds
    assert found.density == pytest.approx((again + others) / 100**2, rel=0.1)


def test_nena_needs_neighbours() -> None:
    with pytest.raises(ValueError, match="found must have 10 localizations with a neighbour"):
        nena(Points(np.array([0, 1]), np.zeros(2), np.zeros(2)))
