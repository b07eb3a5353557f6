"""What goes wrong outside: a second run, a full disk, a wrong clock, a movie that changes, files that were damaged.

Runs that are killed at every change of a file are in test_localize and test_uncertainty, training that is killed at
random steps and while it writes is in test_training.
"""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_localize import CAMERA, breaking_off, movie, network

from smlmtut._files import FileInUse, held
from smlmtut.io import read_localizations, read_map, read_movie, write_localizations, write_movie
from smlmtut.io.calibration import read_camera
from smlmtut.io.movies import Movie
from smlmtut.localize import ProgressMismatch, files, image_paths, localize_to_file
from smlmtut.localize import frames as reading
from smlmtut.localize import movie as localize
from smlmtut.localize.progress import COLUMNS, ProgressFile
from smlmtut.networks import pretrained

FRAMES, NETWORK = movie(6, (12, 12)), network()


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(localize, "FRAMES_AT_ONCE", 2)


def to_file(path: Path, frames: Movie | np.ndarray = FRAMES, **more) -> int:
    return localize_to_file(path, frames, CAMERA, NETWORK, 108.0, progress=False, **more)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> bytes:
    """The table of a run that nothing disturbs."""
    path = tmp_path_factory.mktemp("wanted") / "locs.csv"
    localize_to_file(path, FRAMES, CAMERA, NETWORK, 108.0, progress=False)
    return path.read_bytes()


# --- two runs at once -----------------------------------------------------------------------------------------------

OTHER = """
    import sys, time
    from pathlib import Path
    import torch
    from smlmtut.localize import frames as reading, movie as localize
    from test_faults import to_file

    torch.set_num_threads(1)
    localize.FRAMES_AT_ONCE = 2
    path, read = Path(sys.argv[1]), reading.read_frames

    def wait(movie, camera, first, last):
        if first == 2:
            path.with_name("started").touch()
            while not path.with_name("go").exists():
                time.sleep(0.01)
        return read(movie, camera, first, last)

    reading.read_frames = wait
    to_file(path)
"""


