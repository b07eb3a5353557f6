"""Chains from their start to their last draw: sweeps of moves, and steps that adapt before the first draw is kept."""

import math

import torch
from torch import Tensor

from ..imaging.psf import present_mask
from ..imaging.simulate import disc_positions
from .chains import Chains, Target
from .moves import ORDERED, SCALED, Context, accept, exchange, sweep_of
from .one import Prior
from .proposals import Births

WANTED = {"position": 0.35, "pair": 0.25, "sigma": 0.4}  # acceptance that the steps adapt to


def target_of(frames: Tensor, variance: Tensor, prior: Prior, counts: Tensor, chains: int = 1) -> Target:
    """Each frame `chains` times."""
    shifted = (frames + variance).repeat_interleave(chains, 0)
    bounds = prior.bounds((frames.shape[1], frames.shape[2])).to(frames.device)
    return Target(shifted, variance.repeat_interleave(chains, 0), counts.log(), bounds, prior.disc)


def run(
    target: Target, generator: torch.Generator, chains: int, draws: int, thin: int, burn_in: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws (M, S, …) of each field, and the acceptance (B,) of each kind of move."""
    rows = len(target.counts)
    scales = {name: target.counts.new_full((rows,), first) for name, first in SCALED.items()}
    context = Context(target, Births(target), generator, scales)
    state = _start(context, chains)
    moves = sweep_of(target)
    kept: list[Chains] = []
    tried: dict[str, int] = {}
    moved: dict[str, Tensor] = {}
    for sweep in range(burn_in + draws * thin):
        for name, move in moves:
            if move in ORDERED:
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


def keep_memory() -> None:
    """Let the process keep freed memory: five times quicker here.

    glibc gives a block of 1 MB back to the system after every operation and has it cleared anew for the next, until a
    larger block has been freed once. This one is never written to, so that it takes no memory itself.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _start(context: Context, chains: int) -> Chains:
    """Half of the chains of each frame with the fewest emitters, half with the most, all drawn from the prior."""
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
    background, sigma = (low[3:] + (high - low)[3:] * context.uniform(rows, 2)).unbind(-1)
    return Chains.at(target, emitters, count, background, sigma)
