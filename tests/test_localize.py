"""Windows, bands, blocks and broken-off runs change nothing in the table; and bad frames are named."""

import itertools
import json
import math
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from typing import ClassVar

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial import KDTree
from tifffile import imread
from torch import Tensor, nn

from smlmtut._files import held
from smlmtut.estimation import fisher
from smlmtut.evaluation import localization
from smlmtut.imaging import kde, simulate, windows
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.psf import PSF, Emitters
from smlmtut.io import read_localizations, read_movie, write_localizations, write_movie
from smlmtut.localize import ProgressMismatch, files, localize_to_file, progress
from smlmtut.localize import frames as reading
from smlmtut.localize import movie as localize
from smlmtut.localize.files import image_paths, run_to_file
from smlmtut.networks import precision, pretrained
from smlmtut.networks.deepstorm import DeepSTORM, estimate_kde

CAMERA = Camera(2.0, 100.0, 12.0, saturation=65535, integer=True)


def network(**more) -> DeepSTORM:
    """A small network with random weights, whose ŷ has many peaks of any form; reach 5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = DeepSTORM(**{"channels": 6, "dilations": (1, 2), "upsampled": (4, 3), "predicting": 1, **more}).eval()
        torch.nn.init.normal_(made.head.weight)
    made.requires_grad_(False)
    raw = made.raw(to_photoelectrons(torch.from_numpy(movie().astype(np.float32)), CAMERA)[:, None], 3.0)
    made.head.weight.div_(4 * raw.std())  # most of ŷ / ceiling then lies well within ±1, about 0
    made.head.bias.copy_(-raw.mean() / (4 * raw.std()))  # type: ignore[operator]
    return made


def movie(frames=5, shape=(20, 24), seed=0) -> np.ndarray:
    """Blurred emitters in ADU, uint16."""
    generator = torch.Generator().manual_seed(seed)
    emitters = simulate.uniform_in_frame(frames, shape, (300.0, 900.0), generator, density=0.02)
    return simulate.frames(emitters, PSF(1.0), CAMERA, shape, 4.0, generator).numpy().astype(np.uint16)


def table_of(*args, **kwargs) -> pd.DataFrame:
    return pd.concat([table for _, table in localize.localize_movie(*args, **kwargs)], ignore_index=True)


def assert_close(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """The same peaks, in any order within a frame, up to the rounding of ŷ in float32, some 1e-6."""
    assert len(a) > 50 and a["frame"].equals(b["frame"])
    places = [table[["frame", "u", "v"]].to_numpy() * (1000, 1, 1) for table in (a, b)]
    distance, partner = KDTree(places[1]).query(places[0])
    assert np.array_equal(np.sort(partner), np.arange(len(b)))  # one to one
    # a position follows from a ratio of differences: at worst, where a peak is flat, rounding moves it in its pixel
    assert np.median(distance) < 1e-6 and np.max(distance) < 1 / 8
    for name in ("height", "mass"):
        np.testing.assert_allclose(a[name], b[name].to_numpy()[partner], rtol=0, atol=1e-5)


def kdes(monkeypatch) -> list[Tensor]:
    """The ŷ of each batch from now on, as it was put together."""
    peaks, seen = localize.find_peaks, []
    monkeypatch.setattr(localize, "find_peaks", lambda y, *rest: (seen.append(y), peaks(y, *rest))[1])
    return seen


class Painted(nn.Module):
    """Instead of a network: one dot of ŷ = 1 for each bright camera pixel, at a place in it that its value tells.

    Values 1 … 16 put the dot, or a pair of equal neighbours, on the 16 super-resolved pixels.
    """

    factor, sigma, reach = 4, 1.0, 0
    architecture: ClassVar = {}

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 1, 1)

    def forward(self, electrons: Tensor, variance: Tensor) -> Tensor:
        place = torch.arange(16.0).reshape(1, 16, 1, 1) + 1
        return torch.pixel_shuffle((electrons == place).float(), 4)


# --- windows and bands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [11, 16, 29, 40])
def test_windows_give_the_table_of_the_whole_frame(monkeypatch, window):
    frames, net = movie(2, (45, 38)), network()
    assert net.reach == 5
    whole = table_of(frames, CAMERA, net, window=1000)
    seen = kdes(monkeypatch)
    assert_close(table_of(frames, CAMERA, net, window=window), whole)
    expected = estimate_kde(net, torch.from_numpy(frames.astype(np.float32)), CAMERA)
    torch.testing.assert_close(torch.cat(seen), expected, rtol=0, atol=1e-5)  # sums of some 100 terms of about 1


def test_windows_use_their_own_part_of_the_camera(monkeypatch):
    """Maps that change from pixel to pixel."""
    generator = torch.Generator().manual_seed(5)
    gain, offset, variance = (a + b * torch.rand(30, 34, generator=generator) for a, b in ((1, 2), (90, 20), (2, 30)))
    camera = Camera(gain, offset, variance)
    emitters = simulate.uniform_in_frame(2, (30, 34), 800.0, generator, density=0.02, dtype=torch.float32)
    frames = simulate.frames(emitters, PSF(1.0), camera, (30, 34), 3.0, generator)
    net, seen = network(), kdes(monkeypatch)
    assert len(table_of(frames, camera, net, window=14)) > 50
    torch.testing.assert_close(torch.cat(seen), estimate_kde(net, frames, camera), rtol=0, atol=1e-5)


def test_windows_round_as_the_whole_frame_in_bf16(monkeypatch):
    """Sums in another order may round another way in the features, but not more often than any rounding there is.

    So a window is no farther from the whole frame than two independent roundings, √2 times the distance from
    float32. A halo that is too narrow is farther, as below.
    """
    frames, net = movie(2, (45, 38)), network()
    full = estimate_kde(net, torch.from_numpy(frames.astype(np.float32)), CAMERA)
    seen = kdes(monkeypatch)

    def rms(window: int) -> float:
        seen.clear()
        table_of(frames, CAMERA, net, window=window, precision="bf16")
        return float((torch.cat(seen) - whole).square().mean().sqrt())

    whole = estimate_kde(net, torch.from_numpy(frames.astype(np.float32)), CAMERA, "bf16")
    rounding = float((whole - full).square().mean().sqrt())
    assert rms(1000) == 0 < rounding
    assert rms(16) < 2**0.5 * rounding
    monkeypatch.setattr(DeepSTORM, "reach", 3)
    assert rms(16) > 2**0.5 * rounding


def test_the_halo_must_be_as_wide_as_the_reach(monkeypatch):
    """With one pixel less the tables differ: the test above would see a reach that is too small."""
    frames, net = movie(2, (45, 38)), network()
    whole = table_of(frames, CAMERA, net, window=1000)
    monkeypatch.setattr(DeepSTORM, "reach", 3)
    with pytest.raises(AssertionError, match="Not equal to tolerance|equals|array_equal"):
        assert_close(table_of(frames, CAMERA, net, window=16), whole)


@pytest.mark.parametrize(("height", "width", "window"), [(12, 12, 5), (13, 9, 4), (12, 12, 100)])
def test_every_dot_is_found_once_wherever_windows_and_bands_meet(monkeypatch, height, width, window):
    """All places of a dot in its pixel and all pixels of a frame, each in a frame of its own."""
    frames = np.zeros((16 * height * width, height, width), np.float32)
    place, row, column = (x.ravel() for x in np.indices((16, height, width)))
    frames[np.arange(len(frames)), row, column] = place + 1
    whole = table_of(frames, Camera(), Painted(), window=100)  # type: ignore[arg-type]
    monkeypatch.setattr(localize, "PEAK_PIXELS", 1)  # the narrowest bands
    found = table_of(frames, Camera(), Painted(), window=window)  # type: ignore[arg-type]
    assert np.array_equal(found["frame"], np.arange(len(frames)))
    pd.testing.assert_frame_equal(found, whole, rtol=1e-6, atol=1e-6)  # float32 against float64
    u, v = column + (place % 4 + 0.5) / 4 - 0.5, row + (place // 4 + 0.5) / 4 - 0.5
    for name, at, size in (("u", u, width), ("v", v, height)):
        # but for the last super-resolved pixel at each side, whose neighbour is unknown, the dot's own centre
        inner = (at > -0.3) & (at < size - 0.7)
        np.testing.assert_allclose(found[name][inner], at[inner], atol=1e-6)


def test_bands_give_the_table_of_the_whole_frame(monkeypatch):
    """Mass too, which neighbours share."""
    frames, net = movie(2, (60, 20)), network()
    whole = table_of(frames, CAMERA, net)
    monkeypatch.setattr(localize, "PEAK_PIXELS", 1)
    assert_close(table_of(frames, CAMERA, net), whole)


@pytest.mark.parametrize(("size", "window", "reach"), [*itertools.product((1, 7, 20, 64, 301), (9, 16, 64), (0, 1, 4))])
def test_spans_cover_once_and_keep_their_distance(size, window, reach):
    spans = windows.spans("window", size, window, reach)
    owned = [pixel for _, begin, end in spans for pixel in range(begin, end)]
    assert owned == list(range(size))
    for start, begin, end in spans:
        stop = min(start + window, size)
        assert 0 <= start <= begin < end <= stop and (len(spans) == 1 or stop - start == window)
        assert begin - start >= reach or start == begin == 0
        assert stop - end >= reach or stop == end == size
    assert len(spans) <= max(1, -(-(size - 2 * reach) // (window - 2 * reach)))  # no more than needed


@pytest.mark.parametrize("size", [(9, 16), (12, 12), (28, 40)])
@pytest.mark.parametrize("factor", [1, 4])
def test_windows_put_an_image_together(size, factor):
    """Of an image of the frame, each window sees a part; their own parts make up the image."""
    image = torch.arange(20 * 24 * factor**2).reshape(20 * factor, 24 * factor)
    again = torch.full_like(image, -1)
    for window in windows.windows((20, 24), size, 4):
        seen = image[window.seen(factor)]
        assert seen.shape == tuple(factor * min(n, whole) for n, whole in zip(size, (20, 24), strict=True))
        assert (again[window.own(factor)] == -1).all()
        again[window.own(factor)] = seen[window.within(factor)]
    assert torch.equal(again, image)


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photons", [300.0, 1000.0])
def test_bf16_moves_a_position_by_little_of_its_standard_deviation(photons):
    """The shipped network, one emitter a frame: less than a tenth of the bound, which adds half a per cent to an sd."""
    generator = torch.Generator().manual_seed(8)
    u, v = 9 + torch.rand(2, 30, 1, generator=generator, dtype=torch.float64)
    spots = Emitters(u, v, torch.full_like(u, photons))
    frames = simulate.frames(spots, PSF(1.0), CAMERA, (20, 20), 5.0, generator)
    full, less = (table_of(frames, CAMERA, pretrained.load(), precision=p) for p in ("no", "bf16"))
    found, same = (localization.Points(table["frame"], table["u"], table["v"]) for table in (less, full))
    pairs = localization.match(found, same, 100.0, 50.0)
    assert len(pairs) == len(full) == len(less) >= 30
    bound = fisher.localization_bound(spots, PSF(1.0), CAMERA, (20, 20), 5.0)[:, :2]
    change = torch.stack([pairs.du, pairs.dv]).square().mean().sqrt()
    assert 0 < change < 0.1 * bound.square().mean().sqrt()


@pytest.fixture
def fast(monkeypatch):
    """A machine on which bf16 pays."""
    monkeypatch.setattr(precision, "best_precision", lambda device: "bf16")


def test_auto_is_what_pays_here(fast):
    frames, net = movie(), network()
    tables = {p: table_of(frames, CAMERA, net, precision=p) for p in ("no", "auto", "bf16")}
    assert tables["auto"].equals(tables["bf16"]) and not tables["auto"].equals(tables["no"])
    assert tables["no"].equals(table_of(frames, CAMERA, net))


# --- the table ----------------------------------------------------------------------------------------------------


def test_localizations_are_those_of_the_kde():
    """A frame at a time, against the function that the chapters use; and in blocks that say how far they are."""
    frames, net = movie(), network()
    expected = []
    for i, frame in enumerate(frames):
        y = estimate_kde(net, torch.from_numpy(frame.astype(np.float32))[None], CAMERA)
        found = kde.to_coordinates(y.double(), net.factor, net.sigma, 0.4, 0.5)
        expected.append(np.column_stack([np.full(len(found), i), found.u, found.v, found.height, found.mass]))
    blocks = list(localize.localize_movie(frames, CAMERA, net, 0.4, 0.5))
    assert [done for done, _ in blocks] == [5]
    assert list(blocks[0][1]) == ["frame", "u", "v", "height", "mass"]
    assert_close(
        blocks[0][1], pd.DataFrame(np.concatenate(expected), columns=list(blocks[0][1])).astype({"frame": int})
    )


def test_blocks_and_start(monkeypatch):
    frames, net = movie(), network()
    whole = table_of(frames, CAMERA, net)
    monkeypatch.setattr(localize, "FRAMES_AT_ONCE", 2)
    blocks = list(localize.localize_movie(frames, CAMERA, net))
    assert [done for done, _ in blocks] == [2, 4, 5]
    assert all(table["frame"].between(done - 2, done - 1).all() for done, table in blocks)
    assert_close(pd.concat([table for _, table in blocks], ignore_index=True), whole)
    later = list(localize.localize_movie(frames, CAMERA, net, start=4))
    assert [done for done, _ in later] == [5] and later[0][1].equals(blocks[2][1])


def test_arrays_tensors_and_files_are_alike(tmp_path):
    frames, net = movie(), network()
    write_movie(tmp_path / "movie.tif", frames)
    expected = table_of(frames, CAMERA, net)
    assert expected.equals(table_of(torch.from_numpy(frames.astype(np.int32)), CAMERA, net))
    assert expected.equals(table_of(frames.astype(np.float64), CAMERA, net))
    with read_movie(tmp_path / "movie.tif") as file:
        assert expected.equals(table_of(file, CAMERA, net))


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
@pytest.mark.parametrize("rows_at_once", [7, 1 << 15])
def test_the_file_is_the_one_that_write_localizations_makes(tmp_path, monkeypatch, suffix, rows_at_once):
    monkeypatch.setattr(progress, "ROWS_AT_ONCE", rows_at_once)
    frames, net = movie(2, (12, 12)), network()
    got, wanted = tmp_path / f"got{suffix}", tmp_path / f"wanted{suffix}"
    count = localize_to_file(got, frames, CAMERA, net, 108.0, progress=False)
    table = table_of(frames, CAMERA, net)
    write_localizations(wanted, table, 108.0, (12, 12), 2)
    assert count == len(table) > 7
    if suffix == ".csv":
        assert got.read_bytes() == wanted.read_bytes()
    else:
        with h5py.File(got) as a, h5py.File(wanted) as b:
            assert a["locs"].dtype == b["locs"].dtype and np.array_equal(a["locs"][...], b["locs"][...])  # type: ignore
            assert a["metadata"][()] == b["metadata"][()]  # type: ignore[index]
        assert got.with_suffix(".yaml").read_bytes() == wanted.with_suffix(".yaml").read_bytes()
    left = {p.name for p in tmp_path.iterdir()} - {p.with_suffix(".yaml").name for p in (got, wanted)}
    assert left == {got.name, wanted.name}


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_a_movie_of_nothing(tmp_path, suffix):
    path = tmp_path / f"locs{suffix}"
    assert localize_to_file(path, np.full((3, 9, 9), 100), CAMERA, Painted(), 108.0, progress=False) == 0  # type: ignore
    table = read_localizations(path, 108.0)
    assert len(table) == 0 and list(table) == ["frame", "u", "v", "height", "mass"]


# --- broken off ---------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    import numpy as np, torch
    from pathlib import Path
    from smlmtut.localize import localize_to_file, progress
    from smlmtut.localize import movie as localize
    from test_localize import CAMERA, movie, network

    torch.set_num_threads(1)
    localize.FRAMES_AT_ONCE, progress.ROWS_AT_ONCE = 2, 200
    frames, net, path = movie(3, (12, 12)), network(), Path(sys.argv[1])

    def die_at(moment):
        '''Let the process kill itself at its moment-th change of a file; half of them are not yet done then.'''
        seen = 0
        def wrap(change):
            def changed(*args, **kwargs):
                nonlocal seen
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = change(*args, **kwargs)
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return changed
        for name in ("fsync", "replace", "unlink", "truncate"):
            setattr(os, name, wrap(getattr(os, name)))

    def run(moment):
        pid = os.fork()
        if pid == 0:
            die_at(moment)
            localize_to_file(path, frames, CAMERA, net, 108.0, progress=False)
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    assert run(-1) == 0
    wanted = path.read_bytes()
    assert len(wanted) > 2000
    moment = kills = 0
    while True:
        moment += int(sys.argv[2])
        path.unlink()
        if run(moment) == 0:
            break
        kills += 1
        # the file is whole or not there
        assert not path.exists() or path.read_bytes() == wanted, moment
        before = [p.name for p in path.parent.iterdir()]
        path.touch()
        assert run(-1) == 0
        assert path.read_bytes() == wanted, (moment, before)
        left = {p.name for p in path.parent.iterdir()} - {path.name, path.with_suffix(".yaml").name}
        assert not left, (moment, left)
    print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("suffix", "step"), [(".csv", 1), (".hdf5", 5)])
def test_killed_at_every_change_of_a_file(tmp_path, suffix, step):
    """Before and after each (.hdf5: some) of them; the next run ends with the bytes of one that was not killed."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / f"locs{suffix}"), str(step)]
    path = {"PYTHONPATH": f"tests{os.pathsep}."}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **path})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20 / step


