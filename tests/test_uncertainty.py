"""What is read from samples: a sampler whose answer is known stands in for the diffusion model."""

import json
import math
import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from test_localize import CAMERA, Painted, breaking_off, movie, network
from torch import Tensor

from smlmtut.diffusion import samplers
from smlmtut.imaging import kde
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.psf import Emitters
from smlmtut.io import read_localizations
from smlmtut.localize import (
    ProgressMismatch,
    SamplingSettings,
    files,
    image_paths,
    localize_movie,
    localize_to_file,
    localize_with_uncertainty,
    sample_frames,
    samples,
    uncertainty,
)
from smlmtut.networks.cddpm import ConditionalDiffusion, frame_input, sample_kde, sampling_schedule
from smlmtut.networks.condition import condition_on
from smlmtut.networks.deepstorm import estimate_kde
from smlmtut.networks.engression import Engression

DOTS: Any = Painted()  # ŷ is 1 on one super-resolved pixel of each bright camera pixel, and 0 elsewhere


class Jitter:
    """Samples that have an emitter at each pixel where ŷ is 1 with a probability, at a Gaussian distance from it."""

    def __init__(self, probability: float = 1.0, sd: float = 0.0) -> None:  # sd: px
        self.probability, self.sd = probability, 4 * sd

    def __call__(self, electrons: Tensor, variance: Tensor, y: Tensor, samples: int, generator: torch.Generator):
        height, width = y.shape[2:]
        drawn = torch.zeros(len(y), samples, height, width)
        for image, estimate in zip(drawn, y[:, 0], strict=True):
            place = (estimate == 1).nonzero().T[:, :, None]  # (2, E, 1)
            v, u = place + self.sd * torch.randn(2, place.shape[1], samples, generator=generator)
            there = (torch.rand(v.shape, generator=generator) < self.probability).float()
            down, along = kde.kernel(v, 1.0, height), kde.kernel(u, 1.0, width)
            image += torch.einsum("es,esh,esw->shw", there, down, along)
        return drawn


def dots(frames, shape, places, value=6.0) -> np.ndarray:
    """A movie whose frames have a dot at each of the places (row, column): pixel 6 of 16, at (1, 1) in its pixel."""
    found = np.zeros((frames, *shape), np.float32)
    for row, column in places:
        found[:, row, column] = value
    return found


def localized(frames, camera=None, net=DOTS, sample=None, threshold=0.25, **settings) -> tuple[Any, np.ndarray]:
    """The whole table, and the sums over all frames."""
    some = localize_with_uncertainty(
        frames, camera or Camera(), net, sample or Jitter(), SamplingSettings(**settings), threshold
    )
    _, tables, sums = zip(*some, strict=True)
    return pd.concat(tables, ignore_index=True), np.sum(sums, 0)


GRID = [(row, column) for row in range(3, 32, 8) for column in range(4, 32, 8)]  # 16 of them, in 32 × 32 pixels


# -- the numbers -------------------------------------------------------------------------------------------


def test_the_samples_sd_and_probability_come_out():
    """320 localizations, 50 samples of each: positions from a Gaussian, and three of ten emitters dropped."""
    samples, sd, probability, many = 50, 0.11, 0.7, 320
    table, _ = localized(dots(20, (32, 32), GRID), sample=Jitter(probability, sd), samples=samples)
    assert len(table) == many and list(table)[-3:] == ["u_sd", "v_sd", "probability"]
    share = math.sqrt(probability * (1 - probability) / samples)  # sd of one; tolerances are four sd of a mean
    assert table["probability"].mean() == pytest.approx(probability, abs=4 * share / math.sqrt(many))
    assert table["probability"].std() == pytest.approx(share, rel=4 / math.sqrt(2 * many))
    for axis in ("u_sd", "v_sd"):
        # the variance from n samples is known to √(2/(n − 1)); a position is read from a KDE to 0.001 px
        known = math.sqrt(2 / (samples * probability - 1))
        variance = (table[axis] ** 2).mean()
        assert variance == pytest.approx(sd**2, rel=4 * known / math.sqrt(many) + 0.001 / sd)
        assert (table[axis] ** 2).std() == pytest.approx(sd**2 * known, rel=0.25)  # 4 / √640, and some for the tail


