"""When does it pay to draw by a network what Markov chains draw exactly?

    python benchmarks/chains_or_diffusion.py --most 8 --json smlmtut/results/chains_or_diffusion.json

Two curves, on one thread unless told otherwise, each computed anew where it is asked for and kept where it is not
(`--densities` without a number, `--most 0`):
  density   frames of one density, 0.5 to 8 emitters per µm²: 16 chains of 2400 sweeps, as in the first attempt of
            `reference_posteriors.py`, and on how many frames they get its certificate; seconds of chains, networks and
            importance sampling from the modes; their regret on these frames, their score against the truth on all;
            with `--short` instead that score of chains of so many sweeps, added to rows that are there
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
    run_chains,
    solve_part,
    thinned,
)
from smlmtut._random import step_generator
from smlmtut.evaluation import against_exact as against
from smlmtut.evaluation import energy_score
from smlmtut.imaging.camera import expose
from smlmtut.imaging.scenes import draw_batch
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.deepstorm import DeepSTORM

DENSITIES = (0.5, 1.0, 2.0, 4.0, 8.0)  # µm⁻²
SEED, FRAMES, ATTEMPTS = 20261201, 8, 1
MODELS = ("engression-2d", "cddpm-2d")
BUDGETS = (25, 50, 100, 200, 400, 800)  # sweeps of short chains, half of them burn-in


def density_frames(density: float) -> dict[str, np.ndarray]:
    """FRAMES frames of one density on the sensor of the reference, with their truth."""
    scene = replace(recipes.reference_scene(), density=density)
    generator = step_generator(SEED, round(10 * density))
    batch = draw_batch(scene, FRAMES, bakeoff.SHAPE, generator)
    camera, _ = camera_of(FRAMES, generator)
    adu = expose(batch.expected, camera, generator)
    maps = {name: torch.as_tensor(getattr(camera, name)).numpy() for name in ("gain", "offset", "read_variance")}
    true = batch.emitters
    truth = {"u": true.u, "v": true.v, "photons": true.photons * true.mask}
    arrays = {"adu": adu.clamp(min=0).numpy().astype(np.uint16), **maps}
    return arrays | {f"truth_{name}": values.numpy() for name, values in truth.items()}


def of_density(density: float, methods: dict[str, bakeoff.Method], phi: DeepSTORM) -> dict[str, dict]:
    """Seconds a frame of each; on how many frames the chains have the certificate, and their independent draws a
    second; on those frames the energy regret of the networks, as KDEs, and of importance sampling from the modes; on
    all frames everybody's energy score against the truth."""
    rows = density_frames(density)
    there = rows["truth_photons"] > 0
    most = most_of(rows, density)
    began = time.perf_counter()
    solved = solve_part(rows, Kind(0, 0, most, 400, 400, 5), step_generator(SEED, 1000), ATTEMPTS)
    spent = (time.perf_counter() - began) / FRAMES
    notes = solved["notes"]
    draws = solved["draws"][..., :-2].reshape(FRAMES, bakeoff.SAMPLES, 3, -1)
    exact = {f"draw_{name}": draws[..., k, :] for k, name in enumerate(("u", "v", "photons"))}
    frames = bakeoff.frames_from(rows | exact | {name: solved[name] for name in ("mean", "sd")}, phi)
    good = [i for i, note in enumerate(notes) if not note["why_not"]]
    found: dict[str, dict] = {
        "chains": {
            "molecules": float(there.sum(1).mean()), "frames": FRAMES, "kept": len(good), "seconds": spent,
            "draws a second": float(np.mean([note["size"] for note in notes])) / spent, "r_hat": worst(notes),
            "score": energy_score(frames.exact, frames.truth).tolist(),
        }
    }  # fmt: skip
    for name, method in {**methods, "modes": bakeoff.modes(most)}.items():
        samples, paid = bakeoff.drawn_of(method, frames, SEED)
        samples = samples if name == "modes" else bakeoff.as_kdes(samples)
        found[name] = {"seconds": paid, "score": energy_score(samples, frames.truth).tolist()}
        if good:
            regret = against.energy_regret(samples[good], frames.exact[good])
            found[name] |= {"regret": regret.relative(), "error": regret.error()}
    return found


