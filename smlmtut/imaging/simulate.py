"""Simple scenes and their frames, in batches, drawn and exposed on the generator's device."""

import math

import torch
from torch import Tensor

from .._validate import finite, image_shape, instance, non_negative, number, positive, shown, tensor, whole
from .camera import Camera, expose
from .psf import AnyPSF, Emitters, expected_photons, present_mask

Range = float | tuple[float, float]
Count = int | tuple[int, int]


def frames(
    emitters: Emitters,
    psf: AnyPSF,
    camera: Camera,
    shape: tuple[int, int],
    background: float | Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Raw frames of a batch of scenes: Eq. 10 for the expected photons, then the camera of Eq. 1.

    emitters: photons is what reaches the sensor; with a quantum efficiency below 1 fewer become electrons.
    background: photons per pixel: a float, (B,), (H, W) or (B, H, W).
    Returns (B, H, W) ADU, in the type and on the device of emitters.u, which must be the generator's.
    Raises ValueError where the devices differ, and what expected_photons and expose raise.
    """
    instance("generator", generator, torch.Generator)
    if instance("emitters", emitters, Emitters).u.device.type != generator.device.type:
        raise ValueError(f"generator must be on the emitters' device {emitters.u.device}, got {generator.device}")
    return expose(expected_photons(emitters, psf, shape, background), camera, generator)


def disc_positions(
    shape: tuple[int, ...],
    radius: float,
    center: tuple[float, float],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """u and v of points spread evenly over a disc, in the given shape and the unit of radius and center (u, v)."""
    instance("generator", generator, torch.Generator)
    # the area inside r grows as r², so r / radius is the square root of a uniform number
    r = radius * torch.rand(shape, generator=generator, dtype=dtype, device=generator.device).sqrt()
    angle = 2 * math.pi * torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    return center[0] + r * angle.cos(), center[1] + r * angle.sin()


def uniform_on_disc(
    batch: int,
    count: Count,
    radius: float,
    center: tuple[float, float],
    photons: Range,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> Emitters:
    """Emitters spread evenly over a disc, as the paper draws its training scenes.

    count: emitters in every frame, or (fewest, most), both included, drawn anew for each frame.
    radius, center (u, v): camera pixels. photons: a number, or (low, high) to draw from evenly.
    Returns B frames of E = the largest possible count; present marks which of them are there.
    Raises ValueError for a negative count, a radius that is not positive, or a range whose ends are swapped.
    """
    whole("batch", batch)
    number("radius", radius, positive)
    center = _two_numbers("center", center)
    present = _counted(batch, count, generator)  # (B, E)
    u, v = disc_positions(present.shape, radius, center, generator, dtype)
    return Emitters(u, v, _photons(photons, present.shape, generator, dtype), present)


def uniform_in_frame(
    batch: int,
    shape: tuple[int, int],
    photons: Range,
    generator: torch.Generator,
    count: Count | None = None,
    density: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Emitters:
    """Emitters spread evenly over the frame, [−1/2, W − 1/2] × [−1/2, H − 1/2].

    count: as in uniform_on_disc; or density: emitters per camera pixel, so that each frame holds a Poisson
        number of them with mean density · H · W. Exactly one of the two.
    photons: a number, or (low, high) to draw from evenly.
    Returns B frames of E = the largest count (at least 1); present marks which of them are there.
    Raises ValueError where both or neither are given, or one is negative.
    """
    whole("batch", batch)
    instance("generator", generator, torch.Generator)
    height, width = image_shape("shape", shape)
    if count is not None and density is None:
        present = _counted(batch, count, generator)
    elif density is not None and count is None:
        mean = torch.full((batch,), float(number("density", density, non_negative)) * height * width)
        counts = torch.poisson(mean.double().to(generator.device), generator=generator).long()
        present = present_mask(counts)
    else:
        raise ValueError(f"count or density must be given, and not both, got {count} and {density}")
    u = _uniform("u", (-0.5, width - 0.5), present.shape, generator, dtype)
    v = _uniform("v", (-0.5, height - 0.5), present.shape, generator, dtype)
    return Emitters(u, v, _photons(photons, present.shape, generator, dtype), present)


def emitter_pair(
    separation: float | Tensor,
    center: tuple[float, float],
    photons: float,
    angle: float | Tensor = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Emitters:
    """Two equal emitters about a centre, at −separation / 2 and +separation / 2 along a direction.

    separation: camera pixels, a float or (B,); angle: radians from the u axis towards v, a float or (B,).
    Returns (B, 2) emitters.
    Raises ValueError for a negative separation or shapes that do not broadcast to (B,).
    """
    half = tensor("separation", non_negative("separation", separation), 0, 1).to(dtype) / 2
    turn = tensor("angle", finite("angle", angle), 0, 1).to(half)
    if half.ndim and turn.ndim and half.shape != turn.shape:
        raise ValueError(f"angle must have the length of separation, {len(half)}, got {len(turn)}")
    u0, v0 = _two_numbers("center", center)
    sign = torch.tensor([-1.0, 1.0], dtype=dtype, device=half.device)
    u = u0 + sign * torch.atleast_1d(half * turn.cos())[:, None]  # (B, 2)
    v = v0 + sign * torch.atleast_1d(half * turn.sin())[:, None]
    return Emitters(u, v, torch.full_like(u, float(number("photons", photons, non_negative))))


def flat_fields(
    levels: Tensor | list[float],
    repeats: int,
    camera: Camera,
    shape: tuple[int, int],
    generator: torch.Generator,
) -> Tensor:
    """Evenly lit frames for a photon-transfer calibration.

    levels: (L,) expected photons per pixel; 0 gives dark frames. repeats: frames at each level.
    Returns (L, repeats, H, W) ADU, float64, on the generator's device.
    Raises ValueError where a level is negative, or shape is not that of the camera's maps.
    """
    device = instance("generator", generator, torch.Generator).device
    light = tensor("levels", non_negative("levels", levels), 1).to(device, torch.float64)
    height, width = image_shape("shape", shape)
    rate = light[:, None, None, None].expand(-1, whole("repeats", repeats), height, width)
    return expose(rate, camera, generator)


def _counted(batch: int, count: Count, generator: torch.Generator) -> Tensor:
    """Bool (B, E): the first `count` of each row."""
    instance("generator", generator, torch.Generator)
    low, high = count if isinstance(count, tuple) and len(count) == 2 else (count, count)
    low, high = whole("count", low, 0), whole("count", high, 0)
    if low > high:
        raise ValueError(f"count must be (fewest, most), got {count}")
    counts = torch.randint(low, high + 1, (batch,), generator=generator, device=generator.device)
    return present_mask(counts, high)


def _photons(photons: Range, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    ends = photons if isinstance(photons, tuple) and len(photons) == 2 else (photons, photons)
    for end in ends:
        number("photons", end, non_negative)
    return _uniform("photons", (float(ends[0]), float(ends[1])), shape, generator, dtype)


def _uniform(
    name: str, ends: tuple[float, float], shape: torch.Size, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    low, high = ends
    if low > high:
        raise ValueError(f"{name} must be (low, high), got {ends}")
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)


def _two_numbers(name: str, value: tuple[float, float]) -> tuple[float, float]:
    try:
        u, v = value
    except (TypeError, ValueError) as error:  # no sequence, or not of two
        raise ValueError(f"{name} must be two numbers (u, v), got {shown(value)}") from error
    return float(number(name, u)), float(number(name, v))
