"""Sets of emitters drawn from the normal distributions about the modes of a frame, and their density.

A set has no order, a normal distribution has one. So each mode names the emitters of a set: the first emitter of the
mode takes the nearest one, the second the nearest of the rest, and so on. A draw that its own mode would name otherwise
is void. The density of drawing a set, and that it is not void, is then the sum over the modes of the normal density of
the set as each of them names it: each set counts once, however many of its emitters lie on top of each other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..imaging.psf import Emitters
from .chains import Chains, Target
from .mode_search import Mode, Problem, best_modes, disagreement_of, grown, parameters, precision, search
from .moves import Context, Proposal

WIDER = 1.3  # variance of q in units of that of the normal distribution: a heavy tail costs more than a light one
SEEN = 1.0  # px beyond the frame: emitters farther away are left where they are
EVERY = 0.1  # share of the jumps that go to any mode, however little Laplace's evidence gives it


@dataclass(frozen=True)
class NormalModes:
    """The normal distributions about R modes of each of B frames, in float64.

    mean: (B, R, P) u, v (px), N (e⁻) of each of E emitters, then b and σ: P = 3 E + 2; 0 for an emitter that is not
    there. factor: (B, R, P, P) L with L Lᵀ the inverse covariance, the identity for such an emitter. number: (B, R)
    emitters; −1 where a frame has fewer modes. log_share: (B, R) log of the share of each mode among the jumps.
    """

    mean: Tensor
    factor: Tensor
    number: Tensor
    log_share: Tensor

    @classmethod
    def of(cls, problem: Problem, found: list[list[Mode]]) -> "NormalModes":
        """The distributions about modes that a search found, at least one for each frame."""
        rows = torch.tensor([i for i, modes in enumerate(found) for _ in modes])
        fit = problem.fit(rows, [mode.emitters for modes in found for mode in modes], 3)
        there = _places_of(fit.emitters.mask.sum(1), fit.emitters.u.shape[1])
        sharp = torch.where(there[:, :, None] & there[:, None], precision(fit) / WIDER, torch.eye(there.shape[1]))
        flat = {"mean": parameters(fit) * there, "factor": torch.linalg.cholesky(sharp), "number": there.sum(1) // 3}
        sizes, fields = [len(modes) for modes in found], {}
        for name, values in flat.items():
            fields[name] = torch.nn.utils.rnn.pad_sequence(list(values.split(sizes)), True, -1)
        shares = [torch.tensor([mode.evidence for mode in modes]).softmax(0) for modes in found]
        shares = [((1 - EVERY) * x + EVERY / len(x)).log() for x in shares]
        return cls(**fields, log_share=torch.nn.utils.rnn.pad_sequence(shares, True, -math.inf))

    def __getitem__(self, frames: Tensor) -> "NormalModes":
        """The modes of some of the frames."""
        return NormalModes(*(getattr(self, name)[frames] for name in ("mean", "factor", "number", "log_share")))

    def draw(self, frame: Tensor, mode: Tensor, noise: Tensor) -> Tensor:
        """Draws (M, P) from modes (M,) of frames (M,) with standard normal noise (M, P)."""
        noise = noise * _places_of(self.number[frame, mode], noise.shape[1] // 3)
        upper = self.factor[frame, mode].mT
        return self.mean[frame, mode] + torch.linalg.solve_triangular(upper, noise[..., None], upper=True)[..., 0]

    def named_as_drawn(self, frame: Tensor, mode: Tensor, theta: Tensor) -> Tensor:
        """Whether modes (M,) name the emitters of theta (M, P) in the order that they have: (M,) bool."""
        order = _named(self.mean[frame, mode], theta, self.number[frame, mode])
        return (order == torch.arange(order.shape[1])).all(1)

    def log_density(self, frame: Tensor, theta: Tensor, number: Tensor, log_share: Tensor) -> Tensor:
        """log Σ share · normal density, over modes with as many emitters, of sets theta (M, P) of `number` (M,): (M,).

        log_share: (B, R). The order of the emitters in theta does not matter.
        """
        out = torch.full_like(theta[:, 0], -math.inf)
        for r in range(self.number.shape[1]):
            rows = (self.number[frame, r] == number).nonzero()[:, 0]
            if not len(rows):
                continue
            i, here = frame[rows], theta[rows]
            mean, factor = self.mean[i, r], self.factor[i, r]
            order = _named(mean, here, number[rows])
            places = (3 * order[:, :, None] + torch.arange(3)).flatten(1)
            here = torch.cat([here.gather(1, places), here[:, -2:]], 1)
            off = ((here - mean)[:, None] @ factor)[:, 0]
            log_q = factor.diagonal(dim1=1, dim2=2).log().sum(1) - off.square().sum(1) / 2
            log_q = log_q - (3 * number[rows] + 2) / 2 * math.log(2 * math.pi) + log_share[i, r]
            out[rows] = torch.logaddexp(out[rows], log_q)
        return out


def two_searches(problem: Problem, start: Emitters, rounds: int = 5, beam: int = 6) -> tuple[NormalModes, Tensor]:
    """The modes that a search from a first guess and one from an empty frame find, and how they disagree (B,)."""
    table, most = torch.stack([start.u, start.v, start.photons], -1).double(), len(problem.log_count) - 1
    guessed = [x[there][:most] for x, there in zip(table, start.mask, strict=True)]
    one, other = (search(problem, first, rounds, beam) for first in (guessed, grown(problem)))
    found = [best_modes([*a, *b]) for a, b in zip(one, other, strict=True)]
    return NormalModes.of(problem, found), disagreement_of(one, other, most)


def jump(modes: NormalModes, context: Context, chains: Chains) -> Proposal:
    """New emitters, b and σ, drawn from the modes: A = likelihoods · p(θ') q(θ)/(p(θ) q(θ')).

    Emitters more than SEEN px beyond the frame stay: their light hardly reaches it, and no mode knows of them. p and q
    are densities of sets: a set of K emitters has K! times the density of each of its orders, and what all other moves
    do does not depend on the order either. modes: on the chains' device, of their frames in turn.
    """
    target, size = context.target, modes.mean.shape[2]
    most, slots, none = target.most, size // 3, torch.zeros_like(chains.emitters)
    frame = torch.arange(len(chains.count)) // (len(chains.count) // len(modes.number))
    share = modes.log_share[frame].exp().cumsum(1)
    mode = (share < share[:, -1:] * context.uniform(len(frame), 1)).sum(1)
    theta, number = modes.draw(frame, mode, context.normal(len(frame), size)), modes.number[frame, mode]
    drawn = theta[:, :-2].unflatten(1, (-1, 3))
    there = chains.emitters[..., 2] > 0
    near = there & _seen(target, chains.emitters)
    front = chains.emitters.where(near[..., None], none)
    front = front.gather(1, (~near).int().argsort(dim=1, stable=True)[..., None].expand(-1, -1, 3))
    front, replaced = torch.nn.functional.pad(front, (0, 0, 0, max(0, slots - most)))[:, :slots], near.sum(1)
    kept = chains.emitters.where((there & ~near)[..., None], none)
    total = chains.count - replaced + number
    # of more emitters than there are slots q is 0
    ours = torch.cat([front.flatten(1), chains.background[:, None], chains.sigma[:, None]], 1)
    before = modes.log_density(frame, ours, replaced.where(replaced <= slots, -2), modes.log_share)
    log_q = before - modes.log_density(frame, theta, number, modes.log_share)
    background, sigma = theta[:, -2], theta[:, -1]
    (dark, light), (narrow, broad) = target.bounds[3:].tolist()
    good = ((target.inside(*drawn.unbind(2)) & _seen(target, drawn)) | (drawn[..., 2] == 0)).all(1)
    good &= (background >= dark) & (background <= light) & (sigma >= narrow) & (sigma <= broad)
    good &= modes.named_as_drawn(frame, mode, theta) & (total <= most)
    both = torch.cat([drawn, kept], 1)
    both = both.gather(1, (both[..., 2] == 0).int().argsort(dim=1, stable=True)[..., None].expand(-1, -1, 3))[:, :most]
    emitters = torch.where(good[:, None, None], both, chains.emitters)
    sensible = torch.where(good, background, chains.background), torch.where(good, sigma, chains.sigma)
    count = torch.where(good, total, chains.count)
    log_p = _log_prior(target, count) - _log_prior(target, chains.count)
    possible = good & (before > -math.inf) & target.log_count[count].isfinite()
    return Chains.at(target, emitters, count, *sensible), torch.where(possible, log_p + log_q, -math.inf)


def _seen(target: Target, emitters: Tensor) -> Tensor:
    """Whether emitters (…, 3) lie in the frame or up to SEEN px beyond it."""
    height, width = target.counts.shape[1:]
    u, v = emitters[..., 0], emitters[..., 1]
    near = -0.5 - SEEN
    return (u > near) & (v > near) & (u < width - 0.5 + SEEN) & (v < height - 0.5 + SEEN)


def _log_prior(target: Target, number: Tensor) -> Tensor:
    """log of p(K) K! p(θ)ᴷ of a set."""
    each = target.log_area + target.log_photons
    return target.log_count[number] + torch.lgamma(number.double() + 1) - number * each


def _places_of(number: Tensor, slots: int) -> Tensor:
    """Which parameters (M, 3 slots + 2) exist where there are `number` (M,) emitters."""
    emitter = torch.arange(slots) < number[:, None]
    return torch.cat([emitter.repeat_interleave(3, 1), torch.ones(len(number), 2, dtype=torch.bool)], 1)


def _named(mode: Tensor, theta: Tensor, number: Tensor) -> Tensor:
    """Which emitter of theta (M, P) each emitter of a mode (M, P) takes: (M, E)."""
    one, other = (x[:, :-2].unflatten(1, (-1, 3))[..., :2] for x in (mode, theta))
    slots = torch.arange(one.shape[1])
    order = slots.repeat(len(one), 1)
    far = (one[:, :, None] - other[:, None]).square().sum(-1)  # (M, E of the mode, E of theta)
    free = slots < number[:, None]
    for k in range(int(number.max()) if len(number) else 0):
        nearest = torch.where(free, far[:, k], math.inf).argmin(1)
        order[:, k] = torch.where(k < number, nearest, k)
        free = free & ((slots != nearest[:, None]) | (k >= number)[:, None])
    return order