def test_mean_and_sd_images_in_closed_form():
    """A kernel of variance 1 at a Gaussian place of variance t² has variance 1 + t² on average, its square 1/2 + t²."""
    frames, samples, probability, t = 40, 30, 0.6, 1.2  # t in super-resolved pixels
    (_, sums) = localized(dots(frames, (12, 16), [(6, 9)]), sample=Jitter(probability, t / 4), samples=samples)
    v, u = np.indices((48, 64), dtype=float)
    square = (v - 25) ** 2 + (u - 37) ** 2
    mean = probability / (1 + t**2) * np.exp(-square / 2 / (1 + t**2))
    variance = probability / (1 + 2 * t**2) * np.exp(-square / (1 + 2 * t**2)) - mean**2
    # the sum of the frames' means is known to √(frames · variance / samples)
    lit = variance > 1e-4
    off = (sums[0] - frames * mean)[lit] / np.sqrt(frames * variance / samples)[lit]
    assert np.abs(off).max() < 5 and np.abs(off).mean() < 3  # neighbours hang together
    assert sums[1].sum() == pytest.approx(frames * variance.sum(), rel=0.05)  # 4/√1200, and whole images vary
    dim = (mean < 1e-9) & (variance < 1e-9)
    assert dim.sum() > 1000 and np.abs(sums[:, dim]).max() < 1e-3


def test_variances_of_frames_add():
    """Twice the frames: twice the sum, √2 times its sd, to Monte-Carlo error."""
    one, two = (localized(dots(n, (8, 8), [(4, 4)]), sample=Jitter(0.5), samples=100)[1] for n in (10, 20))
    for found, frames in ((one, 10), (two, 20)):
        assert found[0].max() == pytest.approx(0.5 * frames, abs=4 * 0.5 * math.sqrt(frames / 100))
        # q(1 − q) of a share q near 1/2 hardly depends on it: by (q − 1/2)², 1/400 of 1/4 on average
        assert found[1].max() == pytest.approx(0.25 * frames, rel=0.02)


def test_one_peak_is_not_two_localizations():
    """Two localizations 0.75 px apart, of which every sample has the left one only: it is real, the other is not."""
    frames = dots(1, (12, 12), [(6, 5)])
    frames[0, 6, 6] = 5.0  # its first column, 3 super-resolved pixels to the right

    def left(electrons, variance, y, samples, generator):
        first = torch.zeros_like(y)
        first[..., :23] = y[..., :23]
        return Jitter()(electrons, variance, first, samples, generator)

    table, _ = localized(frames, sample=left)
    assert table["u"].tolist() == pytest.approx([4.875, 5.625])
    assert table["probability"].tolist() == [1, 0]
    assert table["u_sd"][0] == 0 and math.isnan(table["u_sd"][1])


def test_what_is_too_far_or_too_low_is_not_it():
    frames = dots(1, (16, 16), [(8, 8)])

    def moved(electrons, variance, y, samples, generator):
        return 0.6 * Jitter()(electrons, variance, y, samples, generator).roll(6, 3)  # by 1.5 px

    assert localized(frames, sample=moved)[0]["probability"].tolist() == [0]
    assert localized(frames, sample=moved, radius=1.6)[0]["probability"].tolist() == [1]
    assert localized(frames, sample=moved, radius=1.6, peak=0.7)[0]["probability"].tolist() == [0]


