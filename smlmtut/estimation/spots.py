"""Find spots in frames and cut them out."""

import numpy as np
import torch
from torch import Tensor

from .._validate import finite, integers, number, positive, tensor, whole


def find_spots(frames: Tensor, sigma: float = 1.0, threshold: float = 5.0, border: int = 0) -> Tensor:
    """Candidate spots: local maxima of a matched filter, above a multiple of its noise.

    The filter is the PSF minus one twice as wide, which removes the local background. Its noise is estimated frame by
    frame from the median absolute deviation, which a crowded frame raises.

    frames: (T, H, W) photo-electrons (or any unit: the threshold is relative). sigma: PSF sd in pixels.
    threshold: smallest height of a maximum in units of that noise. border: pixels at the edge left out.
    Returns (K, 3) int64: frame, row, column; frame by frame, the brightest maximum first.
    Raises ValueError for a value that is not finite, a wrong rank, or a frame smaller than twice the border.
    """
    # imported here, since they take 0.3 s to load
    from scipy import ndimage
    from skimage.feature import peak_local_max

    frames = tensor("frames", finite("frames", frames), 3)
    number("sigma", sigma, positive)
    number("threshold", threshold, positive)
    whole("border", border, 0)
    if frames.shape[0] == 0 or min(frames.shape[1:]) <= 2 * border:
        raise ValueError(f"frames must hold frames larger than twice the border {border}, got {tuple(frames.shape)}")
    found = []
    for index, frame in enumerate(frames.detach().cpu().double().numpy()):
        narrow, wide = (ndimage.gaussian_filter(frame, s * sigma, mode="reflect") for s in (1.0, 2.0))
        filtered = narrow - wide
        noise = 1.4826 * np.median(np.abs(filtered - np.median(filtered)))  # sd of a normal with this deviation
        peaks = peak_local_max(
            filtered,
            min_distance=max(1, round(sigma)),
            threshold_abs=max(threshold * noise, np.finfo(float).tiny),
            exclude_border=border,  # type: ignore[arg-type]  # its annotation knows only bool
        )
        found.append(np.column_stack([np.full(len(peaks), index), peaks]))
    return torch.from_numpy(np.concatenate(found).astype(np.int64))


def cut_spots(frames: Tensor, found: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut a square window of odd size around every spot, shifted inwards at the edge of the frame.

    frames: (T, H, W); found: (K, 3) frame, row, column.
    Returns spots (K, size, size) and corners (K, 2) int64, (row, column) of each window's first pixel in the frame.
    Raises ValueError where size is even or larger than the frame, or a spot lies outside the frames.
    """
    frames, found = tensor("frames", frames, 3), integers("found", found)
    if found.ndim != 2 or found.shape[1] != 3:
        raise ValueError(f"found must have shape (K, 3): frame, row, column; got {tuple(found.shape)}")
    count, height, width = frames.shape
    if whole("size", size) % 2 == 0 or size > min(height, width):
        raise ValueError(f"size must be odd and at most the frame's {height} × {width} pixels, got {size}")
    frame, row, column = found.T
    for name, values, end in (("frame", frame, count), ("row", row, height), ("column", column, width)):
        if len(values) and not (int(values.min()) >= 0 and int(values.max()) < end):
            raise ValueError(
                f"found must have {name} in [0, {end - 1}], got {int(values.min())} to {int(values.max())}"
            )
    top = (row - size // 2).clamp(0, height - size)
    left = (column - size // 2).clamp(0, width - size)
    steps = torch.arange(size, device=found.device)
    rows, columns = (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None, :]
    return frames[frame[:, None, None], rows, columns], torch.stack([top, left], 1)
