"""`smlmtut localize` and `smlmtut sample`: what trained networks see in a movie."""

import math
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    MovieOptions,
    NetworkOptions,
    WorkerOptions,
    check_folders,
    checked_seed,
    device_from,
    frame_range,
    grouped,
    movie_pixel_size,
    note,
    note_what_picasso_drops,
    plain_errors,
)

if TYPE_CHECKING:
    from ..localize import MovieCheck

FRAMES_TIMED = 40  # from this number on, two frames more to tell the time cost at most a twentieth
Movie = Annotated[Path, typer.Argument(help="TIFF movie of grey frames of any size, ADU.")]


@grouped
def localize(
    movie: Movie,
    output: Annotated[Path, typer.Option("--output", "-o", help=".csv (ThunderSTORM) or .hdf5 (Picasso).")],
    *,
    pixel_size_nm: Annotated[
        float | None,
        typer.Option(help="Side of a camera pixel, nm.", show_default="as in --camera, or as the movie states it"),
    ] = None,
    sensor: MovieOptions,
    networks: NetworkOptions,
    compute: WorkerOptions,
    threshold: Annotated[float, typer.Option(help="Lowest height of a peak; 1 for a certain molecule.")] = 0.25,
    min_mass: Annotated[float, typer.Option(help="Lowest mass of a peak; about 1 for one molecule.")] = 0.0,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Add standard deviations, probabilities and two images.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Draw from the exact posterior where that is affordable.")
    ] = False,
    samples: Annotated[int | None, typer.Option(help="Posterior samples of each frame.", show_default="32")] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="Largest distance between a localization and the same emitter in a sample, pixels.",
                     show_default="1"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same samples.", show_default="0")] = None,
    frames: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Only frames A to B − 1, counted from 0 as in Python.", show_default="all"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Continue an interrupted run, or start again.")
    ] = True,
) -> None:  # fmt: skip
    """Localize the molecules of a movie with a trained network.

    The camera is given by three numbers, by three HDF5 maps with a value for each pixel, or by a file, --camera; a
    movie that is in photo-electrons already needs --photon-units. Memory does not grow with the length of the movie.
    After an interruption, give the same command again: it continues where it was. The table has the position, height
    and mass of each peak. With --precision no it is the same on every machine, up to rounding; bf16 moves a position by
    a small part of its standard deviation. With --frames the numbers of the frames are still those of the movie.

    Before the first frame, a few windows of the movie are compared with what the networks were trained on, which stands
    in their files: pixel size, PSF, photons, background, density; and with the camera: noise, and what is found in
    noise alone. A warning tells what lies outside, and the table gets a column outside_scene of ones.

    With --uncertainty a network draws samples of what each frame may contain, in one call each; with --posterior
    cddpm-2d the diffusion model does, which takes some 30 times as long. Each localization gets the
    standard deviation of its position, in nm in a .csv and in pixels in an .hdf5, and the probability that it is real:
    the share of the samples that have it within --radius, and no more than the comparison of the movie with the
    training scene allows. Two float32 images appear beside the table, four pixels to a
    camera pixel: the sum of the frames' mean KDEs, locs.mean.tif for locs.csv, and the standard deviation of that sum,
    locs.sd.tif, in which the variances of the frames add. One core of a CPU needs up to three seconds for a frame
    of 64 × 64 pixels; the time is proportional to --samples.

    With --uncertainty --exact, Markov chains draw from the exact posterior of each group of molecules that fits into
    8 × 8 pixels, under the prior of the reference scene; weights of another scene are refused. Where the chains do not
    agree in the end, and in larger groups, the network answers as before. Column exact is 1 where the chains answer;
    r_hat (at most 1.05) and effective_size (at least 100) then tell how well they agree, and are 0 elsewhere.

    With --workers or --scheduler other processes compute, by dask.distributed; this one reads the movie and writes the
    table. The files are, to the last bit, those of one process with one thread (OMP_NUM_THREADS=1); more threads round
    otherwise. A worker that dies changes nothing, and an interrupted run goes on with or without workers.

    Picasso's loader drops rows of an .hdf5 with x or y below 0, which is the outer half of the first row and column
    of pixels, and rows with a value that is not finite, such as a standard deviation from fewer than two samples.

    Example: smlmtut localize movie.tif -o locs.csv --pixel-size-nm 108 --gain 2 --offset 100 --read-variance 20

    Example: smlmtut localize movie.tif -o locs.hdf5 --camera camera.yaml --crop 128,256

    Example: smlmtut localize movie.tif -o locs.csv --camera camera.yaml --uncertainty --samples 64

    Example: smlmtut localize movie.tif -o locs.csv --camera camera.yaml --uncertainty --exact

    Example: smlmtut localize movie.tif -o locs.csv --camera camera.yaml --uncertainty --workers 8
    """
    with plain_errors():
        from .. import io
        from ..localize import image_paths, localize_to_file, localize_with_uncertainty
        from ..localize.exact import ExactSettings
        from ..localize.scene import REFERENCE, trained_scene
        from ..networks import pretrained

        changed = {"samples": samples, "radius": radius, "seed": checked_seed(seed)}
        check_folders(output)
        changed = {name: value for name, value in changed.items() if value is not None}
        if (changed or exact) and not uncertainty:
            raise ValueError(f"--{next(iter(changed), 'exact')} needs --uncertainty")
        client, described = compute.client(), sensor.description(pixel_size_nm=pixel_size_nm)
        with io.read_movie(movie) as file:
            pixel = movie_pixel_size(described.pixel_size_nm, file)
            camera = described.camera(file.shape[1:])
            network = pretrained.load(networks.weights, device_from(networks.device))
            first, last = frame_range(frames, len(file))
            sampling = _sampling(networks, changed) if uncertainty else {}
            used = (networks.weights, networks.posterior) if uncertainty else (networks.weights,)
            scenes = {name: trained_scene(name) for name in used}
            if exact and scenes[networks.weights] != REFERENCE:
                raise ValueError(f"--exact has the prior of the reference scene, and {networks.weights} has another")
            if exact:
                sampling["exact"] = ExactSettings(pixel)
            with client as cluster:
                if cluster is not None and not cluster.nthreads():
                    typer.echo(f"waiting for the first worker of {compute.scheduler}", err=True)
                if sampling and not networks.quiet:
                    _tell_time(
                        range(first, last),
                        lambda i: localize_with_uncertainty(
                            file, camera, network, sampling["sampler"], sampling["settings"], threshold, start=i,
                            stop=i + 1, precision=networks.precision.value, exact=sampling.get("exact"),
                        ),
                        cluster and sum(cluster.nthreads().values()),  # type: ignore[attr-defined]
                    )  # fmt: skip
                rows = localize_to_file(
                    output, file, camera, network, pixel, threshold, min_mass, start=first, stop=last, resume=resume,
                    progress=not networks.quiet, precision=networks.precision.value, inspect=_warn, client=cluster,
                    scenes=scenes, **sampling,
                )  # fmt: skip
            beside = f", images to {' and '.join(map(str, image_paths(output)))}" if uncertainty else ""
            typer.echo(f"wrote {rows} localizations of {last - first} frames to {output}{beside}")
            note_what_picasso_drops(output)


