"""Weights tell the scene that they were trained on, and a movie that lies outside of it is warned of, no other."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli import run

from benchmarks import movie_check
from smlmtut._random import step_generator
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.distributions import LogUniform, Uniform
from smlmtut.imaging.scenes import BACKGROUND, DENSITY, PHOTONS, SIGMA, Scene
from smlmtut.io import write_movie
from smlmtut.io.scene_file import SceneDescription, write_scene
from smlmtut.localize.check import MovieCheck, check_movie, unlike
from smlmtut.localize.scene import REFERENCE, outside, spots_seen, trained_scene
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.cddpm import ConditionalDiffusion
from smlmtut.networks.condition import FitRange
from smlmtut.networks.deepstorm import DeepSTORM
from smlmtut.networks.engression import Engression

INSIDE = {"pixel_size_nm": 108.0, "sigma_px": 1.0, "background": 5.0, "photons": 900.0, "density_per_um2": 1.0}
MINE = SceneDescription(100.0, Uniform(1.2, 1.4), LogUniform(3000, 9000), Uniform(60, 90), LogUniform(0.2, 1.0))


@pytest.fixture(scope="module")
def network():
    return pretrained.load()


def told(movie, camera, network, pixel_nm=108.0) -> list[str]:
    """What a check says of the scene; the camera is the right one."""
    seen = check_movie(movie, replace(camera, integer=False, saturation=None), network, pixel_nm)
    return [problem for problem in seen.problems if "outside of what the network was trained on" in problem]


def test_movies_inside_the_scene_are_not_warned_of(network):
    """Aim: at most one of 20, which are drawn from all of the training scene, up to 8 emitters per µm²."""
    movies = [movie_check.simulated(step_generator(311, k)) for k in range(20)]
    assert sum(bool(told(*movie, network)) for movie in movies) <= 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("σ 1.3 px", "PSF sd"), ("b 100", "background"), ("N 5000", "molecules of"), ("60 nm", "pixel size 60 nm")],
)
def test_movies_outside_the_scene_are_warned_of_once(network, name, words):
    """Aim: each of them, with the quantity named; densities are up to 1 per µm², where some molecules are isolated."""
    scene = movie_check.OTHER[name]
    for k in range(4):
        movie, camera = movie_check.simulated(step_generator(312, k), **scene)
        found = told(movie, camera, network, scene.get("pixel_nm", 108.0))
        assert len(found) == 1 and words in found[0] and "smlmtut measure" in found[0], (k, found)


@pytest.mark.parametrize(
    ("scene", "change", "words"),
    [
        (REFERENCE, {}, None),
        (REFERENCE, {"density_per_um2": 0.01}, None),
        (REFERENCE, {"sigma_px": math.nan, "photons": math.nan}, None),
        (REFERENCE, {"sigma_px": 1.3}, "PSF sd 1.3 px (known: 0.92 to 1.08)"),
        (REFERENCE, {"sigma_px": 0.7}, "PSF sd 0.7 px (known: 0.92 to 1.08)"),
        (REFERENCE, {"background": 26.0}, "background 26 e⁻ a pixel (known: 0 to 20)"),
        (REFERENCE, {"photons": 5000.0}, "molecules of 5e+03 e⁻ (known: 100 to 2000)"),
        (REFERENCE, {"photons": 40.0}, "molecules of 40 e⁻ (known: 100 to 2000)"),
        (REFERENCE, {"density_per_um2": 11.0}, "localizations a µm² and frame 11 (known: 0.1 to 8)"),
        (REFERENCE, {"pixel_size_nm": 60.0}, "pixel size 60 nm (known: 108)"),
        (MINE, {"pixel_size_nm": 100, "sigma_px": 1.3, "photons": 5e3}, "background 5 e⁻ a pixel (known: 60 to 90)"),
    ],
)
def test_each_quantity_has_its_range(scene, change, words):
    assert outside(scene, INSIDE | change, False) == ([] if words is None else [words])


def test_missed_molecules_pass_for_background_where_they_are_everywhere():
    assert outside(REFERENCE, INSIDE | {"background": 35.0}, True) == []
    assert outside(MINE, INSIDE | {"background": 92.0, "sigma_px": 1.3, "photons": 5e3}, False) == []
    assert outside(replace(REFERENCE, background=0.0), INSIDE | {"background": 4.0}, False) == []


def test_one_sentence_tells_of_all_networks():
    check = MovieCheck(5.0, 0.9, 1.0, 0.0, 0.0, 1.0, 1.3, 900.0, 0.01, ())
    assert unlike(replace(check, sigma=1.0), 108.0, {"a": REFERENCE, "b": REFERENCE}) == []
    (text,) = unlike(check, 108.0, {"a": REFERENCE, "b": MINE})
    wanted = "a was trained on: PSF sd 1.3 px (known: 0.92 to 1.08); and of what b was trained on: background 5"
    assert wanted in text and text.count("smlmtut measure") == 1


@pytest.mark.parametrize(
    ("density", "photons", "known"),
    [(0.5, PHOTONS, True), (2.0, PHOTONS, True), (6.0, PHOTONS, False), (0.5, 130.0, False), (0.0, PHOTONS, False)],
    ids=["sparse", "dense", "crowded", "dim", "empty"],
)
def test_what_isolated_spots_show_is_told_where_it_is_right(density, photons, known):
    """σ = 1.2 px to 4 %, of which pairs that pass for one have the largest part.

    The median N is 1050, and up to 1.4 times that.
    """
    change = {"density": density, "photons": photons, "sigma": 1.2, "background": 5.0}
    movie, camera = movie_check.simulated(step_generator(313, 0), **change)
    x = to_photoelectrons(movie.double(), replace(camera, integer=False, saturation=None)).numpy()
    v = np.full(x.shape, float(camera.read_variance_electrons) + 1e-3)
    sigma, median = spots_seen(x, v, 1.0, np.full(len(x), 5.0))
    if known:
        assert sigma == pytest.approx(1.2, rel=0.04) and 0.9 < median / 1050 < 1.4
    else:
        assert math.isnan(sigma) and math.isnan(median)


def test_shipped_weights_have_the_reference_scene():
    assert Scene().photons == PHOTONS and REFERENCE.numbers() == {
        "pixel_size_nm": 108.0, "sigma_px": {"uniform": [SIGMA.low, SIGMA.high]},
        "photons": {"uniform": [PHOTONS.low, PHOTONS.high]}, "background": {"uniform": [0.0, BACKGROUND.high]},
        "density_per_um2": {"log_uniform": [DENSITY.low, DENSITY.high]}, "ellipticity": 1.0,
    }  # fmt: skip
    assert all(trained_scene(name) == REFERENCE for name in pretrained.SHA256)


def test_weights_keep_their_scene_in_photo_electrons(tmp_path):
    """A camera of efficiency 0.5 halves N and b, and nothing else."""
    seen = SceneDescription.of(MINE.scene(Camera(quantum_efficiency=0.5)))
    half = {"photons": LogUniform(1500, 4500), "background": Uniform(30, 45)}
    assert seen == replace(MINE, **half) and SceneDescription.of(MINE.scene(Camera())) == MINE
    path = tmp_path / "mine.safetensors"
    pretrained.save(DeepSTORM(4), path, {"scene": seen.numbers()})
    assert trained_scene(path) == seen
    pretrained.save(DeepSTORM(4), path, {"scene": {"photons": 3}})
    with pytest.raises(ValueError, match="must have the keys pixel_size_nm, .* got no pixel_size_nm, sigma_px"):
        trained_scene(path)


# -- training on a scene -------------------------------------------------------------------------------------------

SHORT = ["--steps", 2, "--batch", 2, "--device", "cpu"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A scene, its camera of efficiency 0.5, and DeepSTORM trained on it, as files."""
    folder = tmp_path_factory.mktemp("mine")
    write_scene(folder / "scene.yaml", MINE)
    (folder / "camera.yaml").write_text(
        "gain: 2\noffset: 100\nread_variance: 20\nquantum_efficiency: 0.5\npixel_size_nm: 100"
    )
    run("train", "deepstorm", folder / "phi", *SHORT, "--channels", 4, *of(folder))
    path = folder / "phi" / "weights.safetensors"
    phi, content = pretrained.load(path), pretrained.describe(path)
    for x in phi.head.parameters():
        x.zero_()  # after two steps it would find as many molecules as its rounding errors make
    pretrained.save(phi, path, content)
    return folder


