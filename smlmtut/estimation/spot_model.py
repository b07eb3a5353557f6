"""What `fit` compares with a spot where the PSF is not its round Gaussian: sums pixel by pixel. Checks nothing but psf.

theta: (P, B): u, v, photons, background and, of an elliptic Gaussian whose widths are fitted, sigma_u and sigma_v.
"""

import math

import torch
from torch import Tensor

from .._validate import instance, number
from ..imaging.psf import PSF, AnyPSF, Emitters, rate_gradient

WIDTHS = ("sigma_u", "sigma_v")
TINY = 1e-3  # photo-electrons: keeps ω' > 0 where there is no read noise


def checked(psf: AnyPSF, fit_sigma: bool) -> tuple[AnyPSF, list[float]]:
    """The PSF and, if fit_sigma, its widths, where their search starts; ValueError where it has none."""
    instance("psf", psf, AnyPSF)
    if not fit_sigma:
        return psf, []
    if not isinstance(psf, PSF):
        raise ValueError(f"fit_sigma must be False for a {type(psf).__name__}, which has no sigma, got {fit_sigma}")
    return psf, [float(number("psf.sigma", x)) for x in psf.sigmas]


def limits(var: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest allowed value of every parameter, also of a round Gaussian: (6, B or 1) and (6, 1)."""
    least = var.amin((0, 1))
    floor = torch.where(least > 2 * TINY, -least / 2, TINY)  # (B or 1,)
    low = torch.stack([torch.full_like(floor, x) for x in (-1.0, -1.0, TINY, 0.0, 0.2, 0.2)])
    low[3] = floor
    largest = max(height, width)
    return low, var.new_tensor([width, height, math.inf, math.inf, largest, largest])[:, None]


def rate(theta: Tensor, var: Tensor, psf: AnyPSF) -> Tensor:
    """ω' (h, w, B) for a read variance (h, w, B or 1). A measured PSF may be negative where it is dark."""
    light = _psf(theta, psf).image(_emitters(theta), (var.shape[0], var.shape[1]), (0, 0))
    return (light.permute(1, 2, 0) + theta[3] + var).clamp(min=TINY)


def gradient(theta: Tensor, at: Tensor, psf: AnyPSF) -> Tensor:
    """∂ω'/∂θ (P, h, w, B) where ω' is at (h, w, B)."""
    names = ("u", "v", "photons", *WIDTHS[: len(theta) - 4], "background")
    rows = rate_gradient(_emitters(theta), _psf(theta, psf), (at.shape[0], at.shape[1]), names)  # (B, P, h, w)
    rows = rows[:, [0, 1, 2, -1, *range(3, len(theta) - 1)]]
    return rows.permute(1, 2, 3, 0) * (at > TINY)


def _emitters(theta: Tensor) -> Emitters:
    return Emitters(theta[0, :, None], theta[1, :, None], theta[2, :, None])


def _psf(theta: Tensor, psf: AnyPSF) -> AnyPSF:
    return PSF(theta[4, :, None], theta[5, :, None]) if len(theta) == 6 else psf
