"""Kernel density estimates: an image of the emitters on a finer grid, its peaks, and tables rendered as images.

Camera pixel coordinate u and super-resolved index s are related by s = f (u + 1/2) − 1/2: f·f super-resolved pixels
tile a camera pixel, and on both grids a whole number is the centre of a pixel.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from .. import _validate as valid
from .psf import Emitters
from .rendering import REACH, gaussians

Coordinate = TypeVar("Coordinate", float, np.ndarray, Tensor)
MASS_REACH = 4  # super-resolved pixels: radius about a peak within which mass can count as its own, 4 kernel sds


def to_super_resolved(position: Coordinate, factor: int = 4) -> Coordinate:
    """Index on the super-resolved grid of a position in camera pixels: s = f (u + 1/2) − 1/2; an array of an array."""
    valid.tensor("position", position)
    return valid.whole("factor", factor) * (position + 0.5) - 0.5


def to_camera(index: Coordinate, factor: int = 4) -> Coordinate:
    """Position in camera pixels of an index on the super-resolved grid: u = (s + 1/2) / f − 1/2."""
    valid.tensor("index", index)
    return (index + 0.5) / valid.whole("factor", factor) - 0.5


@valid.enough_memory("shape")
def kde_image(
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
    weights w: (B, E), for instance emitters.photons; None: 1.
    Returns (B, 1, f·H, f·W), in the type and on the device of emitters.u. Overlapping kernels add up. An emitter
    beyond the border contributes the tail that reaches the grid.
    Raises ValueError where sigma is not positive, factor is not a whole number ≥ 1, or weights has another
    shape or is not finite.
    """
    height, width = valid.image_shape("shape", shape)
    valid.number("sigma", sigma, valid.positive)
    valid.choice("amplitude", amplitude, ("peak", "mass"))
    weight = valid.instance("emitters", emitters, Emitters).mask.to(emitters.u.dtype)  # (B, E)
    if weights is not None:
        factors = valid.finite("weights", valid.tensor("weights", weights, mask=True).to(weight))
        if factors.shape != weight.shape:
            raise ValueError(f"weights must have the emitters' shape {tuple(weight.shape)}, got {tuple(factors.shape)}")
        weight = weight * factors
    if amplitude == "mass":
        weight = weight / (2 * math.pi * sigma**2)
    along_u = kernel(to_super_resolved(emitters.u, factor), sigma, factor * width)  # (B, E, fW)
    along_v = kernel(to_super_resolved(emitters.v, factor), sigma, factor * height)  # (B, E, fH)
    return torch.einsum("be,beh,bew->bhw", weight, along_v, along_u)[:, None]  # (B, 1, fH, fW)


@dataclass(frozen=True)
class Peaks:
    """Local maxima of a batch of KDEs, frame by frame.

    frame: (K,) int64; u, v: (K,) camera pixels; height: (K,) of the KDE at the maximum's pixel; mass: (K,) KDE
        summed about the maximum in units of one kernel's, so 1 for one emitter and about 2 for two in one blob.
    """

    frame: Tensor
    u: Tensor
    v: Tensor
    height: Tensor
    mass: Tensor

    def __len__(self) -> int:
        return len(self.frame)


