"""Scenes and frames: their statistics against closed forms, with limits that follow from the sample size.

A limit of 5 standard errors is missed by chance once in 1.7 million comparisons; the seeds are fixed besides.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from smlmtut.imaging import simulate
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, present_mask

N = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_mean(sample, mean, sd):
    """The sample's mean is within 5 standard errors."""
    assert float(sample.double().mean()) == pytest.approx(mean, abs=5 * sd / math.sqrt(sample.numel()))


def test_disc_is_even():
    disc = simulate.uniform_on_disc(N, 1, 6.5, (7.0, 8.0), 300.0, generator())
    x, y = (disc.u[:, 0] - 7) / 6.5, (disc.v[:, 0] - 8) / 6.5
    r = torch.hypot(x, y)
    assert float(r.max()) <= 1 + 1e-12
    # on the unit disc: mean 0, variance 1/4 along each axis, E[r²] = 1/2 with variance 1/12, E[xy] = 0 with 1/24
    assert_mean(x, 0, 0.5)
    assert_mean(y, 0, 0.5)
    assert_mean(r**2, 0.5, math.sqrt(1 / 12))
    assert_mean(x * y, 0, math.sqrt(1 / 24))
    # the area inside r is uniform, and so is the angle: Kolmogorov–Smirnov at the same rarity
    assert stats.kstest(r.numpy() ** 2, "uniform").pvalue > 6e-7
    angle = torch.atan2(y, x).numpy()
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 6e-7


def test_disc_counts_and_photons():
    disc = simulate.uniform_on_disc(N, (1, 6), 6.5, (7.0, 7.0), (200.0, 1000.0), generator(1))
    assert disc.u.shape == (N, 6)
    counts = disc.mask.sum(1)
    shares = torch.bincount(counts, minlength=7)[1:] / N
    assert int(counts.min()) == 1 and int(counts.max()) == 6
    assert float((shares - 1 / 6).abs().max()) < 5 * math.sqrt(5 / 36 / N)
    assert torch.equal(disc.mask, present_mask(counts, 6))
    assert_mean(disc.photons, 600, 800 / math.sqrt(12))
    assert 200 <= float(disc.photons.min()) and float(disc.photons.max()) <= 1000


def test_the_positions_of_a_disc_are_those_of_its_emitters():
    """One definition of the uniform disc: the same stream gives the same points, in any shape."""
    disc = simulate.uniform_on_disc(5, 4, 6.5, (7.0, 8.0), 300.0, generator(1))
    again = generator(1)
    torch.randint(4, 5, (5,), generator=again)  # the number of emitters is drawn first, here without a choice
    u, v = simulate.disc_positions((5, 4), 6.5, (7.0, 8.0), again)
    assert torch.equal(disc.u, u) and torch.equal(disc.v, v)


def test_frame_is_even_to_the_edges_of_its_pixels():
    scene = simulate.uniform_in_frame(N, (5, 9), 100.0, generator(2), count=1)
    for position, size in ((scene.u, 9), (scene.v, 5)):
        assert -0.5 <= float(position.min()) and float(position.max()) <= size - 0.5
        assert_mean(position, (size - 1) / 2, size / math.sqrt(12))
        assert stats.kstest(position[:, 0].numpy(), stats.uniform(-0.5, size).cdf).pvalue > 6e-7


def test_density_gives_a_poisson_number():
    scene = simulate.uniform_in_frame(N, (8, 10), 100.0, generator(3), density=0.05)
    counts = scene.mask.sum(1).double()
    mean = 0.05 * 80
    assert_mean(counts, mean, math.sqrt(mean))
    # a Poisson variance has the standard error sqrt((mean + 2 mean²) / N)
    assert float(counts.var()) == pytest.approx(mean, abs=5 * math.sqrt((mean + 2 * mean**2) / N))
    assert scene.u.shape[1] == int(counts.max())


def test_a_frame_without_emitters_is_allowed():
    scene = simulate.uniform_in_frame(3, (8, 8), 100.0, generator(), density=0.0)
    assert not scene.mask.any()
    assert torch.equal(expected_photons(scene, PSF(1.0), (8, 8), 2.0), torch.full((3, 8, 8), 2.0).double())


