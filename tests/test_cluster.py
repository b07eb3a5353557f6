"""Workers give the table of one process with one thread, to the last bit; and what is wrong with them is told."""

import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import NUMBERS, run
from test_localize import CAMERA, movie, network
from test_uncertainty import DOTS, Jitter, content, dots
from torch import Tensor

from smlmtut.cli.localize import _tell_time
from smlmtut.imaging.camera import Camera
from smlmtut.io import read_movie, write_movie
from smlmtut.localize import SamplingSettings, exact, files, image_paths, localize_to_file, uncertainty
from smlmtut.localize import movie as plain
from smlmtut.networks import pretrained
from smlmtut.networks.cddpm import ConditionalDiffusion

pytest.importorskip("distributed")
from distributed import Client, LocalCluster

from smlmtut.localize import cluster
from smlmtut.localize.cluster import AHEAD, computed, connected

LAX = exact.ExactSettings(chains=2, draws=8, thin=1, burn_in=2, attempts=1, r_hat=1e9, size=1e-9)  # trusts any chains
PLACES = [(5, 6), (12, 17)]


@pytest.fixture(scope="module")
def client():
    """Of two processes."""
    with connected(workers=2) as client:
        yield client


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Of two frames; movies of nine have five of them."""
    for module, name in ((plain, "FRAMES_AT_ONCE"), (uncertainty, "FRAMES_AT_ONCE"), (uncertainty, "EXACT_AT_ONCE")):
        monkeypatch.setattr(module, name, 2)


def to_file(path: Path, kind: str, frames: Any = None, client: Client | None = None, **more) -> list[bytes]:
    """The bytes of all files that a run leaves: plain, with uncertainty, or with chains."""
    given: dict[str, Any] = {"camera": CAMERA, "network": network(), "pixel_size_nm": 100.0, "progress": False}
    if kind != "plain":
        given |= {"camera": Camera(), "network": DOTS, "sampler": Jitter(0.8, 0.1), "settings": SamplingSettings(6)}
        given |= {"exact": LAX} if kind == "exact" else {}
    frames = frames_of(kind) if frames is None else frames
    assert localize_to_file(path, frames, client=client, **{**given, **more}) >= 10
    return [path.read_bytes()] if kind == "plain" else content(path)


def frames_of(kind: str) -> np.ndarray:
    return movie(9).astype(np.float32) if kind == "plain" else dots(9, (20, 24), PLACES)


# --- the same files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "sampled", "exact"])
def test_workers_write_the_files_of_one_process(client, tmp_path, kind):
    assert to_file(tmp_path / "workers.csv", kind, client=client) == to_file(tmp_path / "one.csv", kind)
    assert to_file(tmp_path / "part.csv", kind, client=client, start=3, stop=8) == to_file(
        tmp_path / "one.csv", kind, start=3, stop=8
    )
    names = {path.stem.partition(".")[0] for path in tmp_path.iterdir()}
    assert names == {"workers", "one", "part"} and len(list(tmp_path.iterdir())) == 3 * (1 if kind == "plain" else 3)


def test_movies_of_any_kind_and_maps(client, tmp_path):
    """A file that is read on demand, compressed or not, integers and tensors; and a camera with maps."""
    frames, generator = movie(9), torch.Generator().manual_seed(5)
    gain, offset, variance = (a + torch.rand(20, 24, generator=generator) for a in (2, 99, 12))
    maps = Camera(gain, offset, variance)
    wanted = to_file(tmp_path / "one.csv", "plain", frames, camera=maps)
    write_movie(tmp_path / "movie.tif", frames)
    with read_movie(tmp_path / "movie.tif") as file:
        for some in (file, frames, torch.from_numpy(frames.astype(np.int32))):
            assert to_file(tmp_path / "workers.csv", "plain", some, client, camera=maps) == wanted


def test_a_part_of_a_tensor_is_sent_alone():
    frames = torch.arange(1000.0).reshape(10, 10, 10)
    part = cluster._read(frames, 2, 4)
    assert isinstance(part, Tensor) and torch.equal(part, frames[2:4]) and part.untyped_storage().nbytes() == 800


@pytest.mark.parametrize("kind", ["plain", "sampled"])
@pytest.mark.parametrize("first", ["one", "workers"])
def test_a_run_goes_on_with_workers_or_without(client, tmp_path, monkeypatch, kind, first):
    """The first run ends at a pixel that is no number, which the worker names; what came before is kept."""
    monkeypatch.setattr(files, "FRAMES_HASHED", 2)  # the movie with and the one without that pixel are alike
    wanted, path, broken = to_file(tmp_path / "wanted.csv", kind), tmp_path / "locs.csv", frames_of(kind)
    broken[5, 3, 2] = np.nan
    runs = [None, client] if first == "one" else [client, None]
    with pytest.raises(ValueError, match="got nan in frame 5, counted from 0, at row 3, column 2"):
        to_file(path, kind, broken, runs[0])
    assert b'"frames": 4' in (tmp_path / "locs.csv.progress.json").read_bytes()
    read = []
    monkeypatch.setattr(cluster, "_read", lambda *args, now=cluster._read: (read.append(args[1]), now(*args))[1])
    assert to_file(path, kind, client=runs[1]) == wanted
    assert read == ([] if runs[1] is None else [4, 6, 8])


# --- what is sent, and what stays ---------------------------------------------------------------------------------


class Counted:
    """Localizes nothing, and notes in a file whenever a process receives it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        with open(self.file, "a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, frames: Any, start: int, stop: int):
        time.sleep(0.02)  # long enough that both workers get some
        yield stop, os.getpid(), torch.get_num_threads(), float(frames[start:stop].sum())


def test_networks_are_sent_once_to_each_worker_which_computes_with_one_thread(client, tmp_path):
    frames = np.arange(40.0).reshape(40, 1, 1)
    client.run(torch.set_num_threads, 2)
    assert set(client.run(os.getenv, "MALLOC_TRIM_THRESHOLD_").values()) == {os.getenv("MALLOC_TRIM_THRESHOLD_")}
    done, processes, threads, sums = zip(
        *computed(client, Counted(tmp_path / "sent"), frames, [(i, i + 1) for i in range(40)]), strict=True
    )
    assert done == tuple(range(1, 41)) and sums == tuple(range(40)) and set(threads) == {1}
    sent = (tmp_path / "sent").read_text().split()
    assert sorted(sent) == sorted(map(str, set(processes))) and len(sent) == 2 and str(os.getpid()) not in sent


def test_few_blocks_are_in_flight(client, tmp_path):
    """However long the movie and however slow the one who takes the results."""
    taken = 0

    def ranges():
        nonlocal taken
        for taken in range(1, 31):
            yield taken - 1, taken

    blocks = computed(client, Counted(tmp_path / "sent"), np.zeros((30, 1, 1)), ranges())
    for yielded, _ in enumerate(blocks):
        time.sleep(0.05 if yielded < 3 else 0)
        assert taken == min(yielded + 2 * AHEAD, 30)


def left(client: Client) -> Any:
    """Tasks that the scheduler knows, and functions that it keeps for workers."""
    return client.run_on_scheduler(
        lambda dask_scheduler: (len(dask_scheduler.tasks), len(dask_scheduler.worker_plugins))
    )


def test_nothing_is_left_on_the_cluster(client, tmp_path):
    """After a run that ended in the middle."""
    before = left(client)[1]
    blocks = computed(client, Counted(tmp_path / "sent"), np.zeros((30, 1, 1)), [(i, i + 1) for i in range(30)])
    next(blocks)
    assert left(client)[0] >= 2 and left(client)[1] == before + 1
    blocks.close()
    for _ in range(100):
        if left(client) == (0, before):
            break
        time.sleep(0.05)
    assert left(client) == (0, before)


def test_large_blocks_are_sent_without_a_warning(client, tmp_path):
    frames = np.ones((2, 2048, 2048), np.float32)  # 16 MiB each
    sums = [block[-1] for block in computed(client, Counted(tmp_path / "sent"), frames, [(0, 1), (1, 2)])]
    assert sums == [2048**2, 2048**2]


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_another_version_is_refused(client, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "9.9")
    wanted = r"^tcp://127.0.0.1:\d+ must have smlmtut 9.9, as this process has, got \d"
    with pytest.raises(ValueError, match=wanted):
        to_file(tmp_path / "locs.csv", "plain", client=client)
    with pytest.raises(ValueError, match="workers must have smlmtut 9.9, as the process that asks, got "):
        monkeypatch.setattr(cluster, "check_versions", lambda client: None)  # as where a worker comes late
        to_file(tmp_path / "locs.csv", "plain", client=client)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(ValueError, match="must have torch 1.0, as this process has, got 2"):
        to_file(tmp_path / "locs.csv", "plain", client=client)
    assert not (tmp_path / "locs.csv").exists()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """`smlmtut localize` with a movie of nine frames and a small network; to be given a name, and more options."""
    folder = tmp_path_factory.mktemp("cluster")
    write_movie(folder / "movie.tif", movie(9))
    pretrained.save(network(), folder / "weights.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pretrained.save(ConditionalDiffusion(channels=(4, 4)), folder / "diffusion.safetensors")
    given = ["--pixel-size-nm", 108, *NUMBERS, "--weights", folder / "weights.safetensors", "--precision", "no"]

    def localize(name: str, *more: object, code: int = 0) -> str:
        return run("localize", folder / "movie.tif", "-o", folder / name, *given, *more, code=code)

    return localize, folder


def test_the_command_with_a_scheduler_that_runs(client, command):
    localize, folder = command
    localize("one.csv", "--quiet")
    text = localize("same.csv", "--scheduler", client.cluster.scheduler_address)
    assert "9/9" in text and "frame/s" in text and "wrote" in text
    assert (folder / "same.csv").read_bytes() == (folder / "one.csv").read_bytes()


def test_the_command_with_workers_of_its_own(command):
    """And with images."""
    localize, folder = command
    options = ["--uncertainty", "--samples", 2, "--posterior", folder / "diffusion.safetensors", "--quiet"]
    localize("one.csv", *options)
    localize("workers.csv", *options, "--workers", 2)
    for one, same in zip(image_paths(folder / "one.csv"), image_paths(folder / "workers.csv"), strict=True):
        assert one.read_bytes() == same.read_bytes()
    assert (folder / "one.csv").read_bytes() == (folder / "workers.csv").read_bytes()


@pytest.mark.parametrize(("workers", "told"), [(None, "0:16:40"), (0, "0:16:40"), (1, "0:16:40"), (4, "0:04:10")])
def test_workers_share_the_time_that_is_told(monkeypatch, capsys, workers, told):
    """100 frames of ten seconds, timed with one thread where workers have one."""
    clock, threads = 0.0, []

    def localize_one(frame: int):
        nonlocal clock
        clock += 10
        threads.append(torch.get_num_threads())
        yield frame

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    torch.set_num_threads(2)
    _tell_time(range(100), localize_one, workers)
    after = torch.get_num_threads()
    torch.set_num_threads(1)
    assert f"100 frames, about 10 s a frame, in all {told} h" in capsys.readouterr().err
    assert threads == [2 if workers is None else 1] * 2 and after == 2


def test_workers_may_come_late(command):
    """As on a cluster where they wait for their turn."""
    localize, folder = command
    localize("one.csv", "--quiet")
    empty: Any = LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    with empty:
        threading.Timer(1.0, empty.scale, [1]).start()
        text = localize("late.csv", "--scheduler", empty.scheduler_address, "--quiet")
    assert text.startswith(f"waiting for the first worker of {empty.scheduler_address}\n") and "wrote" in text
    assert (folder / "late.csv").read_bytes() == (folder / "one.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", 0], "--workers must be a whole number of at least 1, got 0"),
        (["--workers", -2], "--workers must be a whole number of at least 1, got -2"),
        (["--workers", 2, "--scheduler", "tcp://a:1"], "one of --workers and --scheduler must be given, got 2 and tcp"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler must be .* got 'tcp://127.0.0.1:1': no answer in 0.5 s"),
        (["--scheduler", "nobody"], "--scheduler must be .* got 'nobody': missing port"),
        (["--scheduler", "no://one:3"], "--scheduler must be .* got 'no://one:3': unknown address scheme 'no'"),
    ],
)
def test_workers_that_cannot_be(command, monkeypatch, options, message):
    localize, folder = command
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    before = set(folder.iterdir())
    text = localize("bad.csv", *options, code=2)
    assert text.count("\n") == 1 and set(folder.iterdir()) == before
    assert re.match(f"error: {message}", text), text