@contextmanager
def another_run(path: Path):
    """A process that writes path, and waits in its second block until there is a file "go"."""
    environment = {**os.environ, "PYTHONPATH": f"tests{os.pathsep}."}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(OTHER), str(path)], env=environment)
    try:
        while not path.with_name("started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_run_is_turned_away(tmp_path, wanted):
    """Before, both ended well, and their one file held a few rows of each."""
    path = tmp_path / "locs.csv"
    with another_run(path) as process:
        for resume in (True, False):
            with pytest.raises(FileInUse, match=rf"locs.csv is being written by process {process.pid} on \S+: wait"):
                to_file(path, resume=resume)
        assert to_file(tmp_path / "other.csv") > 0  # in the same folder
        (tmp_path / "go").touch()
        assert process.wait() == 0
    assert path.read_bytes() == wanted == (tmp_path / "other.csv").read_bytes()
    assert names(tmp_path) == {"locs.csv", "other.csv", "started", "go"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_the_lock_of_a_killed_run_is_none(tmp_path, wanted):
    path = tmp_path / "locs.csv"
    with another_run(path) as process:
        process.kill()
        process.wait()
    assert {"locs.csv.lock", "locs.csv.running", "locs.csv.progress.json"} < names(tmp_path)
    to_file(path)
    assert path.read_bytes() == wanted and names(tmp_path) == {"locs.csv", "started"}


def test_a_lock_holds_within_one_process_and_ends_with_an_error(tmp_path):
    path = tmp_path / "locs.csv"
    with pytest.raises(RuntimeError, match="broken"), held(path):
        with pytest.raises(FileInUse, match=f"process {os.getpid()} on"), held(path):
            pass
        path.with_name("locs.csv.running").write_bytes(b"\xff")
        with pytest.raises(FileInUse, match="by another process"), held(path):
            pass
        raise RuntimeError("broken")
    assert not names(tmp_path)
    with held(path):
        assert names(tmp_path) == {"locs.csv.lock", "locs.csv.running"}


def test_a_missing_folder_is_named_and_not_made(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        to_file(tmp_path / "none" / "locs.csv")
    assert caught.value.filename == str(tmp_path / "none") and not names(tmp_path)


def block(first: int, rows: int = 3) -> pd.DataFrame:
    return pd.DataFrame({name: np.arange(rows, dtype=float) for name in COLUMNS}).assign(frame=first)


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_rows_that_others_change_are_no_table(tmp_path, suffix):
    """Where a file system has no locks: the second run begins anew, and the first sees it at its next block."""
    path = tmp_path / f"locs{suffix}"
    path.write_bytes(b"old")
    first = ProgressFile(path, {}, True)
    first.add(1, block(0))
    second = ProgressFile(path, {}, False)
    second.add(1, block(0, 2))
    with pytest.raises(ProgressMismatch, match="partial is damaged, it must have the 120 bytes of 3 rows and has 80"):
        first.add(2, block(1))
    with pytest.raises(ProgressMismatch, match="is damaged, it must have the 120 bytes"):
        first.finish(108.0, (4, 4), 1)
    with pytest.raises(ProgressMismatch, match="is damaged, 1 of 5 frames are done"):
        second.finish(108.0, (4, 4), 5)
    assert path.read_bytes() == b"old"
    second.finish(108.0, (4, 4), 1)
    assert len(read_localizations(path, 108.0)) == 2


def test_images_of_a_run_with_other_rows_are_not_written(tmp_path):
    path = tmp_path / "locs.csv"
    run = ProgressFile(path, {}, True, sums=np.zeros((2, 4, 4)), beside=image_paths(path))
    for blocks, says in (([], "0 of 1 frames are done"), ([(1, block(0), np.ones((2, 4, 4)))], "the 120 bytes of 3")):

        def disturbed(blocks=blocks):
            yield from blocks
            run.partial.write_bytes(bytes(40))

        with pytest.raises(ProgressMismatch, match=says):
            files.run_to_file(disturbed(), run, 108.0, (1, 1, 1), range(1), progress=False)
        assert not any(image.exists() for image in image_paths(path))
        run.partial.write_bytes(b"")


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_a_table_with_too_few_rows_does_not_take_its_place(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"locs{suffix}"
    path.write_bytes(b"old")
    run = ProgressFile(path, {}, True)
    run.add(1, block(0))
    tables = run._tables
    monkeypatch.setattr(run, "_tables", lambda: (table[:-1] for table in tables()))
    with pytest.raises(ProgressMismatch, match=r"must get 3 rows, got 2"):
        run.finish(108.0, (4, 4), 1)
    assert path.read_bytes() == b"old" and ProgressFile(path, {}, True).rows == 3


# --- what is kept of a run, changed ---------------------------------------------------------------------------------


@pytest.fixture
def broken_off(tmp_path, monkeypatch) -> Path:
    """What a run left that ended after the first of three blocks."""
    path = tmp_path / "locs.csv"
    with breaking_off(monkeypatch, 3):
        to_file(path)
    return path


@pytest.mark.parametrize("change", [{"frames": 60}, {"frames": 6}, {"frames": 1}, {"rows": 1}, {"run": {}}, {"new": 1}])
def test_an_edited_record_is_damaged(broken_off, wanted, change):
    """Before, a record of more frames than the movie has gave the table of the first block, as if it were complete."""
    record = broken_off.with_name("locs.csv.progress.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(ProgressMismatch, match="progress.json is damaged: start again"):
        to_file(broken_off)
    assert not broken_off.exists()
    to_file(broken_off, resume=False)
    assert broken_off.read_bytes() == wanted


EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "drop", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)  # fmt: skip


def edited(content: bytes, edits) -> bytes:
    """Content after each of the edits: bytes written over it at a place (a share of its length), cut off there, left
    out, put in."""
    for kind, share, new in edits:
        i = min(int(share * len(content)), max(len(content) - 1, 0))
        end = {"flip": i + len(new), "cut": len(content), "drop": i + len(new), "insert": i}[kind]
        content = content[:i] + (new if kind in ("flip", "insert") else b"") + content[end:]
    return content


@pytest.mark.parametrize("suffix", [".partial", ".progress.json"])
def test_whatever_happens_to_the_record_no_other_table_comes_of_it(broken_off, wanted, suffix):
    file = broken_off.with_name(f"locs.csv{suffix}")
    left = {p: p.read_bytes() for p in broken_off.parent.iterdir()}

    @settings(max_examples=60)
    @given(EDITS)
    def runs(edits):
        for p, content in left.items():
            p.write_bytes(content)
        file.write_bytes(edited(left[file], edits))
        broken_off.unlink(missing_ok=True)
        try:
            to_file(broken_off)
        except ProgressMismatch:
            assert not broken_off.exists()
        else:
            assert broken_off.read_bytes() == wanted

    runs()


# --- another movie --------------------------------------------------------------------------------------------------


class Counting:
    """A movie that knows which of its frames were read."""

    def __init__(self, frames: int) -> None:
        self.shape, self.dtype, self.read = (frames, 2, 2), np.dtype("u2"), set()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice) -> np.ndarray:
        self.read.update(range(self.shape[0])[key])
        return np.zeros((1, 2, 2), np.uint16)


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 1000, 10**6])
def test_sixteen_frames_tell_one_movie_from_another(frames):
    """Reading all of a long movie would take as long as localizing it."""
    counting = Counting(frames)
    files.movie_identity(counting)  # type: ignore[arg-type]
    read = sorted(counting.read)
    assert len(read) == min(frames, 16) and read[0] == 0 and read[-1] == frames - 1
    assert max(np.diff(read), default=0) <= math.ceil(frames / 15)


def exchange(path: Path, frames: np.ndarray, mtime: bool) -> None:
    """Another file in place of a movie, with the same time of change or not."""
    before = path.stat()
    write_movie(path, frames)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (10**9 if mtime else 0)))


