"""`smlmtut twin` and `smlmtut mend`: error bars held against errors that are known, and mended by them."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    MovieOptions,
    Pixel,
    check_folders,
    checked_seed,
    grouped,
    note,
    note_what_picasso_drops,
    pair,
    plain_errors,
)


@grouped
def twin(
    scene: Annotated[Path, typer.Argument(help="The scene, .yaml, as `smlmtut measure` writes it.")],
    movie: Annotated[Path, typer.Argument(help="The movie to write, .tif: ADU, 16 bits.")],
    truth: Annotated[Path, typer.Argument(help="The truth to write, .csv: a row for every molecule in every frame.")],
    *,
    sensor: MovieOptions,
    frames: Annotated[int, typer.Option(help="Length of the movie.")] = 200,
    size: Annotated[str, typer.Option(metavar="HEIGHT,WIDTH", help="Of a frame, pixels.")] = "64,64",
    seed: Annotated[int, typer.Option(help="The same seed gives the same movie.")] = 0,
) -> None:
    """Simulate a twin of a movie: frames of its scene with molecules whose positions are known.

    Each frame is drawn anew from the scene, with a density, a PSF and a background from the ranges of the file; nothing
    blinks. Localize it as the movie, with the same weights, threshold and samples: `smlmtut mend` then tells what the
    error bars are worth. The truth has ThunderSTORM's columns, frame (from 1), x and y in nm, intensity in
    photo-electrons, and holds molecules up to 3 pixels beyond the border, whose light reaches the frame.

    Where the camera has maps, `crop` says which part of them the twin shows, as for a movie.

    Example: smlmtut twin scene.yaml twin.tif truth.csv --camera camera.yaml
    """
    with plain_errors():
        import dataclasses

        import numpy as np
        import pandas as pd
        import torch

        from .. import io
        from .._files import with_suffix
        from .._validate import image_shape, whole
        from ..imaging.camera import Camera, expose
        from ..imaging.scenes import draw_batch
        from ..io.movies import TIFF_SUFFIXES
        from ..io.scene_file import read_scene

        with_suffix("movie", movie, TIFF_SUFFIXES)
        with_suffix("truth", truth, (".csv",))
        check_folders(movie, truth)
        checked_seed(seed)
        shape = image_shape("size", pair("--size", size, int, "64,64 for HEIGHT,WIDTH"))
        described = sensor.description()
        camera = described.camera(shape)
        camera = dataclasses.replace(camera, integer=True, saturation=min(65535, camera.saturation or 65535))
        place = read_scene(scene).scene(Camera())
        stated = described.pixel_size_nm or place.pixel_size_nm
        if abs(stated - place.pixel_size_nm) > 0.01 * place.pixel_size_nm:
            note(f"the twin has the scene's pixels, {place.pixel_size_nm:g} nm, but the camera's are {stated:g} nm")
        generator = torch.Generator().manual_seed(seed)
        adu, rows = np.empty((whole("frames", frames), *shape), np.uint16), []
        below = 0
        for k in range(frames):
            one = draw_batch(place, 1, shape, generator)
            seen = expose(one.expected[0].double(), camera, generator)
            below += int((seen < 0).sum())
            adu[k] = seen.clamp(min=0).numpy()  # a camera's converter gives no negative numbers
            here = one.emitters.mask[0]
            u, v, photons = (
                x[0, here].double().numpy() for x in (one.emitters.u, one.emitters.v, one.emitters.photons)
            )
            rows.append(pd.DataFrame({"frame": k, "u": u, "v": v, "photons": photons * camera.quantum_efficiency}))
        table = pd.concat(rows, ignore_index=True)
        io.write_movie(movie, adu, place.pixel_size_nm)
        io.write_localizations(truth, table, place.pixel_size_nm)
        if below:
            note(f"{below} pixels below 0 ADU are 0 in the movie, as in a real camera")
        typer.echo(f"wrote {frames} frames to {movie} and {len(table)} molecules to {truth}")


def mend(
    localizations: Annotated[Path, typer.Argument(help="The table to mend, of `localize --uncertainty`, .csv, .hdf5.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The mended table, .csv or .hdf5.")],
    twin: Annotated[Path, typer.Option("--twin", help="The table of the twin, localized in the same way.")],
    truth: Annotated[Path, typer.Option("--truth", help="The twin's truth, .csv.")],
    pixel_size_nm: Pixel = 108.0,
    tolerance_nm: Annotated[float, typer.Option(help="Largest distance of a localization from its molecule.")] = 100.0,
) -> None:
    """Mend the standard deviations of a table by a twin whose truth is known.

    Samples do not hold the error of the localization that they are about, so that standard deviations are too small.
    On the twin both are known, and s² = a² + b² sd² is fitted to its errors by maximum likelihood; then it is applied
    to the table. What it is worth is told on the half of the twin's frames to which it was not fitted.

    Example: smlmtut mend sure.csv -o mended.csv --twin twin.csv --truth truth.csv --pixel-size-nm 108
    """
    with plain_errors():
        import numpy as np

        from .. import io
        from .._validate import positive
        from ..io.tables import table_suffix
        from ..localize.mend import AXES, LEAST, fit_repair, pairs_of, rms_z

        table_suffix(output)
        check_folders(output)
        if output.resolve() in {path.resolve() for path in (localizations, twin, truth)}:
            raise ValueError(f"--output must not be one of the tables that are read, got {output}")
        nm = float(positive("pixel_size_nm", pixel_size_nm))
        table, of_twin, known = (io.read_localizations(path, nm) for path in (localizations, twin, truth))
        for path, rows in ((localizations, table), (twin, of_twin)):
            if any(name not in rows for name in AXES):
                raise ValueError(f"{path} must have the columns of `localize --uncertainty`, got no uncertainty")
        claimed, error, frame = pairs_of(of_twin, known, nm, float(positive("tolerance_nm", tolerance_nm)))
        if len(error) < LEAST:
            raise ValueError(
                f"at least {LEAST} localizations of {twin} must lie within {tolerance_nm:g} nm of a molecule of "
                f"{truth}, got {len(error)}: are they of one movie, and it long enough?"
            )
        repair, mended = fit_repair(claimed, error), np.empty_like(claimed)
        first = np.unique(frame, return_inverse=True)[1] % 2 == 0  # every other frame
        for half in (first, ~first):
            mended[half] = fit_repair(claimed[~half], error[~half]).sd(claimed[half])
        before, after = rms_z(claimed, error), rms_z(mended, error)
        if abs(np.log(after)) > abs(np.log(before)):
            note("the mended standard deviations are no better than the claimed ones: a longer twin may tell more")
        io.write_localizations(output, repair.mended(table), nm)
        note_what_picasso_drops(output)
        typer.echo(
            f"{len(error)} localizations of the twin: rms of error / sd {before:.2f} as claimed, "
            f"{after:.2f} mended, in frames that it was not fitted to"
        )
        typer.echo(f"wrote {len(table)} rows to {output}, sd² = ({nm * repair.a:.1f} nm)² + ({repair.b:.2f} sd)²")
