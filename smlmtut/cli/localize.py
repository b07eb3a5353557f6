"""`smlmtut localize` and `smlmtut sample`: what a trained network sees in a movie."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    Crop,
    Device,
    Gain,
    GainMap,
    Offset,
    OffsetMap,
    On,
    Pixel,
    Posterior,
    Precision,
    Quiet,
    ReadVariance,
    ReadVarianceMap,
    Saturation,
    Weights,
    camera_from,
    corner_from,
    device_from,
    plain_errors,
)

Movie = Annotated[Path, typer.Argument(help="TIFF movie of grey frames of any size, ADU.")]
Compute = Annotated[
    Precision, typer.Option(help="no: float32; auto: bf16 or fp16 where the hardware has it, up to twice as fast.")
]
ESTIMATOR, POSTERIOR = "deepstorm-2d", "cddpm-2d"  # weights that come with the package


def localize(
    movie: Movie,
    output: Annotated[Path, typer.Option("--output", "-o", help=".csv (ThunderSTORM) or .hdf5 (Picasso).")],
    pixel_size_nm: Pixel,
    gain: Gain = None,
    offset: Offset = None,
    read_variance: ReadVariance = None,
    gain_map: GainMap = None,
    offset_map: OffsetMap = None,
    read_variance_map: ReadVarianceMap = None,
    crop: Crop = None,
    saturation: Saturation = None,
    weights: Weights = ESTIMATOR,
    threshold: Annotated[float, typer.Option(help="Lowest height of a peak; 1 for a certain molecule.")] = 0.25,
    min_mass: Annotated[float, typer.Option(help="Lowest mass of a peak; about 1 for one molecule.")] = 0.0,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Add standard deviations, probabilities and two images.")
    ] = False,
    samples: Annotated[int | None, typer.Option(help="Posterior samples of each frame.", show_default="32")] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="Within which an emitter of a sample is the same one, pixels.", show_default="1"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same samples.", show_default="0")] = None,
    posterior: Posterior = POSTERIOR,
    resume: Annotated[bool, typer.Option("--resume/--restart", help="Go on with a broken-off run, or not.")] = True,
    device: On = Device.auto,
    precision: Compute = Precision.auto,
    quiet: Quiet = False,
) -> None:
    """Localize the molecules of a movie with a trained network.

    The camera is three numbers, or three HDF5 maps, one for each pixel; what is not given counts as gain 1, offset 0,
    read variance 0. Memory does not grow with the movie. Give the same command again after an interruption: it goes
    on where it was. Beside the position, height and mass of each peak are in the table. With --precision no the table
    is the same on every machine, up to rounding; bf16 moves a position by a small part of its standard deviation.

    With --uncertainty a diffusion model draws samples of what each frame may show. A localization gets the standard
    deviation of its position, in nm in a .csv and in pixels in an .hdf5, and the probability that it is real: the share
    of the samples that have it within --radius. Two float32 images appear beside the table, four pixels to a camera
    pixel: the frames' mean KDEs added up, locs.mean.tif for locs.csv, and the standard deviation of that sum,
    locs.sd.tif, in which the frames' variances add. On a CPU's core this takes up to a minute for a frame
    of 64 × 64 pixels; --samples scales it.

    Example: smlmtut localize movie.tif -o locs.csv --pixel-size-nm 108 --gain 2 --offset 100 --read-variance 20

    Example: smlmtut localize movie.tif -o locs.hdf5 --pixel-size-nm 108 --gain-map gain.hdf5
    --offset-map offset.hdf5 --read-variance-map readvar.hdf5 --crop 128,256

    Example: smlmtut localize movie.tif -o locs.csv --pixel-size-nm 108 --gain 2 --uncertainty --samples 64
    """
    with plain_errors():
        from .. import io
        from ..localize.movie import localize_to_file
        from ..networks import pretrained

        changed: dict[str, Any] = {"samples": samples, "radius": radius, "seed": seed}
        changed = {name: value for name, value in changed.items() if value is not None}
        if changed and not uncertainty:
            raise ValueError(f"--{next(iter(changed))} needs --uncertainty")
        with io.read_movie(movie) as file:
            shape, maps = (file.shape[1], file.shape[2]), (gain_map, offset_map, read_variance_map)
            camera = camera_from(gain, offset, read_variance, *maps, corner_from(crop), shape, saturation)
            network = pretrained.load(weights, device_from(device))
            common: dict[str, Any] = {
                "pixel_size_nm": pixel_size_nm, "threshold": threshold, "min_mass": min_mass, "resume": resume,
                "progress": not quiet, "precision": precision.value,
            }  # fmt: skip
            beside = ""
            if uncertainty:
                from ..localize.uncertainty import Settings, image_paths, shipped_sampler
                from ..localize.uncertainty import localize_to_file as localize_with_uncertainty

                sample, name = shipped_sampler(posterior, device_from(device), precision.value)
                common |= {"sample": sample, "sampler": name, "settings": Settings(**changed)}
                rows = localize_with_uncertainty(output, file, camera, network, **common)
                beside = f", images to {' and '.join(map(str, image_paths(output)))}"
            else:
                rows = localize_to_file(output, file, camera, network, **common)
            typer.echo(f"wrote {rows} localizations of {len(file)} frames to {output}{beside}")


def sample(
    movie: Movie,
    output: Annotated[Path, typer.Option("--output", "-o", help=".tif: float32, frames × samples.")],
    first: Annotated[int, typer.Option(help="The first frame, counted from 0.")] = 0,
    frames: Annotated[int, typer.Option(help="How many frames.")] = 1,
    samples: Annotated[int, typer.Option(help="Posterior samples of each frame.")] = 32,
    seed: Annotated[int, typer.Option(help="The same seed, the same samples.")] = 0,
    window: Annotated[int, typer.Option(help="Side of what is drawn at once, pixels: a multiple of 4.")] = 32,
    gain: Gain = None,
    offset: Offset = None,
    read_variance: ReadVariance = None,
    gain_map: GainMap = None,
    offset_map: OffsetMap = None,
    read_variance_map: ReadVarianceMap = None,
    crop: Crop = None,
    saturation: Saturation = None,
    weights: Weights = ESTIMATOR,
    posterior: Posterior = POSTERIOR,
    device: On = Device.auto,
    precision: Compute = Precision.auto,
    quiet: Quiet = False,
) -> None:
    """Draw samples of what frames may show: kernel density estimates of their emitters.

    The kernels have peak 1, and there are four pixels to a camera pixel. All samples become one TIFF file, a stack of
    frames × samples images that ImageJ opens with a slider for each. A frame larger than --window is drawn in
    windows that do not know of each other; where two meet, a sample may cut an emitter, or show it twice.

    Example: smlmtut sample movie.tif -o samples.tif --first 10 --frames 2 --samples 16 --gain 2 --offset 100
    """
    with plain_errors():
        from tqdm.auto import tqdm

        from .. import io
        from .._files import with_suffix
        from .._validate import whole
        from ..localize.uncertainty import Settings, draw, shipped_sampler
        from ..networks import pretrained

        with_suffix("output", output, io.TIFF_SUFFIXES)  # before the work, not after
        settings = Settings(samples=samples, seed=seed, window=window)
        stop = whole("first", first, 0) + whole("frames", frames)
        with io.read_movie(movie) as file:
            shape, maps = (file.shape[1], file.shape[2]), (gain_map, offset_map, read_variance_map)
            camera = camera_from(gain, offset, read_variance, *maps, corner_from(crop), shape, saturation)
            network = pretrained.load(weights, device_from(device))
            sampler, _ = shipped_sampler(posterior, device_from(device), precision.value)
            drawn = draw(file, camera, network, sampler, settings, first, stop, precision.value)
            size = (network.factor * shape[0], network.factor * shape[1])
            stacks = tqdm(drawn, total=frames, unit="frame", desc=output.name, disable=quiet)
            io.write_stacks(output, stacks, (frames, samples, *size))
            typer.echo(f"wrote {samples} samples of each of {frames} frames, {size[0]} × {size[1]} pixels, to {output}")
