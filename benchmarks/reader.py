"""Centre and scale of every pixel of a KDE, read off ŷ: a form of the ablation that shipped once.

E[y | c] and sd[y | c] as functions of the condition c, by a network with closed forms for a lone emitter.

The mean of y contains information on its variance. Let y be a kernel of peak 1 and sd 1 whose place is drawn from
N(m, τ² I). At distance ρ from m,

    E[y]  = exp(−ρ² / (2 (1 + τ²))) / (1 + τ²),
    E[y²] = exp(−ρ² / (1 + 2τ²)) / (1 + 2τ²),

so ln E[y] has the gradient −ρ / (1 + τ²) and the Laplacian −2 / (1 + τ²) everywhere. Both τ² and ρ², and with them
Var[y], follow from ŷ = E[y] in any pixel. The functions here compute them for a lone emitter, in closed form. The
network `Reader` estimates τ² where emitters overlap and ŷ is not exactly the mean, and adds the variance that the
closed form misses there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smlmtut._validate import choice, rank
from smlmtut.networks.convolution import Convolution

SCALE_AT_START = 0.1  # of a kernel's peak, about the sd of y beside an emitter given ŷ of DeepSTORM
NARROWEST = 1e-3  # smallest τ²: τ = 0.03 super-resolved pixels, far below the error of any position here
FAINT = 1e-3  # of a kernel's peak, which a kernel reaches 3.7 sd from its centre: smallest value of ŷ in a logarithm
REACH = 2  # pixels to each side over which the curvature is averaged: two sd of a kernel


def curvature(estimate: Tensor) -> Tensor:
    """τ²/(1 + τ²) from 1 + ½ Δ ln ŷ: (B, 1, H, W), like the estimate.

    It is 0 where the place of the emitter is certain, and in the dark; ln ŷ is flatter for a larger τ². Averaged over
    REACH pixels to each side with the weights ŷ². The Laplacian from five points is exact for ln of a Gaussian.
    """
    log = _log(estimate)
    inner = log[:, :, 1:-1, 1:-1]
    beside = log[:, :, 1:-1, 2:] + log[:, :, 1:-1, :-2] + log[:, :, 2:, 1:-1] + log[:, :, :-2, 1:-1]
    laplacian = beside - 4 * inner
    weight = estimate.clamp(min=0).square()
    return _mean(weight * (1 + laplacian / 2), REACH) / (_mean(weight, REACH) + FAINT**2)


FARTHEST = 9.0  # largest ρ²: three sd from its centre a kernel has 1 % of its peak


def lone_sd(estimate: Tensor, place_variance: Tensor, by: str = "slope") -> Tensor:
    """sd of y around a lone emitter whose place is Gaussian: (B, 1, H, W).

    estimate: E[y], (B, 1, H, W). place_variance: τ² along each axis, in squared sd of the kernel, above 0, of any
        shape that broadcasts.
    by: how ρ² is computed. "slope": (1 + τ²)² |∇ ln ŷ|². "height": −2 (1 + τ²) ln ((1 + τ²) ŷ), which assumes that
        the emitter exists for certain, and is wrong where ŷ is too high or too low.
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

    A kernel of sd 1 and peak 1 has Σ y = 2π and Σ y² = π wherever it lies. So for ŷ = E[y | x] and any number of
    emitters that do not overlap, this sum is Σ Var[y | x] / π: 0 where their places are certain, larger where they are
    not.
    """
    return _mean(estimate / 2 - estimate.square(), reach) * (2 * reach + 1) ** 2 / torch.pi


BUDGETS = (2, 4)  # pixels to each side over which variance budgets are summed: two and four sd of a kernel
WIDEST = 0.6  # largest τ²/(1 + τ²) in `width_features`, set by hand: τ² = 1.5
FEATURES = 4 + len(BUDGETS)  # images of `width_features`


def width_features(estimate: Tensor) -> Tensor:
    """Functions of ŷ that depend on the width of its blobs: (B, 1, H, W) to (B, FEATURES, H, W).

    √ŷ, where the faint rim of a blob is visible; the variance budgets; the curvature; the sd around a lone emitter of
    that curvature, by slope and by height. Computed here in full precision: a network in bf16 would lose the digits
    that they need.
    """
    flat = curvature(rank("estimate", estimate, 4))
    bounded = flat.clamp(NARROWEST, WIDEST)
    sds = [lone_sd(estimate, bounded / (1 - bounded), by) / SCALE_AT_START for by in ("slope", "height")]
    budgets = [variance_budget(estimate, reach) for reach in BUDGETS]
    return torch.cat([estimate.clamp(min=0).sqrt(), *budgets, flat, *sds], 1)


class Reader(nn.Module):
    """Reads centre and scale of every pixel off the condition, whose first channel is ŷ: a mean–variance network.

    Dilated convolutions at half the resolution estimate three images: centre − ŷ, τ² for `lone_sd`, and the sd of
    everything else. The two variances and floor² add up to scale².
    inputs: channels of the condition. floor: smallest scale.
    """

    def __init__(
        self, inputs: int, features: int = 64, floor: float = 0.02, dilations: tuple[int, ...] = (1, 2, 4)
    ) -> None:
        super().__init__()
        self.floor = floor
        self.stem = nn.Conv2d(4 * (inputs + FEATURES), features, 3, padding=1)
        self.layers = nn.ModuleList(Convolution(features, features, 3, padding=d, dilation=d) for d in dilations)
        self.head = nn.Conv2d(features, 12, 1)
        nn.init.zeros_(self.head.weight)
        # softplus(−2) = 0.13: at the start τ = 0.36, and the sd of everything else is 0.013
        start = torch.tensor([0.0, -2.0, -2.0]).repeat_interleave(4)
        self.head.bias = nn.Parameter(start)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) to centre and scale, (B, 1, H, W) each and float32; H and W even."""
        estimate = condition[:, :1]
        h = F.silu(self.stem(F.pixel_unshuffle(torch.cat([condition, width_features(estimate)], 1), 2)))
        for layer in self.layers:
            h = h + F.silu(layer(h))
        shift, place, other = F.pixel_shuffle(self.head(h), 2).float().chunk(3, 1)
        sd = lone_sd(estimate, F.softplus(place) + NARROWEST)
        more = SCALE_AT_START * F.softplus(other)
        return estimate + SCALE_AT_START * shift, (self.floor**2 + sd.square() + more.square()).sqrt()


def _log(estimate: Tensor) -> Tensor:
    """ln ŷ, padded by one pixel on each side: (B, 1, H + 2, W + 2)."""
    return F.pad(estimate.clamp(min=FAINT).log(), (1, 1, 1, 1), mode="replicate")


def _mean(images: Tensor, reach: int) -> Tensor:
    """Mean over the pixels at most `reach` away along each axis, with zeros beyond the border."""
    return F.avg_pool2d(images, 2 * reach + 1, 1, reach)
