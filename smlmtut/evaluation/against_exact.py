"""Samples of a model against draws from the exact posterior of the same frames.

A model can be calibrated against the truth and ignore the frame: draws from the prior are. What is computed here asks
for more: are these the samples that the exact posterior of *this* frame would give? Every score is 0 in expectation for
a model that is exact, at any number of samples, so what is left is the model's error and not the samples'.

Samples are (B, S, ...), exact draws (B, R, ...): S and R images for each of B frames. Results are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._validate import finite, non_negative, tensor, whole
from ..imaging.kde import to_coordinates
from .proper_scores import on_host

RESAMPLES = 1000
PROJECTIONS = 10  # random directions in the space of images


@dataclass(frozen=True)
class Regret:
    """How much worse a model scores than the exact posterior, frame by frame.

    excess: (B,) expected score of the model minus that of the exact posterior. scale: (B,) the latter.
    """

    excess: Tensor
    scale: Tensor

    def relative(self) -> float:
        """Sum of the excesses over the sum of the scales: 0.02 is 2 %."""
        return float(self.excess.sum() / self.scale.sum())

    def error(self, seed: int = 0) -> float:
        """Standard error of `relative` by bootstrap over the frames."""
        return bootstrap_error(lambda i: float(self.excess[i].sum() / self.scale[i].sum()), len(self.excess), seed)

    def minus(self, other: Regret, seed: int = 0) -> tuple[float, float]:
        """How much larger it is than another one of the same frames, and the error of that: what both share drops out.

        Raises ValueError for another number of frames.
        """
        if len(self.excess) != len(other.excess):
            raise ValueError(f"other must have the same {len(self.excess)} frames, got {len(other.excess)}")

        def difference(i: Tensor) -> float:
            one, two = (float(x.excess[i].sum() / x.scale[i].sum()) for x in (self, other))
            return one - two

        frames = len(self.excess)
        return difference(torch.arange(frames)), bootstrap_error(difference, frames, seed)


def bootstrap_error(statistic: Callable[[Tensor], float], frames: int, seed: int = 0) -> float:
    """Standard error of a statistic: its sd over RESAMPLES choices, with replacement, of as many frames.

    statistic: of the indices of the chosen frames, (frames,) int64. Resamples of which it is NaN are left out.
    Raises ValueError for fewer than two frames.
    """
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    chosen = torch.randint(whole("frames", frames, 2), (RESAMPLES, frames), generator=generator)
    return float(np.nanstd([statistic(i) for i in chosen], ddof=1))


def energy_regret(samples: Tensor, exact: Tensor) -> Regret:
    """Expected energy score of samples minus that of exact draws: E‖X − Y‖ − ½ E‖X − X′‖ − ½ E‖Y − Y′‖.

    ‖·‖: over all pixels, so that it sees what pixels have in common. Each mean is over distinct pairs. It is half of
    Székely & Rizzo's energy distance (2013, J. Stat. Plan. Inference 143:1249). The scale is ½ E‖Y − Y′‖.
    Raises ValueError for shapes that do not fit, values that are not finite, or fewer than two samples.
    """
    samples, exact = _two(samples, exact)
    excess, scale = [], []
    for x, y in zip(samples, exact, strict=True):
        x, y = (part.detach().cpu().double().flatten(1) for part in (x, y))
        within_x, within_y = (torch.pdist(part).mean() / 2 for part in (x, y))
        excess.append(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").mean() - within_x - within_y)
        scale.append(within_y)
    return Regret(torch.stack(excess), torch.stack(scale))


def crps_regret(samples: Tensor, exact: Tensor, where: Tensor | None = None) -> Regret:
    """The same for each pixel by itself, summed over the pixels of each frame: what a marginal sd can get right.

    where: (B, ...) bool, the pixels that count, chosen by what is given, such as ŷ; None, all.
    Raises ValueError as `energy_regret` does, or for `where` of another shape.
    """
    samples, exact = _two(samples, exact)
    shape = (samples.shape[0], *samples.shape[2:])
    counted = torch.ones(shape, dtype=torch.bool) if where is None else tensor("where", where, mask=True).cpu()
    if tuple(counted.shape) != shape:
        raise ValueError(f"where must have shape {shape}, got {tuple(counted.shape)}")
    many, kept = samples.shape[1], exact.shape[1]
    excess, scale = [], []
    for x, y, pixels in zip(samples, exact, counted, strict=True):
        x, y = (part.detach().cpu().double()[:, pixels] for part in (x, y))  # (S, n), (R, n)
        own, theirs, all_pairs = (_pairs(part) for part in (x, y, torch.cat([x, y])))
        spread = theirs / (kept * (kept - 1))
        between = (all_pairs - own - theirs) / (many * kept)
        excess.append((between - own / (many * (many - 1)) - spread).sum())
        scale.append(spread.sum())
    return Regret(torch.stack(excess), torch.stack(scale))


def log_error_bar(samples: Tensor, exact_sd: Tensor, where: Tensor) -> Tensor:
    """ln (rms sd of the samples / rms exact sd) of each frame, both over the pixels `where`: (B,) float64.

    Its mean over frames is the bias of the error bar; its standard deviation is how far a single frame's is off.
    exact_sd: (B, ...). where: (B, ...) bool, at least one pixel a frame, chosen by what is given.
    Raises ValueError for shapes that do not fit, values that are not finite, no pixels, or fewer than two samples.
    """
    samples, sd = tensor("samples", finite("samples", samples)), on_host("exact_sd", exact_sd)
    chosen = tensor("where", where, mask=True).cpu()
    whole("the number of samples", samples.shape[1] if samples.ndim > 1 else 0, 2)
    if not (samples.shape[0], *samples.shape[2:]) == tuple(sd.shape) == tuple(chosen.shape):
        shapes = [tuple(x.shape) for x in (samples, sd, chosen)]
        raise ValueError(f"samples, exact_sd and where must be (B, S, ...), (B, ...), (B, ...), got {shapes}")
    if not bool(chosen.flatten(1).any(1).all()):
        raise ValueError("where must choose at least one pixel of each frame, got a frame without")
    ours = [x.detach().cpu().double()[:, p].var(0).mean() for x, p in zip(samples, chosen, strict=True)]
    theirs = [s[p].square().mean() for s, p in zip(non_negative("exact_sd", sd), chosen, strict=True)]
    return (torch.stack(ours) / torch.stack(theirs)).log() / 2


def peak_counts(samples: Tensor, factor: int, sigma: float, height: float = 0.5) -> Tensor:
    """How many peaks of at least this height each image has, (B, S) int64: how many emitters it shows.

    samples: (B, S, f·H, f·W) KDEs; factor, sigma: as in `to_coordinates`. Emitters that are closer than about two
    sd of a kernel are one peak, so compare with the peaks of exact images and not with the number of emitters.
    """
    samples = tensor("samples", samples)
    if samples.ndim != 4:
        raise ValueError(f"samples must be (B, S, f·H, f·W), got {tuple(samples.shape)}")
    found = to_coordinates(samples.flatten(0, 1)[:, None], factor, sigma, height)
    return torch.bincount(found.frame.cpu(), minlength=samples[:, :, 0, 0].numel()).reshape(samples.shape[:2])


def count_log_loss(counts: Tensor, exact: Tensor, most: int) -> Regret:
    """−ln p(K), expected over exact draws of K, of a model's p(K) minus that of the exact posterior, in nat.

    counts: (B, S) a model's draws of K; exact: (B, R). p(K) is the share of the draws with one more spread evenly over
    0 … most; for an exact draw it is the share of the others, so an exact model with as many draws has 0. The scale
    is the exact one's log loss, about the entropy of K. Counts above `most` are counted as `most`.
    Raises ValueError for shapes that do not fit, or negative counts.
    """
    counts, exact = (tensor(n, non_negative(n, x)).cpu().long() for n, x in (("counts", counts), ("exact", exact)))
    if counts.ndim != 2 or exact.ndim != 2 or len(counts) != len(exact):
        raise ValueError(f"counts and exact must be (B, S) and (B, R), got {tuple(counts.shape)}, {tuple(exact.shape)}")
    classes = whole("most", most) + 1
    given, drawn = (torch.nn.functional.one_hot(x.clamp(max=most), classes).double() for x in (counts, exact))
    model = (given.sum(1) + 1 / classes) / (given.shape[1] + 1)  # (B, K)
    others = (drawn.sum(1, keepdim=True) - drawn + 1 / classes) / drawn.shape[1]  # (B, R, K)
    ours = -(drawn * model[:, None].log()).sum(-1).mean(1)
    theirs = -(drawn * others.log()).sum(-1).mean(1)
    return Regret(ours - theirs, theirs)


def share_error(shares: Tensor, draws: int, exact: Tensor, exact_draws: int) -> float:
    """Root of the mean squared difference of two probabilities that are known as shares of draws, without their noise.

    shares: (B,) of `draws` draws of a model; exact: (B,) of `exact_draws` exact draws. A share q of n draws varies by
    p (1 − p) / n, of which q (1 − q) / (n − 1) is an unbiased estimate; both are subtracted from the mean square, and
    0 is returned where more is subtracted than there is. Without it two exact sets of 64 draws are .09 apart.
    Raises ValueError for shares outside 0–1, shapes that differ, or fewer than two draws.
    """
    shares, exact = (on_host(name, x) for name, x in (("shares", shares), ("exact", exact)))
    if shares.shape != exact.shape or shares.ndim != 1:
        raise ValueError(f"shares and exact must be (B,), got {tuple(shares.shape)} and {tuple(exact.shape)}")
    for name, x in (("shares", shares), ("exact", exact)):
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(f"{name} must lie between 0 and 1, got values from {float(x.min())} to {float(x.max())}")
    known = [(shares, whole("draws", draws, 2)), (exact, whole("exact_draws", exact_draws, 2))]
    noise = sum(x * (1 - x) / (n - 1) for x, n in known)
    return math.sqrt(max(0.0, float(((shares - exact).square() - noise).mean())))


def summary_vector(samples: Tensor, factor: int, sigma: float, seed: int = 0) -> Tensor:
    """What a classifier sees of each image, (B, S, 6 + PROJECTIONS) float64.

    Mass, largest value, number of peaks, entropy of the light, its spread along both axes, and random projections of
    the image. samples: as in `peak_counts`. seed: of the directions.
    """
    samples = tensor("samples", finite("samples", samples))
    peaks = peak_counts(samples, factor, sigma)
    y = samples.detach().cpu().double()
    light = y.clamp(min=0)
    share = light / light.sum((-2, -1), keepdim=True).clamp(min=1e-9)
    entropy = torch.special.entr(share).sum((-2, -1))
    along = [torch.arange(n, dtype=torch.float64) for n in y.shape[-2:]]
    shares = [share.sum(-1), share.sum(-2)]
    centres = [(s * x).sum(-1, keepdim=True) for s, x in zip(shares, along, strict=True)]
    spreads = [(s * (x - c) ** 2).sum(-1).sqrt() for s, x, c in zip(shares, along, centres, strict=True)]
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    directions = torch.randn(PROJECTIONS, *y.shape[-2:], generator=generator, dtype=torch.float64)
    projected = torch.einsum("bshw,phw->bsp", y, directions)
    first = [y.sum((-2, -1)), y.amax((-2, -1)), peaks.double(), entropy, *spreads]
    return torch.cat([torch.stack(first, -1), projected], -1)


def two_sample_accuracy(samples: Tensor, exact: Tensor, classifier: object, seed: int = 0) -> tuple[float, float]:
    """Share of held-out images that a classifier assigns rightly to model or exact posterior, and its standard error.

    samples, exact: (B, S, n) and (B, R, n) from `summary_vector`, R even. Half of the exact draws give each frame's
    mean and sd (at least a tenth of the rms sd over the frames), in whose units the others, and as many samples, are
    expressed: so the classifier sees whether they lie where this frame's posterior does. classifier: with `fit` and
    `predict`, as scikit-learn's have. It learns on half of the frames and is asked about the others, then the halves
    change places; no frame is on both sides. 0.5 is what an exact model has. The error takes frames, not images, as
    independent.
    Raises ValueError for shapes that do not fit, values that are not finite, or fewer than four frames.
    """
    samples, exact = _two(samples, exact)
    half = exact.shape[1] // 2
    if samples.ndim != 3 or len(samples) < 4 or half < 2 or samples.shape[1] < exact.shape[1] - half:
        raise ValueError(
            "samples and exact must be (B, S, n) and (B, R, n) with B and R of at least 4 and S of at least R / 2, "
            f"got {tuple(samples.shape)} and {tuple(exact.shape)}"
        )
    samples, exact = samples.cpu().double(), exact.cpu().double()
    known, drawn = exact[:, :half], exact[:, half:]
    both = torch.cat([samples[:, : drawn.shape[1]], drawn], 1)
    sd = known.std(1, keepdim=True)
    least = sd.square().mean(0, keepdim=True).sqrt() / 10  # a number of peaks that never varies in a frame has sd 0
    both = (both - known.mean(1, keepdim=True)) / sd.maximum(least.clamp(min=1e-9))
    label = (torch.arange(both.shape[1]) >= drawn.shape[1]).long().expand(len(both), -1)
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(whole("seed", seed, 0)))
    right = torch.zeros(len(both), dtype=torch.float64)
    for test, train in zip(order.chunk(2), reversed(order.chunk(2)), strict=True):
        classifier.fit(both[train].flatten(0, 1).numpy(), label[train].flatten().numpy())  # type: ignore[attr-defined]
        said = torch.as_tensor(classifier.predict(both[test].flatten(0, 1).numpy()))  # type: ignore[attr-defined]
        right[test] = (said.reshape(len(test), -1) == label[test]).double().mean(1)
    return float(right.mean()), float(right.std() / math.sqrt(len(right)))


def _pairs(x: Tensor) -> Tensor:
    """Σ |x_i − x_j| over the pairs i < j of the first dimension: of sorted values, each counts 2 i − n − 1 times."""
    weight = 2 * torch.arange(1, len(x) + 1, dtype=x.dtype) - len(x) - 1
    return weight @ x.sort(0).values


def _two(samples: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Both as tensors, after checking that they are images of the same frames, at least two of each, and finite."""
    samples, exact = tensor("samples", samples), tensor("exact", exact)
    shapes = [(x.shape[0], *x.shape[2:]) if x.ndim > 1 else None for x in (samples, exact)]
    if None in shapes or shapes[0] != shapes[1] or min(samples.shape[1], exact.shape[1]) < 2:
        raise ValueError(
            "samples and exact must have shapes (B, S, ...) and (B, R, ...) with S and R of at least 2, "
            f"got {tuple(samples.shape)} and {tuple(exact.shape)}"
        )
    return finite("samples", samples), finite("exact", exact)
