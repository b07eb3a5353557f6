"""From a movie to a table of localizations; with a diffusion model, also how certain each of them is."""

from .check import MovieCheck, check_movie
from .files import image_paths, localize_to_file
from .movie import localize_movie
from .progress import ProgressMismatch
from .samples import KDESampler, SamplingSettings, kde_sampler, sample_frames, shipped_sampler
from .uncertainty import localize_with_uncertainty

__all__ = [
    "KDESampler",
    "MovieCheck",
    "ProgressMismatch",
    "SamplingSettings",
    "check_movie",
    "image_paths",
    "kde_sampler",
    "localize_movie",
    "localize_to_file",
    "localize_with_uncertainty",
    "sample_frames",
    "shipped_sampler",
]
