"""Several emitters, their number unknown: draws from the posterior by reversible-jump Markov chains (Green 1995).

The likelihood is the surrogate of Eq. 2 in photo-electrons, as in `one`: x' = x + r² is Poisson with rate
ω' = ω + r². The prior is p(K) Π_k p(u_k, v_k) p(N_k) · p(b) p(σ). Tests compare the draws with exact results where
there are any: one emitter with the grid of `one`, two in one dimension with a quadrature.

The chains of a frame start far apart: one half with the fewest emitters that p(K) allows, the other half with the
most, at random places, or with emitters that are given. `Diagnostics` shows whether the two halves agree in the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validate import finite, image_shape, instance, non_negative, number, positive, tensor, whole
from ..imaging.distributions import LogUniform
from ..imaging.kde import kde_image, kernel, to_super_resolved
from ..imaging.psf import Emitters
from ..imaging.scenes import DENSITY
from . import convergence
from .chains import Chains, Target
from .mode_search import Problem, limits_of
from .normal_modes import NormalModes, two_searches
from .one import Prior
from .sweeps import keep_memory, run, target_of

AT_ONCE = 512  # chains that run side by side: a tensor of their rates has 1 MB at 16 × 16 pixels
IMAGES_AT_ONCE = 512  # KDEs computed at once: 16 MB at 64 × 64 super-resolved pixels


def count_prior(
    most: int,
    shape: tuple[int, int],
    density: float | LogUniform = DENSITY,
    pixel_size_nm: float = 108.0,
    margin: float = 0.0,
) -> Tensor:
    """p(K) for K = 0 … most where K is Poisson with mean density · area, truncated at most and normalized.

    most: largest K. shape: (H, W) of the frame; margin: px beyond its border where emitters are counted too.
    density: emitters per µm², a number or LogUniform. With LogUniform, p(K) = ∫ Poisson(K; λ) dλ/λ / log(λ_high/λ_low)
        between the ends of λ = density · area. The integral is (P(K, λ_high) − P(K, λ_low))/K for K > 0, with the
        regularized incomplete gamma function P, and E_1(λ_low) − E_1(λ_high) for K = 0.
    Returns (most + 1,) float64. Raises ValueError where a size is not positive, or most is not a whole number.
    """
    from scipy.special import exp1, gammainc  # here, since it takes 0.2 s to load

    height, width = image_shape("shape", shape)
    most = whole("most", most, 0)
    side = number("pixel_size_nm", pixel_size_nm, positive) / 1000
    area = (height + 2 * number("margin", margin, non_negative)) * (width + 2 * margin) * side**2  # µm²
    if isinstance(density, LogUniform) and density.low < density.high:
        low, high = density.low * area, density.high * area
        terms = [exp1(low) - exp1(high), *((gammainc(k, high) - gammainc(k, low)) / k for k in range(1, most + 1))]
        log_p = torch.tensor(terms, dtype=torch.float64).log()
    else:
        mean = number("density", density.low if isinstance(density, LogUniform) else density, positive) * area
        log_p = torch.tensor([k * math.log(mean) - math.lgamma(k + 1) for k in range(most + 1)], dtype=torch.float64)
    return torch.softmax(log_p, 0)


@dataclass(frozen=True)
class Diagnostics:
    """Evidence on whether the draws can be trusted, (B,) each.

    r_hat: largest split-R̂, and size: smallest effective number of draws, of K, the photons of all emitters together,
    b and log p(x | θ). mean_difference: largest difference of E[y | x], over the largest sd[y | x], between the chains
    that started with few emitters and those that started with many. count_difference: largest difference of
    p(K | x) between them.
    """

    r_hat: Tensor
    size: Tensor
    mean_difference: Tensor
    count_difference: Tensor


@dataclass(frozen=True)
class Draws:
    """Draws from p(K, u, v, N, b, σ | x) of B frames: C chains of S draws each, all float64.

    u, v (px), photons (e⁻): (B, C, S, E); the first `count` (B, C, S) entries are emitters, the others are 0.
    background (e⁻), sigma (px), log_likelihood: (B, C, S), the last in nats up to a constant of the frame.
    The first half of the chains started with few emitters, the second with many.
    acceptance: share of each kind of move that was accepted, (B,).
    """

    frames: Tensor
    read_variance: Tensor
    prior: Prior
    count_prior: Tensor
    u: Tensor
    v: Tensor
    photons: Tensor
    count: Tensor
    background: Tensor
    sigma: Tensor
    log_likelihood: Tensor
    acceptance: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.frames)

    def count_probability(self) -> Tensor:
        """p(K | x): (B, E + 1)."""
        return _frequencies(self.count.flatten(1), len(self.count_prior))

    def emitters(self, frame: int, chains: slice = slice(None)) -> Emitters:
        """The draws of one frame as a batch of emitters, (C·S, E); chains: which chains, all by default."""
        u, v, photons = (x[frame, chains].flatten(0, 1) for x in (self.u, self.v, self.photons))
        return Emitters(u, v, photons, photons > 0)

    def kde_moments(self, factor: int = 4, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
        """E[y | x] and Var[y | x] of the kernel density estimate, as kde_image draws it with peak 1: (B, f·H, f·W)."""
        moments = [self._moments(i, slice(None), factor, sigma) for i in range(len(self))]
        mean, variance = (torch.stack(x) for x in zip(*moments, strict=True))
        return mean, variance

    def mass(self, factor: int = 4, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean and sd (B,) of the sum of y over all pixels; an emitter away from the border adds 2π sigma²."""
        height, width = self.frames.shape[1:]
        along_u = kernel(to_super_resolved(self.u, factor), number("sigma", sigma, positive), factor * width).sum(-1)
        along_v = kernel(to_super_resolved(self.v, factor), sigma, factor * height).sum(-1)
        total = (along_u * along_v * (self.photons > 0)).sum(-1).flatten(1)  # (B, CS)
        return total.mean(1), total.std(1)

    def credible_level(self, truth: Emitters, background: Tensor, sigma: Tensor) -> Tensor:
        """Mass of the highest-density region that just holds the truth: (B,).

        The region is {θ : p(x, θ) > p(x, truth)} over all K, with lengths in px and N and b in e⁻ in the density p.
        Over frames drawn from the prior its mass is uniform on [0, 1]. truth: (B, any); background, sigma: (B,).
        Raises ValueError where the shapes differ, an emitter is outside the prior, or there are more than p(K) allows.
        """
        background, sigma = tensor("background", background, 1), tensor("sigma", sigma, 1)
        if len(background) != len(self) or len(sigma) != len(self):
            raise ValueError(
                f"background and sigma must have the batch of frames, {len(self)}, "
                f"got {len(background)} and {len(sigma)}"
            )
        if len(instance("truth", truth, Emitters)) != len(self):
            raise ValueError(f"truth must have the batch of frames, {len(self)}, got {len(truth)}")
        number, most = truth.mask.sum(1), len(self.count_prior) - 1
        target = target_of(self.frames, self.read_variance, self.prior, self.count_prior)
        emitters = _allowed("truth", truth, target)
        chains = Chains.at(target, emitters, number, background.double(), sigma.double())
        numbers = torch.arange(most + 1, device=target.log_count.device)
        log_p = target.log_count - numbers * (target.log_area + target.log_photons)
        own = chains.log_likelihood + log_p[number]
        drawn = self.log_likelihood + log_p[self.count]
        return (drawn > own[:, None, None]).double().flatten(1).mean(1)

    def diagnostics(self, factor: int = 4, sigma: float = 1.0) -> Diagnostics:
        """Split-R̂, effective size, and the agreement of the two kinds of starts."""
        traces = [self.count.double(), self.photons.sum(-1), self.background, self.log_likelihood]
        r_hat = torch.stack([convergence.split_r_hat(x) for x in traces]).amax(0)
        size = torch.stack([convergence.effective_size(x) for x in traces]).amin(0)
        half = self.u.shape[1] // 2
        difference = []
        for i in range(len(self)):
            few, many = (self._moments(i, chains, factor, sigma) for chains in (slice(half), slice(half, None)))
            spread = ((few[1] + many[1]) / 2).max().sqrt().clamp(min=1e-12)
            difference.append((few[0] - many[0]).abs().max() / spread)
        starts = self.count[:, :half], self.count[:, half:]
        few, many = (_frequencies(x.flatten(1), len(self.count_prior)) for x in starts)
        return Diagnostics(r_hat, size, torch.stack(difference), (few - many).abs().amax(1))

    def _moments(self, frame: int, chains: slice, factor: int, sigma: float) -> tuple[Tensor, Tensor]:
        emitters, shape = self.emitters(frame, chains), (self.frames.shape[1], self.frames.shape[2])
        first = second = torch.zeros(())
        for part in torch.arange(len(emitters)).split(IMAGES_AT_ONCE):
            piece = Emitters(*(x[part] for x in (emitters.u, emitters.v, emitters.photons, emitters.mask)))
            y = kde_image(piece, shape, factor, sigma)[:, 0]
            first, second = first + y.sum(0), second + (y**2).sum(0)
        mean = first / len(emitters)
        return mean, (second / len(emitters) - mean**2).clamp(min=0)


