"""Several emitters: the densities that the moves draw new emitters, photons and backgrounds from.

Each density is a function of the frame and of the rate ω of everything else in it, so that a move and its reverse use
the same density. A crude proposal costs rejected moves but no bias: the acceptance ratio corrects for it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .chains import Target, shares

# None of these numbers changes the posterior, only how fast the chains explore it.
EVENLY = 0.1  # share of the births that are uniform over the prior's rectangle
# share of the proposals for N and b that are uniform: every value must be reachable, so that the reverse move has a
# positive density
FLAT = 0.05
WIDEN = 1.1  # sd of the other proposals for N and b over that of the likelihood's curvature
FARTHEST = 5.0  # largest distance of the centre of a truncated normal from its interval, sd: there Φ has ten digits
SCORING_STEPS = 2  # of Fisher scoring
DIM = 0.1  # e⁻: rates are clamped to this where births are weighted


@dataclass(frozen=True)
class Brightness:
    """A density on [low, high]: a truncated normal mixed with a little of the uniform. mean and sd: (M,)."""

    mean: Tensor
    sd: Tensor
    low: float
    high: float

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The normal's distribution function at low and at high."""
        low, high = (torch.special.ndtr((end - self.mean) / self.sd) for end in (self.low, self.high))
        return low, high

    def draw(self, uniform: Tensor) -> Tensor:
        """(M,) from uniform numbers (M, 2)."""
        low, high = self._ends()
        z = torch.special.ndtri(low + uniform[:, 0] * (high - low))
        normal = (self.mean + self.sd * z).clamp(self.low, self.high)
        return torch.where(uniform[:, 1] < FLAT, self.low + (self.high - self.low) * uniform[:, 0], normal)

    def log_density(self, x: Tensor) -> Tensor:
        """(M,) at values x (M,) in [low, high]."""
        low, high = self._ends()
        normal = torch.exp(-(((x - self.mean) / self.sd) ** 2) / 2) / (self.sd * (high - low) * math.sqrt(2 * math.pi))
        return ((1 - FLAT) * normal + FLAT / (self.high - self.low)).log()


def brightness(counts: Tensor, rest: Tensor, image: Tensor, low: float, high: float) -> Brightness:
    """A normal approximation to the likelihood of a in ω' = rest + a · image, by Fisher scoring.

    counts, rest, image: (M, P). The log-likelihood is concave, so that there is one maximum. Where it lies beyond low
    or high, the approximation has the likelihood's slope at that end.
    """
    weighted = image / torch.maximum(counts, rest).clamp(min=DIM)
    a = torch.linalg.vecdot(counts - rest, weighted) / torch.linalg.vecdot(image, weighted).clamp(min=1e-30)
    information, light = a, image.sum(1)
    for _ in range(SCORING_STEPS):
        a = a.clamp(low, high)
        weighted = image / torch.addcmul(rest, a[:, None], image)  # image/ω'
        information = torch.linalg.vecdot(image, weighted).clamp(min=1e-12)
        a = a + (torch.linalg.vecdot(counts, weighted) - light) / information
    sd = WIDEN * information.rsqrt()
    return Brightness(torch.maximum(torch.minimum(a, high + FARTHEST * sd), low - FARTHEST * sd), sd, low, high)


class Births:
    """The density of the position of a new emitter: constant in cells of about a pixel.

    An emitter of N photons at the centre of a cell raises the log-likelihood by about N s − N² i/2, with the score s
    and the information i at N = 0. The probability of a cell is proportional to the exponential of the largest rise
    that the prior of N allows.
    """

    def __init__(self, target: Target):
        self.target = target
        (left, right), (top, bottom) = target.bounds[:2].tolist()
        height, width = target.counts.shape[1:]
        self.cells = (max(1, round(bottom - top)), max(1, round(right - left)))  # along v and u
        self.start, self.size = (top, left), ((bottom - top) / self.cells[0], (right - left) / self.cells[1])
        middles = []
        for start, size, cells in zip(self.start, self.size, self.cells, strict=True):
            middles.append(start + size * (torch.arange(cells, dtype=torch.float64, device=target.counts.device) + 0.5))
        sigma = target.bounds[4].mean()
        self.along_v = shares(middles[0], middles[0], sigma, (height, width))[:, width:]  # (cells, H)
        self.along_u = shares(middles[1], middles[1], sigma, (height, width))[:, :width]  # (cells, W)

    def weights(self, rest: Tensor) -> Tensor:
        """Probability of each cell where rest (M, H, W) is the rate without the emitter: (M, cells)."""
        excess = self.target.counts - rest
        # a Poisson deviance is (x' − ω)²/(ω + (x' − ω)/3) to third order: bright emitters are not overrated
        noise = torch.add(rest.clamp(min=DIM), excess.clamp(min=0), alpha=1 / 3)
        score = self.along_v @ (excess / noise) @ self.along_u.T
        information = (self.along_v**2 @ noise.reciprocal() @ (self.along_u**2).T).clamp(min=1e-12)
        low, high = self.target.bounds[2].tolist()
        photons = (score / information).clamp(low, high)
        gain = (photons * (score - photons * information / 2)).flatten(1)
        return (1 - EVENLY) * torch.softmax(gain, 1) + EVENLY / gain.shape[1]

    def draw_position(self, weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """u and v (M,) from uniform numbers (M, 3)."""
        cumulative = weights.cumsum(1)
        level = uniform[:, :1] * cumulative[:, -1:]
        cell = torch.searchsorted(cumulative, level)[:, 0].clamp(max=weights.shape[1] - 1)
        v = self.start[0] + self.size[0] * (cell // self.cells[1] + uniform[:, 1])
        u = self.start[1] + self.size[1] * (cell % self.cells[1] + uniform[:, 2])
        return u, v

    def log_position(self, weights: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Log-density (M,) per px² of a position: the cell's probability over its area."""
        row = ((v - self.start[0]) / self.size[0]).long().clamp(0, self.cells[0] - 1)
        column = ((u - self.start[1]) / self.size[1]).long().clamp(0, self.cells[1] - 1)
        of_cell = weights.gather(1, (row * self.cells[1] + column)[:, None])[:, 0]
        return (of_cell / (self.size[0] * self.size[1])).log()

    def photons(self, rest: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Brightness | None:
        """The density of the photons of an emitter there; None where N is known."""
        low, high = self.target.bounds[2].tolist()
        if low == high:
            return None
        height, width = rest.shape[1:]
        share = shares(u, v, sigma, (height, width))
        image = share[:, width:, None] * share[:, None, :width]
        return brightness(self.target.counts.flatten(1), rest.flatten(1), image.flatten(1), low, high)