@contextmanager
def breaking_off(monkeypatch, at: int):
    """Runs end in frame `at`, which cannot be read."""
    read = reading.read_frames

    def broken(movie, camera, first, last):
        if first <= at < last:
            raise ValueError(f"broken in frame {at}")
        return read(movie, camera, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_frames", broken)
        with pytest.raises(ValueError, match=f"broken in frame {at}"):
            yield


@pytest.fixture
def broken_off(tmp_path, monkeypatch):
    """A run that ended after the first of three blocks."""
    monkeypatch.setattr(localize, "FRAMES_AT_ONCE", 2)
    frames, path = movie().astype(np.float32), tmp_path / "locs.csv"
    with breaking_off(monkeypatch, 3):
        localize_to_file(path, frames, CAMERA, network(), 108.0, progress=False)
    assert not path.exists() and json.loads((tmp_path / "locs.csv.progress.json").read_text())["frames"] == 2
    return path, frames


def spied(monkeypatch) -> list[int]:
    """The first frame of each block that is read from now on."""
    read, first = reading.read_frames, []
    monkeypatch.setattr(reading, "read_frames", lambda *args: (first.append(args[2]), read(*args))[1])
    return first


def test_a_run_goes_on_where_it_was_or_starts_anew(broken_off, monkeypatch):
    path, frames = broken_off
    record, partial = (path.with_name(path.name + s) for s in (".progress.json", ".partial"))
    kept = record.read_bytes(), partial.read_bytes()
    first = spied(monkeypatch)
    localize_to_file(path, frames, CAMERA, network(), 108.0, progress=False)
    assert first == [2, 4]
    resumed = path.read_bytes()
    for file, content in zip((record, partial), kept, strict=True):
        file.write_bytes(content)
    first.clear()
    localize_to_file(path, frames, CAMERA, network(), 108.0, resume=False, progress=False)
    assert first == [0, 2, 4] and path.read_bytes() == resumed
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_run_in_bf16_goes_on_in_bf16(tmp_path, monkeypatch, fast):
    """Also where "auto" finds something else now: the record says what it was."""
    monkeypatch.setattr(localize, "FRAMES_AT_ONCE", 2)
    monkeypatch.setattr(files, "FRAMES_HASHED", 2)
    frames = movie().astype(np.float32)
    good = {"camera": CAMERA, "network": network(), "pixel_size_nm": 108.0, "progress": False}
    localize_to_file(tmp_path / "whole.csv", frames, precision="bf16", **good)
    path = tmp_path / "locs.csv"
    with breaking_off(monkeypatch, 3):
        localize_to_file(path, frames, precision="auto", **good)
    monkeypatch.setattr(precision, "best_precision", lambda device: "no")
    with pytest.raises(ProgressMismatch, match="precision was bf16, is no"):
        localize_to_file(path, frames, precision="auto", **good)
    first = spied(monkeypatch)
    localize_to_file(path, frames, precision="bf16", **good)
    assert first == [2, 4] and path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    localize_to_file(path, frames, **good)
    assert path.read_bytes() != (tmp_path / "whole.csv").read_bytes()


def test_another_run_does_not_go_on(broken_off):
    path, frames = broken_off
    good = {"movie": frames, "camera": CAMERA, "network": network(), "pixel_size_nm": 108.0, "progress": False}
    other = network()
    with torch.no_grad():
        other.head.bias += 1e-3  # type: ignore[operator]
    changes = {
        "movie": frames + 1, "camera": Camera(2.0, 100.0, 12.5, saturation=65535, integer=True), "network": other,
        "threshold": 0.3, "min_mass": 0.1, "window": 100, "precision": "bf16",
    }  # fmt: skip
    for name, value in changes.items():
        what = "movie" if name == "movie" else "run"
        with pytest.raises(ProgressMismatch, match=f"progress.json is of another {what}.*resume=False: {name} was"):
            localize_to_file(path, **{**good, name: value})
    localize_to_file(path, **{**good, "pixel_size_nm": 100.0})  # used only at the end


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".progress.json", b"", "is damaged"),
        (".progress.json", b'{"frames": 2}', "is damaged"),
        (".partial", b"short", "must hold the"),
        (".partial", None, "is damaged"),
        (".progress.json", "more frames", "is damaged: .* it was changed"),
    ],
)
def test_a_damaged_record(broken_off, suffix, content, message):
    path, frames = broken_off
    damaged = path.with_name(path.name + suffix)
    text = damaged.read_text() if suffix == ".progress.json" else ""
    damaged.unlink()
    if content == "more frames":  # nothing would be left to do, and the rows would pass for all of them
        damaged.write_text(text.replace('"frames": 2', '"frames": 9'))
    elif content is not None:
        damaged.write_bytes(content)
    with pytest.raises(ProgressMismatch, match=message):
        localize_to_file(path, frames, CAMERA, network(), 108.0, progress=False)
    assert localize_to_file(path, frames, CAMERA, network(), 108.0, resume=False, progress=False) > 0