def worst(notes: list[dict[str, float]]) -> float:
    return max(note["r_hat"] for note in notes)


def short_chains(rows: dict[str, np.ndarray], kind: Kind, sweeps: int, seed: int) -> tuple[torch.Tensor, float]:
    """KDEs of 64 draws of chains this short, half of them burn-in, and the seconds a frame that they took."""
    draws, count = max(4, KEPT // CHAINS), len(rows["adu"])
    short = replace(kind, burn_in=sweeps // 2, draws=draws, thin=max(1, sweeps // 2 // draws))
    began = time.perf_counter()
    # without jumps: in a crowd the search for their targets takes longer than all these chains
    drawn = run_chains(rows, short, 1, step_generator(SEED, seed), jumps=False)
    spent = (time.perf_counter() - began) / count
    table = torch.from_numpy(np.stack([thinned(drawn, i) for i in range(count)]))
    u, v, photons = table[..., :-2].unflatten(-1, (3, -1)).unbind(-2)
    return bakeoff.images(u, v, photons), spent


def of_budget(rows: dict[str, np.ndarray], frames: bakeoff.Frames, kind: str, sweeps: int) -> dict[str, float]:
    """Energy regret of short chains, and their seconds a frame."""
    images, spent = short_chains(rows, KINDS[kind], sweeps, 2000 + sweeps)
    regret = against.energy_regret(images, frames.exact)
    return {"sweeps": sweeps, "seconds": spent, "regret": regret.relative(), "error": regret.error()}


def of_short(density: float, sweeps: int) -> dict:
    """Energy score of short chains against the truth, and their seconds a frame."""
    rows = density_frames(density)
    u, v, photons = (torch.from_numpy(rows[f"truth_{name}"]) for name in ("u", "v", "photons"))
    images, spent = short_chains(rows, Kind(0, 0, most_of(rows, density), 0, 0, 0), sweeps, 3000 + sweeps)
    truth = bakeoff.images(u[:, None], v[:, None], photons[:, None])[:, 0]
    return {"seconds": spent, "score": energy_score(images, truth).tolist()}


def most_of(rows: dict[str, np.ndarray], density: float) -> int:
    """The largest number of emitters that the prior of the chains allows."""
    return max(12, 2 * int((rows["truth_photons"] > 0).sum(1).max()), round(1.5 * density * AREA))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of the reference; none: the file that ships")
    parser.add_argument("--most", type=int, default=16, help="frames of each class for the curve of regret")
    parser.add_argument("--densities", type=float, nargs="*", default=DENSITIES)
    parser.add_argument("--short", type=int, nargs="+", help="only this: score of chains of so few sweeps, by density")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    phi = pretrained.load()
    methods = bakeoff.chosen(bakeoff.shipped(), MODELS)
    found: dict = {"density": {}, "regret": {}}
    if given.json and given.json.exists():
        found |= json.loads(given.json.read_text(encoding="utf-8"))
    found["threads"] = given.threads
    for density in given.densities if given.short else ():
        for sweeps in given.short:
            found["density"][str(density)][f"chains, {sweeps} sweeps"] = row = of_short(density, sweeps)
            print(
                f"{density} /µm², {sweeps} sweeps: {row['seconds']:.2f} s, score {np.mean(row['score']):.3g}",
                flush=True,
            )
        keep(found, given.json)
    for density in given.densities if not given.short else ():
        found["density"][str(density)] = row = of_density(density, methods, phi)
        for name, numbers in row.items():
            shown = {key: np.mean(x) for key, x in numbers.items()}
            print(f"{density} /µm², {name}: " + ", ".join(f"{k} {x:.3g}" for k, x in shown.items()), flush=True)
        keep(found, given.json)
    for kind in KINDS if given.most else ():
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
        keep(found, given.json)


def keep(found: dict, path: Path | None) -> None:
    """Write what there is so far."""
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
