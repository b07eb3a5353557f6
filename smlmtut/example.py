"""The running example of the book: a window of a real frame, and a simulated twin of it whose truth is known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import data
from ._random import step_generator
from .imaging.camera import Camera, expose
from .imaging.psf import PSF, Emitters, expected_photons

FRAME, TOP, LEFT, SIZE = 18, 16, 22, 16  # of the AF647 movie: its frame, and the window's first row and column
# px and e⁻ of the twin: fits of chapter 4, one molecule at a time with a free width, rounded. With the width fixed at
# SIGMA they find more light in the real window, 143 and 188.
U, V, PHOTONS = (6.2, 10.2), (4.6, 12.0), (105.0, 170.0)
SIGMA = 0.9  # px, the width of the movie's spots


@dataclass(frozen=True)
class Example:
    """Two windows of 16 × 16 pixels with two molecules each, in photo-electrons if a unit of the movie is one.

    real: (16, 16) float64, from the AF647 movie. twin: (16, 16) float64, simulated. emitters: (1, 2), the truth of the
    twin, centred at pixel (0, 0) of the window. background: e⁻ per pixel. psf: its PSF. camera: the working
    assumption on the movie's camera: gain 1, offset 0, and the read variance that its background does not explain.
    """

    real: Tensor
    twin: Tensor
    emitters: Emitters
    background: float
    psf: PSF
    camera: Camera


def running_example(seed: int = 0) -> Example:
    """The window and its twin; another seed gives the twin other noise.

    Raises OSError where the movie can neither be found nor fetched. Its camera and its unit are not known: see
    `data.SOURCES["sptnet_af647_slb.tif"].unknown`. Source: the movie is that of SPTnet (HuanglabPurdue).
    """
    movie = torch.from_numpy(data.af647_movie()).double()  # (30, 64, 64)
    difference, mean = movie[1:] - movie[:-1], (movie[1:] + movie[:-1]) / 2
    noise = float(difference[mean < mean.median()].var() / 2)  # of the background, in units²: chapter 4
    background = float(movie.median())
    camera, psf = Camera(1.0, 0.0, noise - background), PSF(SIGMA)
    emitters = Emitters(*(torch.tensor([x], dtype=torch.float64) for x in (U, V, PHOTONS)))
    rate = expected_photons(emitters, psf, (SIZE, SIZE), background)[0]
    twin = expose(rate, camera, step_generator(seed, FRAME)).double()
    real = movie[FRAME, TOP : TOP + SIZE, LEFT : LEFT + SIZE]
    return Example(real, twin, emitters, background, psf, camera)
