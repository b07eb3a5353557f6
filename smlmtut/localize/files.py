"""A movie in, files out: the table of its localizations, and with a sampler two images."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from .. import __version__
from .._files import held
from .._validate import positive
from ..imaging.camera import Camera
from ..io.movies import Movie, write_image
from ..io.scene_file import SceneDescription
from ..io.tables import table_suffix
from ..networks.deepstorm import DeepSTORM
from ..networks.precision import chosen_precision
from . import movie as plain
from . import uncertainty
from .check import OUTSIDE, MovieCheck, check_movie
from .exact import EXACT, ExactSettings
from .frames import Frames, block_ranges, checked_stop, movie_shape
from .progress import COLUMNS, ProgressFile, ProgressMismatch
from .samples import KDESampler, SamplingSettings

if TYPE_CHECKING:
    from distributed import Client

FRAMES_HASHED = 16  # spread over the movie, both ends among them: reading all would take as long as the run


def localize_to_file(
    path: str | Path,
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    pixel_size_nm: float,
    threshold: float = 0.25,
    min_mass: float = 0.0,
    start: int = 0,
    stop: int | None = None,
    window: int = plain.WINDOW,
    precision: str = "no",
    resume: bool = True,
    progress: bool = True,
    sampler: KDESampler | None = None,
    settings: SamplingSettings | None = None,
    sampler_name: str = "",
    exact: ExactSettings | None = None,
    inspect: Callable[[MovieCheck], None] | None = None,
    scenes: Mapping[str, SceneDescription] | None = None,
    client: "Client | None" = None,
) -> int:
    """Localize a movie into a file, and return the number of localizations.

    path: .csv (ThunderSTORM's columns, nm, frames from 1) or .hdf5 (Picasso's, px, frames from 0); height and mass
        keep their names. The file appears at the end. Until then PATH.partial and PATH.progress.json lie beside it,
        and a run that was interrupted at any moment, or killed, continues from there and ends with the same file.
    pixel_size_nm: side of a camera pixel. resume: False starts again from the first frame. progress: show a bar.
    start, stop: frames `start` … `stop` − 1 alone; None, to the last. Their numbers are those of the movie.
    sampler: None, or what draws samples. With it the table has the columns of `localize_with_uncertainty`: standard
        deviations in ThunderSTORM's uncertainty_x and uncertainty_y or Picasso's lpx and lpy, and probability. Two
        images appear beside the table (`image_paths`), float32, f pixels to a camera pixel: the sum over the frames
        of the samples' mean, and the standard deviation of that sum. In it the variances of the frames add, since
        their photons are independent.
    settings: for the sampler; None, the defaults. sampler_name: a name or a hash that tells this sampler from others;
        a run continues only with the same one. exact: as in `localize_with_uncertainty`, with its three columns.
    inspect: None, or what is shown the result of `check_movie` before the first frame, to print its problems or to
        raise. Where there are any, the table gets a column outside_scene of ones, and no probability is above what the
        check allows. With None the movie is not checked. scenes: of the weights, as in `check_movie`.
    client: None, or of a dask cluster whose workers compute the blocks, see `cluster.connected`. The files are
        those of one process with one thread, and a run may go on with workers or without, whichever it began with.
    Others: as in `localize_movie`. Memory does not grow with the length of the movie.
    Raises ProgressMismatch (a ValueError) where the interrupted run was a different one, what it left is damaged, or
        the movie changes during the run; FileInUse (a ValueError) where another run is writing the same file;
        FileNotFoundError where there is no folder for it; ValueError for settings without a sampler; and what
        `localize_movie` or `localize_with_uncertainty` raises.
    """
    path = Path(path)
    table_suffix(path)
    positive("pixel_size_nm", pixel_size_nm)
    if sampler is None and (settings is not None or sampler_name or exact is not None):
        raise ValueError("settings, sampler_name and exact must be None, '' and None where there is no sampler")
    shape = movie_shape(movie, camera)
    stop = checked_stop(start, stop, shape[0], least=1)
    # the one that "auto" stands for on this device: a run must not continue with another
    precision = chosen_precision(precision, network.head.weight.device)
    options: dict[str, Any] = {
        "threshold": float(threshold), "min_mass": float(min_mass), "stop": stop,
        "window": window, "precision": precision,
    }  # fmt: skip
    run: dict[str, Any] = {"start": start} | identity(movie, camera, network) | options | {"blocks": plain.BLOCK_SIZES}
    localize = partial(plain.localize_movie, camera=camera, network=network, **options)
    limits = plain.FRAMES_AT_ONCE, plain.PIXELS_AT_ONCE
    images: dict[str, Any] = {"columns": COLUMNS}
    if sampler is not None:
        settings = settings or SamplingSettings()
        run |= {f"sampling {name}": value for name, value in asdict(settings).items()}
        run |= {"sampler": sampler_name, "blocks": uncertainty.BLOCK_SIZES}
        run |= {} if exact is None else {f"exact {name}": value for name, value in asdict(exact).items()}
        given = {"sampler": sampler, "settings": settings, "exact": exact}
        localize = partial(uncertainty.localize_with_uncertainty, camera=camera, network=network, **given, **options)
        limits = uncertainty.block_limits(exact)
        dark = np.zeros((2, network.factor * shape[1], network.factor * shape[2]))
        columns = (*COLUMNS, *uncertainty.SAMPLED, *(() if exact is None else EXACT))
        images = {"columns": columns, "sums": dark, "beside": image_paths(path)}
    localize(movie, start=start)  # bad arguments raise before any file is touched
    check = None
    if inspect is not None:
        check = check_movie(movie, camera, network, pixel_size_nm, threshold, start, stop, scenes=scenes)
        inspect(check)
        images["columns"] = (*images["columns"], OUTSIDE) if check.problems else images["columns"]
    with held(path):
        progress_file = ProgressFile(path, run, resume, first=start, **images)
        ready = progress_file.frames
        found = localize(movie, start=ready)
        if client is not None:
            from .cluster import computed  # with dask, which only an extra installs

            found = computed(client, localize, movie, block_ranges(shape, ready, stop, *limits))
        blocks = _unchanged(found, movie, run["movie"])
        if check is not None and check.problems:
            blocks = ((done, check.mark(table), *sums) for done, table, *sums in blocks)
        with closing(blocks):
            run_to_file(blocks, progress_file, pixel_size_nm, shape, range(start, stop), progress)
    return progress_file.rows


def run_to_file(
    blocks: Iterator[tuple[Any, ...]],
    progress_file: ProgressFile,
    pixel_size_nm: float,
    shape: tuple[int, int, int],
    frames: range,
    progress: bool = True,
) -> None:
    """Add the blocks that are still missing to a progress file, then write the table, and the images if it has sums.

    blocks: from frame `progress_file.frames` on, (number of frames done, table), or with sums over the block's frames
        as a third. shape: (T, H, W) of the movie. frames: those that are localized. progress: show a bar.
    """
    path, ready = progress_file.path, progress_file.frames - frames.start
    with tqdm(total=len(frames), initial=ready, unit="frame", desc=path.name, disable=not progress) as bar:
        for done, table, *sums in blocks:
            progress_file.add(done, table, *sums)
            bar.update(done - frames.start - bar.n)
            bar.set_postfix(localizations=progress_file.rows, refresh=False)
    progress_file.verify(frames.stop)
    if progress_file.sums is not None:
        mean, variance = progress_file.sums
        for place, image in zip(image_paths(path), (mean, np.sqrt(variance)), strict=True):
            write_image(place, image.astype(np.float32), pixel_size_nm=pixel_size_nm * shape[1] / image.shape[0])
    progress_file.finish(pixel_size_nm, shape[1:], shape[0], frames.stop)


def image_paths(path: str | Path) -> tuple[Path, Path]:
    """The paths of the images that belong to a table: locs.csv has locs.mean.tif and locs.sd.tif."""
    return Path(path).with_suffix(".mean.tif"), Path(path).with_suffix(".sd.tif")


def identity(movie: Frames, camera: Camera, network: DeepSTORM) -> dict[str, Any]:
    """What must not change in a run that continues."""
    weights = {name: x for name, x in network.state_dict().items()}
    values = {f.name: getattr(camera, f.name) for f in fields(camera)}
    return {
        "version": __version__,
        "movie": movie_identity(movie),
        "camera": _digest(*(part for name, x in values.items() for part in (name.encode(), _bytes(x)))),
        "network": _digest(*(part for name, x in weights.items() for part in (name.encode(), _bytes(x)))),
        "architecture": network.architecture,
        "device": network.head.weight.device.type,
    }


def movie_identity(movie: Frames) -> str:
    """A movie's size, type and a hash of frames spread over it; of a file also its length and time of change."""
    some = np.linspace(0, len(movie) - 1, min(FRAMES_HASHED, len(movie))).round().astype(int)
    frames = (_digest(_bytes(movie[i : i + 1])).encode() for i in some.tolist())  # one of them in memory
    text = f"{tuple(int(n) for n in movie.shape)} {movie.dtype} {_digest(*frames)}"
    if not isinstance(movie, Movie):
        return text
    movie.release_memory()
    stat = movie.path.stat()
    return f"{text}, {stat.st_size} bytes, changed at {stat.st_mtime_ns} ns"


def _unchanged(blocks: Iterator[tuple[Any, ...]], movie: Frames, before: str) -> Generator[tuple[Any, ...]]:
    """The blocks; ProgressMismatch after them where the movie is not what it was before."""
    yield from blocks
    now = movie_identity(movie)
    if now != before:
        raise ProgressMismatch(f"movie must not change during a run: it was {before}, is {now}")


def _bytes(value: object) -> bytes:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