def to_coordinates(
    y: Tensor, factor: int = 4, sigma: float = 1.0, threshold: float = 0.25, min_mass: float = 0.0
) -> Peaks:
    """Positions of the emitters in a KDE, or in an estimate of one.

    An emitter is a pixel above the threshold that none of its eight neighbours exceeds. Its position is refined by
    the Gaussian through the sums of the three columns (for u) and of the three rows (for v) about it. This is exact
    for a single Gaussian of any width; at the border, where one of the three is missing, for one of sd sigma.
    The mass of a pixel belongs to the nearest maximum, if that is at most MASS_REACH pixels away.

    y: (B, 1, f·H, f·W), kernels of peak 1 and sd sigma (super-resolved pixels). threshold: lowest height;
    min_mass: lowest mass. Raises ValueError for a value that is not finite, a wrong shape or a negative limit.
    """
    y = valid.floating("y", valid.finite("y", y), 4)
    if y.shape[1] != 1:
        raise ValueError(f"y must have shape (B, 1, f·H, f·W), got {tuple(y.shape)}")
    factor = valid.whole("factor", factor)
    if y.shape[-2] % factor or y.shape[-1] % factor:
        raise ValueError(f"y must have sides that the factor {factor} divides, got {tuple(y.shape)}")
    valid.number("sigma", sigma, valid.positive)
    valid.number("threshold", threshold, valid.non_negative)
    valid.number("min_mass", min_mass, valid.non_negative)
    y = y.detach()[:, 0]  # (B, h, w)
    height, width = y.shape[1:]
    highest = (_highest_of_nine(y) == y) & (y > threshold)
    frame, row, column = highest.nonzero().T
    down = along = torch.zeros_like(row)
    equal = (_patches(F.pad(y, (1, 1, 1, 1), value=-math.inf), frame, row, column) == y[highest][:, None, None]).sum(
        (1, 2)
    )
    if bool((equal > 1).any()):
        frame, row, column, down, along = _plateaus(highest, equal)
    # a pixel beyond the border counts as the border's nearest
    patch = _patches(F.pad(y[:, None], (1, 1, 1, 1), mode="replicate")[:, 0], frame, row, column)  # (K, 3, 3)
    s_u = column + _vertex(patch.sum(1), column == 0, column == width - 1, sigma)
    s_v = row + _vertex(patch.sum(2), row == 0, row == height - 1, sigma)
    # the Gaussian puts the maximum between two equal pixels; of a longer plateau it is the middle
    u = to_camera(torch.where(along > 1, column + along / 2, s_u), factor)
    v = to_camera(torch.where(down > 1, row + down / 2, s_v), factor)
    mass = _mass(y, frame, row + down // 2, column + along // 2) / (2 * math.pi * sigma**2)
    heavy = mass >= min_mass
    return Peaks(*(x[heavy] for x in (frame, u, v, y[frame, row, column], mass)))


def _highest_of_nine(y: Tensor) -> Tensor:
    """The maximum of each pixel of (B, h, w) and its neighbours: max_pool2d, which takes ten times as long on a CPU."""
    height, width = y.shape[1:]
    y = F.pad(y, (1, 1, 1, 1), value=-math.inf)
    y = torch.maximum(torch.maximum(y[:, :height], y[:, 1:-1]), y[:, 2:])
    return torch.maximum(torch.maximum(y[..., :width], y[..., 1:-1]), y[..., 2:])


def _patches(padded: Tensor, frame: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The 3 × 3 pixels about each one, of images (B, h + 2, w + 2) with a border: (K, 3, 3)."""
    steps = torch.arange(3, device=padded.device)
    return padded[frame[:, None, None], (row[:, None] + steps)[:, :, None], (column[:, None] + steps)[:, None, :]]


def redrawn(y: Tensor, factor: int = 4, sigma: float = 1.0, threshold: float = 0.5) -> Tensor:
    """KDEs of the emitters that images show: (B, 1, f·H, f·W), in the type of y.

    Each peak of y above the threshold becomes a kernel, or several of them where its mass is nearer to that of several.
    What a network draws is near a KDE but seldom one: noise in the dark goes, and so do kernels of odd height. Other
    arguments and errors as in `to_coordinates`.
    """
    y = valid.floating("y", y, 4)
    found = to_coordinates(y, factor, sigma, threshold)
    height, width = y.shape[2:]
    near = torch.arange(-math.ceil(REACH * sigma), math.ceil(REACH * sigma) + 1, device=y.device)
    places, along = [], []
    for at in (found.v, found.u):
        s = to_super_resolved(at, factor)[:, None]
        pixel = s.round().long() + near
        places.append(pixel)
        along.append((-((pixel - s) / sigma).square() / 2).exp())
    light = found.mass.round().clamp(min=1)[:, None, None] * along[0][:, :, None] * along[1][:, None, :]  # (K, n, n)
    row, column = places[0][:, :, None], places[1][:, None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = (found.frame[:, None, None] * height + row) * width + column
    out = torch.zeros_like(y).flatten()
    return out.index_add_(0, index[inside], light[inside].to(out)).reshape(y.shape)


def _plateaus(highest: Tensor, equal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Groups of touching maxima, which are equal: frame, first row and column, and further rows and columns, (K,) each.

    equal: (P,) number of pixels as high as each maximum, among itself and its neighbours. Where one of them is not a
    maximum, because a neighbour of its own is higher, the group is a terrace on a slope, and is left out.
    """
    label = torch.arange(1, highest.numel() + 1, dtype=torch.float64, device=highest.device).reshape(highest.shape)
    label, before = torch.where(highest, label, 0.0), highest.double()
    while not torch.equal(label, before):  # the highest number spreads over its group
        before = label
        label = torch.where(highest, _highest_of_nine(label), 0.0)
    places = highest.nonzero()  # (P, 3)
    terrace = _patches(F.pad(highest, (1, 1, 1, 1)), *places.T).sum((1, 2)) < equal  # (P,)
    _, group = label[highest].unique(return_inverse=True)
    index = group[:, None].expand(places.shape)
    empty = places.new_zeros((int(group.max()) + 1, 3))
    low = empty.scatter_reduce(0, index, places, "amin", include_self=False)
    high = empty.scatter_reduce(0, index, places, "amax", include_self=False)
    whole_group = torch.bincount(group, terrace.double()) == 0
    frame, row, column = low[whole_group].T
    _, down, along = (high - low)[whole_group].T
    return frame, row, column, down, along


def _inside(row: Tensor, column: Tensor, shape: torch.Size) -> Tensor:
    """Whether a pixel lies on a grid of shape (..., h, w)."""
    row = row if row.ndim == column.ndim else row[:, None]
    return (row >= 0) & (row < shape[-2]) & (column >= 0) & (column < shape[-1])


def _vertex(three: Tensor, no_low: Tensor, no_high: Tensor, sigma: float) -> Tensor:
    """Centre of the Gaussian through three equally spaced values (K, 3), in steps from the middle one: (K,).

    no_low, no_high: (K,) whether that one lies off the grid; then the Gaussian through the others has sd sigma.
    """
    below, middle, above = three.clamp(min=torch.finfo(three.dtype).tiny).log().unbind(-1)
    low = torch.where(no_low, 2 * middle - above - sigma**-2, below)
    high = torch.where(no_high, 2 * middle - below - sigma**-2, above)
    bend = low - 2 * middle + high
    return torch.where(bend < 0, (low - high) / (2 * bend).clamp(max=-1e-12), 0.0).clamp(-0.5, 0.5)


def _mass(y: Tensor, frame: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Sum of y over the pixels that are nearer to each maximum than to any other, and within MASS_REACH: (K,)."""
    height, width = y.shape[1:]
    steps = torch.arange(-MASS_REACH, MASS_REACH + 1, device=y.device)
    dy, dx = (d.flatten() for d in torch.meshgrid(steps, steps, indexing="ij"))
    disc = dy**2 + dx**2 <= MASS_REACH**2
    rows, columns = row[:, None] + dy[disc], column[:, None] + dx[disc]  # (K, M)
    distance = (dy**2 + dx**2)[disc].expand(rows.shape)
    inside = _inside(rows, columns, y.shape)
    pixel = ((frame[:, None] * height + rows) * width + columns).clamp(0, y.numel() - 1)
    # one number that sorts by distance first and by maximum second, so that ties have one winner
    order = distance * len(row) + torch.arange(len(row), device=y.device)[:, None]
    order = torch.where(inside, order, torch.iinfo(torch.int64).max)
    nearest = torch.full((y.numel(),), torch.iinfo(torch.int64).max, device=y.device)
    nearest.scatter_reduce_(0, pixel.flatten(), order.flatten(), "amin")
    own = inside & (nearest[pixel] == order)
    return torch.where(own, y.flatten()[pixel], 0.0).sum(1)


@valid.enough_memory("shape")
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
    Returns (f·H, f·W) float64, in main memory. Mass that falls outside the frame is not in the image.
    Raises ValueError where u, v or sd differ in length or are not finite, or sd is not positive.
    """
    height, width = (valid.whole("factor", factor) * n for n in valid.image_shape("shape", shape))
    positions = [valid.finite(name, _on_host(name, x, 1)) for name, x in (("u", u), ("v", v))]
    if positions[0].shape != positions[1].shape:
        raise ValueError(f"v must have the length of u, {len(positions[0])}, got {len(positions[1])}")
    columns, rows = (to_super_resolved(x, factor) for x in positions)  # (N,)
    if sd is None:
        column, row = (torch.floor(x + 0.5).long() for x in (columns, rows))
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        flat = (row * width + column)[inside]
        return torch.bincount(flat, minlength=height * width).double().reshape(height, width)
    image = torch.zeros(height * width, dtype=torch.float64)
    for _, flat, share in gaussians(columns, rows, factor * _on_host("sd", sd, 0, 1), (height, width)):
        image.index_add_(0, flat, share.flatten())
    return image.reshape(height, width)


def _on_host(name: str, values: ArrayLike | Tensor, *ranks: int) -> Tensor:
    """Numbers of any kind, a table's column among them, as a float64 tensor in main memory."""
    return valid.tensor(name, values, *ranks).detach().cpu().double()


def kernel(position: Tensor, sigma: float, size: int) -> Tensor:
    """exp(−(k − position)² / 2 sigma²) for k = 0 … size − 1: (..., size)."""
    pixels = torch.arange(size, dtype=position.dtype, device=position.device)
    return torch.exp(-(((pixels - position[..., None]) / sigma) ** 2) / 2)
