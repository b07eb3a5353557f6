"""The sets of emitters that explain a frame: the modes of its posterior, found by fits.

From a first guess: drop an emitter, split one, add one where the frame is brighter than its fit, fit again, and go on
from the best. What a mode is worth is told by Laplace's evidence, its height times the volume of the normal
distribution about it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..estimation.joint import JointFit, fit_emitters
from ..imaging.fast_psf import pixel_integral_fast
from ..imaging.psf import Emitters
from .one import Prior

SAME = 0.02  # modes with as many emitters whose deviances differ by less are one
FAR = 0.7  # px: sd of a position under q where the frame hardly tells it, as that of two on top of each other
WINDOW = 8.0  # nats below the best mode: those are kept
SPLIT = 0.5  # px: half of the distance at which an emitter's halves start
KEPT = 8  # modes of a frame, at most
PATIENCE = 3  # emitters that are added in vain before an empty frame counts as filled


class Mode(NamedTuple):
    """Emitters (K, 3) as u, v, N at a mode, its deviance, and its log evidence, Laplace's, up to a constant."""

    emitters: Tensor
    deviance: float
    evidence: float


@dataclass(frozen=True)
class Problem:
    """Frames and variance (B, H, W), log p(K) (M + 1,), and the ends of the prior (5, 2) as in fit.PARAMETERS."""

    frames: Tensor
    variance: Tensor
    log_count: Tensor
    limits: Tensor

    def fit(self, rows: Tensor, sets: list[Tensor], iterations: int = 15) -> JointFit:
        """The fits of sets of emitters (K, 3), of one frame each."""
        (left, right), (top, bottom), photons, background, sigma = ((low, high) for low, high in self.limits.tolist())
        return fit_emitters(
            self.frames[rows],
            padded(sets),
            self.variance[rows],
            photons,
            background,
            sigma,
            (left, right, top, bottom),
            max_iterations=iterations,
        )

    def log_prior(self, number: Tensor) -> Tensor:
        """log of p(K) K! / volume: the density of emitters whose order is that of their mode."""
        width = (self.limits[:, 1] - self.limits[:, 0]).log()
        return self.log_count[number] + torch.lgamma(number.double() + 1) - number * width[:3].sum() - width[3:].sum()

    def rate(self, rows: Tensor, theta: Tensor, present: Tensor) -> Tensor:
        """ω' (R, S, H, W) of parameters (R, S, P) of frames (R,)."""
        u, v, photons = (theta[..., k:-2:3] for k in range(3))
        sigma = theta[..., -1:].expand_as(u)
        height, width = self.frames.shape[1:]
        columns, lines = pixel_integral_fast(u, sigma, width), pixel_integral_fast(v, sigma, height)
        light = torch.einsum("rse,rseh,rsew->rshw", photons * present[:, None], lines, columns)
        return (light + theta[..., -2, None, None] + self.variance[rows][:, None]).clamp(min=1e-3)

    def log_likelihood(self, rows: Tensor, rate: Tensor) -> Tensor:
        """Σ x' log ω' − ω': (R, S)."""
        counts = (self.frames + self.variance)[rows][:, None]
        return (counts * rate.log() - rate).sum((-2, -1))


def limits_of(prior: Prior, shape: tuple[int, int]) -> Tensor:
    """Ends (5, 2) of a prior for frames (H, W). ValueError unless all its parameters have intervals."""
    limits = prior.bounds(shape)
    if prior.disc or not bool((limits[:, 0] < limits[:, 1]).all()):
        raise ValueError(f"prior must have intervals for all parameters and no disc, got {prior}")
    return limits


def grown(problem: Problem) -> list[Tensor]:
    """A set of emitters (K, 3) for each frame: from none on, one more where light lacks most, while that pays."""
    most, best = len(problem.log_count) - 1, [Mode(torch.zeros(0, 3).double(), 0.0, -math.inf) for _ in problem.frames]
    proposed, idle = [(i, mode.emitters) for i, mode in enumerate(best)], [0] * len(best)
    while proposed:
        going = []
        for i, mode in fitted_modes(problem, proposed):
            idle[i] = 0 if mode.evidence > best[i].evidence else idle[i] + 1
            best[i] = max(best[i], mode, key=lambda x: x.evidence)
            if idle[i] < PATIENCE and len(mode.emitters) < most:
                going.append((i, mode.emitters))
        added = lacking(problem, going, 1) if going else []
        proposed = [(i, torch.cat([emitters, more])) for (i, emitters), more in zip(going, added, strict=True)]
    return [mode.emitters for mode in best]


def search(problem: Problem, first: list[Tensor], rounds: int, beam: int) -> list[list[Mode]]:
    """The modes of each frame, the best first, from one set of emitters (K, 3) for each."""
    proposed, found = list(enumerate(first)), [[] for _ in first]
    expanded: list[set[tuple[int, float]]] = [set() for _ in first]
    for k in range(rounds + 1):
        for i, mode in fitted_modes(problem, proposed):
            found[i].append(mode)
        found = [best_modes(modes, None) for modes in found]
        if k == rounds:
            break
        going = []
        for i, modes in enumerate(found):
            for mode in best_modes(modes, beam):
                name = (len(mode.emitters), mode.deviance)
                if name not in expanded[i]:
                    expanded[i].add(name)
                    going.append((i, mode.emitters))
        proposed = neighbours(problem, going, len(problem.log_count) - 1)
        if not proposed:
            break
    return [best_modes(modes) for modes in found]


