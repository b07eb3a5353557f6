"""Files that are replaced whole or not at all, by one run at a time, and HDF5 files whose errors say what is wrong."""

import errno
import os
import shutil
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


class FileInUse(ValueError):
    """A file that another run is writing."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold PATH.lock, so that one run alone writes what belongs to path.

    The system releases the lock of a process that dies, so no lock outlives its run. PATH.running says who holds it.
    Raises FileInUse where another run holds it, FileNotFoundError where path's folder is not there, and OSError where
    nothing can be written in it.
    """
    if not path.parent.is_dir():  # FileLock would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    lock, holder = path.with_name(f"{path.name}.lock"), path.with_name(f"{path.name}.running")
    guard = FileLock(lock, timeout=0, thread_local=False)
    try:
        guard.acquire()
    except Timeout:
        try:
            who = holder.read_text(encoding="utf-8")[:200]
        except (OSError, ValueError):
            who = "another process"
        raise FileInUse(f"{path} is being written by {who}: wait until it is done, or choose another output") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # names the output, not its lock
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


def reserve(path: Path, size: int) -> None:
    """Raise OSError where the disk of path has no room for size bytes more.

    For HDF5: on a full disk its library ends the process with a segmentation fault when it closes the file.
    """
    size += 1 << 16  # what HDF5 writes besides the numbers, and what a file system may round up
    with tempfile.TemporaryFile(dir=path.parent) as file:
        if hasattr(os, "posix_fallocate"):  # knows of quotas, too
            os.posix_fallocate(file.fileno(), 0, size)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; ValueError where it is none or damaged, TruncatedFile where it ends too early."""
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise
    except OSError as error:
        kind = TruncatedFile if "truncated" in str(error) else ValueError
        raise kind(f"{path} must be an HDF5 file: {error}") from error
    with file:
        try:
            yield file
        except Exception as error:  # h5py has many kinds for what it cannot read
            if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
                raise
            raise ValueError(f"{path} is damaged, HDF5 cannot read it: {error}") from error


def with_suffix(name: str, path: str | Path, suffixes: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
