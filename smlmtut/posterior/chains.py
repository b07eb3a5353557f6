"""Several emitters: the state of the Markov chains, over 0 … E emitters each, and its likelihood.

M chains run side by side, one in each row of every tensor. A chain's emitters are in its first `count` slots; their
order has no meaning, and the density of the state does not depend on it. A slot that is not in use has 0 photons.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..imaging.fast_psf import pixel_integral_fast

LEAST = 1e-9  # e⁻, added to every pixel's rate, which without background and read noise may be 0 by rounding


@dataclass(frozen=True)
class Target:
    """The density that each chain samples: the likelihood of its frame, and the prior.

    counts: (M, H, W) x' = x + r². variance: (M, H, W) r². log_count: (E + 1,) log p(K). bounds: (5, 2), ends of the
    prior in the order of fit.PARAMETERS. disc: None, or (u, v, radius) that positions are limited to.
    """

    counts: Tensor
    variance: Tensor
    log_count: Tensor
    bounds: Tensor
    disc: tuple[float, float, float] | None

    @property
    def most(self) -> int:
        """E, the largest number of emitters."""
        return len(self.log_count) - 1

    @property
    def log_area(self) -> float:
        """Log of the area of the prior of a position, px²."""
        (left, right), (top, bottom) = self.bounds[:2].tolist()
        return math.log(math.pi * self.disc[2] ** 2 if self.disc else (right - left) * (bottom - top))

    @property
    def log_photons(self) -> float:
        """Log of the width of the prior of N, e⁻; 0 where N is known."""
        return math.log(self.width(2)) if self.width(2) else 0.0

    def width(self, parameter: int) -> float:
        """Width of the prior of one parameter, by its place in fit.PARAMETERS; 0 where it is known."""
        return float(self.bounds[parameter, 1] - self.bounds[parameter, 0])

    @property
    def reach(self) -> tuple[float, float]:
        """Factors for the steps along u and v: below 1 where the prior's rectangle is narrower than a pixel."""
        return min(1.0, self.width(0)), min(1.0, self.width(1))

    def inside(self, u: Tensor, v: Tensor, photons: Tensor) -> Tensor:
        """Whether the prior allows an emitter with these values: bool of their shape."""
        (left, right), (top, bottom), (low, high) = self.bounds[:3].tolist()
        good = (u >= left) & (u <= right) & (v >= top) & (v <= bottom) & (photons >= low) & (photons <= high)
        return good & (torch.hypot(u - self.disc[0], v - self.disc[1]) <= self.disc[2]) if self.disc else good

    def log_likelihood(self, rate: Tensor) -> Tensor:
        """Σ x' log ω' − ω' of rates ω' (M, H, W): (M,)."""
        return torch.linalg.vecdot(self.counts.flatten(1), rate.log().flatten(1)) - rate.sum((1, 2))


@dataclass(frozen=True)
class Chains:
    """M chains. emitters: (M, E, 3) u, v (px) and N. count, background, sigma, log_likelihood: (M,).

    shares: (M, E, W + H) of an emitter's light in each column and in each row, Eq. 11.
    """

    emitters: Tensor
    shares: Tensor
    count: Tensor
    background: Tensor
    sigma: Tensor
    log_likelihood: Tensor

    @classmethod
    def at(cls, target: Target, emitters: Tensor, count: Tensor, background: Tensor, sigma: Tensor) -> "Chains":
        """Chains with these parameters; what follows from them is computed."""
        shape = (target.counts.shape[1], target.counts.shape[2])
        light = shares(emitters[..., 0], emitters[..., 1], sigma[:, None], shape)
        chains = cls(emitters, light, count, background, sigma, torch.zeros_like(background))
        return replace(chains, log_likelihood=target.log_likelihood(chains.rate(target)))

    def rate(self, target: Target) -> Tensor:
        """ω' of Eq. 10, (M, H, W)."""
        width = target.counts.shape[2]
        along_u, along_v = self.shares[..., :width], self.shares[..., width:]
        base = target.variance + (self.background + LEAST)[:, None, None]
        return torch.baddbmm(base, (along_v * self.emitters[..., 2:]).transpose(1, 2), along_u)

    def slot(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, v and photons of one slot of each chain: (M,) each."""
        u, v, photons = self.emitters.gather(1, index[:, None, None].expand(-1, 1, 3))[:, 0].unbind(1)
        return u, v, photons

    def put(self, target: Target, index: Tensor, u: Tensor, v: Tensor, photons: Tensor) -> "Chains":
        """The chains with another emitter in one slot of each; `log_likelihood` keeps its old value."""
        light = shares(u, v, self.sigma, (target.counts.shape[1], target.counts.shape[2]))
        at, emitter = index[:, None, None], torch.stack([u, v, photons], 1)
        return replace(
            self,
            emitters=self.emitters.scatter(1, at.expand(-1, 1, 3), emitter[:, None]),
            shares=self.shares.scatter(1, at.expand(-1, 1, light.shape[1]), light[:, None]),
        )

    def set_photons(self, index: Tensor, photons: Tensor | float) -> "Chains":
        """The chains with other photons in one slot of each; `log_likelihood` keeps its old value."""
        rows = torch.arange(len(index), device=index.device)
        emitters = self.emitters.clone()
        emitters[rows, index, 2] = photons if isinstance(photons, Tensor) else emitters.new_tensor(photons)
        return replace(self, emitters=emitters)

    def with_last_exchanged(self, index: Tensor) -> "Chains":
        """The chains with the last emitter of each exchanged with that in a slot: the same state in another order."""
        last = (self.count - 1).clamp(min=0)
        order = torch.arange(self.emitters.shape[1], device=index.device).repeat(len(index), 1)  # (M, E)
        order = order.scatter(1, last[:, None], index[:, None]).scatter(1, index[:, None], last[:, None])[:, :, None]
        return replace(
            self,
            emitters=self.emitters.gather(1, order.expand(self.emitters.shape)),
            shares=self.shares.gather(1, order.expand(self.shares.shape)),
        )

    def where(self, accepted: Tensor, other: "Chains") -> "Chains":
        """The other chains where accepted (M,), these elsewhere."""
        fields = {}
        for name, old in vars(self).items():
            new = getattr(other, name)
            mask = accepted.reshape(-1, *[1] * (old.ndim - 1))
            fields[name] = old if new is old else torch.where(mask, new, old)
        return Chains(**fields)


def shares(u: Tensor, v: Tensor, sigma: Tensor, shape: tuple[int, int]) -> Tensor:
    """Shares of an emitter's light in each column and in each row, Eq. 11: (..., W + H)."""
    height, width = shape
    return torch.cat([pixel_integral_fast(u, sigma, width), pixel_integral_fast(v, sigma, height)], -1)
