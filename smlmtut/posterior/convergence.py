"""Several emitters: have the chains converged? Split-R̂ and the effective number of draws.

Gelman, Carlin, Stern, Dunson, Vehtari and Rubin, Bayesian Data Analysis, 3rd edition, chapter 11; Geyer 1992,
Statistical Science 7:473, for where the sum over the autocorrelations ends.
"""

import torch
from torch import Tensor

from .._validate import finite, tensor


def split_r_hat(draws: Tensor) -> Tensor:
    """√(total variance / variance within a chain), with each chain split into halves: near 1 where the chains agree.

    draws: (..., C, S) of C chains. Returns (...); 1 where nothing varies. Above 1.01 the chains have not mixed.
    Raises ValueError where a draw is not finite or S < 4.
    """
    halves = _halves(draws)  # (..., 2C, S/2)
    length = halves.shape[-1]
    within = halves.var(-1).mean(-1)
    between = length * halves.mean(-1).var(-1)
    return _ratio((length - 1) / length * within + between / length, within).sqrt()


def effective_size(draws: Tensor) -> Tensor:
    """The number of independent draws whose mean would be as precise as that of these.

    C S / (1 + 2 Σ_t ρ_t), where ρ_t is the autocorrelation at lag t of the chains' halves; chains that disagree count
    as correlated. The sum is over pairs of neighbouring lags. It ends at the first pair that is negative, and no pair
    may exceed the one before it (Geyer's initial monotone sequence).

    draws: (..., C, S). Returns (...), at most C S; C S where nothing varies. Raises ValueError as split_r_hat.
    """
    halves = _halves(draws)
    chains, length = halves.shape[-2:]
    centred = halves - halves.mean(-1, keepdim=True)
    # padded with zeros, so that the correlation is not circular
    spectrum = torch.fft.rfft(centred, 2 * length).abs() ** 2
    covariance = torch.fft.irfft(spectrum, 2 * length)[..., :length].mean(-2) / length  # (..., S/2), lag by lag
    within = halves.var(-1).mean(-1)
    total = (length - 1) / length * within + halves.mean(-1).var(-1)
    rho = 1 - _ratio((within - covariance.movedim(-1, 0)), total).movedim(0, -1)
    rho[..., 0] = 1
    pairs = rho[..., : length // 2 * 2].unflatten(-1, (-1, 2)).sum(-1)  # ρ_0 + ρ_1, ρ_2 + ρ_3, …
    pairs = torch.where((pairs > 0).cumprod(-1).bool(), pairs, 0.0).cummin(-1).values
    size = chains * length / (2 * pairs.sum(-1) - 1).clamp(min=1)
    return torch.where(total > 0, size, float(chains * length))


def _halves(draws: Tensor) -> Tensor:
    """(..., C, S) as (..., 2C, S/2); the middle one of an odd number of draws is left out."""
    draws = tensor("draws", finite("draws", draws))
    if draws.ndim < 2 or draws.shape[-1] < 4:
        raise ValueError(f"draws must have shape (..., C, S) with S of at least 4, got {tuple(draws.shape)}")
    half = draws.shape[-1] // 2
    return torch.cat([draws[..., :half], draws[..., -half:]], -2).double()


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom; 1 where both are 0, and infinite where the chains are constant but differ."""
    return torch.where((top == 0) & (bottom == 0), 1.0, top / bottom)