@pytest.mark.parametrize("change", ["a frame in the middle", "the time", "the size"])
def test_a_movie_that_was_exchanged_between_two_runs(tmp_path, monkeypatch, change):
    """Before, equal first and last frames were enough to put two movies into one table."""
    source, path = tmp_path / "movie.tif", tmp_path / "locs.csv"
    write_movie(source, FRAMES)
    with read_movie(source) as frames, breaking_off(monkeypatch, 3):
        to_file(path, frames)
    other = FRAMES.copy()
    other[2] = FRAMES[1] if change == "a frame in the middle" else FRAMES[2]
    exchange(source, other, change == "the time")
    if change == "the size":
        before = source.stat()
        source.write_bytes(source.read_bytes() + bytes(8))
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with read_movie(source) as frames:
        with pytest.raises(ProgressMismatch, match="progress.json is of another movie, continue that one, or start"):
            to_file(path, frames)
        assert not path.exists()
        assert to_file(path, frames, resume=False) > 0


@pytest.mark.parametrize("in_place", [True, False])
def test_a_movie_that_is_exchanged_during_a_run(tmp_path, monkeypatch, in_place):
    source, path, read = tmp_path / "movie.tif", tmp_path / "locs.csv", reading.read_frames
    write_movie(source, FRAMES)
    write_movie(tmp_path / "other.tif", FRAMES[[0, 1, 2, 3, 1, 5]])

    def exchanging(movie, camera, first, last):
        if first == 4 and in_place:
            source.write_bytes((tmp_path / "other.tif").read_bytes())
        elif first == 4:
            os.replace(tmp_path / "other.tif", source)
        return read(movie, camera, first, last)

    with read_movie(source) as frames, monkeypatch.context() as patch:
        patch.setattr(reading, "read_frames", exchanging)
        with pytest.raises(ProgressMismatch, match="movie must not change during a run"):
            to_file(path, frames)
    assert not path.exists()
    with read_movie(source) as frames, pytest.raises(ProgressMismatch, match="of another movie"):
        to_file(path, frames)


def test_a_clock_that_goes_back(tmp_path, monkeypatch):
    """No time is compared with another, or with now, but for equality."""
    source = tmp_path / "movie.tif"
    write_movie(source, FRAMES)
    for there in (10**9, 2**32 + 10**9):  # s: of the year 2001, and of 2137
        path = tmp_path / f"locs-{there}.csv"
        os.utime(source, (there, there))
        with read_movie(source) as frames:
            to_file(path, frames)
            whole = path.read_bytes()
            path.unlink()
            with breaking_off(monkeypatch, 3):
                to_file(path, frames)
            path.with_name(f"{path.name}.lock").touch()
            for file in tmp_path.glob(f"{path.name}.*"):
                os.utime(file, (2**33 - there, 2**33 - there))
            to_file(path, frames)
        assert path.read_bytes() == whole
    assert names(tmp_path) == {"movie.tif", "locs-1000000000.csv", "locs-5294967296.csv"}


