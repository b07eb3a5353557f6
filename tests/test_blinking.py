"""Blinking molecules: durations, numbers of bright states and photons against closed forms.

A limit of 5 standard errors is missed by chance once in 1.7 million comparisons; the seeds are fixed besides.
"""

import math

import pytest
import torch

from smlmtut.imaging.blinking import Flashes, Kinetics, blink, movie
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.distributions import LogUniform
from smlmtut.imaging.psf import PSF, expected_photons

MANY = 4000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def positions(many, seed=9):
    u, v = 32 * torch.rand(2, many, generator=generator(seed), dtype=torch.float64)
    return u, v


def draw(kinetics, frames, many=MANY, seed=0):
    return blink(*positions(many), kinetics, frames, generator(seed))


def assert_mean(sample, mean, sd):
    assert float(sample.double().mean()) == pytest.approx(mean, abs=5 * sd / math.sqrt(sample.numel()))


def test_total_light_is_flashes_times_on_time():
    # a movie so long that every molecule bleaches in it: E[light] = photons · flashes · on_time
    kinetics = Kinetics(on_time=3.0, off_time=5.0, flashes=4.0, photons=100.0)
    found = draw(kinetics, 2000)
    light = torch.zeros(MANY, dtype=torch.float64).index_add_(0, found.molecule, found.photons) / 100
    # a geometric sum of exponentials is exponential, with the product of the means
    assert_mean(light, 12.0, 12.0)
    assert float(light.var()) == pytest.approx(144, rel=5 * math.sqrt(8 / MANY))  # kurtosis of an exponential: 9


def test_share_of_bright_molecules_in_steady_state():
    # hardly any bleach, and the start is forgotten: a molecule is bright on / (on + off) of the time
    kinetics = Kinetics(on_time=2.0, off_time=6.0, flashes=1e6, photons=1.0)
    found = draw(kinetics, 400, many=2000)
    late = found.frame >= 100
    per_molecule = torch.zeros(2000, dtype=torch.float64).index_add_(0, found.molecule[late], found.photons[late])
    mean = per_molecule.mean() / 300
    error = per_molecule.std() / 300 / math.sqrt(2000)
    assert float(mean) == pytest.approx(0.25, abs=5 * float(error))


def test_molecules_start_dark():
    # before the first bright state the wait is exponential: P(no light in n frames) = exp(−n / off)
    found = draw(Kinetics(on_time=2.0, off_time=50.0), 20)
    dark = 1 - len(found.molecule.unique()) / MANY
    expected = math.exp(-20 / 50)
    assert dark == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / MANY))


def test_no_frame_is_brighter_than_a_whole_frame():
    found = draw(Kinetics(on_time=0.3, off_time=0.3, flashes=50.0, photons=10.0), 60, many=500)
    assert 0 <= float(found.photons.min()) and float(found.photons.max()) <= 10 * (1 + 1e-12)
    pairs = found.frame * 500 + found.molecule
    assert len(pairs.unique()) == len(pairs)  # a molecule has one row in a frame


def test_one_flash_is_one_stretch():
    found = draw(Kinetics(on_time=5.0, off_time=20.0, flashes=1.0, photons=10.0), 1000, many=300)
    for molecule in range(0, 300, 17):
        rows = found.frame[found.molecule == molecule]
        assert torch.equal(rows, torch.arange(int(rows[0]), int(rows[0]) + len(rows)))
        inner = found.photons[found.molecule == molecule][1:-1]
        assert torch.allclose(inner, torch.full_like(inner, 10.0))


def test_rows_are_in_order_and_keep_the_positions():
    u, v = positions(200)
    found = blink(u, v, Kinetics(off_time=30.0, photons=LogUniform(500.0, 1300.0)), 300, generator(1))
    assert bool((found.frame.diff() >= 0).all()) and int(found.frame.max()) < 300
    assert torch.equal(found.u, u[found.molecule]) and torch.equal(found.v, v[found.molecule])


def test_emitters_are_the_rows_of_their_frames():
    found = draw(Kinetics(off_time=20.0), 50, many=100)
    emitters = found.emitters(10, 30)
    assert len(emitters) == 20
    for row in range(20):
        here = emitters.mask[row]
        own = found.frame == 10 + row
        assert torch.equal(emitters.u[row][here], found.u[own])
        assert torch.equal(emitters.photons[row][here], found.photons[own])
    # blocks cut anywhere hold the same rows
    parts = [found.emitters(a, b) for a, b in ((0, 7), (7, 33), (33, 50))]
    assert sum(int(p.mask.sum()) for p in parts) == len(found)


def test_movie_has_the_expected_light():
    shape, frames = (32, 32), 300
    found = draw(Kinetics(off_time=40.0, photons=300.0), frames, many=150)
    camera = Camera(gain=2.0, offset=100.0, read_variance=16.0)
    blocks = list(movie(found, PSF(1.0), camera, shape, 2.0, frames, generator(3), block=64))
    assert [len(b) for b in blocks] == [64, 64, 64, 64, 44]
    electrons = float(((torch.cat(blocks) - 100) / 2).sum())
    inside = sum(float(expected_photons(found.emitters(a, a + 50), PSF(1.0), shape).sum()) for a in range(0, 300, 50))
    expected = inside + 2.0 * 32 * 32 * frames
    error = math.sqrt(expected + 4.0 * 32 * 32 * frames)  # Poisson, and read variance 16 / 2²
    assert electrons == pytest.approx(expected, abs=5 * error)


def test_same_seed_same_movie():
    one, two, other = (draw(Kinetics(off_time=20.0), 50, many=50, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.photons, two.photons)
    assert len(one) != len(other) or not torch.equal(one.photons, other.photons)


def test_nothing_to_see():
    none = blink(torch.zeros(0), torch.zeros(0), Kinetics(), 10, generator())
    assert len(none) == 0
    assert int(none.emitters(0, 10).mask.sum()) == 0
    assert isinstance(none, Flashes)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("on_time", lambda: Kinetics(on_time=0)),
        ("off_time", lambda: Kinetics(off_time=-1)),
        ("flashes", lambda: Kinetics(flashes=0.5)),
        ("photons", lambda: Kinetics(photons=-1.0)),
        ("v", lambda: blink(torch.zeros(2), torch.zeros(3), Kinetics(), 10, generator())),
        ("frames", lambda: blink(torch.zeros(2), torch.zeros(2), Kinetics(), 0, generator())),
        ("stop", lambda: draw(Kinetics(), 10, many=3).emitters(5, 5)),
    ],
)
def test_bad_input(name, call):
    with pytest.raises(ValueError, match=name):
        call()
