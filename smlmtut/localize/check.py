"""Does a movie look like what the network was trained on? Its background, noise and molecules, from a few frames.

A network answers whatever it is shown: with a wrong camera it finds molecules in noise, and samples of a diffusion
model agree with it. So every run looks at its own data first. The picture that the localizations make is fitted to a
few windows (their brightnesses and one background each), and what is left in pixels without molecules is compared
with the noise that the camera's numbers foresee. That noise, with no molecule in it, is then shown to the network:
what it finds there is false, and bounds the share of its localizations that can be right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .._random import step_generator
from .._validate import positive, whole
from ..imaging.camera import Camera, expose, to_photoelectrons
from ..imaging.distributions import highest, lowest
from ..imaging.kde import to_coordinates
from ..imaging.psf import pixel_integral
from ..io.scene_file import SceneDescription
from ..networks.deepstorm import DeepSTORM, estimate_kde
from .frames import Frames, checked_stop, movie_shape, read_frames
from .isolated import lower_spread
from .scene import ADVICE, REFERENCE, outside, spots_seen

WINDOWS, SIDE = 16, 64  # that are looked at, and their side in camera pixels
STEPS = 30  # of the fit of brightnesses; more change the background by less than 1 %
DIM = (1.1, 0.5)  # a pixel is dim where the fitted rate is below 1.1 times the background plus 0.5 e⁻
ENOUGH = 400  # dim pixels below which nothing is said of the noise
# What benchmarks/movie_check.py finds on 500 movies of the training scene with the right camera, and a little more
NOISE = (0.90, 1.10)  # sd of dim pixels over the sd that the camera foresees
# Where molecules lie over most of the frame, those that are missed pass for background, and the dim pixels are the ones
# where noise was low by chance: the least noise for a share of dim pixels below the first number
CROWDED, NOISE_CROWDED = 0.25, 0.75
BELOW_LIMIT = 0.002  # share of pixels 4 sd below the offset: 3e-5 for a Gaussian
FALSE_LIMIT = 0.1  # localizations in noise alone, over those in the movie
OUTSIDE = "outside_scene"  # column of a table whose movie the check has problems with


@dataclass(frozen=True)
class MovieCheck:
    """What a few windows of a movie show, and what is wrong with it.

    background: e⁻ per pixel, the median over windows. dim: share of the pixels that are without molecules. noise: sd in
    these over the sd that the camera foresees; NaN where there are too few. below: share of pixels more than 4 sd below
    the offset. saturated: share at the largest value of the movie's integer type. density: localizations per µm² and
    frame. sigma, photons: sd of the PSF, px, and the median photo-electrons of isolated spots; NaN where these are too
    few. false_share: localizations that the network finds in the movie's noise alone, over those in the movie.
    problems: sentences that say what lies outside of what the network knows, and what to do; empty where nothing does.
    """

    background: float
    dim: float
    noise: float
    below: float
    saturated: float
    density: float
    sigma: float
    photons: float
    false_share: float
    problems: tuple[str, ...]

    @property
    def probability_limit(self) -> float:
        """The largest probability that a localization may be given: 1 where there is no problem."""
        return max(0.0, 1 - self.false_share) if self.problems else 1.0

    def mark(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with a column OUTSIDE of ones, and no probability above the limit."""
        if "probability" in table:
            table = table.assign(probability=table["probability"].clip(upper=self.probability_limit))
        return table.assign(**{OUTSIDE: 1.0})


