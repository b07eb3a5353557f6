"""What is known of y before a network draws it: the emitters that fit the frame best, and how sure the fit is.

The peaks of ŷ are fitted to the frame together (`estimation.joint`). The KDE of the fit is the centre of y, and the
curvature of its likelihood says how far y may be from it. Nothing of this is trained.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._validate import rank
from ..estimation.joint import JointFit, fit_emitters
from ..imaging.first_guess import peak_emitters
from ..imaging.kde import kde_image, to_super_resolved
from ..imaging.psf import Emitters
from ..imaging.windows import Window, windows
from .inputs import input_electrons

FACTOR = 4  # super-resolved pixels per camera pixel, along each axis
LOWEST_PEAK, PHOTONS, STEPS = 0.25, 1050.0, 12  # of ŷ that is fitted; where its fit starts; of the fit, at most
# px, sides of the windows in which larger frames are fitted, that of the training's frames, and what a window sees
# beyond its own part; px beyond a window where emitters count too; windows that are fitted together
SIDE, MARGIN, BEYOND, AT_ONCE = 16, 3, 2.0, 256
# Smallest scale, about the sd of y in the halo of a lone molecule. Where the fit knows of nothing, a molecule that it
# does not know has z of up to 1 / FLOOR.
FLOOR = 0.02
SCALE_UNIT = 0.1  # of a kernel's peak, about the sd of y beside an emitter: the unit of scales that a network sees
CHANNELS = 7  # of Condition.inputs


class Condition(NamedTuple):
    """What a network knows of B frames. centre, scale: of y = centre + scale · z, (B, 1, fH, fW) each.

    inputs: images of all that is known, (B, C, fH, fW).
    """

    centre: Tensor
    scale: Tensor
    inputs: Tensor


@torch.no_grad()
def condition_on(estimate: Tensor, frame: Tensor) -> Condition:
    """What [x, ŷ] tell: the fit's KDE as the centre, and scale² = FLOOR² + sd² + (centre − ŷ)².

    sd: of the fit's KDE, see `fitted_kde`. Where the fit is wrong, ŷ, which is right on average, tells by how much.
    estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `network_input`. The inputs are ŷ; √ŷ, where a faint rim is
    visible; signal and read noise upsampled; ones, by which a convolution sees the border; centre; scale / SCALE_UNIT.
    Raises ValueError for a frame of another shape.
    """
    rows, channels, *sides = rank("frame", frame, 4).shape
    wanted = tuple(rank("estimate", estimate, 4).shape)
    if channels != 2 or (rows, 1, *(FACTOR * n for n in sides)) != wanted:
        raise ValueError(
            f"frame must have 2 channels and a quarter of the sides of the estimate {wanted}, got {tuple(frame.shape)}"
        )
    centre, sd = fitted_kde(estimate, frame)
    scale = (FLOOR**2 + sd.square() + (centre - estimate).square()).sqrt()
    fine = F.interpolate(frame, scale_factor=float(FACTOR), mode="bicubic")  # (B, 2, fH, fW)
    root = estimate.clamp(min=0).sqrt()
    images = [estimate, root, fine, torch.ones_like(estimate), centre, scale / SCALE_UNIT]
    return Condition(centre, scale, torch.cat(images, 1))


@torch.no_grad()
def fitted_kde(estimate: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The KDE of the emitters that fit the frame best, searched from the peaks of ŷ, and its sd: (B, 1, fH, fW) each.

    Arguments as in `condition_on`. The sd is to first order in the errors of the positions, whose covariance is that of
    `JointFit`. A large frame is fitted in windows of SIDE px that overlap, with a background of their own, and each
    peak counts in the window whose own part it lies in.
    """
    device = estimate.device
    if device.type == "mps":  # which lacks float64
        estimate, frame = estimate.cpu(), frame.cpu()
    height, width = frame.shape[2:]
    places = windows((height, width), (min(SIDE, height), min(SIDE, width)), MARGIN)
    kde, variance = torch.zeros_like(estimate), torch.zeros_like(estimate)
    at_once = max(1, AT_ONCE // len(frame))
    with torch.autocast(estimate.device.type, enabled=False):
        peaks = peak_emitters(estimate, FACTOR, threshold=LOWEST_PEAK, photons=PHOTONS)
        for some in (places[i : i + at_once] for i in range(0, len(places), at_once)):
            x = torch.cat([frame[:, :, *place.seen()] for place in some])
            start, own = _seen_from(some, peaks, (height, width))
            electrons, read_variance = input_electrons(x)
            fit = fit_emitters(electrons, start, read_variance, max_iterations=STEPS)
            found = kde_image(replace(fit.emitters, present=own), (x.shape[2], x.shape[3]), FACTOR)
            squared = _kde_variance(fit, own, x)
            for place, k, s2 in zip(some, found.split(len(frame)), squared.split(len(frame)), strict=True):
                kde[:, :, *place.seen(FACTOR)] += k
                variance[:, :, *place.seen(FACTOR)] += s2
    return kde.to(device), variance.sqrt().to(device)


def _seen_from(places: list[Window], peaks: Emitters, shape: tuple[int, int]) -> tuple[Emitters, Tensor]:
    """The peaks of B frames (H, W) whose light W windows see, in the windows' pixels: rows (W·B, E).

    Beside them, (W·B, E), which ones lie in the window's own part; those beyond the frame's edge belong to that at it.
    """
    near = own = peaks.mask.expand(len(places), -1, -1)  # (W, B, E)
    moved = []
    for at, seen, mine, size in (
        (peaks.u, [x.columns for x in places], [x.own_columns for x in places], shape[1]),
        (peaks.v, [x.rows for x in places], [x.own_rows for x in places], shape[0]),
    ):
        (first, last), (low, high) = (at.new_tensor(x).T[:, :, None, None] for x in (seen, mine))
        near = near & (at >= first - 0.5 - BEYOND) & (at < last - 0.5 + BEYOND)
        own = own & ((at >= low - 0.5) | (low == 0)) & ((at < high - 0.5) | (high == size))
        moved.append(at - first)
    most = max(1, int(near.sum(-1).max()))
    order = (~near).byte().argsort(stable=True, dim=-1)[..., :most]  # those that a window sees first
    photons = peaks.photons.expand_as(near)
    u, v, photons, near, own = (x.gather(2, order).flatten(0, 1) for x in (*moved, photons, near, own))
    return Emitters(u, v, photons, near), own & near


def _kde_variance(fit: JointFit, there: Tensor, frame: Tensor) -> Tensor:
    """Variance of the KDE of those emitters of a fit that are there, (B, E), from its gradient: (B, 1, fH, fW)."""
    covariance = fit.covariance().float()
    u, v = (to_super_resolved(place, FACTOR)[..., None] for place in (fit.emitters.u, fit.emitters.v))  # (B, E, 1)
    off_v, off_u = (
        torch.arange(FACTOR * n, dtype=u.dtype, device=u.device) - place
        for n, place in zip(frame.shape[2:], (v, u), strict=True)
    )
    k_v, k_u = (-off_v.square()).exp(), (-off_u.square()).exp()  # squares of the kernel's factors, of sd 1
    uu, vv, uv = (
        FACTOR**2 * there * covariance[:, i:-2:3, j:-2:3].diagonal(dim1=1, dim2=2) for i, j in ((0, 0), (1, 1), (0, 1))
    )  # (B, E) in super-resolved pixels²
    terms = [(uu, k_v, off_u**2 * k_u), (vv, off_v**2 * k_v, k_u), (2 * uv, off_v * k_v, off_u * k_u)]
    variance = torch.stack([torch.einsum("be,beh,bew->bhw", *term) for term in terms]).sum(0)
    return variance.clamp(min=0)[:, None]
