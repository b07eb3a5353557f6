"""The commands do what the functions do, explain themselves, and fail in one line."""

import os
import re
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from matplotlib.image import imread
from test_localize import network
from typer.testing import CliRunner

from smlmtut import __version__, io
from smlmtut.cli.main import app
from smlmtut.cli.train import TrainingOptions
from smlmtut.imaging import kde
from smlmtut.imaging.camera import Camera
from smlmtut.localize import SamplingSettings, localize_to_file, sample_frames, shipped_sampler
from smlmtut.localize import frames as movie_frames
from smlmtut.networks import pretrained
from smlmtut.networks.cddpm import ConditionalDiffusion
from smlmtut.networks.settings import TrainingSettings

NUMBERS = ["--gain", "2", "--offset", "100", "--read-variance", "20"]


def run(*arguments: object, code: int = 0) -> str:
    """What a command prints, errors included."""
    result = CliRunner().invoke(app, [str(x) for x in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def few(folder):
    """Three frames of that movie, and a small diffusion model."""
    with io.read_movie(folder / "movie.tif") as movie:
        io.write_movie(folder / "few.tif", movie[:3])
    (folder / "camera.yaml").write_text("pixel_size_nm: 108")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pretrained.save(ConditionalDiffusion(channels=(4, 4)), folder / "diffusion.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A simulated movie with its truth, and the weights of a network."""
    folder = tmp_path_factory.mktemp("cli")
    run("simulate", folder / "movie.tif", folder / "truth.csv", "--frames", 40, "--size", "20,24", "--density", 40,
        "--off-time", 30, "--photons", "900,1100")  # fmt: skip
    pretrained.save(network(), folder / "weights.safetensors")
    return folder


def localize(folder, output, *more, movie="movie.tif", numbers=True, code=0):
    return run(
        "localize", folder / movie, "-o", output, "--pixel-size-nm", 108, *(NUMBERS if numbers else ()),
        "--weights", folder / "weights.safetensors", "--quiet", *more, code=code,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command", [["simulate"], ["train", "deepstorm"], ["localize"], ["sample"], ["render"], ["measure"], ["psf"]]
)
def test_help_has_an_example_with_options_that_exist(command):
    text = run(*command, "--help")
    # options may be broken at a hyphen at the end of a line
    joined = "-".join(part.lstrip() for part in text.split("-\n"))
    example = " ".join(joined.partition("Example: ")[2].partition("\n\n")[0].split())
    assert example.startswith(" ".join(["smlmtut", *command]))
    options = {word for word in example.split() if word.startswith("--")}
    assert options or command == ["render"]
    listed = joined.partition("Options:")[2]
    assert all(f"  {option}" in listed or f", {option}" in listed for option in options)
    assert "pixel" in text or "ADU" in text


def test_help_starts_quickly_and_loads_no_torch():
    code = "import sys, smlmtut.cli.main; sys.exit(not {'torch', 'pandas', 'numpy', 'h5py'}.isdisjoint(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version():
    assert run("--version") == f"smlmtut {__version__}\n"
    done = subprocess.run([sys.executable, "-m", "smlmtut", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"smlmtut {__version__}\n"


def test_the_room_loads_nothing_heavy():
    code = "import sys, smlmtut.localize; sys.exit(not {'accelerate', 'typer'}.isdisjoint(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_simulate_writes_movie_and_truth(folder):
    truth = io.read_localizations(folder / "truth.csv", 108.0)
    with io.read_movie(folder / "movie.tif") as movie:
        frames = movie[:].astype(float)
    assert frames.shape == (40, 20, 24) and frames.dtype == float
    assert list(truth) == ["frame", "u", "v", "photons", "molecule"]
    # Σ electrons = background + photons of emitters inside: within 4 sd of Poisson and read noise; the emitters
    # are in the frame, but up to half of the light of those at its border falls beside it, so ends are one-sided
    electrons = (frames - 100).sum() / 2
    background, light = 5.0 * frames.size, truth["photons"].sum()
    noise = 4 * np.sqrt(background + light + 5.0 * frames.size)
    assert background + 0.5 * light - noise < electrons < background + light + noise
    assert float(np.max(truth["photons"])) <= 1100
    assert (np.diff(truth["frame"]) >= 0).all()


def test_simulate_repeats_itself_by_seed_and_knows_structures(tmp_path):
    def movie(name, *more):
        run("simulate", tmp_path / name, tmp_path / "truth.csv", "--frames", 5, "--size", "9,9", "--off-time", 5, *more)
        return tifffile.imread(tmp_path / name)

    one, same, other = movie("1.tif"), movie("2.tif"), movie("3.tif", "--seed", 1)
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert movie("4.tif", "--layout", "rings", "--density", 100).shape == (5, 9, 9)


def test_localize_is_the_function(folder, tmp_path):
    text = localize(folder, tmp_path / "locs.csv")
    with io.read_movie(folder / "movie.tif") as movie:
        camera, net = Camera(2.0, 100.0, 20.0), pretrained.load(folder / "weights.safetensors")
        for precision in ("no", "auto"):
            path = tmp_path / f"{precision}.csv"
            more = {"progress": False, "precision": precision, "inspect": print}
            rows = localize_to_file(path, movie, camera, net, 108.0, **more)  # type: ignore[arg-type]
    assert f"wrote {rows} localizations of 40 frames to {tmp_path / 'locs.csv'}" in text and rows > 100
    assert (tmp_path / "locs.csv").read_bytes() == (tmp_path / "auto.csv").read_bytes()
    localize(folder, tmp_path / "locs.csv", "--precision", "no")
    assert (tmp_path / "locs.csv").read_bytes() == (tmp_path / "no.csv").read_bytes()


def test_localize_with_uncertainty_is_the_function(few, tmp_path):
    options = ["--uncertainty", "--posterior", few / "diffusion.safetensors", "--samples", 4, "--seed", 3]
    text = localize(few, tmp_path / "locs.csv", *options, "--radius", 0.7, "--precision", "no", movie="few.tif")
    net, path = pretrained.load(few / "weights.safetensors"), tmp_path / "same.csv"
    sample, name = shipped_sampler(str(few / "diffusion.safetensors"), precision="no")
    with io.read_movie(few / "few.tif") as movie:
        settings = SamplingSettings(4, 3, radius=0.7)
        rows = localize_to_file(
            path, movie, Camera(2.0, 100.0, 20.0), net, 108.0,
            sampler=sample, settings=settings, sampler_name=name, progress=False, inspect=print,
        )  # fmt: skip
    assert f"wrote {rows} localizations of 3 frames" in text and "locs.mean.tif and " in text and rows > 10
    for suffix in (".csv", ".mean.tif", ".sd.tif"):
        assert path.with_suffix(suffix).read_bytes() == (tmp_path / f"locs{suffix}").read_bytes()
    table = io.read_localizations(tmp_path / "locs.csv", 108.0)
    assert {"u_sd", "v_sd", "probability"} < set(table) and table["probability"].between(0, 1).all()


def test_a_camera_that_does_not_fit_the_movie_is_warned_of(folder, tmp_path):
    """The movie has b = 5 and 2 ADU an electron; a network that was never trained finds molecules everywhere."""
    text = localize(folder, tmp_path / "locs.csv", "--offset", 0)
    assert "weights.safetensors was trained on: background " in text and "wrote" in text
    assert set(io.read_localizations(tmp_path / "locs.csv", 108.0)["outside_scene"]) == {1}
    text = localize(folder, tmp_path / "locs.csv", "--photon-units", numbers=False)
    assert "weights.safetensors was trained on: background " in text
    text = localize(folder, tmp_path / "none.csv", numbers=False, code=2)
    assert text.startswith("error: the camera must be known") and not (tmp_path / "none.csv").exists()


def test_sample_writes_a_stack_for_each_frame(few, tmp_path):
    command = [
        "sample", few / "few.tif", "-o", tmp_path / "samples.tif", "--first", 1, "--frames", 2, "--samples", 3,
        *NUMBERS, "--weights", few / "weights.safetensors", "--posterior", few / "diffusion.safetensors",
        "--precision", "no", "--quiet",
    ]  # fmt: skip
    text = run(*command)
    assert f"wrote 3 samples of each of 2 frames, 80 × 96 pixels, to {tmp_path / 'samples.tif'}" in text
    with tifffile.TiffFile(tmp_path / "samples.tif") as file:
        assert file.is_imagej and file.series[0].axes == "TZYX" and len(file.pages) == 6
        images = file.asarray()
    net = pretrained.load(few / "weights.safetensors")
    sample, _ = shipped_sampler(str(few / "diffusion.safetensors"), precision="no")
    with io.read_movie(few / "few.tif") as movie:
        settings = SamplingSettings(3)
        drawn = sample_frames(movie, Camera(2.0, 100.0, 20.0), net, sample, settings, 1, 3)
        assert np.array_equal(images, torch.stack(list(drawn)).numpy())


def test_maps_are_cropped_to_the_movie(folder, tmp_path):
    rng = np.random.default_rng(0)
    maps = {
        "gain": 2 + rng.random((40, 50)),
        "offset": 90 + rng.random((40, 50)),
        "read-variance": rng.random((40, 50)),
    }
    options = []
    for name, values in maps.items():
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["map"] = values
        options += [f"--{name}-map", tmp_path / f"{name}.hdf5"]
    localize(folder, tmp_path / "locs.csv", *options, "--crop", "3,7", "--precision", "no", numbers=False)
    gain, offset, variance = (torch.from_numpy(x[3:23, 7:31].copy()) for x in maps.values())
    with io.read_movie(folder / "movie.tif") as movie:
        net = pretrained.load(folder / "weights.safetensors")
        camera, path = Camera(gain, offset, variance), tmp_path / "same.csv"
        localize_to_file(path, movie, camera, net, 108.0, progress=False, inspect=print)
    assert (tmp_path / "locs.csv").read_bytes() == (tmp_path / "same.csv").read_bytes()
    # numbers and maps together
    text = localize(folder, tmp_path / "locs.csv", *options, "--gain", 2, numbers=False, code=2)
    assert "--gain and --gain-map must not both be given" in text
    text = localize(folder, tmp_path / "locs.csv", *options, numbers=False, code=2)
    assert "the maps of the camera must have the movie's size (20, 24), got (40, 50): give crop" in text


CAMERA_OPTIONS = [
    "camera", "gain", "offset", "read-variance", "gain-map", "offset-map", "read-variance-map", "saturation",
    "photon-units",
]  # fmt: skip


@pytest.mark.parametrize("command", [["sample"], ["psf"], ["train", "deepstorm"], ["train", "diffusion"]])
def test_the_camera_options_are_those_of_localize(command):
    pages = [run(*words, "--help").partition("Options:")[2] for words in (["localize"], command)]
    for option in CAMERA_OPTIONS:
        texts = [page.partition(f"  --{option} ")[2].partition("  --")[0].split() for page in pages]
        assert texts[0] == texts[1] != []
    assert ("--crop" in pages[1]) == (command[0] != "train")


def test_camera_file_is_the_single_options(folder, tmp_path):
    """A file gives the table of the same options, and an option beside it overrides its key."""
    (tmp_path / "camera.yaml").write_text(
        "gain: gain.hdf5\noffset: 100\nread_variance: 20\nsaturation: 60000\npixel_size_nm: 108\ncrop: [3, 7]\n"
    )
    with h5py.File(tmp_path / "gain.hdf5", "w") as map_file:
        map_file["map"] = 2 + np.random.default_rng(0).random((40, 50))

    def bytes_of(*options) -> bytes:
        out = tmp_path / "locs.csv"
        run("localize", folder / "movie.tif", "-o", out, "--weights", folder / "weights.safetensors", "--quiet",
            "--precision", "no", *options)  # fmt: skip
        return out.read_bytes()

    single = ["--gain-map", tmp_path / "gain.hdf5", "--offset", 100, "--read-variance", 20, "--saturation", 60000]
    crop, pixel, file = ["--crop", "3,7"], ["--pixel-size-nm", 108], ["--camera", tmp_path / "camera.yaml"]
    wanted = bytes_of(*single, *crop, *pixel)
    assert bytes_of(*file) == wanted
    for change in (["--offset", 90], ["--crop", "5,1"], ["--pixel-size-nm", 90], ["--read-variance", 2]):
        changed = bytes_of(*file, *change)
        assert changed != wanted and changed == bytes_of(*single, *crop, *pixel, *change)
    # a number in the place of a map, and a map in the place of a number
    (tmp_path / "camera.yaml").write_text("gain: 5\noffset: 100\nread_variance: 20\npixel_size_nm: 108\n")
    assert bytes_of(*file, "--gain-map", tmp_path / "gain.hdf5", *crop) == wanted
    assert bytes_of(*file, "--gain", 2) == bytes_of(*NUMBERS, *pixel)


def test_the_pixel_size_that_the_movie_states(folder, tmp_path):
    """It is the default; a given one wins, with a warning where they differ by more than 1 %; none is an error."""
    with io.read_movie(folder / "movie.tif") as movie:
        io.write_movie(tmp_path / "plain.tif", movie[:2])
        io.write_movie(tmp_path / "stated.ome.tif", movie[:2], 108)
    (tmp_path / "camera.yaml").write_text("pixel_size_nm: 108.5")
    out = tmp_path / "locs.csv"

    def run_on(movie, *options, code=0):
        command = ["localize", tmp_path / movie, "-o", out, *NUMBERS, "--quiet", *options]
        return run(*command, "--weights", folder / "weights.safetensors", code=code)

    run_on("plain.tif", "--pixel-size-nm", 108)
    wanted = out.read_bytes()
    assert "the pixel size is taken" not in run_on("stated.ome.tif") and out.read_bytes() == wanted
    assert "the pixel size is taken" not in run_on("stated.ome.tif", "--camera", tmp_path / "camera.yaml")
    text = run_on("stated.ome.tif", "--pixel-size-nm", 100)
    assert "warning: the pixel size is taken as 100 nm, but stated.ome.tif states 108 nm" in text
    assert "the pixel size is taken" not in run_on("plain.tif", "--pixel-size-nm", 100)
    text = run_on("plain.tif", code=2)
    assert text == (
        "error: --pixel-size-nm must be given, or pixel_size_nm in the file of --camera: plain.tif states none\n"
    )


def test_written_images_state_their_pixel_size(few, tmp_path):
    run("sample", few / "few.tif", "-o", tmp_path / "samples.tif", "--samples", 2, *NUMBERS, "--quiet", "--camera",
        few / "camera.yaml", "--weights", few / "weights.safetensors", "--posterior", few / "diffusion.safetensors"
    )  # fmt: skip
    run("render", few / "truth.csv", "-o", tmp_path / "image.tif", "--factor", 8)
    for name, pixel in (("samples", 27), ("image", 13.5)):
        with io.read_movie(tmp_path / f"{name}.tif") as image:
            assert image.pixel_size_nm == pytest.approx(pixel, rel=1e-6)
    with io.read_movie(few / "movie.tif") as movie:
        assert movie.pixel_size_nm == pytest.approx(108, rel=1e-6)


def test_sample_and_train_take_a_camera_file(few, tmp_path):
    path = tmp_path / "camera.yaml"
    path.write_text("gain: 2\noffset: 100\nread_variance: 20\nquantum_efficiency: 0.8\n")
    common = ["--first", 1, "--samples", 2, "--precision", "no", "--quiet", "--weights", few / "weights.safetensors",
              "--posterior", few / "diffusion.safetensors"]  # fmt: skip
    images = []
    for options in (["--camera", path], NUMBERS):
        run("sample", few / "few.tif", "-o", tmp_path / "samples.tif", *common, *options)
        images.append(tifffile.imread(tmp_path / "samples.tif"))
    assert np.array_equal(*images)
    weights = []
    dim = "quantum_efficiency: 0.8\nphoton_units: true"
    for i, text in enumerate((f"{dim}\ncrop: [1, 2]", dim, "gain: 2\nphoton_units: true")):
        path.write_text(text)
        run("train", "deepstorm", tmp_path / f"run{i}", "--steps", 1, "--batch", 2, "--channels", 4, "--device", "cpu",
            "--camera", path)  # fmt: skip
        weights.append((tmp_path / f"run{i}" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, [], "no such file: {}"),
        ("gain: 2\npixel: 108", [], "{} must have the keys gain, offset, .*, photon_units only, got 'pixel'"),
        ("gain: no.hdf5", [], "{}: gain must be a number or the path of an HDF5 map, got 'no.hdf5'"),
        ("gain: -2", [], "{}: gain must be finite and positive, got -2"),
        ("gain: 2", [], "the camera must be known, got no offset, read_variance: give --gain "),
        ("pixel_size_nm: 108", [], "the camera must be known, got no gain, offset, read_variance: give --gain "),
        ("pixel_size_nm: 108\ngain: 2\noffset: 100", [], "the camera must be known, got no read_variance: give"),
        ("photon_units: 1", [], "{}: photon_units must be true or false, got 1"),
        ("photon_units: true", ["--pixel-size-nm", 0], "pixel_size_nm must be finite and positive, got 0"),
        ("photon_units: true\npixel_size_nm: 108", ["--gain", -1], "gain must be finite and positive, got -1"),
        ("photon_units: true\npixel_size_nm: 108\ncrop: [1, 2]", [], "crop needs a map"),
        ("gain: 1", ["--gain", 1, "--gain-map", "x.hdf5"], "--gain and --gain-map must not both be given, got 1 and x"),
        ("photon_units: true\npixel_size_nm: 108", ["--gain-map", "no.hdf5"], "no such file: no.hdf5"),
    ],
)
def test_errors_of_a_camera_file(folder, tmp_path, text, options, message):
    path = tmp_path / "camera.yaml"
    if text is not None:
        path.write_text(text)
    command = ["localize", folder / "movie.tif", "-o", tmp_path / "locs.csv", "--camera", path, *options]
    printed = run(*command, code=2)
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert re.search(message.replace("{}", re.escape(str(path))), printed), printed


def test_round_trip_from_simulation_to_image(folder, tmp_path):
    """Through both formats, both images, and back: each localization is counted once."""
    for suffix in ("csv", "hdf5"):
        localize(folder, tmp_path / f"locs.{suffix}")
    table = io.read_localizations(tmp_path / "locs.csv", 108.0)
    again = io.read_localizations(tmp_path / "locs.hdf5")
    np.testing.assert_allclose(table["u"], again["u"], atol=2e-6)  # Picasso's float32
    text = run("render", tmp_path / "locs.hdf5", "-o", tmp_path / "image.tif", "--factor", 2)
    assert f"wrote {len(table)} of {len(table)} localizations, 40 × 48 pixels of 54 nm" in text
    image = tifffile.imread(tmp_path / "image.tif")
    expected = kde.render(again["u"], again["v"], (20, 24), 2)  # type: ignore[arg-type]
    assert image.dtype == np.float32 and np.array_equal(image, expected.numpy())
    run("render", tmp_path / "locs.csv", "-o", tmp_path / "blur.tif", "--sd-nm", 27, "--size", "20,24")
    expected = kde.render(table["u"], table["v"], (20, 24), 4, 0.25)  # type: ignore[arg-type]
    np.testing.assert_allclose(tifffile.imread(tmp_path / "blur.tif"), expected, atol=1e-5)
    run("render", tmp_path / "locs.csv", "-o", tmp_path / "image.png", "--size", "20,24", "--factor", 3)
    assert imread(tmp_path / "image.png").shape == (60, 72, 4)


def test_what_is_doubtful_is_left_out_of_an_image(tmp_path):
    """By probability, by the larger of both standard deviations, by both; a row without one is out by the second."""
    table = pd.DataFrame({
        "frame": 0, "u": [1.0, 2.0, 3.0, 4.0, 5.0], "v": 1.0, "probability": [1.0, 0.9, 0.89, 1.0, 1.0],
        "u_sd": [0.1, 0.1, 0.1, 0.1, np.nan], "v_sd": [0.1, 0.1, 0.1, 0.21, np.nan],
    })  # fmt: skip
    io.write_localizations(tmp_path / "sure.csv", table, 100.0)
    for options, kept in (
        ([], [1, 2, 3, 4, 5]), (["--min-probability", 0.9], [1, 2, 4, 5]), (["--max-sd-nm", 20], [1, 2, 3]),
        (["--min-probability", 0.9, "--max-sd-nm", 20], [1, 2]), (["--min-probability", 1, "--max-sd-nm", 9], []),
    ):  # fmt: skip
        command = ["render", tmp_path / "sure.csv", "-o", tmp_path / "sure.tif", "--factor", 1, "--size", "2,6"]
        said = run(*command, "--pixel-size-nm", 100, *options)
        assert f"wrote {len(kept)} of 5 localizations" in said
        assert np.nonzero(tifffile.imread(tmp_path / "sure.tif")[1])[0].tolist() == kept
    io.write_localizations(tmp_path / "plain.csv", table.drop(columns=["probability", "u_sd", "v_sd"]), 100.0)
    for option in ("--min-probability", "--max-sd-nm"):
        command = ["render", tmp_path / "plain.csv", "-o", tmp_path / "plain.tif", option, 0.5]
        assert f"must have the columns of `localize --uncertainty` for {option}" in run(*command, code=2)
    command = ["render", tmp_path / "sure.csv", "-o", tmp_path / "sure.tif"]
    assert "must lie between 0 and 1, got 90" in run(*command, "--min-probability", 90, code=2)
    assert "max_sd_nm must be" in run(*command, "--max-sd-nm", -1, code=2)


def test_a_short_run_ends_after_its_warm_up():
    base = TrainingSettings(steps=1000, warmup=300)
    assert TrainingOptions(steps=150).settings(base).warmup == 30
    assert TrainingOptions(steps=4000).settings(base).warmup == TrainingOptions().settings(base).warmup == 300


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_localize_some_frames(folder, tmp_path, suffix):
    """The rows that a run of the whole movie has in these frames, with the movie's frame numbers."""
    localize(folder, tmp_path / f"all{suffix}", "--precision", "no")
    text = localize(folder, tmp_path / f"some{suffix}", "--precision", "no", "--frames", "10:25")
    whole, some = (io.read_localizations(tmp_path / f"{name}{suffix}", 108) for name in ("all", "some"))
    wanted = whole.query("10 <= frame < 25").reset_index(drop=True)
    assert f"wrote {len(some)} localizations of 15 frames to {tmp_path / f'some{suffix}'}" in text and len(some) > 30
    # convolutions round differently in batches of another size
    pd.testing.assert_frame_equal(some, wanted, rtol=0, atol=1e-4)
    assert some.attrs == whole.attrs
    assert {p.stem for p in tmp_path.iterdir()} == {"all", "some"}
    for frames in (":25", "10:"):
        localize(folder, tmp_path / f"half{suffix}", "--precision", "no", "--frames", frames)
        seen = set(io.read_localizations(tmp_path / f"half{suffix}", 108)["frame"].to_numpy())
        assert seen <= set(range(40)[slice(*(int(x) if x else None for x in frames.split(":")))]) and len(seen) > 20


@pytest.mark.parametrize("frames", ["5", "a:b", "5:5", "7:3", "0:41", "-3:", "1:2:3", ""])
def test_frames_that_are_not_there(folder, tmp_path, frames):
    text = localize(folder, tmp_path / "locs.csv", f"--frames={frames}", code=2)
    wanted = f"--frames must be A:B, frames A to B − 1 counted from 0, within the movie's 0:40, got '{frames}'"
    assert text == f"error: {wanted}\n"


def test_some_frames_with_uncertainty_continue_and_only_with_the_same_range(few, tmp_path, monkeypatch):
    """An interruption in the second block: the same command ends with the same files, another range is refused."""
    monkeypatch.setattr("smlmtut.localize.uncertainty.FRAMES_AT_ONCE", 2)
    options = ["--uncertainty", "--posterior", few / "diffusion.safetensors", "--samples", 2]
    suffixes = (".csv", ".mean.tif", ".sd.tif")

    def files(name) -> list[bytes]:
        return [(tmp_path / f"{name}{suffix}").read_bytes() for suffix in suffixes]

    localize(few, tmp_path / "wanted.csv", *options, "--frames", "30:36")
    read, count = movie_frames.read_frames, 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr("smlmtut.localize.frames.read_frames", interrupted)
    assert "give the same command again" in localize(
        few, tmp_path / "locs.csv", *options, "--frames", "30:36", code=130
    )
    left = {p.name for p in tmp_path.iterdir()}
    assert "locs.csv.progress.json" in left and "locs.csv" not in left
    text = localize(few, tmp_path / "locs.csv", *options, "--frames", "20:26", code=2)
    assert "is of another run" in text and "start was 30, is 20; stop was 36, is 26" in text
    count = 2
    localize(few, tmp_path / "locs.csv", *options, "--frames", "30:36")
    assert count == 4, "two of the three blocks were left"
    assert files("locs") == files("wanted")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}{suffix}" for n in ("locs", "wanted") for suffix in suffixes}


def test_the_time_is_told_before_samples_are_drawn(few, tmp_path, monkeypatch):
    monkeypatch.setattr("smlmtut.cli.localize.FRAMES_TIMED", 3)
    command = ["localize", few / "few.tif", "-o", tmp_path / "locs.csv", "--pixel-size-nm", 108, *NUMBERS,
               "--weights", few / "weights.safetensors", "--posterior", few / "diffusion.safetensors",
               "--uncertainty", "--samples", 2]  # fmt: skip
    wanted = r"3 frames, about [\d.]+ s a frame, in all 0:\d\d:\d\d h \(--frames 0:5 tries five\)"
    assert re.match(wanted, run(*command))
    assert "s a frame" not in run(*command, "--frames", "0:2")
    assert "s a frame" not in run(*command, "--quiet")


def test_a_missing_folder_is_told_before_the_work(folder, tmp_path):
    out = tmp_path / "none" / "x"
    for command in (
        ["localize", folder / "movie.tif", "-o", out.with_suffix(".csv"), "--weights", "nope"],
        ["sample", folder / "movie.tif", "-o", out.with_suffix(".tif"), "--weights", "nope"],
        ["simulate", out.with_suffix(".tif"), tmp_path / "truth.csv", "--density", -1],
        ["simulate", tmp_path / "movie.tif", out.with_suffix(".csv"), "--density", -1],
        ["render", tmp_path / "none.csv", "-o", out.with_suffix(".png")],
    ):
        text = run(*command, code=2)
        assert re.fullmatch(rf"error: the folder of .* must exist: create {tmp_path / 'none'} first\n", text), text


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**40])
def test_seeds_that_no_generator_takes(folder, tmp_path, seed):
    for command in (
        ["localize", folder / "movie.tif", "-o", tmp_path / "locs.csv", "--uncertainty"],
        ["sample", folder / "movie.tif", "-o", tmp_path / "x.tif"],
        ["simulate", tmp_path / "movie.tif", tmp_path / "truth.csv"],
        ["train", "deepstorm", tmp_path / "run", "--gain", 2],
        ["train", "diffusion", tmp_path / "run", "--gain", 2],
    ):
        text = run(*command, f"--seed={seed}", code=2)
        assert text == f"error: --seed must be a whole number from 0 to 2^63 − 1, got {seed}\n"
    assert not list(tmp_path.iterdir())


def test_unclear_errors_are_clear_now(folder, tmp_path):
    out = tmp_path / "locs.csv"
    text = localize(folder, out, "--weights", "nope", code=2)
    assert all(name in text for name in pretrained.SHA256) and "got nope" in text
    for option, command in (("--size", ["simulate", tmp_path / "m.tif", tmp_path / "t.csv"]),
                            ("--photons", ["simulate", tmp_path / "m.tif", tmp_path / "t.csv"]),
                            ("--size", ["render", folder / "truth.csv", "-o", tmp_path / "i.png"]),
                            ("--crop", ["sample", folder / "movie.tif", "-o", tmp_path / "s.tif"])):  # fmt: skip
        for bad in ("64", "64;64", "a,b", "1,2,3", ""):
            text = run(*command, f"{option}={bad}", code=2)
            assert text.startswith(f"error: {option} must be two numbers, for instance "), text
            assert text.endswith(f"got '{bad}'\n")
    # the record of another run
    (tmp_path / "locs.csv.progress.json").write_text("{}")
    text = localize(folder, out, code=2)
    assert "locs.csv.progress.json is damaged: start again with --restart" in text
    localize(folder, out, "--restart")


def test_no_error_is_longer_than_300_characters(folder, tmp_path):
    """A long name at both ends: the beginning and the end of the text are kept."""
    path = tmp_path / "camera.yaml"
    path.write_text(f"gain: [{', '.join(['1'] * 5000)}]")
    text = localize(folder, tmp_path / "locs.csv", "--camera", path, numbers=False, code=2)
    assert 250 < len(text) <= 300 and text.count("\n") == 1
    assert "camera.yaml: gain must be a number or the path of an HDF5 map, got [1" in text and text.endswith(" 1, 1]\n")


def test_what_picasso_drops_is_said(few, tmp_path):
    """Its loader keeps finite rows with x ≥ 0 and y ≥ 0: rules of picassosr 0.11, lib.ensure_sanity."""
    for more in ([], ["--uncertainty", "--posterior", few / "diffusion.safetensors", "--samples", 2]):
        text = localize(few, tmp_path / "locs.hdf5", *more, movie="few.tif")
        with h5py.File(tmp_path / "locs.hdf5") as file:
            rows = pd.DataFrame(file["locs"][...])  # type: ignore[index]
        kept = rows.dropna()
        kept = kept[(kept["x"] >= 0) & (kept["y"] >= 0)]
        dropped = len(rows) - len(kept)
        assert f"warning: Picasso's loader drops {dropped} of the {len(rows)} rows of locs.hdf5" in text and dropped > 0
    assert "Picasso" not in localize(few, tmp_path / "locs.csv", movie="few.tif")
    localize(few, tmp_path / "dark.hdf5", "--threshold", 50, movie="few.tif")  # no rows
    assert "Picasso's loader drops rows" in " ".join(run("localize", "--help").split())


def test_render_blurs_by_the_tables_own_sd(tmp_path):
    rows = "frame,x [nm],y [nm],uncertainty [nm]\n1,500,500,20\n1,700,300,40\n"
    (tmp_path / "locs.csv").write_text(rows)
    run(
        "render",
        tmp_path / "locs.csv",
        "-o",
        tmp_path / "image.tif",
        "--pixel-size-nm",
        100,
        "--gaussian",
        "--size",
        "10,10",
    )
    known = io.read_localizations(tmp_path / "locs.csv", 100.0)
    expected = kde.render(known["u"], known["v"], (10, 10), 4, [0.2, 0.4])  # type: ignore[arg-type]
    np.testing.assert_allclose(tifffile.imread(tmp_path / "image.tif"), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_an_empty_table_is_a_dark_image(tmp_path, suffix):
    (tmp_path / "locs.csv").write_text("frame,x [nm],y [nm]\n")
    text = run("render", tmp_path / "locs.csv", "-o", tmp_path / f"image.{suffix}", "--size", "3,4")
    assert "wrote 0 of 0 localizations, 12 × 16 pixels of 27 nm" in text


def test_errors_are_one_line_and_code_2(folder, tmp_path):
    (tmp_path / "not.tif").write_text("no")
    out = tmp_path / "locs.csv"
    for text in (
        localize(folder, out, movie="none.tif", code=2),
        localize(tmp_path, out, movie="not.tif", code=2),
        localize(folder, tmp_path / "locs.txt", code=2),
        localize(folder, out, "--crop", "1;2", code=2),
        localize(folder, out, "--crop", "1,2", code=2),
        localize(folder, out, "--saturation", 110, code=2),
        localize(folder, out, "--threshold", -1, code=2),
        localize(folder, out, "--weights", "deepstorm-9d", code=2),
        localize(folder, out, "--samples", 8, code=2),
        localize(folder, out, "--exact", code=2),
        localize(folder, out, "--uncertainty", "--posterior", "cddpm-9d", code=2),
        localize(folder, out, "--uncertainty", "--samples", 1, code=2),
        run("sample", folder / "movie.tif", "-o", tmp_path / "samples.png", code=2),
        run("sample", folder / "movie.tif", "-o", tmp_path / "samples.tif", "--posterior", "cddpm-9d", code=2),
        run("render", tmp_path / "none.csv", "-o", tmp_path / "image.png", code=2),
        run("render", folder / "truth.csv", "-o", tmp_path / "image.gif", code=2),
        run("render", folder / "truth.csv", "-o", tmp_path / "image.png", "--gaussian", code=2),
        run("simulate", tmp_path / "movie.avi", tmp_path / "truth.csv", code=2),
        run("simulate", tmp_path / "movie.tif", tmp_path / "truth.csv", "--photons", "9,1", code=2),
        run("train", "deepstorm", tmp_path / "run", "--steps", 0, "--gain", 2, code=2),
    ):
        assert text.startswith("error: ") and text.count("\n") == 1, text
    assert [p.name for p in tmp_path.iterdir()] == ["not.tif"]


def test_training_gives_weights_that_localize_takes(folder, tmp_path):
    """Three steps of a tiny network; and again, which changes nothing."""
    command = [
        "train", "deepstorm", tmp_path / "run", "--steps", 3, "--batch", 2, "--channels", 4, "--device", "cpu",
        "--gain", 2, "--offset", 100, "--read-variance", 20,
    ]  # fmt: skip
    run(*command)
    weights = tmp_path / "run" / "weights.safetensors"
    before = weights.read_bytes()
    content = pretrained.describe(weights)
    assert content["arguments"]["channels"] == 4 and content["settings"]["steps"] == 3
    localize(folder, tmp_path / "locs.csv", "--weights", weights)
    weights.unlink()
    run(*command)
    assert weights.read_bytes() == before
    text = run(*command, "--seed", 5, code=2)
    assert "holds a run with other settings" in text


def test_a_command_that_is_killed_goes_on(folder, tmp_path):
    """The real thing: a process of its own, SIGKILL after its first block, and the same command again."""
    with io.read_movie(folder / "movie.tif") as movie:
        io.write_movie(tmp_path / "long.tif", np.concatenate([movie[:]] * 13))
    out, record = tmp_path / "locs.csv", tmp_path / "locs.csv.progress.json"
    command = [
        sys.executable, "-m", "smlmtut", "localize", tmp_path / "long.tif", "-o", out, "--pixel-size-nm", "108",
        *NUMBERS, "--weights", folder / "weights.safetensors", "--threshold", "1",
    ]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if record.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and record.exists() and not out.exists()
    more = ["--weights", folder / "weights.safetensors", "--threshold", "1"]
    localize(tmp_path, out, *more, movie="long.tif")
    resumed = out.read_bytes()
    localize(tmp_path, out, *more, "--restart", movie="long.tif")
    assert out.read_bytes() == resumed and not record.exists()
