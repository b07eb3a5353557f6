"""What a movie says about the scene that it shows: PSF, photons, background and density, without a network.

`isolated` looks at windows of the movie. What such a look gets wrong (dim emitters are missed, two that overlap pass
for one, a fit in strong background scatters) it gets wrong in the same way in a movie simulated from its own answer,
the twin. So the answer is corrected by what comes out of the twin against what was put in, and so on (indirect
inference, Gouriéroux, Monfort and Renault 1993, J. Appl. Econometrics 8:S85). Where movie and twin still differ, the
movie holds what the scene or the camera does not describe.
"""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .._random import step_generator
from .._validate import number, positive, whole
from ..imaging.camera import Camera, to_photoelectrons
from ..imaging.distributions import LogUniform, Uniform
from ..io.scene_file import SceneDescription
from .check import BELOW_LIMIT, NOISE
from .frames import Frames, checked_stop, movie_shape, read_frames
from .isolated import NEAR, Background, Spots, first_look, growth, look, lower_spread, weighted_median
from .twin import LEVELS, Answer, shrunk

WINDOWS, SIDE, LEAST_SIDE = 400, 64, 24  # looked at, at most; their largest and least side, px
TWINS, RESAMPLES = 3, 100  # corrections; bootstrap samples for the errors
TOLD = {  # names of a MovieMeasure's numbers in the file
    "seen_above": "seen_above_photo_electrons", "spots": "isolated_spots", "noise": "noise_variance_over_foreseen",
    "below": "share_far_below_offset",
    "rejected": "share_of_spots_not_explained", "expected": "the_same_in_simulation",
}  # fmt: skip
ROUND, GAIN, REJECTED = 0.03, 0.15, 0.10  # differences from a round PSF, and from the twin, that are problems
# Spread of σ and its error, over σ: to 2 emitters per µm² at most .03 and .005, from 3 on about .3 and .03 or more
CROWDED, UNSURE = 0.2, 0.02


@dataclass(frozen=True)
class Range:
    """A quantity with a distribution: low, median, high are its 5, 50 and 95 % quantiles; sd: the median's error."""

    low: float
    median: float
    high: float
    sd: float


