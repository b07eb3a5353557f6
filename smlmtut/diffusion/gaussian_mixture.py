"""Data whose denoiser is exact: a mixture of a few Gaussians.

The best estimate of y_0 is a sum over the modes. Samples made with it show the errors of the sampler alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validate import finite, non_negative, positive, whole
from .process import per_row, posterior_variance


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """y_0 ~ Σ_k w_k N(m_k, v), pixels independent given k.

    modes: m_k, (K, ...); K = 1 is one Gaussian, and a few images (K, 1, H, W) are a mixture too.
    weights: w_k, (K,), above 0, scaled here to a sum of 1; None: equal weights.
    variance: v ≥ 0, a number or a tensor that multiplies a mode; with 0, y_0 is one of the modes.
    Raises ValueError for a value that is not finite or out of its range, or another shape.
    """

    modes: Tensor
    weights: Tensor | None = None
    variance: float | Tensor = 0.0

    def __post_init__(self) -> None:
        if finite("modes", self.modes).ndim < 1 or not len(self.modes):
            raise ValueError(f"modes must be (K, ...), got shape {tuple(self.modes.shape)}")
        weights = self.modes.new_ones(len(self.modes)) if self.weights is None else self.weights
        if positive("weights", weights).shape != (len(self.modes),):
            raise ValueError(f"weights must be ({len(self.modes)},), one for each mode, got {tuple(weights.shape)}")
        object.__setattr__(self, "weights", (weights / weights.sum()).to(self.modes))
        non_negative("variance", self.variance)
        if isinstance(self.variance, Tensor):
            shape, own = tuple(self.modes.shape[1:]), tuple(self.variance.shape)
            aligned = zip(own[::-1], shape[::-1], strict=False)
            if len(own) > len(shape) or any(n not in (1, m) for n, m in aligned):
                raise ValueError(f"variance must multiply a mode {shape}, got {own}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples of y_0: (count, ...), in the modes' type."""
        assert self.weights is not None
        k = torch.multinomial(self.weights, whole("count", count), replacement=True, generator=generator)
        y0 = self.modes[k]
        noise = torch.randn(y0.shape, generator=generator, dtype=y0.dtype, device=y0.device)
        return y0 + torch.as_tensor(self.variance, dtype=y0.dtype, device=y0.device).sqrt() * noise

    def log_density(self, y_t: Tensor, gamma: Tensor) -> Tensor:
        """ln q(y_t) of the forward process: (B, ...) and γ (B,) to (B,)."""
        return self._joint(y_t, gamma).logsumexp(1)

    def mode_probability(self, y_t: Tensor, gamma: Tensor) -> Tensor:
        """p(k | y_t): (B, K)."""
        return self._joint(y_t, gamma).softmax(1)

    def denoise(self, y_t: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
        """E[y_0 | y_t], the estimate of least squared error, in the form that samplers take: (B, ...)."""
        return (self._share(y_t, gamma) * self._given_mode(y_t, gamma)).sum(1)

    def posterior_variance(self, y_t: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
        """Var[y_0 | y_t], pixel by pixel, in the form that `reverse_step` takes as data_variance: (B, ...)."""
        share, mean = self._share(y_t, gamma), self._given_mode(y_t, gamma)
        overall = (share * mean).sum(1, keepdim=True)
        return posterior_variance(self.variance, y_t, gamma) + (share * (mean - overall).square()).sum(1)

    def _joint(self, y_t: Tensor, gamma: Tensor) -> Tensor:
        """ln w_k q(y_t | k): (B, K)."""
        assert self.weights is not None
        g = per_row(gamma, y_t)
        total = (g * self.variance + 1 - g).expand(y_t.shape)[:, None]  # (B, 1, ...)
        surprise = (y_t[:, None] - g.sqrt()[:, None] * self.modes).square() / total + (2 * math.pi * total).log()
        return self.weights.log() - surprise.reshape(*surprise.shape[:2], -1).sum(2) / 2

    def _share(self, y_t: Tensor, gamma: Tensor) -> Tensor:
        share = self.mode_probability(y_t, gamma)
        return share.reshape(*share.shape, *(1,) * (y_t.ndim - 1))  # (B, K, 1, …)

    def _given_mode(self, y_t: Tensor, gamma: Tensor) -> Tensor:
        """E[y_0 | y_t, k]: (B, K, ...)."""
        g = per_row(gamma, y_t)
        gain = self.variance * g.sqrt() / (g * self.variance + 1 - g)  # (B, ...)
        return self.modes + (gain * y_t)[:, None] - (gain * g.sqrt())[:, None] * self.modes
