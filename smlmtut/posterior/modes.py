"""The posterior of an unknown number of emitters as a sum over the sets of emitters that explain the frame.

Each such set is a mode of the posterior. Modes are searched for from a first guess: drop an emitter, split one, add one
where the frame is brighter than its fit, fit again, and go on from the best. About a mode the posterior is nearly
normal. Draws from these normal distributions are weighted by p(x, θ) / q(θ), which makes them draws from the posterior
(importance sampling), however wrong the normal shape is; the effective size of the weights says what they are worth.
Nothing has to converge, but a mode that the search does not find is missing, and no weight can tell. So there are two
searches, one from the first guess and one from an empty frame, and their disagreement is stated.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .._validate import finite, floating, instance, non_negative, tensor, whole
from ..estimation.joint import JointFit, fit_emitters
from ..imaging.psf import Emitters, pixel_integral_fast
from .many import _count_probabilities
from .one import Prior

SAME = 0.02  # modes with as many emitters whose deviances differ by less are one
FAR = 0.7  # px: sd of a position under q where the frame hardly tells it, as that of two on top of each other
WIDER = 1.3  # variance of q in units of that of the normal distribution: a heavy tail costs more than a light one
CLOSE = 2.0  # px: emitters of a mode that are closer may change places
WINDOW = 8.0  # nats below the best mode: those are kept
SPLIT = 0.5  # px: half of the distance at which an emitter's halves start
KEPT = 8  # modes of a frame, at most
ENOUGH, MORE = 100.0, 16  # effective size below which a frame gets so many times the draws, once
PATIENCE = 3  # emitters that are added in vain before an empty frame counts as filled


class Mode(NamedTuple):
    """Emitters (K, 3) as u, v, N at a mode, its deviance, and its log evidence, Laplace's, up to a constant."""

    emitters: Tensor
    deviance: float
    evidence: float


@dataclass(frozen=True)
class ModeDraws:
    """S draws of equal weight from p(K, u, v, N, b, σ | x) of B frames.

    u, v (px), photons (e⁻): (B, S, E), 0 where there is no emitter. background (e⁻), sigma (px): (B, S).
    count_probability: p(K | x), (B, M + 1). size: effective number of weighted draws, (B,), of which these are chosen.
    log_evidence: log p(x, K) for each K, (B, M + 1), in nats up to a constant of the frame; −∞ where no mode has K.
    modes: how many there are, (B,). disagreement: half of Σ |p_1(K) − p_2(K)| with the modes of each search alone and
    their evidence by Laplace, (B,).
    """

    u: Tensor
    v: Tensor
    photons: Tensor
    background: Tensor
    sigma: Tensor
    count_probability: Tensor
    log_evidence: Tensor
    size: Tensor
    modes: Tensor
    disagreement: Tensor

    def __len__(self) -> int:
        return len(self.u)

    def emitters(self, frame: int) -> Emitters:
        """The draws of one frame as a batch of emitters, (S, E)."""
        return Emitters(self.u[frame], self.v[frame], self.photons[frame], self.photons[frame] > 0)


