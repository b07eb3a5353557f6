"""How often the check of a movie warns: with the right camera (false alarms), and with each of the usual wrong ones.

    python benchmarks/movie_check.py --movies 500             # those by which the limits were chosen
    python benchmarks/movie_check.py --movies 500 --seed 8    # others

Movies are drawn from the training scene (density, photons, background, σ), 16 frames of 64 × 64 pixels in whole ADU,
with a gain log-uniform on 0.5–5 ADU/e⁻, an offset of 100 ADU and a read noise uniform on 0.8–5 e⁻. Movies of OTHER are
drawn from another scene, with at most one emitter per µm²; of each of them there should be a warning that says so. The
last line says the share of right cameras that a warning is given for; target: at most 1 %.
"""

import argparse
import math
from dataclasses import replace
from typing import Any

import torch

from smlmtut._random import step_generator
from smlmtut.imaging.camera import Camera, expose
from smlmtut.imaging.distributions import Distribution, LogUniform, Uniform, draw
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.imaging.scenes import BACKGROUND, DENSITY, PHOTONS, SIGMA, Scene, draw_positions
from smlmtut.localize.check import MovieCheck, check_movie
from smlmtut.networks.pretrained import load

SHAPE, FRAMES, PIXEL_NM = (64, 64), 16, 108.0
WRONG = {
    "nothing given": lambda camera: Camera(),
    "no read variance": lambda camera: replace(camera, read_variance=0.0),
    "no offset": lambda camera: replace(camera, offset=0.0),
    "gain halved": lambda camera: replace(camera, gain=camera.gain / 2),
    "gain doubled": lambda camera: replace(camera, gain=camera.gain * 2),
    "offset and gain exchanged": lambda camera: replace(camera, gain=camera.offset, offset=camera.gain),
}
SPARSE = LogUniform(0.1, 1.0)
OTHER: dict[str, dict[str, Any]] = {  # what is not of the training scene; all have their pixel size
    "σ 1.3 px": {"density": SPARSE, "sigma": 1.3},
    "b 100": {"density": SPARSE, "background": 100.0},
    "N 5000": {"density": SPARSE, "photons": 5000.0},
    "60 nm": {"density": SPARSE, "pixel_nm": 60.0},
}


def simulated(
    generator: torch.Generator,
    density: Distribution = DENSITY,
    background: Distribution = BACKGROUND,
    sigma: Distribution = SIGMA,
    photons: Distribution = PHOTONS,
    pixel_nm: float = PIXEL_NM,
) -> tuple[torch.Tensor, Camera]:
    """A movie (T, H, W) of the training scene, or of another one, and its camera."""
    one = lambda distribution: draw(distribution, (1,), generator)  # noqa: E731
    per_area, level, width = (float(one(x)) for x in (density, background, sigma))
    gain, read_noise = float(one(LogUniform(0.5, 5.0))), float(one(Uniform(0.8, 5.0)))
    camera = Camera(gain, 100.0, (gain * read_noise) ** 2, integer=True, saturation=65535)
    per_pixel = torch.full((FRAMES,), per_area * (pixel_nm / 1000) ** 2)
    u, v, present = draw_positions(Scene(), per_pixel, SHAPE, generator)
    emitters = Emitters(u, v, draw(photons, tuple(u.shape), generator), present)
    rate = expected_photons(emitters, PSF(width), SHAPE, level)
    return expose(rate, camera, generator).clamp(min=0), camera


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--movies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--wrong", type=int, default=50, help="movies for each wrong camera and other scene")
    given = parser.parse_args()
    network = load()
    right: list[MovieCheck] = []
    warned = dict.fromkeys((*WRONG, *OTHER), 0)
    for k in range(given.movies):
        movie, camera = simulated(step_generator(given.seed, k))
        known = replace(camera, integer=False, saturation=None)
        right.append(check_movie(movie, known, network, PIXEL_NM))
        if right[-1].problems:
            print(f"movie {k}: {camera}: {right[-1]}", flush=True)
        for name, change in WRONG.items() if k < given.wrong else ():
            seen = check_movie(movie, change(known), network, PIXEL_NM)
            warned[name] += bool(seen.problems)
            if not seen.problems:
                print(f"movie {k}, {name}, not warned: {camera}: {seen}", flush=True)
        for name, scene in OTHER.items() if k < given.wrong else ():
            movie, camera = simulated(step_generator(given.seed, k), **scene)
            seen = check_movie(
                movie, replace(camera, integer=False, saturation=None), network, scene.get("pixel_nm", PIXEL_NM)
            )
            told = any("outside of what" in problem for problem in seen.problems)
            warned[name] += told
            if not told:
                print(f"movie {k}, {name}, not warned: {camera}: {seen}", flush=True)
    for name in ("background", "dim", "noise", "below", "density", "sigma", "photons", "false_share"):
        values = torch.tensor([getattr(check, name) for check in right])
        values = values[~values.isnan()]
        quantiles = torch.quantile(values, torch.tensor([0.0, 0.01, 0.5, 0.99, 1.0])).tolist()
        print(f"{name}: " + ", ".join(f"{q:.4g}" for q in quantiles) + " (least, 1 %, middle, 99 %, most)")
    for name, count in warned.items():
        print(f"{name}: {count} of {min(given.wrong, given.movies)} warned")
    alarms = sum(bool(check.problems) for check in right)
    error = math.sqrt(max(alarms, 1)) / len(right)
    print(f"right camera: {alarms / len(right):.3%} ± {error:.3%} of {len(right)} movies warned; target: at most 1 %")


if __name__ == "__main__":
    main()