# -- regions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("halo", [2, 4])
@pytest.mark.parametrize("shape", [(24, 28), (21, 38), (9, 33), (8, 8)])
def test_regions_change_nothing(shape, halo):
    """Samples that do not vary: rows as without samples, all certain, and the images in closed form.

    Beyond the halo a kernel is below exp(−8²/2).
    """
    places = [
        (row, column) for row in range(1, shape[0], 4) for column in range(2, shape[1], 4) if row < 9 or column < 9
    ]
    frames = np.concatenate([dots(1, shape, places, value) for value in range(1, 17)])  # everywhere in their pixels
    table, sums = localized(frames, samples=2, halo=halo)
    expected = pd.concat([t for _, t in localize_movie(frames, Camera(), DOTS)], ignore_index=True)
    pd.testing.assert_frame_equal(table[list(expected)], expected)
    assert len(table) == 16 * len(places) and (table["probability"] == 1).all() and table["u_sd"].max() == 0
    v, u = (torch.tensor([p[i] for p in places], dtype=torch.float64) for i in (0, 1))
    images = [
        kde.kde_image(Emitters(u[None] + x, v[None] + y, torch.ones(1, len(u)).double()), shape)[0, 0]
        for y in (-0.375, -0.125, 0.125, 0.375)
        for x in (-0.375, -0.125, 0.125, 0.375)
    ]
    np.testing.assert_allclose(sums[0], torch.stack(images).sum(0), atol=1e-4)  # 16 float32 frames
    assert sums[1].max() < 1e-10


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("shape", [(64, 80), (11, 50), (7, 9)])
def test_regions_hold_what_is_lit_and_do_not_overlap(shape, share):
    for seed in range(20):
        lit = np.random.default_rng(seed).random(shape) < share
        found = samples.regions(lit, 3)
        owner = np.full(shape, -1)
        for k, (rows, columns) in enumerate(found):
            part = owner[slice(*rows), slice(*columns)]
            assert (part == -1).all() and part.shape == (rows[1] - rows[0], columns[1] - columns[0])
            assert all(n >= min(16, size) for n, size in zip(part.shape, shape, strict=True))
            part[:] = k
        for row, column in np.argwhere(lit):
            near = owner[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4]
            assert (near == owner[row, column]).all() and owner[row, column] >= 0
        assert set(np.unique(owner[lit])) == set(range(len(found)))  # none without anything lit


def test_samples_in_several_goes_have_the_moments_of_all(monkeypatch):
    """A region too large for all of its samples at once: mean and variance of seven, asked for in threes."""
    given = torch.rand(7, 48, 64, generator=torch.Generator().manual_seed(1))
    asked = []

    def slices(electrons, variance, y, samples, generator):
        asked.append(samples)
        return given[sum(asked[:-1]) : sum(asked)][None]

    monkeypatch.setitem(samples.VALUES_AT_ONCE, "cpu", 3 * 48 * 64 + 5)
    _, sums = localized(dots(1, (12, 16), [(6, 9)]), sample=slices, samples=7)
    assert asked == [3, 3, 1]
    np.testing.assert_allclose(sums[0], given.double().mean(0), rtol=1e-5)
    np.testing.assert_allclose(sums[1], given.double().var(0), rtol=1e-4)


@pytest.mark.parametrize("shape", [(20, 24), (21, 38), (50, 5)])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_sampler_gets_the_frame_as_it_is(shape, which):
    """Photo-electrons, read variance and ŷ of whole frames."""
    generator = torch.Generator().manual_seed(4)
    gain, offset, variance = (a + b * torch.rand(shape, generator=generator) for a, b in ((1, 2), (90, 20), (2, 30)))
    camera, frames, net = Camera(gain, offset, variance), movie(2, shape).astype(np.float32), network()

    def echo(*arguments):
        seen = arguments[which]
        assert seen.shape[:2] == (1, 1)
        seen = seen if which == 2 else seen.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return seen.expand(-1, arguments[3], -1, -1).clone()

    drawn = list(sample_frames(frames, camera, net, echo, SamplingSettings(samples=2), start=1))
    adu = torch.from_numpy(frames[1:])
    wanted = (to_photoelectrons(adu, camera), variance / gain**2, estimate_kde(net, adu, camera)[0])[which]
    wanted = wanted if which == 2 else wanted.reshape(1, *shape).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert len(drawn) == 1 and drawn[0].shape == (2, 4 * shape[0], 4 * shape[1])
    torch.testing.assert_close(drawn[0], wanted.expand(2, -1, -1), rtol=0, atol=1e-5)


def test_the_dark_is_not_sampled():
    """ŷ counts as their mean, without variance, and an empty movie needs no sampler at all."""
    calls = []

    def counting(electrons, variance, y, samples, generator):
        calls.append(len(y))
        return Jitter(0.5)(electrons, variance, y, samples, generator)

    frames = dots(2, (64, 64), [(5, 5), (60, 60)])
    table, sums = localized(frames, sample=counting)
    assert sum(calls) == 4 and len(table) == 4  # each of the dots in one region of a frame
    assert np.count_nonzero(sums[1]) < 64 * 64 and (sums[1][100:150] == 0).all()
    calls.clear()
    assert len(localized(np.zeros((3, 20, 20), np.float32), sample=counting)[0]) == 0 and not calls
    faint, net = movie(1, (16, 16)).astype(np.float32), network()
    high = 1e-3 + float(estimate_kde(net, torch.from_numpy(faint), CAMERA).max())
    _, sums = localized(faint, CAMERA, net, sample=counting, dark=high, threshold=high)
    torch.testing.assert_close(
        torch.from_numpy(sums[0]), estimate_kde(net, torch.from_numpy(faint), CAMERA)[0, 0].double()
    )
    assert not sums[1].any() and not calls


