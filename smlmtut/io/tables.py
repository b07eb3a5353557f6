"""Tables of localizations: ThunderSTORM's CSV and Picasso's HDF5, to and from camera pixels.

The table is a pandas DataFrame, one row a localization. The columns that the package knows:

frame                 whole number, 0 for the first frame of the movie
u, v                  position in px along columns and rows; (0, 0) is the centre of the first pixel
z_nm, z_sd_nm         axial position and its standard deviation, nm, since there are no pixels along the axis
photons               photo-electrons
background            photo-electrons per pixel; background_sd: its standard deviation
sigma                 PSF standard deviation, px; sigma_u, sigma_v where the PSF is elliptic
u_sd, v_sd            claimed standard deviation of u and v, px

frame, u and v are required. Any other column is kept as it is, whatever its name, in reading and in writing.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from .._validate import positive, whole
from . import picasso, thunderstorm
from .columns import REQUIRED, column, demand, numbers

CSV, HDF5 = (".csv",), (".hdf5", ".h5")


def read_localizations(path: str | Path, pixel_size_nm: float | None = None, first_frame: int = 1) -> pd.DataFrame:
    """Read a table of localizations: ThunderSTORM's .csv or Picasso's .hdf5.

    pixel_size_nm: side of a camera pixel, needed for .csv. For .hdf5 it may be left out; where it is given
        and the file states another, that is an error.
    first_frame: the number of the first frame in a .csv: ThunderSTORM counts from 1, some writers from 0.
    Returns the columns listed above in px and e-, then all others as they are. .csv: u = x / pixel − 0.5,
        since ThunderSTORM's origin is the corner of the first pixel, not its centre; one uncertainty for
        both axes becomes u_sd and v_sd. .hdf5: u = x, for Picasso's fits put 0 at the centre too. What
        Picasso's metadata say is in table.attrs: height, width, frames, pixel_size_nm.
    Raises ValueError for another suffix, a missing or doubled column, a frame that is not a whole number of
    at least first_frame, a position that is not finite, a pixel size that is missing or not positive.
    """
    path = Path(path)
    if table_suffix(path) in CSV:
        if pixel_size_nm is None:
            raise ValueError(f"pixel_size_nm must be given to read positions in nm from {path}, got None")
        table = thunderstorm.read(path, float(positive("pixel_size_nm", pixel_size_nm)))
        return _counted(table, str(path), whole("first_frame", first_frame, 0))
    table = picasso.read(path)
    stated = table.attrs.get("pixel_size_nm")
    if pixel_size_nm is not None:
        positive("pixel_size_nm", pixel_size_nm)
        if stated is not None and not np.isclose(stated, pixel_size_nm, rtol=1e-6, atol=0):
            raise ValueError(f"pixel_size_nm must be {stated:g}, as {path} says, got {pixel_size_nm:g}")
    return _counted(table, str(path), 0)


def write_localizations(
    path: str | Path,
    table: pd.DataFrame,
    pixel_size_nm: float,
    shape: tuple[int, int] | None = None,
    frames: int | None = None,
) -> None:
    """Write a table of localizations: .csv as ThunderSTORM, .hdf5 with .yaml beside it as Picasso does.

    table: the columns listed above; others are written under their own names.
    pixel_size_nm: side of a camera pixel. A .csv counts frames from 1, an .hdf5 from 0.
    shape, frames: (H, W) and length of the movie, which Picasso needs; None: what table.attrs says, or else the
        smallest movie that holds the table.
    Precision: a .csv holds float64, and writing and reading changes u by less than 1e-12 (|u| + 1); an .hdf5 holds
        float32 as Picasso's do, 6e-8 |u|. Equal u_sd and v_sd become one column of a .csv. One sigma becomes two
        equal columns of an .hdf5, and one again when it is read. Picasso itself drops rows with u < 0 or v < 0, or
        with a value that is not finite.
    An existing file is replaced only after everything has been written.
    Raises ValueError for another suffix, a missing column, a frame that is not a whole number of at least 0,
    a position that is not finite, a pixel size that is not positive, a movie too small for the table, or text
    in a table for .hdf5.
    """
    path = Path(path)
    suffix = table_suffix(path)
    pixel = float(positive("pixel_size_nm", pixel_size_nm))
    table = _counted(table, "table", 0)
    if suffix in CSV:
        thunderstorm.write(path, table, pixel)
    else:
        picasso.write(path, table, pixel, shape, frames)


def table_suffix(path: Path) -> str:
    """The suffix of a table's path in small letters; ValueError where it is none of CSV and HDF5."""
    suffix = path.suffix.lower()
    if suffix not in CSV + HDF5:
        raise ValueError(f"path must end in {', '.join(CSV + HDF5)}, got {str(path)!r}")
    return suffix


def _counted(table: pd.DataFrame, name: str, first_frame: int) -> pd.DataFrame:
    """The table with frames counted from 0, int64; ValueError for a frame or a position that is not allowed."""
    demand(REQUIRED, table, name)
    for wanted in REQUIRED:
        values = numbers(column(table, wanted), wanted, Path(name)).astype(np.float64)
        good, allowed = np.isfinite(values), "finite"
        if wanted == "frame":
            good &= (values == np.floor(values)) & (values >= first_frame)
            allowed = f"a whole number of at least {first_frame}"
        if not good.all():
            row = int(np.argmin(good))
            raise ValueError(
                f"{wanted} must be {allowed} in {name}, got {values[row]:g} in row {row} "
                f"({int((~good).sum())} of {len(values)} rows are not)"
            )
    return table.assign(frame=column(table, "frame").astype(np.int64) - first_frame)
