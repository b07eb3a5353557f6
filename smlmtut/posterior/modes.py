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
from ..imaging.psf import Emitters
from .many import _count_probabilities
from .mode_search import Problem, limits_of
from .normal_modes import NormalModes, two_searches
from .one import Prior

AT_ONCE = 1024  # draws whose images are computed at once: 2 MB at 16 × 16 pixels
ENOUGH, MORE = 100.0, 16  # effective size below which a frame gets so many times the draws, once


@dataclass(frozen=True)
class ModeDraws:
    """S draws of equal weight from p(K, u, v, N, b, σ | x) of B frames.

    u, v (px), photons (e⁻): (B, S, E), 0 where there is no emitter. background (e⁻), sigma (px): (B, S).
    count_probability: p(K | x), (B, M + 1). size: effective number of weighted draws, (B,), of which these are chosen.
    log_evidence: log p(x, K) for each K, (B, M + 1), in nats up to a constant of the frame; −∞ where no mode has K.
    modes: how many there are, (B,). disagreement: half of Σ |p_1(K) − p_2(K)| with the modes of each search alone and
    their evidence by Laplace, (B,). Where no weighted draw lies within the prior, as in a crowd it may happen, size and
    count_probability are 0 and the draws are copies of the best mode, moved into the prior: an answer without a spread.
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
    limits = limits_of(given, (frames.shape[1], frames.shape[2]))
    for name, value in (("samples", samples), ("draws", draws), ("rounds", rounds), ("beam", beam)):
        whole(name, value)
    if len(instance("start", start, Emitters)) != len(frames):
        raise ValueError(f"start must have a row for each of the {len(frames)} frames, got {len(start)}")
    problem, start = Problem(frames, variance.expand(frames.shape), log_count, limits), start.to("cpu")
    normal, disagreement = two_searches(problem, start, rounds, beam)
    drawn = []
    for i in range(len(frames)):
        modes = normal[torch.tensor([i])]
        answer = _weighted(problem, i, modes, draws, samples, generator)
        if float(answer.size) < ENOUGH:
            answer = _weighted(problem, i, modes, MORE * draws, samples, generator)
        drawn.append(answer)
    return _gathered(drawn, disagreement)


def _weighted(
    problem: Problem, frame: int, modes: NormalModes, draws: int, samples: int, generator: torch.Generator
) -> ModeDraws:
    """Weighted draws about the modes of one frame, and of these as many of equal weight as are wanted."""
    parts = [
        _weights(problem, frame, modes, r, min(AT_ONCE, draws - first), generator)
        for r in (modes.number[0] >= 0).nonzero()[:, 0].tolist()
        for first in range(0, draws, AT_ONCE)
    ]
    theta, number, log_weight = (torch.cat(x) for x in zip(*parts, strict=True))
    evidence = torch.full_like(problem.log_count, -math.inf)  # log p(x, K), as far as it lies about the modes
    for k in number.unique().tolist():
        evidence[k] = log_weight[number == k].logsumexp(0) - math.log(draws)
    if not bool((log_weight > -math.inf).any()):
        return _of_the_mode(problem, modes, samples)
    weight = torch.softmax(log_weight, 0)
    # systematic resampling: each draw as often as its weight says, up to one
    ladder = (torch.arange(samples) + torch.rand((), generator=generator, dtype=torch.float64)) / samples
    chosen = torch.searchsorted(weight.cumsum(0), ladder).clamp(max=len(weight) - 1)
    chosen = chosen[torch.randperm(samples, generator=generator)]
    u, v, photons = (theta[chosen, k:-2:3][None] for k in range(3))
    background, sigma = theta[chosen, -2][None], theta[chosen, -1][None]
    return ModeDraws(
        u, v, photons, background, sigma, torch.softmax(evidence, 0)[None], evidence[None],
        1 / weight.square().sum()[None], (modes.number >= 0).sum(1), torch.zeros(1),
    )  # fmt: skip


def _of_the_mode(problem: Problem, modes: NormalModes, samples: int) -> ModeDraws:
    """The best mode of one frame in place of draws, with an effective size of 0."""
    best = int(modes.log_share[0].argmax())
    present = torch.arange(modes.mean.shape[2] // 3) < modes.number[0, best]
    low, high = problem.limits.T
    mean = modes.mean[0, best]
    own = mean[:-2].unflatten(0, (-1, 3)).clamp(low[:3], high[:3]) * present[:, None]
    u, v, photons = own.T[:, None, None].expand(3, 1, samples, -1)
    background, sigma = mean[-2:, None, None].clamp(low[3:, None, None], high[3:, None, None]).expand(2, 1, samples)
    nothing = torch.zeros_like(problem.log_count)[None]
    return ModeDraws(
        u, v, photons, background, sigma, nothing, nothing.log(), torch.zeros(1), (modes.number >= 0).sum(1),
        torch.zeros(1),
    )  # fmt: skip


def _weights(
    problem: Problem, frame: int, modes: NormalModes, r: int, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (D, P) about one mode of a frame, their number of emitters (D,), and log p(x, θ)/q(θ) (D,)."""
    mode, size = torch.full((1, draws), r), modes.mean.shape[2]
    noise = torch.randn(1, draws, size, generator=generator, dtype=torch.float64)
    drawn, number = modes.draw(mode, noise), modes.number[:, r].expand(draws)
    log_q = modes.log_density(drawn, number[None], torch.zeros_like(modes.log_share))[0]
    present, row = torch.arange(size // 3) < number[:1, None], torch.tensor([frame])
    likelihood = problem.log_likelihood(row, problem.rate(row, drawn, present))[0]
    allowed = _inside(problem, drawn[0], present) & modes.named_as_drawn(mode, drawn)[0]
    return drawn[0], number, torch.where(allowed, likelihood + problem.log_prior(number) - log_q, -math.inf)


def _inside(problem: Problem, theta: Tensor, present: Tensor) -> Tensor:
    """Whether the prior allows the parameters (M, P): (M,)."""
    low, high = problem.limits.T
    own, rest = theta[:, :-2].unflatten(-1, (-1, 3)), theta[:, -2:]
    inside = ((own >= low[:3]) & (own <= high[:3])).all(-1) | ~present
    return inside.all(-1) & ((rest >= low[3:]) & (rest <= high[3:])).all(-1)


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
