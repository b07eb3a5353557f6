"""Positions of molecules on structures like those of a cell: filaments, rings and clusters."""

import math

import torch
from torch import Tensor

from .._validate import choice, floating, image_shape, instance, non_negative
from .psf import present_mask

NAMES = ("filaments", "rings", "clusters")
# chosen to vary the training scenes; px are of 108 nm
BENDING = 0.05  # sd of a filament's change of direction, radians per pixel of its length
RING_RADIUS = (0.4, 1.2)  # px: 43 to 130 nm; the ring of a nuclear pore has 50 nm
CLUSTER_SD = (0.3, 1.5)  # px: 32 to 162 nm
THICKNESS = 0.1  # px, 11 nm: sd of a molecule's distance from its filament or ring


def draw(
    name: str, per_pixel: Tensor, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Emitters on structures that are drawn anew for every frame.

    name: "filaments": curves across the frame, about one for 12 px of its longer side; "rings": circles of random
        radius, one for 40 px²; "clusters": round Gaussian clouds, one for 60 px².
    per_pixel: (B,) mean number of emitters per pixel of the frame; all structures of a frame are equally likely.
    Returns u, v (B, E) float32 and present (B, E): a Poisson number in each frame. Some lie beyond the border, at
    most by the size of a structure, or by a pixel for a filament.
    """
    choice("name", name, NAMES)
    height, width = image_shape("shape", shape)
    per_pixel = floating("per_pixel", non_negative("per_pixel", per_pixel), 1)
    instance("generator", generator, torch.Generator)
    counts = torch.poisson(per_pixel * (height * width), generator=generator)
    present = present_mask(counts)  # (B, E)
    u, v = {"filaments": _filaments, "rings": _rings, "clusters": _clusters}[name](
        present.shape, (height, width), generator
    )
    return u, v, present


def _filaments(size: torch.Size, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    batch = size[0]
    height, width = shape
    many, length = max(1, round(max(shape) / 12)), round(1.5 * (height + width))
    start_u, start_v, turn = _rand((3, batch, many, 1), generator)
    # a walk in steps of a pixel whose direction diffuses: a worm-like chain
    bend = BENDING * _randn((batch, many, length), generator).cumsum(-1)
    direction = 2 * math.pi * turn + bend
    path_u = (start_u - 0.5) * width + direction.cos().cumsum(-1)
    path_v = (start_v - 0.5) * height + direction.sin().cumsum(-1)
    # the middle of the walk lies near the place that was drawn, inside the frame
    path_u = path_u - path_u[..., length // 2 :][..., :1] + start_u * width - 0.5
    path_v = path_v - path_v[..., length // 2 :][..., :1] + start_v * height - 0.5
    # emitters are spread evenly along the part of the walks inside the frame, where the middle of each walk is
    inside = ((path_u + 0.5 - width / 2).abs() < width / 2) & ((path_v + 0.5 - height / 2).abs() < height / 2)
    chance = inside[..., :-1].flatten(1).float()  # (B, filaments · steps)
    picked = torch.multinomial(chance, size[1], replacement=True, generator=generator)
    which, step = picked // (length - 1), picked % (length - 1)
    rows = torch.arange(batch, device=generator.device)[:, None]
    between = _rand(size, generator)
    u = torch.lerp(path_u[rows, which, step], path_u[rows, which, step + 1], between)
    v = torch.lerp(path_v[rows, which, step], path_v[rows, which, step + 1], between)
    return u + THICKNESS * _randn(size, generator), v + THICKNESS * _randn(size, generator)


def _rings(size: torch.Size, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    many = max(1, round(shape[0] * shape[1] / 40))
    u, v, radius = _centers(size, shape, many, RING_RADIUS, generator)
    angle = 2 * math.pi * _rand(size, generator)
    radius = radius + THICKNESS * _randn(size, generator)
    return u + radius * angle.cos(), v + radius * angle.sin()


def _clusters(size: torch.Size, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    many = max(1, round(shape[0] * shape[1] / 60))
    u, v, spread = _centers(size, shape, many, CLUSTER_SD, generator)
    return u + spread * _randn(size, generator), v + spread * _randn(size, generator)


def _centers(size, shape: tuple[int, int], many: int, extent: tuple[float, float], generator: torch.Generator):
    """Centre and extent of the structure that each emitter belongs to, (B, E) each."""
    batch = size[0]
    u, v, e = _rand((3, batch, many), generator)
    which = torch.randint(many, size, generator=generator, device=generator.device)
    u, v = u * shape[1] - 0.5, v * shape[0] - 0.5
    return u.gather(1, which), v.gather(1, which), (extent[0] + (extent[1] - extent[0]) * e).gather(1, which)


def _rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=generator.device)


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