def mode_posterior(
    frames: Tensor,
    counts: Tensor,
    start: Emitters,
    generator: torch.Generator,
    read_variance: float | Tensor = 0.0,
    prior: Prior | None = None,
    samples: int = 64,
    *,
    draws: int = 1024,
    rounds: int = 5,
    beam: int = 6,
) -> ModeDraws:
    """Draw emitters of every frame by importance sampling from the modes of their posterior, on the CPU.

    frames: (B, H, W) photo-electrons. counts: p(K) for K = 0 … M, as `count_prior` gives. start: (B, any) first guess.
    read_variance: e⁻², a number, (H, W) or (B, H, W). prior: of each emitter, of b and σ, all uniform over intervals.
    samples: S. draws: weighted ones for each mode; of a frame in which fewer than ENOUGH of them count there are MORE.
    rounds: of each search; beam: modes that each of them goes on from.
    The normal distribution about a mode is Laplace's (Tierney & Kadane 1986, J. Am. Stat. Assoc. 81:82); all modes with
    as many emitters share the denominator of the weights (Veach & Guibas 1995, SIGGRAPH).
    Raises ValueError for a value that is not finite, a wrong shape, or a prior with a known parameter or a disc.
    """
    frames = finite("frames", floating("frames", frames, 3)).cpu().double()
    variance = tensor("read_variance", non_negative("read_variance", read_variance)).cpu().double()
    if tuple(variance.shape) not in ((), tuple(frames.shape[1:]), tuple(frames.shape)):
        raise ValueError(
            f"read_variance must be a number or have shape {tuple(frames.shape[1:])} or {tuple(frames.shape)}, "
            f"got {tuple(variance.shape)}"
        )
    log_count = _count_probabilities(counts).cpu().log()
    given = Prior() if prior is None else instance("prior", prior, Prior)
    limits = given.bounds((frames.shape[1], frames.shape[2]))
    if given.disc or not bool((limits[:, 0] < limits[:, 1]).all()):
        raise ValueError(f"prior must have intervals for all parameters and no disc, got {given}")
    for name, value in (("samples", samples), ("draws", draws), ("rounds", rounds), ("beam", beam)):
        whole(name, value)
    if len(instance("start", start, Emitters)) != len(frames):
        raise ValueError(f"start must have a row for each of the {len(frames)} frames, got {len(start)}")
    problem, start = _Problem(frames, variance.expand(frames.shape), log_count, limits), start.to("cpu")
    table, most = torch.stack([start.u, start.v, start.photons], -1).double(), len(log_count) - 1
    guessed = [x[there][:most] for x, there in zip(table, start.mask, strict=True)]
    searches = [_search(problem, first, rounds, beam) for first in (guessed, _grown(problem))]
    found = [_best([*one, *other]) for one, other in zip(searches[0], searches[1], strict=True)]
    drawn = []
    for i, modes in enumerate(found):
        answer = _weighted(problem, i, modes, draws, samples, generator)
        if float(answer.size) < ENOUGH:
            answer = _weighted(problem, i, modes, MORE * draws, samples, generator)
        drawn.append(answer)
    return _gathered(drawn, _disagreement(searches[0], searches[1], most))


@dataclass(frozen=True)
class _Problem:
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
            _padded(sets),
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


# -- search ------------------------------------------------------------------------------------------------


def _grown(problem: _Problem) -> list[Tensor]:
    """A set of emitters (K, 3) for each frame: from none on, one more where light lacks most, while that pays."""
    most, best = len(problem.log_count) - 1, [Mode(torch.zeros(0, 3).double(), 0.0, -math.inf) for _ in problem.frames]
    proposed, idle = [(i, mode.emitters) for i, mode in enumerate(best)], [0] * len(best)
    while proposed:
        going = []
        for i, mode in _modes(problem, proposed):
            idle[i] = 0 if mode.evidence > best[i].evidence else idle[i] + 1
            best[i] = max(best[i], mode, key=lambda x: x.evidence)
            if idle[i] < PATIENCE and len(mode.emitters) < most:
                going.append((i, mode.emitters))
        added = _lacking(problem, going, 1) if going else []
        proposed = [(i, torch.cat([emitters, more])) for (i, emitters), more in zip(going, added, strict=True)]
    return [mode.emitters for mode in best]


def _search(problem: _Problem, first: list[Tensor], rounds: int, beam: int) -> list[list[Mode]]:
    """The modes of each frame, the best first, from one set of emitters (K, 3) for each."""
    proposed, found = list(enumerate(first)), [[] for _ in first]
    expanded: list[set[tuple[int, float]]] = [set() for _ in first]
    for k in range(rounds + 1):
        for i, mode in _modes(problem, proposed):
            found[i].append(mode)
        found = [_best(modes, None) for modes in found]
        if k == rounds:
            break
        going = []
        for i, modes in enumerate(found):
            for mode in _best(modes, beam):
                name = (len(mode.emitters), mode.deviance)
                if name not in expanded[i]:
                    expanded[i].add(name)
                    going.append((i, mode.emitters))
        proposed = _neighbours(problem, going, len(problem.log_count) - 1)
        if not proposed:
            break
    return [_best(modes) for modes in found]


def _best(modes: list[Mode], most: int | None = KEPT) -> list[Mode]:
    """The best modes, each once; most: how many within WINDOW of the best, None: all of them."""
    kept: list[Mode] = []
    for mode in sorted(modes, key=lambda mode: -mode.evidence):
        same = (len(x.emitters) == len(mode.emitters) and abs(x.deviance - mode.deviance) < SAME for x in kept)
        if most is not None and (len(kept) == most or (kept and mode.evidence < kept[0].evidence - WINDOW)):
            break
        if not any(same):
            kept.append(mode)
    return kept


def _disagreement(one: list[list[Mode]], other: list[list[Mode]], most: int) -> Tensor:
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