@dataclass(frozen=True)
class MovieMeasure:
    """What a movie shows, in photo-electrons and camera pixels.

    sigma: PSF sd, px. ellipticity: σ_u/σ_v. photons: of an emitter in a frame. background: per pixel and frame.
    density: emitters per µm² and frame; its median is the mean. seen_above: N from which on nine of ten emitters are
    found; of much dimmer ones nothing is known. spots: number of fitted ones. noise: variance of pixels without
    emitters over what the camera foresees. gain: growth of a pixel's variance with its light in spots, 1 for the right
    gain, without what the twin has of it for other reasons. below: share of pixels more than 4 sd below the offset.
    rejected: share of the isolated spots that one emitter does not explain; expected: the same in the twin. problems:
    sentences that say what contradicts camera or scene; empty where nothing does.
    """

    sigma: Range
    ellipticity: Range
    photons: Range
    background: Range
    density: Range
    seen_above: float
    spots: int
    noise: float
    gain: Range
    below: float
    rejected: float
    expected: float
    problems: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Either good, or the number of problems."""
        return "good" if not self.problems else f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}"

    def description(self, pixel_size_nm: float, quantum_efficiency: float = 1.0) -> SceneDescription:
        """The scene for a file, in photons before the camera's quantum efficiency; `measured` holds the rest.

        Each distribution is uniform, in the logarithm where that fits the median better. σ ranges over its spread or
        twice its standard error. A background below 0, of which `problems` tells, is 0 there.
        """
        positive("quantum_efficiency", quantum_efficiency)
        width = max(self.sigma.high - self.sigma.median, 2 * self.sigma.sd)
        quantities = {
            "sigma_px": self.sigma, "ellipticity": self.ellipticity, "photo_electrons": self.photons,
            "background_electrons": self.background, "density_per_um2": self.density,
            "variance_per_light": self.gain,
        }  # fmt: skip
        measured = {name: {key: _digits(value) for key, value in asdict(x).items()} for name, x in quantities.items()}
        return SceneDescription(
            pixel_size_nm=pixel_size_nm,
            sigma_px=Uniform(self.sigma.median - width, self.sigma.median + width),
            ellipticity=self.ellipticity.median,
            photons=_distribution(self.photons, quantum_efficiency),
            background=_distribution(self.background, quantum_efficiency),
            density_per_um2=_distribution(self.density, 1.0),
            measured=measured | {told: _digits(getattr(self, name)) for name, told in TOLD.items()}
            | {"verdict": self.verdict, "problems": list(self.problems)},
        )  # fmt: skip


def measure_movie(
    movie: Frames, camera: Camera, pixel_size_nm: float, start: int = 0, stop: int | None = None, seed: int = 0
) -> MovieMeasure:
    """Measure a movie in up to WINDOWS windows of SIDE px, spread at random over its frames and area.

    movie: (T, H, W) ADU. start, stop: frames to look at. seed: of places and twin; equal seeds give equal numbers.
    Raises ValueError where frames have a side below LEAST_SIDE px, too few isolated spots are found, a pixel is
    saturated or not finite, or the camera's maps have another size.
    """
    length, height, width = movie_shape(movie, camera)
    pixel = float(number("pixel_size_nm", pixel_size_nm, positive)) / 1000
    frames = range(start, checked_stop(start, stop, length, least=1))
    generator = step_generator(whole("seed", seed, 0), 0)
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"movie must have frames of at least {LEAST_SIDE} px a side, got {height} × {width}")
    adu, part = _windows(movie, camera, frames, generator)
    gain, _, read = part.as_tensors(adu)
    v = ((read + part.integer / 12) / gain**2 + 1e-3).expand(adu.shape).numpy()  # rounding adds 1/12 ADU²
    x = to_photoelectrons(adu, part).numpy()
    seen = look(x, v, *first_look(x, v))
    answer, twin = Answer.of(*seen), seen
    for _ in range(TWINS):
        twin = look(answer.simulate(part, adu.shape, generator), v, answer.sigma, answer.background)
        answer = answer.corrected(*seen, *twin)
    ranges, below = _ranges(answer, *seen, *twin, pixel, generator), float((x < -4 * np.sqrt(v)).mean())
    (background, spots), other = seen, twin[1]
    numbers = {
        **ranges, "seen_above": spots.seen_above, "noise": background.ratio / twin[0].ratio,
        "below": below, "rejected": spots.rejected, "expected": other.rejected,
    }  # fmt: skip
    return MovieMeasure(**numbers, spots=len(spots.window), problems=tuple(problems(**numbers)))


def problems(
    sigma: Range, ellipticity: Range, photons: Range, background: Range, density: Range, seen_above: float,
    noise: float, gain: Range, below: float, rejected: float, expected: float,
) -> list[str]:  # fmt: skip
    """What contradicts the camera or the scene, each with what to do."""
    found = []
    spread = max((sigma.high / sigma.median - 1) / CROWDED, sigma.sd / sigma.median / UNSURE)
    if spread > 1 and photons.median >= NEAR * seen_above:  # dim ones scatter, of which the last sentence below tells
        found.append(
            f"spots that look isolated are {sigma.low:.2f} to {sigma.high:.2f} px wide, the median ± {sigma.sd:.2f}: "
            "emitters are too crowded, clustered or out of focus to tell what one looks like, and σ, N, density, gain "
            "are not to be relied on; measure frames with fewer emitters, or write PSF and N into the file by hand"
        )
    if below > BELOW_LIMIT:
        found.append(
            f"{below:.1%} of the pixels lie far below the offset, beyond what the read noise allows: "
            "check the offset (ADU) and the read variance (ADU²)"
        )
    if background.low < 0:
        found.append(f"the background is {background.low:.3g} photo-electrons in places: check the offset (ADU)")
    steep = abs(gain.median - 1) > max(GAIN, 4 * gain.sd)
    if not NOISE[0] ** 2 < noise < NOISE[1] ** 2:
        cause = (
            "the gain (ADU per photo-electron), then the offset" if steep else "the read variance (ADU²), the offset"
        )
        found.append(
            f"pixels without emitters vary {noise:.2f} times as much as the camera foresees (variance): check {cause}"
        )
    elif steep:
        found.append(
            f"in spots the variance grows {gain.median:.2f} times as fast with the light as the camera foresees: check "
            "the gain (ADU per photo-electron); with the right gain, the PSF is no Gaussian"
        )
    if abs(math.log(ellipticity.median)) > max(ROUND, 3 * ellipticity.sd):
        found.append(f"the PSF is elliptic, σ_u/σ_v = {ellipticity.median:.3f}: shipped networks know a round one")
    if rejected > 2 * expected + REJECTED:
        found.append(
            f"one emitter does not explain {rejected:.0%} of the isolated spots, {expected:.0%} in a simulation: "
            "the PSF is no Gaussian of one width, or emitters lie in clusters"
        )
    if photons.low < seen_above or photons.median < NEAR * seen_above:
        found.append(
            f"emitters below {seen_above:.0f} photo-electrons are not all found; of those found 5 % have less "
            f"than {photons.low:.0f} and half less than {photons.median:.0f}: what is said is of the brighter ones"
        )
    return found


def _windows(movie: Frames, camera: Camera, frames: range, generator: torch.Generator) -> tuple[Tensor, Camera]:
    """Windows of the movie, (B, h, w) float64 ADU, and the camera with maps of their places."""
    height, width = (int(n) for n in movie.shape[1:])
    size = (min(SIDE, height), min(SIDE, width))
    down, along = height // size[0], width // size[1]
    cells = torch.randperm(len(frames) * down * along, generator=generator)[:WINDOWS].sort().values
    index, row, column = cells // (down * along), cells // along % down * size[0], cells % along * size[1]
    parts = [
        read_frames(movie, camera, f, f + 1)[0, r : r + size[0], c : c + size[1]]
        for f, r, c in zip((index + frames.start).tolist(), row.tolist(), column.tolist(), strict=True)
    ]
    adu = torch.stack(parts).double()
    whole_numbers = bool((adu == adu.round()).all())
    plain = replace(camera.to(dtype=torch.float64), integer=whole_numbers, saturation=None, quantum_efficiency=1.0)
    return adu, plain.crops(row, column, size)


def _ranges(
    answer: Answer, background: Background, spots: Spots, twin: Background, twin_spots: Spots, pixel: float,
    generator: torch.Generator,
) -> dict[str, Range]:  # fmt: skip
    """The quantities. Their errors are by the bootstrap, which draws windows; times √2, since the twin has as much."""
    windows, scale = len(answer.background), math.sqrt(2)
    draws = torch.randint(windows, (RESAMPLES, windows), generator=generator).numpy()
    again = [np.bincount(rows, minlength=windows).astype(float) for rows in draws]

    def error(values: np.ndarray, window: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
        """Standard error of the weighted median."""
        return scale * float(np.std([weighted_median(values, weights * times[window]) for times in again]))

    sure = np.isfinite(spots.ratios)
    spread, twin_spread = (lower_spread(torch.from_numpy((s.sigmas - s.sigma) / s.sds)) for s in (spots, twin_spots))
    own = 1.645 * math.sqrt(max(0.0, spread**2 - twin_spread**2)) * float(np.median(spots.sds))
    tiles = shrunk(background.tiles, background.noise) - answer.bias
    sigma_sd = error(spots.sigmas, spots.width_window, spots.sds**-2)
    round_sd = error(spots.ratios[sure], spots.window[sure], spots.ratio_weights[sure])
    quantiles = _three(np.exp(np.interp((0.05, 0.5, 0.95), LEVELS, answer.log_photons)))
    levels = _three(np.quantile(tiles, (0.05, 0.5, 0.95)))
    logs = np.log(spots.photons)
    mean = float(answer.density.mean()) / pixel**2
    fewest, most = (float(np.quantile(answer.density, level)) / pixel**2 for level in (0.05, 0.95))
    counted = scale * float(np.std([times @ spots.counts for times in again]) / spots.counts.sum())
    slope = 1 + growth(spots.sums.sum(0)) - growth(twin_spots.sums.sum(0))
    slope_sd = scale * float(np.std([growth(times[spots.window] @ spots.sums) for times in again]))
    return {
        "gain": Range(slope, slope, slope, slope_sd),
        "sigma": Range(answer.sigma - own, answer.sigma, answer.sigma + own, sigma_sd),
        "ellipticity": Range(answer.ellipticity, answer.ellipticity, answer.ellipticity, round_sd),
        "photons": Range(*quantiles, quantiles[1] * error(logs, spots.window)),
        "background": Range(*levels, error(background.tiles, background.window)),
        "density": Range(min(fewest, mean), mean, max(most, mean), mean * counted),
    }


def _distribution(x: Range, efficiency: float) -> Uniform | LogUniform:
    """Uniform with these quantiles of 5 and 95 %, at least a standard error away from the median; uniform in the
    logarithm where that fits the median better."""
    low, high = (max(end, 0.0) / efficiency for end in (min(x.low, x.median - x.sd), max(x.high, x.median + x.sd)))
    middle, beyond = x.median / efficiency, 1 / 18  # 5 % beyond either end of 90 %
    flat = Uniform(max(0.0, low - beyond * (high - low)), high + beyond * (high - low))
    if low <= 0 or abs(middle - (low + high) / 2) <= abs(middle - math.sqrt(low * high)):
        return flat
    return LogUniform(low * (low / high) ** beyond, high * (high / low) ** beyond)


def _three(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
