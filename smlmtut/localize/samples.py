"""Samples of the KDEs of a movie, drawn region by region.

A region is a rectangle of camera pixels around molecules that the dark separates from all others, and it is drawn in
one go: no draw is put together from parts that do not know of each other. Where molecules are everywhere, it is the
frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .._memory import fitting
from .._random import step_generator
from .._validate import choice, finite, non_negative, positive, whole
from ..imaging.camera import Camera, to_photoelectrons
from ..imaging.kde import redrawn
from ..imaging.windows import Span, Window
from ..networks import pretrained
from ..networks.cddpm import CALLS, ConditionalDiffusion, frame_input, sample_kde
from ..networks.deepstorm import DeepSTORM
from ..networks.engression import Engression
from ..networks.precision import AUTOCAST, chosen_precision
from .frames import Frames, checked_stop, frame_blocks, movie_shape
from .movie import WINDOW, frame_estimator

# A function that draws samples of the KDE y given ŷ, or given ŷ and the frame:
# photo-electrons (B, 1, H, W), read variance (B, 1, H, W), ŷ (B, 1, f·H, f·W), S, generator -> (B, S, f·H, f·W).
# All tensors are on the generator's device.
KDESampler = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], Tensor]

SAMPLER = "engression-2d"  # the shipped network that draws where no other is named
SAMPLERS: dict[str, Any] = {"ConditionalDiffusion": ConditionalDiffusion, "Engression": Engression}
ATTENDED = 64  # px, the largest side for networks with attention, whose cost grows as the square of the area
REGION = 16  # px, the smallest side of a region: that of the frames on which the networks were trained
VALUES_AT_ONCE = {"cpu": 1 << 22, "other": 1 << 25}  # pixels of all samples that are asked for at once
# super-resolved pixels that a network sees at once: 32 patches of 64 × 64 stay in a CPU's cache
DRAWN_AT_ONCE = {"cpu": 1 << 17, "other": 1 << 21}
DRAWN_BYTES = 480  # that one of them takes. VALUES_AT_ONCE must not follow the memory: it decides what is drawn


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn, and what counts as an emitter in them. Lengths are in camera pixels.

    samples: S of each region. seed: the same seed gives the same samples.
    halo: what a region has beyond the pixels in which ŷ is above `dark`, at least.
    dark: outside the regions ŷ is nowhere above this, and nothing is sampled; in an empty frame it rarely is.
    peak: lowest height of an emitter in a sample; its kernel has peak 1.
    radius: largest distance at which a localization and an emitter of a sample count as the same.
    Raises ValueError for a value out of its range.
    """

    samples: int = 32
    seed: int = 0
    halo: int = 4  # holds the light of a spot, and what surrounds it
    dark: float = 0.01
    peak: float = 0.5
    radius: float = 1.0

    def __post_init__(self) -> None:
        whole("samples", self.samples, 2)
        whole("seed", self.seed, 0)
        whole("halo", self.halo)  # the position of a peak can lie across the border from its brightest pixel
        non_negative("dark", self.dark)
        non_negative("peak", self.peak)
        positive("radius", self.radius)


Job = tuple[int, Window]  # a region of a frame; the frame is counted from the start of its block