def _modes(problem: _Problem, proposed: list[tuple[int, Tensor]]) -> list[tuple[int, Mode]]:
    """The fits of what is proposed, with Laplace's evidence: the height of the mode times the volume about it."""
    rows = torch.tensor([i for i, _ in proposed])
    fit = problem.fit(rows, [emitters for _, emitters in proposed])
    number = fit.emitters.mask.sum(1)
    log_det = 2 * torch.linalg.cholesky(_precision(fit)).diagonal(dim1=1, dim2=2).log().sum(1)
    volume = (3 * number + 2) / 2 * math.log(2 * math.pi) - log_det / 2
    evidence = -fit.deviance / 2 + problem.log_prior(number) + volume
    table = torch.stack([fit.emitters.u, fit.emitters.v, fit.emitters.photons], -1)
    return [
        (i, Mode(table[k][fit.emitters.mask[k]], float(fit.deviance[k]), float(evidence[k])))
        for k, (i, _) in enumerate(proposed)
    ]


def _neighbours(problem: _Problem, going: list[tuple[int, Tensor]], most: int) -> list[tuple[int, Tensor]]:
    """From each set: one emitter dropped; one split, along u or v; one added at the two places that lack light most."""
    if not going:
        return []
    out, places = [], _lacking(problem, going)
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


def _lacking(problem: _Problem, going: list[tuple[int, Tensor]], count: int = 2) -> list[Tensor]:
    """Where a new emitter would raise the likelihood most, and its best N to first order: (count, 3) for each set."""
    rows = torch.tensor([i for i, _ in going])
    fit = problem.fit(rows, [emitters for _, emitters in going], 2)
    rate = problem.rate(rows, _theta(fit)[:, None], fit.emitters.mask)[:, 0]
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


# -- weights -----------------------------------------------------------------------------------------------


