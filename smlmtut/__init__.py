"""Uncertainty in single-molecule localization microscopy: the package of the book."""
