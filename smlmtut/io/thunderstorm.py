"""ThunderSTORM's CSV: nanometres from the corner of the first pixel, frames counted from 1."""

from pathlib import Path

import numpy as np
import pandas as pd

from .._files import replacing
from .columns import REQUIRED, Columns, add, column, demand, numbers

# our name: (the file's name, whether the file has nm where we have px)
COLUMNS = {
    "frame": ("frame", False),
    "u": ("x [nm]", True),
    "v": ("y [nm]", True),
    "z_nm": ("z [nm]", False),
    "sigma": ("sigma [nm]", True),
    "sigma_u": ("sigma1 [nm]", True),
    "sigma_v": ("sigma2 [nm]", True),
    "photons": ("intensity [photon]", False),
    "background": ("offset [photon]", False),
    "background_sd": ("bkgstd [photon]", False),
    "u_sd": ("uncertainty_x [nm]", True),
    "v_sd": ("uncertainty_y [nm]", True),
    "z_sd_nm": ("uncertainty_z [nm]", False),
}
BOTH = ("uncertainty_xy [nm]", "uncertainty [nm]")  # one standard deviation, for both axes


def read(path: Path, pixel: float) -> pd.DataFrame:
    """The table in camera pixels of `pixel` nm, with the frame numbers of the file."""
    try:
        raw = pd.read_csv(path, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a ThunderSTORM table: {error}") from error
    demand([COLUMNS[name][0] for name in REQUIRED], raw, str(path))
    pair = COLUMNS["u_sd"][0] in raw or COLUMNS["v_sd"][0] in raw
    both = None if pair else next((name for name in BOTH if name in raw), None)
    known = {theirs: (ours, in_nm) for ours, (theirs, in_nm) in COLUMNS.items()}
    columns: Columns = {}
    for name in raw:
        values = column(raw, name)
        ours, in_nm = known.get(str(name), (name, False))
        if name == both:
            for axis in ("u_sd", "v_sd"):
                add(columns, axis, numbers(values, name, path) / pixel, path)
        elif ours == name and ours not in COLUMNS:
            add(columns, name, values, path)
        elif ours == name and ours != "frame":
            raise ValueError(f"{path} must not have a column {name!r}: that name stands for {COLUMNS[ours][0]!r}")
        else:
            values = numbers(values, name, path)
            add(columns, ours, values / pixel - _corner(ours) if in_nm else values, path)
    return pd.DataFrame(columns)


def write(path: Path, table: pd.DataFrame, pixel: float) -> None:
    """Write a table whose frames are counted from 0."""
    ours = {str(n): numbers(column(table, n), n, path) for n in table if n in COLUMNS}
    alike = "u_sd" in ours and "v_sd" in ours and np.array_equal(ours["u_sd"], ours["v_sd"], equal_nan=True)
    columns: Columns = {}
    for name in table:
        if name not in ours:
            add(columns, name, column(table, name), path)
            continue
        if alike and name == "v_sd":
            continue
        theirs, in_nm = COLUMNS[str(name)]
        if alike and name == "u_sd":
            theirs = BOTH[0]
        values = ours[str(name)]
        if in_nm:
            values = (values + _corner(name)) * pixel
        add(columns, theirs, values + 1 if name == "frame" else values, path)
    with replacing(path) as temporary:
        pd.DataFrame(columns).to_csv(temporary, index=False)


def _corner(name: object) -> float:
    """Distance, in pixels, from ThunderSTORM's origin to ours."""
    return 0.5 if name in ("u", "v") else 0.0
