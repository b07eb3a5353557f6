"""Frames of a movie, read and checked some at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .._validate import rank, whole
from ..imaging.camera import Camera, check_frame_size, saturated
from ..io.movies import Movie

Frames = Movie | np.ndarray | Tensor


def movie_shape(movie: Frames, camera: Camera) -> tuple[int, int, int]:
    """(T, H, W) of a movie; ValueError where it is not a movie, or the camera's maps have another size."""
    if not isinstance(movie, Movie):
        rank("movie", movie, 3)
    length, height, width = (int(n) for n in movie.shape)
    if 0 in (length, height, width):
        raise ValueError(f"movie must hold at least one frame of one pixel, got shape {(length, height, width)}")
    if any(isinstance(x, Tensor) and x.ndim > 2 for x in (camera.gain, camera.offset, camera.read_variance)):
        raise ValueError("camera must have numbers or (H, W) maps for a movie, got a part of the sensor for each frame")
    check_frame_size("movie", torch.empty(height, width, device="meta"), camera)
    return length, height, width


def checked_stop(start: int, stop: int | None, length: int, least: int = 0) -> int:
    """The frame after the last one, where None stands for the movie's length; ValueError for a range beyond the movie.

    least: number of frames that start and stop must leave; an interrupted run may have none left to do.
    """
    stop = length if stop is None else whole("stop", stop)
    if not 0 <= whole("start", start, 0) <= stop - least <= length - least:
        raise ValueError(f"start and stop must choose frames from 0 to {length}, got {start} and {stop}")
    return stop


def frame_blocks(
    movie: Frames, camera: Camera, start: int, stop: int, frames: int, pixels: int
) -> Iterator[tuple[int, Tensor]]:
    """Frames `start` … `stop` − 1 in blocks: (index of a block's first frame, (n, H, W) ADU).

    frames, pixels: limits of a block, see `block_ranges`.
    """
    for first, last in block_ranges(movie.shape, start, stop, frames, pixels):
        yield first, read_frames(movie, camera, first, last)


def block_ranges(shape: Sequence[int], start: int, stop: int, frames: int, pixels: int) -> Iterator[tuple[int, int]]:
    """The blocks of frames `start` … `stop` − 1: index of the first frame, and of the one after the last.

    shape: (T, H, W) of the movie. frames, pixels: limits of a block, which has at least one frame.
    """
    size = max(1, min(frames, pixels // (shape[1] * shape[2])))
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def read_frames(movie: Frames, camera: Camera, first: int, last: int) -> Tensor:
    """Frames `first` … `last` − 1 as float32, (n, H, W) ADU; ValueError for a pixel that is saturated or not finite."""
    part = movie[first:last]
    if isinstance(movie, Movie):
        movie.release_memory()
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
