"""Scores against the truth: of localizations, and of the uncertainty that samples of a posterior claim.

    localization   localizations paired with emitters; Jaccard index, RMSE, efficiency
    calibration    ranks, coverage, spread against error, sparsification; a table by class of pixel
    proper_scores  CRPS and energy score
    against_exact  the same against draws from the exact posterior: regret, error bars, counts, a classifier

The face loads no library but numpy and torch: pandas, scipy and scoringrules are imported by the functions that need
them.
"""

from .calibration import coverage, ranks, sparsification, spread_skill, summary
from .localization import Points, Scores, efficiency, match, score
from .proper_scores import crps, energy_score

__all__ = [
    "Points",
    "Scores",
    "coverage",
    "crps",
    "efficiency",
    "energy_score",
    "match",
    "ranks",
    "score",
    "sparsification",
    "spread_skill",
    "summary",
]
