"""A first guess of a frame's emitters, for fits and chains to start from."""

import torch
from torch import Tensor

from .. import _validate as valid
from .kde import to_coordinates
from .psf import Emitters


def peak_emitters(
    y: Tensor,
    factor: int = 4,
    sigma: float = 1.0,
    threshold: float = 0.25,
    photons: float = 1.0,
    most: int | None = None,
) -> Emitters:
    """The peaks of KDEs as emitters (B, E), all of so many photons: where a fit or a chain may start.

    most: E, and peaks beyond it are left out, from below and right; None: as many as the fullest image has, at least 1.
    Other arguments, and errors, as in `to_coordinates`.
    """
    found = to_coordinates(y, factor, sigma, threshold)
    there = found.frame[:, None] == torch.arange(len(y), device=found.frame.device)  # (K, B)
    slot = (there.cumsum(0) - 1)[there]
    size = max(1, int(there.sum(0).max()) if len(found) else 0) if most is None else valid.whole("most", most)
    kept = slot < size
    at = (found.frame[kept], slot[kept])
    u, v = found.u.new_zeros(2, len(y), size)
    present = torch.zeros(len(y), size, dtype=torch.bool, device=u.device)
    u[at], v[at], present[at] = found.u[kept], found.v[kept], True
    return Emitters(u, v, valid.number("photons", photons, valid.positive) * present.to(u), present)
