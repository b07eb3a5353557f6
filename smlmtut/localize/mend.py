"""Error bars that are right: mended by errors that are known, those of a simulated twin of the movie."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .._validate import finite, positive
from ..evaluation.localization import Points, match

LEAST = 100  # localizations of a twin: with some hundred a repair may still miss the error by a tenth
AXES = ("u_sd", "v_sd")


@dataclass(frozen=True)
class Repair:
    """s² = a² + b² σ² for a claimed standard deviation σ. a: px, what no claim holds; b: how short claims fall."""

    a: float
    b: float

    def sd(self, claimed: np.ndarray) -> np.ndarray:
        """s for claimed standard deviations, px."""
        return np.sqrt(self.a**2 + (self.b * claimed) ** 2)

    def mended(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table whose columns u_sd and v_sd are mended; NaN stays NaN."""
        return table.assign(**{name: self.sd(table[name].to_numpy()) for name in AXES})


def fit_repair(claimed: np.ndarray, error: np.ndarray) -> Repair:
    """The repair under which normal errors are most likely: the smallest Σ (ln s² + error²/s²).

    claimed, error: arrays of one shape, px, along one axis or both; the sign of an error does not matter.
    Raises ValueError where shapes differ, a claim is not positive, an error is not finite, all are 0, or there are
    fewer than 30 of them.
    """
    from scipy.optimize import minimize

    if np.shape(claimed) != np.shape(error):
        raise ValueError(f"claimed and error must have the same shape, got {np.shape(claimed)} and {np.shape(error)}")
    variance, square = positive("claimed", np.asarray(claimed)) ** 2, finite("error", np.asarray(error)) ** 2
    if square.size < 30 or not square.any():
        raise ValueError(f"a repair needs at least 30 errors that are not all 0, got {np.count_nonzero(square)}")

    def loss(logs: np.ndarray) -> float:
        s2 = math.exp(logs[0]) + math.exp(logs[1]) * variance
        return float((np.log(s2) + square / s2).sum())

    start = [math.log(max(float(np.median(square)) / 2, 1e-12)), 0.0]
    a2, b2 = np.exp(minimize(loss, start, method="Nelder-Mead").x)
    return Repair(math.sqrt(a2), math.sqrt(b2))


def pairs_of(
    found: pd.DataFrame, truth: pd.DataFrame, pixel_size_nm: float, tolerance_nm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What localizations near a molecule claim, and their errors, both (n, 2) px along u and v; and their frames (n,).

    found: with frame, u, v, u_sd and v_sd; rows without standard deviations are left out. truth: with frame, u, v.
    Raises ValueError as `evaluation.localization.match` does.
    """
    at, there = (Points(*(x[name].to_numpy() for name in ("frame", "u", "v"))) for x in (found, truth))
    pairs = match(at, there, pixel_size_nm, tolerance_nm)
    rows = found.iloc[pairs.found.numpy()]
    claimed = rows[list(AXES)].to_numpy(float)
    known = (claimed > 0).all(1)
    return claimed[known], np.column_stack([pairs.du, pairs.dv])[known], rows["frame"].to_numpy()[known]


def rms_z(sd: np.ndarray, error: np.ndarray) -> float:
    """Root mean square of errors over standard deviations, of two arrays of one shape: 1 where these are right."""
    return float(np.sqrt(((error / sd) ** 2).mean()))
