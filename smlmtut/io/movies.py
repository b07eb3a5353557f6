"""Movies and images as files: a movie's frames are read on demand; a file is written completely or not at all."""

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from matplotlib.image import imsave
from torch import Tensor

from .._files import TruncatedFile, replacing, with_suffix
from .._validate import between, positive, rank, whole
from .pixel_size import IMAGEJ_TYPES, pixel_size_tags, stated_pixel_size
from .tiff import check_structure

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", *TIFF_SUFFIXES)
CODECS = "Most come with the extra for microscopes: pip install 'smlmtut[microscope]'"
GRAY = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)
OTHERS = {
    ".nd2": "a file of Nikon", ".czi": "a file of Zeiss", ".lsm": "a file of Zeiss", ".lif": "a file of Leica",
    ".dcimg": "a file of Hamamatsu, which HCImage exports as TIFF", ".spe": "a file of Princeton Instruments",
}  # fmt: skip


class Movie:
    """Frames of a TIFF file, (T, H, W), read from the disk when they are indexed.

    movie[i] is (H, W), movie[a:b] is (b - a, H, W); further indices select rows and columns. The result is a
    new array with the file's values in the machine's byte order. An uncompressed movie is memory-mapped; of a
    compressed one only the requested frames are decoded. Use it in a `with` statement, or close it.
    pixel_size_nm: side of a pixel as OME or ImageJ metadata state it; None where they do not, or not a square one.
    """

    def __init__(self, path: Path, file: tifffile.TiffFile) -> None:
        series = file.series[0]
        self.path = path
        height, width = int(series.shape[-2]), int(series.shape[-1])
        self.shape = (len(file.series) * (series.size // (height * width)), height, width)
        self.dtype = series.dtype.newbyteorder("=")
        self.pixel_size_nm = stated_pixel_size(file)
        self._file = file
        self._mapped: mmap.mmap | None = None
        self._frames: np.ndarray | None = None
        if series.dataoffset is not None and len(file.series) == 1:
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
        page = _page(self._file, index)
        assert page is not None  # read_movie has checked all pages
        with _open(page.parent.filehandle):
            try:
                return page.asarray().reshape(self.shape[1:]).astype(self.dtype, copy=False)
            except Exception as error:  # every codec raises its own kind
                raise ValueError(f"{self.path}: frame {index} cannot be decoded: {error}") from error


def read_movie(path: str | Path) -> Movie:
    """Open a TIFF, OME-TIFF, ImageJ TIFF or BigTIFF movie of grey frames; pixels are read on demand.

    A single frame, (H, W), is a movie of length 1. Values are those of the file. In an ImageJ stack the frames may
    be called times, slices or channels. A movie may lie in several OME files, and its pages may be series of their own.
    Raises ValueError where the file is not a TIFF, holds colours, channels or more than one image series, or
    needs a codec that is not installed; TruncatedFile (a ValueError) where it ends too early, which other TIFF
    readers may show as a shorter movie; FileNotFoundError where there is no file.
    """
    path = Path(path)
    if path.suffix.lower() in OTHERS and path.stat():  # FileNotFoundError where there is none
        raise ValueError(
            f"{path} must be a TIFF movie, got {OTHERS[path.suffix.lower()]}: convert it, for instance in Fiji by "
            "Plugins › Bio-Formats, then File › Save As › Tiff, or by `bfconvert`, without scaling to 8 bits"
        )
    with open(path, "rb") as raw:
        check_structure(path, raw)
    try:
        file = tifffile.TiffFile(path)
    except Exception as error:  # TiffFileError, and for damaged tags many other kinds
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path} must be a TIFF file: {error}") from error
    try:
        _check_series(path, file)
        return Movie(path, file)
    except Exception as error:
        file.close()
        if isinstance(error, ValueError | OSError):
            raise
        raise ValueError(f"{path} is damaged, tifffile cannot read it: {error!r}") from error


def write_movie(path: str | Path, frames: np.ndarray | Tensor, pixel_size_nm: float | None = None) -> None:
    """Write frames (T, H, W) of any integer or floating-point type as a TIFF file, uncompressed.

    pixel_size_nm: side of a pixel, to be stated in the file. A file whose name ends in .ome.tif gets OME metadata;
    others state it as ImageJ does where ImageJ knows the type, else in pixels per centimetre.
    An existing file is replaced only after everything has been written. Raises ValueError for another rank, no
    frame, booleans or complex numbers, a pixel size that is not positive, or another suffix.
    """
    path = with_suffix("path", path, TIFF_SUFFIXES)
    array = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    _write(path, rank("frames", array, 3), "TYX", pixel_size_nm)


def write_stacks(
    path: str | Path,
    stacks: Iterable[np.ndarray | Tensor],
    shape: tuple[int, int, int, int],
    pixel_size_nm: float | None = None,
) -> None:
    """Write stacks of images, one for each frame, as one TIFF file of T·S float32 pages: an ImageJ hyperstack.

    stacks: T of (S, h, w), written one by one. shape: (T, S, h, w); tifffile and ImageJ call these axes TZYX.
    pixel_size_nm: side of a pixel of the images, to be stated in the file.
    An existing file is replaced only after everything has been written. Raises ValueError for another suffix or rank,
    for nothing to write, for stacks of another number or shape, or a pixel size that is not positive.
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

    large = 4 * math.prod(shape) > 2**32 - 2**25  # ImageJ's own kind of TIFF cannot be larger
    stated = _stated(pixel_size_nm, "TZYX", ome=False, imagej=not large)
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary, pages(), shape=shape, dtype=np.float32, imagej=not large, bigtiff=large,
            photometric="minisblack", **stated,
        )  # fmt: skip


def write_image(
    path: str | Path, image: np.ndarray, brightest: float = 0.99, pixel_size_nm: float | None = None
) -> None:
    """Write a super-resolved image (H, W): a .tif keeps the numbers, a .png shows them in colours.

    brightest: quantile of the lit pixels (those above a thousandth of the largest) that is white in a .png.
    pixel_size_nm: side of a pixel of the image, to be stated in a .tif.
    An existing file is replaced only after everything has been written. Raises ValueError for another suffix or rank,
    a quantile outside [0, 1], or a pixel size that is not positive.
    """
    path = with_suffix("path", path, IMAGE_SUFFIXES)
    between("brightest", brightest, 0, 1)
    if path.suffix.lower() in TIFF_SUFFIXES:
        return _write(path, rank("image", image, 2), "YX", pixel_size_nm)
    lit = image[rank("image", image, 2) > 1e-3 * image.max()]
    with replacing(path) as temporary:
        top = float(np.quantile(lit, brightest)) if lit.size else 1.0
        imsave(temporary, image, vmin=0, vmax=top, cmap="inferno", format="png")


def _missing_codec(page: tifffile.TiffPage) -> str:
    """What the codec of a page needs and does not find; "" where it is there."""
    try:
        tifffile.TIFF.UNPREDICTORS[page.predictor]
        decode = tifffile.TIFF.DECOMPRESSORS[page.compression]
        if decode is not None:
            decode(b"")  # some codecs are imported only now
    except (KeyError, ImportError) as error:
        return f"{page.compression!r}: {error}"
    except Exception:  # nothing to decode, which is not the question
        return ""
    return ""


def _a_series_a_page(file: tifffile.TiffFile) -> bool:
    """Whether a file has many series because each frame was written by itself. Images of OME are different scenes."""
    kinds = {(s.kind, s.shape, s.dtype, s.keyframe.compression, s.keyframe.photometric) for s in file.series}
    return len(kinds) == 1 and not file.is_ome and all(len(s.pages) == 1 for s in file.series)


def _page(file: tifffile.TiffFile, index: int) -> tifffile.TiffPage | tifffile.TiffFrame | None:
    """The page of a frame; None where it lies in another file that was not found."""
    return file.series[0].pages[index] if len(file.series) == 1 else file.series[index].pages[0]


@contextmanager
def _open(handle: tifffile.FileHandle) -> Iterator[None]:
    """A file that is open in the block: tifffile closes the other files of an OME movie after it has seen them."""
    if not handle.closed:
        yield
        return
    handle.open()
    try:
        yield
    finally:
        handle.close()


def _write(path: Path, array: np.ndarray, axes: str, pixel_size_nm: float | None) -> None:
    """Write an array as a TIFF file of these axes."""
    if array.size == 0:
        raise ValueError(f"frames must hold at least one frame of one pixel, got shape {array.shape}")
    if array.dtype.kind not in "uif":
        raise ValueError(f"frames must be integers or floating-point numbers, got {array.dtype}")
    ome, large = path.name.lower().endswith((".ome.tif", ".ome.tiff")), array.nbytes > 2**32 - 2**25
    imagej = pixel_size_nm is not None and not ome and not large and array.dtype.name in IMAGEJ_TYPES
    stated = _stated(pixel_size_nm, axes, ome, imagej)
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, array, ome=ome, imagej=imagej, bigtiff=large, photometric="minisblack", **stated)


def _stated(pixel_size_nm: float | None, axes: str, ome: bool, imagej: bool) -> dict[str, Any]:
    """Arguments of tifffile.imwrite that state axes and pixel size."""
    if pixel_size_nm is not None:
        pixel_size_nm = float(positive("pixel_size_nm", pixel_size_nm))
    tags = pixel_size_tags(pixel_size_nm, ome, imagej)
    return tags | {"metadata": tags["metadata"] | {"axes": axes}}


def _check_series(path: Path, file: tifffile.TiffFile) -> None:
    shapes = [s.shape for s in file.series]
    if len(shapes) != 1 and not _a_series_a_page(file):
        raise ValueError(f"{path} must hold one image series, got {len(shapes)} of shapes {shapes}")
    series = file.series[0]
    axes = "".join(a for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX")
    colours = "SC" if series.kind == "ome" else "S"  # ImageJ often calls the axis of the frames C
    if axes[-2:] != "YX" or len(axes) > 3 or (len(axes) == 3 and axes[0] in colours):
        hint = ""
        if series.keyframe.photometric == tifffile.PHOTOMETRIC.RGB:
            hint = ", in colours: if these are frames, write them with tifffile.imwrite(…, photometric='minisblack')"
        raise ValueError(
            f"{path} must hold grey frames (time, rows, columns), got axes {series.axes} of shape {series.shape}{hint}"
        )
    page = series.keyframe
    if page.photometric not in GRAY or series.dtype is None or series.dtype.kind not in "uif":
        photometric = getattr(page.photometric, "name", page.photometric)
        raise ValueError(f"{path} must hold grey numbers, got {series.dtype} of photometric kind {photometric}")
    size = os.path.getsize(path)
    if series.dataoffset is not None and len(shapes) == 1:
        if series.dataoffset + series.size * series.dtype.itemsize > size:
            raise TruncatedFile(f"{path} is truncated: {series.shape[0]} frames do not fit in its {size} bytes")
        return
    missing = _missing_codec(series.keyframe)
    if missing:
        raise ValueError(f"{path} is compressed, and its codec is not installed: {missing}. {CODECS}")
    for i in range(len(series.pages) * len(shapes)):
        page = _page(file, i)
        if page is None:
            raise ValueError(f"{path}: frame {i} lies in another file of the same movie, which was not found")
        counts, offsets = np.array(page.databytecounts), np.array(page.dataoffsets)
        end = os.path.getsize(page.parent.filehandle.path) if page.parent is not file else size
        if counts.size == 0 or (counts == 0).any() or (offsets + counts > end).any():
            raise TruncatedFile(f"{path} is truncated: the pixels of frame {i} are not all in the file")