def best_modes(modes: list[Mode], most: int | None = KEPT) -> list[Mode]:
    """The best modes, each once; most: how many within WINDOW of the best, None: all of them."""
    kept: list[Mode] = []
    for mode in sorted(modes, key=lambda mode: -mode.evidence):
        same = (len(x.emitters) == len(mode.emitters) and abs(x.deviance - mode.deviance) < SAME for x in kept)
        if most is not None and (len(kept) == most or (kept and mode.evidence < kept[0].evidence - WINDOW)):
            break
        if not any(same):
            kept.append(mode)
    return kept


def disagreement_of(one: list[list[Mode]], other: list[list[Mode]], most: int) -> Tensor:
    """Half of the summed distance of p(K) as each search alone has it, by Laplace's evidence: (B,)."""
    out = []
    for pair in zip(one, other, strict=True):
        shares = []
        for modes in pair:
            weight = torch.softmax(torch.tensor([mode.evidence for mode in modes]), 0)
            number = torch.tensor([len(mode.emitters) for mode in modes])
            shares.append(torch.zeros(most + 1).scatter_add(0, number, weight))
        out.append((shares[0] - shares[1]).abs().sum() / 2)
    return torch.stack(out).double()


def fitted_modes(problem: Problem, proposed: list[tuple[int, Tensor]]) -> list[tuple[int, Mode]]:
    """The fits of what is proposed, with Laplace's evidence: the height of the mode times the volume about it."""
    rows = torch.tensor([i for i, _ in proposed])
    fit = problem.fit(rows, [emitters for _, emitters in proposed])
    number = fit.emitters.mask.sum(1)
    log_det = 2 * torch.linalg.cholesky(precision(fit)).diagonal(dim1=1, dim2=2).log().sum(1)
    volume = (3 * number + 2) / 2 * math.log(2 * math.pi) - log_det / 2
    evidence = -fit.deviance / 2 + problem.log_prior(number) + volume
    table = torch.stack([fit.emitters.u, fit.emitters.v, fit.emitters.photons], -1)
    return [
        (i, Mode(table[k][fit.emitters.mask[k]], float(fit.deviance[k]), float(evidence[k])))
        for k, (i, _) in enumerate(proposed)
    ]


def neighbours(problem: Problem, going: list[tuple[int, Tensor]], most: int) -> list[tuple[int, Tensor]]:
    """From each set: one emitter dropped; one split, along u or v; one added at the two places that lack light most."""
    if not going:
        return []
    out, places = [], lacking(problem, going)
    for (i, emitters), added in zip(going, places, strict=True):
        more = []
        for k in range(len(emitters)):
            others = torch.cat([emitters[:k], emitters[k + 1 :]])
            out.append((i, others))
            half = emitters[k] * emitters.new_tensor([1, 1, 0.5])
            for step in emitters.new_tensor([[SPLIT, 0, 0], [0, SPLIT, 0]]):
                more.append(torch.cat([others, (half + step)[None], (half - step)[None]]))
        more += [torch.cat([emitters, one[None]]) for one in added]
        out += [(i, x) for x in more if len(x) <= most]
    return out


def lacking(problem: Problem, going: list[tuple[int, Tensor]], count: int = 2) -> list[Tensor]:
    """Where a new emitter would raise the likelihood most, and its best N to first order: (count, 3) for each set."""
    rows = torch.tensor([i for i, _ in going])
    fit = problem.fit(rows, [emitters for _, emitters in going], 2)
    rate = problem.rate(rows, parameters(fit)[:, None], fit.emitters.mask)[:, 0]
    counts = (problem.frames + problem.variance)[rows]
    (left, right), (top, bottom), (dim, bright) = problem.limits[:3].tolist()
    u, v = (torch.arange(math.ceil(a + 0.5), b, dtype=torch.float64) for a, b in ((left, right), (top, bottom)))
    height, width = rate.shape[1:]
    columns, lines = (pixel_integral_fast(x, torch.ones_like(x), n) for x, n in ((u, width), (v, height)))
    score = torch.einsum("rhw,ih,jw->rij", counts / rate - 1, lines, columns)
    information = torch.einsum("rhw,ih,jw->rij", 1 / rate, lines**2, columns**2)
    gain = torch.where(score > 0, score.square() / information, 0.0)
    found = []
    for k in range(len(rows)):
        places = []
        for _ in range(count):
            i, j = divmod(int(gain[k].argmax()), len(u))
            photons = float((score[k, i, j] / information[k, i, j]).clamp(dim, bright))
            places.append([float(u[j]), float(v[i]), photons])
            gain[k, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3] = -1
        found.append(torch.tensor(places, dtype=torch.float64))
    return found


def precision(fit: JointFit) -> Tensor:
    """The information with that of a position known to FAR: two on top of each other have none along their distance."""
    places = fit.emitters.mask.double()[..., None] * fit.information.new_tensor([FAR**-2, FAR**-2, 0.0])
    more = torch.cat([places.flatten(1), places.new_zeros(len(places), 2)], 1)
    return fit.information + torch.diag_embed(more)


def parameters(fit: JointFit) -> Tensor:
    """All parameters in a row, (R, P), in the order of the information."""
    own = torch.stack([fit.emitters.u, fit.emitters.v, fit.emitters.photons], -1).flatten(1)
    return torch.cat([own, fit.background[:, None], fit.sigma[:, None]], 1)


def padded(sets: list[Tensor]) -> Emitters:
    """Sets of emitters (K, 3) as one batch."""
    size = max(1, *(len(x) for x in sets))
    table = torch.zeros(len(sets), size, 3, dtype=torch.float64)
    for k, emitters in enumerate(sets):
        table[k, : len(emitters)] = emitters
    present = torch.arange(size) < torch.tensor([len(x) for x in sets])[:, None]
    return Emitters(table[..., 0], table[..., 1], table[..., 2], present)
