"""The exact posterior: of one emitter on a grid, of an unknown number of them by Markov chains that are checked."""

from .convergence import effective_size, split_r_hat
from .many import Draws, chain_posterior, count_prior
from .one import Posterior, Prior, grid_posterior, grid_posteriors

__all__ = [
    "Draws",
    "Posterior",
    "Prior",
    "chain_posterior",
    "count_prior",
    "effective_size",
    "grid_posterior",
    "grid_posteriors",
    "split_r_hat",
]
