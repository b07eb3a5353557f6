"""A movie in, a table out that says how sure it is: positions with standard deviations, and the chance to be real.

φ's peaks are the localizations, as in `localize`. Samples of p(y | ŷ) about each of them tell what else the frame may
show: the share of the samples that have an emitter there, and how far its position moves from one to the next.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._validate import non_negative, positive, whole
from ..imaging.camera import Camera
from ..io.movies import write_image
from ..io.tables import CSV, HDF5
from ..networks import pretrained
from ..networks.cddpm import CALLS, ConditionalDiffusion, frame_input, sample_kde
from ..networks.deepstorm import DeepSTORM
from ..networks.precision import AUTOCAST, chosen_precision
from .movie import WINDOW as ESTIMATE_WINDOW
from .movie import estimator, find_peaks
from .progress import COLUMNS, ProgressFile, ProgressMismatch, identity
from .samples import OWN, VALUES_AT_ONCE, Matches, Sample, Settings, Windows
from .windows import Frames, movie_shape, read_frames

__all__ = [
    "ProgressMismatch", "Sample", "Settings", "diffusion_sampler", "draw", "image_paths", "localize",
    "localize_to_file", "shipped_sampler",
]  # fmt: skip

FRAMES_AT_ONCE, PIXELS_AT_ONCE = 16, 1 << 18  # of a block, of which the file keeps account
# super-resolved pixels that the diffusion model sees at once: 32 patches of 64 × 64 stay in a CPU's cache
DIFFUSED_AT_ONCE = {"cpu": 1 << 17, "other": 1 << 21}


def localize(
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    sample: Sample,
    settings: Settings | None = None,
    threshold: float = 0.25,
    min_mass: float = 0.0,
    start: int = 0,
    precision: str = "no",
) -> Iterator[tuple[int, pd.DataFrame, np.ndarray]]:
    """Localize a movie block by block, with standard deviations and probabilities from samples.

    movie, camera, network, threshold, min_mass, start, precision: as in `localize.localize`, whose rows these are.
    sample: draws KDEs, see `Sample`.
    Yields (frames done; the block's table; sums over its frames). The table has three columns more. u_sd, v_sd:
    px, of the emitter's position over the samples that have it; NaN where fewer than two have. probability: the
    share of the samples that have it, as a peak of height `peak` or more at most `radius` away; each peak of a sample
    goes to one localization, and the nearest pairs go first. The sums, (2, f·H, f·W) float64: of the samples'
    mean and of their variance. A window where ŷ is nowhere above `dark` is not sampled: its mean is ŷ, its variance 0.
    Raises ValueError as `localize.localize` does, for a frame with a side below 4 px, `dark` above the
    threshold, or samples of another shape or that are not finite.
    """
    settings = settings or Settings()
    length, height, width = movie_shape(movie, camera)
    whole("start", start, 0)
    non_negative("threshold", threshold)
    non_negative("min_mass", min_mass)
    if settings.dark > threshold:
        raise ValueError(f"dark must be at most the threshold {threshold:g}, got {settings.dark:g}")
    windows = Windows(camera, network, sample, (height, width), settings)
    estimate = estimator(network, camera, (height, width), ESTIMATE_WINDOW, precision)
    block = max(1, min(FRAMES_AT_ONCE, PIXELS_AT_ONCE // (height * width)))

    def blocks() -> Iterator[tuple[int, pd.DataFrame, np.ndarray]]:
        for first in range(start, length, block):
            adu = read_frames(movie, camera, first, min(first + block, length))  # (n, H, W)
            y = torch.cat([estimate(frame[None]) for frame in adu])  # (n, 1, fH, fW)
            table = find_peaks(y, network, first, threshold, min_mass)
            mean = y[:, 0].cpu().clone()  # (n, fH, fW), to be replaced where there are samples
            variance = torch.zeros_like(mean)
            matches = Matches(table, settings)
            for jobs, samples in windows.draw(adu, y, first, settings.dark):
                spread, middle = (x.cpu() for x in torch.var_mean(samples, 1))  # (b, fh, fw) each
                for (i, place), v, m in zip(jobs, spread, middle, strict=True):
                    mean[i][place.own], variance[i][place.own] = m[place.within], v[place.within]
                matches.count(jobs, samples, first, network)
            sums = torch.stack([mean.double().sum(0), variance.double().sum(0)]).numpy()
            yield first + len(adu), matches.table(), sums

    return blocks()  # so that bad arguments are told before the first block is asked for


def localize_to_file(
    path: str | Path,
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    sample: Sample,
    pixel_size_nm: float,
    settings: Settings | None = None,
    sampler: str = "",
    threshold: float = 0.25,
    min_mass: float = 0.0,
    resume: bool = True,
    progress: bool = True,
    precision: str = "no",
) -> int:
    """Localize a movie into a table and two images, and return the number of localizations.

    path: .csv (ThunderSTORM's columns; uncertainty_x and _y in nm) or .hdf5 (Picasso's; lpx and lpy in px); the
        probability is kept under its name. The images lie beside it (`image_paths`): the sum over the frames of the
        samples' mean, and the standard deviation of that sum, in which the frames' variances add, since each frame
        has photons of its own. float32, f pixels to a camera pixel.
    sampler: what tells this `sample` from others, a name or a hash: a run goes on only with the same one.
    pixel_size_nm: side of a camera pixel. resume, progress: as in `localize.localize_to_file`; a run that was broken
        off goes on in the same way and ends with the same files, and memory does not grow with the movie.
    Raises ProgressMismatch (a ValueError) where the run to go on with was another one, and what `localize` raises.
    """
    path, settings = Path(path), settings or Settings()
    if path.suffix.lower() not in CSV + HDF5:
        raise ValueError(f"path must end in {', '.join(CSV + HDF5)}, got {str(path)!r}")
    positive("pixel_size_nm", pixel_size_nm)
    length, height, width = movie_shape(movie, camera)
    precision = chosen_precision(precision, network.head.weight.device)
    run = identity(movie, camera, network) | asdict(settings) | {
        "sampler": sampler, "threshold": float(threshold), "min_mass": float(min_mass), "precision": precision,
        "blocks": [FRAMES_AT_ONCE, PIXELS_AT_ONCE, VALUES_AT_ONCE],  # each has random numbers of its own
    }  # fmt: skip
    arguments = (movie, camera, network, sample, settings, threshold, min_mass)
    localize(*arguments, 0, precision)  # raises before a file is touched
    images, empty = image_paths(path), np.zeros((2, network.factor * height, network.factor * width))
    account = ProgressFile(path, run, resume, (*COLUMNS, *OWN), empty, images)
    with tqdm(total=length, initial=account.frames, unit="frame", desc=path.name, disable=not progress) as bar:
        for done, table, sums in localize(*arguments, account.frames, precision):
            account.add(done, table, sums)
            bar.update(done - bar.n)
            bar.set_postfix(localizations=account.rows, refresh=False)
    assert account.sums is not None
    for place, image in zip(images, (account.sums[0], np.sqrt(account.sums[1])), strict=True):
        write_image(place, image.astype(np.float32))
    account.finish(pixel_size_nm, (height, width), length)
    return account.rows


def image_paths(path: str | Path) -> tuple[Path, Path]:
    """Where the images of a table lie: locs.csv has locs.mean.tif and locs.sd.tif."""
    return Path(path).with_suffix(".mean.tif"), Path(path).with_suffix(".sd.tif")


def draw(
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    sample: Sample,
    settings: Settings | None = None,
    start: int = 0,
    stop: int | None = None,
    precision: str = "no",
) -> Iterator[Tensor]:
    """Samples of the whole KDE of frames `start` … `stop` − 1, frame by frame: (S, f·H, f·W) float32, on the CPU.

    Windows are drawn apart from each other: of an emitter where two meet, a sample may show both halves of different
    draws. A window as large as the frame has no such seam. Nothing counts as dark. Arguments and errors as in
    `localize`; a range without frames is one, too.
    """
    settings = settings or Settings()
    length, height, width = movie_shape(movie, camera)
    stop = length if stop is None else whole("stop", stop)
    if not 0 <= whole("start", start, 0) < stop <= length:
        raise ValueError(f"start and stop must choose frames 0 to {length}, got {start} and {stop}")
    windows = Windows(camera, network, sample, (height, width), settings)
    estimate = estimator(network, camera, (height, width), ESTIMATE_WINDOW, precision)

    def frames() -> Iterator[Tensor]:
        for i in range(start, stop):
            adu = read_frames(movie, camera, i, i + 1)
            y = estimate(adu)
            whole_frame = torch.empty(settings.samples, *y.shape[2:])
            for jobs, samples in windows.draw(adu, y, i, None):
                for (_, place), images in zip(jobs, samples.cpu(), strict=True):
                    whole_frame[:, *place.own] = images[:, *place.within]
            yield whole_frame

    return frames()


def diffusion_sampler(network: ConditionalDiffusion, precision: str = "auto") -> Sample:
    """A diffusion model as a `Sample`: p(y | x, ŷ) where it was built to see frames, else p(y | ŷ); see `sample_kde`.

    precision: of the network's convolutions, as in `localize`.
    """

    def sample(electrons: Tensor, variance: Tensor, y: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        lower = AUTOCAST[chosen_precision(precision, y.device)]
        frame = frame_input(electrons, variance) if network.frame else None
        chunk = max(1, DIFFUSED_AT_ONCE["cpu" if y.device.type == "cpu" else "other"] // y[0].numel())
        with torch.autocast(y.device.type, lower, enabled=lower is not None):
            return sample_kde(network, y, samples, generator, frame, chunk=chunk)

    return sample


def shipped_sampler(weights: str = "cddpm-2d", device: str = "cpu", precision: str = "auto") -> tuple[Sample, str]:
    """The diffusion model of this name, or in this file, as a `Sample`; and what tells it from others."""
    network = pretrained.load(weights, device, ConditionalDiffusion)
    precision = chosen_precision(precision, torch.device(device))
    return diffusion_sampler(network, precision), f"{pretrained.sha256(weights)}, {CALLS} calls, {precision}"