# -- seeds and files ---------------------------------------------------------------------------------------


def to_file(path, frames, **more):
    good = {"camera": Camera(), "network": DOTS, "sampler": Jitter(0.8, 0.1), "pixel_size_nm": 100.0, "progress": False}
    settings = SamplingSettings(**{"samples": 6, **more.pop("settings", {})})
    return localize_to_file(path, frames, **{**good, "settings": settings, **more})


def content(path) -> list[bytes]:
    return [p.read_bytes() for p in (path, *image_paths(path))]


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_the_files_are_what_localize_gives(tmp_path, suffix):
    frames, path = dots(5, (20, 24), [(5, 6), (12, 17)]), tmp_path / f"locs{suffix}"
    assert to_file(path, frames) == 10
    table, sums = localized(frames, sample=Jitter(0.8, 0.1), samples=6)
    again = read_localizations(path, 100.0)
    assert list(again) == ["frame", "u", "v", "height", "mass", "u_sd", "v_sd", "probability"]
    for name in again:  # float32 in Picasso's
        np.testing.assert_allclose(again[name], table[name], rtol=1e-6, atol=1e-6)
    for image, wanted in zip(image_paths(path), (sums[0], np.sqrt(sums[1])), strict=True):
        found = tifffile.imread(image)
        assert found.dtype == np.float32 and found.shape == (80, 96)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    if suffix == ".csv":
        first = path.read_text().splitlines()[:2]
        assert "uncertainty_x [nm],uncertainty_y [nm],probability" in first[0]
        assert float(first[1].split(",")[5]) == pytest.approx(100 * table["u_sd"][0])
    left = {p.name for p in tmp_path.iterdir()} - {"locs.yaml"}
    assert left == {path.name, "locs.mean.tif", "locs.sd.tif"}


def test_one_seed_one_file(tmp_path):
    frames = dots(3, (20, 24), [(5, 6), (12, 17)])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        to_file(tmp_path / f"{name}.csv", frames, settings={"seed": seed})
    one, same, other = (content(tmp_path / f"{name}.csv") for name in "abc")
    assert one == same and all(x != y for x, y in zip(one, other, strict=True))
    # regions and frames have random numbers of their own
    table, _ = localized(frames, sample=Jitter(0.8, 0.1), samples=20)
    assert table["u_sd"].nunique() == 6


@pytest.fixture
def broken_off(tmp_path, monkeypatch):
    """A run that ended after the first of three blocks, and the files of one that did not."""
    monkeypatch.setattr(uncertainty, "FRAMES_AT_ONCE", 2)
    monkeypatch.setattr(files, "FRAMES_HASHED", 2)
    frames = dots(5, (20, 24), [(5, 6), (12, 17)])
    to_file(tmp_path / "whole.csv", frames)
    path = tmp_path / "locs.csv"
    with breaking_off(monkeypatch, 3):
        to_file(path, frames)
    assert json.loads((tmp_path / "locs.csv.progress.json").read_text())["frames"] == 2
    return path, frames


def test_a_run_goes_on_with_the_same_random_numbers(broken_off):
    path, frames = broken_off
    assert [p.name for p in path.parent.glob("locs.csv.sums-*")] == ["locs.csv.sums-2.npy"]
    to_file(path, frames)
    assert content(path) == content(path.with_name("whole.csv"))
    assert len(list(path.parent.iterdir())) == 6


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"settings": {"seed": 3}}, "seed"),
        ({"settings": {"samples": 7}}, "samples"),
        ({"settings": {"radius": 0.5}}, "radius"),
        ({"sampler_name": "another"}, "sampler"),
        ({"threshold": 0.5}, "threshold"),
        ({"precision": "bf16"}, "precision"),
        ({"window": 100}, "window"),
        ({"settings": {"halo": 2}}, "sampling halo"),
    ],
)
def test_another_run_does_not_go_on(broken_off, change, name):
    path, frames = broken_off
    with pytest.raises(ProgressMismatch, match=f"is of another run.*{name} was"):
        to_file(path, frames, **change)
    with pytest.raises(ProgressMismatch, match="columns was"):
        localize_to_file(path, frames, Camera(), DOTS, 100.0, progress=False)  # type: ignore[arg-type]
    to_file(path, frames, resume=False, **change)
    assert not list(path.parent.glob("*.npy"))


