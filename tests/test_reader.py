"""What a mean image tells of its own uncertainty: against blobs whose variance is known, and by simulation."""

import math

import pytest
import torch

from benchmarks.reader import (
    FEATURES,
    NARROWEST,
    SCALE_AT_START,
    Reader,
    curvature,
    lone_sd,
    variance_budget,
    width_features,
)
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import Emitters

PLACES = [(3.5, 3.5), (3.625, 3.625), (3.4, 3.9)]  # camera pixels: between four fine pixels, on one, anywhere


def blob(tau: float = 0.0, u: float = 3.4, v: float = 3.9) -> torch.Tensor:
    """E[y] of a lone emitter whose position is Gaussian with sd tau (super-resolved px): (1, 1, 32, 32)."""
    wide = math.sqrt(1 + tau**2)
    one = torch.ones(1, 1, dtype=torch.float64)
    return kde_image(Emitters(u * one, v * one, one), (8, 8), sigma=wide) / wide**2


def drawn(tau: float, many: int, u: float = 3.4, v: float = 3.9) -> torch.Tensor:
    """KDEs of an emitter whose position is drawn: (many, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    u_drawn, v_drawn = (x + tau / 4 * torch.randn(many, 1, generator=generator, dtype=torch.float64) for x in (u, v))
    return kde_image(Emitters(u_drawn, v_drawn, torch.ones_like(u_drawn)), (8, 8))[:, 0]


def about(image: torch.Tensor, u: float, v: float) -> float:
    """The value of (1, 1, 32, 32) at the fine pixel nearest to (u, v)."""
    column, row = (round(4 * (x + 0.5) - 0.5) for x in (u, v))
    return float(image[0, 0, row, column])


# -- the sum of the variances ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_position_that_is_known_has_no_variance_wherever_it_lies_between_pixels(place):
    """Σ y = 2π and Σ y² = π of a sampled kernel of sd 1, within 4 exp(−2π²) and 4 exp(−π²) = 2e-4 of it."""
    # the sum about the nearest pixel ends 4 px or more from the emitter: 4 · P(Z > 4) = 1.3e-4 of the mass lies beyond
    assert abs(about(variance_budget(blob(0, *place), 4), *place)) < 5e-4


@pytest.mark.parametrize("tau", [0.3, 0.6])
def test_local_sum_is_the_total_variance_of_a_lone_emitter(tau):
    """E[y] is a Gaussian of variance 1 + τ² and mass 2π: Σ (E/2 − E²)/π = 1 − 1/(1 + τ²)."""
    seen = about(variance_budget(blob(tau), 4), 3.4, 3.9)
    assert seen == pytest.approx(1 - 1 / (1 + tau**2), abs=5e-3)  # the mass beyond the window, as above
    total = float(drawn(tau, 4000).var(0).sum()) / math.pi
    assert seen == pytest.approx(total, rel=0.1)  # 4000 draws: a variance to about 3 %


# -- curvature, and the sd of each pixel -------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tau", [0.0, 0.2, 0.7])
def test_curvature_is_exact_for_a_gaussian_blob_in_every_pixel_of_it(tau, place):
    """Five points give the Laplacian of a parabola without error; the mean of a constant is that constant."""
    image = blob(tau, *place)
    found = curvature(image)[image > 0.3]
    # the logarithm is bounded in pixels beside some with ŷ < .03, which count a thousandth each
    torch.testing.assert_close(found, torch.full_like(found, tau**2 / (1 + tau**2)), atol=5e-3, rtol=0)


@pytest.mark.parametrize("by", ["slope", "height"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tau", [0.1, 0.3, 0.7])
def test_sd_of_a_lone_emitter_is_the_closed_form(tau, place, by):
    """E[y²] is a Gaussian of variance ½ + τ² and height 1/(1 + 2τ²)."""
    mean, wide = blob(tau, *place), math.sqrt(0.5 + tau**2)
    one = torch.ones(1, 1, dtype=torch.float64)
    square = kde_image(Emitters(place[0] * one, place[1] * one, one), (8, 8), sigma=wide) / (1 + 2 * tau**2)
    sd = lone_sd(mean, torch.tensor(tau**2, dtype=torch.float64), by)
    shown = mean > 0.05  # where logarithm and distance are not bounded
    torch.testing.assert_close(sd[shown], (square - mean**2).clamp(min=0).sqrt()[shown], rtol=1e-6, atol=1e-9)


def test_sd_of_a_lone_emitter_is_that_of_simulated_places():
    tau, many = 0.4, 20_000
    y = drawn(tau, many)
    sd, shown = lone_sd(blob(tau), torch.tensor(tau**2).double())[0, 0], blob(tau)[0, 0] > 0.05
    # a variance over 20 000 draws: 1 % for a Gaussian, some per cent in the rim, where a few draws count
    torch.testing.assert_close(y.std(0)[shown], sd[shown], rtol=0.04, atol=0)


def test_the_dark_has_no_spread_and_no_curvature():
    dark = torch.zeros(1, 1, 16, 16)
    assert torch.equal(lone_sd(dark, torch.tensor(0.3)), dark)
    assert torch.equal(curvature(dark), dark)
    assert torch.equal(width_features(dark), torch.zeros(1, FEATURES, 16, 16))


# -- the network -------------------------------------------------------------------------------------------


def test_starts_at_the_estimate_and_the_sd_of_a_lone_emitter():
    reader, estimate = Reader(1), blob(0.5).float()
    centre, scale = reader(estimate)
    assert torch.equal(centre, estimate)
    start = math.log1p(math.exp(-2))
    alone = lone_sd(estimate, torch.tensor(start + NARROWEST))
    torch.testing.assert_close(scale, (0.02**2 + (SCALE_AT_START * start) ** 2 + alone.square()).sqrt())


def test_gradients_are_finite_where_nothing_is_to_be_seen():
    reader = Reader(1, features=8)
    centre, scale = reader(torch.zeros(1, 1, 16, 16))
    (centre + scale.log()).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in reader.parameters())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="estimate"):
        width_features(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="by must be"):
        lone_sd(blob(), torch.tensor(0.1), by="width")
