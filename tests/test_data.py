"""Fetching: the folder first, then the cache, then the origin; never a file with another hash."""

import hashlib
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from smlmtut import data
from smlmtut._files import HashMismatch
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons

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


# -- exact posteriors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", data.KINDS)
def test_draws_agree_with_the_moments_of_all_draws_and_with_their_certificate(kind):
    """64 thinned draws against mean and sd of all: a wrong order of frames, axes or columns would be many sd off."""
    found = data.reference_posteriors("dev", kind)
    frames, draws, most = found["draw_u"].shape
    assert draws == 64 and found["adu"].shape == (frames, 16, 16) and found["adu"].dtype == np.uint16
    u, v, photons = (torch.from_numpy(found[f"draw_{name}"]).reshape(-1, most) for name in ("u", "v", "photons"))
    y = kde_image(Emitters(u, v, photons, photons > 0), (16, 16)).reshape(frames, 64, 64, 64).double()
    mean, sd = (torch.from_numpy(found[name].astype(np.float64)) for name in ("mean", "sd"))
    bright = sd > 0.05
    z = (y.mean(1) - mean)[bright] / (sd[bright] / 8)
    assert 0.8 < float(z.square().mean()) < 1.25 and float(z.abs().max()) < 8
    assert float(found["r_hat"].max()) <= 1.01 and float(found["size"].min()) >= 400
    np.testing.assert_allclose(found["p_inside"].sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", data.KINDS)
def test_the_frames_are_those_of_their_truth(kind):
    """χ² of the frame under the expected light of the truth: 1 for each pixel. Transposed, it would be far more."""
    found = {name: torch.from_numpy(x.astype(np.float64)) for name, x in data.reference_posteriors("dev", kind).items()}
    camera = Camera(found["gain"], found["offset"], found["read_variance"])
    x, variance = to_photoelectrons(found["adu"], camera), torch.as_tensor(camera.read_variance_electrons)
    photons = found["truth_photons"]
    truth = Emitters(found["truth_u"], found["truth_v"], photons, photons > 0)
    rate = expected_photons(truth, PSF(found["sigma"][:, None]), (16, 16), found["background"])
    chi_square = ((x - rate).square() / (rate + variance)).mean()
    assert float(chi_square) == pytest.approx(1, abs=5 * (2.5 / x.numel()) ** 0.5)


def test_posteriors_of_another_kind_or_bytes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="kind must be one of 'lone', 'pair', 'sparse', 'crowded', got 'triple'"):
        data.reference_posteriors("dev", "triple")
    with pytest.raises(ValueError, match="part must be one of 'dev', 'test', got 'held'"):
        data.reference_posteriors("held", "pair")
    changed = bytearray(data.POSTERIORS.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "posteriors.h5").write_bytes(changed)
    monkeypatch.setattr(data, "POSTERIORS", tmp_path / "posteriors.h5")
    with pytest.raises(HashMismatch, match="must have the SHA-256"):
        data.reference_posteriors("dev", "pair")
