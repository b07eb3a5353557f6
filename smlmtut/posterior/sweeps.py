"""Several emitters: the chains from start to last draw, in sweeps of moves whose steps adapt during the burn-in."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..imaging.psf import present_mask
from ..imaging.simulate import disc_positions
from .chains import Chains, Target
from .moves import (
    Context,
    Proposal,
    accept,
    background_draw,
    birth_and_death,
    exchange,
    pair_step,
    photons_draw,
    position_step,
    relocation,
    sigma_step,
    split_and_merge,
)
from .normal_modes import NormalModes, jump
from .one import Prior
from .proposals import Births

Move = Callable[[Context, Chains], Proposal]
ON_THE_LAST = {birth_and_death, relocation, split_and_merge, pair_step}  # moves of the last emitter: exchange it first
# Of the moves whose steps adapt: the scale at the start, and the rate of acceptance that they adapt to. The best rates
# of random walks are 0.44 in one dimension (sigma), 0.35 in two (position) and 0.32 in three (pair; Gelman, Roberts
# and Gilks 1996); they are broad optima.
FIRST_SCALE = {"position": 1.2, "pair": 1.0, "sigma": 0.3}
WANTED = {"position": 0.35, "pair": 0.25, "sigma": 0.4}


def target_of(frames: Tensor, variance: Tensor, prior: Prior, counts: Tensor, chains: int = 1) -> Target:
    """The target of chains over frames (B, H, W), each frame repeated `chains` times; counts: p(K)."""
    shifted = (frames + variance).repeat_interleave(chains, 0)
    bounds = prior.bounds((frames.shape[1], frames.shape[2])).to(frames.device)
    return Target(shifted, variance.repeat_interleave(chains, 0), counts.log(), bounds, prior.disc)


def run(
    target: Target,
    generator: torch.Generator,
    chains: int,
    draws: int,
    thin: int,
    burn_in: int,
    start: Tensor | None = None,
    modes: NormalModes | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws (M, S, …) of each field, and the acceptance (B,) of each kind of move; start: as in `_start`.

    modes: None, or those of each frame, to which every sweep tries to jump once.
    """
    rows = len(target.counts)
    scales = {name: target.counts.new_full((rows,), first) for name, first in FIRST_SCALE.items()}
    context = Context(target, Births(target), generator, scales)
    state = _start(context, chains, start)
    moves = sweep_of(target) + ([] if modes is None else [("jump", partial(jump, modes))])
    kept: list[Chains] = []
    tried: dict[str, int] = {}
    moved: dict[str, Tensor] = {}
    for sweep in range(burn_in + draws * thin):
        for name, move in moves:
            if move in ON_THE_LAST:
                state = exchange(context, state)
            state, accepted = accept(context, state, *move(context, state))
            of_frame = accepted.double().unflatten(0, (-1, chains)).mean(1)  # (B,)
            if sweep >= burn_in:
                tried[name] = tried.get(name, 0) + 1
                moved[name] = moved.get(name, 0) + of_frame
            elif name in scales:
                rate = 1 / math.sqrt(1 + sweep)
                change = (rate * (of_frame - WANTED[name])).exp().repeat_interleave(chains)
                scales[name] = (scales[name] * change).clamp(1e-3, 1e3)
        if sweep >= burn_in and (sweep - burn_in + 1) % thin == 0:
            kept.append(state)
    names = ("emitters", "count", "background", "sigma", "log_likelihood")
    fields = {name: torch.stack([getattr(state, name) for state in kept], 1) for name in names}
    emitters = fields.pop("emitters")
    fields["u"], fields["v"], fields["photons"] = (emitters * (emitters[..., 2:] > 0)).unbind(-1)
    return fields, {name: moved[name] / tried[name] for name in moved}


def sweep_of(target: Target) -> list[tuple[str, Move]]:
    """The moves of one sweep: those that the prior leaves room for. Cheap moves that matter for K come most often."""
    jumps = int(target.log_count.isfinite().sum()) > 1
    emitters, pairs, light = target.most > 0, target.most > 1, target.width(2) > 0
    one_or_two: list[tuple[str, Move, bool]] = [
        ("split and merge", split_and_merge, jumps and pairs and light),
        ("position", position_step, emitters),
        ("pair", pair_step, pairs),
    ]
    moves: list[tuple[str, Move, bool]] = [
        ("birth and death", birth_and_death, jumps),
        ("relocation", relocation, emitters and not jumps),
        *one_or_two,
        ("photons", photons_draw, emitters and light),
        *one_or_two,
        ("background", background_draw, target.width(3) > 0),
        *one_or_two,
        ("photons", photons_draw, emitters and light),
        *one_or_two,
        ("sigma", sigma_step, target.width(4) > 0),
    ]
    return [(name, move) for name, move, useful in moves if useful]


def keep_memory() -> None:
    """Let the process keep the memory that it frees, which makes the chains five times faster.

    Until a larger block has once been freed, glibc returns every freed block of 1 MB to the system, which has to clear
    it before the next operation can use it. The block allocated here is never written to, so it takes no memory.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _start(context: Context, chains: int, start: Tensor | None) -> Chains:
    """Half of the chains of each frame with the fewest emitters, half with the most, all drawn from the prior.

    start: None, or emitters (B, E, 3), u, v and N, that the second half has instead; the first with N = 0 is the last.
    """
    target = context.target
    rows, most = len(target.counts), target.most
    possible = target.log_count.isfinite().nonzero()[:, 0]
    many = torch.arange(rows, device=possible.device) % chains >= chains // 2
    count = torch.where(many, possible[-1], possible[0])
    low, high = target.bounds.T
    u, v, photons = (low[:3] + (high - low)[:3] * context.uniform(rows, max(most, 1), 3)).unbind(-1)
    if target.disc is not None:
        u, v = disc_positions(u.shape, target.disc[2], target.disc[:2], context.generator)
    emitters = torch.stack([u, v, torch.where(present_mask(count, most), photons, 0.0)], 2)
    if start is not None:
        start = start.repeat_interleave(chains, 0)
        emitters = torch.where(many[:, None, None], start, emitters)
        count = torch.where(many, (start[..., 2] > 0).sum(1), count)
    background, sigma = (low[3:] + (high - low)[3:] * context.uniform(rows, 2)).unbind(-1)
    return Chains.at(target, emitters, count, background, sigma)
