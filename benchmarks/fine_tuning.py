"""What does fine-tuning buy on a microscope that the shipped weights never saw? The Jaccard index against minutes.

    python benchmarks/fine_tuning.py --folder runs/fine-tuning --json fine_tuning.json      # resumable

Of each scene one thing lies outside of the training's, of the last one all three. Each arm is a run of its own, whose
learning rate falls to the end: some steps from the shipped weights, or from random ones. All are scored on the same new
frames of the scene, 64 × 64 pixels, at 0.5 and 2 molecules per µm². Minutes are those of the run, on the threads given.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reference_posteriors import PIXEL_NM
from smlmtut._random import step_generator
from smlmtut.evaluation.localization import Points, score
from smlmtut.imaging.distributions import Uniform
from smlmtut.imaging.kde import to_coordinates
from smlmtut.imaging.scenes import Scene, draw_batch
from smlmtut.networks import checkpoint, pretrained, recipes, training
from smlmtut.networks.deepstorm import DeepSTORM

SEED, FRAMES, SIDE = 20261204, 40, 64
DENSITIES = (0.5, 2.0)  # molecules per µm²
OTHERS = {  # name: what is another there; ranges about the values, as `smlmtut measure` gives them
    "σ 1.3": {"sigma": Uniform(1.2, 1.4)},
    "b 100": {"background": Uniform(80.0, 120.0)},
    "N 3000": {"photons": Uniform(1000.0, 5000.0)},
}
OTHERS["all three"] = {name: value for one in list(OTHERS.values()) for name, value in one.items()}
TUNED, ANEW = (250, 1000, 4000), (4000, 32000)  # steps from the shipped weights, and from random ones
RATE = 1e-3  # highest learning rate of fine-tuning, half of that of the shipped weights


def trained(name: str, scene: Scene, steps: int, start: bool, folder: Path) -> tuple[DeepSTORM, float]:
    """The averaged network of a run, and its minutes."""
    settings = replace(recipes.SHIPPED, steps=steps, seed=SEED)
    if start:
        settings = replace(settings, learning_rate=RATE, warmup=min(settings.warmup, steps // 5))
    recipe = recipes.deepstorm_2d(scene, settings)
    network = recipe.network(settings.seed)
    assert isinstance(network, DeepSTORM)
    if start:
        pretrained.copy_weights("deepstorm-2d", network)
    place = folder / f"{name.replace(' ', '-')}-{'tuned' if start else 'anew'}-{steps}"
    speeds = [state.samples_per_second for state in training.train(network, recipe.draw, recipe.loss, settings, place)]
    note = place / "minutes.json"
    if speeds:
        note.write_text(json.dumps(steps * settings.batch / speeds[-1] / 60), encoding="utf-8")
    checkpoint.read_average(network, place)
    return network.eval(), json.loads(note.read_text(encoding="utf-8"))


@torch.no_grad()
def judged(network: DeepSTORM, scene: Scene) -> dict[str, float]:
    """Jaccard index and RMSE on new frames of a scene, for each density."""
    found = {}
    for k, density in enumerate(DENSITIES):
        batch = draw_batch(replace(scene, density=density), FRAMES, (SIDE, SIDE), step_generator(SEED, k))
        peaks = to_coordinates(network(batch.electrons, batch.read_variance), network.factor, network.sigma)
        of = score(Points(peaks.frame, peaks.u, peaks.v), Points.of(batch.emitters), PIXEL_NM, (SIDE, SIDE), 300.0)
        found |= {f"Jaccard, {density}": of.jaccard, f"RMSE, {density}": of.rmse_nm}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("--only", nargs="*", choices=list(OTHERS), default=list(OTHERS))
    parser.add_argument("--tuned", type=int, nargs="*", default=list(TUNED), help="steps from the shipped weights")
    parser.add_argument("--anew", type=int, nargs="*", default=list(ANEW), help="steps from random weights")
    parser.add_argument("--json", type=Path, help="file that keeps the scores")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name in given.only:
        scene = replace(recipes.reference_scene(), **OTHERS[name])
        shipped = judged(pretrained.load(), scene)
        rows.append({"scene": name, "start": "shipped", "steps": 0, "minutes": 0.0, **shipped})
        for start, steps in [*((True, n) for n in given.tuned), *((False, n) for n in given.anew)]:
            network, minutes = trained(name, scene, steps, start, given.folder)
            row = {"scene": name, "start": "shipped" if start else "random", "steps": steps, "minutes": minutes}
            rows.append(row | judged(network, scene))
        for row in rows:
            if row["scene"] == name:
                print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
        if given.json:
            given.json.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
