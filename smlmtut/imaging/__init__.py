"""From emitters to frames: the point-spread function, the camera, scenes to train on, kernel density estimates."""

from .camera import Camera, expose, to_photoelectrons
from .kde import kde_image, to_coordinates
from .psf import PSF, Emitters, expected_photons, pixel_integral, rate_gradient
from .scenes import Scene, draw_batch

__all__ = [
    "PSF",
    "Camera",
    "Emitters",
    "Scene",
    "draw_batch",
    "expected_photons",
    "expose",
    "kde_image",
    "pixel_integral",
    "rate_gradient",
    "to_coordinates",
    "to_photoelectrons",
]
