"""Closed forms for the localization precision of one emitter: standard deviation per axis.

All take the same arguments. photons: N, photo-electrons of the emitter. sigma: sd of the PSF without
pixelation. background: b, variance of a pixel's background in e-² (for light alone, photo-electrons per pixel;
with a camera, add its read variance in e-²). pixel: side a of a pixel. Lengths in one unit; numbers or tensors
that broadcast. Each returns a float64 tensor in that unit, and raises ValueError where photons, sigma or pixel
is not positive or background is negative. The factor 2 by which an EMCCD's gain raises the variance is not
included. σ_a² = σ² + a²/12 is the variance of the PSF with pixelation, τ = 2π σ_a² b/(N a²).
"""

import math

import torch
from torch import Tensor

from .._validate import non_negative, positive, tensor

Value = float | Tensor


def thompson(photons: Value, sigma: Value, background: Value = 0.0, pixel: Value = 1.0) -> Tensor:
    """Thompson, Larson and Webb (2002, Biophys J 82:2775, Eq. 17), an optimistic form for least squares.

    Var = (σ² + a²/12)/N + 8π σ⁴ b/(a² N²): shot noise and background added as if each were alone.
    Arguments, shape and errors: see the module.
    """
    n, s, b, a = _arguments(photons, sigma, background, pixel)
    return ((s**2 + a**2 / 12) / n + 8 * math.pi * s**4 * b / (a * n) ** 2).sqrt()


def mortensen_least_squares(photons: Value, sigma: Value, background: Value = 0.0, pixel: Value = 1.0) -> Tensor:
    """Mortensen et al. (2010, Nat Methods 7:377, Eq. 5), an unweighted least-squares fit of a Gaussian.

    Var = σ_a²/N (16/9 + 4τ). 16/9 is the price of not weighting pixels by their shot noise.
    Arguments, shape and errors: see the module.
    """
    variance, tau = _spot(*_arguments(photons, sigma, background, pixel))
    return (variance * (16 / 9 + 4 * tau)).sqrt()


def mortensen_mle(photons: Value, sigma: Value, background: Value = 0.0, pixel: Value = 1.0) -> Tensor:
    """Mortensen et al. (2010, Nat Methods 7:377, Eq. 6), the bound of maximum likelihood.

    Var = σ_a²/N / (1 + ∫_0^1 log t/(1 + t/τ) dt), and the integral is τ Li₂(−1/τ). It takes sums over pixels
    for integrals over the plane, and a Gaussian of variance σ_a² for the pixelated PSF.
    Arguments, shape and errors: see the module.
    """
    variance, tau = _spot(*_arguments(photons, sigma, background, pixel))
    return (variance / _one_plus_dilogarithm(tau)).sqrt()


def rieger_stallinga(photons: Value, sigma: Value, background: Value = 0.0, pixel: Value = 1.0) -> Tensor:
    """Rieger and Stallinga (2014, ChemPhysChem 15:664), an approximation to the bound of maximum likelihood.

    Var = σ_a²/N (1 + 4τ + √(2τ/(1 + 4τ))).
    Arguments, shape and errors: see the module.
    """
    variance, tau = _spot(*_arguments(photons, sigma, background, pixel))
    return (variance * (1 + 4 * tau + (2 * tau / (1 + 4 * tau)).sqrt())).sqrt()


def _spot(n: Tensor, s: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """σ_a²/N and τ."""
    widened = s**2 + a**2 / 12
    return widened / n, 2 * math.pi * widened * b / (n * a**2)


def _one_plus_dilogarithm(tau: Tensor) -> Tensor:
    """1 + τ Li₂(−1/τ), without loss of digits for large τ, where it tends to 1/(4τ).

    τ ≥ 1: Landen's identity, Li₂(−x) = −Li₂(y) − log²(1 + x)/2 with y = x/(1 + x), which is ≤ 1/2.
    τ < 1: inversion first, Li₂(−x) = −π²/6 − log²(x)/2 − Li₂(−1/x). From τ = 8 on: the power series itself.
    """
    k = torch.arange(1, 61, dtype=tau.dtype, device=tau.device)
    small = tau.clamp(min=torch.finfo(tau.dtype).tiny, max=1)  # each branch sees only its own range
    middle, large = tau.clamp(1, 8), tau.clamp(min=8)

    def landen(x: Tensor) -> Tensor:
        return -((x / (1 + x))[..., None] ** k / k**2).sum(-1) - 0.5 * torch.log1p(x) ** 2

    inverted = 1 + small * (-(math.pi**2) / 6 - 0.5 * small.log() ** 2 - landen(small))
    direct = 1 + middle * landen(1 / middle)
    series = -((-1 / large)[..., None] ** k / (k + 1) ** 2).sum(-1)
    return torch.where(tau <= 1, inverted, torch.where(tau < 8, direct, series))


def _arguments(photons: Value, sigma: Value, background: Value, pixel: Value) -> list[Tensor]:
    positive("photons", photons)
    positive("sigma", sigma)
    non_negative("background", background)
    positive("pixel", pixel)
    device = next((x.device for x in (photons, sigma, background, pixel) if isinstance(x, Tensor)), None)
    named = {"photons": photons, "sigma": sigma, "background": background, "pixel": pixel}
    return [tensor(name, x).to(device, torch.float64) for name, x in named.items()]
