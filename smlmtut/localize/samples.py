"""Samples of the KDEs of a movie, drawn window by window.

A window sees `halo` pixels beyond its own part, except at the edges of the frame. Windows are sampled independently.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._memory import fitting
from .._random import step_generator
from .._validate import finite, non_negative, positive, whole
from ..imaging.camera import Camera, to_photoelectrons
from ..networks import pretrained
from ..networks.cddpm import CALLS, ConditionalDiffusion, frame_input, sample_kde
from ..networks.deepstorm import DeepSTORM
from ..networks.precision import AUTOCAST, chosen_precision
from .frames import Frames, checked_stop, frame_blocks, movie_shape
from .movie import WINDOW, frame_estimator
from .windows import Window, windows

# A function that draws samples of the KDE y given ŷ, or given ŷ and the frame:
# photo-electrons (B, 1, H, W), read variance (B, 1, H, W), ŷ (B, 1, f·H, f·W), S, generator -> (B, S, f·H, f·W).
# All tensors are on the generator's device; H and W are multiples of MULTIPLE.
KDESampler = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], Tensor]

MULTIPLE = 4  # camera pixels
VALUES_AT_ONCE = {"cpu": 1 << 22, "other": 1 << 25}  # pixels of all samples that are asked for at once
# super-resolved pixels that the diffusion model sees at once: 32 patches of 64 × 64 stay in a CPU's cache
DIFFUSED_AT_ONCE = {"cpu": 1 << 17, "other": 1 << 21}
DIFFUSED_BYTES = 480  # that one of them takes. VALUES_AT_ONCE must not follow the memory: it decides what is drawn


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn, and what counts as an emitter in them. Lengths are in camera pixels.

    samples: S of each window. seed: the same seed gives the same samples.
    window: side of a window, a multiple of 4. halo: what it sees beyond its own part, from 1 to less than half of it.
    dark: windows in which ŷ is nowhere above this are not sampled; in an empty frame it rarely is.
    peak: lowest height of an emitter in a sample; its kernel has peak 1.
    radius: largest distance at which a localization and an emitter of a sample count as the same.
    Raises ValueError for a value out of its range.
    """

    samples: int = 32
    seed: int = 0
    window: int = 16  # as in the training of the diffusion model
    halo: int = 3  # holds 99 % of the light of a spot
    dark: float = 0.01
    peak: float = 0.5
    radius: float = 1.0

    def __post_init__(self) -> None:
        whole("samples", self.samples, 2)
        whole("seed", self.seed, 0)
        whole("halo", self.halo)  # the position of a peak can lie across the border from its brightest pixel
        if whole("window", self.window) % MULTIPLE or self.window <= 2 * self.halo:
            raise ValueError(
                f"window must be a multiple of {MULTIPLE} px and larger than twice the halo of {self.halo} px, "
                f"got {self.window}"
            )
        non_negative("dark", self.dark)
        non_negative("peak", self.peak)
        positive("radius", self.radius)


Job = tuple[int, Window]  # a window of a frame; the frame is counted from the start of its block


