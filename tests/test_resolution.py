"""Fourier ring correlation against closed forms."""

import math

import pytest
import torch

from smlmtut.evaluation.resolution import fourier_ring_correlation, tapered
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
