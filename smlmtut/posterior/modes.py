"""The posterior of an unknown number of emitters as a sum over the sets of emitters that explain the frame.

Each such set is a mode of the posterior, about which it is nearly normal. Draws from these normal distributions are
weighted by p(x, θ) / q(θ), which makes them draws from the posterior (importance sampling), however wrong the normal
shape is; the effective size of the weights says what they are worth. Nothing has to converge, but a mode that the
search does not find is missing, and no weight can tell. So there are two searches, one from the first guess and one
from an empty frame, and their disagreement is stated.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validate import finite, floating, instance, non_negative, tensor, whole
from ..estimation.joint import JointFit
from ..imaging.psf import Emitters
from .many import _count_probabilities
from .mode_search import Mode, Problem, best_modes, disagreement_of, grown, parameters, precision, search
from .one import Prior

WIDER = 1.3  # variance of q in units of that of the normal distribution: a heavy tail costs more than a light one
CLOSE = 2.0  # px: emitters of a mode that are closer may change places
ENOUGH, MORE = 100.0, 16  # effective size below which a frame gets so many times the draws, once


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
    problem, start = Problem(frames, variance.expand(frames.shape), log_count, limits), start.to("cpu")
    table, most = torch.stack([start.u, start.v, start.photons], -1).double(), len(log_count) - 1
    guessed = [x[there][:most] for x, there in zip(table, start.mask, strict=True)]
    searches = [search(problem, first, rounds, beam) for first in (guessed, grown(problem))]
    found = [best_modes([*one, *other]) for one, other in zip(searches[0], searches[1], strict=True)]
    drawn = []
    for i, modes in enumerate(found):
        answer = _weighted(problem, i, modes, draws, samples, generator)
        if float(answer.size) < ENOUGH:
            answer = _weighted(problem, i, modes, MORE * draws, samples, generator)
        drawn.append(answer)
    return _gathered(drawn, disagreement_of(searches[0], searches[1], most))


def _weighted(
    problem: Problem, frame: int, modes: list[Mode], draws: int, samples: int, generator: torch.Generator
) -> ModeDraws:
    """Weighted draws about the modes of one frame, and of these as many of equal weight as are wanted."""
    rows = torch.full((len(modes),), frame)
    fit = problem.fit(rows, [mode.emitters for mode in modes], 3)
    theta = _normal(fit, draws, generator)  # (R, D, P)
    present, number = fit.emitters.mask, fit.emitters.mask.sum(1)
    likelihood = problem.log_likelihood(rows, problem.rate(rows, theta, present))
    allowed = _inside(problem, theta, present) & _ordered(parameters(fit), theta, present)
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
    factor = torch.linalg.cholesky(precision(fit) / WIDER)
    noise = torch.randn(len(factor), draws, factor.shape[-1], generator=generator, dtype=torch.float64)
    return parameters(fit)[:, None] + torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT


def _log_density(fit: JointFit, theta: Tensor) -> Tensor:
    """log of the sum of the normal densities of all modes with as many emitters, at draws of each: (R, D).

    Where modes overlap, a place that several of them reach must not count once for each of them.
    """
    sharp, present, mode = precision(fit) / WIDER, fit.emitters.mask, parameters(fit)
    number = present.sum(1).tolist()
    out = torch.full_like(theta[..., 0], -math.inf)
    for r, count in enumerate(number):
        kept = torch.cat([torch.arange(3 * count), torch.tensor([-2, -1]) + theta.shape[-1]])
        here, like = theta[r][:, kept], [k for k, other in enumerate(number) if other == count]
        for k in like:
            order = kept.clone()
            order[:-2] = _places(mode[r, : 3 * count], mode[k, : 3 * count])
            factor = torch.linalg.cholesky(sharp[k][order][:, order])
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
    from scipy.optimize import linear_sum_assignment  # here, since it takes 0.2 s to load

    if not len(here):
        return torch.zeros(0, dtype=torch.long)
    own, other = here.reshape(-1, 3)[:, :2], there.reshape(-1, 3)[:, :2]
    nearest = torch.as_tensor(linear_sum_assignment(torch.cdist(own, other).square().numpy())[1])
    return (3 * nearest[:, None] + torch.arange(3)).flatten()


def _inside(problem: Problem, theta: Tensor, present: Tensor) -> Tensor:
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
