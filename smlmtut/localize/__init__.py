"""A movie in, a table out: positions, and with a diffusion model how sure they are."""

from .movie import localize_movie, localize_to_file

__all__ = ["localize_movie", "localize_to_file"]
