"""The super-resolved image of a table, and how uncertain each of its pixels is."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .._validate import between, finite, image_shape, whole
from ..imaging.kde import to_super_resolved
from ..imaging.rendering import gaussians


def picture(table: pd.DataFrame, shape: tuple[int, int], factor: int = 8, least: float = 0.02) -> tuple[Tensor, Tensor]:
    """The number of molecules in each super-resolved pixel, and its standard deviation.

    table: with u, v, u_sd, v_sd (px; one Gaussian with the mean of both variances) and probability. Rows without an sd
        are left out: nobody knows where they are. shape: (H, W) of a frame; factor: pixels to a camera pixel.
    least: px, what smaller sds are taken for.
    A row is in a pixel with q = probability × share of its Gaussian, independently of the others: the mean is Σ q, the
    variance Σ q (1 − q). Link rows of one molecule first, else it counts once for each frame.
    Returns both as (f·H, f·W) float64. Raises ValueError for a position that is not finite, or a probability outside
    [0, 1].
    """
    height, width = (whole("factor", factor) * n for n in image_shape("shape", shape))
    table = table.dropna(subset=["u_sd", "v_sd"])
    columns, rows = (to_super_resolved(torch.tensor(finite(n, table[n].to_numpy(float))), factor) for n in ("u", "v"))
    sd = np.hypot(table["u_sd"].to_numpy(float), table["v_sd"].to_numpy(float)).clip(min=2**0.5 * least) / 2**0.5
    chance = torch.tensor(between("probability", table["probability"].to_numpy(float), 0, 1))
    mean, squares = torch.zeros(2, height * width, dtype=torch.float64)
    for block, flat, share in gaussians(columns, rows, torch.tensor(factor * sd), (height, width)):
        q = (chance[block, None, None] * share).flatten()
        mean.index_add_(0, flat, q)
        squares.index_add_(0, flat, q.square())
    return mean.reshape(height, width), (mean - squares).clamp(min=0).sqrt().reshape(height, width)