def chain_posterior(
    frames: Tensor,
    counts: Tensor | Sequence[float],
    generator: torch.Generator,
    read_variance: float | Tensor = 0.0,
    prior: Prior | None = None,
    chains: int = 32,
    draws: int = 100,
    thin: int = 4,
    burn_in: int = 200,
    start: Emitters | None = None,
    at_once: int = AT_ONCE,
    jumps: bool = False,
) -> Draws:
    """Draws from the posterior of the emitters of each frame.

    frames: (B, H, W) photo-electrons. counts: p(K) for K = 0 … E, for instance from `count_prior`; [0, 0, 1] where
        there are known to be two. read_variance: e⁻², a number, (H, W) or (B, H, W). prior: of each emitter, b and σ;
        None stands for Prior().
    chains: number of chains for each frame, even. draws: number kept of each chain, one every `thin` sweeps after
        `burn_in` sweeps, during which the lengths of the steps adapt. A sweep is some ten moves.
    start: None, or emitters (B, any) with which the second half of the chains of each frame starts; the nearer these
        are to the posterior, the shorter is the burn-in. at_once: chains that run side by side, more in small frames.
    jumps: look for the modes of each frame first, from `start` and from an empty frame, and propose a whole set of
        emitters from them in every sweep (as `mode_posterior` draws them): far fewer sweeps are needed where the modes
        are found, and the draws are as exact where they are not. On the CPU, with a prior that has no known parameter.
    Runs on the generator's device (tested on the CPU only). The same generator state and the same arguments give the
    same draws.
    Raises ValueError for a wrong shape, a value that is not finite, x' < 0 without read noise, or a p(K) that is
    negative, does not sum to 1, or has a 0 between two others, which the chains could not cross; a start that the
    prior does not allow; or jumps with another prior or device than they take.
    """
    frames = tensor("frames", finite("frames", frames), 3)
    shape = image_shape("frames", (frames.shape[1], frames.shape[2]))
    device = instance("generator", generator, torch.Generator).device
    variance = tensor("read_variance", non_negative("read_variance", read_variance)).to(device, torch.float64)
    if tuple(variance.shape) not in ((), shape, tuple(frames.shape)):
        raise ValueError(
            f"read_variance must be a number or have shape {shape} or {tuple(frames.shape)}, "
            f"got {tuple(variance.shape)}"
        )
    frames = frames.detach().to(device, torch.float64)
    variance = variance.expand(frames.shape)
    if bool(((frames < 0) & (variance == 0)).any()):
        raise ValueError(f"frames must not be negative where read_variance is 0, got {frames[variance == 0].min():g}")
    counts = _count_probabilities(counts).to(device)
    prior = Prior() if prior is None else instance("prior", prior, Prior)
    if whole("chains", chains, 2) % 2:
        raise ValueError(f"chains must be even, one half for each kind of start, got {chains}")
    whole("draws", draws, 4)
    whole("thin", thin)
    whole("burn_in", burn_in, 0)
    whole("at_once", at_once)
    first = None if start is None else _first(start, target_of(frames, variance, prior, counts))
    keep_memory()
    parts = []
    for piece in torch.arange(len(frames)).split(max(1, at_once // chains)):
        target = target_of(frames[piece], variance[piece], prior, counts, chains)
        given = None if first is None else first[piece]
        modes = _modes(frames[piece], variance[piece], prior, counts, given) if jumps else None
        parts.append(run(target, generator, chains, draws, thin, burn_in, given, modes))
    fields = {}
    for name in parts[0][0]:
        fields[name] = torch.cat([part[0][name].unflatten(0, (-1, chains)) for part in parts])
    acceptance = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
    return Draws(frames, variance, prior, counts, **fields, acceptance=acceptance)


def _allowed(name: str, emitters: Emitters, target: Target) -> Tensor:
    """u, v and N of emitters, (B, any, 3), with N = 0 for those that are not present; ValueError as their users say."""
    present, most = emitters.mask, target.most
    u, v, photons = (x.to(target.counts) for x in (emitters.u, emitters.v, emitters.photons))
    number = int(present.sum(1).max())
    if not bool((target.inside(u, v, photons) | ~present).all()) or number > most:
        raise ValueError(f"{name} must be within the prior and have at most {most} emitters, got {number}")
    return torch.stack([u, v, torch.where(present, photons, 0.0)], 2)


def _first(start: Emitters, target: Target) -> Tensor:
    """The emitters of a start (B, E, 3), those that are present before the others."""
    if len(instance("start", start, Emitters)) != len(target.counts):
        raise ValueError(f"start must have the batch of frames, {len(target.counts)}, got {len(start)}")
    emitters, number = _allowed("start", start, target), start.mask.sum(1)
    if not bool(target.log_count[number].isfinite().all()):
        raise ValueError(f"start must have as many emitters as counts allows, got {int(number.min())} in a frame")
    order = start.mask.int().argsort(dim=1, descending=True, stable=True)[:, : target.most]
    emitters = emitters.gather(1, order[:, :, None].expand(-1, -1, 3).to(emitters.device))
    return torch.nn.functional.pad(emitters, (0, 0, 0, target.most - emitters.shape[1]))


def _modes(frames: Tensor, variance: Tensor, prior: Prior, counts: Tensor, start: Tensor | None) -> NormalModes:
    """The modes of frames; start (B, E, 3) or None."""
    limits = limits_of(prior, (frames.shape[1], frames.shape[2]))
    if frames.device.type != "cpu":
        raise ValueError(f"generator must be of the CPU for jumps, got one of {frames.device}")
    table = torch.zeros(len(frames), 1, 3, dtype=torch.float64) if start is None else start
    u, v, photons = table.unbind(2)
    return two_searches(Problem(frames, variance, counts.log(), limits), Emitters(u, v, photons, photons > 0))[0]


def _count_probabilities(counts: Tensor | Sequence[float]) -> Tensor:
    """p(K) checked, as float64, without trailing zeros."""
    p = tensor("counts", non_negative("counts", counts), 1).to(torch.float64)
    if abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError(f"counts must be probabilities of K = 0, 1, … that sum to 1, got a sum of {float(p.sum()):g}")
    possible = p.nonzero()[:, 0]
    if len(possible) != int(possible[-1] - possible[0]) + 1:
        raise ValueError(f"counts must not be 0 between two others, got {p.tolist()}")
    return p[: int(possible[-1]) + 1]


def _frequencies(count: Tensor, numbers: int) -> Tensor:
    """Relative frequency of each number 0 … numbers − 1 in the rows of count (B, n): (B, numbers)."""
    return (count[:, :, None] == torch.arange(numbers, device=count.device)).double().mean(1)
