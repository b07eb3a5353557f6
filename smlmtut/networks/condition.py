"""What is known of y before a network draws it: the emitters that fit the frame best, and how sure the fit is.

The peaks of ŷ are fitted to the frame together (`estimation.joint`). The KDE of the fit is the centre of y, and the
curvature of its likelihood says how far y may be from it. Nothing of this is trained.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._validate import rank
from ..estimation.joint import JointFit, Limits, checked_limits, fit_emitters
from ..imaging.distributions import highest, lowest
from ..imaging.first_guess import peak_emitters
from ..imaging.kde import kde_image, to_super_resolved
from ..imaging.psf import PSF, Emitters, expected_photons
from ..imaging.scenes import Scene
from ..imaging.windows import Window, windows
from .inputs import input_electrons

FACTOR = 4  # super-resolved pixels per camera pixel, along each axis
LOWEST_PEAK, STEPS = 0.25, 12  # of ŷ that is fitted; of the fit, at most
# px, sides of the windows in which larger frames are fitted, that of the training's frames, and what a window sees
# beyond its own part; px beyond a window where emitters count too; windows that are fitted together
SIDE, MARGIN, BEYOND, AT_ONCE = 16, 3, 2.0, 256
# Smallest scale, about the sd of y in the halo of a lone molecule. Where the fit knows of nothing, a molecule that it
# does not know has z of up to 1 / FLOOR.
FLOOR = 0.02
SCALE_UNIT = 0.1  # of a kernel's peak, about the sd of y beside an emitter: the unit of scales that a network sees
CHANNELS = 9  # of Condition.inputs
FARTHEST = 0.5  # px: of the errors by which a molecule is moved. Where they are larger the fit knows nothing of it
SURE = 10.0  # N over its sd that gives a kernel of height 1

NARROW = 0.02  # least width of a range over its upper end: a quantity that is fixed gets 1 % to either side


@dataclass(frozen=True)
class FitRange:
    """Limits (low, high) of what the fit may find; it starts in their middle. The defaults are the reference scene's.

    photons: photo-electrons of an emitter. background: photo-electrons per pixel. sigma: px.
    Raises ValueError, and TypeError for what are not two numbers, where limits do not increase from 0 on.
    """

    photons: Limits = (100.0, 2000.0)
    background: Limits = (0.0, 20.0)
    sigma: Limits = (0.92, 1.08)

    def __post_init__(self) -> None:
        for name, limits in asdict(self).items():
            low, high = map(float, limits)  # JSON has lists
            object.__setattr__(self, name, checked_limits(name, (low, high)))

    @classmethod
    def of(cls, scene: Scene) -> "FitRange":
        """The range of a scene, as its camera sees it."""
        found, efficiency = {}, scene.camera.quantum_efficiency
        for name, scale in (("photons", efficiency), ("background", efficiency), ("sigma", 1.0)):
            quantity = getattr(scene, name)
            low, high = scale * lowest(quantity), scale * max(highest(quantity), 1e-3)
            if high - low < NARROW * high:
                low, high = low - NARROW / 2 * high, high + NARROW / 2 * high
            found[name] = (max(0.0, low), high)
        return cls(**found)

    @classmethod
    def read(cls, fit: "FitRange | dict[str, Any] | None") -> "FitRange":
        """The range that an argument of a network means: itself, its fields as JSON has them, or None, the defaults."""
        return fit if isinstance(fit, FitRange) else cls(**(fit or {}))

    def plain(self) -> dict[str, list[float]]:
        """Its fields as JSON has them."""
        return {name: list(limits) for name, limits in asdict(self).items()}


REFERENCE = FitRange()
Fit = FitRange | dict[str, Any] | None  # an argument of networks, see FitRange.read


class Condition(NamedTuple):
    """What a network knows of B frames. centre, scale: of y = centre + scale · z, (B, 1, fH, fW) each.

    inputs: images of all that is known, (B, C, fH, fW).
    """

    centre: Tensor
    scale: Tensor
    inputs: Tensor


class FrameFit:
    """The emitters that fit B frames best, searched from the peaks of ŷ, window by window.

    estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `network_input`. A large frame is fitted in windows of SIDE px
    that overlap, with a background of their own, and each peak counts in the window whose own part it lies in.
    within: the limits of what it may find.
    Raises ValueError for a frame of another shape.
    """

    @torch.no_grad()
    def __init__(self, estimate: Tensor, frame: Tensor, within: FitRange = REFERENCE) -> None:
        rows, channels, *sides = rank("frame", frame, 4).shape
        wanted = tuple(rank("estimate", estimate, 4).shape)
        if channels != 2 or (rows, 1, *(FACTOR * n for n in sides)) != wanted:
            raise ValueError(
                f"frame must have 2 channels and a quarter of the sides of the estimate {wanted}, "
                f"got {tuple(frame.shape)}"
            )
        self.shape, self.device = wanted, estimate.device
        if self.device.type == "mps":  # which lacks float64
            estimate, frame = estimate.cpu(), frame.cpu()
        height, width = sides
        places = windows((height, width), (min(SIDE, height), min(SIDE, width)), MARGIN)
        at_once = max(1, AT_ONCE // rows)
        self.parts: list[tuple[list[Window], JointFit, Tensor, Tensor]] = []
        with torch.autocast(estimate.device.type, enabled=False):
            peaks = peak_emitters(estimate, FACTOR, threshold=LOWEST_PEAK, photons=sum(within.photons) / 2)
            for some in (places[i : i + at_once] for i in range(0, len(places), at_once)):
                x = torch.cat([frame[:, :, *place.seen()] for place in some])
                start, own = _seen_from(some, peaks, (height, width))
                electrons, read_variance = input_electrons(x)
                fit = fit_emitters(electrons, start, read_variance, **asdict(within), max_iterations=STEPS)
                self.parts.append((some, fit, own, x))

    def kde(self) -> Tensor:
        """The KDE of the fit, (B, 1, fH, fW)."""
        return self._images(lambda fit, own, x: kde_image(replace(fit.emitters, present=own), _sides(x), FACTOR))

    def sd(self) -> Tensor:
        """Its sd to first order in the errors of the positions, whose covariance is that of `JointFit`."""
        return self._images(_kde_variance).sqrt()

    def moved(self, samples: int, generator: torch.Generator) -> Tensor:
        """KDEs of the fit's emitters, moved by draws of their errors: (B, S, fH, fW).

        For a lone molecule nearly draws of the posterior. No emitter has errors with an sd above FARTHEST.
        """

        def moved(fit: JointFit, own: Tensor, x: Tensor) -> Tensor:
            u, v = (place.flatten(0, 1) for place in fit.draw(samples, generator, FARTHEST))
            there = own[:, None].expand(-1, samples, -1).flatten(0, 1)
            images = kde_image(Emitters(u, v, torch.ones_like(u), there), _sides(x), FACTOR)
            return images[:, 0].unflatten(0, (-1, samples))

        return self._images(moved, samples)

    def evidence(self) -> Tensor:
        """How far the fit is to be believed, in two images, (B, 2, fH, fW).

        Kernels at its emitters with the height N / (SURE sd of N): is that one there? And what it leaves of the frame
        in units of the noise, as asinh, upsampled: is there another one?
        """

        def known(fit: JointFit, own: Tensor, x: Tensor) -> Tensor:
            sd = fit.covariance().diagonal(dim1=1, dim2=2)[:, 2:-2:3].sqrt().to(fit.background)
            weights = fit.emitters.photons / (SURE * sd)
            return kde_image(replace(fit.emitters, present=own), _sides(x), FACTOR, weights=weights)

        rest = self.parts[0][3].new_zeros(self.shape[0], 1, *(n // FACTOR for n in self.shape[2:]))
        for places, fit, _, x in self.parts:
            electrons, variance = input_electrons(x)
            with torch.autocast(self.device.type, enabled=False):
                rate = expected_photons(fit.emitters, PSF(fit.sigma[:, None]), _sides(x), fit.background)
            left = ((electrons - rate) / (rate + variance).clamp(min=1).sqrt()).asinh()
            for place, image in zip(places, left[:, None].split(self.shape[0]), strict=True):
                rest[:, :, *place.own()] = image[:, :, *place.within()]
        rest = F.interpolate(rest, scale_factor=float(FACTOR), mode="bicubic")
        return torch.cat([self._images(known), rest.to(self.device)], 1)

    def _images(self, of: Callable[[JointFit, Tensor, Tensor], Tensor], channels: int = 1) -> Tensor:
        """The sum over the windows of an image of their own emitters, (B, channels, fH, fW)."""
        out = self.parts[0][3].new_zeros(self.shape[0], channels, *self.shape[2:])
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for places, fit, own, x in self.parts:
                for place, image in zip(places, of(fit, own, x).split(self.shape[0]), strict=True):
                    out[:, :, *place.seen(FACTOR)] += image
        return out.to(self.device)


def fitted_kde(estimate: Tensor, frame: Tensor, within: FitRange = REFERENCE) -> tuple[Tensor, Tensor]:
    """KDE and sd of the `FrameFit` of these frames, (B, 1, fH, fW) each."""
    fit = FrameFit(estimate, frame, within)
    return fit.kde(), fit.sd()


def condition_on(estimate: Tensor, frame: Tensor, fit: FrameFit | None = None) -> Condition:
    """What [x, ŷ] tell: the fit's KDE as the centre, and scale² = FLOOR² + sd² + (centre − ŷ)².

    fit: that of these frames; None, one within REFERENCE. Where it is wrong, ŷ, which is right on average, tells by how
    much.
    estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `network_input`. The inputs are ŷ; √ŷ, where a faint rim is
    visible; signal and read noise upsampled; ones, by which a convolution sees the border; centre; scale / SCALE_UNIT;
    the fit's evidence.
    Raises ValueError for a frame of another shape.
    """
    fit = fit or FrameFit(estimate, frame)
    with torch.no_grad():
        centre = fit.kde()
        scale = (FLOOR**2 + fit.sd().square() + (centre - estimate).square()).sqrt()
        fine = F.interpolate(frame, scale_factor=float(FACTOR), mode="bicubic")  # (B, 2, fH, fW)
        root = estimate.clamp(min=0).sqrt()
        images = [estimate, root, fine, torch.ones_like(estimate), centre, scale / SCALE_UNIT, fit.evidence()]
        return Condition(centre, scale, torch.cat(images, 1))


def _sides(frame: Tensor) -> tuple[int, int]:
    return frame.shape[-2], frame.shape[-1]


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
