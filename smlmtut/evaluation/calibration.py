"""Is the uncertainty right: samples of a posterior, scored against the truth.

An ensemble is samples (B, S, ...): S draws for each of B frames, of pixels or of anything else; the truth is (B, ...).
It is calibrated where the truth could be one more draw. Whatever is computed here has the same expectation
for a calibrated ensemble at any S: where a textbook's formula has not, the correction is in it.

Nearly all pixels of a kernel density estimate are background, where truth and samples are 0 and any method is right.
So results are told by class of pixel: `strata` splits the pixels, and gives ensembles (n, S) that all functions take.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from .._validate import between, finite, non_negative, whole
from .proper_scores import crps, crps_normal, crps_point, energy_score, ensemble, joined, on_host, parts

__all__ = [
    "CLASSES", "LEVELS", "Sparsification", "coverage", "covered", "crps", "crps_normal", "crps_point", "energy_score",
    "pixel_class", "predicted_sd", "rank_histogram", "ranks", "sparsification", "spread_skill", "strata", "summary",
    "uniformity",
]  # fmt: skip

CLASSES = ("background", "halo", "core")
BACKGROUND, CORE = 0.001, 0.05  # of the mean KDE: below the first is background, above the second core
LEVELS = (0.5, 0.8, 0.95)  # of central intervals


# -- classes of pixels -------------------------------------------------------------------------------------


def pixel_class(mean: Tensor) -> Tensor:
    """Class of each pixel, an index into CLASSES, from the mean KDE there: int64, of the mean's shape.

    mean: from what knows neither the truth nor the samples that are judged: the exact E[y | x], ŷ, or the mean of
        other samples. Where the truth happens to be high calibrated samples are lower, and the other way round.
    Raises ValueError where it is not finite.
    """
    finite("mean", mean)
    return (mean >= BACKGROUND).long() + (mean > CORE).long()


def strata(samples: Tensor, truth: Tensor, mean: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Samples (n, S) and truth (n,) of the n pixels of each class, by its name; of "all", too.

    samples: (B, S, ...); truth, mean: (B, ...). mean: see `pixel_class`. A class may be empty.
    Raises ValueError for shapes that do not fit, or values that are not finite.
    """
    ensemble(samples, truth)
    if mean.shape != truth.shape:
        raise ValueError(f"mean must have the truth's shape {tuple(truth.shape)}, got {tuple(mean.shape)}")
    classes, last = pixel_class(mean.to(truth.device)), samples.movedim(1, -1)  # (B, ..., S)
    chosen = {name: classes == i for i, name in enumerate(CLASSES)} | {"all": classes >= 0}
    return {name: (last[where], truth[where]) for name, where in chosen.items()}


# -- ranks and intervals -----------------------------------------------------------------------------------


