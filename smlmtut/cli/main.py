"""The commands. Each is thin, and imports what it needs when it runs, so that all start quickly."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .localize import localize, sample
from .measure import measure
from .options import Pixel, check_folders, checked_seed, pair, plain_errors
from .psf import psf
from .train import training_app
from .twin import mend, twin

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(training_app, name="train")


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"smlmtut {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Single-molecule localization microscopy: simulate, measure, train, localize, sample, mend, render."""


class Layout(StrEnum):
    frame = "frame"
    filaments = "filaments"
    rings = "rings"
    clusters = "clusters"


@app.command()
def simulate(
    movie: Annotated[Path, typer.Argument(help="The movie to write, .tif: ADU, 16 bits.")],
    truth: Annotated[
        Path,
        typer.Argument(help="The truth to write, .csv: a row for every molecule in every frame."),
    ],
    frames: Annotated[int, typer.Option(help="Length of the movie.")] = 1000,
    size: Annotated[str, typer.Option(metavar="HEIGHT,WIDTH", help="Of a frame, pixels.")] = "64,64",
    density: Annotated[float, typer.Option(help="Molecules per µm², both bright and dark.")] = 10.0,
    layout: Annotated[Layout, typer.Option(help="Where the molecules are.")] = Layout.frame,
    photons: Annotated[
        str, typer.Option(metavar="LOWEST,HIGHEST", help="Photons of a bright molecule per frame.")
    ] = "500,1500",
    background: Annotated[float, typer.Option(help="Photons per pixel and frame.")] = 5.0,
    sigma: Annotated[float, typer.Option(help="Standard deviation of the PSF, pixels.")] = 1.0,
    on_time: Annotated[float, typer.Option(help="Mean duration of a bright state, frames.")] = 2.0,
    off_time: Annotated[float, typer.Option(help="Mean duration of a dark state, frames.")] = 500.0,
    flashes: Annotated[float, typer.Option(help="Mean number of bright states before bleaching.")] = 4.0,
    gain: Annotated[float, typer.Option(help="ADU per photo-electron.")] = 2.0,
    offset: Annotated[float, typer.Option(help="ADU.")] = 100.0,
    read_variance: Annotated[float, typer.Option(help="ADU².")] = 20.0,
    pixel_size_nm: Pixel = 108.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same movie.")] = 0,
) -> None:
    """Simulate a movie of molecules that blink and bleach, and write their true positions.

    The truth has ThunderSTORM's columns, frame (from 1), x and y in nm, photons; and the number of the molecule.

    Example: smlmtut simulate movie.tif truth.csv --frames 2000 --layout filaments --density 50
    """
    with plain_errors():
        import numpy as np
        import pandas as pd
        import torch

        from .. import io
        from .._files import with_suffix
        from .._validate import image_shape, non_negative, positive
        from ..imaging import blinking, scenes
        from ..imaging.camera import Camera
        from ..imaging.distributions import Uniform
        from ..imaging.psf import PSF
        from ..io.movies import TIFF_SUFFIXES

        with_suffix("movie", movie, TIFF_SUFFIXES)
        with_suffix("truth", truth, (".csv",))
        check_folders(movie, truth)
        checked_seed(seed)
        light = pair("--photons", photons, float, "500,1500 for LOWEST,HIGHEST")
        camera = Camera(gain, offset, read_variance, saturation=65535, integer=True)
        kinetics = blinking.Kinetics(on_time, off_time, flashes, Uniform(*light))
        shape = image_shape("size", pair("--size", size, int, "64,64 for HEIGHT,WIDTH"))
        generator = torch.Generator().manual_seed(seed)
        per_pixel = non_negative("density", density) * (positive("pixel_size_nm", pixel_size_nm) / 1000) ** 2
        scene = scenes.Scene(layout=layout.value, margin=0)
        us, vs, present = scenes.draw_positions(scene, torch.tensor([per_pixel]), shape, generator)
        u, v = us[present].double(), vs[present].double()
        flashed = blinking.blink(u, v, kinetics, frames, generator)
        adu = np.empty((frames, *shape), np.uint16)
        done = below = 0
        for part in blinking.movie(flashed, PSF(sigma), camera, shape, background, frames, generator):
            below += int((part < 0).sum())
            adu[done : done + len(part)] = part.clamp(min=0).numpy()  # a camera's converter gives no negative numbers
            done += len(part)
        names = ("frame", "u", "v", "photons", "molecule")
        table = pd.DataFrame({name: getattr(flashed, name).numpy() for name in names})
        io.write_movie(movie, adu, pixel_size_nm)
        io.write_localizations(truth, table, pixel_size_nm)
        if below:
            typer.echo(
                f"{below} pixels below 0 ADU are 0 in the movie, as in a real camera: a higher --offset avoids this",
                err=True,
            )
        typer.echo(f"wrote {frames} frames to {movie} and {len(table)} rows on {len(u)} molecules to {truth}")


