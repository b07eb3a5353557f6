"""Movies and images as files: a movie's frames are read on demand; a file is written completely or not at all."""

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tifffile
from matplotlib.image import imsave
from torch import Tensor

from .._files import TruncatedFile, replacing, with_suffix
from .._validate import between, rank, whole
from .tiff import check_structure

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", *TIFF_SUFFIXES)
GRAY = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)


class Movie:
    """Frames of a TIFF file, (T, H, W), read from the disk when they are indexed.

    movie[i] is (H, W), movie[a:b] is (b - a, H, W); further indices select rows and columns. The result is a
    new array with the file's values in the machine's byte order. An uncompressed movie is memory-mapped; of a
    compressed one only the requested frames are decoded. Use it in a `with` statement, or close it.
    """

    def __init__(self, path: Path, file: tifffile.TiffFile) -> None:
        series = file.series[0]
        self.path = path
        height, width = int(series.shape[-2]), int(series.shape[-1])
        self.shape = (series.size // (height * width), height, width)
        self.dtype = series.dtype.newbyteorder("=")
        self._file = file
        self._mapped: mmap.mmap | None = None
        self._frames: np.ndarray | None = None
        if series.dataoffset is not None:
            with open(path, "rb") as raw:
                self._mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
            stored = series.dtype.newbyteorder(file.byteorder)
            self._frames = np.ndarray(self.shape, stored, self._mapped, series.dataoffset)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        if self._file.filehandle.closed:
            raise ValueError(f"{self.path} is closed: index the movie before the end of its `with` statement")
        if self._frames is not None:
            return np.array(self._frames[key], dtype=self.dtype)
        first, *rest = key if isinstance(key, tuple) else (key,)
        wanted = np.arange(len(self))[first]  # IndexError as numpy words it
        if wanted.ndim == 0:
            return self._decode(int(wanted))[tuple(rest)]
        frames = np.empty((wanted.size, *self.shape[1:]), self.dtype)
        for row, i in enumerate(wanted):
            frames[row] = self._decode(int(i))
        return frames[(slice(None), *rest)]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def release_memory(self) -> None:
        """Give memory back to the system, which counts the parts of a mapped file that were read as memory in use."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the file; indexing then raises ValueError."""
        self._frames = self._mapped = None
        self._file.close()

    def __enter__(self) -> "Movie":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Movie({str(self.path)!r}, shape={self.shape}, dtype={self.dtype})"

    def _decode(self, index: int) -> np.ndarray:
        page = self._file.series[0].pages[index]
        assert page is not None  # read_movie has checked all pages
        try:
            return page.asarray().reshape(self.shape[1:]).astype(self.dtype, copy=False)
        except Exception as error:  # every codec raises its own kind
            raise ValueError(f"{self.path}: frame {index} cannot be decoded: {error}") from error


def read_movie(path: str | Path) -> Movie:
    """Open a TIFF, OME-TIFF, ImageJ TIFF or BigTIFF movie of grey frames; pixels are read on demand.

    A single frame, (H, W), is a movie of length 1. Values are those of the file. In an ImageJ stack the frames may
    be called times, slices or channels.
    Raises ValueError where the file is not a TIFF, holds colours, channels or more than one image series, or
    needs a codec that is not installed; TruncatedFile (a ValueError) where it ends too early, which other TIFF
    readers may show as a shorter movie; FileNotFoundError where there is no file.
    """
    path = Path(path)
    with open(path, "rb") as raw:
        check_structure(path, raw)
    try:
        file = tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise ValueError(f"{path} must be a TIFF file: {error}") from error
    try:
        _check_series(path, file)
        return Movie(path, file)
    except Exception:
        file.close()
        raise


def write_movie(path: str | Path, frames: np.ndarray | Tensor) -> None:
    """Write frames (T, H, W) of any integer or floating-point type as a TIFF file, uncompressed.

    A file whose name ends in .ome.tif gets OME metadata. An existing file is replaced only after everything has
    been written. Raises ValueError for another rank, no frame, booleans or complex numbers, or another suffix.
    """
    path = with_suffix("path", path, TIFF_SUFFIXES)
    array = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    rank("frames", array, 3)
    if array.size == 0:
        raise ValueError(f"frames must hold at least one frame of one pixel, got shape {array.shape}")
    if array.dtype.kind not in "uif":
        raise ValueError(f"frames must be integers or floating-point numbers, got {array.dtype}")
    ome = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            array,
            ome=ome,
            bigtiff=array.nbytes > 2**32 - 2**25,
            photometric="minisblack",
            metadata={"axes": "TYX"},
        )


