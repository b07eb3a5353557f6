"""Fits per second and accuracy of smlmtut.fit_spots against Picasso's multithreaded maximum likelihood.

    python benchmarks/fit_vs_picasso.py [--picasso PYTHON]

Both fit (u, v, N, b, σ) to the same float32 spots of 11 × 11 pixels, N = 500, b = 5, σ = 1, taking turns in one
run on all cores. Picasso runs in its own environment: PYTHON is that environment's interpreter; without it one is
made under _build/picasso. The last line is the ratio of the median speeds, against Picasso's faster setting.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.picasso_side import picasso_python, picasso_version

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its idle threads must not spin
SIZE, PHOTONS, BACKGROUND, SIGMA = 11, 500.0, 5.0, 1.0
PICASSO = {  # name: tolerance and iterations; None is Picasso's own default
    "Picasso, its defaults": (None, None),
    "Picasso, tolerance 1e-5": (1e-5, 100),
}
OURS = "smlmtut"


def worker(spots_file: str) -> None:
    """Picasso's side, in its own environment: one fit for each line of stdin, one line of JSON for each fit."""
    from picasso.fitting import gaussfit, seeds  # type: ignore[import-not-found]

    def fit(spots, start, tolerance, iterations):
        began = time.perf_counter()
        running = gaussfit.fit_spots_async(
            gaussfit.SPHERICAL, spots, start, mle=True, tolerance=tolerance, max_iterations=iterations
        )
        while not running.finished():
            time.sleep(0.001)
        running.raise_errors()
        theta, _, states, _ = running.results()
        return time.perf_counter() - began, theta, states

    spots = np.load(spots_file)
    start = seeds.initial_parameters_gauss(spots, SIZE, spherical=True)  # not timed
    fit(spots[:2000], start[:2000], None, None)  # compiles
    for line in sys.stdin:
        order = json.loads(line)
        seconds, theta, states = fit(spots, start, order["tolerance"], order["iterations"])
        np.save(order["out"], np.column_stack([theta[:, 1], theta[:, 2], states == 0]))  # u, v, converged
        print(json.dumps({"seconds": seconds}), flush=True)


def simulate(count: int):
    """Spots (count, 11, 11) float32, the true u and v, and the bound on the sd of u, root mean square."""
    import torch

    from smlmtut.estimation import fisher
    from smlmtut.imaging import simulate
    from smlmtut.imaging.camera import Camera
    from smlmtut.imaging.psf import PSF, Emitters

    generator = torch.Generator().manual_seed(0)
    position = (SIZE - 1) / 2 + torch.rand(2, count, 1, generator=generator, dtype=torch.float64) - 0.5
    emitters = Emitters(position[0], position[1], torch.full((count, 1), PHOTONS, dtype=torch.float64))
    frames = simulate.frames(emitters, PSF(SIGMA), Camera.ideal(), (SIZE, SIZE), BACKGROUND, generator)
    few = Emitters(*(x[:5000] for x in (emitters.u, emitters.v, emitters.photons)))
    names = ("u", "v", "photons", "sigma", "background")
    bound = fisher.localization_bound(few, PSF(SIGMA), Camera.ideal(), (SIZE, SIZE), BACKGROUND, names)
    return frames.float().numpy(), position[:, :, 0].numpy(), float(bound[:, :2].square().mean().sqrt())


def accuracy(found: np.ndarray, truth: np.ndarray, bound: float) -> str:
    """sd of u and v over the bound, of all fits that ended within 1 px, and the shares that did and that converged."""
    error = found[:, :2] - truth.T
    near = (np.abs(error) < 1).all(1)
    share = f"{100 * found[:, 2].mean():.2f} % converged, {100 * near.mean():.2f} % within 1 px"
    return f"sd / bound {error[near].std() / bound:.3f}, {share}"


def main() -> None:
    """Run both sides, print the table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picasso", help="Python interpreter of an environment with picassosr")
    parser.add_argument("--count", type=int, default=100_000, help="spots")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker)
        return

    import torch

    from smlmtut.estimation.fit import fit_spots

    python = picasso_python(args.picasso)
    version = picasso_version(python)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    print(f"{args.count} spots, {cores} cores, torch {torch.__version__}, picassosr {version}", flush=True)
    spots, truth, bound = simulate(args.count)
    ours = torch.from_numpy(spots)
    seconds: dict[str, list[float]] = {name: [] for name in (OURS, *PICASSO)}
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(spots_file := f"{folder}/spots.npy", spots)
        command = [python, str(Path(__file__).resolve()), "--worker", spots_file]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as picasso:
            assert picasso.stdin and picasso.stdout
            fit_spots(ours[:10_000], SIGMA, True)
            for _ in range(args.repeats):
                began = time.perf_counter()
                fit = fit_spots(ours, SIGMA, True)
                seconds[OURS].append(time.perf_counter() - began)
                found[OURS] = torch.stack([fit.u, fit.v, fit.converged.float()], 1).double().numpy()
                for name, (tolerance, iterations) in PICASSO.items():
                    order = {"tolerance": tolerance, "iterations": iterations, "out": f"{folder}/found.npy"}
                    print(json.dumps(order), file=picasso.stdin, flush=True)
                    line = picasso.stdout.readline()
                    if not line:
                        raise SystemExit("Picasso's side stopped: see its message above")
                    seconds[name].append(json.loads(line)["seconds"])
                    found[name] = np.load(order["out"])
            picasso.stdin.close()
    speed = {name: args.count / median(times) for name, times in seconds.items()}
    print(f"bound on the sd of u and v, root mean square: {bound:.4f} px")
    for name, value in speed.items():
        low, high = (args.count / f(seconds[name]) for f in (max, min))
        print(f"{name:<24} {value:>8.0f} fits/s ({low:.0f} … {high:.0f}), {accuracy(found[name], truth, bound)}")
    for name in PICASSO:
        print(f"ratio to {name}: {speed[OURS] / speed[name]:.2f}")
    faster = max(PICASSO, key=lambda name: speed[name])
    print(f"smlmtut / Picasso's faster setting ({faster}): {speed[OURS] / speed[faster]:.2f}")


if __name__ == "__main__":
    main()
