"""The joint fit of all emitters of a frame, held against the fit of one, closed forms, and simulated frames."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from smlmtut import data
from smlmtut._random import step_generator
from smlmtut.estimation import fisher, fit_emitters, fit_spots
from smlmtut.estimation.joint import JointFit
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, rate_gradient

WIDE: dict[str, Any] = {"photons": (1.0, 1e5), "background": (0.0, 100.0), "sigma": (0.5, 2.0)}
SHAPE = (16, 16)


def emitters(*places: tuple[float, float, float], frames: int = 1) -> Emitters:
    """The same emitters (u, v, N) in every frame."""
    u, v, photons = (torch.tensor([x], dtype=torch.float64).expand(frames, -1) for x in zip(*places, strict=True))
    return Emitters(u, v, photons)


def frames_of(truth: Emitters, seed: int = 0, background: float = 5.0, variance: float = 2.0) -> torch.Tensor:
    """Photo-electrons with photon and read noise."""
    generator = step_generator(seed, 0)
    rate = expected_photons(truth, PSF(1.0), SHAPE, background)
    return torch.poisson(rate, generator) + math.sqrt(variance) * torch.randn(
        rate.shape, generator=generator, dtype=rate.dtype
    )


def test_one_emitter_is_fitted_as_fit_spots_does():
    truth = emitters((7.3, 8.1, 900.0), frames=50)
    x = frames_of(truth)
    joint = fit_emitters(x, truth, 2.0, **WIDE, tolerance=1e-6)
    alone = fit_spots(x, 1.0, True, 2.0, tolerance=1e-6)
    assert bool(joint.converged.all() and alone.converged.all())
    for name in ("u", "v", "photons"):
        assert torch.allclose(getattr(joint.emitters, name)[:, 0], getattr(alone, name), rtol=1e-5, atol=1e-5), name
    assert torch.allclose(joint.background, alone.background, rtol=1e-5)
    assert torch.allclose(joint.sigma, alone.sigma, rtol=1e-5)
    sd = joint.covariance().diagonal(dim1=1, dim2=2).sqrt()  # the prior of sigma is 1e-3 of its information at most
    for k, name in enumerate(("u", "v", "photons", "background", "sigma")):
        assert torch.allclose(sd[:, k], getattr(alone, f"{name}_sd"), rtol=0.01), name


def test_the_information_is_that_of_fisher():
    truth = emitters((5.0, 6.2, 700.0), (6.4, 6.9, 1200.0), (11.0, 3.5, 300.0))
    joint = fit_emitters(frames_of(truth), truth, 2.0, **WIDE, max_iterations=1)
    there = PSF(joint.sigma[:, None])
    names = ("u", "v", "photons", "background")
    gradient = rate_gradient(joint.emitters, there, SHAPE, names)
    rate = expected_photons(joint.emitters, there, SHAPE, joint.background)
    wanted = fisher.fisher_information(gradient, 1 / (rate + 2.0))
    prior = torch.tensor([22.0, 22.0, 1e5 - 1.0] * 3 + [100.0], dtype=torch.float64)  # widths of the limits
    wanted += torch.diag(12 / prior**2)
    assert torch.allclose(joint.information[:, :-1, :-1], wanted, rtol=1e-9, atol=1e-12)


def test_two_that_overlap_scatter_as_they_claim():
    """400 frames of a pair 1.5 px apart: an sd of 400 values has an error of 3.5 %."""
    truth = emitters((7.0, 8.0, 1500.0), (8.5, 8.0, 1500.0), frames=400)
    joint = fit_emitters(frames_of(truth, 1), truth, 2.0, **WIDE)
    assert float(joint.converged.double().mean()) > 0.99
    claimed = joint.covariance().diagonal(dim1=1, dim2=2).mean(0).sqrt()
    found = torch.stack([joint.emitters.u, joint.emitters.v], -1).flatten(1)
    places = torch.tensor([0, 1, 3, 4])
    ratio = found.std(0) / claimed[places]
    assert bool((ratio > 0.88).all() and (ratio < 1.15).all()), ratio
    assert bool((found.mean(0) - torch.tensor([7.0, 8.0, 8.5, 8.0]).double()).abs().lt(5 * found.std(0) / 20).all())


def test_the_mode_has_no_gradient():
    truth = emitters((5.0, 6.2, 700.0), (6.4, 6.9, 1200.0), frames=20)
    x = frames_of(truth, 2)
    joint = fit_emitters(x, truth, 2.0, **WIDE, tolerance=1e-8)
    theta = [joint.emitters.u, joint.emitters.v, joint.emitters.photons, joint.background, joint.sigma]
    u, v, photons, background, sigma = (t.clone().requires_grad_() for t in theta)
    along = torch.arange(16, dtype=torch.float64)

    def edge(place: torch.Tensor) -> torch.Tensor:
        """Share of each pixel, (B, E, 16)."""
        upper, lower = ((along + side - place[..., None]) / sigma[:, None, None] for side in (0.5, -0.5))
        return torch.special.ndtr(upper) - torch.special.ndtr(lower)

    rate = torch.einsum("be,beh,bew->bhw", photons, edge(v), edge(u)) + background[:, None, None] + 2.0
    ((x + 2.0) * rate.log() - rate).sum().backward()
    sd = joint.covariance().diagonal(dim1=1, dim2=2).sqrt()

    def slope(x: torch.Tensor) -> torch.Tensor:
        assert x.grad is not None
        return x.grad

    for k, value in enumerate((u, v, photons)):
        assert float((slope(value) * sd[:, k:-2:3]).abs().max()) < 1e-4
    assert (
        float((slope(sigma) * sd[:, -1]).abs().max()) < 1e-4
        and float((slope(background) * sd[:, -2]).abs().max()) < 1e-4
    )


def test_lone_molecules_have_the_exact_posteriors_mean_and_sd():
    """Held against Markov chains that know nothing of fits, on frames of a real sensor where they find one molecule.

    64 draws leave an error of 1/8 sd in a mean and of 9 % in an sd. Medians over frames: in a few, some draws have
    a second molecule beyond the border, and the posterior is not normal.
    """
    known = data.reference_posteriors("dev", "lone")
    alone = known["p_inside"][:, 1] > 0.98
    assert alone.sum() > 20
    known = {name: torch.from_numpy(np.asarray(values[alone], dtype="f8")) for name, values in known.items()}
    camera = Camera(known["gain"], known["offset"], known["read_variance"])
    electrons = to_photoelectrons(known["adu"], camera)
    start = Emitters(known["truth_u"][:, :1], known["truth_v"][:, :1], known["truth_photons"][:, :1])
    joint = fit_emitters(electrons, start, torch.as_tensor(camera.read_variance_electrons))
    sd = joint.covariance().diagonal(dim1=1, dim2=2).sqrt()
    for k, name in enumerate(("u", "v")):
        draws, there = known[f"draw_{name}"], known["draw_photons"] > 0
        inside = there & (known["draw_u"] > -0.5) & (known["draw_u"] < 15.5) & (known["draw_v"] > -0.5)
        inside &= (known["draw_v"] < 15.5) & (inside.cumsum(2) == 1)
        one = (draws * inside).sum(2)
        counted = inside.any(2).double()
        mean = (one * counted).sum(1) / counted.sum(1)
        spread = ((one - mean[:, None]).square() * counted).sum(1).div(counted.sum(1) - 1).sqrt()
        off = (getattr(joint.emitters, name)[:, 0] - mean) / spread
        assert abs(float((sd[:, k] / spread).log().median())) < 0.06, name  # 3 of its errors, 1.25 · .09 / √35
        assert float(off.abs().median()) < 0.13, name  # .67 / 8 from the draws' noise, and half as much again


def test_limits_hold_and_an_absent_emitter_changes_nothing():
    truth = emitters((5.0, 6.2, 3000.0), (11.0, 9.0, 20.0), frames=8)
    x = frames_of(truth, 3)
    joint = fit_emitters(x, truth, 2.0)
    assert bool((joint.emitters.photons[:, 0] == 2000).all())
    assert bool((joint.emitters.photons >= 100).all() and (joint.sigma <= 1.08).all() and (joint.sigma >= 0.92).all())
    place, light = (torch.cat([t, torch.full_like(t[:, :1], 3.0)], 1) for t in (truth.u, truth.photons))
    more = Emitters(
        place, torch.cat([truth.v, place[:, 2:]], 1), light, torch.tensor([True, True, False]).expand(8, -1)
    )
    padded = fit_emitters(x, more, 2.0)
    for name in ("u", "v", "photons"):
        assert torch.allclose(getattr(padded.emitters, name)[:, :2], getattr(joint.emitters, name), atol=1e-9)
    assert bool((padded.emitters.photons[:, 2] == 0).all()) and torch.equal(padded.emitters.mask, more.mask)
    assert torch.allclose(padded.deviance, joint.deviance)
    assert torch.equal(padded.information[:, 6:9, 6:9], torch.eye(3).double().expand(8, 3, 3))


def test_draws_have_the_covariance():
    truth = emitters((7.0, 8.0, 900.0), (8.6, 8.4, 1500.0))
    joint = fit_emitters(frames_of(truth, 4), truth, 2.0)
    u, v = joint.draw(20_000, step_generator(5, 0))
    assert u.shape == v.shape == (1, 20_000, 2)
    found = torch.stack([u[0, :, 0], v[0, :, 0], u[0, :, 1], v[0, :, 1]])
    wanted = joint.covariance()[0][[0, 1, 3, 4]][:, [0, 1, 3, 4]]
    scale = wanted.diagonal().sqrt()
    assert float(((found.cov() - wanted) / (scale[:, None] * scale)).abs().max()) < 0.05
    assert torch.allclose(found.mean(1), torch.stack([joint.emitters.u, joint.emitters.v], -1).flatten(), atol=0.005)


def test_single_precision_and_arrays():
    truth = emitters((7.3, 8.1, 900.0), (4.0, 3.0, 500.0), frames=6)
    x = frames_of(truth)
    exact, short = (fit_emitters(t, truth, 2.0) for t in (x, x.float()))
    assert short.emitters.u.dtype == torch.float32 and bool(short.converged.all())
    assert float((short.emitters.u - exact.emitters.u).abs().max()) < 1e-3
    taken = fit_emitters(np.asarray(x), truth, np.full(SHAPE, 2.0))  # type: ignore[arg-type]
    assert isinstance(taken, JointFit) and torch.equal(taken.emitters.u, exact.emitters.u)


def test_a_fit_that_is_cut_short_says_so():
    truth = emitters((7.3, 8.1, 900.0))
    start = emitters((6.0, 9.0, 300.0))
    assert not bool(fit_emitters(frames_of(truth), start, 2.0, max_iterations=1).converged.any())
    assert bool(fit_emitters(frames_of(truth), start, 2.0).converged.all())


def test_the_read_variance_of_each_pixel_counts():
    camera = Camera(1.0, 0.0, torch.linspace(1, 400, 256).reshape(SHAPE).double())
    truth = emitters((7.3, 8.1, 900.0))
    joint = fit_emitters(frames_of(truth), truth, torch.as_tensor(camera.read_variance), **WIDE, max_iterations=1)
    assert not torch.allclose(joint.information[0, 0, 0], joint.information[0, 1, 1], rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"start": emitters((1.0, 1.0, 1.0), frames=2)}, "start must have a row for each of the 1 frames, got 2"),
        ({"frames": torch.full((1, 16, 16), math.nan)}, "frames must be finite"),
        ({"frames": torch.zeros(16, 16)}, r"frames must have 3 dimensions"),
        ({"read_variance": torch.zeros(3, 3)}, r"read_variance must be a number or have shape \(16, 16\)"),
        ({"read_variance": -1.0}, "read_variance must be finite and not negative, got -1"),
        ({"photons": (5.0, 5.0)}, r"photons must be two increasing limits of at least 0, got \(5.0, 5.0\)"),
        ({"sigma": (0.0, 1.0)}, "sigma must be two increasing limits above 0"),
        ({"max_iterations": 0}, "max_iterations must be"),
    ],
)
def test_bad_input(change, why):
    good = {"frames": torch.ones(1, 16, 16), "start": emitters((1.0, 1.0, 500.0)), "read_variance": 1.0}
    with pytest.raises(ValueError, match=why):
        fit_emitters(**(good | change))
