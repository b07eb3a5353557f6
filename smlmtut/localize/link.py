"""Localizations of one molecule in consecutive frames as one, by their standard deviations."""

import math

import numpy as np
import pandas as pd

from .._validate import between, positive
from ..evaluation.localization import Points, match

MOST = 1.0  # px; so far a peak of a sample counts as the same molecule
KEPT = {"frame": "min", "probability": "max", "height": "max", "mass": "mean"}  # what a linked row has of its parts


def linked_rows(table: pd.DataFrame, level: float = 0.99, most: float = MOST) -> np.ndarray:
    """A number for each row, the same for those that are one molecule in consecutive frames; by their first rows.

    table: with frame, u, v and their standard deviations u_sd, v_sd, px; a row where these are NaN or 0 stays alone.
    level: share of true neighbours that are linked. The difference of two positions of one molecule, over its standard
        deviation along each axis, has a squared length that is above −2 ln(1 − level) with probability 1 − level.
    most: px, the largest distance whatever the standard deviations are.
    Each row has at most one neighbour in the next frame, the nearest pairs first. A frame without it ends the molecule.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    level = float(between("level", level, 0, 1))
    frame, u, v, u_sd, v_sd = (table[name].to_numpy() for name in ("frame", "u", "v", "u_sd", "v_sd"))
    pairs = match(Points(frame, u, v), Points(frame + 1, u, v), 1.0, float(positive("most", float(most))))
    later, earlier = pairs.found.numpy(), pairs.truth.numpy()
    sure = (u_sd > 0) & (v_sd > 0)
    later, earlier, du, dv = (
        x[sure[later] & sure[earlier]] for x in (later, earlier, pairs.du.numpy(), pairs.dv.numpy())
    )
    length = du**2 / (u_sd[later] ** 2 + u_sd[earlier] ** 2) + dv**2 / (v_sd[later] ** 2 + v_sd[earlier] ** 2)
    kept = length <= (-2 * math.log1p(-level) if level < 1 else math.inf)
    graph = coo_array((np.ones(kept.sum()), (earlier[kept], later[kept])), shape=(len(table), len(table)))
    return connected_components(graph, directed=False)[1]


def link(table: pd.DataFrame, level: float = 0.99, most: float = MOST) -> pd.DataFrame:
    """One row for each molecule and the consecutive frames in which it is seen: positions weighted by 1/sd².

    Arguments: of `linked_rows`. The new u_sd and v_sd are (Σ 1/sd²)^−½: right where the errors are independent and
    the standard deviations right. frames: how many rows it was; frame: the first; probability and height: the largest.
    Where drift is to be corrected, do that afterwards: it is small from frame to frame.
    """
    rows = linked_rows(table, level, most)
    groups = table.groupby(rows)
    new = groups.agg({name: how for name, how in KEPT.items() if name in table})
    new["frames"] = groups.size()
    for name in ("u", "v"):
        x, sd = table[name].to_numpy(), table[f"{name}_sd"].to_numpy()
        weight = np.ones(len(table))  # of a row without an sd, which is alone
        weight[sd > 0] = sd[sd > 0] ** -2.0
        total, known = np.bincount(rows, weight), np.bincount(rows, sd > 0) > 0
        new[name] = np.bincount(rows, weight * x) / total
        new[f"{name}_sd"] = np.where(known, total**-0.5, np.nan)
    return new
