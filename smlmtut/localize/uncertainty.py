"""Localizations with standard deviations, and with the probability that each of them is real.

The localizations are the peaks of ŷ, as in `movie`. Samples of p(y | x, ŷ) around each of them show what else the frame
may contain: the share of the samples that have an emitter there, and how much its position varies between them. Where
it is affordable, draws from the exact posterior p(y | x) can take the place of the samples, see `exact`.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..evaluation import localization
from ..imaging.camera import Camera
from ..imaging.kde import to_coordinates
from ..imaging.windows import Span
from ..networks.deepstorm import DeepSTORM
from .exact import EXACT, ExactSampler, ExactSettings
from .frames import Frames, checked_stop, frame_blocks, movie_shape
from .movie import WINDOW, check_limits, find_peaks, frame_estimator
from .samples import VALUES_AT_ONCE, Job, KDESampler, RegionSampler, SamplingSettings

SAMPLED = ("u_sd", "v_sd", "probability")  # columns of a table that come from samples
FRAMES_AT_ONCE, EXACT_AT_ONCE, PIXELS_AT_ONCE = 16, 64, 1 << 18  # limits of a block: frames, also with chains; pixels
# they decide which random numbers a region gets
BLOCK_SIZES = (FRAMES_AT_ONCE, EXACT_AT_ONCE, PIXELS_AT_ONCE, VALUES_AT_ONCE)


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
    exact: ExactSettings | None = None,
) -> Iterator[tuple[int, pd.DataFrame, np.ndarray]]:
    """Localize a movie block by block, with standard deviations and probabilities from samples.

    sampler: draws KDEs, see `KDESampler`. settings: None, the defaults. Others: as in `localize_movie`, which gives the
        same rows; `window` is for ŷ.
    exact: None, or how Markov chains draw from the exact posterior of groups of emitters, see `exact.py`. The sampler
        then answers only for groups that are too large and for those whose chains are not trusted. Of the chains all
        draws count, whatever `settings.samples`.
    Yields (number of frames done; the block's table; sums over its frames). The table has three more columns:
        u_sd, v_sd: px, standard deviation of the emitter's position over the samples that have it, NaN where fewer
        than two have; probability: the share of the samples that have it. A sample has it where a peak of height
        `peak` or more is at most `radius` away; each peak counts for one localization only, nearest pairs first.
        The sums, (2, f·H, f·W) float64, are of the samples' mean and of their variance. Outside the regions that are
        sampled, where ŷ is nowhere above `dark`, the mean is ŷ and the variance 0.
        With `exact` there are three columns more, exact: 1 where the chains answer, else 0; r_hat, effective_size: of
        the chains, 0 where the sampler answers.
    Raises ValueError as `localize_movie` does, for `dark` above the threshold, or for samples of another shape or that
        are not finite.
    """
    settings = settings or SamplingSettings()
    length, height, width = movie_shape(movie, camera)
    stop = checked_stop(start, stop, length)
    check_limits(threshold, min_mass)
    if settings.dark > threshold:
        raise ValueError(f"dark must be at most the threshold {threshold:g}, got {settings.dark:g}")
    regions = RegionSampler(camera, network, sampler, (height, width), settings)
    chains = None if exact is None else ExactSampler(camera, network, exact, settings.dark, settings.seed)
    estimate = frame_estimator(network, camera, (height, width), window, precision)

    def blocks() -> Iterator[tuple[int, pd.DataFrame, np.ndarray]]:
        for first, adu in frame_blocks(movie, camera, start, stop, *block_limits(exact)):
            y = torch.cat([estimate(frame[None]) for frame in adu])  # (n, 1, f·H, f·W)
            matches = Matches(find_peaks(y, network, first, threshold, min_mass), network, settings, exact is not None)
            moments = Moments(y, network.factor)
            if chains is not None:
                for jobs, samples, certificate in chains.draw(adu, y, first):
                    moments.add(jobs, samples, exact=True)
                    matches.count(jobs, samples, first, certificate.numpy())
            for jobs, samples in regions.draw(adu, y, first, settings.dark, None if exact is None else moments.exact):
                moments.add(jobs, samples)
                matches.count(jobs, samples, first)
            sums = torch.stack([x.double().sum(0) for x in (moments.mean, moments.variance)]).numpy()
            yield first + len(adu), matches.table(), sums

    return blocks()  # not a generator itself, so that bad arguments raise now and not at the first block


def block_limits(exact: ExactSettings | None) -> tuple[int, int]:
    """The most frames and pixels of a block."""
    # a sweep of few chains takes as long as of a hundred
    return FRAMES_AT_ONCE if exact is None else EXACT_AT_ONCE, PIXELS_AT_ONCE


class Moments:
    """Mean and variance over the samples, for each pixel of a block of frames: ŷ and 0 where there are no samples.

    exact: (n, f·H, f·W) bool, where the samples are exact; others do not replace them.
    """

    def __init__(self, y: Tensor, factor: int) -> None:
        self.mean, self.factor = y[:, 0].cpu().clone(), factor  # (n, f·H, f·W)
        self.squares, self.many = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        self.exact = torch.zeros(self.mean.shape, dtype=torch.bool)

    @property
    def variance(self) -> Tensor:
        """(n, f·H, f·W), from the mean square around the mean."""
        return self.squares * self.many / (self.many - 1).clamp(min=1)

    def add(self, jobs: list[Job], samples: Tensor, exact: bool = False) -> None:
        """Take the samples (b, S, f·h, f·w) of some regions in their own parts, beside those that these had before."""
        new = samples.shape[1]
        squares, middle = (x.cpu() for x in torch.var_mean(samples, 1, correction=0))  # (b, f·h, f·w) each
        for (i, place), s, m in zip(jobs, squares, middle, strict=True):
            own, within = place.own(self.factor), place.within(self.factor)
            mean, around, many, answered = (x[i][own] for x in (self.mean, self.squares, self.many, self.exact))
            share = torch.where(answered, 0, new / (many + new))  # 1 for the first samples, whatever ŷ is
            off = m[within] - mean
            around.copy_((1 - share) * around + share * s[within] + share * (1 - share) * off.square())
            mean += share * off
            many += torch.where(answered, 0, new)
            answered |= exact


class Matches:
    """The localizations of a block of frames, matched with the emitters of each sample.

    table: of the localizations. network: its factor and sigma are those of the samples' KDEs. exact: whether some of
    the samples are exact draws; others are then not counted where these are.
    """

    def __init__(
        self, table: pd.DataFrame, network: DeepSTORM, settings: SamplingSettings, exact: bool = False
    ) -> None:
        self.rows, self.network, self.settings, self.exact = table, network, settings, exact
        self.frame, self.u, self.v = (table[name].to_numpy() for name in ("frame", "u", "v"))
        self.sums = np.zeros((5, len(table)))  # matches; sums of du, dv, du², dv²
        self.samples = np.full(len(table), settings.samples)
        self.certificate = np.zeros((2, len(table)))  # R̂ and effective size; 0 where samples are not exact

    def count(self, jobs: list[Job], samples: Tensor, first: int, certificate: np.ndarray | None = None) -> None:
        """Count the matches in some regions, from their samples (b, S, f·h, f·w).

        first: index of the block's first frame. All localizations that a region sees are matched with its peaks, so
        that neighbours cannot share a peak, but only those in its own part are counted.
        certificate: (2, b) split-R̂ and effective size of exact draws.
        """
        many, net = samples.shape[1], self.network
        found = to_coordinates(samples.flatten(0, 1)[:, None], net.factor, net.sigma, self.settings.peak)
        image, u, v = (x.cpu().numpy() for x in (found.frame, found.u, found.v))  # image: region · S + sample
        corner = np.array([(w.columns[0], w.rows[0]) for _, w in jobs], dtype=float)[image // many]
        seen = [self._inside(first + i, w.rows, w.columns) for i, w in jobs]
        mine = [self._inside(first + i, w.own_rows, w.own_columns) for i, w in jobs]
        if certificate is None:
            mine = [rows[self.certificate[1, rows] == 0] for rows in mine]
        else:
            for rows, values in zip(mine, certificate.T, strict=True):
                self.certificate[:, rows], self.samples[rows] = values[:, None], many
        own = [np.isin(rows, some) for rows, some in zip(seen, mine, strict=True)]
        # every localization once for each sample
        row, counted = (np.concatenate([np.tile(x, many) for x in part]) for part in (seen, own))
        images = np.concatenate([np.repeat(k * many + np.arange(many), len(rows)) for k, rows in enumerate(seen)])
        pairs = localization.match(
            localization.Points(image, u + corner[:, 0], v + corner[:, 1]),
            localization.Points(images, self.u[row], self.v[row]), 1.0, self.settings.radius,
        )  # fmt: skip
        localization_of = pairs.truth.numpy()  # NumPy takes a tensor with one element for a number
        kept = counted[localization_of]
        du, dv = (x.numpy()[kept] for x in (pairs.du, pairs.dv))
        for total, weight in zip(self.sums, (np.ones_like(du), du, dv, du**2, dv**2), strict=True):
            total += np.bincount(row[localization_of][kept], weight, len(total))

    def table(self) -> pd.DataFrame:
        """The table with standard deviations, px, and probabilities."""
        n, du, dv, du2, dv2 = self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            u_sd, v_sd = (np.sqrt((s2 - s**2 / n).clip(min=0) / (n - 1)) for s, s2 in ((du, du2), (dv, dv2)))
        u_sd, v_sd = (np.where(n > 1, sd, np.nan) for sd in (u_sd, v_sd))
        names, columns = SAMPLED, [u_sd, v_sd, n / self.samples]
        if self.exact:
            names, columns = (*SAMPLED, *EXACT), [*columns, self.certificate[1] > 0, *self.certificate]
        return self.rows.assign(**{name: values.astype(float) for name, values in zip(names, columns, strict=True)})

    def _inside(self, frame: int, rows: Span, columns: Span) -> np.ndarray:
        """Rows of the table with the localizations of a frame on these pixels."""
        along = (self.u >= columns[0] - 0.5) & (self.u < columns[1] - 0.5)
        return np.flatnonzero((self.frame == frame) & along & (self.v >= rows[0] - 0.5) & (self.v < rows[1] - 0.5))
