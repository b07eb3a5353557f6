"""Files that the book works on: fetched from their origin by name and SHA-256, or read from a folder."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
import pooch

from . import io
from ._files import HashMismatch
from ._validate import choice

FOLDER_VARIABLE = "SMLMTUT_DATA"
POSTERIORS = Path(__file__).parent / "reference" / "posteriors.h5"
POSTERIORS_SHA256 = "789e85e578f468fb31f61b3a67cc8d3efc49768d90f3927fac19faa8d06e9865"
RESULTS = Path(__file__).parent / "results"
# columns of experiment.npz: a value is whole / scale − offset; probability counts samples, error is in nm
PACKED = {
    "frame": (0.0, 1.0, np.uint16), "u": (0.5, 500.0, np.uint16), "v": (0.5, 500.0, np.uint16),
    "u_sd": (0.0, 250.0, np.uint8), "v_sd": (0.0, 250.0, np.uint8), "probability": (0.0, 1.0, np.uint8),
    "height": (0.0, 100.0, np.uint8), "error": (0.0, 1.0, np.uint8),
}  # fmt: skip
PARTS, KINDS = ("dev", "test"), ("lone", "pair", "sparse", "crowded")


@dataclass(frozen=True)
class Source:
    """Where a file comes from, its licence, and what its authors do not say about it.

    repository, path, commit: of the public GitHub repository that holds it; sha256: of the file's bytes.
    size: their number.
    """

    name: str
    title: str
    repository: str
    path: str
    commit: str
    sha256: str
    size: int
    licence: str
    unknown: str

    @property
    def url(self) -> str:
        """Address of exactly this version of the file."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{quote(self.path)}"


def _calibration_map(name: str, title: str, sha256: str) -> Source:
    return Source(
        name=name,
        title=f"sCMOS calibration, {title}, 700 x 700 pixels",
        repository="schwille-paint/picasso_addon",
        path=f"picasso_addon/maps/{name}",
        commit="d92660d133bcdfb313c538fa7b19bd4fa3f83edd",
        sha256=sha256,
        size=3_922_048,
        licence="MIT",
        unknown="the model of the camera, its exposure time, and where on the sensor the region lies",
    )