def test_an_address_where_something_else_answers(command, monkeypatch):
    localize, _ = command
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        text = localize("bad.csv", "--scheduler", address, code=2)
    assert text.startswith("error: --scheduler must be") and text.endswith(f"got '{address}': no answer in 0.5 s\n")


def test_without_dask_the_extra_is_named(command, monkeypatch):
    localize, _ = command
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "smlmtut.localize.cluster")
    text = localize("bad.csv", "--workers", 2, code=2)
    assert text.startswith("error: --workers and --scheduler: workers need dask.distributed, pip install 'smlmtut[clu")


# --- workers that die ---------------------------------------------------------------------------------------------


class Deadly(Jitter):
    """Kills its process at the first call of all, which a file remembers; at every call where there is no folder."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(0.8, 0.1)
        self.folder = folder

    def __call__(self, *args: Any) -> Tensor:
        if self.folder is None or not (self.folder / "dead").exists():
            if self.folder is not None:
                (self.folder / "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*args)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_that_is_killed_in_a_block_changes_nothing(client, tmp_path):
    """Its own block, and those that waited there, come out as ever; a new process takes its place."""
    (tmp_path / "files").mkdir()
    wanted = to_file(tmp_path / "wanted.csv", "sampled")
    before = set(client.run(os.getpid).values())
    found = to_file(tmp_path / "files" / "locs.csv", "sampled", client=client, sampler=Deadly(tmp_path))
    assert (tmp_path / "dead").exists() and found == wanted
    client.wait_for_workers(2)
    assert len(before & set(client.run(os.getpid).values())) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_block_that_kills_every_worker_is_an_error(client, tmp_path):
    def failures(number: int, dask_scheduler: Any = None) -> int:
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, number
        return before

    allowed = client.run_on_scheduler(failures, 0)
    try:
        with pytest.raises(OSError, match="workers must live, give them more memory or time: Attempted to run task"):
            to_file(tmp_path / "locs.csv", "sampled", client=client, sampler=Deadly(None))
    finally:
        assert allowed == 3 and client.run_on_scheduler(failures, allowed) == 0
