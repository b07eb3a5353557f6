"""Centre and scale of every pixel of a KDE, read off what is known: E[y | c] and sd[y | c].

A mean image tells more of its own uncertainty than one would think. Where y is a kernel of peak 1 and sd 1 about a
place p ~ N(m, τ² I), at a distance ρ from m,

    E[y]  = exp(−ρ² / (2 (1 + τ²))) / (1 + τ²),
    E[y²] = exp(−ρ² / (1 + 2τ²)) / (1 + 2τ²),

so ln E[y] has the gradient −ρ / (1 + τ²) and the Laplacian −2 / (1 + τ²) everywhere: both τ² and ρ², and with them
Var[y], can be read off ŷ = E[y] in any pixel. The functions here do that for a lone emitter, in closed form; the
network `Reader` finds τ² in pictures where emitters overlap and ŷ is not quite the mean, and what is missing then.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import choice, rank
from .deepstorm import Convolution

SCALE_AT_START = 0.1  # of the KDE's unit, about what DeepSTORM leaves unsaid beside an emitter
FAINT = 1e-3  # of a kernel's peak: logarithms are of no less
REACH = 2  # pixels along each axis over which curvatures are averaged
WIDEST = 0.6  # τ²/(1 + τ²) of the closed form when it is an input
FARTHEST = 9.0  # ρ² beyond which a kernel is dark
BUDGETS = (2, 4)  # pixels along each axis over which the variance's sum is taken
NARROWEST = 1e-3  # τ²
READINGS = 4 + len(BUDGETS)  # images of `readings`


def curvature(estimate: Tensor) -> Tensor:
    """τ²/(1 + τ²), how much flatter than the kernel's the logarithm of a blob is: (B, 1, H, W), as the estimate.

    1 + ½ Δ ln ŷ, averaged over REACH pixels each way with the weights ŷ²: 0 for a place that is known, and in the dark.
    The Laplacian is that of five points, exact for the logarithm of a Gaussian.
    """
    log = _log(estimate)
    inner = log[:, :, 1:-1, 1:-1]
    beside = log[:, :, 1:-1, 2:] + log[:, :, 1:-1, :-2] + log[:, :, 2:, 1:-1] + log[:, :, :-2, 1:-1]
    laplacian = beside - 4 * inner
    weight = estimate.clamp(min=0).square()
    return _mean(weight * (1 + laplacian / 2), REACH) / (_mean(weight, REACH) + FAINT**2)


def lone_sd(estimate: Tensor, place_variance: Tensor, by: str = "slope") -> Tensor:
    """sd of y about a lone emitter whose place is Gaussian: (B, 1, H, W).

    estimate: E[y], (B, 1, H, W). place_variance: τ² along each axis, in squared sd of the kernel, above 0, of any
        shape that broadcasts. by: what tells ρ², "slope", (1 + τ²)² |∇ ln ŷ|², or "height",
        −2 (1 + τ²) ln ((1 + τ²) ŷ), which knows that the emitter is there and suffers where ŷ is too high or too low.
    Var/E² = (1 + τ²)²/(1 + 2τ²) · exp(ρ² τ²/((1 + τ²)(1 + 2τ²))) − 1.
    Raises ValueError for another `by`.
    """
    log, t = _log(estimate), place_variance
    if choice("by", by, ("slope", "height")) == "slope":
        across = (log[:, :, 1:-1, 2:] - log[:, :, 1:-1, :-2]) / 2
        along = (log[:, :, 2:, 1:-1] - log[:, :, :-2, 1:-1]) / 2
        squared = (1 + t).square() * (across.square() + along.square())
    else:
        squared = -2 * (1 + t) * (torch.log1p(t) + log[:, :, 1:-1, 1:-1])
    squared = squared.clamp(0, FARTHEST)  # ρ²
    exponent = 2 * torch.log1p(t) - torch.log1p(2 * t) + squared * t / ((1 + t) * (1 + 2 * t))
    return estimate.clamp(min=0) * torch.expm1(exponent).sqrt()


def variance_budget(estimate: Tensor, reach: int) -> Tensor:
    """Σ (ŷ/2 − ŷ²)/π over the pixels at most `reach` away along each axis: (B, 1, H, W).

    A kernel of sd 1 and peak 1 has Σ y = 2π and Σ y² = π wherever it lies, so about any number of emitters that do
    not overlap, for ŷ = E[y | x], this sum is Σ Var[y | x] / π: 0 where places are known, rising with their
    uncertainty.
    """
    return _mean(estimate / 2 - estimate.square(), reach) * (2 * reach + 1) ** 2 / torch.pi


def readings(estimate: Tensor) -> Tensor:
    """What tells the width of blobs, with the digits that bf16 would drop: (B, 1, H, W) to (B, READINGS, H, W).

    √ŷ, which shows a faint rim; the variance budgets; the curvature; the sd about a lone emitter of that curvature, by
    slope and by height.
    """
    flat = curvature(rank("estimate", estimate, 4))
    bounded = flat.clamp(NARROWEST, WIDEST)
    sds = [lone_sd(estimate, bounded / (1 - bounded), by) / SCALE_AT_START for by in ("slope", "height")]
    budgets = [variance_budget(estimate, reach) for reach in BUDGETS]
    return torch.cat([estimate.clamp(min=0).sqrt(), *budgets, flat, *sds], 1)


class Reader(nn.Module):
    """Reads centre and scale of every pixel off the condition, whose first channel is ŷ.

    Dilated convolutions at half the resolution find three images: what the centre is beside ŷ, τ² for `lone_sd`,
    and the sd of what else there is. Their variances and floor² add up to scale².
    inputs: channels of the condition. floor: least scale.
    """

    def __init__(
        self, inputs: int, features: int = 64, floor: float = 0.02, dilations: tuple[int, ...] = (1, 2, 4)
    ) -> None:
        super().__init__()
        self.floor = floor
        self.stem = nn.Conv2d(4 * (inputs + READINGS), features, 3, padding=1)
        self.layers = nn.ModuleList(Convolution(features, features, 3, padding=d, dilation=d) for d in dilations)
        self.head = nn.Conv2d(features, 12, 1)
        nn.init.zeros_(self.head.weight)
        start = torch.tensor([0.0, -2.0, -2.0]).repeat_interleave(4)  # softplus(−2) = 0.13: τ = 0.36, the rest 0.013
        self.head.bias = nn.Parameter(start)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) to centre and scale, (B, 1, H, W) each and float32; H and W even."""
        estimate = condition[:, :1]
        h = F.silu(self.stem(F.pixel_unshuffle(torch.cat([condition, readings(estimate)], 1), 2)))
        for layer in self.layers:
            h = h + F.silu(layer(h))
        shift, place, other = F.pixel_shuffle(self.head(h), 2).float().chunk(3, 1)
        sd = lone_sd(estimate, F.softplus(place) + NARROWEST)
        more = SCALE_AT_START * F.softplus(other)
        return estimate + SCALE_AT_START * shift, (self.floor**2 + sd.square() + more.square()).sqrt()


def _log(estimate: Tensor) -> Tensor:
    """ln ŷ with one more pixel on each side: (B, 1, H + 2, W + 2)."""
    return F.pad(estimate.clamp(min=FAINT).log(), (1, 1, 1, 1), mode="replicate")


def _mean(images: Tensor, reach: int) -> Tensor:
    """Mean over the pixels at most `reach` away along each axis, zeros beyond the border."""
    return F.avg_pool2d(images, 2 * reach + 1, 1, reach)
