"""The expected image of point emitters: a Gaussian integrated over square pixels (Eq. 10 and 11), or another PSF."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .. import _validate as valid

EMITTER_PARAMETERS = ("u", "v", "photons", "sigma", "sigma_u", "sigma_v")


@runtime_checkable
class AnyPSF(Protocol):
    """What expected_photons and rate_gradient need of a PSF. `PSF` and `measured_psf.MeasuredPSF` have it.

    shape: (H, W) of the window; origin: (column, row) of its first pixel. A share is the part of an emitter's light
    that falls into a pixel. Nothing is checked.
    """

    def image(self, emitters: "Emitters", shape: tuple[int, int], origin: tuple[int, int]) -> Tensor:
        """Expected photo-electrons without background, Σ_n N_n share_n: (B, H, W)."""
        ...

    def shares(
        self, emitters: "Emitters", shape: tuple[int, int], origin: tuple[int, int]
    ) -> dict[str, Callable[[], Tensor]]:
        """ "photons": share_n; other names of EMITTER_PARAMETERS: its derivative. Functions that give (B, E, H, W)."""
        ...


@dataclass(frozen=True)
class PSF:
    """Gaussian point-spread function.

    sigma: standard deviation in camera pixels, along u (columns) and, if sigma_v is None, along v (rows)
        too; a float, or a tensor or array that broadcasts to (B, E): one value for each emitter.
    sigma_v: standard deviation along v, for an elliptic PSF.
    Raises ValueError unless both are finite and positive.
    """

    sigma: float | Tensor
    sigma_v: float | Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("sigma", "sigma_v") if self.sigma_v is not None else ("sigma",):
            value = valid.positive(name, getattr(self, name))
            object.__setattr__(self, name, value if isinstance(value, float | int) else valid.tensor(name, value))

    @property
    def sigmas(self) -> tuple[float | Tensor, float | Tensor]:
        """Standard deviations along (u, v)."""
        return self.sigma, self.sigma if self.sigma_v is None else self.sigma_v

    def image(self, emitters: "Emitters", shape: tuple[int, int], origin: tuple[int, int]) -> Tensor:
        """As AnyPSF.image."""
        along_u = pixel_integral(emitters.u, self.sigmas[0], shape[1], origin[0])  # (B, E, W)
        along_v = pixel_integral(emitters.v, self.sigmas[1], shape[0], origin[1])  # (B, E, H)
        return torch.einsum("be,beh,bew->bhw", emitters.photons * emitters.mask, along_v, along_u)

    def shares(
        self, emitters: "Emitters", shape: tuple[int, int], origin: tuple[int, int]
    ) -> dict[str, Callable[[], Tensor]]:
        """As AnyPSF.shares: Eq. 11 and its derivatives in closed form."""
        places = (emitters.u, self.sigmas[0], shape[1], origin[0]), (emitters.v, self.sigmas[1], shape[0], origin[1])
        eu, ev = (pixel_integral(*place) for place in places)  # (B, E, W) and (B, E, H)
        (du, su), (dv, sv) = (pixel_integral_gradient(*place) for place in places)
        return {
            "u": lambda: _outer(ev, du),
            "v": lambda: _outer(dv, eu),
            "photons": lambda: _outer(ev, eu),
            "sigma_u": lambda: _outer(ev, su),
            "sigma_v": lambda: _outer(sv, eu),
            "sigma": lambda: _outer(ev, su) + _outer(sv, eu),
        }


@dataclass(frozen=True)
class Emitters:
    """A batch of B frames with up to E emitters each.

    u, v: (B, E) position in camera pixels, u along columns, v along rows; (0, 0) is the centre of the first
        pixel. A position outside the frame is allowed: its light still reaches the frame's edge.
    photons: (B, E) expected photo-electrons of each emitter, summed over an infinite sensor.
    present: (B, E) bool; False marks padding. None: all are present.
    Tensors or arrays. u is float32 or float64 (whole numbers become float64), and v and photons take its type.
    Raises ValueError where shapes differ, a number is not finite, or photons is negative.
    """

    u: Tensor
    v: Tensor
    photons: Tensor
    present: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("u", "v", "photons"):
            value = valid.tensor(name, getattr(self, name), 2)
            value = valid.floating(name, value if value.is_floating_point() else value.double())
            object.__setattr__(self, name, value if name == "u" else value.to(self.u))
            if value.shape != self.u.shape:
                raise ValueError(f"{name} must have the shape of u, {tuple(self.u.shape)}, got {tuple(value.shape)}")
        valid.finite("u", self.u)
        valid.finite("v", self.v)
        valid.non_negative("photons", self.photons)
        given = torch.ones_like(self.u, dtype=torch.bool) if self.present is None else self.present
        present = valid.tensor("present", given, mask=True).to(self.u.device)
        object.__setattr__(self, "present", present)
        if present.shape != self.u.shape or present.dtype != torch.bool:
            raise ValueError(
                f"present must be bool of shape {tuple(self.u.shape)}, got {present.dtype} of {tuple(present.shape)}"
            )

    @classmethod
    def single(cls, u: float, v: float, photons: float, dtype: torch.dtype = torch.float64) -> "Emitters":
        """One frame with one emitter, from three numbers."""
        return cls(*(torch.tensor([[x]], dtype=dtype) for x in (u, v, photons)))

    def __len__(self) -> int:
        return self.u.shape[0]

    @property
    def mask(self) -> Tensor:
        """`present` as a tensor: after construction it is never None."""
        assert self.present is not None
        return self.present

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Emitters":
        """The same emitters on another device or in another floating-point type."""
        device = device if device is None else valid.device_here("device", device)
        u, v, photons = (x.to(device=device, dtype=dtype) for x in (self.u, self.v, self.photons))
        return replace(self, u=u, v=v, photons=photons, present=self.mask.to(device=device))


def present_mask(counts: Tensor, most: int | None = None) -> Tensor:
    """Which places of a padded batch hold an emitter, when frame b has counts[b] (B,): (B, E) bool.

    most: E, the largest possible count; None: the largest of counts. E is at least 1.
    """
    size = max(int(counts.max()) if most is None else most, 1)
    return torch.arange(size, device=counts.device) < counts[:, None]


def pixel_integral(position: Tensor, sigma: float | Tensor, size: int, start: int = 0) -> Tensor:
    """Share of a 1-D Gaussian that falls into each pixel of a row, Eq. 11 (upper limit of erf: z).

    position: (...) centre in pixels; sigma: float or broadcastable to (...), pixels.
    size: number of pixels; start: index of the first one. Pixel k covers [k − 1/2, k + 1/2].
    Returns (..., size), in [0, 1], with full relative accuracy in both tails.
    Raises ValueError where sigma is not positive or size is not a whole number ≥ 1.
    """
    position = valid.floating("position", position)
    lower, upper = _edges(position, valid.positive("sigma", sigma), size, start)
    right = lower + upper > 0  # mirror to the left of the emitter: there erfc keeps the tail's digits
    lower, upper = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    return 0.5 * (torch.special.erfc(-upper) - torch.special.erfc(-lower))  # (..., size)


def pixel_integral_gradient(
    position: Tensor, sigma: float | Tensor, size: int, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Derivatives of Eq. 11 with respect to position and sigma, in closed form.

    Arguments as pixel_integral. Returns two tensors (..., size), per pixel.
    """
    position = valid.floating("position", position)
    lower, upper = _edges(position, valid.positive("sigma", sigma), size, start)
    width = _column(sigma, position)
    norm = 1 / (math.sqrt(2 * math.pi) * width)
    at_lower, at_upper = norm * torch.exp(-(lower**2)), norm * torch.exp(-(upper**2))  # density at the edges
    by_position = at_lower - at_upper
    by_sigma = math.sqrt(2) * (lower * at_lower - upper * at_upper)
    return by_position, by_sigma


