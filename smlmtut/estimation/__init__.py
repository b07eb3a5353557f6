"""What a frame tells of its emitters: likelihood, Fisher information and bounds, spots and their fits."""

from .fisher import bound, fisher_information, localization_bound
from .fit import Fit, first_guess, fit_spots
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
    "fit_spots",
    "localization_bound",
    "surrogate_counts",
    "surrogate_log_likelihood",
]
