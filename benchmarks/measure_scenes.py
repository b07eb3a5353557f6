"""How right `measure_movie` is: σ, background, N and density of 20 simulated movies against what they were made from.

    python benchmarks/measure_scenes.py               # the scenes by which the method was made
    python benchmarks/measure_scenes.py --seed 2      # others

A movie has 400 frames of 64 × 64 px of 108 nm, in whole ADU. Scene by scene are drawn: σ uniform on 0.9–1.6 px; the
middle background b log-uniform on 2–100, from which frames differ by up to 20 % and the two ends of a frame by up to
30 %; N log-uniform within a factor of 1.5 of a middle that is log-uniform on 450–3300, so between 300 and 5000; the
density log-uniform on 0.05–1 emitters per µm²; gain 0.5–5 ADU/e⁻, read noise 0.8–3 e⁻. The truth of N is the median of
the emitters that the frames hold.
Aims: σ within 2 %, b within 3 %, the median N within 5 %, in 20 of 20 scenes. The last line says in how many they are,
and the root mean square of error over claimed error, which should be 1.
"""

import argparse
import math
import time

import numpy as np
import torch

from smlmtut._random import step_generator
from smlmtut.imaging.camera import Camera, expose
from smlmtut.imaging.distributions import LogUniform, Uniform, draw
from smlmtut.imaging.psf import PSF, expected_photons
from smlmtut.imaging.scenes import Scene, draw_batch
from smlmtut.localize.measure import measure_movie

SHAPE, FRAMES, PIXEL_NM = (64, 64), 400, 108.0
AIMS = {"sigma": 0.02, "background": 0.03, "photons": 0.05, "density": math.inf}


def simulated(generator: torch.Generator) -> tuple[torch.Tensor, Camera, dict[str, float]]:
    """A movie (T, H, W) in ADU, its camera, and the truth."""
    one = lambda distribution: float(draw(distribution, (1,), generator))  # noqa: E731
    sigma, background = one(Uniform(0.9, 1.6)), one(LogUniform(2.0, 100.0))
    photons, density = one(LogUniform(450.0, 3300.0)), one(LogUniform(0.05, 1.0))
    gain, read_noise = one(LogUniform(0.5, 5.0)), one(Uniform(0.8, 3.0))
    camera = Camera(gain, 100.0, (gain * read_noise) ** 2, integer=True)
    scene = Scene(
        density=density, photons=LogUniform(photons / 1.5, photons * 1.5), sigma=sigma, pixel_size_nm=PIXEL_NM,
        background=Uniform(0.8 * background, 1.2 * background), gradient=0.3, margin=5.0, camera=camera,
    )  # fmt: skip
    frames = draw_batch(scene, FRAMES, SHAPE, generator)
    emitters = frames.emitters
    inside = emitters.mask & (emitters.u.abs() < SHAPE[1]) & (emitters.v.abs() < SHAPE[0])
    truth = {
        "sigma": sigma, "background": background, "density": density,
        "photons": float(emitters.photons[inside].median()),
    }  # fmt: skip
    rate = expected_photons(emitters, PSF(sigma), SHAPE, 0.0)
    truth["background"] = float((frames.expected - rate).median())
    return expose(frames.expected, camera, generator).clamp(min=0), camera, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    errors: dict[str, list[float]] = {name: [] for name in AIMS}
    pulls: dict[str, list[float]] = {name: [] for name in AIMS}
    print("  σ      b      N     /µm² | error of σ, b, N, density, % (and over the claimed error) | spots, s, problems")
    for k in range(given.scenes):
        movie, camera, truth = simulated(step_generator(given.seed, k))
        began = time.perf_counter()
        seen = measure_movie(movie, camera, PIXEL_NM)
        taken = time.perf_counter() - began
        texts = []
        for name in AIMS:
            found = getattr(seen, name)
            errors[name].append(found.median / truth[name] - 1)
            pulls[name].append((found.median - truth[name]) / found.sd)
            texts.append(f"{100 * errors[name][-1]:6.2f} ({pulls[name][-1]:5.1f})")
        line = f"{truth['sigma']:.3f} {truth['background']:6.2f} {truth['photons']:6.0f} {truth['density']:6.3f} | "
        print(line + " ".join(texts), f"| {seen.spots} {taken:.1f}", "; ".join(seen.problems), flush=True)
    for name, aim in AIMS.items():
        right = sum(abs(x) <= aim for x in errors[name])
        rms = 100 * float(np.sqrt(np.mean(np.square(errors[name]))))
        pull = float(np.sqrt(np.mean(np.square(pulls[name]))))
        within = f"{right} of {given.scenes} within {100 * aim:g} %, " if aim < math.inf else ""
        print(f"{name}: {within}rms error {rms:.2f} %, rms of error over claimed error {pull:.2f}")


if __name__ == "__main__":
    main()
