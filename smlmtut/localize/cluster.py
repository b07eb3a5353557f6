"""Blocks of a movie, computed by the workers of a dask cluster as one process with one thread computes them.

One process reads the frames, sends them block by block, and takes the results in the order of the blocks: it alone
needs the movie. Each worker gets the networks once. The blocks of a worker that dies are computed by another one, with
the same result, since the random numbers of a block depend on its first frame alone.
"""

import asyncio
import pkgutil
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from .._validate import whole
from ..io.movies import Movie
from .frames import Frames

try:
    from dask import config
    from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin, get_worker
    from distributed.comm.core import CommClosedError, connect
except ImportError as error:
    raise ImportError(f"workers need dask.distributed, pip install 'smlmtut[cluster]': {error}") from error

AHEAD = 2  # blocks in flight for each thread of the workers: one that is computed, one that waits
CONNECT_SECONDS = 10
LARGE = {"distributed.admin.large-graph-warning-threshold": "1GiB"}  # a block has up to 2^22 pixels, which is meant
# Workers of dask give freed memory back at once. Then each tensor of torch needs new pages, and 256 frames of 64 × 64
# pixels take 12.8 s of CPU time instead of 8.4
KEEP = {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}
Localize = Callable[..., Iterator[tuple[Any, ...]]]


def connected(workers: int | None = None, scheduler: str | None = None) -> AbstractContextManager[Client]:
    """The client of a dask cluster, for a `with` statement.

    workers: number of processes to start on this machine, with one thread each; they end with the statement.
    scheduler: address of a scheduler that runs already, for instance tcp://10.0.0.1:8786.
    Raises ValueError unless one of them is given, or for less than one worker; in the `with` statement OSError where
    no scheduler answers at the address.
    """
    if (workers is None) == (scheduler is None):
        raise ValueError(f"one of --workers and --scheduler must be given, got {workers} and {scheduler}")
    return _remote(scheduler) if workers is None else _local(whole("--workers", workers))  # type: ignore[arg-type]


def computed(
    client: Client, localize: Localize, movie: Frames, ranges: Iterable[tuple[int, int]]
) -> Generator[tuple[Any, ...]]:
    """What `localize(movie, start=first, stop=last)` yields, one block for each of the ranges, in their order.

    localize: can be pickled. ranges: the first frame of a block, and the one after the last. At most AHEAD blocks for
        each thread of the workers are in flight; no more of the movie and of the results is in memory. Workers may
        come and go; where there is none, this waits for one.
    Raises ValueError where the scheduler or a worker has another version of smlmtut or torch, OSError where workers
        die again and again at one block or the scheduler is lost, and what `localize` raises.
    """
    client.wait_for_workers(1)
    check_versions(client)
    name, waiting = f"smlmtut-{uuid.uuid4().hex}", deque[Future]()
    client.register_plugin(Localizer(localize), name=name)
    try:
        for first, last in ranges:
            with config.set(LARGE):
                waiting.append(client.submit(_block, name, _read(movie, first, last), first, len(movie), pure=False))
            if len(waiting) >= AHEAD * max(1, sum(client.nthreads().values())):  # type: ignore[attr-defined]
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    except KilledWorker as error:
        raise OSError(f"workers must live, give them more memory or time: {error}") from error
    except (CommClosedError, CancelledError) as error:
        raise OSError("the dask scheduler was lost: give the same command again to continue") from error
    finally:
        for task in waiting:
            task.release()  # dask drops what nobody waits for
        with suppress(OSError):  # where the scheduler was lost
            client.unregister_worker_plugin(name)


def check_versions(client: Client) -> None:
    """Raise ValueError where the scheduler or a worker would not give the numbers that this process gives."""
    for package, version in (("smlmtut", __version__), ("torch", str(torch.__version__))):
        wanted = f"{package}:__version__"  # asked for by Python's own library, which is there whatever else is not
        found: Any = client.run(pkgutil.resolve_name, wanted, on_error="return")
        try:
            found["scheduler"] = client.run_on_scheduler(pkgutil.resolve_name, wanted)  # it reads what it passes on
        except ImportError as error:
            found["scheduler"] = error
        for place, got in found.items():
            if str(got) != version and not isinstance(got, OSError):  # a worker that died meanwhile
                raise ValueError(f"{place} must have {package} {version}, as this process has, got {got}")


class Localizer(WorkerPlugin):
    """What every worker gets once: the function that localizes frames, with its networks, and the version it is of."""

    def __init__(self, localize: Localize) -> None:
        self.localize, self.version = localize, __version__


class Part:
    """Frames of a movie from number `first` on, which stand for the whole movie, of some length."""

    def __init__(self, frames: np.ndarray | Tensor, first: int, length: int) -> None:
        self.frames, self.first, self.shape = frames, first, (length, *frames.shape[1:])

    def __getitem__(self, key: slice) -> np.ndarray | Tensor:
        return self.frames[key.start - self.first : key.stop - self.first]


def _block(name: str, frames: np.ndarray | Tensor, first: int, length: int) -> tuple[Any, ...]:
    """On a worker: the result for some frames, by one thread. ValueError where the worker has another version."""
    given: Any = get_worker().plugins[name]
    if given.version != __version__:  # the worker came after the others were asked
        raise ValueError(f"workers must have smlmtut {given.version}, as the process that asks, got {__version__}")
    torch.set_num_threads(1)
    (result,) = given.localize(Part(frames, first, length), start=first, stop=first + len(frames))
    return result


def _read(movie: Frames, first: int, last: int) -> np.ndarray | Tensor:
    """Some frames, in memory of their own: a part of a tensor would be sent with all of it."""
    part = movie[first:last]
    if isinstance(movie, Movie):
        movie.release_memory()
    return part.detach().cpu().clone() if isinstance(part, Tensor) else part


def _result(task: Future) -> Any:
    try:
        return task.result()
    finally:
        task.release()  # an error would hold it, and it the error


@contextmanager
def _local(workers: int) -> Iterator[Client]:
    with (
        config.set(KEEP),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _remote(scheduler: str) -> Iterator[Client]:
    try:  # a client would wait for ever where something else answers at the address
        asyncio.run(asyncio.wait_for(_reach(scheduler), CONNECT_SECONDS))
    except (OSError, ValueError) as error:
        raise OSError(
            "--scheduler must be the address of a dask scheduler that runs, for instance tcp://10.0.0.1:8786, "
            f"got {scheduler!r}: {str(error) or f'no answer in {CONNECT_SECONDS} s'}"
        ) from error
    with Client(scheduler, set_as_default=False) as client:
        yield client


async def _reach(scheduler: str) -> None:
    await (await connect(scheduler)).close()
