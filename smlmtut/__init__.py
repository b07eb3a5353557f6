"""Uncertainty in single-molecule localization microscopy: the package of the book."""

__version__ = "0.1.0"
