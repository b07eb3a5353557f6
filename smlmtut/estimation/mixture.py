"""The sum over photo-electrons in the Poisson-Gaussian mixture (Eq. 1), truncated with a proven error.

Everything here is in photo-electrons: p(z | ω) = Σ_q Poisson(q; ω) Normal(z; q, v).
"""

import math

import torch
from torch import Tensor

CELLS, TERMS = 1 << 15, 1 << 17  # values, and terms of their sums, in memory: temporaries of 1 MB fit into a cache
SCORE_TOLERANCE = 1e-16  # of the sums that a derivative is made of; their window is a fifth wider than at 1e-10


def mixture(
    z: Tensor, rest: Tensor, rate: Tensor, v: Tensor, tolerance: float = SCORE_TOLERANCE
) -> tuple[Tensor, Tensor]:
    """Log-density per electron and E[q | z] − ω of the mixture, in electron units.

    z + rest: signal in photo-electrons, rest holding the digits that z cannot (see `electrons`); rate: ω ≥ 0;
    v: read variance > 0, e-². All four of one shape, float64. Returns two tensors of that shape.
    tolerance: bound on the relative error of the sum. Memory beyond the results: a few blocks of TERMS.
    """
    flat = [t.reshape(-1).split(CELLS) for t in (z, rest, rate, v)]
    parts = [_mixture(a, b, c, d, tolerance) for a, b, c, d in zip(*flat, strict=True)]
    log_density, excess = (torch.cat(part).reshape(z.shape) for part in zip(*parts, strict=True))
    return log_density, excess


def score(excess: Tensor, z: Tensor, rate: Tensor, v: Tensor) -> Tensor:
    """The score from excess = E[q | z] − ω, with its limit at ω = 0."""
    limit = torch.expm1((z - 0.5) / v)  # Normal(z; 1, v)/Normal(z; 0, v) − 1
    return torch.where(rate > 0, excess / torch.where(rate > 0, rate, 1.0), limit)


