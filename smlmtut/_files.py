"""Files that are replaced whole or not at all, and HDF5 files whose errors say what is wrong."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from filelock import FileLock, Timeout


class HashMismatch(ValueError):
    """A file whose bytes are not those that were registered for it."""


class TruncatedFile(ValueError):
    """A file that ends before its own description says it does."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold PATH.lock, so that one process alone writes what belongs to path; ValueError where another one does.

    The system releases the lock of a process that dies. PATH.running says who holds it.
    """
    lock, holder = path.with_name(f"{path.name}.lock"), path.with_name(f"{path.name}.running")
    guard = FileLock(lock, timeout=0)
    try:
        guard.acquire()
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise ValueError(f"{path} is being written by {who}: wait until it is done, or choose another output") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        guard.release()


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
