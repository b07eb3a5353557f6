"""Parts of a movie: frames read and checked a block at a time, and windows that cover a frame."""

import mmap
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .._validate import rank, whole
from ..imaging.camera import Camera, check_frame_size, saturated
from ..io.movies import Movie

Frames = Movie | np.ndarray | Tensor


def spans(name: str, size: int, window: int, reach: int) -> list[tuple[int, int, int]]:
    """Windows of one length that cover 0 … size, as (start, begin, end) of which [begin, end) is the window's own.

    Own parts do not overlap, cover all, and keep `reach` from the window's ends, but for those that are the frame's.
    """
    if whole(name, window) >= size:
        return [(0, 0, size)]
    if window <= 2 * reach:
        raise ValueError(f"{name} must be larger than twice the reach of {reach} px, or cover the frame, got {window}")
    count = -(-(size - 2 * reach) // (window - 2 * reach))
    starts = [i * (size - window) // (count - 1) for i in range(count)]
    borders = [0, *((a + window + b) // 2 for a, b in pairwise(starts)), size]
    return [(start, *own) for start, own in zip(starts, pairwise(borders), strict=True)]


def movie_shape(movie: Frames, camera: Camera) -> tuple[int, int, int]:
    """(T, H, W); ValueError where the movie is none, or the camera's maps have another size."""
    if not isinstance(movie, Movie):
        rank("movie", movie, 3)
    length, height, width = (int(n) for n in movie.shape)
    if 0 in (length, height, width):
        raise ValueError(f"movie must hold at least one frame of one pixel, got shape {(length, height, width)}")
    if any(isinstance(x, Tensor) and x.ndim > 2 for x in (camera.gain, camera.offset, camera.read_variance)):
        raise ValueError("camera must have numbers or (H, W) maps for a movie, got a part of the sensor for each frame")
    check_frame_size("movie", torch.empty(height, width, device="meta"), camera)
    return length, height, width


def read_frames(movie: Frames, camera: Camera, first: int, last: int) -> Tensor:
    """Frames first … last − 1 as float32, every pixel finite and below saturation: (n, H, W)."""
    part = movie[first:last]
    _forget(movie)
    adu = part.detach().cpu().float() if isinstance(part, Tensor) else torch.from_numpy(part.astype(np.float32))
    for bad, wanted in (
        (~torch.isfinite(adu), "finite numbers"),
        (saturated(adu, camera), f"below the camera's saturation of {camera.saturation} ADU"),
    ):
        if bool(bad.any()):
            i, row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"movie must hold values that are {wanted}, got {adu[i, row, column]:g} in frame {first + i}, counted "
                f"from 0, at row {row}, column {column} ({int(bad[i].sum())} pixels of that frame are not)"
            )
    return adu


def _forget(movie: Frames) -> None:
    """Give back a mapped file's pages: the system counts those that were read as this process's memory."""
    mapped = getattr(movie._map, "_mmap", None) if isinstance(movie, Movie) else None
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)
