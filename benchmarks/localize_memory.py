"""Peak memory of localizing a long movie against a short one, and frames per second, 64 × 64 pixels.

    python benchmarks/localize_memory.py [--weights NAME|PATH]

Each movie is written, and then localized by `localize_to_file` in a process of its own, whose high-water mark of
resident memory the kernel reports. The last line is the peak of the long movie over that of the short one.
Without --weights the network is DeepSTORM's default with random weights, scaled so that it finds about the number of
peaks of a crowded movie: its time and memory do not depend on what the weights are. With --small the process
needs less memory, so that whatever grows with the movie weighs more. Linux and macOS.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from smlmtut import io
from smlmtut.imaging import blinking, simulate
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.psf import PSF
from smlmtut.localize import localize_to_file
from smlmtut.networks import pretrained
from smlmtut.networks.deepstorm import DeepSTORM, estimate_kde

SHAPE, PIXEL_NM = (64, 64), 108.0
CAMERA = Camera(2.0, 100.0, 20.0, saturation=65535, integer=True)
KEPT = 500  # different frames; a longer movie repeats them


def main() -> None:
    """Write the movies, localize each in its own process, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, nargs=2, default=(1_000, 20_000), help="lengths of the two movies")
    parser.add_argument("--weights", help="name or file of the network; default: random weights")
    parser.add_argument("--small", action="store_true", help="a random network of few features: quick")
    parser.add_argument("--suffix", choices=(".csv", ".hdf5"), default=".csv", help="format of the table")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        return write(args.one, args.write, args.weights, args.small)
    if args.one:
        return localize_one(args.one, args.weights, args.suffix)
    peaks = []
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "movie.tif"
            weights = args.weights or str(Path(folder) / "random.safetensors")
            # the movie is made in another process too: a new process inherits its parent's high-water mark
            run("--one", path, "--write", frames, "--weights", weights, *(["--small"] if args.small else []))
            out = run("--one", path, "--weights", weights, "--suffix", args.suffix)
        print(out, end="", flush=True)
        peaks.append(float(out.split()[-2]))
    print(f"peak memory, {args.frames[1]} frames over {args.frames[0]}: {peaks[1] / peaks[0]:.3f}")


def run(*arguments: object) -> str:
    """What this script prints with other arguments."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def localize_one(path: Path, weights: str, suffix: str) -> None:
    """Localize one movie and print frames per second and the peak memory of this process."""
    network = pretrained.load(weights)
    with io.read_movie(path) as movie:
        began = time.perf_counter()
        rows = localize_to_file(path.with_suffix(suffix), movie, CAMERA, network, PIXEL_NM)
        seconds = time.perf_counter() - began
        speed = f"{len(movie) / seconds:.1f} frames/s on {torch.get_num_threads()} threads"
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        print(f"{len(movie)} frames, {rows} localizations, {speed}, peak {peak:.0f} MB")


def write(path: Path, frames: int, weights: str, small: bool) -> None:
    """A movie of blinking molecules, and random weights beside it where they are asked for."""
    generator = torch.Generator().manual_seed(0)
    found = simulate.uniform_in_frame(1, SHAPE, 1.0, generator, count=1500)
    kinetics = blinking.Kinetics(off_time=400.0, flashes=100.0)
    flashes = blinking.blink(found.u[0], found.v[0], kinetics, KEPT, generator)
    parts = blinking.movie(flashes, PSF(1.0), CAMERA, SHAPE, 5.0, KEPT, generator)
    some = torch.cat(list(parts)).clamp(min=0).numpy().astype(np.uint16)
    io.write_movie(path, some[np.arange(frames) % KEPT])
    if Path(weights).parent == path.parent:
        pretrained.save(random_network(path, small), weights)


def random_network(path: Path, small: bool) -> DeepSTORM:
    """Random weights whose ŷ has the spread that makes some ten peaks a frame."""
    torch.manual_seed(0)
    network = (DeepSTORM(8, (1, 2), (8, 4), 1) if small else DeepSTORM()).eval()
    torch.nn.init.normal_(network.head.weight)
    with io.read_movie(path) as movie, torch.no_grad():
        y = torch.from_numpy(movie[:20].astype(np.float32))
    network.head.weight.data /= 1e4  # far from the HardTanh's ends
    seen = estimate_kde(network, y, CAMERA)
    # 0.25, the default threshold, is then passed by two pixels in a thousand
    top, middle = seen.flatten()[::7].quantile(torch.tensor([0.998, 0.5]))
    scale = 0.25 / float(top - middle)
    network.head.weight.data *= scale
    network.head.bias.data -= scale * float(middle) / network.ceiling  # type: ignore[operator]
    return network


if __name__ == "__main__":
    main()
