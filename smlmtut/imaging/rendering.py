"""Gaussians on a grid of pixels, one for each localization, some at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _validate as valid
from .psf import pixel_integral

REACH = 8  # a rendered Gaussian is cut off at this many sds from its centre: 1.2e-15 of it lies beyond
LOCALIZATIONS_AT_ONCE, PIXELS_AT_ONCE = 1 << 12, 1 << 21  # bound the memory, to 16 MB a temporary


def gaussians(
    columns: Tensor, rows: Tensor, sd: Tensor, shape: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each localization as a Gaussian, integrated over the pixels of an image.

    columns, rows: (N,) pixels. sd: pixels, one for all or (N,). shape: (H, W) of the image.
    Yields for n localizations at a time: their numbers (n,); the pixels about each as row · W + column, (n · w²,); and
    its share in them, (n, w, w), 0 for pixels off the image.
    Raises ValueError where sd is not positive or has another length.
    """
    height, width = shape
    valid.positive("sd", sd)
    if sd.ndim and sd.shape != columns.shape:
        raise ValueError(f"sd must be a number or have the length of u, {len(columns)}, got {len(sd)}")
    sd = sd.expand(columns.shape)
    order = sd.argsort()
    reach = ((REACH * sd[order]).ceil().long() + 1).clamp(max=max(height, width)).tolist()  # px, rising
    start = 0
    while start < len(order):
        stop = min(len(order), start + LOCALIZATIONS_AT_ONCE)
        stop = start + max(1, min(stop - start, PIXELS_AT_ONCE // (2 * reach[stop - 1] + 1) ** 2))
        block, far = order[start:stop], reach[stop - 1]
        row, along_v = _window(rows[block], sd[block], far, height)
        column, along_u = _window(columns[block], sd[block], far, width)
        flat = row[:, :, None] * width + column[:, None, :]  # (n, w, w)
        yield block, flat.flatten(), along_v[:, :, None] * along_u[:, None, :]
        start = stop


def _window(position: Tensor, sd: Tensor, reach: int, size: int) -> tuple[Tensor, Tensor]:
    """Pixels around each position and the share of its Gaussian in each, 0 for pixels off the grid: (n, window)."""
    # a centre off the grid is moved to its edge: the window still covers all of the grid that the Gaussian reaches
    first = torch.floor(position + 0.5).clamp(0, size - 1).long() - reach
    pixels = first[:, None] + torch.arange(2 * reach + 1)
    share = pixel_integral(position - first, sd, 2 * reach + 1)
    on_grid = (pixels >= 0) & (pixels < size)
    return torch.where(on_grid, pixels, 0), torch.where(on_grid, share, 0.0)