@grouped
def sample(
    movie: Movie,
    output: Annotated[Path, typer.Option("--output", "-o", help=".tif: float32, frames × samples.")],
    sensor: MovieOptions,
    networks: NetworkOptions,
    first: Annotated[int, typer.Option(help="The first frame, counted from 0.")] = 0,
    frames: Annotated[int, typer.Option(help="Number of frames.")] = 1,
    samples: Annotated[int, typer.Option(help="Posterior samples of each frame.")] = 32,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
) -> None:
    """Draw samples of what frames may contain: kernel density estimates of their emitters.

    The kernels have peak 1, and there are four pixels to a camera pixel. All samples are written to one TIFF file, a
    stack of frames × samples images for which ImageJ shows two sliders. Every frame is drawn in one go.

    Example: smlmtut sample movie.tif -o samples.tif --first 10 --frames 2 --samples 16 --camera camera.yaml
    """
    with plain_errors():
        from tqdm.auto import tqdm

        from .. import io
        from .._files import with_suffix
        from .._validate import whole
        from ..io.movies import TIFF_SUFFIXES
        from ..localize import SamplingSettings, check_movie, sample_frames, shipped_sampler
        from ..localize.scene import trained_scene
        from ..networks import pretrained

        with_suffix("output", output, TIFF_SUFFIXES)  # an error before the work, not after it
        check_folders(output)
        checked_seed(seed)
        settings = SamplingSettings(samples=samples, seed=seed)
        stop = whole("first", first, 0) + whole("frames", frames)
        device, precision = device_from(networks.device), networks.precision.value
        with io.read_movie(movie) as file:
            described = sensor.description()
            camera = described.camera(file.shape[1:])
            network = pretrained.load(networks.weights, device)
            sampler, _ = shipped_sampler(networks.posterior, device, precision)
            drawn = sample_frames(file, camera, network, sampler, settings, first, stop, precision)
            scenes = {name: trained_scene(name) for name in (networks.weights, networks.posterior)}
            pixel = file.pixel_size_nm if described.pixel_size_nm is None else described.pixel_size_nm
            # without one, that of the weights: what the samples are does not depend on it
            _warn(check_movie(file, camera, network, pixel or scenes[networks.weights].pixel_size_nm, scenes=scenes))
            size = (network.factor * file.shape[1], network.factor * file.shape[2])
            stacks = tqdm(drawn, total=frames, unit="frame", desc=output.name, disable=networks.quiet)
            fine = None if pixel is None else pixel / network.factor
            io.write_stacks(output, stacks, (frames, samples, *size), fine)
            typer.echo(f"wrote {samples} samples of each of {frames} frames, {size[0]} × {size[1]} pixels, to {output}")


def _warn(check: "MovieCheck") -> None:
    """A line for each problem of a movie."""
    for problem in check.problems:
        note(problem)


def _tell_time(frames: range, localize_one: Callable[[int], Iterator[Any]], workers: int | None) -> None:
    """Say how long the samples will take, from a frame in the middle; where there are few, the bar is enough.

    workers: threads of other processes, taken to be as fast as one here; None: this process computes.
    """
    import torch

    if len(frames) < FRAMES_TIMED:
        return
    seconds, threads = 0.0, torch.get_num_threads()
    torch.set_num_threads(threads if workers is None else 1)
    for i in (frames[len(frames) // 3], frames[len(frames) // 2]):  # the first prepares the network, and is not counted
        start = time.perf_counter()
        next(localize_one(i))
        seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    in_all = timedelta(seconds=math.ceil(seconds * len(frames) / max(1, workers or 1)))
    typer.echo(
        f"{len(frames)} frames, about {seconds:.3g} s a frame, in all {in_all} h (--frames 0:5 tries five)", err=True
    )


def _sampling(networks: NetworkOptions, changed: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `localize_to_file` that add uncertainty."""
    from ..localize import SamplingSettings, shipped_sampler

    sampler, name = shipped_sampler(networks.posterior, device_from(networks.device), networks.precision.value)
    return {"sampler": sampler, "sampler_name": name, "settings": SamplingSettings(**changed)}
