"""Samples of a movie's KDEs in windows, and the localizations matched with the emitters of each sample.

The windows overlap. Each answers for its own part alone, and sees `halo` pixels beyond it on all sides but the
frame's own. No window knows what was drawn in another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .._random import step_generator
from .._validate import finite, non_negative, positive, whole
from ..evaluation import localization
from ..imaging.camera import Camera, to_photoelectrons
from ..imaging.kde import to_coordinates
from ..networks.deepstorm import DeepSTORM
from .windows import spans

# photo-electrons (B, 1, H, W), read variance (B, 1, H, W), ŷ (B, 1, f·H, f·W), S, generator -> (B, S, f·H, f·W):
# samples of the KDE y given ŷ, or the frame too; all on the generator's device, H and W multiples of MULTIPLE
Sample = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], Tensor]

MULTIPLE = 4  # camera pixels
VALUES_AT_ONCE = {"cpu": 1 << 22, "other": 1 << 25}  # of the samples that are asked for at once
OWN = ("u_sd", "v_sd", "probability")  # columns of a table that come from samples


@dataclass(frozen=True)
class Settings:
    """What decides about samples and what is read from them. Lengths in camera pixels.

    samples: S of each window. seed: the same one, the same samples.
    window: side of a window, a multiple of 4; halo: what it sees of its neighbours, at least 1, less than half of it.
    dark: where ŷ is nowhere above this, a window need not be sampled; of an empty frame it hardly ever is.
    peak: lowest height of an emitter in a sample, whose kernels have peak 1.
    radius: largest distance between a localization and the emitter of a sample that is the same one.
    Raises ValueError for a value out of its range.
    """

    samples: int = 32
    seed: int = 0
    window: int = 16  # what the diffusion model is trained on; in larger ones its attention takes longer
    halo: int = 3  # 99 % of a spot's light lie within
    dark: float = 0.01
    peak: float = 0.5
    radius: float = 1.0

    def __post_init__(self) -> None:
        whole("samples", self.samples, 2)
        whole("seed", self.seed, 0)
        whole("halo", self.halo)  # a peak's pixel and its position may lie on two sides of a border
        if whole("window", self.window) % MULTIPLE or self.window <= 2 * self.halo:
            raise ValueError(
                f"window must be a multiple of {MULTIPLE} px and larger than twice the halo of {self.halo} px, "
                f"got {self.window}"
            )
        non_negative("dark", self.dark)
        non_negative("peak", self.peak)
        positive("radius", self.radius)


@dataclass(frozen=True)
class Place:
    """A window: its first row and column, and the rows and columns [first, last) of the frame that are its own.

    own, within: where they are among the super-resolved pixels of the frame, and of the window.
    """

    top: int
    left: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    factor: int

    @property
    def own(self) -> tuple[slice, slice]:
        return self._slices(0, 0)

    @property
    def within(self) -> tuple[slice, slice]:
        return self._slices(self.top, self.left)

    def _slices(self, top: int, left: int) -> tuple[slice, slice]:
        (r0, r1), (c0, c1), f = self.rows, self.columns, self.factor
        return slice(f * (r0 - top), f * (r1 - top)), slice(f * (c0 - left), f * (c1 - left))


Job = tuple[int, Place]  # frame of the block, window


class Windows:
    """Where the windows of a movie lie, and what is drawn in them."""

    def __init__(
        self, camera: Camera, network: DeepSTORM, sample: Sample, shape: tuple[int, int], settings: Settings
    ) -> None:
        if min(shape) < MULTIPLE:
            raise ValueError(f"movie must have sides of at least {MULTIPLE} px, got {shape}")
        self.camera, self.sample, self.shape, self.settings = camera, sample, shape, settings
        self.factor = f = network.factor
        # a frame that is smaller than a window is mirrored at its ends until its sides are multiples
        self.size = [min(settings.window, -(-n // MULTIPLE) * MULTIPLE) for n in shape]
        rows, columns = (spans("window", n, size, settings.halo) for n, size in zip(shape, self.size, strict=True))
        self.places = [Place(r[0], c[0], r[1:], c[1:], f) for r in rows for c in columns]

    def draw(self, adu: Tensor, y: Tensor, first: int, dark: float | None) -> Iterator[tuple[list[Job], Tensor]]:
        """Samples of all windows of some frames, some windows at a time.

        adu: (n, H, W); y: their ŷ (n, 1, f·H, f·W); first: number of the first frame, of which, and of the seed, the
        random numbers are made. dark: windows without ŷ above it are left out; None: none are.
        Yields the windows of a batch and their samples (b, S, f·h, f·w) without what was mirrored.
        """
        f, (h, w), device = self.factor, self.size, y.device
        electrons = to_photoelectrons(adu, self.camera).float()
        variance = torch.as_tensor(self.camera.read_variance_electrons, dtype=torch.float32).expand(electrons.shape)
        more = [size - min(n, size) for n, size in zip(self.shape, self.size, strict=True)]
        images = [mirrored(x[:, None].to(device), *more) for x in (electrons, variance)]
        images.append(mirrored(y, f * more[0], f * more[1]))
        jobs = [
            (i, place)
            for i in range(len(adu))
            for place in self.places
            if dark is None or float(cut(y[i], place.top, place.left, h, w, f).max()) > dark
        ]
        values = VALUES_AT_ONCE["cpu" if device.type == "cpu" else "other"]
        many = max(1, values // (self.settings.samples * f * f * h * w))
        seen = (f * min(h, self.shape[0]), f * min(w, self.shape[1]))
        for batch in range(0, len(jobs), many):
            some = jobs[batch : batch + many]
            inputs = [
                torch.stack([cut(x[i], place.top, place.left, h, w, scale) for i, place in some])
                for x, scale in zip(images, (1, 1, f), strict=True)
            ]
            generator = step_generator(self.settings.seed, first, batch, device)
            samples = self.sample(inputs[0], inputs[1], inputs[2], self.settings.samples, generator)
            wanted = (len(some), self.settings.samples, f * h, f * w)
            if tuple(samples.shape) != wanted:
                raise ValueError(f"sample must return shape {wanted}, got {tuple(samples.shape)}")
            yield some, finite("samples", samples.detach().float())[..., : seen[0], : seen[1]]


class Matches:
    """How many samples have each localization of a block, and where."""

    def __init__(self, table: pd.DataFrame, settings: Settings) -> None:
        self.rows, self.settings = table, settings
        self.frame, self.u, self.v = (table[name].to_numpy() for name in ("frame", "u", "v"))
        self.sums = np.zeros((5, len(table)))  # matches; sums of du, dv, du², dv²

    def count(self, jobs: list[Job], samples: Tensor, first: int, network: DeepSTORM) -> None:
        """Match the localizations in some windows with the peaks of their samples (b, S, f·h, f·w).

        All that a window sees compete for its peaks, but only those in its own part are counted.
        """
        many, f = self.settings.samples, network.factor
        found = to_coordinates(samples.flatten(0, 1)[:, None], f, network.sigma, self.settings.peak)
        image, u, v = (x.cpu().numpy() for x in (found.frame, found.u, found.v))  # image: window · S + sample
        corner = np.array([(place.left, place.top) for _, place in jobs], dtype=float)[image // many]
        height, width = (n // f for n in samples.shape[2:])
        near, images, own = [], [], []
        for k, (i, place) in enumerate(jobs):
            here = self._inside(first + i, place.top, place.left, place.top + height, place.left + width)
            near.append(np.tile(here, many))
            images.append(np.repeat(k * many + np.arange(many), len(here)))
            (r0, r1), (c0, c1) = place.rows, place.columns
            own.append(np.isin(near[-1], self._inside(first + i, r0, c0, r1, c1)))
        near, images, own = (np.concatenate(x) for x in (near, images, own))
        pairs = localization.match(
            localization.Points(image, u + corner[:, 0], v + corner[:, 1]),
            localization.Points(images, self.u[near], self.v[near]), 1.0, self.settings.radius,
        )  # fmt: skip
        du, dv = (x.numpy()[own[pairs.truth]] for x in (pairs.du, pairs.dv))
        row = near[pairs.truth][own[pairs.truth]]
        for total, weight in zip(self.sums, (np.ones_like(du), du, dv, du**2, dv**2), strict=True):
            total += np.bincount(row, weight, len(total))

    def table(self) -> pd.DataFrame:
        """The table with standard deviations, px, and probabilities."""
        n, du, dv, du2, dv2 = self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            u_sd, v_sd = (np.sqrt((s2 - s**2 / n).clip(min=0) / (n - 1)) for s, s2 in ((du, du2), (dv, dv2)))
        u_sd, v_sd = (np.where(n > 1, sd, np.nan) for sd in (u_sd, v_sd))
        return self.rows.assign(**dict(zip(OWN, (u_sd, v_sd, n / self.settings.samples), strict=True)))

    def _inside(self, frame: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Rows of the localizations of a frame on pixels [top, bottom) × [left, right)."""
        along = (self.u >= left - 0.5) & (self.u < right - 0.5)
        return np.flatnonzero((self.frame == frame) & along & (self.v >= top - 0.5) & (self.v < bottom - 0.5))


def mirrored(images: Tensor, down: int, along: int) -> Tensor:
    """Images (n, 1, H, W) continued below and to the right by their mirror image about the frame's edge."""
    images = torch.cat([images, images.flip(2)[:, :, :down]], 2)
    return torch.cat([images, images.flip(3)[..., :along]], 3)


def cut(image: Tensor, top: int, left: int, height: int, width: int, factor: int) -> Tensor:
    """The part (1, f·h, f·w) of an image (1, f·H, f·W) that a window in camera pixels sees."""
    rows, columns = slice(factor * top, factor * (top + height)), slice(factor * left, factor * (left + width))
    return image[:, rows, columns]