app.command()(localize)
app.command()(sample)
app.command()(measure)
app.command()(psf)
app.command()(twin)
app.command()(mend)


@app.command()
def render(
    localizations: Annotated[Path, typer.Argument(help=".csv (ThunderSTORM) or .hdf5 (Picasso).")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".png (colours), .tif (float32, mass per pixel).")],
    pixel_size_nm: Annotated[
        float | None, typer.Option(help="Side of a camera pixel, nm.", show_default="108, or what an .hdf5 says")
    ] = None,
    factor: Annotated[int, typer.Option(help="Pixels of the image per camera pixel, along each axis.")] = 4,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHT,WIDTH", help="Of the movie, pixels.", show_default="an .hdf5's, else the smallest"
        ),
    ] = None,
    gaussian: Annotated[
        bool,
        typer.Option("--gaussian/--histogram", help="Blur each by its own standard deviation, or count them."),
    ] = False,
    sd_nm: Annotated[float | None, typer.Option(help="Blur all by this standard deviation instead, nm.")] = None,
    min_probability: Annotated[float | None, typer.Option(help="Leave out rows that are less probable.")] = None,
    max_sd_nm: Annotated[
        float | None, typer.Option(help="Leave out rows with a larger standard deviation along an axis, or none, nm.")
    ] = None,
    brightest: Annotated[float, typer.Option(help="Quantile of the lit pixels that is white in a .png.")] = 0.99,
) -> None:
    """Render a table of localizations as a super-resolved image, all or those that are probable and precise.

    A .csv knows neither pixel size nor size: give those of the movie. Columns of uncertainties are those of `localize
    --uncertainty`: probability, uncertainty_x [nm], uncertainty_y [nm].

    Example: smlmtut render locs.csv -o image.png --pixel-size-nm 108 --factor 8 --sd-nm 15

    Example: smlmtut render sure.csv -o sure.png --gaussian --factor 8 --min-probability 0.9 --max-sd-nm 15
    """
    with plain_errors():
        import numpy as np

        from .. import io
        from .._files import with_suffix
        from .._validate import image_shape, positive
        from ..imaging.kde import render
        from ..io.movies import IMAGE_SUFFIXES

        with_suffix("output", output, IMAGE_SUFFIXES)  # an error before the work, not after it
        check_folders(output)
        in_csv = localizations.suffix.lower() == ".csv"
        pixel = 108.0 if pixel_size_nm is None and in_csv else pixel_size_nm
        table = io.read_localizations(localizations, pixel)
        pixel = pixel if pixel is not None else table.attrs.get("pixel_size_nm", 108.0)
        if min_probability is not None and not 0 <= min_probability <= 1:
            raise ValueError(f"--min-probability must lie between 0 and 1, got {min_probability:g}")
        if max_sd_nm is not None:
            positive("max_sd_nm", max_sd_nm)
        rows, doubtful = len(table), np.zeros(len(table), bool)
        limits = (("u_sd", "max-sd-nm", max_sd_nm), ("v_sd", "max-sd-nm", max_sd_nm))
        for column, option, limit in (("probability", "min-probability", min_probability), *limits):
            if limit is None:
                continue
            if column not in table:
                raise ValueError(f"{localizations} must have the columns of `localize --uncertainty` for --{option}")
            values = table[column].to_numpy(float)
            doubtful |= ~(values >= limit if column == "probability" else values <= limit / pixel)
        table = table.drop(index=table.index[doubtful])
        sd = None
        if sd_nm is not None:
            sd = positive("sd_nm", sd_nm) / pixel
        elif gaussian:
            if "u_sd" not in table or "v_sd" not in table:
                raise ValueError(f"{localizations} must have standard deviations for --gaussian: give --sd-nm instead")
            sd = np.sqrt(table["u_sd"] * table["v_sd"])
        smallest = [int(np.floor(table[x].max() + 0.5)) + 1 if len(table) else 1 for x in ("v", "u")]
        given = None if size is None else pair("--size", size, int, "64,64 for HEIGHT,WIDTH")
        height, width = given or (table.attrs.get("height", smallest[0]), table.attrs.get("width", smallest[1]))
        shape = image_shape("size", (height, width))
        image = render(table["u"], table["v"], shape, factor, sd).numpy().astype(np.float32)
        io.write_image(output, image, brightest, pixel / factor)
        seen = f"{image.sum(dtype=float):.0f} of {rows} localizations"
        typer.echo(f"wrote {seen}, {image.shape[0]} × {image.shape[1]} pixels of {pixel / factor:g} nm, to {output}")