def check_movie(
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    pixel_size_nm: float,
    threshold: float = 0.25,
    start: int = 0,
    stop: int | None = None,
    seed: int = 0,
    scenes: Mapping[str, SceneDescription] | None = None,
) -> MovieCheck:
    """Look at WINDOWS windows, spread over the movie's length and area.

    movie, camera, network, threshold, start, stop: as in `localize_movie`. seed: of places and noise.
    scenes: names of the weights in use, those of `network` first, and the scenes that they were trained on, see
        `scene.trained_scene`; None, the reference scene.
    Raises ValueError as `localize_movie` does.
    """
    length, height, width = movie_shape(movie, camera)
    frames = range(start, checked_stop(start, stop, length, least=1))
    looks = min(WINDOWS, len(frames))
    generator = step_generator(whole("seed", seed, 0), 0)
    scenes = {"the network": REFERENCE} if scenes is None else scenes
    trained = next(iter(scenes.values())).sigma_px
    sigma = (lowest(trained) + highest(trained)) / 2
    size = (min(SIDE, height), min(SIDE, width))
    found, false, dim, below, saturated, backgrounds, windows = 0, 0, [], [], [], [], []
    for k in range(looks):
        frame = frames[k * len(frames) // looks]
        top, left = (
            int(torch.randint(n - s + 1, (1,), generator=generator)) for n, s in zip((height, width), size, strict=True)
        )
        raw = read_frames(movie, camera, frame, frame + 1)[:, top : top + size[0], left : left + size[1]]
        whole_numbers = bool((raw == raw.round()).all())
        place = replace(camera.crop(top, left, size), integer=whole_numbers, saturation=None)
        x = to_photoelectrons(raw, place).double()[0]
        v = torch.as_tensor(place.read_variance_electrons, dtype=torch.float64).expand(x.shape)
        peaks = to_coordinates(
            estimate_kde(network, raw, place).cpu().double(), network.factor, network.sigma, threshold
        )
        rate, background = fitted_rate(x, v, peaks.u, peaks.v, sigma)
        noise = dim_residuals(x, rate, background, v, place, generator)
        nothing = noise_alone(noise[0], background, v, generator)
        alone = estimate_kde(network, nothing[None].float(), Camera(read_variance=v)).cpu().double()
        false += len(to_coordinates(alone, network.factor, network.sigma, threshold))
        found += len(peaks)
        dim.append(noise)
        backgrounds.append(background)
        windows.append((x.numpy(), v.numpy() + 1e-3))
        below.append(float((x < -4 * (v + 1e-3).sqrt()).double().mean()))
        saturated.append(_at_the_top(movie, raw))
    data, foreseen = (torch.cat(parts) for parts in zip(*dim, strict=True))
    ratio = lower_spread(data) / lower_spread(foreseen) if len(data) >= ENOUGH else float("nan")
    area = looks * size[0] * size[1] * (positive("pixel_size_nm", pixel_size_nm) / 1000) ** 2
    images, variances = (np.stack(parts) for parts in zip(*windows, strict=True))
    sigma, photons = spots_seen(images, variances, sigma, np.array(backgrounds))
    numbers = {
        "background": float(np.median(backgrounds)),
        "dim": len(data) / (looks * size[0] * size[1]),
        "noise": ratio,
        "below": float(np.mean(below)),
        "saturated": float(np.mean(saturated)),
        "density": found / area,
        "sigma": sigma,
        "photons": photons,
        "false_share": min(1.0, false / found) if found else 0.0,
    }
    check = MovieCheck(**numbers, problems=())
    return replace(check, problems=(*problems(check), *unlike(check, pixel_size_nm, scenes), *_eight_bits(movie)))


def fitted_rate(x: Tensor, v: Tensor, u: Tensor, w: Tensor, sigma: float) -> tuple[Tensor, float]:
    """The expected image of emitters at (u, w) with the brightnesses that fit best, and its background.

    x, v: (H, W) photo-electrons and read variance. u, w: (K,) columns and rows, px. sigma: px. Expectation-maximization
    for Poisson counts x + v of rate ω + v: each step multiplies a brightness by the light that it explains over the
    light that it has, so all stay positive. Returns (H, W) e⁻ and e⁻ per pixel.
    """
    along_u, along_v = pixel_integral(u, sigma, x.shape[1]), pixel_integral(w, sigma, x.shape[0])
    images = (along_v[:, :, None] * along_u[:, None, :]).reshape(len(u), x.numel())
    images = torch.cat([images, torch.ones(1, x.numel(), dtype=x.dtype)])  # (K + 1, P)
    counts, floor = (x + v).clamp(min=0).flatten(), v.flatten()
    light = torch.full((len(images),), 300.0, dtype=x.dtype)
    light[-1] = x.median().clamp(min=0.5)
    total = images.sum(1).clamp(min=1e-9)
    for _ in range(STEPS):
        light = light * (images @ (counts / (light @ images + floor).clamp(min=1e-6))) / total
    return (light @ images).reshape(x.shape), float(light[-1])


def dim_residuals(
    x: Tensor, rate: Tensor, background: float, v: Tensor, camera: Camera, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(x − ω)/√(ω + v) in the pixels without molecules, of the data and of a simulated frame of that rate: (n,) each.

    The simulated frame has the skewness of few photons and, if the camera says so, the steps of whole ADU.
    """
    dim = rate < DIM[0] * background + DIM[1]
    scale = (rate + v).clamp(min=1e-3).sqrt()
    simulated = to_photoelectrons(expose(rate / camera.quantum_efficiency, camera, generator), camera)
    # whole ADU are spread over their step: else a median jumps from one to the next
    step = camera.integer / torch.as_tensor(camera.gain, dtype=x.dtype).expand(x.shape)
    dither = step * (torch.rand((2, *x.shape), generator=generator, dtype=x.dtype) - 0.5)
    return ((x + dither[0] - rate) / scale)[dim], ((simulated + dither[1] - rate) / scale)[dim]


def noise_alone(residuals: Tensor, background: float, v: Tensor, generator: torch.Generator) -> Tensor:
    """A frame (H, W) of the background with noise as the data have it, and no molecule.

    The noise is drawn from the residuals below their median, with either sign.
    """
    scale = (background + v).clamp(min=1e-3).sqrt()
    if not len(residuals):
        return torch.full_like(v, background)
    middle = residuals.median()
    left = (middle - residuals)[residuals <= middle]
    drawn = left[torch.randint(len(left), v.shape, generator=generator)]
    sign = 2.0 * torch.randint(2, v.shape, generator=generator) - 1
    return background + scale * sign * drawn


def problems(check: MovieCheck) -> list[str]:
    """What contradicts the camera, each with what to do."""
    found, noise, below, saturated = [], check.noise, check.below, check.saturated
    if noise > NOISE[1]:
        found.append(
            f"pixels without molecules scatter {noise:.2f} times as much as the camera foresees: "
            "check the read variance (ADU²), then the gain and the offset"
        )
    if noise < (NOISE_CROWDED if check.dim < CROWDED else NOISE[0]):
        found.append(
            f"pixels without molecules scatter {noise:.2f} times as much as the camera foresees: "
            "check the offset and the gain (ADU per photo-electron), then the read variance"
        )
    if below > BELOW_LIMIT:
        found.append(f"{below:.1%} of the pixels lie far below the offset: check the offset and the read variance")
    if saturated > 0:
        found.append(
            f"{saturated:.2%} of the pixels have the largest value of the movie's type: they are saturated, "
            "and --saturation refuses such frames"
        )
    if check.false_share > FALSE_LIMIT:
        found.append(
            f"the network finds {check.false_share:.0%} as many molecules in the noise of this movie alone: "
            "raise the threshold, or check the camera"
        )
    return found


def unlike(check: MovieCheck, pixel_size_nm: float, scenes: Mapping[str, SceneDescription]) -> list[str]:
    """One sentence where a movie lies outside of scenes by name: which quantities, their ranges, and what to do."""
    seen = {
        "pixel_size_nm": pixel_size_nm, "sigma_px": check.sigma, "background": check.background,
        "photons": check.photons, "density_per_um2": check.density,
    }  # fmt: skip
    found = {name: outside(scene, seen, check.dim < CROWDED) for name, scene in scenes.items()}
    texts = [f"{name} was trained on: {', '.join(parts)}" for name, parts in found.items() if parts]
    return [f"the movie lies outside of what {'; and of what '.join(texts)}: {ADVICE}"] if texts else []


def _eight_bits(movie: Frames) -> list[str]:
    """A camera gives 12 or 16 bits: a movie of 8 was scaled, and the camera's gain and offset with it."""
    if str(movie.dtype).removeprefix("torch.") not in ("uint8", "int8"):
        return []
    return [
        "the movie has 8 bits a pixel, so it was scaled after the camera, whose gain and offset do not hold for it: "
        "export it again with 16 bits"
    ]


def _at_the_top(movie: Frames, raw: Tensor) -> float:
    """Share of pixels at the largest value of the movie's integer type."""
    if isinstance(movie, Tensor):
        return 0.0 if movie.is_floating_point() else float((raw == torch.iinfo(movie.dtype).max).double().mean())
    kind = np.dtype(movie.dtype)
    return float((raw == np.iinfo(kind).max).double().mean()) if kind.kind in "iu" else 0.0
