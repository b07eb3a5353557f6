"""A movie is measured as it was made, within the claimed errors; wrong cameras are named; the scene file keeps all."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from test_cli import run

from smlmtut import io
from smlmtut.imaging.camera import Camera, expose, to_photoelectrons
from smlmtut.imaging.distributions import LogUniform, Uniform
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.imaging.scenes import Scene, draw_positions
from smlmtut.io.scene_file import SceneDescription, read_scene, write_scene
from smlmtut.localize.isolated import ENOUGH, isolated, look, two_widths, weighted_median
from smlmtut.localize.measure import LEAST_SIDE, measure_movie
from smlmtut.localize.scene import REFERENCE
from smlmtut.localize.twin import shrunk
from smlmtut.networks.pretrained import describe, load

CAMERA = Camera(2.0, 100.0, 16.0, integer=True)
SIGMA, BACKGROUND, PHOTONS, DENSITY = 1.2, 8.0, (600.0, 1800.0), 0.3
ROUND = PSF(SIGMA)
FRAMES, SIDE = 60, 64


def simulated(psf=ROUND, photons=PHOTONS, density=DENSITY, frames=FRAMES, seed=0):
    """A movie (T, H, W) in ADU, and its emitters."""
    generator = torch.Generator().manual_seed(seed)
    per_pixel = torch.full((frames,), density * 0.1**2)
    u, v, present = draw_positions(Scene(margin=5.0), per_pixel, (SIDE, SIDE), generator)
    light = photons[0] + (photons[1] - photons[0]) * torch.rand(u.shape, generator=generator)
    emitters = Emitters(u, v, light, present)
    rate = expected_photons(emitters, psf, (SIDE, SIDE), BACKGROUND)
    return expose(rate, CAMERA, generator), emitters


@pytest.fixture(scope="module")
def movie():
    return simulated()[0]


@pytest.fixture(scope="module")
def seen(movie):
    return measure_movie(movie, CAMERA, 100.0)


def test_a_movie_is_measured_within_the_claimed_errors(seen):
    """4 standard errors, which are no more than a few per cent; and nothing contradicts the camera."""
    truth = {"sigma": SIGMA, "ellipticity": 1.0, "background": BACKGROUND, "photons": 1200.0, "density": DENSITY}
    largest = {"sigma": 0.01, "ellipticity": 0.01, "background": 0.01, "photons": 0.06, "density": 0.1}
    for name, value in truth.items():
        found = getattr(seen, name)
        assert abs(found.median - value) < 4 * found.sd < 4 * largest[name] * value, (name, found)
        assert found.low <= found.median <= found.high
    assert seen.photons.low == pytest.approx(660, rel=0.1) and seen.photons.high == pytest.approx(1740, rel=0.1)
    assert seen.problems == () and seen.verdict == "good"


def test_equal_seeds_give_equal_numbers_and_an_array_those_of_a_tensor(movie, seen):
    assert measure_movie(movie.numpy(), CAMERA, 100.0) == seen


def test_an_elliptic_psf_is_seen():
    ratio = 1.2
    found = measure_movie(simulated(PSF(SIGMA * math.sqrt(ratio), SIGMA / math.sqrt(ratio)))[0], CAMERA, 100.0)
    assert abs(found.ellipticity.median - ratio) < 4 * found.ellipticity.sd
    assert abs(found.sigma.median - SIGMA) < 0.02 * SIGMA
    assert any("elliptic" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gain": 4.0}, "the gain"),
        ({"gain": 1.0}, "the gain"),
        ({"read_variance": 0.0}, "the read variance"),
        ({"read_variance": 100.0}, "the read variance"),
        ({"offset": 120.0}, "far below the offset"),
    ],
    ids=str,
)
def test_a_wrong_camera_is_named(movie, wrong, words):
    found = measure_movie(movie, replace(CAMERA, **wrong), 100.0)
    assert any(words in problem for problem in found.problems), found


@pytest.mark.parametrize("density, crowded", [(1.5, False), (3.0, True), (5.0, True)])
def test_a_crowd_is_named(density, crowded):
    """What a molecule looks like cannot be told from spots of several."""
    problems = measure_movie(simulated(density=density, seed=3)[0], CAMERA, 100.0).problems
    assert any("crowded" in problem for problem in problems) == crowded


def test_nine_of_ten_emitters_are_found_at_the_stated_brightness():
    """Alone on a grid, with N where nine of ten are found: a share of 0.9, within 4 standard errors and 0.03.

    The 0.03: a place between four pixels is less bright than the middle of one, for which the number is stated.
    """
    adu = simulated(photons=(1000.0, 1000.0))[0]
    v = np.full(adu.shape, (16.0 + 1 / 12) / 4)
    level = np.full(len(adu), BACKGROUND)
    least = look(to_photoelectrons(adu.double(), CAMERA).numpy(), v, SIGMA, level)[1].seen_above
    generator = torch.Generator().manual_seed(5)
    across = torch.arange(12.0, SIDE - 8, 20.0)  # 12, 32, 52
    u, w = (
        x.flatten() + torch.rand((FRAMES, 9), generator=generator) - 0.5
        for x in torch.meshgrid(across, across, indexing="ij")
    )
    rate = expected_photons(Emitters(u, w, torch.full_like(u, least)), PSF(SIGMA), (SIDE, SIDE), BACKGROUND)
    x = to_photoelectrons(expose(rate, CAMERA, generator).double(), CAMERA).numpy()
    counted = look(x, v, SIGMA, level)[1].counts.sum() / (FRAMES * 9)
    assert abs(counted - 0.9) < 4 * math.sqrt(0.09 / (FRAMES * 9)) + 0.03


def test_a_candidate_with_a_neighbour_or_at_the_border_is_not_isolated():
    found = np.array([[0, 20, 20], [0, 20, 26], [0, 40, 40], [1, 20, 21], [1, 5, 30], [1, 6, 40], [1, 58, 20]])
    assert isolated(found, (2, 64, 64), 5, 7.0).tolist() == [[0, 40, 40], [1, 20, 21], [1, 6, 40]]


def test_two_widths_of_a_spot_without_noise_are_exact():
    emitters = Emitters(*(torch.tensor([[x], [x + 0.3]], dtype=torch.float64) for x in (6.0, 5.6, 900.0)))
    spots = expected_photons(emitters, PSF(1.4, 1.1), (13, 13), 5.0)
    start = torch.stack(
        [emitters.u, emitters.v, emitters.photons, torch.tensor([[5.0]] * 2), torch.tensor([[1.2]] * 2)]
    )
    ratios = two_widths(spots, torch.ones_like(spots), start[..., 0].T.double())
    assert ratios == pytest.approx(1.4 / 1.1, rel=1e-6)


def test_the_weighted_median_is_the_median_of_repeated_values():
    """To the distance of two values, between which it is interpolated: 1/2000 of the range."""
    values = np.random.default_rng(0).permutation(2001) / 2000
    weights = np.where(values < 0.4, 3, 1)
    assert weighted_median(values, np.ones(2001)) == np.median(values) == 0.5
    assert weighted_median(values, weights * 1.0) == pytest.approx(np.median(np.repeat(values, weights)), abs=1 / 2000)
    assert weighted_median(1 - values, np.ones(2001)) == pytest.approx(0.5)


def test_shrinking_leaves_the_spread_that_the_noise_does_not_explain():
    dice = np.random.default_rng(0)
    values = dice.normal(5, 2, 20_000) + dice.normal(0, 1.5, 20_000)
    assert shrunk(values, np.full(20_000, 1.5**2)).std() == pytest.approx(2, rel=0.03)
    assert shrunk(values, np.full(20_000, 9.0)).std() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"movie": np.zeros((3, 16, 64))}, f"movie must have frames of at least {LEAST_SIDE} px a side, got 16 × 64"),
        ({"movie": np.zeros((64, 64))}, "movie must have 3 dimensions"),
        ({"movie": np.full((3, 64, 64), np.nan)}, "movie must hold values that are finite"),
        ({"movie": np.full((3, 64, 64), 110.0)}, f"movie must show at least {ENOUGH} isolated spots, got 0"),
        ({"pixel_size_nm": 0.0}, "pixel_size_nm must be finite and positive, got 0"),
        ({"camera": Camera(torch.ones(9, 9))}, r"movie must have the camera maps' size \(9, 9\)"),
        ({"start": 9}, "start and stop must choose frames from 0 to 3, got 9 and 3"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_input_is_refused_by_name(change, words):
    good = {"movie": np.full((3, 64, 64), 110.0), "camera": CAMERA, "pixel_size_nm": 100.0}
    with pytest.raises(ValueError, match=words):
        measure_movie(**(good | change))


# -- the file ------------------------------------------------------------------------------------------------
SCENE = SceneDescription(
    pixel_size_nm=108.0, sigma_px=Uniform(1.1, 1.2), photons=LogUniform(300.0, 2500.0), background=Uniform(3.0, 8.5),
    density_per_um2=0.25, ellipticity=1.02, measured={"verdict": "good", "isolated_spots": 612},
)  # fmt: skip


def test_a_scene_survives_its_file(tmp_path):
    write_scene(tmp_path / "scene.yaml", SCENE)
    found = read_scene(tmp_path / "scene.yaml")
    assert found == SCENE
    camera = Camera(2.0, 100.0, 5.0)
    assert found.scene(camera) == Scene(
        density=0.25, photons=LogUniform(300.0, 2500.0), background=Uniform(3.0, 8.5), sigma=Uniform(1.1, 1.2),
        pixel_size_nm=108.0, ellipticity=1.02, camera=camera,
    )  # fmt: skip
    assert yaml.safe_load((tmp_path / "scene.yaml").read_text(encoding="utf-8")) == {
        **SCENE.numbers(),
        "measured": dict(SCENE.measured),
    }


GOOD = "pixel_size_nm: 100\nsigma_px: 1.0\nphotons: {uniform: [300, 2e3]}\nbackground: 5\ndensity_per_um2: 1\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold keys and values"),
        ("a: [", "must be a YAML file"),
        (GOOD + "speed: 3\n", "must have the keys pixel_size_nm, .* only, got 'speed'"),
        (GOOD.replace("background: 5\n", ""), "got no background"),
        (GOOD.replace("sigma_px: 1.0", "sigma_px: -1"), "sigma must be finite and positive, got -1"),
        (GOOD.replace("uniform", "normal"), r"photons must be a number, \{uniform: \[low, high\]\} or .*, got"),
        (GOOD.replace("[300, 2e3]", "[2e3, 300]"), "photons: low must be at most high, got low=2000.0, high=300.0"),
        (GOOD.replace("[300, 2e3]", "300"), "photons must be a number"),
        (GOOD.replace("{uniform: [300, 2e3]}", "{}"), "photons must be a number"),
        (GOOD.replace("background: 5", "background: yes"), "background must be a number, .* got True"),
        (GOOD + "ellipticity: 0\n", "ellipticity must be finite and positive, got 0"),
        (GOOD + "ellipticity: {uniform: [1, 2]}\n", "ellipticity must be a number, got"),
        (GOOD + "measured: fine\n", "measured must be a Mapping, got 'fine'"),
    ],
)
def test_a_bad_scene_file_is_refused_by_key(tmp_path, text, words):
    (tmp_path / "scene.yaml").write_text(GOOD)
    assert read_scene(tmp_path / "scene.yaml").photons == Uniform(300.0, 2000.0)
    (tmp_path / "scene.yaml").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_scene(tmp_path / "scene.yaml")
    assert "scene.yaml" in str(error.value) and len(str(error.value)) < 400


def test_photons_are_told_before_the_quantum_efficiency_and_ranges_hold_nine_tenths(seen):
    whole, half = seen.description(100.0), seen.description(100.0, 0.5)
    for name in ("photons", "background"):
        assert getattr(half, name).low == pytest.approx(2 * getattr(whole, name).low)
    assert isinstance(whole.photons, Uniform)
    low, high = whole.photons.low, whole.photons.high
    assert low + 0.05 * (high - low) == pytest.approx(seen.photons.low)
    assert low + 0.95 * (high - low) == pytest.approx(seen.photons.high)
    assert whole.sigma_px.low < SIGMA < whole.sigma_px.high


def test_the_command_writes_what_the_function_finds(movie, seen, tmp_path):
    io.write_movie(tmp_path / "movie.tif", movie.numpy().astype(np.uint16), 100.0)
    (tmp_path / "camera.yaml").write_text("gain: 2\noffset: 100\nread_variance: 16\n")
    given = ["measure", tmp_path / "movie.tif", "--camera", tmp_path / "camera.yaml"]
    text = run(*given, "-o", tmp_path / "scene.yaml")
    assert "verdict: good" in text and f"{seen.spots} isolated spots" in text and "warning" not in text
    found = read_scene(tmp_path / "scene.yaml")
    wanted = seen.description(100.0)
    assert found.numbers() == wanted.numbers() and found.measured == wanted.measured
    assert found.measured["sigma_px"]["median"] == pytest.approx(seen.sigma.median, rel=1e-3)
    assert "output must end in .yaml or .yml" in run(*given, "-o", tmp_path / "scene.txt", code=2)
    assert "--gain" in run("measure", tmp_path / "movie.tif", "-o", tmp_path / "scene.yaml", code=2)


def test_a_network_is_trained_on_a_measured_scene(tmp_path):
    """Other frames, so other weights; and the weights say which."""
    write_scene(tmp_path / "scene.yaml", SCENE)
    common = ["--steps", 1, "--batch", 2, "--channels", 4, "--device", "cpu", "--photon-units"]
    run("train", "deepstorm", tmp_path / "one", *common, "--scene", tmp_path / "scene.yaml")
    run("train", "deepstorm", tmp_path / "other", *common)
    paths = [tmp_path / name / "weights.safetensors" for name in ("one", "other")]
    assert describe(paths[0])["scene"] == SCENE.numbers()
    assert describe(paths[1])["scene"] == REFERENCE.numbers()
    weights = [load(path).state_dict() for path in paths]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    missing = run("train", "deepstorm", tmp_path / "none", *common, "--scene", tmp_path / "no.yaml", code=2)
    assert missing == f"error: no such file: {tmp_path / 'no.yaml'}\n"
