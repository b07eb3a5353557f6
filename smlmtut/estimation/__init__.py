"""What a frame says about its emitters.

likelihood    of a raw pixel value: the exact mixture (Eq. 1) and its surrogate (Eq. 2)
mixture       the sum in the exact mixture, with a proven error
fisher        Fisher information (Eq. 3) and Cramér–Rao bounds
closed_forms  of the bound: Thompson, Mortensen, Rieger and Stallinga
spots         find spots in frames and cut them out
fit           maximum likelihood for isolated spots
spot_model    what a fit compares with a spot where the PSF is no round Gaussian
beads         the PSF from images of beads
joint         all emitters of a frame at once, and the curvature of their posterior

Where a tensor is wanted an array of numpy will do; results are tensors.
"""

from .fisher import bound, fisher_information, localization_bound
from .fit import Fit, first_guess, fit_spots
from .joint import fit_emitters
from .likelihood import exact_log_likelihood, surrogate_counts, surrogate_log_likelihood
from .spots import cut_spots, find_spots

__all__ = [
    "Fit",
    "bound",
    "cut_spots",
    "exact_log_likelihood",
    "find_spots",
    "first_guess",
    "fisher_information",
    "fit_emitters",
    "fit_spots",
    "localization_bound",
    "surrogate_counts",
    "surrogate_log_likelihood",
]