def of(folder):
    return ["--camera", folder / "camera.yaml", "--scene", folder / "scene.yaml"]


@pytest.mark.parametrize(("name", "kind"), [("diffusion", ConditionalDiffusion), ("engression", Engression)])
def test_a_sampler_is_trained_on_a_scene_and_draws(mine, tmp_path, name, kind):
    """Its fit has the limits of the scene, in photo-electrons; the same command gives the same weights."""
    phi = mine / "phi" / "weights.safetensors"
    command = ["train", name, tmp_path / "run", *SHORT, *of(mine), "--estimator", phi]
    run(*command)
    path = tmp_path / "run" / "weights.safetensors"
    seen = SceneDescription.of(MINE.scene(Camera(quantum_efficiency=0.5)))
    assert trained_scene(path) == trained_scene(phi) == seen
    assert pretrained.describe(path)["estimator"] == pretrained.sha256(phi)
    assert pretrained.load(path, kind=kind).fit == FitRange((1500, 4500), (30, 45), (1.2, 1.4))
    before = path.read_bytes()
    text = run(*command[:-2], code=2)  # with another estimator
    assert "holds a run with other settings or network: estimator" in text
    command[2] = tmp_path / "again"
    run(*command)
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == before
    dark = np.full((2, 24, 24), 160, np.uint16)  # b = 30
    write_movie(tmp_path / "movie.tif", dark)
    text = run("localize", tmp_path / "movie.tif", "-o", tmp_path / "locs.csv", "--camera", mine / "camera.yaml",
               "--weights", phi, "--uncertainty", "--posterior", path, "--samples", 2, "--quiet")  # fmt: skip
    assert "outside of what" not in text
    text = run("localize", tmp_path / "movie.tif", "-o", tmp_path / "exact.csv", "--camera", mine / "camera.yaml",
               "--weights", phi, "--uncertainty", "--exact", code=2)  # fmt: skip
    assert text.startswith("error: --exact has the prior of the reference scene")
    text = run("sample", tmp_path / "movie.tif", "-o", tmp_path / "draws.tif", "--camera", mine / "camera.yaml",
               "--posterior", path, "--samples", 2, "--quiet")  # fmt: skip
    assert "what deepstorm-2d was trained on: background 30" in text and str(path) not in text.partition("wrote")[0]