@pytest.mark.parametrize("damage", [None, b"", b"short", "smaller", "flipped"])
def test_damaged_images(broken_off, damage):
    path, frames = broken_off
    sums = path.with_name("locs.csv.sums-2.npy")
    if damage == "smaller":
        np.save(sums, np.load(sums)[:, :-4])
        damage = sums.read_bytes()
    elif damage == "flipped":
        damage = sums.read_bytes()[:-3] + b"abc"
    sums.unlink() if damage is None else sums.write_bytes(damage)
    with pytest.raises(ProgressMismatch, match="is damaged"):
        to_file(path, frames)
    to_file(path, frames, resume=False)
    assert content(path) == content(path.with_name("whole.csv"))


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from smlmtut.localize import image_paths, uncertainty
    from test_uncertainty import content, dots, to_file

    torch.set_num_threads(1)
    uncertainty.FRAMES_AT_ONCE = 1
    frames, path = dots(2, (8, 8), [(4, 4)]), Path(sys.argv[1])

    def run(moment):
        '''A process that kills itself at its moment-th change of a file.'''
        pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)[1]
        seen = [0]
        def wrap(change):
            def changed(*args, **kwargs):
                seen[0] += 1
                if seen[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **kwargs)
            return changed
        for name in ("fsync", "replace", "unlink", "truncate"):
            setattr(os, name, wrap(getattr(os, name)))
        to_file(path, frames)
        os._exit(0)

    assert run(-1) == 0
    wanted, names = content(path), sorted(p.name for p in path.parent.iterdir())
    moment = kills = 0
    while True:
        moment += 1
        for file in path.parent.iterdir():
            file.unlink()
        if run(moment) == 0:
            break
        kills += 1
        whole = dict(zip((path, *image_paths(path)), wanted))
        assert all(file.read_bytes() == text for file, text in whole.items() if file.exists()), moment
        assert run(-1) == 0
        assert content(path) == wanted, moment
        assert sorted(p.name for p in path.parent.iterdir()) == names, moment
    print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_change_of_a_file(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "locs.csv")]
    path = {"PYTHONPATH": f"tests{os.pathsep}."}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **path})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12  # two blocks of three files each, then images and table


# -- frames of samples -------------------------------------------------------------------------------------


def test_draw_is_the_sampler_frame_by_frame():
    frames = dots(3, (12, 16), [(6, 9)])
    drawn = list(sample_frames(frames, Camera(), DOTS, Jitter(), SamplingSettings(samples=3), 1, 3))
    emitter = Emitters.single(kde.to_camera(37.0), kde.to_camera(25.0), 1.0)
    wanted = kde.kde_image(emitter, (12, 16))[0].float().expand(3, -1, -1)
    assert len(drawn) == 2
    for images in drawn:
        torch.testing.assert_close(images, wanted, atol=1e-6, rtol=0)
    jittered = [
        list(sample_frames(frames, Camera(), DOTS, Jitter(0.5, 0.1), SamplingSettings(seed=s))) for s in (0, 0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*jittered[:2], strict=True))
    assert not torch.equal(jittered[0][0], jittered[2][0]) and not torch.equal(jittered[0][0], jittered[0][1])
    # where a frame starts, or which were drawn before, does not matter
    (later,) = sample_frames(frames, Camera(), DOTS, Jitter(0.5, 0.1), start=2)
    assert torch.equal(later, jittered[0][2])


