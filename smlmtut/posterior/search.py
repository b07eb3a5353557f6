"""One emitter, step 1: where in the prior's support is the posterior? A search over cells, and the frame's likelihood.

The positions are tiled with cells of half a PSF sd. In each, the likelihood is maximized over N and b. A cell is
dropped if it lies more than `depth` nats below the best cell even after an allowance for the points off its centre:
twice the loss between centre and corner that the Fisher information predicts. Each cell that is left is divided by 3
along either axis, until a cell is as small as the posterior. Another mode can only be missed if it is less than
exp(−depth) times as likely as the best one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..estimation.likelihood import surrogate_log_likelihood
from ..imaging.camera import Camera
from ..imaging.psf import pixel_integral, pixel_integral_gradient

FIRST_STEPS, SCORING_STEPS = 2, 5  # of Fisher scoring: for all cells, and for those that may still matter
GAIN = 40.0  # nats: log L rises by less than this from the first to the last of these steps
BLOCK = 1 << 16  # entries of a temporary, 0.5 MB, so that several of them stay in the cache
FAINTEST = 1e-6  # e⁻: a pixel's rate is clamped to it before it divides
TINY = 1e-300  # values are clamped to it before their logarithm is taken or they divide


class FrameLikelihood:
    """The likelihood of one frame (H, W) over the prior's support, its P = H W pixels in one row."""

    def __init__(self, frame: Tensor, variance: Tensor, bounds: Tensor, disc: tuple[float, float, float] | None):
        self.shape = (frame.shape[0], frame.shape[1])
        self.bounds, self.disc = bounds, disc  # (5, 2); None or (u, v, radius), which positions are limited to
        self.var = variance.reshape(-1)
        self.counts = frame.reshape(-1) + self.var  # x'
        unit = surrogate_log_likelihood(frame, 1.0, Camera(read_variance=variance)).sum()
        self.constant = float(unit - (torch.xlogy(self.counts, 1 + self.var) - 1 - self.var).sum())  # −Σ log Γ(x' + 1)

    def share(self, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """Share of the light in each pixel, (n, P)."""
        along_u, along_v = pixel_integral(u, sigma, self.shape[1]), pixel_integral(v, sigma, self.shape[0])
        return (along_v[:, :, None] * along_u[:, None, :]).flatten(1)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Σ x' log ω' − ω' of parameters (n, 5), (n,); without the constant."""
        parts = []
        for part in theta.split(max(1, BLOCK // len(self.counts))):
            u, v, photons, background, sigma = part.T
            parts.append(self.poisson(photons[:, None] * self.share(u, v, sigma) + background[:, None] + self.var))
        return torch.cat([*parts, theta.new_zeros(0)])

    def poisson(self, rate: Tensor) -> Tensor:
        """Σ x' log ω' − ω' of rates ω' (n, P)."""
        return rate.clamp(min=TINY).log() @ self.counts - rate.sum(1)


@dataclass(frozen=True)
class Found:
    """What the search leaves: cells, and the ranges of N, b and σ."""

    cells: Tensor  # (n, 2) whole numbers: place on the lattice
    origin: Tensor  # (2,) of the lattice, px
    size: Tensor  # (2,) of a cell, px
    best: Tensor  # (5,) parameters at the centre of the most likely cell
    log_likelihood: float  # at that point
    ranges: list[tuple[float, float]]


def search(likelihood: FrameLikelihood, depth: float) -> Found:
    """The cells that may hold a point less than `depth` nats below the most likely one."""
    low, high = likelihood.bounds[:2].T
    sigma_low, sigma_high = likelihood.bounds[4].tolist()
    spread = math.log(sigma_high / sigma_low)
    count = ((high - low) / (0.5 * sigma_low)).ceil()  # cells along u and v
    size = (high - low) / count
    cells = torch.cartesian_prod(*(torch.arange(int(n)) for n in count))  # (M, 2)
    panels, first = max(1, math.ceil(spread / 0.16)), True  # cells along σ
    while True:
        middle = low + (cells + 0.5) * size
        if likelihood.disc is not None:
            reach = likelihood.disc[2] + float(size.norm()) / 2
            near = (middle - torch.tensor(likelihood.disc[:2])).norm(dim=1) <= reach
            cells, middle = cells[near], middle[near]
        edges = sigma_low * torch.linspace(0, spread, panels + 1, dtype=torch.float64).exp()
        place = torch.cat(
            [middle.repeat_interleave(panels, 0), ((edges[1:] + edges[:-1]) / 2).repeat(len(middle))[:, None]], 1
        )  # (n, 3) u, v, σ with n = M panels
        half = torch.cat([size.expand(len(place), 2), edges.diff().repeat(len(middle))[:, None]], 1) / 2
        row, log_l, light, foreseen = _contenders(likelihood, place, half, depth, first)
        place, missing = place[row], log_l.max() - log_l  # nats
        top = int(log_l.argmax())
        alive = torch.zeros(len(cells) * panels, dtype=torch.bool)
        alive[row] = missing - foreseen <= depth
        alive = alive.reshape(-1, panels)
        cells = cells[alive.any(1)]
        information = _information(likelihood, place[top : top + 1], light[top : top + 1])[0]
        sd = 1 / information.sqrt().clamp(min=1e-6)  # of u, v, σ
        if bool((size <= 1.2 * sd[:2]).all()):
            break
        first = False
        cells = (3 * cells[:, None] + torch.cartesian_prod(torch.arange(3), torch.arange(3))).reshape(-1, 2)
        size = size / 3
        if spread:
            panels = min(3 * panels, max(panels, math.ceil((sigma_high - sigma_low) / (1.2 * float(sd[2])))))
    some = alive.any(0).nonzero()[:, 0]
    keep = missing < depth
    ranges = _ranges(likelihood, place[keep], light[keep], depth - missing[keep])
    ranges.append((float(edges[some[0]]), float(edges[some[-1] + 1])))
    best = torch.cat([place[top, :2], light[top], place[top, 2:]])
    return Found(cells, low, size, best, float(log_l[top]), ranges)


def _contenders(
    likelihood: FrameLikelihood, place: Tensor, half: Tensor, depth: float, first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cells that may matter: their rows in place, log L, (N, b), and twice the predicted loss to the corner.

    The loss is computed only where the decision depends on it, and 0 elsewhere. The information is at most N/σ² about
    u or v and 4 N/σ² about σ, whatever the camera and the background, which already bounds the loss of most cells.
    """
    row = torch.arange(len(place))
    log_l = light = place.new_zeros(0)
    passes = [(FIRST_STEPS, GAIN), (SCORING_STEPS, 0.0)]
    for steps, gain in passes if first else passes[1:]:
        log_l, light = _brightest(likelihood, place[row], steps)
        most = light[:, 0] * (half[row] ** 2 @ half.new_tensor([1.0, 1.0, 4.0])) / place[row, 2] ** 2
        near = log_l.max() - log_l - most <= depth + gain
        row, log_l, light = row[near], log_l[near], light[near]
    foreseen, unsure = torch.zeros_like(log_l), log_l.max() - log_l > depth  # the others stay whatever their loss
    if bool(unsure.any()):
        information = _information(likelihood, place[row[unsure]], light[unsure])
        foreseen[unsure] = (half[row[unsure]] ** 2 * information).sum(1)
    return row, log_l, light, foreseen


def _brightest(likelihood: FrameLikelihood, place: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """log L (n,) at the best (N, b) (n, 2), by Fisher scoring within the prior.

    A step is weighted least squares, with 1/ω' of the step before as the weights.
    """
    (n_low, n_high), (b_low, b_high) = likelihood.bounds[2:4].tolist()
    signal = likelihood.counts - likelihood.var
    sums = torch.stack([torch.ones_like(signal), signal], 1)  # (P, 2)
    parts = []
    for part in place.split(max(1, BLOCK // len(signal))):
        share = likelihood.share(*part.T)
        weight, best = torch.ones_like(share), torch.full((3, len(part)), -math.inf, dtype=torch.float64)
        for step in range(steps):
            weighted = share * weight
            a, (c, p), (d, q) = (share * weighted).sum(1).clamp(min=TINY), (weighted @ sums).T, (weight @ sums).T
            photons = ((p * d - q * c) / (a * d - c * c).clamp(min=TINY)).clamp(n_low, n_high)
            background = ((q - c * photons) / d).clamp(b_low, b_high)
            photons = ((p - c * background) / a).clamp(n_low, n_high)
            rate = torch.addcmul(background[:, None] + likelihood.var, photons[:, None], share)
            if step >= steps - 2:  # the last step may overshoot: keep the better of the last two
                now = torch.stack([likelihood.poisson(rate), photons, background])
                best = torch.where(now[0] > best[0], now, best)
            weight = rate.clamp_(min=FAINTEST).reciprocal_()
        parts.append(best)
    best = torch.cat(parts, 1)
    return best[0], best[1:].T


def _information(likelihood: FrameLikelihood, place: Tensor, light: Tensor) -> Tensor:
    """Fisher information about u, v and σ, each with all else known, (n, 3)."""
    height, width = likelihood.shape
    parts = []
    for part, (photons, background) in _blocks(likelihood, place, light):
        u, v, sigma = part.T
        eu, ev = pixel_integral(u, sigma, width), pixel_integral(v, sigma, height)
        (du, su), (dv, sv) = pixel_integral_gradient(u, sigma, width), pixel_integral_gradient(v, sigma, height)
        rate = photons[:, None, None] * ev[:, :, None] * eu[:, None, :]
        rate = rate + (background[:, None] + likelihood.var).unflatten(1, likelihood.shape)
        weight = photons[:, None, None] ** 2 / rate.clamp(min=FAINTEST)
        over = lambda row, column: torch.einsum("nhw,nh,nw->n", weight, row, column)  # noqa: B023, E731
        about_sigma = over(ev**2, su**2) + over(sv**2, eu**2) + over(2 * ev * sv, eu * su)
        parts.append(torch.stack([over(ev**2, du**2), over(dv**2, eu**2), about_sigma], 1))
    return torch.cat(parts)


def _ranges(likelihood: FrameLikelihood, place: Tensor, light: Tensor, budget: Tensor) -> list[tuple[float, float]]:
    """Ends of N and b: where log L has fallen by each cell's budget from its best value, plus half an sd."""
    sds = []
    for part, (photons, background) in _blocks(likelihood, place, light):
        share = likelihood.share(*part.T)
        weight = 1 / (photons[:, None] * share + background[:, None] + likelihood.var).clamp(min=FAINTEST)
        weighted = share * weight
        a, c, d = (share * weighted).sum(1).clamp(min=TINY), weighted.sum(1), weight.sum(1)
        left = (1 - c * c / (a * d)).clamp(min=1e-6)
        sds.append(torch.stack([a * left, d * left], 1).rsqrt())
    reach = ((2 * budget).sqrt() + 0.5)[:, None] * torch.cat(sds)
    low = torch.maximum((light - reach).amin(0), likelihood.bounds[2:4, 0])
    high = torch.minimum((light + reach).amax(0), likelihood.bounds[2:4, 1])
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _blocks(likelihood: FrameLikelihood, place: Tensor, light: Tensor):
    """Rows of place (n, k) with the matching columns of light, a few at a time."""
    size = max(1, BLOCK // len(likelihood.counts))
    return zip(place.split(size), (part.T for part in light.split(size)), strict=True)
