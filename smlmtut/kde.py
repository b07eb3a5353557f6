"""Kernel density estimates: the image of the emitters on a finer grid, and a table rendered as one.

Camera pixel coordinate u and super-resolved index s belong together by s = f (u + 1/2) − 1/2: the f·f
super-resolved pixels tile the camera pixel, and in both grids a whole number is the centre of a pixel.
"""

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ._validate import choice, finite, image_shape, positive, rank, whole
from .psf import Emitters, pixel_integral

Coordinate = TypeVar("Coordinate", float, np.ndarray, Tensor)
REACH = 8  # a rendered Gaussian ends so many sd from its centre: 1.2e-15 lies beyond
LOCALIZATIONS_AT_ONCE, PIXELS_AT_ONCE = 1 << 12, 1 << 21  # bound the memory of `render`


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
    u: ArrayLike | Tensor,
    v: ArrayLike | Tensor,
    shape: tuple[int, int],
    factor: int = 4,
    sd: ArrayLike | Tensor | None = None,
) -> Tensor:
    """A table of localizations as a super-resolved image, each localization with mass 1.

    u, v: (N,) positions in camera pixels. shape: (H, W) of the camera frame; factor: pixels per camera pixel.
    sd: None, a histogram: each localization counts in the pixel it falls into; or a standard deviation in
        camera pixels, one for all or (N,): each is a Gaussian, integrated over the super-resolved pixels.
    Returns (f·H, f·W) float64, in main memory. The mass that falls outside the frame is not in the image:
    the image's sum says how much is inside.
    Raises ValueError where u, v or sd differ in length or are not finite, or sd is not positive.
    """
    height, width = (whole("factor", factor) * n for n in image_shape("shape", shape))
    positions = [_on_host(x) for x in (u, v)]
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
    spread = _on_host(positive("sd", sd))
    if rank("sd", spread, 0, 1).ndim and spread.shape != columns.shape:
        raise ValueError(f"sd must be a number or have the length of u, {len(columns)}, got {len(spread)}")
    spread = (factor * spread).expand(columns.shape)
    image = torch.zeros(height * width, dtype=torch.float64)
    order = spread.argsort()
    reach = ((REACH * spread[order]).ceil().long() + 1).clamp(max=max(height, width)).tolist()  # px, rising
    start = 0
    while start < len(order):
        stop = min(len(order), start + LOCALIZATIONS_AT_ONCE)
        stop = start + max(1, min(stop - start, PIXELS_AT_ONCE // (2 * reach[stop - 1] + 1) ** 2))
        block, far = order[start:stop], reach[stop - 1]
        row, along_v = _window(rows[block], spread[block], far, height)
        column, along_u = _window(columns[block], spread[block], far, width)
        flat = row[:, :, None] * width + column[:, None, :]  # (n, window, window)
        image.index_add_(0, flat.flatten(), (along_v[:, :, None] * along_u[:, None, :]).flatten())
        start = stop
    return image.reshape(height, width)


def _window(position: Tensor, sd: Tensor, reach: int, size: int) -> tuple[Tensor, Tensor]:
    """Pixels around each position and the share of its Gaussian in each, 0 for pixels off the grid: (n, window)."""
    # a centre off the grid is moved to its edge: the window still covers all of the grid that the Gaussian reaches
    first = torch.floor(position + 0.5).clamp(0, size - 1).long() - reach
    pixels = first[:, None] + torch.arange(2 * reach + 1)
    share = pixel_integral(position - first, sd, 2 * reach + 1)
    on_grid = (pixels >= 0) & (pixels < size)
    return torch.where(on_grid, pixels, 0), torch.where(on_grid, share, 0.0)


def _on_host(values: ArrayLike | Tensor) -> Tensor:
    """Numbers of any kind, a table's column among them, as a float64 tensor in main memory."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _kernel(position: Tensor, sigma: float, size: int) -> Tensor:
    """exp(−(k − position)² / 2 sigma²) for k = 0 … size − 1: (..., size)."""
    pixels = torch.arange(size, dtype=position.dtype, device=position.device)
    return torch.exp(-(((pixels - position[..., None]) / sigma) ** 2) / 2)