def test_a_movie_that_was_exchanged_is_another_movie(tmp_path, monkeypatch):
    """Equal in size, first and last frame; one in between differs."""
    monkeypatch.setattr(localize, "FRAMES_AT_ONCE", 2)
    frames, path = movie().astype(np.float32), tmp_path / "locs.csv"
    frames[3, 4, 5] = math.nan
    with pytest.raises(ValueError, match="in frame 3"):
        localize_to_file(path, frames, CAMERA, network(), 108.0, progress=False)
    frames[3, 4, 5] = 100.0
    with pytest.raises(ProgressMismatch, match="movie was"):
        localize_to_file(path, frames, CAMERA, network(), 108.0, progress=False)


def test_one_process_writes_a_table(tmp_path):
    """Two runs into one file ended with 60 of 10,031 rows, and both said that all was well."""
    path = tmp_path / "locs.csv"
    with held(path), pytest.raises(ValueError, match=f"{path} is being written by process {os.getpid()} on .*: wait"):
        localize_to_file(path, movie(), CAMERA, network(), 108.0, progress=False)
    assert localize_to_file(path, movie(), CAMERA, network(), 108.0, progress=False) > 0
    assert [p.name for p in tmp_path.iterdir()] == ["locs.csv"]


def test_another_process_is_named_and_a_dead_one_does_not_block(tmp_path):
    path = tmp_path / "locs.csv"
    code = f"""
        import time
        from pathlib import Path
        from smlmtut._files import held
        with held(Path({str(path)!r})):
            print("held", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is being written by process {other.pid} on "):
            localize_to_file(path, movie(), CAMERA, network(), 108.0, progress=False)
        other.kill()
    assert localize_to_file(path, movie(), CAMERA, network(), 108.0, progress=False) > 0
    assert [p.name for p in tmp_path.iterdir()] == ["locs.csv"]


def test_rows_that_are_missing_are_found_before_the_table_is_written(tmp_path):
    """Whatever shortened the file: no table is better than half of one."""
    path = tmp_path / "locs.csv"
    progress_file = progress.ProgressFile(path, {}, False)
    progress_file.add(1, pd.DataFrame({name: [0.0, 1.0, 2.0] for name in progress.COLUMNS}))
    os.truncate(progress_file.partial, 40)
    with pytest.raises(ProgressMismatch, match="must have the 120 bytes of 3 rows and has 40"):
        progress_file.finish(100.0, (4, 4), 1)
    assert not path.exists()


def blocks_of(start: int = 0, stop: int = 6, broken: int | None = None):
    """Blocks of two frames, each with one localization and the sums 1 and 4; an error before frame `broken`."""
    for first in range(start, stop, 2):
        if first == broken:
            raise RuntimeError("broken")
        table = pd.DataFrame({name: [1.0, 2.0] for name in progress.COLUMNS}).assign(frame=[first, first + 1])
        yield first + 2, table, np.stack([np.ones((4, 5)), np.full((4, 5), 4.0)])


@pytest.mark.parametrize("broken", [0, 2, 4])
def test_run_to_file_adds_the_blocks_that_are_missing(tmp_path, broken, capsys):
    path = tmp_path / "locs.csv"

    def progress_file() -> progress.ProgressFile:
        return progress.ProgressFile(path, {"name": 1}, True, sums=np.zeros((2, 4, 5)), beside=image_paths(path))

    with pytest.raises(RuntimeError, match="broken"):
        run_to_file(blocks_of(broken=broken), progress_file(), 100.0, (6, 1, 3), range(6))
    assert not path.exists() and progress_file().frames == broken
    again = progress_file()
    run_to_file(blocks_of(again.frames), again, 100.0, (6, 1, 3), range(6))
    assert "6/6" in capsys.readouterr().err and again.rows == 6
    table = read_localizations(path, 100.0)
    assert table["frame"].tolist() == [0, 1, 2, 3, 4, 5] and table["u"].tolist() == [1, 2] * 3
    mean, sd = (imread(image) for image in image_paths(path))
    assert (mean == 3).all() and (sd == np.float32(12**0.5)).all() and mean.dtype == np.float32
    assert {p.name for p in tmp_path.iterdir()} == {"locs.csv", "locs.mean.tif", "locs.sd.tif"}


def test_run_to_file_without_sums_writes_no_images(tmp_path, capsys):
    path = tmp_path / "locs.hdf5"
    blocks = ((done, table) for done, table, _ in blocks_of())
    run_to_file(blocks, progress.ProgressFile(path, {}, True), 100.0, (6, 4, 3), range(6), progress=False)
    table = read_localizations(path)
    assert len(table) == 6 and table.attrs == {"height": 4, "width": 3, "frames": 6, "pixel_size_nm": 100.0}
    assert {p.name for p in tmp_path.iterdir()} == {"locs.hdf5", "locs.yaml"} and not capsys.readouterr().err


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 65535.0])
def test_bad_pixels_are_named(monkeypatch, value):
    monkeypatch.setattr(localize, "FRAMES_AT_ONCE", 2)
    frames = movie().astype(np.float32)
    frames[3, 4, 5] = frames[3, 6, 7] = value
    kind = "below the camera's saturation of 65535 ADU" if value == 65535 else "finite numbers"
    message = f"values that are {kind}, got {value:g} in frame 3, counted from 0, at row 4, column 5 \\(2 pixels"
    with pytest.raises(ValueError, match=message):
        table_of(frames, CAMERA, network())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"movie": np.zeros((20, 24))}, "movie must have 3 dimensions"),
        ({"movie": np.zeros((0, 20, 24))}, "movie must hold at least one frame"),
        ({"camera": Camera(torch.ones(64, 64))}, r"movie must have the camera maps' size \(64, 64\)"),
        ({"camera": Camera(torch.ones(5, 20, 24))}, r"camera must have numbers or \(H, W\) maps"),
        ({"window": 10}, "window must be larger than twice the margin of 5 px"),
        ({"window": 0}, "window must be a whole number"),
        ({"threshold": -1.0}, "threshold must be finite and not negative"),
        ({"threshold": math.nan}, "threshold must be finite and not negative"),
        ({"min_mass": -1.0}, "min_mass must be finite and not negative"),
        ({"pixel_size_nm": 0.0}, "pixel_size_nm must be finite and positive"),
        ({"precision": "half"}, "precision must be one of 'auto', 'no', 'bf16', 'fp16', got 'half'"),
        ({"path": "locs.txt"}, "path must end in .csv, .hdf5, .h5"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    good = {"movie": movie(), "camera": CAMERA, "network": network(), "pixel_size_nm": 108.0, "progress": False}
    path = tmp_path / change.pop("path", "locs.csv")
    with pytest.raises(ValueError, match=message):
        localize_to_file(path, **{**good, **change})
    assert not list(tmp_path.iterdir())


def test_start_must_be_a_frame_number():
    with pytest.raises(ValueError, match="start must be a whole number of at least 0, got -1"):
        table_of(movie(), CAMERA, network(), start=-1)


def test_positions_far_from_the_corner_keep_their_digits():
    frames = np.zeros((1, 700, 300), np.float32)
    frames[0, 650, 298] = 16
    found = table_of(frames, Camera(), Painted(), window=64)  # type: ignore[arg-type]
    assert found[["u", "v"]].to_numpy().tolist() == [[298.375, 650.375]]
