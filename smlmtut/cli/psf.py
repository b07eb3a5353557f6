"""`smlmtut psf`: the PSF that a movie of beads shows, to train with."""

from pathlib import Path
from typing import Annotated

import typer

from .options import MovieOptions, check_folders, frame_range, grouped, note, plain_errors

MOST_GAP = 0.75  # px; beads that fill half a pixel suffice


@grouped
def psf(
    movie: Annotated[Path, typer.Argument(help="TIFF movie, or one frame, of beads in focus, ADU.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PSF to write, .npz.")],
    *,
    sensor: MovieOptions,
    side: Annotated[int, typer.Option(help="Of the image that is cut of each bead, pixels, odd.")] = 21,
    oversampling: Annotated[int, typer.Option(help="Samples of the PSF per pixel, along each axis.")] = 4,
    sigma: Annotated[float, typer.Option(help="Standard deviation of the PSF, about, pixels.")] = 1.2,
    frames: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Only frames A to B − 1, counted from 0 as in Python.", show_default="all"),
    ] = None,
) -> None:
    """Measure the PSF of a microscope that is no Gaussian, from a movie of beads, to train networks with it.

    Beads at many places within a pixel are averaged, each shifted by the centre of a Gaussian fit. Left out are beads
    at the border or with another one near their image; beads that a Gaussian explains far worse than it does the best
    quarter of them, so that a PSF of any form passes; and beads that are wider than the others, as clumps are. What
    lies beyond the image, and a constant along its border, is lost: choose a --side that the light does not reach.

    It is printed how far the PSF is from the round Gaussian that fits best: the share of the light that lies elsewhere,
    to which the noise of few or dim beads adds. To train with the PSF, add the line psf: psf.npz to the file of
    `smlmtut measure` and make its ellipticity 1. The PSF is that of one plane, and of the beads' colour; beads that are
    not small beside it widen it.

    Example: smlmtut psf beads.tif --camera camera.yaml -o psf.npz
    """
    with plain_errors():
        from .. import io
        from .._files import with_suffix
        from ..io.psf_file import PSF_SUFFIXES, write_psf
        from ..localize.bead_psf import bead_psf

        with_suffix("output", output, PSF_SUFFIXES)
        check_folders(output)
        with io.read_movie(movie) as file:
            camera = sensor.description().camera(file.shape[1:])
            found = bead_psf(file, camera, side, oversampling, sigma, *frame_range(frames, len(file)))
        write_psf(output, found.psf)
        typer.echo(f"left out {found.touched} beads near others and {found.misfits} clumps or misfits")
        typer.echo(f"best round Gaussian: sd {found.sigma:.4g} px; {found.difference:.1%} of the light lie elsewhere")
        if found.gap > MOST_GAP:
            note(
                f"the beads' centres leave {found.gap:.0%} of a pixel empty, where a narrow PSF may be wrong by some "
                "per cent: take more beads, or move the stage between frames"
            )
        typer.echo(f"wrote the PSF of {found.beads} images of beads to {output}")
