"""Movies of molecules that blink and bleach: when each of them emits, and the frames that a camera records."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validate import floating, image_shape, instance, non_negative, number, positive, whole
from .camera import Camera
from .distributions import Distribution, Uniform, draw, lowest
from .psf import AnyPSF, Emitters, present_mask
from .simulate import frames as expose_frames


@dataclass(frozen=True)
class Kinetics:
    """A molecule that switches at random between a bright and a dark state until it bleaches.

    on_time, off_time: mean durations of a bright and of a dark state, in frames; both are exponential.
    flashes: mean number of bright states before it bleaches; the number is geometric, at least 1.
    photons: of a whole frame in the bright state, one value for each molecule.
    Molecules start dark. Raises ValueError for a duration or number out of its range.
    """

    on_time: float = 2.0
    off_time: float = 500.0
    flashes: float = 4.0
    photons: Distribution = Uniform(500.0, 1500.0)  # noqa: RUF009  frozen, so it can be shared

    def __post_init__(self) -> None:
        number("on_time", self.on_time, positive)
        number("off_time", self.off_time, positive)
        if not number("flashes", self.flashes, positive) >= 1:
            raise ValueError(f"flashes must be at least 1, got {self.flashes}")
        non_negative("photons", lowest(self.photons))


@dataclass(frozen=True)
class Flashes:
    """The truth of a movie: one row for each molecule and frame in which it emits, in order of the frames.

    frame, molecule: (K,) int64. u, v: (K,) camera pixels. photons: (K,) expected in that frame.
    """

    frame: Tensor
    molecule: Tensor
    u: Tensor
    v: Tensor
    photons: Tensor

    def __len__(self) -> int:
        return len(self.frame)

    def emitters(self, start: int, stop: int) -> Emitters:
        """The emitters of frames start … stop − 1: (stop − start, E), E the largest number in one of them."""
        count = whole("stop", stop, start + 1) - start
        low, high = torch.searchsorted(self.frame, torch.tensor([start, stop], device=self.frame.device)).tolist()
        row = self.frame[low:high] - start
        counts = torch.bincount(row, minlength=count)
        place = torch.arange(high - low, device=row.device) - (counts.cumsum(0) - counts)[row]
        present = present_mask(counts)  # (stop − start, E)
        u, v, photons = (torch.zeros(present.shape, dtype=self.u.dtype, device=row.device) for _ in range(3))
        for padded, column in ((u, self.u), (v, self.v), (photons, self.photons)):
            padded[row, place] = column[low:high]
        return Emitters(u, v, photons, present)


def blink(u: Tensor, v: Tensor, kinetics: Kinetics, frames: int, generator: torch.Generator) -> Flashes:
    """Draw when each molecule shines, and how much of every frame.

    u, v: (M,) positions, camera pixels. frames: length of the movie. A molecule that is bright for a part of a
    frame gives that part of its photons. Raises ValueError where u and v are not of one length.
    """
    u, v = (floating(name, x, 1) for name, x in (("u", u), ("v", v)))
    instance("generator", generator, torch.Generator)
    if u.shape != v.shape:
        raise ValueError(f"v must have the length of u, {len(u)}, got {len(v)}")
    whole("frames", frames)
    many, device = len(u), generator.device
    # geometric by inversion: P(more than n bright states) = (1 − 1 / flashes)^n
    chance = torch.rand(many, generator=generator, device=device, dtype=torch.float64).clamp(min=1e-300)
    states = torch.ones_like(chance)
    if kinetics.flashes > 1:
        again = torch.log1p(torch.tensor(-1 / kinetics.flashes, dtype=torch.float64, device=device))
        states = 1 + (chance.log() / again).floor()
    brightness = draw(kinetics.photons, (many,), generator).double()
    clock = torch.zeros(many, dtype=torch.float64, device=device)
    parts = []
    number, alive = 0, torch.arange(many, device=device)
    while len(alive):  # all molecules at once: one dark and one bright state in each turn
        dark, bright = (
            -torch.empty(2, len(alive), dtype=torch.float64, device=device)
            .uniform_(generator=generator)
            .clamp(min=1e-300)
            .log()
        )
        start = clock[alive] + kinetics.off_time * dark
        stop = start + kinetics.on_time * bright
        clock[alive] = stop
        parts.append(_per_frame(alive, start, stop, frames))
        number += 1
        alive = alive[(stop < frames) & (states[alive] > number)]
    molecule, frame, share = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else _nothing(device)
    # a molecule may have two bright states in one frame: their shares add
    key, where = torch.unique(frame * max(many, 1) + molecule, return_inverse=True)  # in order of the frames
    total = torch.zeros(len(key), dtype=torch.float64, device=device).index_add_(0, where, share)
    frame, molecule = key // max(many, 1), key % max(many, 1)
    return Flashes(
        frame, molecule, u.to(device)[molecule], v.to(device)[molecule], (brightness[molecule] * total).to(u)
    )


def movie(
    flashes: Flashes,
    psf: AnyPSF,
    camera: Camera,
    shape: tuple[int, int],
    background: float,
    frames: int,
    generator: torch.Generator,
    block: int = 256,
) -> Iterator[Tensor]:
    """The raw frames of a movie in blocks of at most `block`: (n, H, W) ADU each.

    background: photons per pixel and frame. Memory does not grow with the movie's length.
    Raises ValueError as simulate.frames does.
    """
    image_shape("shape", shape)
    whole("block", block)
    for start in range(0, whole("frames", frames), block):
        stop = min(start + block, frames)
        yield expose_frames(flashes.emitters(start, stop), psf, camera, shape, background, generator)


def _per_frame(molecule: Tensor, start: Tensor, stop: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bright states [start, stop) cut into frames: molecule, frame, and the share of the frame, (K,) each."""
    seen = start < frames
    molecule, start, stop = molecule[seen], start[seen], stop[seen].clamp(max=frames)
    first, last = start.floor().long(), (stop.ceil().long() - 1).clamp(min=0)
    spans = (last - first + 1).clamp(min=1)
    which = torch.arange(len(spans), device=spans.device).repeat_interleave(spans)
    frame = first[which] + torch.arange(len(which), device=spans.device) - (spans.cumsum(0) - spans)[which]
    share = torch.minimum(stop[which], frame + 1.0) - torch.maximum(start[which], frame.double())
    return molecule[which], frame, share.clamp(min=0)


def _nothing(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return none, none, none.double()
