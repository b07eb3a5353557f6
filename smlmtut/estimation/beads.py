"""The PSF of a microscope from images of beads at different places within a pixel."""

import numpy as np
import torch
from torch import Tensor

from .._validate import finite, number, positive, tensor, whole
from ..imaging.measured_psf import MeasuredPSF
from ..imaging.psf import Emitters
from .fit import fit_spots

FEWEST = 4  # beads


def psf_of_beads(
    stack: Tensor, oversampling: int = 4, sigma: float = 1.0, read_variance: float | Tensor = 0.0, iterations: int = 2
) -> MeasuredPSF:
    """Average of bead images, each shifted by the centre of its fit, as a PSF with samples between the pixels.

    stack: (B, s, s) photo-electrons, s odd, a bead near the middle of each, at places that differ by parts of a pixel:
        `spots.cut_spots` cuts them. oversampling: samples per camera pixel. sigma: px, where the first fit starts;
        that is of a Gaussian. read_variance: as in fit_spots.
    iterations: fits, the first of a Gaussian, the others of the PSF found so far, to which the mean of what it leaves
        is added: with more, what the splines blur is restored, and noise grows.
    The border of each image counts as dark: its mean is the background, and light beyond it is left out of N. The
    emitter's place in the PSF is that of the Gaussian fit. Beads that a fit does not explain must be left out before.
    Raises ValueError for another shape, or where fewer than FEWEST fits converge.
    """
    stack = tensor("stack", finite("stack", stack), 3).cpu().double()
    side, f = stack.shape[-1], whole("oversampling", oversampling)
    if stack.shape[1] != side or side % 2 == 0 or side < 7:
        raise ValueError(f"stack must have square images with an odd side of at least 7 px, got {tuple(stack.shape)}")
    reach = f * (side + 1) // 2  # samples from the middle to where no bead has a pixel any more
    offsets = torch.arange(-reach, reach + 1) / f
    border = torch.cat([stack[:, [0, -1]].flatten(1), stack[:, 1:-1, [0, -1]].flatten(1)], 1)
    light = stack - border.mean(1)[:, None, None]
    samples, psf = torch.zeros(2 * reach + 1, 2 * reach + 1).double(), None
    for _ in range(whole("iterations", iterations)):
        fit = fit_spots(stack, float(number("sigma", sigma, positive)), psf is None, read_variance, psf=psf)
        if int(fit.converged.sum()) < FEWEST:
            raise ValueError(f"stack must show at least {FEWEST} beads that a fit explains, got {fit.converged.sum()}")
        u, v, photons = (x[fit.converged] for x in (fit.u, fit.v, fit.photons))
        left = light[fit.converged]
        if psf is not None:
            left = left - psf.image(Emitters(u[:, None], v[:, None], photons[:, None]), (side, side), (0, 0))
        samples = samples + _mean_between(left, u, v, photons, offsets)
        samples = samples * (f**2 / samples.sum())
        psf = MeasuredPSF(samples, f)
    assert psf is not None
    return psf


def _mean_between(images: Tensor, u: Tensor, v: Tensor, photons: Tensor, offsets: Tensor) -> Tensor:
    """Least-squares factor of N in images (B, s, s), at offsets (n,) from the centres, by cubic splines: (n, n)."""
    from scipy import ndimage  # takes 0.3 s to load

    total = np.zeros((len(offsets), len(offsets)))
    for image, x, y, n in zip(*(a.numpy() for a in (images, u, v, photons)), strict=True):
        places = np.meshgrid(y + offsets, x + offsets, indexing="ij")
        total += n * ndimage.map_coordinates(image, places, order=3, mode="grid-constant")
    return torch.from_numpy(total) / photons.square().sum()