def ranks(samples: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """How many of the samples lie below the truth, 0 … S: uniform for a calibrated ensemble.

    Among samples equal to the truth its place is drawn, by the generator (on the CPU): so all S + 1 ranks stay equally
    probable where background is exactly 0. samples: (B, S, ...). Returns (B, ...) int64.
    Hamill (2001, Mon. Wea. Rev. 129:550). Raises ValueError for shapes that do not fit, values that are not finite.
    """
    below, equal = _below(samples, truth)
    drawn = torch.rand(below.shape, generator=generator, dtype=torch.float64)
    return below + (drawn * (equal + 1)).long()


def rank_histogram(samples: Tensor, truth: Tensor, generator: torch.Generator, bins: int | None = None) -> Tensor:
    """Counts of the ranks: ∪ where the spread is too small, ∩ where it is too large, a slope where there is a bias.

    bins: a number that divides S + 1; None: S + 1. Returns (bins,) int64. Otherwise as `ranks`.
    Raises ValueError for a number that does not divide, and what `ranks` raises.
    """
    count = samples.shape[1] + 1 if samples.ndim > 1 else 1
    bins = count if bins is None else whole("bins", bins)
    if count % bins:
        raise ValueError(f"bins must divide S + 1 = {count}, got {bins}")
    return torch.bincount(ranks(samples, truth, generator).flatten() // (count // bins), minlength=bins)


def uniformity(counts: Tensor) -> tuple[float, float]:
    """χ² of a rank histogram (K,) against equal counts, and its p-value with K − 1 degrees of freedom.

    The p-value holds for independent values: for one pixel a frame, or frames of one number. Pixels of one frame hang
    together, and with them χ² alone says nothing.
    Raises ValueError for fewer than two bins, a negative count, or none counted.
    """
    n = non_negative("counts", counts).double().cpu().flatten()
    if len(n) < 2 or float(n.sum()) == 0:
        raise ValueError(f"counts must have two bins or more and a positive sum, got {counts.tolist()}")
    result = stats.chisquare(n.numpy())
    return float(result.statistic), float(result.pvalue)


def covered(samples: Tensor, truth: Tensor, level: float) -> Tensor:
    """Probability that the central interval of this level holds the truth, (B, ...) float64, mostly 0 or 1.

    S samples split the probability into S + 1 equal parts. The truth is in one of them, anywhere in it: with rank r its
    place is uniform in [r, r + 1] / (S + 1), and that lies within level / 2 of 1/2, or not, or partly. For a
    calibrated ensemble the mean is the level, whatever S. (The interval between two quantiles of the S samples is
    too narrow: all of it, from the lowest to the highest, holds (S − 1) / (S + 1).) Ties are shared out.
    Raises ValueError for a level outside [0, 1], and what `ranks` raises.
    """
    return _inside(*_below(samples, truth), samples.shape[1], level)


def coverage(samples: Tensor, truth: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Share of the truths in the central intervals of these levels: (L,) float64, NaN of none. See `covered`."""
    below, equal = _below(samples, truth)
    return torch.stack([_inside(below, equal, samples.shape[1], level).mean() for level in levels])


# -- spread ------------------------------------------------------------------------------------------------


def spread_skill(samples: Tensor, truth: Tensor) -> float:
    """√((S + 1) / S) · rms sd of the samples / rms error of their mean: 1 where calibrated, below 1 if too narrow.

    The mean of S samples errs by a variance 1 + 1/S times that of a draw; sd is the unbiased one.
    Fortin et al. (2014, J. Hydrometeorol. 15:1708). samples: (B, S, ...). NaN of no values.
    Raises ValueError as `crps` does.
    """
    many = ensemble(samples, truth, 2)
    variance, error = _moments(samples, truth)
    return math.sqrt((many + 1) / many * variance / error) if error > 0 else math.inf if variance > 0 else math.nan


def predicted_sd(exact_sd: Tensor, estimate_error: Tensor, where: Tensor | None = None) -> float:
    """rms sd that an ideal model of p(y | ŷ) has: √ mean(Var[y|x] + (ŷ − E[y|x])²).

    Var(y|ŷ) = E[Var(y|x)|ŷ] + Var(E[y|x]|ŷ), averaged over frames. The second term is the mean of (ŷ − E[y|x])² where
    E[y|ŷ] = ŷ, as for a φ trained to the minimum of the squared error; otherwise that is more, by the bias squared.

    exact_sd: √Var[y|x]; estimate_error: ŷ − E[y|x], the same shape. where: bool of that shape, the pixels that count;
    choose them by E[y|x] or ŷ. Raises ValueError for shapes that differ, values that are not finite, a negative
    sd, or no pixels.
    """
    sd, error = (on_host(n, x) for n, x in (("exact_sd", exact_sd), ("estimate_error", estimate_error)))
    non_negative("exact_sd", sd)
    where = torch.ones_like(sd, dtype=torch.bool) if where is None else where.cpu()
    if not sd.shape == error.shape == where.shape:
        shapes = [tuple(x.shape) for x in (sd, error, where)]
        raise ValueError(f"exact_sd, estimate_error and where must have one shape, got {shapes}")
    if not bool(where.any()):
        raise ValueError("where must choose at least one pixel, got none")
    return float((sd.square() + error.square())[where].mean().sqrt())


@dataclass(frozen=True)
class Sparsification:
    """What is left of the error when the most uncertain values are taken out.

    removed: (K,) share taken out, from 0. curve: (K,) rms error of the others over that of all. oracle: (K,) the same
    where the largest errors go first. area: between the two, over all shares: 0 for an sd that sorts as the
    errors do; area_random: the same for an sd that knows nothing.
    """

    removed: Tensor
    curve: Tensor
    oracle: Tensor
    area: float
    area_random: float


def sparsification(sd: Tensor, error: Tensor, points: int = 100) -> Sparsification:
    """Does the claimed sd sort the values by their errors? It sees no scale: twice the sd, the same curve.

    sd: claimed, error: with or without sign, one shape. points: of the curves. Equal sds count as drawn in any order:
    each stands for the mean squared error of all of them. Ilg et al. (2018, ECCV), with the area against the oracle.
    Raises ValueError for shapes that differ, values that are not finite, a negative sd, or errors that are all 0.
    """
    uncertain, squared = on_host("sd", sd).flatten(), on_host("error", error).flatten().square()
    non_negative("sd", uncertain)
    if sd.shape != error.shape or not len(squared) or not bool(squared.any()):
        raise ValueError(
            f"sd and error must have one shape and error must not be 0 everywhere, "
            f"got {tuple(sd.shape)}, {tuple(error.shape)}"
        )
    order, tie = uncertain.unique(return_inverse=True)  # ascending
    shared = torch.zeros_like(order).index_add_(0, tie, squared) / tie.bincount()
    rest = torch.arange(1, len(squared) + 1, dtype=torch.float64)

    def curve(ascending: Tensor) -> Tensor:
        left = (ascending.cumsum(0) / rest).sqrt()  # of the 1, 2, … n that are kept
        return left.flip(0) / left[-1]

    ours, oracle = curve(shared[tie.sort().values]), curve(squared.sort().values)
    shown = torch.linspace(0, len(squared) - 1, min(whole("points", points), len(squared))).round().long()
    area, area_random = (float((x - oracle).mean()) for x in (ours, torch.ones_like(oracle)))
    return Sparsification(shown.double() / len(squared), ours[shown], oracle[shown], area, area_random)


# -- all together ------------------------------------------------------------------------------------------


def summary(samples: Tensor, truth: Tensor, mean: Tensor, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
    """A row for each class of pixels, and for all: how many, rms sd and error, spread–skill, CRPS, coverage.

    Arguments as in `strata` and `coverage`; the columns of coverage are named after the level, "coverage_80".
    """
    rows = {}
    for name, (x, y) in strata(samples, truth, mean).items():
        variance, error = _moments(x, y)
        rows[name] = {
            "pixels": len(y),
            "rms_sd": math.sqrt(variance),
            "rms_error": math.sqrt(error),
            "spread_skill": spread_skill(x, y),
            "crps": float(crps(x, y).mean()),
            **{f"coverage_{100 * a:g}": float(c) for a, c in zip(levels, coverage(x, y, levels), strict=True)},
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _below(samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How many samples are below the truth, and how many equal to it: (B, ...) int64 on the CPU."""
    ensemble(samples, truth)
    pairs = [((x < y[..., None]).sum(-1), (x == y[..., None]).sum(-1)) for x, y in parts(samples, truth)]
    below, equal = zip(*pairs, strict=True) if pairs else ((), ())
    return joined(below, truth).long(), joined(equal, truth).long()


def _inside(below: Tensor, equal: Tensor, many: int, level: float) -> Tensor:
    """Share of the truth's place on 0 … 1 that is in the central interval: (B, ...) float64."""
    between("level", level, 0, 1)
    low, high = below.double() / (many + 1), (below + equal + 1).double() / (many + 1)
    return (high.clamp(max=0.5 + level / 2) - low.clamp(min=0.5 - level / 2)).clamp(min=0) / (high - low)


def _moments(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean over all values of the samples' unbiased variance, and of their mean's squared error; NaN of none."""
    variance = error = 0.0
    for x, y in parts(samples, truth):
        variance += x.var(-1, ddof=1).sum()
        error += ((x.mean(-1) - y) ** 2).sum()
    count = truth.numel()
    return (float(variance / count), float(error / count)) if count else (math.nan, math.nan)
