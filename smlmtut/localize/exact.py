"""Draws from the exact posterior, by Markov chains, of those parts of a movie in which that is affordable.

A group is what touches where ŷ is above `dark`; its own part is the smallest rectangle of camera pixels around it. The
chains of a group see a crop with at least HALO pixels more on each side, and sample everything that may shine into it,
neighbours of the group among it. The answer is exact, under the prior of the training scene, for the pixels of the
crop. A posterior given the whole frame would know more: neighbours that the crop cuts, and the background. In crops of
12 px the background is known to √(b/144); for an emitter that is dim against it, of 90 e⁻ with b = 15, this changes the
log-odds of its probability by about 1 from those in 16 × 16 pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .._random import step_generator
from .._validate import positive, whole
from ..imaging.camera import Camera, to_photoelectrons
from ..imaging.first_guess import peak_emitters
from ..imaging.kde import kde_image
from ..imaging.scenes import BACKGROUND, PHOTONS, SIGMA
from ..imaging.windows import Window
from ..networks.deepstorm import DeepSTORM
from ..posterior import Draws, Prior, chain_posterior, count_prior, effective_size, split_r_hat
from .samples import VALUES_AT_ONCE, Job, merged

# px, four sd of the PSF. With 3, sds of two emitters 3 to 5 px apart are 7 % larger along the line that joins them than
# in one run over both; with 4, 3 %, of which half may be chance
HALO = 4
# sides of the crops, px, and the most emitters in each. ŷ of one molecule is above 0.01 in 2 or 3 px along an axis.
SIDES = {12: 12, 16: 16}
MARGIN = 2.0  # px beyond a crop where emitters count too: one farther away sends 2 % of its light to the crop's edge
CHAINS_AT_ONCE = 1024  # a tensor of their rates has 1.2 MB at 12 × 12 pixels
LOWEST_START = 0.05  # ŷ of the emitters that chains start with: below the thresholds of localizations
PHOTONS_AT_START = 1000.0  # e⁻; the first sweep draws others
AT_CAP = 0.01  # largest share of the draws with the most emitters that a crop may have: more are then unlikely
EXACT = ("exact", "r_hat", "effective_size")  # columns of a table


@dataclass(frozen=True)
class ExactSettings:
    """How long the chains run, and when they are trusted.

    pixel_size_nm: turns the prior of the density, emitters per µm², into emitters per pixel.
    chains: for each group, even; half start without emitters, half with those of ŷ. draws, thin, burn_in: as in
        `chain_posterior`. attempts: how often chains run for a group, until they are trusted, each time `longer` times
        as long as before.
    r_hat, size: of the number of emitters in the group and of the mass of y there, the largest split-R̂ and the smallest
        effective size with which draws are trusted. With 100 independent draws a probability is known to 0.05 and a
        standard deviation to 7 %; four chains that agree have R̂ of about 1.04 then. Where nothing varies both are
        perfect: it is the different starts that tell of an emitter that is hard to reach.
    Raises ValueError for a value out of its range.
    """

    pixel_size_nm: float = 108.0
    chains: int = 4
    draws: int = 100
    thin: int = 4
    burn_in: int = 100
    attempts: int = 2
    longer: int = 3
    r_hat: float = 1.05
    size: float = 100.0

    def __post_init__(self) -> None:
        for name in ("pixel_size_nm", "r_hat", "size"):
            positive(name, getattr(self, name))
        for name, least in (("chains", 2), ("draws", 4), ("thin", 1), ("burn_in", 0), ("attempts", 1), ("longer", 1)):
            whole(name, getattr(self, name), least)
        if self.chains % 2 or self.chains > CHAINS_AT_ONCE:
            raise ValueError(f"chains must be even and at most {CHAINS_AT_ONCE}, got {self.chains}")


class ExactSampler:
    """Draws in the groups of a movie's frames; dark: the ŷ above which something may be there, seed: of the draws."""

    def __init__(self, camera: Camera, network: DeepSTORM, settings: ExactSettings, dark: float, seed: int) -> None:
        self.camera, self.network, self.settings, self.dark, self.seed = camera, network, settings, dark, seed
        self.variance = torch.as_tensor(camera.read_variance_electrons, dtype=torch.float64).cpu()

    def draw(self, adu: Tensor, y: Tensor, first: int) -> Iterator[tuple[list[Job], Tensor, Tensor]]:
        """Draws in the groups of a block of frames whose chains are trusted, some groups at a time; on the CPU.

        adu, y, first: as in `RegionSampler.draw`. Groups that fit no crop are left out, as are those whose chains are
        not trusted in the end. Without read noise, less than 0 photo-electrons, which rounding may give, count as 0.
        Yields windows, the draws' KDEs (b, chains · draws, f·h, f·w), and split-R̂ and effective size (2, b).
        """
        electrons, y = to_photoelectrons(adu.cpu().double(), self.camera), y.detach().cpu()[:, 0]
        variance = self.variance.expand(electrons.shape)
        images = torch.where(variance > 0, electrons, electrons.clamp(min=0)), variance, y
        part, at_once = 0, CHAINS_AT_ONCE // self.settings.chains
        for side, todo in self._jobs(y).items():
            for attempt in range(self.settings.attempts):
                failed: list[Job] = []
                for batch in range(0, len(todo), at_once):
                    some, part = todo[batch : batch + at_once], part + 1
                    generator = step_generator(self.seed, first, (1 << 20) + part)  # the windows' numbers are others
                    draws = self._chains(some, images, SIDES[side], self.settings.longer**attempt, generator)
                    for jobs, samples, certificate, trusted in self._judged(some, draws):
                        failed += compress(jobs, ~trusted)
                        if bool(trusted.any()):
                            yield list(compress(jobs, trusted)), samples[trusted], certificate[:, trusted]
                todo = failed

    def _jobs(self, y: Tensor) -> dict[int, list[Job]]:
        """The groups of frames, by their ŷ (n, f·H, f·W), for each side of a crop."""
        f, found = self.network.factor, {side: [] for side in SIDES}
        for i, image in enumerate(y):
            for box in boxes(image, f, self.dark):
                needed = max(s.stop - s.start for s in box) + 2 * HALO
                if needed <= max(SIDES):
                    side = next(side for side in SIDES if side >= needed)
                    found[side].append((i, crop(box, side, (len(image) // f, image.shape[1] // f))))
        return found

    def _chains(
        self, jobs: list[Job], images: Sequence[Tensor], most: int, longer: int, generator: torch.Generator
    ) -> Draws:
        electrons, variance, y = (
            torch.stack([x[i][*place.seen(scale)] for i, place in jobs])
            for x, scale in zip(images, (1, 1, self.network.factor), strict=True)
        )
        shape, given = (electrons.shape[1], electrons.shape[2]), self.settings
        of_network = self.network.factor, self.network.sigma
        start = peak_emitters(y[:, None].double(), *of_network, LOWEST_START, PHOTONS_AT_START, most)
        counts = count_prior(most, shape, pixel_size_nm=given.pixel_size_nm, margin=MARGIN)
        return chain_posterior(
            electrons, counts, generator, variance, training_prior(shape), given.chains, given.draws,
            longer * given.thin, longer * given.burn_in, start, CHAINS_AT_ONCE,
        )  # fmt: skip

    def _judged(self, jobs: list[Job], draws: Draws) -> Iterator[tuple[list[Job], Tensor, Tensor, Tensor]]:
        """Windows, the draws' KDEs, R̂ and size, and whether they are trusted, as many as fit into memory at a time."""
        f, shape, given = self.network.factor, (draws.frames.shape[1], draws.frames.shape[2]), self.settings
        values = given.chains * given.draws * f * f * shape[0] * shape[1]
        for some in torch.arange(len(jobs)).split(max(1, VALUES_AT_ONCE["cpu"] // values)):
            places = [jobs[k] for k in some.tolist()]
            emitters = (draws.emitters(k).to(dtype=torch.float32) for k in some.tolist())
            samples = torch.stack([kde_image(x, shape, f, self.network.sigma)[:, 0] for x in emitters])
            traces = []
            for k, y, (_, place) in zip(some.tolist(), samples, places, strict=True):
                mass = y[:, *place.within(f)].sum((1, 2)).double().unflatten(0, (given.chains, given.draws))
                traces.append(torch.stack([number_inside(draws, k, place), mass]))
            trace = torch.stack(traces)  # (b, 2, C, S)
            r_hat, size = split_r_hat(trace).amax(1), effective_size(trace).amin(1)
            at_cap = (draws.count[some] == len(draws.count_prior) - 1).double().mean((1, 2))
            trusted = (r_hat <= given.r_hat) & (size >= given.size) & (at_cap <= AT_CAP)
            yield places, samples, torch.stack([r_hat, size]), trusted


def number_inside(draws: Draws, k: int, place: Window) -> Tensor:
    """The number of emitters in a window's own part, (C, S), from draws in window k."""
    rows, columns = place.within()
    along_u = (draws.u[k] >= columns.start - 0.5) & (draws.u[k] < columns.stop - 0.5)
    along_v = (draws.v[k] >= rows.start - 0.5) & (draws.v[k] < rows.stop - 0.5)
    return (along_u & along_v & (draws.photons[k] > 0)).sum(-1).double()


def training_prior(shape: tuple[int, int]) -> Prior:
    """The training scene's prior of one emitter, b and σ, for a crop (h, w)."""
    photons, background, sigma = ((float(x.low), float(x.high)) for x in (PHOTONS, BACKGROUND, SIGMA))
    near, (height, width) = -0.5 - MARGIN, shape
    return Prior(photons, background, sigma, (near, width - 0.5 + MARGIN, near, height - 0.5 + MARGIN))


def boxes(y: Tensor, factor: int, dark: float) -> list[tuple[slice, ...]]:
    """The own parts of the groups of a frame, by its ŷ (f·H, f·W): rectangles of camera pixels that do not overlap."""
    parts = ndimage.find_objects(np.asarray(ndimage.label(y.numpy() > dark, np.ones((3, 3)))[0]))  # type: ignore[index]
    found = [tuple(slice(s.start // factor, -(-s.stop // factor)) for s in part) for part in parts]
    return merged(found, [n // factor for n in y.shape])


def crop(box: tuple[slice, ...], side: int, shape: tuple[int, int]) -> Window:
    """A crop of this side around a group, moved into the frame, shape (H, W), and no larger than it."""
    starts = [
        min(max(0, (s.start + s.stop - side) // 2), max(0, size - side)) for s, size in zip(box, shape, strict=True)
    ]
    rows, columns = ((start, min(start + side, size)) for start, size in zip(starts, shape, strict=True))
    return Window(rows, columns, (box[0].start, box[0].stop), (box[1].start, box[1].stop))
