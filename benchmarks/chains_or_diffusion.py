"""When does it pay to draw by a network what Markov chains draw exactly?

    python benchmarks/chains_or_diffusion.py --most 8 --densities --json smlmtut/results/chains_or_diffusion.json

Two curves, on one thread unless told otherwise; the command above computes the second alone, which chapter 10 shows:
  density   frames of one density, 0.5 to 8 emitters per µm²: the chains of `reference_posteriors.py`, longer until the
            certificate of `protocol.md` holds or ATTEMPTS are spent; independent draws a second, beside the networks'
  regret    the dev frames of the reference: energy regret of 64 draws of short chains, by the seconds that they took,
            beside that of the networks, whose draws are read as molecules; where a network lies below the line of the
            chains, it is the better one for the same time
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import bakeoff
from benchmarks.reference_posteriors import (
    AREA,
    CHAINS,
    KEPT,
    KINDS,
    Kind,
    camera_of,
    certificate,
    moments,
    run_chains,
    thinned,
    why_not,
)
from smlmtut._random import step_generator
from smlmtut.evaluation import against_exact as against
from smlmtut.imaging.camera import expose
from smlmtut.imaging.scenes import draw_batch
from smlmtut.networks import pretrained, recipes

DENSITIES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # µm⁻²
SEED, FRAMES, ATTEMPTS = 20261201, 2, 3
MODELS = ("engression-2d", "cddpm-2d")
BUDGETS = (25, 50, 100, 200, 400, 800)  # sweeps of short chains, half of them burn-in


def density_frames(density: float) -> tuple[dict[str, np.ndarray], int]:
    """FRAMES frames of one density on the sensor of the reference, and the most emitters that one has."""
    scene = replace(recipes.reference_scene(), density=density)
    generator = step_generator(SEED, round(10 * density))
    batch = draw_batch(scene, FRAMES, bakeoff.SHAPE, generator)
    camera, _ = camera_of(FRAMES, generator)
    adu = expose(batch.expected, camera, generator)
    maps = {name: torch.as_tensor(getattr(camera, name)).numpy() for name in ("gain", "offset", "read_variance")}
    return {"adu": adu.clamp(min=0).numpy().astype(np.uint16), **maps}, int(batch.emitters.mask.sum(1).max())


def of_density(density: float) -> dict[str, float]:
    """Seconds a frame until the certificate holds, and independent draws a second; 0 where it never does."""
    frames, most = density_frames(density)
    kind = Kind(0, 0, max(12, 2 * most, round(1.5 * density * AREA)), 400, 400, 5)
    spent = 0.0
    for attempt in range(ATTEMPTS):
        began = time.perf_counter()
        draws = run_chains(frames, kind, 4**attempt, step_generator(SEED, 1000 + attempt))
        spent += (time.perf_counter() - began) / FRAMES
        notes = [certificate(draws, i, *moments(draws, i)) for i in range(FRAMES)]
        if not any(why_not(note) for note in notes):
            size = float(np.mean([note["size"] for note in notes]))
            return {"seconds": spent, "size": size, "draws a second": size / spent, "r_hat": worst(notes)}
    return {"seconds": spent, "size": min(note["size"] for note in notes), "draws a second": 0.0, "r_hat": worst(notes)}


def worst(notes: list[dict[str, float]]) -> float:
    return max(note["r_hat"] for note in notes)


def draws_a_second(method: bakeoff.Method, frames: bakeoff.Frames) -> float:
    """Of a network, 64 for each of some frames."""
    method(frames.part(slice(1)), 8, step_generator(0, 0))
    began = time.perf_counter()
    method(frames, bakeoff.SAMPLES, step_generator(0, 1))
    return len(frames) * bakeoff.SAMPLES / (time.perf_counter() - began)


def of_budget(rows: dict[str, np.ndarray], frames: bakeoff.Frames, kind: str, sweeps: int) -> dict[str, float]:
    """Energy regret of 64 draws of chains this short, and the seconds a frame that they took."""
    draws = max(4, KEPT // CHAINS)
    short = replace(KINDS[kind], burn_in=sweeps // 2, draws=draws, thin=max(1, sweeps // 2 // draws))
    began = time.perf_counter()
    # without jumps: in a crowd the search for their targets takes longer than all these chains
    drawn = run_chains(rows, short, 1, step_generator(SEED, 2000 + sweeps), jumps=False)
    spent = (time.perf_counter() - began) / len(frames)
    table = torch.from_numpy(np.stack([thinned(drawn, i) for i in range(len(frames))]))
    u, v, photons = table[..., :-2].unflatten(-1, (3, -1)).unbind(-2)
    regret = against.energy_regret(bakeoff.images(u, v, photons), frames.exact)
    return {"sweeps": sweeps, "seconds": spent, "regret": regret.relative(), "error": regret.error()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of the reference; none: the file that ships")
    parser.add_argument("--most", type=int, default=16, help="frames of each class for the curve of regret")
    parser.add_argument("--densities", type=float, nargs="*", default=DENSITIES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    phi = pretrained.load()
    methods = bakeoff.chosen(bakeoff.shipped(), MODELS)
    found: dict = {"density": {}, "regret": {}, "threads": given.threads}
    found["draws a second"] = {name: draws_a_second(m, bakeoff.prior_part(phi, 8)) for name, m in methods.items()}
    print(found["draws a second"], flush=True)
    for density in given.densities:
        found["density"][density] = row = of_density(density)
        print(f"{density} /µm²: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    for kind in KINDS:
        frames = bakeoff.read_class(given.folder, "dev", kind, phi)
        if frames is None:
            continue
        frames = frames.part(slice(given.most))
        rows = bakeoff.read_rows(given.folder, "dev", kind)
        some = {name: rows[name][: len(frames)] for name in ("adu", "gain", "offset", "read_variance")}
        curve = [of_budget(some, frames, kind, sweeps) for sweeps in BUDGETS]
        row: dict = {"chains": curve}
        found["regret"][kind] = row
        for name, method in methods.items():
            score, _ = bakeoff.judged_as_kdes(name, method, frames, kind)[f"{name}{bakeoff.AS_KDES}"]
            row[name] = {
                "seconds": score["s a frame"], "regret": score["energy regret"], "error": score["energy regret ±"],
            }  # fmt: skip
        points = [*curve, *(row[name] for name in methods)]
        print(kind, "; ".join(f"{x['seconds']:.2f} s {x['regret']:.3f}" for x in points), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
