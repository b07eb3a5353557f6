"""The check of a movie: silent where the camera is right, loud where it is not, and a bound on what is believed."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import movie_check
from smlmtut import data, io
from smlmtut._random import step_generator
from smlmtut.imaging.camera import Camera, expose
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.localize import MovieCheck, check_movie, localize_to_file
from smlmtut.localize.check import OUTSIDE, fitted_rate, noise_alone, problems, unlike
from smlmtut.localize.isolated import lower_spread
from smlmtut.localize.scene import REFERENCE
from smlmtut.networks.pretrained import load

GOOD = MovieCheck(5.0, 0.9, 1.0, 0.0, 0.0, 1.0, 1.0, 900.0, 0.01, ())


@pytest.fixture(scope="module")
def network():
    return load()


@pytest.fixture(scope="module")
def movies():
    """A few movies of the training scene with their cameras; benchmarks/movie_check.py takes 500."""
    made = [movie_check.simulated(step_generator(99, k)) for k in range(3)]
    return [(movie, replace(camera, integer=False, saturation=None)) for movie, camera in made]


def test_the_right_camera_is_not_warned_of(movies, network):
    for movie, camera in movies:
        seen = check_movie(movie, camera, network, 108.0)
        assert seen.problems == () and seen.probability_limit == 1, (camera, seen)


@pytest.mark.parametrize("name", ["nothing given", "no offset", "offset and gain exchanged"])
def test_a_wrong_camera_is_warned_of(movies, network, name):
    for movie, camera in movies:
        assert check_movie(movie, movie_check.WRONG[name](camera), network, 108.0).problems, camera


def test_a_missing_read_variance_is_warned_of_where_it_matters(movies, network):
    """Where it is less than a fifth of the noise's variance the spread changes by less than what is allowed."""
    for movie, camera in movies:
        v = float(camera.read_variance_electrons)
        seen = check_movie(movie, replace(camera, read_variance=0.0), network, 108.0)
        if v > 0.5 * seen.background:
            assert any("read variance" in problem for problem in seen.problems), (camera, seen)


def test_the_real_movie_without_its_read_variance_is_not_believed(network, tmp_path):
    """4,012 localizations in 30 frames, about 150 of them right: the table says so."""
    movie = data.af647_movie()
    right, wrong = Camera(read_variance=21.9), Camera()
    assert check_movie(movie, right, network, 108.0).problems == ()
    seen = check_movie(movie, wrong, network, 108.0)
    assert seen.noise > 2 and seen.false_share > 0.5 and seen.probability_limit < 0.5
    assert any("scatter" in problem for problem in seen.problems)
    told: list[MovieCheck] = []
    rows = localize_to_file(
        tmp_path / "wrong.csv", movie[:3], wrong, network, 108.0, progress=False, inspect=told.append
    )
    assert told[0].problems
    table = io.read_localizations(tmp_path / "wrong.csv", 108.0)
    assert len(table) == rows > 200 and set(table[OUTSIDE]) == {1}
    localize_to_file(tmp_path / "right.csv", movie[:3], right, network, 108.0, progress=False, inspect=told.append)
    assert OUTSIDE not in io.read_localizations(tmp_path / "right.csv", 108.0)


@pytest.mark.parametrize(
    ("movie", "camera", "words"),
    [
        (np.full((4, 32, 32), 65535, np.uint16), Camera(2.0, 100.0, 20.0), "saturated"),
        (np.full((4, 32, 32), 40, np.uint16), Camera(2.0, 100.0, 20.0), "below the offset"),
        (
            np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8),
            Camera(2.0, 100.0, 20.0),
            "below the offset",
        ),
    ],
    ids=["saturated", "below", "8 bits"],
)
def test_data_that_cannot_be_right(movie, camera, words, network):
    assert any(words in problem for problem in check_movie(movie, camera, network, 108.0).problems)


def test_a_movie_of_eight_bits_is_warned_of_even_where_it_looks_right(movies, network):
    """Scaling may leave noise and background as the camera foresees them: what remains is the type."""
    movie, camera = movies[0]
    for eight in ((movie - 40).clamp(0, 255).to(torch.uint8), (movie - 40).clamp(0, 255).numpy().astype(np.uint8)):
        scaled = replace(camera, offset=camera.offset - 40)
        others = [p for p in check_movie(movie - 40, scaled, network, 108.0).problems if "8 bits" in p]
        assert others == [] and any("8 bits" in p for p in check_movie(eight, scaled, network, 108.0).problems)


def test_crowded_movies_have_wider_limits():
    """Where nearly all pixels are lit, missed molecules raise the background, and the dim pixels are chosen ones."""
    for dim, noise, background, wanted in (
        (0.5, 0.85, 5.0, 1), (0.1, 0.85, 5.0, 0), (0.1, 0.7, 5.0, 1), (0.1, 1.15, 5.0, 1),
        (0.5, 1.0, 30.0, 1), (0.1, 1.0, 30.0, 0), (0.1, 1.0, 45.0, 1),
    ):  # fmt: skip
        check = replace(GOOD, background=background, dim=dim, noise=noise, density=5.0)
        found = [*problems(check), *unlike(check, 108.0, {"w": REFERENCE})]
        assert len(found) == wanted, (dim, noise, background, found)


def test_the_fit_finds_brightness_and_background():
    """Against the truth, within its Cramér-Rao bound, where every emitter is known."""
    u, v = torch.tensor([[8.2, 22.6, 14.0]]).double(), torch.tensor([[9.1, 20.3, 25.5]]).double()
    emitters = Emitters(u, v, torch.tensor([[900.0, 1500.0, 400.0]]).double())
    rate = expected_photons(emitters, PSF(1.0), (32, 32), 6.0)
    x = expose(rate, Camera(read_variance=4.0), torch.Generator().manual_seed(1))[0]
    image, background = fitted_rate(x, torch.full((32, 32), 4.0).double(), u[0], v[0], 1.0)
    assert abs(background - 6) < 4 * math.sqrt(10 / 1000)
    assert float((image - rate[0]).abs().max()) < 12  # 4 sd of the brightest emitter's peak, 1500 · .15 · 4/√1500 · …


def test_the_lower_spread_does_not_see_missed_molecules():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spoiled = torch.cat([noise, torch.full((1000,), 5.0).double()])
    assert lower_spread(noise) == pytest.approx(1, abs=0.02)
    assert lower_spread(spoiled) == pytest.approx(1, abs=0.06) and float(spoiled.std()) > 1.3


def test_noise_alone_has_the_noise_and_no_molecule():
    generator = torch.Generator().manual_seed(3)
    residuals = 2 * torch.randn(5000, generator=generator, dtype=torch.float64)
    frame = noise_alone(residuals, 5.0, torch.full((64, 64), 4.0).double(), generator)
    assert float(frame.mean()) == pytest.approx(5, abs=0.3) and float(frame.std()) == pytest.approx(6, rel=0.05)


def test_no_probability_above_what_the_check_allows():
    bad = replace(GOOD, false_share=0.7, problems=("x",))
    table = pd.DataFrame({"frame": [0, 1], "probability": [0.9, 0.2]})
    marked = bad.mark(table)
    assert marked["probability"].tolist() == pytest.approx([0.3, 0.2]) and marked[OUTSIDE].tolist() == [1, 1]
    assert GOOD.probability_limit == 1