class WindowSampler:
    """Draws samples in all windows of a movie's frames; shape: (H, W) of a frame."""

    def __init__(
        self,
        camera: Camera,
        network: DeepSTORM,
        sampler: KDESampler,
        shape: tuple[int, int],
        settings: SamplingSettings,
    ) -> None:
        if min(shape) < MULTIPLE:
            raise ValueError(f"movie must have sides of at least {MULTIPLE} px, got {shape}")
        self.camera, self.sampler, self.shape, self.settings = camera, sampler, shape, settings
        self.factor = network.factor
        # a frame that is smaller than a window is continued by its mirror image until its sides are multiples
        self.size = [min(settings.window, -(-n // MULTIPLE) * MULTIPLE) for n in shape]
        self.windows = windows(shape, self.size, settings.halo)

    def draw(
        self, adu: Tensor, y: Tensor, first: int, dark: float | None, answered: Tensor | None = None
    ) -> Iterator[tuple[list[Job], Tensor]]:
        """Samples in all windows of a block of frames, some windows at a time.

        adu: (n, H, W); y: their ŷ (n, 1, f·H, f·W). first: index of the first frame, which with the seed decides the
            random numbers. dark: windows where ŷ is nowhere above this are left out; None: no window is.
        answered: None, or (n, f·H, f·W) bool, where no samples are needed: windows in whose own part ŷ is above
            `dark` only there are left out as well.
        Yields windows, and their samples (b, S, f·h, f·w) without the mirrored pixels.
        Raises ValueError where the sampler returns another shape, or values that are not finite.
        """
        f, (h, w), many = self.factor, self.size, self.settings.samples
        images = self._inputs(adu, y)
        lit = y[:, 0] > (-math.inf if dark is None else dark)
        jobs = [(i, window) for i in range(len(adu)) for window in self.windows if lit[i][*window.seen(f)].any()]
        if answered is not None:
            lit &= ~answered.to(lit.device)
            jobs = [(i, window) for i, window in jobs if lit[i][*window.own(f)].any()]
        at_once = max(1, VALUES_AT_ONCE["cpu" if y.device.type == "cpu" else "other"] // (many * f * f * h * w))
        inside = (slice(f * self.shape[0]), slice(f * self.shape[1]))
        for batch in range(0, len(jobs), at_once):
            some = jobs[batch : batch + at_once]
            electrons, variance, estimate = (
                torch.stack([x[i][:, *window.seen(scale)] for i, window in some])
                for x, scale in zip(images, (1, 1, f), strict=True)
            )
            generator = step_generator(self.settings.seed, first, batch, y.device)
            samples = self.sampler(electrons, variance, estimate, many, generator)
            wanted = (len(some), many, f * h, f * w)
            if tuple(samples.shape) != wanted:
                raise ValueError(f"sampler must return shape {wanted}, got {tuple(samples.shape)}")
            yield some, finite("samples", samples.detach().float())[..., *inside]

    def _inputs(self, adu: Tensor, y: Tensor) -> list[Tensor]:
        """Photo-electrons, read variance and ŷ of whole frames, mirrored where a window is larger than the frame."""
        electrons = to_photoelectrons(adu, self.camera).float()
        variance = torch.as_tensor(self.camera.read_variance_electrons, dtype=torch.float32).expand(electrons.shape)
        more = [size - min(n, size) for n, size in zip(self.shape, self.size, strict=True)]
        images = [mirrored(x[:, None].to(y.device), *more) for x in (electrons, variance)]
        return [*images, mirrored(y, *(self.factor * n for n in more))]


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

    Windows are sampled independently, so where two of them meet, a sample may show half an emitter or the same one
    twice. A window as large as the frame avoids this. Dark windows are sampled too. Arguments and errors: as in
    `uncertainty.localize_with_uncertainty`, and ValueError for a range without frames.
    """
    settings = settings or SamplingSettings()
    length, height, width = movie_shape(movie, camera)
    stop = checked_stop(start, stop, length, least=1)
    windows = WindowSampler(camera, network, sampler, (height, width), settings)
    estimate, f = frame_estimator(network, camera, (height, width), WINDOW, precision), network.factor

    def frames() -> Iterator[Tensor]:
        for i, adu in frame_blocks(movie, camera, start, stop, 1, 1):
            y = estimate(adu)
            whole_frame = torch.empty(settings.samples, *y.shape[2:])
            for jobs, samples in windows.draw(adu, y, i, None):
                for (_, place), images in zip(jobs, samples.cpu(), strict=True):
                    whole_frame[:, *place.own(f)] = images[:, *place.within(f)]
            yield whole_frame

    return frames()


def mirrored(images: Tensor, rows: int, columns: int) -> Tensor:
    """Images (n, 1, H, W) with `rows` more rows below and `columns` more columns to the right, mirrored at the edge."""
    images = torch.cat([images, images.flip(2)[:, :, :rows]], 2)
    return torch.cat([images, images.flip(3)[..., :columns]], 3)


def diffusion_sampler(network: ConditionalDiffusion, precision: str = "auto") -> KDESampler:
    """A diffusion model as a KDESampler: p(y | x, ŷ), or p(y | ŷ) in the published form; see `sample_kde`.

    precision: of the network's convolutions, as in `localize_movie`.
    """

    def sampler(electrons: Tensor, variance: Tensor, y: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        lower = AUTOCAST[chosen_precision(precision, y.device)]
        frame = frame_input(electrons, variance) if network.frame else None
        at_once = fitting(DIFFUSED_AT_ONCE["cpu" if y.device.type == "cpu" else "other"], DIFFUSED_BYTES, y.device)
        chunk = max(1, at_once // y[0].numel())
        with torch.autocast(y.device.type, lower, enabled=lower is not None):
            return sample_kde(network, y, samples, generator, frame, chunk=chunk)

    return sampler


def shipped_sampler(weights: str = "cddpm-2d", device: str = "cpu", precision: str = "auto") -> tuple[KDESampler, str]:
    """The diffusion model of this name, or in this file, as a KDESampler; and a name that no other sampler has."""
    network = pretrained.load(weights, device, ConditionalDiffusion)
    precision = chosen_precision(precision, torch.device(device))
    return diffusion_sampler(network, precision), f"{pretrained.sha256(weights)}, {CALLS} calls, {precision}"
