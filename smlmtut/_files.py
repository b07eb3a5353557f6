"""Files that are replaced whole or not at all, and HDF5 files whose errors say what is wrong."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


class HashMismatch(ValueError):
    """A file whose bytes are not those that were registered for it."""


class TruncatedFile(ValueError):
    """A file that ends before its own description says it does."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside path that takes its place when the block ends, and vanishes where it fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; ValueError where it is none, TruncatedFile where it ends too early."""
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise
    except OSError as error:
        kind = TruncatedFile if "truncated" in str(error) else ValueError
        raise kind(f"{path} must be an HDF5 file: {error}") from error
    with file:
        yield file


def with_suffix(name: str, path: str | Path, suffixes: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
