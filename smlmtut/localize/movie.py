"""Localizations of a movie: frames of any size, in overlapping windows, with memory that does not grow with the length.

The ŷ of a frame is put together from windows of one size. Of each window only the part that is at least
`network.reach` away from its edges is used, where ŷ is the same as for the whole frame.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .._validate import non_negative, whole
from ..imaging.camera import Camera
from ..imaging.kde import MASS_REACH, to_coordinates
from ..imaging.windows import spans, windows
from ..networks.deepstorm import DeepSTORM, estimate_kde
from ..networks.precision import chosen_precision
from .frames import Frames, checked_stop, frame_blocks, movie_shape
from .progress import COLUMNS

WINDOW = 256  # camera pixels: larger windows overlap less, smaller ones fit into the cache
FRAMES_AT_ONCE, PIXELS_AT_ONCE = 256, 1 << 22  # limits of a block: frames, camera pixels
# camera pixels that the network sees at once, unless one window has more: few enough for the cache of a CPU
BATCH_PIXELS = {"cpu": 1 << 14, "other": 1 << 18}
PEAK_PIXELS = 1 << 18  # camera pixels in which peaks are searched for at once
BLOCK_SIZES = (FRAMES_AT_ONCE, PIXELS_AT_ONCE, BATCH_PIXELS, PEAK_PIXELS)  # they decide how sums are rounded


def localize_movie(
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    threshold: float = 0.25,
    min_mass: float = 0.0,
    start: int = 0,
    stop: int | None = None,
    window: int = WINDOW,
    precision: str = "no",
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Localize a movie block by block.

    movie: (T, H, W) ADU, H and W of any size. camera: numbers, or maps (H, W). threshold, min_mass: lowest
        height and mass of a peak, as in to_coordinates. start, stop: the first frame to localize, and the one after
        the last; None, to the end. window: side of the largest part of a frame that the network sees at once, px.
    precision: "no", float32; "bf16" or "fp16", faster where the hardware supports it; "auto", the result of
        `precision.best_precision`. bf16 moves a position by a small part of its standard deviation
        (benchmarks/localize_speed.py measures it), fp16 by less.
    Yields (number of frames done, counted from the start of the movie; the block's table). The table has the columns
        frame, counted from 0; u, v: px; height of the KDE; mass, about the number of emitters in the peak. Its rows
        are in the order of the frames.
    Raises ValueError for a movie of another rank or without frames, maps of another size, a window that is too small
        for the network's reach, a negative limit, an unknown precision, or, naming the frame, a pixel that is not
        finite or is saturated.
    """
    length, height, width = movie_shape(movie, camera)
    stop = checked_stop(start, stop, length)
    check_limits(threshold, min_mass)
    estimate = frame_estimator(network, camera, (height, width), window, precision)
    device = network.head.weight.device.type
    batch = max(1, BATCH_PIXELS["cpu" if device == "cpu" else "other"] // (height * width))

    def blocks() -> Iterator[tuple[int, pd.DataFrame]]:
        for first, adu in frame_blocks(movie, camera, start, stop, FRAMES_AT_ONCE, PIXELS_AT_ONCE):
            tables = [
                find_peaks(estimate(adu[i : i + batch]), network, first + i, threshold, min_mass)
                for i in range(0, len(adu), batch)
            ]
            yield first + len(adu), pd.concat(tables, ignore_index=True)

    return blocks()  # not a generator itself, so that bad arguments raise now and not at the first block


def check_limits(threshold: float, min_mass: float) -> None:
    """ValueError where the threshold or the lowest mass is negative."""
    non_negative("threshold", threshold)
    non_negative("min_mass", min_mass)


def frame_estimator(
    network: DeepSTORM, camera: Camera, shape: tuple[int, int], window: int, precision: str
) -> Callable[[Tensor], Tensor]:
    """The function that gives the ŷ of whole frames: from ADU (n, H, W) to (n, 1, f·H, f·W) on the network's device.

    shape: (H, W). Others, and errors: as in `localize_movie`.
    """
    f, device = network.factor, network.head.weight.device
    precision = chosen_precision(precision, device)
    seen = (min(whole("window", window), shape[0]), min(window, shape[1]))
    places = windows(shape, seen, network.reach)
    cameras = [camera.crop(w.rows[0], w.columns[0], seen).to(device, torch.float32) for w in places]

    def estimate(adu: Tensor) -> Tensor:
        y = torch.empty(len(adu), 1, f * shape[0], f * shape[1], device=device)
        for place, part in zip(places, cameras, strict=True):
            found = estimate_kde(network, adu[:, *place.seen()].to(device), part, precision)
            y[:, :, *place.own(f)] = found[:, :, *place.within(f)]
        return y

    return estimate


def find_peaks(y: Tensor, network: DeepSTORM, first: int, threshold: float, min_mass: float) -> pd.DataFrame:
    """The peaks of frames `first`, `first` + 1, … from their ŷ (n, 1, f·H, f·W), as a table."""
    f, height, width = network.factor, y.shape[2] // network.factor, y.shape[3] // network.factor
    # the mass of a peak depends on maxima up to two such reaches away, and these on their neighbours
    margin = -(-(2 * MASS_REACH + 1) // f)
    band = max(PEAK_PIXELS // (len(y) * width), 4 * margin)
    # in float64 both bands that see a peak give the same position; GPUs of Apple have no float64
    y = (y.cpu() if y.device.type == "mps" else y).double()
    columns: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    for top, begin, end in spans("band", height, band, margin):
        found = to_coordinates(y[:, :, f * top : f * (top + band)], f, network.sigma, threshold, min_mass)
        v = found.v + top
        own = (v >= (begin - 0.5 if begin > 0 else -np.inf)) & (v < (end - 0.5 if end < height else np.inf))
        for name, values in zip(COLUMNS, (found.frame + first, found.u, v, found.height, found.mass), strict=True):
            columns[name].append(values[own].cpu())
    table = pd.DataFrame({name: torch.cat(x).numpy() for name, x in columns.items()})
    table = table.astype({name: np.float64 for name in COLUMNS[1:]})
    # A peak at the far edge of the last pixel is in the frame, but a table's frame ends just before that edge, also
    # in float32, in which Picasso's files hold it.
    for name, size in (("u", width), ("v", height)):
        table[name] = table[name].clip(upper=float(np.nextafter(np.float32(size - 0.5), np.float32(0))))
    return table.sort_values("frame", kind="stable", ignore_index=True)
