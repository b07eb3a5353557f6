"""Frames a second of `localize` by one and by two workers of this machine, with one thread each.

    python benchmarks/localize_workers.py [--uncertainty]

A simulated movie of 64 × 64 pixels is localized with the shipped network by a cluster of one process and by one of two,
which take turns, after one block each to warm up; medians are compared. The seconds are from the first block that is
sent to the last result that is taken. CPU seconds are those of workers and of this process. Where something else runs
on the machine, workers wait for a core: a worker's share of a core, its CPU seconds over the seconds, tells how long,
and the last line but one what the ratio would be if all had a core.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smlmtut.cli.main import simulate
from smlmtut.imaging.camera import Camera
from smlmtut.io import Movie, read_movie
from smlmtut.localize import SamplingSettings, localize_movie, localize_with_uncertainty, shipped_sampler
from smlmtut.localize.cluster import computed, connected
from smlmtut.networks import pretrained

CAMERA = Camera(2.0, 100.0, 20.0)  # that of `smlmtut simulate`
BLOCK, SAMPLED_BLOCK = 256, 16  # frames, as `localize` has them


def main() -> None:
    """Print frames a second of one and of two workers, then their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uncertainty", action="store_true", help="draw 32 samples of each frame")
    parser.add_argument("--blocks", type=int, default=4, help="of the movie (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    localize: Any = partial(localize_movie, camera=CAMERA, network=pretrained.load())
    if given.uncertainty:
        sampler, settings = shipped_sampler()[0], SamplingSettings()
        localize = partial(localize_with_uncertainty, **localize.keywords, sampler=sampler, settings=settings)
    frames = SAMPLED_BLOCK if given.uncertainty else BLOCK
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "movie.tif"
        simulate(path, path.with_suffix(".csv"), frames=frames * given.blocks, size="64,64", density=300.0)
        movie = stack.enter_context(read_movie(path))
        clients = {workers: stack.enter_context(connected(workers)) for workers in (1, 2)}
        ranges = [(first, first + frames) for first in range(0, len(movie), frames)]
        for workers, client in clients.items():
            timed(client, localize, movie, ranges[:1] * workers)
        turns = [
            {workers: timed(client, localize, movie, ranges) for workers, client in clients.items()}
            for _ in range(given.turns)
        ]
    wall, cpu = ({n: statistics.median(turn[n][i] for turn in turns) for n in clients} for i in (0, 1))
    for n in clients:
        print(
            f"{n} worker{'s' * (n > 1)}: {len(movie) / wall[n]:.2f} frames/s, {wall[n]:.1f} s, {cpu[n]:.1f} CPU s, "
            f"{cpu[n] / wall[n] / n:.2f} of a core each"
        )
    print(f"two workers over one, by CPU seconds: {2 * cpu[1] / cpu[2]:.2f}")
    print(f"two workers over one, frames a second: {statistics.median(t[1][0] / t[2][0] for t in turns):.2f}")


def timed(client: Any, localize: Any, movie: Movie, ranges: list[tuple[int, int]]) -> tuple[float, float]:
    """Seconds, and CPU seconds of workers and this process."""

    def used() -> float:
        return sum(client.run(time.process_time).values()) + time.process_time()

    began, before = time.perf_counter(), used()
    for _ in computed(client, localize, movie, ranges):
        pass
    return time.perf_counter() - began, used() - before


if __name__ == "__main__":
    main()
