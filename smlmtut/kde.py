"""Kernel density estimates: the image of the emitters on a finer grid, and a table rendered as one.

Camera pixel coordinate u and super-resolved index s belong together by s = f (u + 1/2) − 1/2: the f·f
super-resolved pixels tile the camera pixel, and in both grids a whole number is the centre of a pixel.
"""

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ._validate import choice, finite, image_shape, positive, rank, whole
from .psf import Emitters, pixel_integral

Coordinate = TypeVar("Coordinate", float, np.ndarray, Tensor)
ROWS_AT_ONCE = 4096  # localizations rendered at a time: bounds the memory of `render`


def to_super_resolved(position: Coordinate, factor: int = 4) -> Coordinate:
    """Index on the super-resolved grid of a position in camera pixels: s = f (u + 1/2) − 1/2."""
    return whole("factor", factor) * (position + 0.5) - 0.5


def to_camera(index: Coordinate, factor: int = 4) -> Coordinate:
    """Position in camera pixels of an index on the super-resolved grid: u = (s + 1/2) / f − 1/2."""
    return (index + 0.5) / whole("factor", factor) - 0.5


def kde(
    emitters: Emitters,
    shape: tuple[int, int],
    factor: int = 4,
    sigma: float = 1.0,
    amplitude: str = "peak",
    weights: Tensor | None = None,
) -> Tensor:
    """The sum of one Gaussian kernel per emitter, sampled at the centres of the super-resolved pixels: y.

    y_k = a Σ_n w_n exp(−‖s_k − s_n‖² / 2 sigma²), over the emitters that are present.

    shape: (H, W) of the camera frame; factor f: super-resolved pixels per camera pixel along each axis.
    sigma: kernel width in super-resolved pixels.
    amplitude: "peak", a = 1: a kernel at a pixel's centre reaches 1 there; "mass", a = 1 / (2π sigma²): a
        kernel away from the border sums to 1, within some 4 exp(−2π² sigma²): 1.1e-8 at sigma = 1.
    weights w: (B, E) tensor, for instance emitters.photons; None: 1.
    Returns (B, 1, f·H, f·W), in the type and on the device of emitters.u. Kernels overlap by adding. Of an
    emitter beyond the border only the tail that reaches the grid is seen.
    Raises ValueError where sigma is not positive, factor is not a whole number ≥ 1, or weights has another
    shape or is not finite.
    """
    height, width = image_shape("shape", shape)
    positive("sigma", sigma)
    choice("amplitude", amplitude, ("peak", "mass"))
    weight = emitters.mask.to(emitters.u.dtype)  # (B, E)
    if weights is not None:
        if finite("weights", weights).shape != emitters.u.shape:
            raise ValueError(
                f"weights must have the emitters' shape {tuple(emitters.u.shape)}, got {tuple(weights.shape)}"
            )
        weight = weight * weights
    if amplitude == "mass":
        weight = weight / (2 * math.pi * sigma**2)
    along_u = _kernel(to_super_resolved(emitters.u, factor), sigma, factor * width)  # (B, E, fW)
    along_v = _kernel(to_super_resolved(emitters.v, factor), sigma, factor * height)  # (B, E, fH)
    return torch.einsum("be,beh,bew->bhw", weight, along_v, along_u)[:, None]  # (B, 1, fH, fW)


def render(
    u: np.ndarray | Tensor,
    v: np.ndarray | Tensor,
    shape: tuple[int, int],
    factor: int = 4,
    sd: float | np.ndarray | Tensor | None = None,
) -> Tensor:
    """A table of localizations as a super-resolved image, each localization with mass 1.

    u, v: (N,) positions in camera pixels. shape: (H, W) of the camera frame; factor: pixels per camera pixel.
    sd: None, a histogram: each localization counts in the pixel it falls into; or a standard deviation in
        camera pixels, one for all or (N,): each is a Gaussian, integrated over the super-resolved pixels.
    Returns (f·H, f·W) float64. The mass that falls outside the frame is not in the image: the image's sum
    says how much is inside.
    Raises ValueError where u, v or sd differ in length or are not finite, or sd is not positive.
    """
    height, width = (whole("factor", factor) * n for n in image_shape("shape", shape))
    positions = [torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (u, v)]
    for name, x in zip(("u", "v"), positions, strict=True):
        finite(name, rank(name, x, 1))
    if positions[0].shape != positions[1].shape:
        raise ValueError(f"v must have the length of u, {len(positions[0])}, got {len(positions[1])}")
    columns, rows = (to_super_resolved(x, factor) for x in positions)  # (N,)
    if sd is None:
        column, row = (torch.floor(x + 0.5).long() for x in (columns, rows))
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        flat = (row * width + column)[inside]
        return torch.bincount(flat, minlength=height * width).double().reshape(height, width)
    spread = torch.as_tensor(np.asarray(positive("sd", sd)), dtype=torch.float64)
    if rank("sd", spread, 0, 1).ndim and spread.shape != columns.shape:
        raise ValueError(f"sd must be a number or have the length of u, {len(columns)}, got {len(spread)}")
    spread = (factor * spread).expand(columns.shape)
    image = torch.zeros(height, width, dtype=torch.float64)
    for start in range(0, len(columns), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        along_v = pixel_integral(rows[part], spread[part], height)  # (n, fH)
        along_u = pixel_integral(columns[part], spread[part], width)  # (n, fW)
        image += along_v.T @ along_u
    return image


def _kernel(position: Tensor, sigma: float, size: int) -> Tensor:
    """exp(−(k − position)² / 2 sigma²) for k = 0 … size − 1: (..., size)."""
    pixels = torch.arange(size, dtype=position.dtype, device=position.device)
    return torch.exp(-(((pixels - position[..., None]) / sigma) ** 2) / 2)
