"""What is known of y before a network draws it: the emitters that fit the frame best, and how sure the fit is.

The peaks of ŷ are fitted to the frame together (`estimation.joint`). The KDE of the fit is the centre of y, and the
curvature of its likelihood says how far y may be from it. Nothing of this is trained.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._validate import rank
from ..estimation.joint import JointFit, fit_emitters
from ..imaging.first_guess import peak_emitters
from ..imaging.kde import kde_image, to_super_resolved
from .inputs import input_electrons

FACTOR = 4  # super-resolved pixels per camera pixel, along each axis
LOWEST_PEAK, PHOTONS, STEPS = 0.25, 1050.0, 12  # of ŷ that is fitted; where its fit starts; of the fit, at most
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
    estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `network_input`. The inputs are ŷ, √ŷ, where a faint rim is
    visible, signal and read noise upsampled, ones, by which a convolution sees the border, centre, and
    scale / SCALE_UNIT.
    Raises ValueError for a frame of another size.
    """
    if tuple(FACTOR * n for n in rank("frame", frame, 4).shape[2:]) != tuple(rank("estimate", estimate, 4).shape[2:]):
        raise ValueError(
            f"frame must have a quarter of the estimate's sides {tuple(estimate.shape[2:])}, got {tuple(frame.shape)}"
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
    `JointFit`.
    """
    with torch.autocast(estimate.device.type, enabled=False):
        electrons, variance = input_electrons(frame)
        start = peak_emitters(estimate, FACTOR, threshold=LOWEST_PEAK, photons=PHOTONS)
        fit = fit_emitters(electrons, start, variance, max_iterations=STEPS)
        return kde_image(fit.emitters, (frame.shape[2], frame.shape[3]), FACTOR), _kde_sd(fit, frame)


def _kde_sd(fit: JointFit, frame: Tensor) -> Tensor:
    """sd of the fit's KDE from its gradient with respect to the positions: (B, 1, fH, fW)."""
    covariance, there = fit.covariance().float(), fit.emitters.mask
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
    return variance.clamp(min=0).sqrt()[:, None]
