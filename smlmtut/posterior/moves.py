"""Several emitters: what each move of the chains proposes, and the ratio with which it is accepted (Green 1995).

A move draws w ~ q(w) and maps (θ, w) one to one to (θ', w'); its reverse draws w' ~ q'(w'). It is accepted with
probability min(1, A),

    A = p(x | θ') / p(x | θ)  ·  p(θ') / p(θ)  ·  q'(w') / q(w)  ·  |∂(θ', w') / ∂(θ, w)|.

`accept` computes the first factor; a move returns what it proposes and the log of the product of the others, −inf
where the prior is 0. The state is an ordered list of K emitters with density p(x | θ) p(K) Π p(θ_k), in which the order
has no meaning. Emitters are added and removed at its end, after the last one has been exchanged with a random one, so
that the ratio has no factor for the choice of an emitter. Moves that change K go up or down with probability 1/2,
whatever K is.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .chains import Chains, Target, shares
from .proposals import Births, brightness

APART = 1.0  # sd of each coordinate of the distance between the halves of a split, in units of the PSF's σ
STEP_SPREAD = 1.0  # sd of the log of the step size of `pair_step`, which so takes short and long steps

Proposal = tuple[Chains, Tensor]


@dataclass(frozen=True)
class Context:
    """What all moves need: the target density, the births, the generator, and a scale (M,) for each adaptive step."""

    target: Target
    births: Births
    generator: torch.Generator
    scales: dict[str, Tensor]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers on [0, 1), float64."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float64."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)

    def one_of(self, count: Tensor) -> Tensor:
        """A random whole number in 0 … count − 1 for each chain; 0 where count is 0."""
        index = (self.uniform(len(count)) * count).long()
        return torch.minimum(index, count - 1).clamp(min=0)


def accept(context: Context, chains: Chains, proposed: Chains, log_ratio: Tensor) -> tuple[Chains, Tensor]:
    """The chains after the move, and whether each has moved."""
    proposed = replace(proposed, log_likelihood=context.target.log_likelihood(proposed.rate(context.target)))
    gain = proposed.log_likelihood - chains.log_likelihood + log_ratio
    accepted = context.uniform(len(gain)).log() < gain
    return chains.where(accepted, proposed), accepted


def exchange(context: Context, chains: Chains) -> Chains:
    """Exchange the last emitter with a random one: always accepted, since the order has no meaning."""
    return chains.with_last_exchanged(context.one_of(chains.count))


def birth_and_death(context: Context, chains: Chains) -> Proposal:
    """Add an emitter θ ~ q(θ | rest) at the end of the list, or remove the last: w = θ, and the Jacobian is 1.

    birth: A = likelihoods · p(K + 1)/p(K) · p(θ)/q(θ | rest). death: the reciprocal. q depends on the frame and on the
    rate of all other emitters, which is the same before the birth and after the death.
    """
    target, births, count = context.target, context.births, chains.count
    up = context.uniform(len(count)) < 0.5
    possible = torch.where(up, count < target.most, count > 0)
    end = torch.where(up, count, count - 1).clamp(0, target.most - 1)  # (M,) slot that is filled or emptied
    rest = chains.set_photons(end, 0.0).rate(target)
    weights = births.weights(rest)
    u, v, photons = chains.slot(end)
    drawn_u, drawn_v = births.draw_position(weights, context.uniform(len(count), 3))
    u, v = torch.where(up, drawn_u, u), torch.where(up, drawn_v, v)
    log_q = births.log_position(weights, u, v)
    density = births.photons(rest, u, v, chains.sigma)
    if density is None:
        photons = torch.full_like(photons, float(target.bounds[2, 0]))
    else:
        photons = torch.where(up, density.draw(context.uniform(len(count), 2)), photons)
        log_q = log_q + density.log_density(photons)
    log_p = -target.log_area - target.log_photons
    birth = target.log_count[end + 1] - target.log_count[end] + log_p - log_q
    new = chains.put(target, end, u, v, torch.where(up, photons, 0.0))
    new = replace(new, count=count + torch.where(up, 1, -1))
    good = possible & target.inside(u, v, photons)
    return new, torch.where(good, torch.where(up, birth, -birth), -math.inf)


def relocation(context: Context, chains: Chains) -> Proposal:
    """A death and a birth in one, for the last emitter: A = likelihoods · q(θ | rest)/q(θ' | rest)."""
    target, births = context.target, context.births
    last = (chains.count - 1).clamp(min=0)
    rest = chains.set_photons(last, 0.0).rate(target)
    weights = births.weights(rest)
    old = chains.slot(last)
    u, v = births.draw_position(weights, context.uniform(len(last), 3))
    log_ratio = births.log_position(weights, old[0], old[1]) - births.log_position(weights, u, v)
    photons = old[2]
    there = births.photons(rest, u, v, chains.sigma)
    here = births.photons(rest, old[0], old[1], chains.sigma)
    if there is not None and here is not None:
        photons = there.draw(context.uniform(len(last), 2))
        log_ratio = log_ratio + here.log_density(old[2]) - there.log_density(photons)
    good = (chains.count > 0) & target.inside(u, v, photons)
    return chains.put(target, last, u, v, photons), torch.where(good, log_ratio, -math.inf)


def split_and_merge(context: Context, chains: Chains) -> Proposal:
    """Split one emitter into two with the same total photons N and the same centre of light, or merge two into one.

    w = (ρ, d): N_1 = ρ N, N_2 = (1 − ρ) N, θ_1 = θ + (1 − ρ) d, θ_2 = θ − ρ d. The Jacobian of (N, ρ) → (N_1, N_2) is N
    and that of (θ, d) → (θ_1, θ_2) is 1 along either axis. ρ is uniform where both N_i are allowed, d is normal.
    split: A = likelihoods · p(K + 1)/p(K) · p(N_1) p(N_2)/p(N) · p(θ_1) p(θ_2)/p(θ) · N/(q(ρ) q(d)). The split chooses
    one of K emitters, and the merge joins the last to one of K others: these probabilities cancel.
    """
    target, count = context.target, chains.count
    up = context.uniform(len(count)) < 0.5
    possible = torch.where(up, (count > 0) & (count < target.most), count > 1)
    end = torch.where(up, count, count - 1).clamp(0, target.most - 1)  # slot of the second half
    first = context.one_of(end)
    (u1, v1, n1), (u2, v2, n2) = chains.slot(first), chains.slot(end)  # n2 = 0 before a split
    total = n1 + n2
    low, high = target.bounds[2].tolist()
    least = torch.maximum(low / total, 1 - high / total)  # of ρ
    width = 1 - 2 * least
    possible = possible & (width > 0)
    fraction = torch.where(up, least + width * context.uniform(len(count)), n1 / total)
    along_u, along_v = (APART * reach * chains.sigma for reach in target.reach)
    du = torch.where(up, along_u * context.normal(len(count)), u1 - u2)
    dv = torch.where(up, along_v * context.normal(len(count)), v1 - v2)
    # (u, v) of the one emitter that the two halves replace
    u, v = (torch.where(up, a, fraction * a + (1 - fraction) * b) for a, b in ((u1, u2), (v1, v2)))
    log_q = -((du / along_u) ** 2 + (dv / along_v) ** 2) / 2 - (2 * math.pi * along_u * along_v).log()
    log_q = log_q - width.clamp(min=1e-30).log()
    log_p = -target.log_area - target.log_photons  # p(θ_1) p(θ_2)/p(θ), and that of the photons
    split = target.log_count[end + 1] - target.log_count[end] + log_p + total.log() - log_q
    halves = _halves(u, v, total, fraction, du, dv)
    inside = torch.where(up, target.inside(*halves[0]) & target.inside(*halves[1]), target.inside(u, v, total))
    one, two = (_either(up, *both) for both in zip(halves, ((u, v, total), (u2, v2, 0 * n2)), strict=True))
    new = chains.put(target, first, *one).put(target, end, *two)
    new = replace(new, count=count + torch.where(up, 1, -1))
    return new, torch.where(possible & inside, torch.where(up, split, -split), -math.inf)


def _halves(
    u: Tensor, v: Tensor, total: Tensor, fraction: Tensor, du: Tensor, dv: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The two emitters that share `total` photons with their centre of light at (u, v)."""
    rest = 1 - fraction
    return (u + rest * du, v + rest * dv, fraction * total), (u - fraction * du, v - fraction * dv, rest * total)


def _either(up: Tensor, this: tuple[Tensor, ...], that: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.where(up, a, b) for a, b in zip(this, that, strict=True)]


def position_step(context: Context, chains: Chains) -> Proposal:
    """A step of a random emitter, in proportion to the sd of its position: A = likelihoods."""
    target, index = context.target, context.one_of(chains.count)
    u, v, photons = chains.slot(index)
    step = context.scales["position"] * _uncertainty(context, chains, photons)
    u, v = (x + reach * step * context.normal(len(x)) for x, reach in zip((u, v), target.reach, strict=True))
    good = (chains.count > 0) & target.inside(u, v, photons)
    return chains.put(target, index, u, v, photons), torch.where(good, 0.0, -math.inf)


def pair_step(context: Context, chains: Chains) -> Proposal:
    """A step of (ρ, d) of two emitters that keeps N and the centre: the Jacobians cancel, and A = likelihoods."""
    target = context.target
    last = (chains.count - 1).clamp(min=0)
    first = context.one_of(last)
    (u1, v1, n1), (u2, v2, n2) = chains.slot(first), chains.slot(last)
    total = n1 + n2
    fraction = n1 / total
    u, v = (fraction * a + (1 - fraction) * b for a, b in ((u1, u2), (v1, v2)))
    longer = (STEP_SPREAD * context.normal(len(total))).exp()
    step = context.scales["pair"] * longer * _uncertainty(context, chains, total)
    du, dv = (
        (a - b) + 2 * reach * step * context.normal(len(a))
        for a, b, reach in zip((u1, v1), (u2, v2), target.reach, strict=True)
    )
    if target.width(2):
        fraction = fraction + step / (2 * chains.sigma) * context.normal(len(total))
    one, two = _halves(u, v, total, fraction, du, dv)
    good = (chains.count > 1) & target.inside(*one) & target.inside(*two)
    return chains.put(target, first, *one).put(target, last, *two), torch.where(good, 0.0, -math.inf)


def photons_draw(context: Context, chains: Chains) -> Proposal:
    """Draw N of a random emitter from q(N | rest), near its conditional: A = likelihoods · q(N | rest)/q(N' | rest)."""
    target = context.target
    index = context.one_of(chains.count)
    u, v, old = chains.slot(index)
    rest = chains.set_photons(index, 0.0).rate(target)
    density = context.births.photons(rest, u, v, chains.sigma)
    assert density is not None
    new = density.draw(context.uniform(len(old), 2))
    log_ratio = density.log_density(old) - density.log_density(new)
    good = (chains.count > 0) & target.inside(u, v, new)
    return chains.set_photons(index, new), torch.where(good, log_ratio, -math.inf)


def background_draw(context: Context, chains: Chains) -> Proposal:
    """Draw b from q(b | rest): A = likelihoods · q(b | rest)/q(b' | rest)."""
    target, old = context.target, chains.background
    rest = replace(chains, background=torch.zeros_like(old)).rate(target).flatten(1)
    low, high = target.bounds[3].tolist()
    density = brightness(target.counts.flatten(1), rest, torch.ones_like(rest), low, high)
    new = density.draw(context.uniform(len(old), 2))
    return replace(chains, background=new), density.log_density(old) - density.log_density(new)


def sigma_step(context: Context, chains: Chains) -> Proposal:
    """A step of the PSF's width: A = likelihoods."""
    low, high = context.target.bounds[4].tolist()
    new = chains.sigma + context.scales["sigma"] * (high - low) * context.normal(len(chains.sigma))
    good = (new >= low) & (new <= high)
    new = torch.where(good, new, chains.sigma)
    u, v = chains.emitters[..., 0], chains.emitters[..., 1]
    height, width = context.target.counts.shape[1:]
    moved = replace(chains, sigma=new, shares=shares(u, v, new[:, None], (height, width)))
    return moved, torch.where(good, 0.0, -math.inf)


def _uncertainty(context: Context, chains: Chains, photons: Tensor) -> Tensor:
    """Approximate sd of an emitter's position, px: √(σ²/N (1 + 8π σ² b/N)) (Thompson et al. 2002)."""
    light = photons.clamp(min=1.0)
    noise = chains.background + context.target.variance.mean((1, 2))
    return chains.sigma * ((1 + 8 * math.pi * chains.sigma**2 * noise / light) / light).sqrt()