_SOURCES = (
    Source(
        name="sptnet_af647_slb.tif",
        title="Single AF647 molecules on a supported lipid bilayer, 30 frames of 64 x 64 pixels",
        repository="HuanglabPurdue/SPTnet",
        path="Example testdata/Example_data_SA-AF647_on_SLB.tif",
        commit="f34cc2a9195dd94a9e81d57ad81f8da102381910",
        sha256="a75a5a5be32d1f5f0c68eb320fe56e6b0d55c94c704e4be9e2e5815a1cfa3295",
        size=495_846,
        licence="MIT",
        unknown="the camera, the pixel size, the exposure time and the unit of the values; "
        "an offset has been subtracted from them",
    ),
    _calibration_map(
        "gain.hdf5",
        "gain in ADU per photo-electron",
        "0842c598522c8f1183e634fffd9bf7e81bf9dfc847b2edb445cee81e46220fbd",
    ),
    _calibration_map(
        "offset.hdf5",
        "offset in ADU",
        "c874ce832514bdf19a6f16027b46e45af6297a122ca8791989ac4f1accbe3976",
    ),
    _calibration_map(
        "readvar.hdf5",
        "read variance in ADU squared",
        "3ef77136337ecbabf4cc8a4dbe887f424093fdf4ce574b2b9cb6bc5cb2348564",
    ),
    Source(
        name="thunderstorm_3d.csv",
        title="Localizations in three dimensions, in ThunderSTORM's columns, 11 195 rows",
        repository="csoeller/PYME-SMLM-import-tests",
        path="ThunderSTORM/ThunderSTORM_TS3D.csv",
        commit="0be31879d7b7bed91e5c16f246d5fb37007c0699",
        sha256="665a28b2fad69dbfd902e4945df04667f876d33a91167614c280065212041a29",
        size=852_551,
        licence="CC0",
        unknown="the sample, the camera and its pixel size",
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _SOURCES}


def fetch(name: str) -> Path:
    """Path of one of SOURCES on this machine, its SHA-256 verified.

    Looks in the folder named by the environment variable SMLMTUT_DATA, then in pooch's cache for this user,
    then downloads the file from its origin into that cache.
    Raises ValueError for an unknown name or where SMLMTUT_DATA names no folder, HashMismatch (a ValueError)
    where the bytes differ, ConnectionError where the file is in neither place and cannot be downloaded.
    """
    source = SOURCES[choice("name", name, tuple(SOURCES))]
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        if not Path(folder).is_dir():
            raise ValueError(f"{FOLDER_VARIABLE} must name a folder that exists, got {folder!r}")
        if (Path(folder) / name).is_file():
            return _verified(Path(folder) / name, source)
    return _from_cache_or_origin(source)


def calibration_maps() -> dict[str, np.ndarray]:
    """The real sCMOS maps, for Camera(**calibration_maps()).

    Returns gain (ADU/e-), offset (ADU) and read_variance (ADU²), each (700, 700) float64.
    """
    return io.read_calibration(*(fetch(name) for name in ("gain.hdf5", "offset.hdf5", "readvar.hdf5")))


def af647_movie() -> np.ndarray:
    """The real movie of single molecules: (30, 64, 64) float32.

    An offset has been subtracted. The authors state neither the unit nor the camera nor the pixel size.
    """
    with io.read_movie(fetch("sptnet_af647_slb.tif")) as movie:
        return movie[:]


def reference_posteriors(part: str, kind: str) -> dict[str, np.ndarray]:
    """Frames with draws from their exact posterior; how they were made: `smlmtut/reference/posteriors.md`.

    part: "dev", for choosing a method, or "test", for judging it once. kind: "lone", "pair", "sparse" or "crowded".
    Returns, for F frames, arrays by name. adu (F, 16, 16) uint16; gain, offset, read_variance (F, 16, 16), for Camera.
    truth_u, truth_v, truth_photons (F, E), background, sigma (F,): of the simulation. draw_u, draw_v, draw_photons
        (F, 64, M), draw_background, draw_sigma (F, 64): draws from p(K, u, v, N, b, σ | x); px and photo-electrons, N
        = 0 where there is no emitter. mean, sd (F, 64, 64) float16: of the KDE y, from all draws of the chains.
    p_inside (F, K): probabilities of 0, 1, … emitters inside the frame.
    r_hat, size, disagreement, at_cap, attempt (F,): the certificate.
    Raises ValueError for an unknown part or kind, or one that the file does not hold; HashMismatch for a file that was
    changed.
    """
    choice("part", part, PARTS)
    choice("kind", kind, KINDS)
    digest = hashlib.sha256(POSTERIORS.read_bytes()).hexdigest()
    if digest != POSTERIORS_SHA256:
        raise HashMismatch(
            f"{POSTERIORS} must have the SHA-256 {POSTERIORS_SHA256}, got {digest}: install the package again"
        )
    with h5py.File(POSTERIORS) as file:
        group = file.get(f"{part}/{kind}")
        if not isinstance(group, h5py.Group):
            raise ValueError(f"part must be one that the file holds for {kind!r}, {sorted(file)}, got {part!r}")
        return {name: np.asarray(values) for name, values in group.items()}


def results(name: str) -> dict[str, Any]:
    """A table that a benchmark wrote and that chapters show, as it stands in `smlmtut/results/NAME.json`.

    Raises ValueError for a name that is not there.
    """
    stored = {path.stem: path for path in sorted(RESULTS.glob("*.json"))}
    return json.loads(stored[choice("name", name, tuple(stored))].read_text(encoding="utf-8"))


def experiment(name: str) -> dict[str, np.ndarray]:
    """What `localize` found in a simulated movie of chapter 12: "movie", or "dense", 3 molecules per µm².

    Returns frame, u, v, u_sd, v_sd, probability and height, (N,), as in the tables of `localize`, to .001 px, .002 px
    and .005; error (N,), nm: the distance to the molecule, to .5 nm, NaN where none is within 100 nm. For "movie" also
    truth_u, truth_v (M,), px: all molecules; drift (T, 2), px.
    Raises ValueError for another name.
    """
    choice("name", name, ("movie", "dense"))
    out: dict[str, np.ndarray] = {}
    with np.load(RESULTS / "experiment.npz") as file:
        for column, (offset, scale, _) in PACKED.items():
            out[column] = file[f"{name} {column}"] / scale - offset
        if name == "movie":
            out |= {f"truth_{axis}": file[f"truth {axis}"] / 100 - 0.5 for axis in "uv"}
            out["drift"] = file["drift"].astype(float)
    out["frame"] = out["frame"].astype(np.int64)
    out["probability"] /= results("experiment")[name]["samples"]
    for column, none in (("u_sd", 0), ("v_sd", 0), ("error", 255)):
        out[column] = np.where(out[column] == none, np.nan, out[column])
    return out


def _verified(path: Path, source: Source) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise HashMismatch(
            f"{path} must have the SHA-256 {source.sha256}, got {digest}: it is damaged or another version; "
            f"delete it or replace it by {source.url}"
        )
    return path


def _from_cache_or_origin(source: Source) -> Path:
    cache = pooch.os_cache("smlmtut")
    # otherwise it reports a download on stderr, which would show on the reader's page
    pooch.get_logger().setLevel("WARNING")
    try:
        path = pooch.retrieve(source.url, known_hash=f"sha256:{source.sha256}", fname=source.name, path=cache)
    except PermissionError:  # no access to the cache's folder; pooch's message names it
        raise
    except OSError as error:  # the errors of requests are OSErrors
        raise ConnectionError(
            f"{source.name} could not be downloaded from {source.url} ({error}). Where there is no network, "
            f"put the file in a folder and name that folder in the environment variable {FOLDER_VARIABLE}."
        ) from error
    except ValueError as error:  # the hash is wrong; pooch has deleted the download
        raise HashMismatch(f"{source.url} must have the SHA-256 {source.sha256}: {error}") from error
    return Path(path)
