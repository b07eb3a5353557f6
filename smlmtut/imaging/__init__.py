"""From emitters to frames, and to kernel density estimates.

psf            expected photo-electrons of point emitters (Eq. 10 and 11) and their derivatives
fast_psf       the same integrals for fits and chains
measured_psf   a PSF from the image of a bead
camera         raw frames from them, and back: an sCMOS camera, pixel by pixel
kde            kernel density estimates, their peaks, and rendered tables
first_guess    the peaks of an image as emitters
simulate       simple scenes and their frames
scenes         training scenes, drawn from a prior
distributions  what their quantities are drawn from
structures     positions on filaments, rings and clusters
blinking       movies of molecules that blink and bleach

Where a tensor is wanted an array of numpy will do; results are tensors.
"""

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
