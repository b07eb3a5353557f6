"""`smlmtut measure`: the scene that a movie shows, to train on."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    MovieOptions,
    check_folders,
    checked_seed,
    frame_range,
    grouped,
    movie_pixel_size,
    note,
    plain_errors,
)


@grouped
def measure(
    movie: Annotated[Path, typer.Argument(help="TIFF movie of grey frames, ADU.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The scene to write, .yaml.")],
    *,
    pixel_size_nm: Annotated[
        float | None,
        typer.Option(help="Side of a camera pixel, nm.", show_default="as in --camera, or as the movie states it"),
    ] = None,
    sensor: MovieOptions,
    frames: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Only frames A to B − 1, counted from 0 as in Python.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same numbers.")] = 0,
) -> None:
    """Measure the scene that a movie shows: PSF, photons, background and density, to train a network for it.

    Up to 400 windows of 64 × 64 pixels are looked at. Isolated spots are fitted with a free width, and the background
    is seen where no spot is near. A movie simulated from the result tells what is wrong with it (dim emitters are
    missed, two that overlap pass for one), and the result is corrected. The file has a range for each quantity, which
    you can change, and in `measured` the medians with their standard errors, and a verdict: good, or what contradicts
    the camera or the scene. Each such problem is a warning, too.

    Nine of ten emitters of seen_above_photo_electrons are found; nothing is known of much dimmer ones. The
    standard errors take the windows for independent; a molecule that shines for many frames makes them larger.

    Example: smlmtut measure movie.tif --camera camera.yaml -o scene.yaml

    Example: smlmtut measure movie.tif --gain 2 --offset 100 --read-variance 20 --pixel-size-nm 108 -o scene.yaml
    """
    with plain_errors():
        from .. import io
        from .._files import with_suffix
        from ..io.scene_file import YAML_SUFFIXES, write_scene
        from ..localize.measure import measure_movie

        with_suffix("output", output, YAML_SUFFIXES)
        check_folders(output)
        checked_seed(seed)
        described = sensor.description(pixel_size_nm=pixel_size_nm)
        with io.read_movie(movie) as file:
            pixel = movie_pixel_size(described.pixel_size_nm, file)
            first, last = frame_range(frames, len(file))
            seen = measure_movie(file, described.camera(file.shape[1:]), pixel, first, last, seed)
        write_scene(output, seen.description(pixel, described.quantum_efficiency))
        for name, unit in (
            ("sigma", "px"), ("ellipticity", ""), ("photons", "e⁻"), ("background", "e⁻ per pixel"),
            ("density", "per µm²"),
        ):  # fmt: skip
            found = getattr(seen, name)
            typer.echo(f"{name:12}{found.median:9.4g} ± {found.sd:<8.2g} {found.low:9.4g} to {found.high:<9.4g} {unit}")
        for problem in seen.problems:
            note(problem)
        typer.echo(f"wrote the scene of {seen.spots} isolated spots to {output}; verdict: {seen.verdict}")
