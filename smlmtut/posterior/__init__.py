"""The exact posterior of a frame: of one emitter on a grid, of an unknown number of them by Markov chains.

One emitter, `grid_posterior`:

    one          Bayes' rule in three steps, and what can be asked of the result
    search       the likelihood of a frame; which positions matter
    grid         a quadrature rule over them
    integral     the likelihood at its nodes, and its sums

Several emitters, `chain_posterior`:

    many         the draws, and what can be asked of them
    chains       the state of the chains and its likelihood
    moves        what a chain may do next, and with which probability
    proposals    the densities that the moves draw from
    sweeps       from the start to the last draw
    convergence  split-R̂ and effective size: can the draws be trusted?

Several emitters, without chains, `mode_posterior`:

    mode_search  the sets of emitters that explain a frame
    normal_modes draws about each and their density; the jumps between them of `chain_posterior`
    modes        weighted draws
"""

from .convergence import effective_size, split_r_hat
from .many import Draws, chain_posterior, count_prior
from .modes import ModeDraws, mode_posterior
from .one import Posterior, Prior, grid_posterior

__all__ = [
    "Draws",
    "ModeDraws",
    "Posterior",
    "Prior",
    "chain_posterior",
    "count_prior",
    "effective_size",
    "grid_posterior",
    "mode_posterior",
    "split_r_hat",
]
