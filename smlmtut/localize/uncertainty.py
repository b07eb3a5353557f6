"""Localizations with standard deviations, and with the probability that each of them is real.

The localizations are the peaks of ŷ, as in `movie`. Samples of p(y | ŷ) around each of them show what else the frame
may contain: the share of the samples that have an emitter there, and how much its position varies between them.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..evaluation import localization
from ..imaging.camera import Camera
from ..imaging.kde import to_coordinates
from ..networks.deepstorm import DeepSTORM
from .frames import Frames, checked_stop, frame_blocks, movie_shape
from .movie import WINDOW, check_limits, find_peaks, frame_estimator
from .samples import VALUES_AT_ONCE, Job, KDESampler, SamplingSettings, WindowSampler
from .windows import Span

SAMPLED = ("u_sd", "v_sd", "probability")  # columns of a table that come from samples
FRAMES_AT_ONCE, PIXELS_AT_ONCE = 16, 1 << 18  # limits of a block: frames, camera pixels
BLOCK_SIZES = (FRAMES_AT_ONCE, PIXELS_AT_ONCE, VALUES_AT_ONCE)  # they decide which random numbers a window gets


def localize_with_uncertainty(
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    sampler: KDESampler,
    settings: SamplingSettings | None = None,
    threshold: float = 0.25,
    min_mass: float = 0.0,
    start: int = 0,
    stop: int | None = None,
    window: int = WINDOW,
    precision: str = "no",
) -> Iterator[tuple[int, pd.DataFrame, np.ndarray]]:
    """Localize a movie block by block, with standard deviations and probabilities from samples.

    sampler: draws KDEs, see `KDESampler`. settings: None, the defaults. Others: as in `localize_movie`, which gives the
        same rows; `window` is for ŷ, `settings.window` for the samples.
    Yields (number of frames done; the block's table; sums over its frames). The table has three more columns:
        u_sd, v_sd: px, standard deviation of the emitter's position over the samples that have it, NaN where fewer
        than two have; probability: the share of the samples that have it. A sample has it where a peak of height
        `peak` or more is at most `radius` away; each peak counts for one localization only, nearest pairs first.
        The sums, (2, f·H, f·W) float64, are of the samples' mean and of their variance. In a window that is not
        sampled, since ŷ is nowhere above `dark`, the mean is ŷ and the variance 0.
    Raises ValueError as `localize_movie` does, for a frame with a side below 4 px, for `dark` above the threshold, or
        for samples of another shape or that are not finite.
    """
    settings = settings or SamplingSettings()
    length, height, width = movie_shape(movie, camera)
    stop = checked_stop(start, stop, length)
    check_limits(threshold, min_mass)
    if settings.dark > threshold:
        raise ValueError(f"dark must be at most the threshold {threshold:g}, got {settings.dark:g}")
    windows = WindowSampler(camera, network, sampler, (height, width), settings)
    estimate = frame_estimator(network, camera, (height, width), window, precision)
    f = network.factor

    def blocks() -> Iterator[tuple[int, pd.DataFrame, np.ndarray]]:
        for first, adu in frame_blocks(movie, camera, start, stop, FRAMES_AT_ONCE, PIXELS_AT_ONCE):
            y = torch.cat([estimate(frame[None]) for frame in adu])  # (n, 1, f·H, f·W)
            matches = Matches(find_peaks(y, network, first, threshold, min_mass), network, settings)
            mean = y[:, 0].cpu().clone()  # (n, f·H, f·W), replaced where there are samples
            variance = torch.zeros_like(mean)
            for jobs, samples in windows.draw(adu, y, first, settings.dark):
                spread, middle = (x.cpu() for x in torch.var_mean(samples, 1))  # (b, f·h, f·w) each
                for (i, place), v, m in zip(jobs, spread, middle, strict=True):
                    own, within = place.own(f), place.within(f)
                    mean[i][own], variance[i][own] = m[within], v[within]
                matches.count(jobs, samples, first)
            sums = torch.stack([mean.double().sum(0), variance.double().sum(0)]).numpy()
            yield first + len(adu), matches.table(), sums

    return blocks()  # not a generator itself, so that bad arguments raise now and not at the first block


class Matches:
    """The localizations of a block of frames, matched with the emitters of each sample.

    table: of the localizations. network: its factor and sigma are those of the samples' KDEs.
    """

    def __init__(self, table: pd.DataFrame, network: DeepSTORM, settings: SamplingSettings) -> None:
        self.rows, self.network, self.settings = table, network, settings
        self.frame, self.u, self.v = (table[name].to_numpy() for name in ("frame", "u", "v"))
        self.sums = np.zeros((5, len(table)))  # matches; sums of du, dv, du², dv²

    def count(self, jobs: list[Job], samples: Tensor, first: int) -> None:
        """Count the matches in some windows, from their samples (b, S, f·h, f·w).

        first: index of the block's first frame. All localizations that a window sees are matched with its peaks, so
        that neighbours cannot share a peak, but only those in its own part are counted.
        """
        many, net = self.settings.samples, self.network
        found = to_coordinates(samples.flatten(0, 1)[:, None], net.factor, net.sigma, self.settings.peak)
        image, u, v = (x.cpu().numpy() for x in (found.frame, found.u, found.v))  # image: window · S + sample
        corner = np.array([(w.columns[0], w.rows[0]) for _, w in jobs], dtype=float)[image // many]
        seen = [self._inside(first + i, w.rows, w.columns) for i, w in jobs]
        mine = [self._inside(first + i, w.own_rows, w.own_columns) for i, w in jobs]
        own = [np.isin(rows, some) for rows, some in zip(seen, mine, strict=True)]
        # every localization once for each sample
        row, counted = (np.concatenate([np.tile(x, many) for x in part]) for part in (seen, own))
        images = np.concatenate([np.repeat(k * many + np.arange(many), len(rows)) for k, rows in enumerate(seen)])
        pairs = localization.match(
            localization.Points(image, u + corner[:, 0], v + corner[:, 1]),
            localization.Points(images, self.u[row], self.v[row]), 1.0, self.settings.radius,
        )  # fmt: skip
        kept = counted[pairs.truth]
        du, dv = (x.numpy()[kept] for x in (pairs.du, pairs.dv))
        for total, weight in zip(self.sums, (np.ones_like(du), du, dv, du**2, dv**2), strict=True):
            total += np.bincount(row[pairs.truth][kept], weight, len(total))

    def table(self) -> pd.DataFrame:
        """The table with standard deviations, px, and probabilities."""
        n, du, dv, du2, dv2 = self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            u_sd, v_sd = (np.sqrt((s2 - s**2 / n).clip(min=0) / (n - 1)) for s, s2 in ((du, du2), (dv, dv2)))
        u_sd, v_sd = (np.where(n > 1, sd, np.nan) for sd in (u_sd, v_sd))
        return self.rows.assign(**dict(zip(SAMPLED, (u_sd, v_sd, n / self.settings.samples), strict=True)))

    def _inside(self, frame: int, rows: Span, columns: Span) -> np.ndarray:
        """Rows of the table with the localizations of a frame on these pixels."""
        along = (self.u >= columns[0] - 0.5) & (self.u < columns[1] - 0.5)
        return np.flatnonzero((self.frame == frame) & along & (self.v >= rows[0] - 0.5) & (self.v < rows[1] - 0.5))