def test_training_starts_from_weights_of_the_same_architecture(mine, tmp_path):
    """With no steps to speak of the weights are those of the start; the range of the fit is the scene's."""
    still = ["--steps", 1, "--batch", 2, "--device", "cpu", "--learning-rate", 1e-12, *of(mine)]
    run("train", "diffusion", tmp_path / "run", *still, "--start", "cddpm-2d")
    path = tmp_path / "run" / "weights.safetensors"
    ours, shipped = (pretrained.load(x, kind=ConditionalDiffusion) for x in (path, "cddpm-2d"))
    assert ours.fit == FitRange((1500, 4500), (30, 45), (1.2, 1.4)) and shipped.fit == FitRange()
    for name, x in ours.state_dict().items():
        torch.testing.assert_close(x, shipped.state_dict()[name], rtol=1e-4, atol=1e-8)
    assert pretrained.describe(path)["start"] == pretrained.SHA256["cddpm-2d"]
    for command, words in (
        (["deepstorm", "--channels", 4, "--start", "deepstorm-2d"], "like the one to train, got channels 64, not 4"),
        (["deepstorm", "--start", "cddpm-2d"], "must hold a DeepSTORM, got a ConditionalDiffusion"),
        (["diffusion", "--start", "cddpm-2d-published"], "got form published, not fitted, kind noise, not v"),
        (["diffusion", "--start", "cddpm-3d"], "must be a .safetensors file or one of the shipped weights"),
        (["engression", "--start", tmp_path / "no.safetensors"], "no such file"),
    ):
        text = run("train", command[0], tmp_path / "other", *still, *command[1:], code=2)
        assert words in text and text.count("\n") == 1, text
    assert not (tmp_path / "other").exists()


def test_recipes_take_the_range_of_the_scene():
    """Of the reference scene it is that of the shipped weights, so that these can be trained again."""
    phi = DeepSTORM(4)
    for recipe, kind in ((recipes.cddpm_2d, ConditionalDiffusion), (recipes.engression_2d, Engression)):
        network = recipe(Scene(), phi).network(3)
        assert isinstance(network, kind) and network.fit == FitRange()
        assert recipe(MINE.scene(Camera()), phi).network(3).fit == FitRange((3000, 9000), (60, 90), (1.2, 1.4))
