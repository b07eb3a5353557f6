"""The drift of a sample during a movie, from its localizations: cross-correlation of renderings in segments of time.

Every segment is compared with every other one: redundant cross-correlation, Wang 2014 (Opt. Express 22:15982).
"""

import numpy as np
import pandas as pd

from .._validate import positive, whole
from ..imaging.kde import render


def estimate_drift(
    table: pd.DataFrame,
    shape: tuple[int, int],
    frames: int,
    segments: int = 10,
    factor: int = 8,
    sd: float = 0.2,
) -> np.ndarray:
    """How far the sample has moved in each frame: (frames, 2), u and v in px, with mean 0 over the frames.

    table: localizations with frame, u, v. shape: (H, W) of a frame. segments: each with equally many localizations, so
        that bleaching does not empty the last ones; the drift within a segment is not seen.
    factor, sd: pixels of a rendering to a camera pixel, and the width in px of the Gaussian for a localization.
    The shift of two segments is where their cross-correlation has its maximum, to a twentieth of such a pixel. With the
    shifts of all pairs, the least-squares position of a segment is its mean shift against all others. Between the mean
    times of the segments the drift is a cubic spline.
    Raises ValueError for fewer than 2 segments, or fewer localizations than segments.
    """
    from scipy.interpolate import CubicSpline
    from skimage.registration import phase_cross_correlation

    whole("segments", segments, 2)
    whole("frames", frames)
    positive("sd", sd)
    if len(table) < segments:
        raise ValueError(f"table must have a localization for each of {segments} segments, got {len(table)}")
    parts = np.array_split(np.argsort(table["frame"].to_numpy(), kind="stable"), segments)
    time = np.array([table["frame"].to_numpy()[rows].mean() for rows in parts])
    if not (np.diff(time) > 0).all():
        raise ValueError(f"table must spread over the frames, got segments at the mean frames {time.tolist()}")
    u, v = (table[name].to_numpy() for name in ("u", "v"))
    pictures = [render(u[rows], v[rows], shape, factor, sd).numpy() for rows in parts]
    shift = np.zeros((segments, segments, 2))  # shift[i, j]: of segment i against j, (u, v) px
    for i in range(segments):
        for j in range(i):
            # None, documented and missing in its annotations: amplitudes count, not phases alone
            how = {"upsample_factor": 20, "normalization": None}
            found = phase_cross_correlation(pictures[i], pictures[j], **how)[0]  # type: ignore[arg-type]
            shift[i, j] = np.asarray(found)[::-1] / factor
            shift[j, i] = -shift[i, j]
    drift = CubicSpline(time, shift.mean(1), bc_type="natural")(np.arange(frames))
    return drift - drift.mean(0)


def without_drift(table: pd.DataFrame, drift: np.ndarray) -> pd.DataFrame:
    """The table with u and v where the molecules would be without the drift (frames, 2) px."""
    moved = drift[table["frame"].to_numpy()]
    return table.assign(u=table["u"] - moved[:, 0], v=table["v"] - moved[:, 1])
