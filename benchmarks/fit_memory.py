"""Peak memory of fitting a million spots of 11 × 11 pixels, beyond that of the spots themselves.

    python benchmarks/fit_memory.py

The last line is the peak resident memory during the fit minus the resident memory just before it, in GB; the
result (about 66 MB) counts. Linux and macOS.
"""

import argparse
import resource
import sys
import threading
import time

import psutil
import torch

from smlmtut.estimation.fit import fit_spots


def spots(count: int) -> torch.Tensor:
    """Poisson spots (count, 11, 11) float32: 500 photons near the centre on 5 a pixel; 10 000 different ones."""
    from smlmtut.imaging import simulate
    from smlmtut.imaging.camera import Camera
    from smlmtut.imaging.psf import PSF, Emitters

    generator = torch.Generator().manual_seed(0)
    u, v = 4.5 + torch.rand(2, 10_000, 1, generator=generator, dtype=torch.float64)
    emitters = Emitters(u, v, torch.full_like(u, 500.0))
    few = simulate.frames(emitters, PSF(1.0), Camera.ideal(), (11, 11), 5.0, generator).float()
    out = torch.empty(count, 11, 11)
    for first in range(0, count, len(few)):
        part = out[first : first + len(few)]
        part.copy_(few[: len(part)])
    return out


def main() -> None:
    """Fit, watch the resident memory, print its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="spots")
    args = parser.parse_args()
    x, process = spots(args.count), psutil.Process()
    before, sampled, stop = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            sampled[0] = max(sampled[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    fit = fit_spots(x, 1.0, True)
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    highest = max(sampled[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    print(f"{args.count} spots: {x.numel() * 4 / 1e9:.2f} GB; resident before the fit {before / 1e9:.2f} GB")
    print(f"{float(fit.converged.float().mean()):.4%} converged, {args.count / seconds:.0f} fits/s")
    print(f"peak beyond the input: {(highest - before) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
