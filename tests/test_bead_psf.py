"""From a movie of beads by `smlmtut psf` to a file, a scene that draws with it, and networks trained on that."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli import run
from test_measured_psf import airy, dice, sampled

from smlmtut.imaging.camera import Camera, expose
from smlmtut.imaging.measured_psf import MeasuredPSF
from smlmtut.imaging.psf import PSF, AnyPSF, Emitters, expected_photons
from smlmtut.imaging.scenes import draw_batch
from smlmtut.io import write_movie
from smlmtut.io.psf_file import psf_hash, read_psf, write_psf
from smlmtut.io.scene_file import SceneDescription, read_scene, write_scene
from smlmtut.localize.bead_psf import bead_psf
from smlmtut.localize.scene import REFERENCE, trained_scene
from smlmtut.networks.pretrained import describe

CAMERA, BACKGROUND = Camera(2.0, 100.0, 16.0, integer=True), 5.0
NOISE = BACKGROUND + (16 + 1 / 12) / 4  # e⁻² of a pixel without a bead
NUMBERS = ["--gain", 2, "--offset", 100, "--read-variance", 16]
ELLIPTIC = PSF(1.0, 1.3)


def beads(psf: AnyPSF, photons: float, frames: int = 8, clumps: int = 0, pairs: int = 0, spread: float = 1.0):
    """A movie (T, 136, 136) in ADU: 16 places a frame, 28 px apart.

    In the first ones are clumps, two beads 1.5 px apart, then pairs, 12 px apart along both axes. spread: px.
    """
    across = torch.arange(4).double() * 28 + 24
    v, u = (
        x.flatten() + spread * (torch.rand(frames, 16, generator=dice(seed)).double() - 0.5)
        for seed, x in enumerate(torch.meshgrid(across, across, indexing="ij"))
    )
    angle = 6.3 * torch.rand(frames, clumps, generator=dice(2)).double()
    far, double = torch.full((frames, pairs), 12.0).double(), clumps + pairs
    u = torch.cat([u, u[:, :double] + torch.cat([1.5 * angle.cos(), far], 1)], 1)
    v = torch.cat([v, v[:, :double] + torch.cat([1.5 * angle.sin(), far], 1)], 1)
    rate = expected_photons(Emitters(u, v, torch.full_like(u, photons)), psf, (136, 136), BACKGROUND)
    return expose(rate, CAMERA, dice(3))


def profiles(*psfs: AnyPSF) -> list[torch.Tensor]:
    """The share of the light in a pixel, at places a quarter of a pixel apart."""
    side = torch.arange(-20, 21).double() / 4
    v, u = (x.reshape(-1, 1) for x in torch.meshgrid(side, side, indexing="ij"))
    return [expected_photons(Emitters(-u, -v, torch.ones_like(u)), psf, (1, 1)).flatten() for psf in psfs]


def test_the_command_makes_the_psf_of_lone_beads_alone(tmp_path):
    photons, frames = 1e4, 10  # 110 lone beads; test_beads_give_their_psf has 100
    write_movie(tmp_path / "beads.tif", beads(ELLIPTIC, photons, frames, clumps=2, pairs=3).numpy().astype(np.uint16))
    text = run("psf", tmp_path / "beads.tif", *NUMBERS, "-o", tmp_path / "psf.npz")
    told = re.search(r"and (\d+) clumps.*sd (\S+) px; (\S+)% of the light.*PSF of (\d+) images", text, re.S)
    assert told
    misfits, count, sigma, share = int(told[1]), int(told[4]), float(told[2]), float(told[3]) / 100
    assert f"left out {2 * 3 * frames} beads near others" in text and "warning" not in text
    # of 16 places a frame 2 are clumps and 3 pairs; of the lone ones 1 in 10 may be left out, for their noise
    assert count + misfits == 13 * frames and 0.9 * 11 * frames <= count <= 11 * frames
    got, wanted = profiles(read_psf(tmp_path / "psf.npz"), ELLIPTIC)
    z = (got - wanted) / ((wanted / photons + NOISE / photons**2) / count).sqrt()  # as in test_beads_give_their_psf
    assert 0.5 < z.square().mean().sqrt() < 2
    assert (got - wanted).abs().max() < 0.01 * wanted.max()
    assert sigma == pytest.approx((1.0 * 1.3) ** 0.5, rel=0.02)
    exact = (profiles(PSF(sigma))[0] - wanted).abs().sum() / 32
    assert exact < share < exact + 0.02  # to which the noise adds


def test_a_frame_of_bright_beads_is_enough():
    truth = airy(8, 6)
    found = bead_psf(beads(truth, 1e6)[:1], CAMERA)
    assert found.touched == 0 and found.beads >= 14
    got, wanted = profiles(found.psf, truth)
    assert (got - wanted).abs().max() < 0.01 * wanted.max()
    assert found.difference > 0.05


def test_a_side_lobe_of_a_bright_bead_is_no_neighbour():
    main, lobe = sampled(4), torch.roll(sampled(4).samples, 20, 1)  # 5 px
    found = bead_psf(beads(MeasuredPSF(0.95 * main.samples + 0.05 * lobe, 4), 1e6, 2), CAMERA)
    assert found.touched == 0 and found.beads >= 28
    got, u = found.psf, torch.tensor([[0.0], [-5.0]]).double()
    top, side = expected_photons(Emitters(u, 0 * u, 1 + 0 * u), got, (1, 1)).flatten()
    assert side / top == pytest.approx(0.05 / 0.95, rel=0.05)


def test_frames_and_the_way_they_are_read_do_not_count(monkeypatch):
    movie = beads(ELLIPTIC, 1e4, 4)
    wanted = bead_psf(movie, CAMERA, start=1)
    monkeypatch.setattr("smlmtut.localize.bead_psf.FRAMES", 1)
    maps = replace(CAMERA, offset=torch.full((136, 136), 100.0))
    for found in (bead_psf(movie.numpy()[1:], CAMERA), bead_psf(movie, maps, start=1, stop=4)):
        assert torch.equal(found.psf.samples, wanted.psf.samples) and replace(found, psf=wanted.psf) == wanted


def test_beads_at_one_place_within_a_pixel_are_warned_of(tmp_path):
    write_movie(tmp_path / "beads.tif", beads(ELLIPTIC, 1e4, 2, spread=0.1).numpy().astype(np.uint16))
    text = run("psf", tmp_path / "beads.tif", *NUMBERS, "-o", tmp_path / "psf.npz")
    told = re.search(r"warning: the beads' centres leave (\d+)% of a pixel empty", text)
    assert told and 80 < int(told[1]) <= 93  # 90, to the errors of the fits, 0.01 px


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--side", 20], "side must be odd and at most that of the frames, 136 px, got 20"),
        (["--side", 137], "side must be odd and at most that of the frames, 136 px, got 137"),
        (["--side", 5], "side must be a whole number of at least 7, got 5"),
        (["--sigma", 0], "sigma must be finite and positive, got 0"),
        (["--oversampling", 0], "oversampling must be a whole number of at least 1, got 0"),
        (["--frames", "0:1"], "movie must show at least 8 beads that lie apart, got 0"),
        (["-o", "psf.txt"], "output must end in .npz, got"),
        (["-o", "none/psf.npz"], "the folder of none/psf.npz must exist"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_the_command_refuses_in_one_line(tmp_path, more, words):
    movie = torch.cat([torch.full((1, 136, 136), 110.0), beads(ELLIPTIC, 1e4, 1)])
    write_movie(tmp_path / "beads.tif", movie.numpy().astype(np.uint16))
    text = run("psf", tmp_path / "beads.tif", *NUMBERS, "-o", tmp_path / "psf.npz", *more, code=2)
    assert text.startswith("error: ") and words in text and text.count("\n") == 1, text
    assert not (tmp_path / "psf.npz").exists()


# -- the file ------------------------------------------------------------------------------------------------
MEASURED = sampled(3, 0.9, 1.4)


def test_a_psf_survives_its_file(tmp_path):
    write_psf(tmp_path / "psf.npz", MEASURED)
    found = read_psf(tmp_path / "psf.npz")
    assert torch.equal(found.samples, MEASURED.samples) and found.oversampling == 3
    assert psf_hash(found) == psf_hash(MEASURED) != psf_hash(sampled(3, 0.9, 1.41))
    assert [path.name for path in tmp_path.iterdir()] == ["psf.npz"]
    with pytest.raises(ValueError, match="path must end in .npz, got 'psf.npy'"):
        write_psf("psf.npy", MEASURED)
    with pytest.raises(ValueError, match="psf must be a MeasuredPSF, got PSF"):
        write_psf(tmp_path / "psf.npz", ELLIPTIC)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no.npz"):
        read_psf(tmp_path / "no.npz")


SAMPLES = MEASURED.samples.numpy()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, ""),
        (SAMPLES, ""),
        ({"samples": SAMPLES}, "oversampling"),
        ({"image": SAMPLES, "oversampling": 3}, "samples"),
        ({"samples": SAMPLES * np.nan, "oversampling": 3}, "samples must be finite, got nan"),
        ({"samples": SAMPLES[0], "oversampling": 3}, "samples must have 2 dimensions"),
        ({"samples": np.array([["a"]]), "oversampling": 3}, "samples must be a tensor or an array of numbers"),
        ({"samples": SAMPLES, "oversampling": 2}, r"samples must have the sum oversampling² = 4, got 9"),
        ({"samples": SAMPLES, "oversampling": 0.5}, "oversampling must be a whole number of at least 1, got 0.5"),
        ({"samples": SAMPLES, "oversampling": [3, 3]}, "size 1"),
    ],
    ids=["text", "npy", "no oversampling", "no samples", "NaN", "rank", "letters", "sum", "half", "two"],
)
def test_a_bad_file_is_refused_by_name(tmp_path, arrays, words):
    path = tmp_path / "psf.npz"
    if arrays is None:
        path.write_text("samples: 3")
    else:
        with open(path, "wb") as file:
            np.savez(file, **arrays) if isinstance(arrays, dict) else np.save(file, arrays)
    with pytest.raises(
        ValueError, match=rf"psf\.npz must be a PSF of `smlmtut psf`, samples and oversampling: .*{words}"
    ):
        read_psf(path)


# -- the scene -----------------------------------------------------------------------------------------------
GOOD = "pixel_size_nm: 100\nsigma_px: 1.1\nphotons: 900\nbackground: 5\ndensity_per_um2: 1\n"


def test_a_scene_file_draws_with_its_psf(tmp_path):
    write_psf(tmp_path / "psf.npz", MEASURED)
    (tmp_path / "scene.yaml").write_text(GOOD + "psf: psf.npz\n")
    found = read_scene(tmp_path / "scene.yaml")
    batch = draw_batch(found.scene(Camera()), 4, (16, 16), dice())
    wanted = expected_photons(batch.emitters, MEASURED, (16, 16), 5.0)
    torch.testing.assert_close(batch.expected, wanted, rtol=1e-4, atol=1e-3)
    assert batch.emitters.mask.any()
    (tmp_path / "other").mkdir()
    write_scene(tmp_path / "other" / "a: b.yaml", replace(found, background=6.0, measured={"verdict": "good"}))
    again = read_scene(tmp_path / "other" / "a: b.yaml")
    assert isinstance(again.psf, MeasuredPSF) and torch.equal(again.psf.samples, MEASURED.samples)
    assert again.background == 6.0 and again.measured == {"verdict": "good"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("psf: no.npz\n", "psf must be the path of a file of `smlmtut psf`, got 'no.npz': there is no such file"),
        ("psf: 3\n", "psf must be the path of a file of `smlmtut psf`, got 3"),
        ("psf: bad.npz\n", "bad.npz must be a PSF of `smlmtut psf`"),
        ("psf: psf.npz\nellipticity: 1.2\n", "ellipticity must be 1 where the scene has a psf, got 1.2"),
    ],
)
def test_a_bad_psf_of_a_scene_is_refused(tmp_path, text, words):
    write_psf(tmp_path / "psf.npz", MEASURED)
    (tmp_path / "bad.npz").write_text("psf")
    (tmp_path / "scene.yaml").write_text(GOOD + text)
    with pytest.raises(ValueError, match=rf"scene\.yaml: .*{words}"):
        read_scene(tmp_path / "scene.yaml")


def test_networks_are_trained_with_a_psf_and_know_it_by_its_hash(tmp_path):
    write_psf(tmp_path / "psf.npz", MEASURED)
    (tmp_path / "scene.yaml").write_text(GOOD + "psf: psf.npz\n")
    common = ["--steps", 1, "--batch", 2, "--device", "cpu", "--photon-units", "--scene", tmp_path / "scene.yaml"]
    phi = tmp_path / "phi" / "weights.safetensors"
    run("train", "deepstorm", tmp_path / "phi", *common, "--channels", 4)
    run("train", "engression", tmp_path / "fast", *common, "--estimator", phi)
    write_psf(tmp_path / "psf.npz", sampled(3))
    text = run("train", "engression", tmp_path / "fast", *common, "--estimator", phi, code=2)
    assert "holds a run with other settings or network: scene" in text
    (tmp_path / "psf.npz").unlink()
    for path in (phi, tmp_path / "fast" / "weights.safetensors"):
        known = trained_scene(path)
        assert known.psf == psf_hash(MEASURED) and known.sigma_px == 1.1
        assert known == SceneDescription.read(describe(path)["scene"]) and known != replace(known, psf=None)
    assert REFERENCE != replace(REFERENCE, psf=psf_hash(MEASURED))  # so --exact refuses such weights
    with pytest.raises(ValueError, match="psf must be a AnyPSF, got "):
        known.scene(Camera())
    with pytest.raises(ValueError, match="psf must be a MeasuredPSF, got "):
        write_scene(tmp_path / "again.yaml", known)
    with pytest.raises(ValueError, match="psf must be a MeasuredPSF, got PSF"):
        replace(REFERENCE, psf=ELLIPTIC)  # type: ignore[arg-type]
