"""Is the uncertainty right? Samples of a posterior, compared with the truth.

An ensemble is samples (B, S, ...): S draws for each of B frames, of pixels or of anything else; the truth is (B, ...).
The ensemble is calibrated if the truth could be one more draw. For a calibrated ensemble, what is computed here has
the same expectation at any S: where a textbook formula depends on S, a correction is included.

Nearly all pixels of a kernel density estimate are background, where truth and samples are 0 and any method is right.
So results are reported by class of pixel: `strata` splits the pixels into ensembles (n, S), which all functions take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._validate import between, cpu_generator, finite, non_negative, number, tensor, whole
from .proper_scores import crps, crps_normal, crps_point, energy_score, ensemble, joined, on_host, parts

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CLASSES", "LEVELS", "Sparsification", "coverage", "covered", "crps", "crps_normal", "crps_point", "energy_score",
    "pixel_class", "predicted_sd", "ranks", "sparsification", "spread_skill", "strata", "summary",
]  # fmt: skip

CLASSES = ("background", "halo", "core")
# In units of a kernel's peak: a mean KDE below the first is background, above the second core. Both are conventions:
# one kernel falls to them at 3.7 and 2.4 of its sds.
BACKGROUND, CORE = 0.001, 0.05
LEVELS = (0.5, 0.8, 0.95)  # of central intervals


# -- classes of pixels -------------------------------------------------------------------------------------


def pixel_class(mean: Tensor) -> Tensor:
    """Class of each pixel, an index into CLASSES, from the mean KDE there: int64, of the mean's shape.

    mean: it must depend neither on the truth nor on the samples that are judged: the exact E[y | x], ŷ, or the mean
        of other samples. Pixels chosen because their truth is high have calibrated samples that are lower.
    Raises ValueError where it is not finite.
    """
    mean = tensor("mean", finite("mean", mean))
    return (mean >= BACKGROUND).long() + (mean > CORE).long()


def strata(samples: Tensor, truth: Tensor, mean: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Samples (n, S) and truth (n,) of the n pixels of each class, by its name; of "all", too.

    samples: (B, S, ...); truth, mean: (B, ...). mean: see `pixel_class`. A class may be empty.
    Raises ValueError for shapes that do not fit, or values that are not finite.
    """
    (samples, truth), mean = ensemble(samples, truth), tensor("mean", mean)
    if mean.shape != truth.shape:
        raise ValueError(f"mean must have the truth's shape {tuple(truth.shape)}, got {tuple(mean.shape)}")
    classes, last = pixel_class(mean.to(truth.device)), samples.movedim(1, -1)  # (B, ..., S)
    chosen = {name: classes == i for i, name in enumerate(CLASSES)} | {"all": classes >= 0}
    return {name: (last[where], truth[where]) for name, where in chosen.items()}


# -- ranks and intervals -----------------------------------------------------------------------------------