# --- the disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB in memory, and a function that mounts it anew with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs to mount a tmpfs, as root: {getattr(error, 'stderr', error)}")

    mount("size=256k")
    yield disk, mount
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("suffix", [".csv", ".hdf5"])
def test_a_full_disk(small_disk, tmp_path, suffix):
    """Wherever a run runs out of space, what was there stays, and with more space it ends as if nothing had been."""
    disk, _ = small_disk
    path, whole, fill = disk / f"locs{suffix}", tmp_path / f"locs{suffix}", disk / "fill"
    to_file(whole)
    failed = 0
    for pages in range(64):
        for file in disk.iterdir():
            file.unlink()
        path.write_bytes(b"old")
        fill.write_bytes(bytes(4096 * (63 - pages)))
        try:
            to_file(path)
        except OSError as error:
            assert error.errno == errno.ENOSPC or "No space left" in str(error)
            assert path.read_bytes() == b"old"
            failed += 1
        else:
            break
        fill.unlink()
        to_file(path)
        pd.testing.assert_frame_equal(read_localizations(path, 108.0), read_localizations(whole, 108.0))
        assert names(disk) <= {path.name, "locs.yaml"}
    assert failed >= 5


def test_a_folder_in_which_nothing_can_be_written(small_disk, tmp_path):
    disk, mount = small_disk
    mount("remount,ro")
    with pytest.raises(OSError) as caught:
        to_file(disk / "locs.csv")
    assert caught.value.errno == errno.EROFS and caught.value.filename == str(disk / "locs.csv")
    assert not names(disk)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_in_which_the_user_may_not_write(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError) as caught:
        to_file(tmp_path / "locs.csv")
    assert caught.value.filename == str(tmp_path / "locs.csv") and not names(tmp_path)


# --- damaged files --------------------------------------------------------------------------------------------------


def write_table(path: Path) -> None:
    table = pd.DataFrame({"frame": [0, 0, 1, 3], "u": [1.5, 2, 3, 4], "v": [2.0, 3, 4, 5.25], "photons": 500.0})
    write_localizations(path, table, 108.0, (12, 12), 4)


def write_compressed(path: Path) -> None:
    tifffile.imwrite(path, FRAMES[:3], compression="zlib", photometric="minisblack", metadata={"axes": "TYX"})


def write_maps(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["gain"] = np.full((6, 6), 2.0)


def read_frames(path: Path) -> None:
    with read_movie(path) as frames:
        for part in (0, slice(None), -1):
            frames[part]


CAMERA_YAML = "gain: 2.0\noffset: 100\nread_variance: 20.5\nsaturation: 65535\ncrop: [128, 256]\npixel_size_nm: 108\n"
READERS = {  # name: file, how it is written and read, and after how many edits
    "tiff": ("movie.tif", lambda path: write_movie(path, FRAMES[:3]), read_frames, 400),
    "ome": ("movie.ome.tif", lambda path: write_movie(path, FRAMES[:3]), read_frames, 400),
    "zlib": ("movie.tif", write_compressed, read_frames, 400),
    "csv": ("locs.csv", write_table, lambda path: read_localizations(path, 108.0), 400),
    "hdf5": ("locs.hdf5", write_table, read_localizations, 400),
    "map": ("gain.h5", write_maps, read_map, 300),
    "yaml": ("camera.yaml", lambda path: path.write_text(CAMERA_YAML), read_camera, 400),
    "safetensors": ("net.safetensors", lambda path: pretrained.save(NETWORK, path), pretrained.load, 300),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_refused(tmp_path, kind):
    """Wherever bytes were changed, put in or left out, there is no error of a kind that the readers do not promise."""
    name, write, read, examples = READERS[kind]
    path = tmp_path / name
    write(path)
    read(path)
    content = path.read_bytes()

    @settings(max_examples=examples)
    @given(EDITS)
    def reads(edits):
        path.write_bytes(edited(content, edits))
        try:
            read(path)
        except Exception as error:
            ours = type(error) is ValueError or type(error).__module__.startswith("smlmtut")
            assert ours and re.search(r"\w{3}", str(error)), repr(error)

    reads()


def test_no_byte_of_shipped_weights_may_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    path = tmp_path / "net.safetensors"
    monkeypatch.setattr(pretrained, "SHA256", {"net": pretrained.save(NETWORK, path)})
    pretrained.load("net")
    content = path.read_bytes()

    @settings(max_examples=100)
    @given(EDITS)
    def loads(edits):
        path.write_bytes(edited(content, edits))
        if path.read_bytes() != content:
            with pytest.raises(pretrained.HashMismatch):
                pretrained.load("net")

    loads()
