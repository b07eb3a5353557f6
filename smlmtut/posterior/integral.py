"""One emitter, step 3: the likelihood at every node of the grid, and its sums. Here most of the time is spent."""

import math

import torch
from torch import Tensor

from .grid import Grid
from .search import BLOCK, TINY, FrameLikelihood


def integrate(likelihood: FrameLikelihood, grid: Grid, reference: float) -> tuple[Tensor, Tensor]:
    """exp(log L − reference) times the weights, summed over (b, σ): (M, K), and over the positions: (K, L, S).

    Few logarithms are needed, as log ω' is a power series in N, whose terms are the same for all N. Where the light is
    faint compared with b + r², it is log(b + r²) + log(1 + N e/(b + r²)), and its sum over the pixels a matrix product.
    Elsewhere the series is about the middle N_0 of the range of N: log ω'_0 + log(1 + (N − N_0) e/ω'_0).
    """
    u, v, (photons, background, sigma) = grid.u, grid.v, grid.axes
    floor = (background.nodes[:, None] + likelihood.var).clamp(min=TINY)  # (L, P)
    everywhere = background.nodes * len(likelihood.counts) + likelihood.var.sum()  # Σ (b + r²), (L,)
    most, middle = photons.nodes[-1], (photons.nodes[0] + photons.nodes[-1]) / 2
    mass = u.new_zeros(len(u), len(photons))
    nuisance = u.new_zeros(len(photons), len(background), len(sigma))
    inner = photons.weights[:, None] * background.weights  # (K, L)
    tile = torch.stack([u, v]).div(2, rounding_mode="floor").T  # positions of a block share their bright pixels
    blocks = torch.unique(tile, dim=0, return_inverse=True)[1]
    for block in range(int(blocks.max()) + 1):
        rows = (blocks == block).nonzero()[:, 0]
        for k, (width, width_weight) in enumerate(zip(sigma.nodes, sigma.weights, strict=True)):
            share = likelihood.share(u[rows], v[rows], width.expand(len(rows)))  # (m, P)
            top, least = share.amax(0), floor.amin(0)  # (P,)
            weak = most * top < 0.1 * least
            spread = (most - middle) * top / (least + middle * top)  # largest |N − N_0| e/ω'_0
            near, far = ~weak & (spread < 0.4), ~weak & (spread >= 0.4)
            log_l = -share.sum(1)[:, None, None] * photons.nodes[:, None]  # (m, K, 1)
            log_l = log_l + (floor[:, weak].log() @ likelihood.counts[weak] - everywhere)
            log_l += _faint(share[:, weak], floor[:, weak], photons.nodes, likelihood.counts[weak])
            for pixels, values in ((near, _expanded), (far, _direct)):
                if bool(pixels.any()):
                    log_l += _in_parts(
                        values, share[:, pixels], floor[:, pixels], photons.nodes, likelihood.counts[pixels]
                    )
            value = (log_l - reference).exp_() * (inner * width_weight) * grid.weight[rows, None, None]  # (m, K, L)
            mass[rows] += value.sum(2)
            nuisance[:, :, k] += value.sum(0)
    return mass, nuisance


def _faint(share: Tensor, floor: Tensor, photons: Tensor, counts: Tensor) -> Tensor:
    """Σ x' log(1 + N e/(b + r²)) over the pixels where N e < (b + r²)/10, (m, K, L)."""
    most = photons[-1]
    ratio = most * share.amax(0) / floor.amin(0)  # (P,)
    terms = share.new_zeros(len(share), 9, len(floor))  # (m, J, L)
    # the first of the omitted terms is x' ratio^(J + 1)/(J + 1) < 1e-10 x', and nearly always far less
    for least, below, count in ((1e-16, 1e-4, 3), (1e-4, 1e-2, 5), (1e-2, 0.1, 9)):
        pixels = ((ratio >= least) & (ratio < below)).nonzero()[:, 0]
        e, r = most * share[:, pixels], 1 / floor[:, pixels]
        e_j, r_j = torch.ones_like(e), counts[pixels] * torch.ones_like(r)
        for j in range(count):
            e_j, r_j = e_j * e, r_j * r
            terms[:, j] += e_j @ r_j.T
    return _series(photons / most, terms)


def _expanded(share: Tensor, floor: Tensor, photons: Tensor, counts: Tensor) -> Tensor:
    """Σ x' log ω' over pixels from the series about the middle of the range of N, to 1e-14, (m, K, L)."""
    middle, half = (photons[0] + photons[-1]) / 2, (photons[-1] - photons[0]) / 2
    rate = middle * share[:, None] + floor  # (m, L, P)
    ratio = half * share[:, None] / rate
    terms, power = [], torch.ones_like(ratio)
    largest = float(ratio.max())
    for _ in range(math.ceil(math.log(1e-14) / math.log(largest)) if largest > 0 else 0):
        power *= ratio
        terms.append(power @ counts)
    log_l = (rate.log_() @ counts)[:, None]  # (m, 1, L)
    return log_l + _series((photons - middle) / half, torch.stack(terms, 1)) if terms else log_l


def _direct(share: Tensor, floor: Tensor, photons: Tensor, counts: Tensor) -> Tensor:
    """Σ x' log ω' over pixels with one logarithm for each node, (m, K, L)."""
    light = share[:, None, :] * photons[:, None]  # (m, K, P)
    return (light[:, :, None] + floor).log_() @ counts


def _series(x: Tensor, terms: Tensor) -> Tensor:
    """Σ_j (−1)^(j + 1) x^j/j terms_j for x (K,) and terms (m, J, L): (m, K, L)."""
    j = torch.arange(1, terms.shape[1] + 1, dtype=torch.float64)
    return (-((-x[:, None]) ** j) / j) @ terms


def _in_parts(values, share: Tensor, floor: Tensor, photons: Tensor, counts: Tensor) -> Tensor:
    """values(…) a few positions at a time, so that its temporaries stay in the cache."""
    nodes = 1 if values is _expanded else len(photons)
    size = max(1, BLOCK // max(1, nodes * floor.numel()))
    return torch.cat([values(part, floor, photons, counts) for part in share.split(size)])