def ranks(samples: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """How many of the samples lie below the truth, 0 … S: uniform for a calibrated ensemble.

    Ties are broken at random, by the generator (on the CPU), so that all S + 1 ranks stay equally probable where
    background is exactly 0. Their histogram has the shape ∪ where the spread is too small, ∩ where it is too large,
    and a slope where there is a bias. samples: (B, S, ...). Returns (B, ...) int64.
    Hamill (2001, Mon. Wea. Rev. 129:550). Raises ValueError for shapes that do not fit, values that are not finite, a
    generator of another device.
    """
    cpu_generator("generator", generator)
    below, equal = _below(samples, truth)
    drawn = torch.rand(below.shape, generator=generator, dtype=torch.float64)
    return below + (drawn * (equal + 1)).long()


def covered(samples: Tensor, truth: Tensor, level: float) -> Tensor:
    """Probability that the central interval of this level holds the truth, (B, ...) float64, mostly 0 or 1.

    S samples split the probability into S + 1 equal parts, and the truth lies in one of them: with rank r, its place
    is uniform in [r, r + 1] / (S + 1). The result is the share of that range within level / 2 of 1/2. For a calibrated
    ensemble its mean is the level, whatever S. (The interval between two quantiles of the S samples is too narrow:
    even the one from the lowest to the highest sample holds only (S − 1) / (S + 1).) With ties, the range is that of
    all equal ranks.
    Raises ValueError for a level outside [0, 1], and what `ranks` raises.
    """
    return _inside(*_below(samples, truth), tensor("samples", samples).shape[1], level)


def coverage(samples: Tensor, truth: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Share of the truths in the central intervals of these levels: (L,) float64, NaN of none. See `covered`."""
    below, equal = _below(samples, truth)
    many = tensor("samples", samples).shape[1]
    return torch.stack([_inside(below, equal, many, level).mean() for level in levels])


def tarp(samples: Tensor, truth: Tensor, references: Tensor, generator: torch.Generator) -> Tensor:
    """Share of the samples that lie nearer to a reference point than the truth does: (B,) float64 in (0, 1).

    Uniform over frames for a calibrated sampler, wherever the references are, as long as they do not depend on the
    truth of their frame. It sees all pixels jointly. Draws of the prior pass it, too, where the references do not
    depend on the frame: then it asks whether a model is calibrated, not whether it looks at the frame.
    samples: (B, S, ...); truth, references: (B, ...). The share is that of `ranks`, (r + uniform) / (S + 1).
    Lemos et al. (2023, ICML). Raises ValueError as `ranks` does, or for references of another shape.
    """
    samples, truth = ensemble(samples, truth)
    references = on_host("references", references).to(truth)
    if references.shape != truth.shape:
        raise ValueError(f"references must have the truth's shape {tuple(truth.shape)}, got {tuple(references.shape)}")
    far = (samples - references[:, None]).flatten(2).norm(dim=2)  # (B, S)
    below = ranks(far, (truth - references).flatten(1).norm(dim=1), generator)
    drawn = torch.rand(below.shape, generator=generator, dtype=torch.float64)
    return (below + drawn) / (samples.shape[1] + 1)


# -- spread ------------------------------------------------------------------------------------------------


def spread_skill(samples: Tensor, truth: Tensor) -> float:
    """√((S + 1) / S) · rms sd of the samples / rms error of their mean: 1 where calibrated, below 1 if too narrow.

    The squared error of the mean of S samples is 1 + 1/S times the variance of a draw; sd is the unbiased one.
    Fortin et al. (2014, J. Hydrometeorol. 15:1708). samples: (B, S, ...). NaN of no values.
    Raises ValueError as `crps` does.
    """
    samples, truth = ensemble(samples, truth, 2)
    many = samples.shape[1]
    variance, error = _moments(samples, truth)
    return math.sqrt((many + 1) / many * variance / error) if error > 0 else math.inf if variance > 0 else math.nan


def predicted_sd(exact_sd: Tensor, estimate_error: Tensor, where: Tensor | None = None) -> float:
    """rms sd that an ideal model of p(y | ŷ) has: √ mean(Var[y|x] + (ŷ − E[y|x])²).

    Var(y|ŷ) = E[Var(y|x)|ŷ] + Var(E[y|x]|ŷ), averaged over frames. The second term is the mean of (ŷ − E[y|x])² where
    E[y|ŷ] = ŷ, as for a φ trained to the minimum of the squared error; otherwise that mean exceeds it by the squared
    bias.

    exact_sd: √Var[y|x]; estimate_error: ŷ − E[y|x], the same shape. where: bool of that shape, the pixels that count;
    choose them by E[y|x] or ŷ. Raises ValueError for shapes that differ, values that are not finite, a negative
    sd, or no pixels.
    """
    sd, error = (on_host(n, x) for n, x in (("exact_sd", exact_sd), ("estimate_error", estimate_error)))
    non_negative("exact_sd", sd)
    where = torch.ones_like(sd, dtype=torch.bool) if where is None else tensor("where", where, mask=True).cpu()
    if where.dtype != torch.bool:
        raise ValueError(f"where must be bool, got {where.dtype}")
    if not sd.shape == error.shape == where.shape:
        shapes = [tuple(x.shape) for x in (sd, error, where)]
        raise ValueError(f"exact_sd, estimate_error and where must have one shape, got {shapes}")
    if not bool(where.any()):
        raise ValueError("where must choose at least one pixel, got none")
    return float((sd.square() + error.square())[where].mean().sqrt())


@dataclass(frozen=True)
class Sparsification:
    """The error that remains when the most uncertain values are removed.

    removed: (K,) share removed, from 0. curve: (K,) rms error of the others over that of all. oracle: (K,) the same
    where the largest errors are removed first. area: between the two curves: 0 for an sd that sorts the values as
    their errors do; area_random: the same for an sd without information.
    """

    removed: Tensor
    curve: Tensor
    oracle: Tensor
    area: float
    area_random: float


def sparsification(sd: Tensor, error: Tensor, points: int = 100) -> Sparsification:
    """Does the claimed sd sort the values by their errors? The scale of the sd does not matter.

    sd: claimed; error: with or without sign, of the same shape. points: of the curves. Values with equal sds have no
    order: each is given their mean squared error. Ilg et al. (2018, ECCV), with the area against the oracle.
    Raises ValueError for shapes that differ, values that are not finite, a negative sd, or errors that are all 0.
    """
    sd, error = on_host("sd", sd), on_host("error", error)
    uncertain, squared = sd.flatten(), error.flatten().square()
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
        left = (ascending.cumsum(0) / rest).sqrt()  # rms error of the first 1, 2, … n values
        return left.flip(0) / left[-1]

    ours, oracle = curve(shared[tie.sort().values]), curve(squared.sort().values)
    shown = torch.linspace(0, len(squared) - 1, min(whole("points", points), len(squared))).round().long()
    area, area_random = (float((x - oracle).mean()) for x in (ours, torch.ones_like(oracle)))
    return Sparsification(shown.double() / len(squared), ours[shown], oracle[shown], area, area_random)


# -- one table ------------------------------------------------------------------------------------------


def summary(samples: Tensor, truth: Tensor, mean: Tensor, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
    """A row for each class of pixels and one for all: number, rms sd and error, spread–skill, CRPS, coverage.

    Arguments as in `strata` and `coverage`; the columns of coverage are named after the level, "coverage_80".
    """
    import pandas as pd  # here, since it takes half a second to load

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
    samples, truth = ensemble(samples, truth)
    pairs = [((x < y[..., None]).sum(-1), (x == y[..., None]).sum(-1)) for x, y in parts(samples, truth)]
    below, equal = zip(*pairs, strict=True) if pairs else ((), ())
    return joined(below, truth).long(), joined(equal, truth).long()


def _inside(below: Tensor, equal: Tensor, many: int, level: float) -> Tensor:
    """Share of the range of the truth's rank, on 0 … 1, within the central interval: (B, ...) float64."""
    number("level", between("level", level, 0, 1))
    low, high = below.double() / (many + 1), (below + equal + 1).double() / (many + 1)
    return (high.clamp(max=0.5 + level / 2) - low.clamp(min=0.5 - level / 2)).clamp(min=0) / (high - low)


def _moments(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean of the samples' unbiased variance, and mean squared error of their mean; NaN where there are no values."""
    variance = error = 0.0
    for x, y in parts(samples, truth):
        variance += x.var(-1, ddof=1).sum()
        error += ((x.mean(-1) - y) ** 2).sum()
    count = truth.numel()
    return (float(variance / count), float(error / count)) if count else (math.nan, math.nan)