def test_a_diffusion_model_is_a_sampler():
    """A new one says v = 0, which is right for z of N(0, 1): its samples are N(centre, scale²) in each pixel.

    Up to what the solver makes of N(0, 1) with that denoiser, in so few steps some per cent more.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusion = ConditionalDiffusion(channels=(8, 8)).eval()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 1, 4, 8, generator=generator), torch.rand(2, 1, 16, 32, generator=generator)
    sample = samples.kde_sampler(diffusion, precision="no")
    frame = frame_input(20 * x, 4 * torch.ones_like(x))
    drawn = sample_kde(diffusion, y, 40, torch.Generator().manual_seed(2), frame)
    assert drawn.shape == (2, 40, 16, 32)
    centre, scale, _ = condition_on(y, frame)
    z = (drawn - centre) / scale
    assert abs(float(z.mean())) < 4 / math.sqrt(z.numel())
    one = torch.ones(1, dtype=torch.float64)
    *_, end = samplers.dpm_solver(lambda z, gamma, _: gamma.sqrt() * z, sampling_schedule(), one)
    assert 0.97 < end.y.item() < 1.03
    assert float(z.std()) == pytest.approx(end.y.item(), rel=4 / math.sqrt(2 * z.numel()))
    given = sample(20 * x, 4 * torch.ones_like(x), y, 40, torch.Generator().manual_seed(2))
    assert torch.equal(given, kde.redrawn(drawn.reshape(80, 1, 16, 32)).reshape(drawn.shape))


def test_engression_is_a_sampler():
    """The samples are its draws as KDEs, whatever number of them is computed at once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Engression((8, 8)).eval()
    generator = torch.Generator().manual_seed(1)
    x, y = 20 * torch.rand(2, 1, 4, 8, generator=generator), torch.rand(2, 1, 16, 32, generator=generator)
    drawn = network.sample(y, frame_input(x, x), 5, torch.Generator().manual_seed(2), chunk=3)
    given = samples.kde_sampler(network, precision="no")(x, x, y, 5, torch.Generator().manual_seed(2))
    torch.testing.assert_close(given, kde.redrawn(drawn.reshape(10, 1, 16, 32)).reshape(drawn.shape))


def test_a_network_with_attention_refuses_a_large_region():
    """Its cost grows as the square of the area, and it was trained on frames of 16 px."""
    network = ConditionalDiffusion("published", channels=(4, 4), attention=True).eval()
    x, y = torch.ones(1, 1, 4, 65), torch.zeros(1, 1, 16, 260)
    with pytest.raises(ValueError, match=r"regions of at most 64 px a side .* got one of \(4, 65\)"):
        samples.kde_sampler(network, precision="no")(x, x, y, 2, torch.Generator())


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"samples": 1}}, "samples must be a whole number of at least 2, got 1"),
        ({"settings": {"seed": -1}}, "seed must be a whole number of at least 0"),
        ({"settings": {"halo": 0}}, "halo must be a whole number of at least 1"),
        ({"settings": {"dark": -1.0}}, "dark must be finite and not negative"),
        ({"settings": {"dark": 0.5}}, "dark must be at most the threshold 0.25, got 0.5"),
        ({"settings": {"peak": math.nan}}, "peak must be finite and not negative"),
        ({"settings": {"radius": 0.0}}, "radius must be finite and positive"),
        ({"frames": np.zeros((20, 20))}, "movie must have 3 dimensions"),
        ({"camera": Camera(torch.ones(64, 64))}, r"movie must have the camera maps' size \(64, 64\)"),
        ({"threshold": -1.0}, "threshold must be finite and not negative"),
        ({"pixel_size_nm": 0.0}, "pixel_size_nm must be finite and positive"),
        ({"precision": "half"}, "precision must be one of"),
        ({"path": "locs.txt"}, "path must end in .csv, .hdf5, .h5"),
        ({"sampler": None}, "settings, sampler_name and exact must be None, '' and None where there is no sampler"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    path = tmp_path / change.pop("path", "locs.csv")
    frames = change.pop("frames", dots(2, (12, 12), [(6, 6)]))
    with pytest.raises(ValueError, match=message):
        to_file(path, frames, **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda *a: torch.zeros(1, 5, 48, 48), r"sampler must return shape \(1, 6, 48, 48\), got \(1, 5, 48, 48\)"),
        (lambda *a: torch.full((1, 6, 48, 48), math.nan), "samples must be finite, got nan"),
    ],
)
def test_bad_samplers(tmp_path, sample, message):
    with pytest.raises(ValueError, match=message):
        to_file(tmp_path / "locs.csv", dots(1, (12, 12), [(6, 6)]), sampler=sample)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 2), (3, 2), (0, 4), (-1, 2)])
def test_bad_ranges(start, stop):
    with pytest.raises(ValueError, match="start|stop"):
        sample_frames(dots(3, (12, 12), []), Camera(), DOTS, Jitter(), None, start, stop)  # type: ignore[arg-type]
