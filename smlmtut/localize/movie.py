"""A movie in, a table out: frames of any size, in overlapping windows, in memory that the length does not set.

A frame's ŷ is put together from windows of one size. A window keeps the part that lies at least `network.reach`
from its edges, where ŷ is what it would be in the whole frame; every super-resolved pixel comes from one window.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._validate import non_negative, positive, whole
from ..imaging.camera import Camera
from ..imaging.kde import MASS_REACH, to_coordinates
from ..io.tables import CSV, HDF5
from ..networks.deepstorm import DeepSTORM, estimate_kde
from ..networks.precision import chosen_precision
from .progress import COLUMNS, ProgressFile, ProgressMismatch, identity
from .windows import Frames, movie_shape, read_frames, spans

__all__ = ["ProgressMismatch", "localize_movie", "localize_to_file"]

WINDOW = 256  # camera pixels: larger windows share less, smaller ones stay in the cache
FRAMES_AT_ONCE, PIXELS_AT_ONCE = 256, 1 << 22  # of a block that is read, and of which the file keeps account
# camera pixels that the network sees at once, unless one window is more: few where a cache is to hold them
BATCH_PIXELS = {"cpu": 1 << 14, "other": 1 << 18}
PEAK_PIXELS = 1 << 18  # camera pixels whose peaks are sought at once


def localize_movie(
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    threshold: float = 0.25,
    min_mass: float = 0.0,
    start: int = 0,
    window: int = WINDOW,
    precision: str = "no",
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Localize a movie block by block.

    movie: (T, H, W) ADU, H and W of any size. camera: numbers, or maps (H, W). threshold, min_mass: lowest
    height and mass of a peak, as in to_coordinates. start: the first frame to localize. window: side of the
    largest part of a frame that the network sees at once, camera pixels. precision: "no", float32; "bf16" or "fp16",
    faster where the hardware has it; "auto", what `precision.best_precision` finds. bf16 moves a position by a small
    part of its standard deviation (benchmarks/localize_speed.py measures it) and fp16 by less.
    Yields (frames done, counted from the movie's beginning; table of the block's localizations): frame, counted from 0;
    u, v: px; height of the KDE; mass, about the number of emitters in the peak. Rows are in order of the frames.
    Raises ValueError for a movie of another rank or without frames, maps of another size, a window that is not larger
    than what the network needs around a pixel, a limit that is negative, another precision, or, naming the frame, a
    pixel that is not finite or is saturated.
    """
    length, height, width = movie_shape(movie, camera)
    whole("start", start, 0)
    non_negative("threshold", threshold)
    non_negative("min_mass", min_mass)
    estimate = estimator(network, camera, (height, width), window, precision)
    block = max(1, min(FRAMES_AT_ONCE, PIXELS_AT_ONCE // (height * width)))
    device = network.head.weight.device.type
    batch = max(1, BATCH_PIXELS["cpu" if device == "cpu" else "other"] // (height * width))

    def blocks() -> Iterator[tuple[int, pd.DataFrame]]:
        for first in range(start, length, block):
            adu = read_frames(movie, camera, first, min(first + block, length))  # (n, H, W)
            tables = [
                find_peaks(estimate(adu[i : i + batch]), network, first + i, threshold, min_mass)
                for i in range(0, len(adu), batch)
            ]
            yield first + len(adu), pd.concat(tables, ignore_index=True)

    return blocks()  # so that bad arguments are told before the first block is asked for


def localize_to_file(
    path: str | Path,
    movie: Frames,
    camera: Camera,
    network: DeepSTORM,
    pixel_size_nm: float,
    threshold: float = 0.25,
    min_mass: float = 0.0,
    resume: bool = True,
    progress: bool = True,
    window: int = WINDOW,
    precision: str = "no",
) -> int:
    """Localize a movie into a file, and return the number of localizations.

    path: .csv (ThunderSTORM's columns, nm, frames from 1) or .hdf5 (Picasso's, px, frames from 0); height and mass are
        kept under their names. It appears when all is done. Until then PATH.partial and PATH.progress.json lie beside
        it, and a run that was broken off at any moment, even killed, goes on from there and ends with the same file.
    resume: False starts anew. progress: show a bar. pixel_size_nm: side of a camera pixel.
    Others: as in `localize_movie`.
    Memory does not grow with the movie.
    Raises ProgressMismatch (a ValueError) where the run to go on with was another one; what `localize_movie` raises.
    """
    path = Path(path)
    if path.suffix.lower() not in CSV + HDF5:
        raise ValueError(f"path must end in {', '.join(CSV + HDF5)}, got {str(path)!r}")
    positive("pixel_size_nm", pixel_size_nm)
    length, height, width = movie_shape(movie, camera)
    # of "auto", what this machine took: another one may take another
    precision = chosen_precision(precision, network.head.weight.device)
    run = identity(movie, camera, network) | {
        "threshold": float(threshold), "min_mass": float(min_mass), "window": window, "precision": precision,
        # sums in another order differ in their rounding
        "blocks": [FRAMES_AT_ONCE, PIXELS_AT_ONCE, BATCH_PIXELS, PEAK_PIXELS],
    }  # fmt: skip
    localize_movie(movie, camera, network, threshold, min_mass, 0, window, precision)  # raises before a file is touched
    account = ProgressFile(path, run, resume)
    blocks = localize_movie(movie, camera, network, threshold, min_mass, account.frames, window, precision)
    with tqdm(total=length, initial=account.frames, unit="frame", desc=path.name, disable=not progress) as bar:
        for done, table in blocks:
            account.add(done, table)
            bar.update(done - bar.n)
            bar.set_postfix(localizations=account.rows, refresh=False)
    account.finish(pixel_size_nm, (height, width), length)
    return account.rows


def estimator(
    network: DeepSTORM, camera: Camera, shape: tuple[int, int], window: int, precision: str
) -> Callable[[Tensor], Tensor]:
    """ŷ of whole frames, put together from windows: a function from ADU (n, H, W) to (n, 1, f·H, f·W) where φ lies.

    shape: (H, W); others: as in `localize_movie`.
    Raises ValueError for a window that is not larger than what the network
    needs around a pixel, or another precision.
    """
    f, device = network.factor, network.head.weight.device
    precision = chosen_precision(precision, device)
    rows, columns = (spans("window", size, window, network.reach) for size in shape)
    seen = (min(window, shape[0]), min(window, shape[1]))
    parts = [
        (row, column, camera.crop(row[0], column[0], seen).to(device, torch.float32))
        for row in rows
        for column in columns
    ]

    def estimate(adu: Tensor) -> Tensor:
        y = torch.empty(len(adu), 1, f * shape[0], f * shape[1], device=device)
        for (top, r0, r1), (left, c0, c1), place in parts:
            part = adu[:, top : top + seen[0], left : left + seen[1]].to(device)
            part = estimate_kde(network, part, place, precision)
            kept = part[:, :, f * (r0 - top) : f * (r1 - top), f * (c0 - left) : f * (c1 - left)]
            y[:, :, f * r0 : f * r1, f * c0 : f * c1] = kept
        return y

    return estimate


def find_peaks(y: Tensor, network: DeepSTORM, first: int, threshold: float, min_mass: float) -> pd.DataFrame:
    """The peaks of frames `first`, `first` + 1, … from their ŷ (n, 1, f·H, f·W), sought in bands of rows."""
    f, height, width = network.factor, y.shape[2] // network.factor, y.shape[3] // network.factor
    # a peak's mass depends on maxima two such reaches away, and they on their neighbours
    margin = -(-(2 * MASS_REACH + 1) // f)
    band = max(PEAK_PIXELS // (len(y) * width), 4 * margin)
    bands = spans("band", height, band, margin)
    # in float64 a position is the same in both bands that see it; Apple's GPUs have none
    y = (y.cpu() if y.device.type == "mps" else y).double()
    columns: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    for top, begin, end in bands:
        found = to_coordinates(y[:, :, f * top : f * (top + band)], f, network.sigma, threshold, min_mass)
        v = found.v + top
        own = torch.ones_like(v, dtype=torch.bool)
        if begin > 0:
            own &= v >= begin - 0.5
        if end < height:
            own &= v < end - 0.5
        for name, values in zip(COLUMNS, (found.frame + first, found.u, v, found.height, found.mass), strict=True):
            columns[name].append(values[own].cpu())
    table = pd.DataFrame({name: torch.cat(x).numpy() for name, x in columns.items()})
    table = table.astype({name: np.float64 for name in COLUMNS[1:]})
    # a peak at the far edge of the last pixel is in the frame, which for a table ends just before that edge; in
    # float32, so that it does in Picasso's files too
    for name, size in (("u", width), ("v", height)):
        table[name] = table[name].clip(upper=float(np.nextafter(np.float32(size - 0.5), np.float32(0))))
    return table.sort_values("frame", kind="stable", ignore_index=True)