def _weighted(
    problem: _Problem, frame: int, modes: list[Mode], draws: int, samples: int, generator: torch.Generator
) -> ModeDraws:
    """Weighted draws about the modes of one frame, and of these as many of equal weight as are wanted."""
    rows = torch.full((len(modes),), frame)
    fit = problem.fit(rows, [mode.emitters for mode in modes], 3)
    theta = _normal(fit, draws, generator)  # (R, D, P)
    present, number = fit.emitters.mask, fit.emitters.mask.sum(1)
    likelihood = problem.log_likelihood(rows, problem.rate(rows, theta, present))
    allowed = _inside(problem, theta, present) & _ordered(_theta(fit), theta, present)
    joint = likelihood + problem.log_prior(number)[:, None]
    log_weight = torch.where(allowed, joint - _log_density(fit, theta), -math.inf)
    evidence = log_weight.logsumexp(1) - math.log(draws)  # log p(x, K), as far as it lies about each mode
    by_count = torch.full_like(problem.log_count, -math.inf)
    for k, value in zip(number.tolist(), evidence, strict=True):
        by_count[k] = torch.logaddexp(by_count[k], value)
    weight = torch.softmax(log_weight.flatten(), 0)
    # systematic resampling: each draw as often as its weight says, up to one
    ladder = (torch.arange(samples) + torch.rand((), generator=generator, dtype=torch.float64)) / samples
    chosen = torch.searchsorted(weight.cumsum(0), ladder).clamp(max=len(weight) - 1)
    chosen = chosen[torch.randperm(samples, generator=generator)]
    there = present[chosen // draws]
    u, v, photons = ((theta[..., k:-2:3].flatten(0, 1)[chosen] * there)[None] for k in range(3))
    background, sigma = (theta[..., k].flatten()[chosen][None] for k in (-2, -1))
    return ModeDraws(
        u, v, photons, background, sigma, torch.softmax(by_count, 0)[None], by_count[None],
        1 / weight.square().sum()[None], torch.tensor([len(modes)]), torch.zeros(1),
    )  # fmt: skip


def _normal(fit: JointFit, draws: int, generator: torch.Generator) -> Tensor:
    """Draws (R, D, P) from the normal distribution about each mode."""
    factor = torch.linalg.cholesky(_precision(fit) / WIDER)
    noise = torch.randn(len(factor), draws, factor.shape[-1], generator=generator, dtype=torch.float64)
    return _theta(fit)[:, None] + torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT


def _log_density(fit: JointFit, theta: Tensor) -> Tensor:
    """log of the sum of the normal densities of all modes with as many emitters, at draws of each: (R, D).

    Where modes overlap, a place that several of them reach must not count once for each of them.
    """
    precision, present, mode = _precision(fit) / WIDER, fit.emitters.mask, _theta(fit)
    number = present.sum(1).tolist()
    out = torch.full_like(theta[..., 0], -math.inf)
    for r, count in enumerate(number):
        kept = torch.cat([torch.arange(3 * count), torch.tensor([-2, -1]) + theta.shape[-1]])
        here, like = theta[r][:, kept], [k for k, other in enumerate(number) if other == count]
        for k in like:
            order = kept.clone()
            order[:-2] = _places(mode[r, : 3 * count], mode[k, : 3 * count])
            factor = torch.linalg.cholesky(precision[k][order][:, order])
            off = (here - mode[k, order]) @ factor
            log_q = factor.diagonal().log().sum() - 0.5 * off.square().sum(1) - len(kept) / 2 * math.log(2 * math.pi)
            in_order = torch.ones(len(here), dtype=torch.bool)
            if k != r:
                own = torch.ones(1, count, dtype=torch.bool)
                in_order = _ordered(mode[k, order][None], here[None], own)[0]
            out[r] = torch.where(in_order, torch.logaddexp(out[r], log_q), out[r])
    return out


def _places(here: Tensor, there: Tensor) -> Tensor:
    """Where each parameter of the emitters of a mode stands in another mode, (3 K,): by their nearest positions."""
    if not len(here):
        return torch.zeros(0, dtype=torch.long)
    own, other = here.reshape(-1, 3)[:, :2], there.reshape(-1, 3)[:, :2]
    nearest = torch.as_tensor(linear_sum_assignment(torch.cdist(own, other).square().numpy())[1])
    return (3 * nearest[:, None] + torch.arange(3)).flatten()


def _precision(fit: JointFit) -> Tensor:
    """The information with that of a position known to FAR: two on top of each other have none along their distance."""
    places = fit.emitters.mask.double()[..., None] * fit.information.new_tensor([FAR**-2, FAR**-2, 0.0])
    more = torch.cat([places.flatten(1), places.new_zeros(len(places), 2)], 1)
    return fit.information + torch.diag_embed(more)


def _inside(problem: _Problem, theta: Tensor, present: Tensor) -> Tensor:
    """Whether the prior allows the parameters: (R, D)."""
    low, high = problem.limits.T
    own, rest = theta[..., :-2].unflatten(-1, (-1, 3)), theta[..., -2:]
    inside = ((own >= low[:3]) & (own <= high[:3])).all(-1) | ~present[:, None]
    return inside.all(-1) & ((rest >= low[3:]) & (rest <= high[3:])).all(-1)


def _ordered(mode: Tensor, theta: Tensor, present: Tensor) -> Tensor:
    """Whether emitters that are close in their mode lie in its order along the line that joins them: (R, D).

    Else a set of emitters would count once for each way to name them. Exact for pairs; of three in one place some
    orders are lost and others count twice.
    """
    u, v, good = mode[:, 0:-2:3], mode[:, 1:-2:3], torch.ones_like(theta[..., 0], dtype=torch.bool)
    for i in range(present.shape[1]):
        for j in range(i):
            du, dv = u[:, i] - u[:, j], v[:, i] - v[:, j]
            near = present[:, i] & present[:, j] & (torch.hypot(du, dv) < CLOSE)
            if bool(near.any()):
                along = (theta[..., 3 * i] - theta[..., 3 * j]) * du[:, None]
                along = along + (theta[..., 3 * i + 1] - theta[..., 3 * j + 1]) * dv[:, None]
                good &= (along >= 0) | ~near[:, None]
    return good


def _theta(fit: JointFit) -> Tensor:
    """All parameters in a row, (R, P), in the order of the information."""
    own = torch.stack([fit.emitters.u, fit.emitters.v, fit.emitters.photons], -1).flatten(1)
    return torch.cat([own, fit.background[:, None], fit.sigma[:, None]], 1)


def _padded(sets: list[Tensor]) -> Emitters:
    """Sets of emitters (K, 3) as one batch."""
    size = max(1, *(len(x) for x in sets))
    table = torch.zeros(len(sets), size, 3, dtype=torch.float64)
    for k, emitters in enumerate(sets):
        table[k, : len(emitters)] = emitters
    present = torch.arange(size) < torch.tensor([len(x) for x in sets])[:, None]
    return Emitters(table[..., 0], table[..., 1], table[..., 2], present)


def _gathered(frames: list[ModeDraws], disagreement: Tensor) -> ModeDraws:
    """The draws of all frames, with as many places for emitters as the fullest needs."""
    size = max(x.u.shape[2] for x in frames)
    padded = {
        name: [torch.nn.functional.pad(getattr(x, name), (0, size - x.u.shape[2])) for x in frames]
        for name in ("u", "v", "photons")
    }
    rest = ("background", "sigma", "count_probability", "log_evidence", "size", "modes")
    found = padded | {name: [getattr(x, name) for x in frames] for name in rest}
    return ModeDraws(**{name: torch.cat(parts) for name, parts in found.items()}, disagreement=disagreement)
