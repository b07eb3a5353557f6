"""Fetching: the folder first, then the cache, then the origin; never a file with another hash."""

import hashlib
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from smlmtut import data

TOY = b"the bytes of a small file\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A source `toy.bin`, served from tmp_path/origin, cached in tmp_path/cache; returns (server, source)."""
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "toy.bin").write_bytes(TOY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(origin)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    source = data.Source("toy.bin", "", "", "toy.bin", "", hashlib.sha256(TOY).hexdigest(), len(TOY), "", "")
    monkeypatch.setitem(data.SOURCES, "toy.bin", source)
    monkeypatch.setattr(data.Source, "url", f"http://127.0.0.1:{server.server_port}/toy.bin")
    monkeypatch.setattr(data.pooch, "os_cache", lambda project: tmp_path / "cache")
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    yield server, source
    server.shutdown()
    thread.join()
    server.server_close()


def stop(server):
    server.shutdown()
    server.server_close()


def real(name):
    try:
        return data.fetch(name)
    except ConnectionError:
        pytest.skip(f"{name} is not here: no network, and SMLMTUT_DATA does not name its folder")


def test_the_folder_comes_first_and_needs_no_network(toy, monkeypatch, tmp_path):
    server, _ = toy
    stop(server)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "toy.bin").write_bytes(TOY)
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(folder))
    assert data.fetch("toy.bin") == folder / "toy.bin"


def test_download_then_cache_without_network(toy, monkeypatch, tmp_path):
    server, _ = toy
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path))  # a folder without the file is no obstacle
    first = data.fetch("toy.bin")
    assert first.read_bytes() == TOY and first.parent == tmp_path / "cache"
    stop(server)
    assert data.fetch("toy.bin") == first


def test_a_download_prints_nothing(toy, caplog):
    # pooch tells of it on stderr, and a chapter that prints there fails the book
    logger = data.pooch.get_logger()
    logger.addHandler(caplog.handler)
    try:
        data.fetch("toy.bin")
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []


def test_a_damaged_cache_is_fetched_again(toy, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "toy.bin").write_bytes(b"damaged")
    assert data.fetch("toy.bin").read_bytes() == TOY


def test_no_network_says_which_file_where_from_and_what_helps(toy):
    server, source = toy
    stop(server)
    with pytest.raises(ConnectionError) as error:
        data.fetch("toy.bin")
    for part in ("toy.bin", source.url, "SMLMTUT_DATA"):
        assert part in str(error.value)


def test_a_wrong_download_names_both_hashes_and_is_not_kept(toy, tmp_path):
    _, source = toy
    (tmp_path / "origin" / "toy.bin").write_bytes(b"another version")
    with pytest.raises(data.HashMismatch) as error:
        data.fetch("toy.bin")
    assert source.sha256 in str(error.value)
    assert hashlib.sha256(b"another version").hexdigest() in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wrong_file_in_the_folder_names_both_hashes(toy, monkeypatch, tmp_path):
    _, source = toy
    (tmp_path / "toy.bin").write_bytes(b"another version")
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(data.HashMismatch) as error:
        data.fetch("toy.bin")
    for part in (str(tmp_path / "toy.bin"), source.sha256, hashlib.sha256(b"another version").hexdigest()):
        assert part in str(error.value)


@pytest.mark.parametrize("source", data.SOURCES.values(), ids=lambda source: source.name)
def test_every_source_is_fixed_to_a_commit_a_hash_and_a_licence(source):
    assert re.fullmatch("[0-9a-f]{40}", source.commit)
    assert re.fullmatch("[0-9a-f]{64}", source.sha256)
    assert source.commit in source.url and " " not in source.url and source.url.startswith("https://")
    assert source.licence in ("MIT", "CC0")
    assert source.title and source.unknown
    assert real(source.name).stat().st_size == source.size


def test_real_maps_have_the_medians_their_description_states():
    real("gain.hdf5")
    maps = data.calibration_maps()
    assert {m.shape for m in maps.values()} == {(700, 700)}
    assert {m.dtype for m in maps.values()} == {np.dtype(np.float64)}
    noise = np.sqrt(maps["read_variance"]) / maps["gain"]
    # each figure within half a unit of the last digit that is stated
    assert np.median(maps["gain"]) == pytest.approx(2.035, abs=5e-4)
    assert np.median(maps["offset"]) == pytest.approx(113.34, abs=5e-3)
    assert np.median(maps["read_variance"]) == pytest.approx(22.3, abs=0.05)
    assert np.median(noise) == pytest.approx(2.32, abs=5e-3)
    assert np.quantile(noise, 0.99) == pytest.approx(8.5, abs=0.05)
    assert noise.max() == pytest.approx(28.9, abs=0.05)


def test_real_movie_has_the_range_its_description_states():
    real("sptnet_af647_slb.tif")
    movie = data.af647_movie()
    assert movie.shape == (30, 64, 64) and movie.dtype == np.float32
    # within half a unit of the last digit that is stated
    np.testing.assert_allclose([movie.min(), movie.max(), movie.mean()], [-19.6, 49.8, 3.5], rtol=0, atol=0.05)