def electrons(x: Tensor, gain: Tensor, offset: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z = (x − o)/g as an unevaluated sum of two floats, and v = var/g².

    Where read noise is far below one electron, log p changes by 1e2 or more per electron of z: at z = 1e5 the
    rounding of one float would already cost 1e-9.
    """
    signal = x - offset
    back = signal - x
    lost = (x - (signal - back)) - (offset + back)  # x − o = signal + lost, exactly (Knuth's two-sum)
    z = signal / gain
    rest = (_product_error(signal, z, gain) + lost) / gain
    return z, rest, variance / gain**2


def _product_error(signal: Tensor, z: Tensor, gain: Tensor) -> Tensor:
    """signal − z · gain without rounding, by splitting both factors (Dekker)."""
    halves = []
    for factor in (z, gain):
        high = factor * 134217729.0  # 2^27 + 1
        high = high - (high - factor)
        halves += [high, factor - high]
    z_high, z_low, g_high, g_low = halves
    return (((signal - z_high * g_high) - z_high * g_low) - z_low * g_high) - z_low * g_low


def _mixture(z: Tensor, rest: Tensor, rate: Tensor, v: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """mixture for 1-D tensors; pixels with windows of about one size are summed together."""
    mode = _mode(z, rest, rate, v)
    first, width = _window(mode, v, tolerance)
    peak = _poisson_log_pmf(mode, rate) - 0.5 * (((z - mode) + rest) ** 2 / v + torch.log(2 * math.pi * v))
    log_sum, shift = torch.empty_like(z), torch.empty_like(z)
    order = width.argsort()
    sizes = width[order].tolist()
    start = 0
    while start < len(sizes):
        stop = min(len(sizes), start + max(1, TERMS // sizes[start]))
        stop = min(stop, start + max(1, TERMS // sizes[stop - 1]))
        block = order[start:stop]
        rows = [t[block, None] for t in (first, mode, z, rest, rate, v)]
        log_sum[block], shift[block] = _sum_terms(sizes[stop - 1], *rows)
        start = stop
    return peak + log_sum, (mode - rate) + shift


# Proof that the terms left out are below the tolerance. Write t(q) for the summand and r(q) = t(q + 1)/t(q); then
#     log r(q) = log ω − log(q + 1) + (z − q − 1/2)/v
# falls strictly: t is log-concave. Let m be its mode, the first q with r(q) ≤ 1, so r(m − 1) > 1 ≥ r(m).
# Summing log r outward from m, and using Σ_{i<j} log(1 + i/y) ≥ y h((j − 1)/y) with
# h(a) = (1 + a) log(1 + a) − a ≥ a²/(2 + 2a/3) (Bernstein's inequality), a step of d + 1 terms costs at least
#     to the right:  log t(m) − log t(m + 1 + d) ≥ d²/2 · (1/v + 1/(m + 1 + d/3))
#     to the left:   log t(m) − log t(m − 1 − d) ≥ d²/2 · (1/v + 1/m).
# Choose d so that this is at least a depth L. By concavity the ratio past the last term kept, n = d + 1 away
# from the mode, is at most ρ = exp(−L/n), so that the terms left out on that side sum to at most
#     t(m) exp(−L) ρ/(1 − ρ) ≤ t(m) exp(−L) n/L.
# L = log(2/tolerance) + log(1 + √v) is enough on both sides together: d ≤ √(2 L v), and so
# n/L ≤ 1/L + √(2 v/L) ≤ 1 + √v for L ≥ 2. The whole sum is at least t(m), so the relative error stays below
# tolerance.


def _window(mode: Tensor, v: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """First q and number of terms such that what is left out is below tolerance of the sum (proof above)."""
    depth = math.log(2 / tolerance) + torch.log1p(v.sqrt()) + 1  # 1 more: room for the rounding of log r
    left = (2 * depth / (1 / v + 1 / mode.clamp(min=1))).sqrt()
    y = mode + 1
    right = torch.minimum((2 * depth * v).sqrt(), depth / 3 + (depth**2 / 9 + 2 * depth * y).sqrt())
    right = (2 * depth / (1 / v + 1 / (y + right / 3))).sqrt()  # a smaller d raises the curvature: enough
    first = (mode - left.ceil() - 1).clamp(min=0)
    return first, (mode + right.ceil() + 2 - first).long()


def _mode(z: Tensor, rest: Tensor, rate: Tensor, v: Tensor) -> Tensor:
    """The first q with r(q) ≤ 1: root y = q + 1 of y + v log y = z + 1/2 + v log ω, by Newton in log y.

    In log y the left side is convex and the start lies right of the root, so the steps fall monotonically.
    """
    log_rate = rate.clamp(min=torch.finfo(rate.dtype).tiny).log()
    target = z + 0.5 + v * log_rate
    log_y = torch.maximum(rate, z + 0.5).clamp(min=1).log()
    for _ in range(200):  # each step takes at least 1 off log y until it converges quadratically
        y = log_y.exp()
        step = (v * log_y + y - target) / (v + y)
        log_y = (log_y - step).clamp(min=-1)  # below y = 1 the mode is 0
        if bool(((y * step).abs() < 0.1).logical_or(log_y < 0).all()):
            break
    mode = (log_y.exp() - 1).ceil().clamp(min=0)
    for _ in range(2):  # correct a root that rounding moved across a whole number
        mode = torch.where(_log_ratio(mode, z, rest, log_rate, v) > 0, mode + 1, mode)
        mode = torch.where((mode > 0) & (_log_ratio(mode - 1, z, rest, log_rate, v) <= 0), mode - 1, mode)
    return torch.where(rate > 0, mode, 0.0)


def _log_ratio(q: Tensor, z: Tensor, rest: Tensor, log_rate: Tensor, v: Tensor) -> Tensor:
    return log_rate - torch.log(q + 1) + ((z - q - 0.5) + rest) / v


def _sum_terms(width: int, first, mode, z, rest, rate, v) -> tuple[Tensor, Tensor]:
    """log Σ_q t(q)/t(mode) and the mean of q − mode over width terms, from cumulated ratios of neighbours."""
    q = first + torch.arange(width, dtype=z.dtype, device=z.device)  # (n, K)
    log_t = torch.zeros_like(q)
    torch.cumsum(_log_ratio(q[:, :-1], z, rest, rate.log(), v), dim=1, out=log_t[:, 1:])
    terms = torch.exp(log_t - log_t.gather(1, (mode - first).long()))
    total = terms.sum(1)
    return total.log(), ((q - mode) * terms).sum(1) / total


def _poisson_log_pmf(q: Tensor, rate: Tensor) -> Tensor:
    """log Poisson(q; ω) in its saddle-point form, which keeps the digits that q log ω − ω − log q! loses.

    −δ(q) − D(q, ω) − log(2πq)/2, δ the error of Stirling's formula, D = q log(q/ω) − q + ω (Loader 2000,
    Fast and Accurate Computation of Binomial Probabilities).
    """
    k, w = q.clamp(min=1), rate.clamp(min=torch.finfo(rate.dtype).tiny)
    ratio = torch.where(w < 1, k.log() - w.log(), torch.log1p((k - w) / w.clamp(min=1)))
    half_log = 0.5 * torch.log(2 * math.pi * k)
    u = 1 / k**2
    series = (1 / 12 - u * (1 / 360 - u * (1 / 1260 - u * (1 / 1680 - u / 1188)))) / k  # 1e-16 from 16 on
    stirling = torch.where(k < 16, torch.lgamma(k + 1) - k * k.log() + k - half_log, series)
    value = -stirling - (k * ratio - (k - w)) - half_log
    return torch.where(q > 0, torch.where(rate > 0, value, -torch.inf), -rate)
