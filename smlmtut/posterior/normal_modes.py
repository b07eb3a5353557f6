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

    def draw(self, mode: Tensor, noise: Tensor) -> Tensor:
        """Draws (B, D, P) from modes (B, D) of each frame, with standard normal noise (B, D, P)."""
        mean, number = self._of(mode)
        noise, theta = noise * _places_of(number, noise.shape[-1] // 3), mean.clone()
        for r in mode.unique().tolist():
            moved = torch.linalg.solve_triangular(self.factor[:, r].mT, noise.mT, upper=True).mT
            theta = torch.where((mode == r)[..., None], mean + moved, theta)
        return theta

    def named_as_drawn(self, mode: Tensor, theta: Tensor) -> Tensor:
        """Whether modes (B, D) name the emitters of theta (B, D, P) in the order that they have: (B, D)."""
        mean, number = self._of(mode)
        return _in_order(mean.flatten(0, 1), theta.flatten(0, 1), number.flatten()).unflatten(0, mode.shape)

    def log_density(self, theta: Tensor, number: Tensor, log_share: Tensor) -> Tensor:
        """log Σ share · normal density, over modes with as many emitters, of sets (B, D, P) of `number` (B, D): (B, D).

        log_share: (B, R). The order of the emitters in theta does not matter.
        """
        parts, (frames, draws) = [], number.shape
        for r in range(self.number.shape[1]):
            same = self.number[:, r, None] == number
            if not bool(same.any()):
                continue
            mean, factor = self.mean[:, r, None], self.factor[:, r]
            every = mean.expand(-1, draws, -1)
            named = theta.clone()
            named[same] = _named(every[same], theta[same], number[same])
            off = (named - mean) @ factor
            log_q = factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None] - off.square().sum(-1) / 2
            log_q = log_q - (3 * number + 2) / 2 * math.log(2 * math.pi) + log_share[:, r, None]
            parts.append(torch.where(same, log_q, -math.inf))
        return torch.stack(parts).logsumexp(0) if parts else theta.new_full((frames, draws), -math.inf)

    def _of(self, mode: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, D, P) and number (B, D) of modes (B, D)."""
        frame = torch.arange(len(mode))[:, None]
        return self.mean[frame, mode], self.number[frame, mode]


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
    frames, of_frame = len(modes.number), (len(modes.number), -1)
    share = modes.log_share.exp().cumsum(1)
    mode = torch.searchsorted(share / share[:, -1:], context.uniform(len(chains.count)).reshape(of_frame))
    draws = modes.draw(mode, context.normal(len(chains.count), size).reshape(frames, -1, size))
    each = modes.number.gather(1, mode)
    after = modes.log_density(draws, each, modes.log_share).flatten()
    named = modes.named_as_drawn(mode, draws).flatten()
    theta, number = draws.flatten(0, 1), each.flatten()
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
    ours, known = ours.reshape(frames, -1, size), replaced.where(replaced <= slots, -2).reshape(of_frame)
    before = modes.log_density(ours, known, modes.log_share).flatten()
    background, sigma = theta[:, -2], theta[:, -1]
    (dark, light), (narrow, broad) = target.bounds[3:].tolist()
    good = ((target.inside(*drawn.unbind(2)) & _seen(target, drawn)) | (drawn[..., 2] == 0)).all(1)
    good &= (background >= dark) & (background <= light) & (sigma >= narrow) & (sigma <= broad)
    good &= named & (total <= most)
    both = torch.cat([drawn, kept], 1)
    both = both.gather(1, (both[..., 2] == 0).int().argsort(dim=1, stable=True)[..., None].expand(-1, -1, 3))[:, :most]
    emitters = torch.where(good[:, None, None], both, chains.emitters)
    sensible = torch.where(good, background, chains.background), torch.where(good, sigma, chains.sigma)
    count = torch.where(good, total, chains.count)
    log_p = _log_prior(target, count) - _log_prior(target, chains.count)
    possible = good & (before > -math.inf) & target.log_count[count].isfinite()
    return Chains.at(target, emitters, count, *sensible), torch.where(possible, log_p + before - after, -math.inf)


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
    """Which parameters (…, 3 slots + 2) exist where there are `number` (…) emitters."""
    emitter = torch.arange(slots) < number[..., None]
    return torch.cat([emitter.repeat_interleave(3, -1), torch.ones(*number.shape, 2, dtype=torch.bool)], -1)


def _distances(mode: Tensor, theta: Tensor) -> Tensor:
    """Squared distance of each emitter of modes (M, P) to each of theta (M, P): (M, E, E)."""
    one, other = (x[:, :-2].unflatten(1, (-1, 3)) for x in (mode, theta))
    return sum((one[:, :, None, k] - other[:, None, :, k]).square() for k in range(2))  # type: ignore[return-value]


def _in_order(mode: Tensor, theta: Tensor, number: Tensor) -> Tensor:
    """Whether each emitter of modes (M, P) takes that of theta (M, P) with its own place: (M,)."""
    far = _distances(mode, theta)
    slots = torch.arange(far.shape[1])
    later = (slots > slots[:, None]) & (slots < number[:, None, None])  # those that are left when its turn comes
    nearest = torch.where(later, far, math.inf).amin(2)
    return ((far.diagonal(dim1=1, dim2=2) <= nearest) | (slots >= number[:, None])).all(1)


def _named(mode: Tensor, theta: Tensor, number: Tensor) -> Tensor:
    """theta (M, P) with its emitters in the order in which modes (M, P) name them."""
    out, todo = theta, (~_in_order(mode, theta, number)).nonzero()[:, 0]
    if len(todo):
        theta, number, far = theta[todo], number[todo], _distances(mode[todo], theta[todo])
        slots = torch.arange(far.shape[1])
        order, free = slots.repeat(len(todo), 1), slots < number[:, None]
        for k in range(int(number.max())):
            nearest = torch.where(free, far[:, k], math.inf).argmin(1)
            order[:, k] = torch.where(k < number, nearest, k)
            free = free & ((slots != nearest[:, None]) | (k >= number)[:, None])
        places = (3 * order[:, :, None] + torch.arange(3)).flatten(1)
        out = out.clone()
        out[todo] = torch.cat([theta.gather(1, places), theta[:, -2:]], 1)
    return out