def write_stacks(path: str | Path, stacks: Iterable[np.ndarray | Tensor], shape: tuple[int, int, int, int]) -> None:
    """Write stacks of images, one for each frame, as one TIFF file of T·S float32 pages: an ImageJ hyperstack.

    stacks: T of (S, h, w), written one by one. shape: (T, S, h, w); tifffile and ImageJ call these axes TZYX.
    An existing file is replaced only after everything has been written. Raises ValueError for another suffix or rank,
    for nothing to write, or for stacks of another number or shape.
    """
    path = with_suffix("path", path, TIFF_SUFFIXES)
    frames, *_ = (whole("shape", n) for n in shape)

    def pages() -> Iterator[np.ndarray]:
        count = 0
        for count, stack in enumerate(stacks, 1):
            array = stack.detach().cpu().numpy() if isinstance(stack, Tensor) else np.asarray(stack)
            if count > frames or array.shape != tuple(shape[1:]):
                raise ValueError(
                    f"stacks must be {frames} of shape {tuple(shape[1:])}, got number {count}: {array.shape}"
                )
            yield from array.astype(np.float32, copy=False)
        if count < frames:
            raise ValueError(f"stacks must be {frames}, got {count}")

    large = 4 * math.prod(shape) > 2**32 - 2**25  # ImageJ's format cannot be larger
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary, pages(), shape=shape, dtype=np.float32, imagej=not large, bigtiff=large,
            photometric="minisblack", metadata={"axes": "TZYX"},
        )  # fmt: skip


def write_image(path: str | Path, image: np.ndarray, brightest: float = 0.99) -> None:
    """Write a super-resolved image (H, W): a .tif keeps the numbers, a .png shows them in colours.

    brightest: quantile of the lit pixels (those above a thousandth of the largest) that is white in a .png.
    An existing file is replaced only after everything has been written. Raises ValueError for another suffix or rank,
    or a quantile outside [0, 1].
    """
    path = with_suffix("path", path, IMAGE_SUFFIXES)
    between("brightest", brightest, 0, 1)
    if path.suffix.lower() in TIFF_SUFFIXES:
        return write_movie(path, rank("image", image, 2)[None])
    lit = image[rank("image", image, 2) > 1e-3 * image.max()]
    with replacing(path) as temporary:
        top = float(np.quantile(lit, brightest)) if lit.size else 1.0
        imsave(temporary, image, vmin=0, vmax=top, cmap="inferno", format="png")


def _check_series(path: Path, file: tifffile.TiffFile) -> None:
    shapes = [s.shape for s in file.series]
    if len(shapes) != 1:
        raise ValueError(f"{path} must hold one image series, got {len(shapes)} of shapes {shapes}")
    series = file.series[0]
    axes = "".join(a for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX")
    colours = "SC" if series.kind == "ome" else "S"  # ImageJ often calls the axis of the frames C
    if axes[-2:] != "YX" or len(axes) > 3 or (len(axes) == 3 and axes[0] in colours):
        raise ValueError(
            f"{path} must hold grey frames (time, rows, columns), got axes {series.axes} of shape {series.shape}"
        )
    page = series.keyframe
    if page.photometric not in GRAY or series.dtype is None or series.dtype.kind not in "uif":
        photometric = getattr(page.photometric, "name", page.photometric)
        raise ValueError(f"{path} must hold grey numbers, got {series.dtype} of photometric kind {photometric}")
    size = os.path.getsize(path)
    if series.dataoffset is not None:
        if series.dataoffset + series.size * series.dtype.itemsize > size:
            raise TruncatedFile(f"{path} is truncated: {series.shape[0]} frames do not fit in its {size} bytes")
        return
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        raise ValueError(f"{path} is compressed, and its codec is not installed: {error.args[0]}") from error
    for i, page in enumerate(series.pages):
        if page is None:
            raise ValueError(f"{path}: frame {i} lies in another file of the same movie, which was not found")
        counts, offsets = np.array(page.databytecounts), np.array(page.dataoffsets)
        end = os.path.getsize(page.parent.filehandle.path) if page.parent is not file else size
        if counts.size == 0 or (counts == 0).any() or (offsets + counts > end).any():
            raise TruncatedFile(f"{path} is truncated: the pixels of frame {i} are not all in the file")
