"""The moves of the reversible-jump sampler: what each proposes, and the ratio with which it is accepted (Green 1995).

A move that draws w ~ q(w) and maps (θ, w) to (θ', w') one to one, and whose reverse draws w' ~ q'(w'), is accepted with
probability min(1, A),

    A = p(x | θ') / p(x | θ)  ·  p(θ') / p(θ)  ·  q'(w') / q(w)  ·  |∂(θ', w') / ∂(θ, w)|.

`accept` knows the first factor; a move returns what it proposes and the log of all the others, −inf where the prior is
0. The state is an ordered list of K emitters with density p(x | θ) p(K) Π p(θ_k), in which the order has no meaning;
emitters come in and leave at its end, after the last has changed places with a random one. So no binomials are needed.
Up and down are proposed with probability 1/2 each, whatever K is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .chains import Chains, Target, shares
from .proposals import Births, brightness

APART = 1.0  # sd, in units of σ, of each coordinate of the distance between the halves of a split
STEP_SPREAD = 1.0  # sd of the log of a step's size: short and long steps in one move

Proposal = tuple[Chains, Tensor]


@dataclass(frozen=True)
class Context:
    """What all moves need: the frames, where births go, the source of randomness, and (M,) scales of the steps."""

    target: Target
    births: Births
    generator: torch.Generator
    scales: dict[str, Tensor]

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)

    def one_of(self, count: Tensor) -> Tensor:
        """A whole number of 0 … count − 1 for each chain, 0 where there is none."""
        index = (self.uniform(len(count)) * count).long()
        return torch.minimum(index, count - 1).clamp(min=0)


def accept(context: Context, chains: Chains, proposed: Chains, log_ratio: Tensor) -> tuple[Chains, Tensor]:
    """The chains after the move, and whether each has moved."""
    proposed = replace(proposed, log_likelihood=context.target.log_likelihood(proposed.rate(context.target)))
    gain = proposed.log_likelihood - chains.log_likelihood + log_ratio
    accepted = context.uniform(len(gain)).log() < gain
    return chains.where(accepted, proposed), accepted


def exchange(context: Context, chains: Chains) -> Chains:
    """The last emitter changes places with a random one: always accepted, since the order has no meaning."""
    return chains.with_last_exchanged(context.one_of(chains.count))


def birth_and_death(context: Context, chains: Chains) -> Proposal:
    """One more emitter at the end of the list, θ ~ q(θ | rest), or one less: w = θ, and the Jacobian is 1.

    birth: A = likelihoods · p(K + 1)/p(K) · p(θ)/q(θ | rest). death: the reciprocal. q depends on the frame and on the
    rate of all the others, the same before the birth and after the death.
    """
    target, births, count = context.target, context.births, chains.count
    up = context.uniform(len(count)) < 0.5
    possible = torch.where(up, count < target.most, count > 0)
    end = torch.where(up, count, count - 1).clamp(0, target.most - 1)  # (M,) the slot in question
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
    """One emitter becomes two with the same photons N and the same centre of light, or two become one.

    w = (ρ, d): N_1 = ρ N, N_2 = (1 − ρ) N, θ_1 = θ + (1 − ρ) d, θ_2 = θ − ρ d. The Jacobian of (N, ρ) → (N_1, N_2) is N
    and that of (θ, d) → (θ_1, θ_2) is 1 along either axis. ρ is uniform where both N_i are allowed, d is normal.
    split: A = likelihoods · p(K + 1)/p(K) · p(N_1) p(N_2)/p(N) · p(θ_1) p(θ_2)/p(θ) · N/(q(ρ) q(d)). The emitter is one
    of K; the merge joins the last to one of the other K: these choices cancel.
    """
    target, count = context.target, chains.count
    up = context.uniform(len(count)) < 0.5
    possible = torch.where(up, (count > 0) & (count < target.most), count > 1)
    end = torch.where(up, count, count - 1).clamp(0, target.most - 1)  # where the second half is or will be
    first = context.one_of(end)
    (u1, v1, n1), (u2, v2, n2) = chains.slot(first), chains.slot(end)  # a split finds 0 photons in the second
    total = n1 + n2
    low, high = target.bounds[2].tolist()
    least = torch.maximum(low / total, 1 - high / total)  # of ρ
    width = 1 - 2 * least
    possible = possible & (width > 0)
    fraction = torch.where(up, least + width * context.uniform(len(count)), n1 / total)
    along_u, along_v = (APART * reach * chains.sigma for reach in target.reach)
    du = torch.where(up, along_u * context.normal(len(count)), u1 - u2)
    dv = torch.where(up, along_v * context.normal(len(count)), v1 - v2)
    u, v = (torch.where(up, a, fraction * a + (1 - fraction) * b) for a, b in ((u1, u2), (v1, v2)))  # the one
    log_q = -((du / along_u) ** 2 + (dv / along_v) ** 2) / 2 - (2 * math.pi * along_u * along_v).log()
    log_q = log_q - width.clamp(min=1e-30).log()
    log_p = -target.log_area - target.log_photons  # two densities over one
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
    """The two emitters that share the light `total` about (u, v)."""
    rest = 1 - fraction
    return (u + rest * du, v + rest * dv, fraction * total), (u - fraction * du, v - fraction * dv, rest * total)


def _either(up: Tensor, this: tuple[Tensor, ...], that: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.where(up, a, b) for a, b in zip(this, that, strict=True)]


def position(context: Context, chains: Chains) -> Proposal:
    """A step of a random emitter, as long as its position is uncertain: A = likelihoods."""
    target, index = context.target, context.one_of(chains.count)
    u, v, photons = chains.slot(index)
    step = context.scales["position"] * _uncertainty(context, chains, photons)
    u, v = (x + reach * step * context.normal(len(x)) for x, reach in zip((u, v), target.reach, strict=True))
    good = (chains.count > 0) & target.inside(u, v, photons)
    return chains.put(target, index, u, v, photons), torch.where(good, 0.0, -math.inf)


def pair(context: Context, chains: Chains) -> Proposal:
    """A step of (ρ, d) of two emitters with N and centre kept: the Jacobian is N both ways, and A = likelihoods."""
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


def photons(context: Context, chains: Chains) -> Proposal:
    """N of a random emitter from q(N | rest), nearly its conditional: A = likelihoods · q(N | rest)/q(N' | rest)."""
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


def background(context: Context, chains: Chains) -> Proposal:
    """b from q(b | rest) in the same way."""
    target, old = context.target, chains.background
    rest = replace(chains, background=torch.zeros_like(old)).rate(target).flatten(1)
    low, high = target.bounds[3].tolist()
    density = brightness(target.counts.flatten(1), rest, torch.ones_like(rest), low, high)
    new = density.draw(context.uniform(len(old), 2))
    return replace(chains, background=new), density.log_density(old) - density.log_density(new)


def sigma(context: Context, chains: Chains) -> Proposal:
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
    """About the sd of an emitter's position, px: √(σ²/N (1 + 8π σ² b/N)) (Thompson et al. 2002)."""
    light = photons.clamp(min=1.0)
    noise = chains.background + context.target.variance.mean((1, 2))
    return chains.sigma * ((1 + 8 * math.pi * chains.sigma**2 * noise / light) / light).sqrt()


Move = Callable[[Context, Chains], Proposal]
SCALED = {"position": 1.2, "pair": 1.0, "sigma": 0.3}  # first scale of the moves whose steps adapt


def sweep_of(target: Target) -> list[tuple[str, Move]]:
    """The moves of one sweep: those that the prior leaves room for, the cheap ones that decide on K most often."""
    jumps = int(target.log_count.isfinite().sum()) > 1
    emitters, pairs, light = target.most > 0, target.most > 1, target.width(2) > 0
    one_or_two: list[tuple[str, Move, bool]] = [
        ("split and merge", split_and_merge, jumps and pairs and light),
        ("position", position, emitters),
        ("pair", pair, pairs),
    ]
    moves: list[tuple[str, Move, bool]] = [
        ("birth and death", birth_and_death, jumps),
        ("relocation", relocation, emitters and not jumps),
        *one_or_two,
        ("photons", photons, emitters and light),
        *one_or_two,
        ("background", background, target.width(3) > 0),
        *one_or_two,
        ("photons", photons, emitters and light),
        *one_or_two,
        ("sigma", sigma, target.width(4) > 0),
    ]
    return [(name, move) for name, move, useful in moves if useful]


ORDERED = {birth_and_death, relocation, split_and_merge, pair}  # those that touch the last emitter