@valid.enough_memory("shape")
def expected_photons(
    emitters: Emitters,
    psf: AnyPSF,
    shape: tuple[int, int],
    background: float | Tensor = 0.0,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """Expected photo-electrons ω of every pixel, Eq. 10 with its indices corrected (erratum 5).

    ω_k = b_k + Σ_n N_n ∫_k O(u − u_n) du ∫_k O(v − v_n) dv.

    shape: (H, W) of the window; origin: (column, row) of its first pixel.
    background: photo-electrons per pixel: a float, (B,), (H, W) or (B, H, W).
    Returns (B, H, W), in the type and on the device of emitters.u.
    Raises ValueError where the background is negative or has another shape.
    """
    height, width = valid.image_shape("shape", shape)
    valid.instance("psf", psf, AnyPSF)
    rate = psf.image(valid.instance("emitters", emitters, Emitters), (height, width), origin)
    rate = rate + background_image(background, (len(emitters), height, width), rate)  # (B, H, W)
    return rate.clamp(min=0)  # a measured PSF has noise, which may be negative where it is dark


@valid.enough_memory("shape")
def rate_gradient(
    emitters: Emitters,
    psf: AnyPSF,
    shape: tuple[int, int],
    parameters: Sequence[str] = ("u", "v", "photons", "background"),
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """∂ω/∂θ in closed form for every parameter of every emitter, and for one shared background.

    parameters: from "u", "v", "photons", "sigma" (an isotropic PSF), "sigma_u", "sigma_v" and "background".
        "background" comes last. Each of the other names stands for one parameter of every emitter.
    Returns (B, P, H, W), P = E · (parameters of an emitter) + 1 if "background" is among them; emitter by
    emitter: (u_1, v_1, N_1, u_2, …, b). Rows of emitters that are not present are zero.
    Raises ValueError for an unknown, repeated or misplaced name, or one that the PSF does not have.
    """
    height, width = valid.image_shape("shape", shape)
    own = _emitter_parameters(parameters)
    valid.instance("emitters", emitters, Emitters)
    shares = valid.instance("psf", psf, AnyPSF).shares(emitters, (height, width), origin)
    for name in own:
        valid.choice(f"parameters of a {type(psf).__name__}", name, (*shares, "background"))
    present = emitters.mask[..., None, None]  # (B, E, 1, 1)
    scale = emitters.photons[..., None, None] * present
    batch = len(emitters)
    rows = scale.new_zeros(batch, 0, height, width)
    if own:
        images = [(present if name == "photons" else scale) * shares[name]() for name in own]  # (B, E, H, W)
        rows = torch.stack(images, dim=2).reshape(batch, -1, height, width)
    if "background" in parameters:
        rows = torch.cat([rows, rows.new_ones(batch, 1, height, width)], dim=1)
    return rows  # (B, P, H, W)


def background_image(background: float | Tensor, shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """A background given as a float, (B,), (H, W) or (B, H, W) as a tensor that broadcasts to shape (B, H, W)."""
    image = valid.tensor("background", valid.non_negative("background", background), 0, 1, 2, 3).to(like)
    fits = {0: (), 1: shape[:1], 2: shape[1:], 3: shape}[image.ndim]
    if any(n not in (1, m) for n, m in zip(image.shape, fits, strict=True)):
        raise ValueError(
            f"background must be a number or have shape (B,), (H, W) or (B, H, W) with (B, H, W) = {shape}, "
            f"got shape {tuple(image.shape)}"
        )
    return image[:, None, None] if image.ndim == 1 else image


def _emitter_parameters(parameters: Sequence[str]) -> list[str]:
    names = [valid.choice("parameters", name, (*EMITTER_PARAMETERS, "background")) for name in parameters]
    if len(set(names)) != len(names) or ("background" in names and names[-1] != "background") or not names:
        raise ValueError(f"parameters must name each parameter once, with 'background' last, got {names}")
    if "sigma" in names and ("sigma_u" in names or "sigma_v" in names):
        raise ValueError(f"parameters must hold either 'sigma' or 'sigma_u' and 'sigma_v', got {names}")
    return [name for name in names if name != "background"]


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """Products of a function of the row (..., H) and one of the column (..., W): (..., H, W)."""
    return rows[..., :, None] * columns[..., None, :]


def _edges(position: Tensor, sigma: float | Tensor, size: int, start: int) -> tuple[Tensor, Tensor]:
    """Distances of the pixels' lower and upper edges from the emitter, in units of √2 sigma."""
    pixels = torch.arange(start, start + valid.whole("size", size), dtype=position.dtype, device=position.device)
    distance = pixels - position[..., None]  # (..., size)
    scale = math.sqrt(2) * _column(sigma, position)
    return (distance - 0.5) / scale, (distance + 0.5) / scale


def _column(sigma: float | Tensor, position: Tensor) -> Tensor:
    width = valid.tensor("sigma", sigma).to(position)
    try:
        return width.expand(position.shape)[..., None]
    except RuntimeError as error:
        shapes = f"{tuple(position.shape)}, got {tuple(width.shape)}"
        raise ValueError(f"sigma must be a number or broadcast to the positions' shape {shapes}") from error
