"""Frames a second of `localize` in float32 and in bf16, and what bf16 does to the positions.

    python benchmarks/localize_speed.py [--threads 2]

A movie of the book's reference scene, 64 × 64 pixels, is localized with the shipped network in both precisions, which
take turns; the medians are compared. Then the same frames in both, on scenes of other seeds: dense ones, where the
change of a position is held against the error of the float32 position, and one emitter a frame, where it is held
against the Cramér–Rao bound. The last lines are the two speeds. On a CPU without instructions for bf16 it is
emulated, and slower than float32.
"""

import argparse
import statistics
import time
from dataclasses import replace

import pandas as pd
import torch

from smlmtut._random import step_generator
from smlmtut.estimation import fisher
from smlmtut.evaluation import localization
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.psf import PSF, Emitters
from smlmtut.imaging.scenes import FrameBatch, Scene, draw_batch, expose_batch
from smlmtut.localize import localize_movie
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.deepstorm import DeepSTORM
from smlmtut.networks.precision import best_precision

SEED, SHAPE, PIXEL_NM = 880_088, (64, 64), 108.0
SPOT, BACKGROUND, SIGMA = (24, 24), 5.0, 1.0  # of the frames with one emitter: px, e⁻ per px, px
CORNER = (128, 256)  # of the part of the sensor that the frames show
ALIKE_NM = 54.0  # half a pixel: farther apart, two localizations are not the same one
PRECISIONS = ("no", "bf16")


def main() -> None:
    """Print changes by density and by photons, then frames a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="deepstorm-2d", help="name or path (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=128, help="frames of the timed movie (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    network, scene = pretrained.load(given.weights), recipes.reference_scene()
    scene = replace(scene, camera=scene.camera.crop(*CORNER, SHAPE))  # a movie sees one part of the sensor
    print("| emitters per µm² | localizations | float32 only, bf16 only | rms change (px) | over RMSE of float32 |")
    print("|---|---|---|---|---|")
    for i, density in enumerate((0.3, 1.0, 3.0, 8.0)):
        print(dense(network, replace(scene, density=density), i), flush=True)
    print("\n| N | rms change (px) | over the bound |\n|---|---|---|")
    for photons in (200.0, 500.0, 1000.0, 2000.0):
        print(alone(network, scene, photons), flush=True)
    batch = draw_batch(replace(scene, density=1.0), given.frames, SHAPE, step_generator(SEED, 0))
    seconds = {precision: [] for precision in PRECISIONS}
    for _ in range(given.turns + 1):
        for precision in PRECISIONS:
            began = time.perf_counter()
            localized(network, batch, precision)
            seconds[precision].append(time.perf_counter() - began)
    found = best_precision(torch.device("cpu"))
    print(f"\n{given.frames} frames of 64 × 64 pixels, {given.threads} threads; 'auto' takes {found!r} here")
    for precision, name in zip(PRECISIONS, ("float32", "bf16"), strict=True):
        print(f"{name}: {given.frames / statistics.median(seconds[precision][1:]):.1f} frames/s")


def dense(network: DeepSTORM, scene: Scene, seed: int) -> str:
    """A row of the first table, 32 frames."""
    batch = draw_batch(scene, 32, SHAPE, step_generator(SEED, 1, seed))
    full, less = (localized(network, batch, precision) for precision in PRECISIONS)
    right = localization.match(full, localization.Points.of(batch.emitters), PIXEL_NM)
    error, alike = rms(right), localization.match(less, full, PIXEL_NM, ALIKE_NM)
    lost, new = len(full.u) - len(alike), len(less.u) - len(alike)
    return f"| {scene.density:g} | {len(full.u)} | {lost}, {new} | {rms(alike):.4f} | {rms(alike) / error:.3f} |"


def alone(network: DeepSTORM, scene: Scene, photons: float) -> str:
    """A row of the second table: 500 frames with one emitter each, about the centre."""
    u, v = (SPOT[0] - 1) / 2 + (torch.rand(2, 500, 1, generator=step_generator(SEED, 2)) - 0.5)
    fixed = replace(scene, sigma=SIGMA, background=BACKGROUND, camera=scene.camera.crop(0, 0, SPOT))
    batch = expose_batch(fixed, Emitters(u, v, torch.full_like(u, photons)), SPOT, step_generator(SEED, 3))
    full, less = (localized(network, batch, precision) for precision in PRECISIONS)
    change = rms(localization.match(less, full, PIXEL_NM, ALIKE_NM))
    emitter = Emitters.single((SPOT[1] - 1) / 2, (SPOT[0] - 1) / 2, photons)
    bound = fisher.localization_bound(emitter, PSF(SIGMA), electrons_camera(batch), SPOT, BACKGROUND)[0, :2].mean()
    return f"| {photons:.0f} | {change:.4f} | {change / float(bound):.3f} |"


def localized(network: DeepSTORM, batch: FrameBatch, precision: str) -> localization.Points:
    """The localizations of a batch as if it were a movie, in photo-electrons."""
    tables = localize_movie(batch.electrons[:, 0], electrons_camera(batch), network, precision=precision)
    table = pd.concat([table for _, table in tables])
    return localization.Points(table["frame"], table["u"], table["v"])


def electrons_camera(batch: FrameBatch) -> Camera:
    """Gain 1, no offset, and the read variance that all frames of the batch share."""
    return Camera(read_variance=batch.read_variance[0, 0])


def rms(pairs: localization.Pairs) -> float:
    """Root mean square of the distance along an axis, px."""
    return float(torch.cat([pairs.du, pairs.dv]).square().mean().sqrt())


if __name__ == "__main__":
    main()