@pytest.mark.parametrize("quantum_efficiency", [1.0, 0.8])
def test_frames_have_the_cameras_mean_and_variance(quantum_efficiency):
    rng = np.random.default_rng(0)
    gain, offset, variance = (rng.uniform(low, high, (5, 5)) for low, high in ((1, 3), (90, 110), (0, 30)))
    g, o, var = (torch.from_numpy(m) for m in (gain, offset, variance))
    camera = Camera(g, o, var, quantum_efficiency)
    emitters = Emitters(*(torch.full((N, 1), x, dtype=torch.float64) for x in (2.2, 1.8, 300.0)))
    x = simulate.frames(emitters, PSF(1.0), camera, (5, 5), 4.0, generator(4)).numpy()
    electrons = quantum_efficiency * expected_photons(emitters, PSF(1.0), (5, 5), 4.0)[0].numpy()
    mean = gain * electrons + offset
    second = gain**2 * electrons + variance
    fourth = 3 * second**2 + gain**4 * electrons  # central fourth moment: 3 var² + κ₄, and κ₄ = g⁴ ω
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(second / N))
    assert np.all(np.abs(x.var(0) - second) < 5 * np.sqrt((fourth - second**2) / N))


def test_pair_has_its_distance_centre_and_direction():
    separation = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    angle = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    two = simulate.emitter_pair(separation, (4.0, 5.0), 250.0, angle)
    du, dv = two.u[:, 1] - two.u[:, 0], two.v[:, 1] - two.v[:, 0]
    torch.testing.assert_close(torch.hypot(du, dv), separation, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.atan2(dv, du)[1:], angle[1:], rtol=0, atol=1e-14)
    torch.testing.assert_close(two.u.mean(1), torch.full((3,), 4.0).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(two.v.mean(1), torch.full((3,), 5.0).double(), rtol=0, atol=1e-14)
    assert float(two.photons.min()) == float(two.photons.max()) == 250
    assert len(simulate.emitter_pair(1.0, (4.0, 5.0), 250.0)) == 1


def test_flat_fields_give_back_the_gain_by_photon_transfer():
    camera = Camera(gain=2.2, offset=100.0, read_variance=5.0)
    levels, repeats, shape = [0.0, 50.0, 200.0], 400, (20, 20)
    flats = simulate.flat_fields(levels, repeats, camera, shape, generator(5))
    assert flats.shape == (3, repeats, *shape) and flats.dtype == torch.float64
    samples = repeats * 400
    for level, flat in zip(levels, flats, strict=True):
        second = 2.2**2 * level + 5
        fourth = 3 * second**2 + 2.2**4 * level
        assert_mean(flat, 100 + 2.2 * level, math.sqrt(second))
        assert float(flat.var()) == pytest.approx(second, abs=5 * math.sqrt((fourth - second**2) / samples))


DRAWS = {
    "disc": lambda g: simulate.uniform_on_disc(5, (1, 4), 6.0, (7.0, 7.0), (200.0, 900.0), g).u,
    "frame": lambda g: simulate.uniform_in_frame(5, (8, 8), (200.0, 900.0), g, density=0.1).u,
    "frames": lambda g: simulate.frames(
        Emitters.single(3, 3, 500), PSF(1.0), Camera(read_variance=2.0), (7, 7), 5.0, g
    ),
    "flats": lambda g: simulate.flat_fields([1.0, 10.0], 3, Camera(read_variance=2.0), (4, 4), g),
}


@pytest.mark.parametrize("name", DRAWS)
def test_same_seed_same_numbers(name):
    first, again, other = (DRAWS[name](generator(seed)) for seed in (11, 11, 12))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("name", DRAWS)
def test_nothing_is_drawn_from_the_global_generator(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    DRAWS[name](generator())
    assert torch.equal(before, torch.get_rng_state())


def test_type_of_the_emitters_is_the_type_of_the_frames():
    scene = simulate.uniform_on_disc(2, 3, 4.0, (5.0, 5.0), 300.0, generator(), dtype=torch.float32)
    x = simulate.frames(scene, PSF(1.0), Camera(read_variance=torch.ones(11, 11)), (11, 11), 2.0, generator())
    assert scene.u.dtype == x.dtype == torch.float32 and x.shape == (2, 11, 11)