class RegionSampler:
    """Draws samples in the regions of a movie's frames; shape: (H, W) of a frame."""

    def __init__(
        self,
        camera: Camera,
        network: DeepSTORM,
        sampler: KDESampler,
        shape: tuple[int, int],
        settings: SamplingSettings,
    ) -> None:
        self.camera, self.sampler, self.shape, self.settings = camera, sampler, shape, settings
        self.factor = network.factor

    def draw(
        self, adu: Tensor, y: Tensor, first: int, dark: float | None, answered: Tensor | None = None
    ) -> Iterator[tuple[list[Job], Tensor]]:
        """Samples in all regions of a block of frames, some at a time.

        adu: (n, H, W); y: their ŷ (n, 1, f·H, f·W). first: index of the first frame, which with the seed decides the
            random numbers. dark: of the settings; None: whole frames are sampled, also dark ones.
        answered: None, or (n, f·H, f·W) bool, where no samples are needed, whatever ŷ is.
        Yields regions of one size, and their samples (b, s, f·h, f·w): all that were asked for, or of regions that are
        too large for that a part, and then the others.
        Raises ValueError where the sampler returns another shape, or values that are not finite.
        """
        jobs = self._jobs(y[:, 0], dark, answered)
        images = self._inputs(adu, y)
        most = VALUES_AT_ONCE["cpu" if y.device.type == "cpu" else "other"]
        for number, size in enumerate(sorted({window.size for _, window in jobs})):
            alike = [job for job in jobs if job[1].size == size]
            values = self.factor**2 * size[0] * size[1]  # of one sample
            each = min(self.settings.samples, max(1, most // values))
            at_once = max(1, most // (each * values))
            for batch in range(0, len(alike), at_once):
                some = alike[batch : batch + at_once]
                seen = [
                    torch.stack([x[i][:, *window.seen(scale)] for i, window in some])
                    for x, scale in zip(images, (1, 1, self.factor), strict=True)
                ]
                generator = step_generator(self.settings.seed, first, (number << 16) + batch, y.device)
                for start in range(0, self.settings.samples, each):
                    yield some, self._samples(seen, min(each, self.settings.samples - start), generator)

    def _jobs(self, y: Tensor, dark: float | None, answered: Tensor | None) -> list[Job]:
        """The regions of frames with ŷ (n, f·H, f·W)."""
        height, width = self.shape
        if dark is None:
            frame = Window((0, height), (0, width), (0, height), (0, width))
            return [(i, frame) for i in range(len(y))]
        lit = y > dark
        if answered is not None:
            lit &= ~answered.to(lit.device)
        coarse = lit.unflatten(1, (height, -1)).unflatten(3, (width, -1)).any(4).any(2).cpu().numpy()  # (n, H, W)
        return [
            (i, Window(rows, columns, rows, columns))
            for i, frame in enumerate(coarse)
            for rows, columns in regions(frame, self.settings.halo)
        ]

    def _samples(self, seen: list[Tensor], many: int, generator: torch.Generator) -> Tensor:
        electrons, variance, estimate = seen
        samples = self.sampler(electrons, variance, estimate, many, generator)
        wanted = (len(estimate), many, *estimate.shape[2:])
        if tuple(samples.shape) != wanted:
            raise ValueError(f"sampler must return shape {wanted}, got {tuple(samples.shape)}")
        return finite("samples", samples.detach().float())

    def _inputs(self, adu: Tensor, y: Tensor) -> list[Tensor]:
        """Photo-electrons, read variance and ŷ of whole frames."""
        electrons = to_photoelectrons(adu, self.camera).float()
        variance = torch.as_tensor(self.camera.read_variance_electrons, dtype=torch.float32).expand(electrons.shape)
        return [*(x[:, None].to(y.device) for x in (electrons, variance)), y]


def regions(lit: np.ndarray, halo: int, least: int = REGION) -> list[tuple[Span, Span]]:
    """Rectangles (rows, columns) that do not overlap and hold all pixels of lit (H, W), with `halo` more on each side.

    None has a side below `least`, where the frame is that large. Rectangles that overlap become one.
    """
    boxes = ndimage.find_objects(ndimage.label(lit, np.ones((3, 3)))[0])  # type: ignore[index]
    wide = [tuple(_widened(s, halo, least, n) for s, n in zip(box, lit.shape, strict=True)) for box in boxes]
    found = merged(wide, lit.shape)
    return [((rows.start, rows.stop), (columns.start, columns.stop)) for rows, columns in found]


def merged(boxes: list[tuple[slice, ...]], shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """Rectangles of a frame (H, W) until none overlaps or shares a side with another: those that do become one."""
    before = -1
    while len(boxes) != before:
        before, covered = len(boxes), np.zeros(shape, dtype=bool)
        for box in boxes:
            covered[box] = True
        boxes = ndimage.find_objects(ndimage.label(covered)[0])  # type: ignore[index]
    return boxes


def _widened(span: slice, halo: int, least: int, size: int) -> slice:
    """A span with a halo, at least so long and within 0 … size."""
    length = min(max(least, span.stop - span.start + 2 * halo), size)
    start = min(max(0, (span.start + span.stop - length) // 2), size - length)
    return slice(start, start + length)


def sample_frames(
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    sampler: KDESampler,
    settings: SamplingSettings | None = None,
    start: int = 0,
    stop: int | None = None,
    precision: str = "no",
) -> Iterator[Tensor]:
    """Samples of the whole KDE of frames `start` … `stop` − 1, frame by frame: (S, f·H, f·W) float32, on the CPU.

    Every frame is drawn in one go, dark or not. Arguments and errors: as in `uncertainty.localize_with_uncertainty`,
    and ValueError for a range without frames.
    """
    settings = settings or SamplingSettings()
    length, height, width = movie_shape(movie, camera)
    stop = checked_stop(start, stop, length, least=1)
    whole_frames = RegionSampler(camera, network, sampler, (height, width), settings)
    estimate = frame_estimator(network, camera, (height, width), WINDOW, precision)

    def frames() -> Iterator[Tensor]:
        for i, adu in frame_blocks(movie, camera, start, stop, 1, 1):
            yield torch.cat([samples[0].cpu() for _, samples in whole_frames.draw(adu, estimate(adu), i, None)])

    return frames()


def kde_sampler(network: ConditionalDiffusion | Engression, precision: str = "auto") -> KDESampler:
    """A network as a KDESampler: of p(y | x, ŷ), or of p(y | ŷ) in the published form of the diffusion model.

    What the network draws is read as emitters and drawn again, see `imaging.kde.redrawn`: it is nearer to draws of the
    posterior then (benchmarks/bakeoff.py measures by how much).
    precision: of the network's convolutions, as in `localize_movie`.
    The sampler raises ValueError where a network with attention gets a region with a side above ATTENDED px.
    """

    def sampler(electrons: Tensor, variance: Tensor, y: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        if network.unet.reach is None and max(electrons.shape[2:]) > ATTENDED:
            raise ValueError(
                f"movie must have molecules in regions of at most {ATTENDED} px a side for a network with attention, "
                f"got one of {tuple(electrons.shape[2:])}: crop the movie, or choose another network"
            )
        lower = AUTOCAST[chosen_precision(precision, y.device)]
        at_once = fitting(DRAWN_AT_ONCE["cpu" if y.device.type == "cpu" else "other"], DRAWN_BYTES, y.device)
        chunk = max(1, at_once // y[0].numel())
        with torch.autocast(y.device.type, lower, enabled=lower is not None):
            if isinstance(network, Engression):
                drawn = network.sample(y, frame_input(electrons, variance), samples, generator, chunk)
            else:
                frame = frame_input(electrons, variance) if network.frame else None
                drawn = sample_kde(network, y, samples, generator, frame, chunk=chunk)
        return redrawn(drawn.flatten(0, 1)[:, None].float(), network.factor).reshape(drawn.shape)

    return sampler


def shipped_sampler(weights: str = SAMPLER, device: str = "cpu", precision: str = "auto") -> tuple[KDESampler, str]:
    """The network of this name, or in this file, as a KDESampler; and a name that no other sampler has.

    Raises ValueError for another network than a diffusion model or an engression, and what `pretrained.load` raises.
    """
    kind = choice("class of the weights", pretrained.describe(weights)["class"], tuple(SAMPLERS))
    network = pretrained.load(weights, device, SAMPLERS[kind])
    precision = chosen_precision(precision, torch.device(device))
    calls = CALLS if isinstance(network, ConditionalDiffusion) else 1
    return kde_sampler(network, precision), f"{pretrained.sha256(weights)}, {calls} calls, {precision}"
