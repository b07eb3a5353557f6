"""What does fine-tuning buy on a microscope that the shipped weights never saw? The Jaccard index against minutes.

    python benchmarks/fine_tuning.py --folder runs/fine-tuning --json fine_tuning.json      # resumable
    python benchmarks/fine_tuning.py --only "all three" --tuned 4000 --anew --drawn 1000    # engression after it

Of each scene one thing lies outside of the training's, of the last one all three. Each arm is a run of its own, whose
learning rate falls to the end: some steps from the shipped weights, or from random ones. All are scored on the same new
frames of the scene, 64 × 64 pixels, at 0.5 and 2 molecules per µm². Minutes are those of the run, on the threads given.
With --drawn, engression is trained on top of the last of the --tuned, from the shipped weights; what it draws is held
against the truth on frames of 16 × 16 pixels: energy score, where ŷ as a point has ‖ŷ − y‖, and the ratio of spread to
error of the mass, 1 where draws are calibrated. Both shipped weights, there and in their own scene, and only DeepSTORM
tuned stand beside it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reference_posteriors import PIXEL_NM
from smlmtut._random import step_generator
from smlmtut.evaluation.calibration import spread_skill
from smlmtut.evaluation.localization import Points, score
from smlmtut.evaluation.proper_scores import energy_score
from smlmtut.imaging.distributions import Uniform
from smlmtut.imaging.kde import to_coordinates
from smlmtut.imaging.scenes import Scene, draw_batch
from smlmtut.localize.samples import kde_sampler
from smlmtut.networks import checkpoint, pretrained, recipes, training
from smlmtut.networks.deepstorm import DeepSTORM
from smlmtut.networks.engression import Engression

SEED, FRAMES, SIDE = 20261204, 40, 64
DENSITIES = (0.5, 2.0)  # molecules per µm²
OTHERS = {  # name: what is another there; ranges about the values, as `smlmtut measure` gives them
    "σ 1.3": {"sigma": Uniform(1.2, 1.4)},
    "b 100": {"background": Uniform(80.0, 120.0)},
    "N 3000": {"photons": Uniform(1000.0, 5000.0)},
}
OTHERS["all three"] = {name: value for one in list(OTHERS.values()) for name, value in one.items()}
TUNED, ANEW = (250, 1000, 4000), (4000, 32000)  # steps from the shipped weights, and from random ones
RATE, DRAWN_RATE = 1e-3, 7e-4  # highest learning rates of fine-tuning, half of those of the shipped weights
DRAWN_FRAMES, DRAWS = 200, 32  # of `drawn_score`


def trained(
    name: str, scene: Scene, steps: int, start: bool, folder: Path, phi: DeepSTORM | None = None
) -> tuple[DeepSTORM | Engression, float]:
    """The averaged network of a run, DeepSTORM or, given that as phi, engression; and the run's minutes."""
    settings = replace(recipes.SHIPPED if phi is None else recipes.SHIPPED_ENGRESSION, steps=steps, seed=SEED)
    if start:
        rate = RATE if phi is None else DRAWN_RATE
        settings = replace(settings, learning_rate=rate, warmup=min(settings.warmup, steps // 5))
    recipe = recipes.deepstorm_2d(scene, settings) if phi is None else recipes.engression_2d(scene, phi, settings)
    network = recipe.network(settings.seed)
    assert isinstance(network, DeepSTORM | Engression)
    if start:
        pretrained.copy_weights("deepstorm-2d" if phi is None else "engression-2d", network)  # pyright: ignore[reportArgumentType]
    arm = "anew" if not start else "tuned" if phi is None else "drawn"
    place = folder / f"{name.replace(' ', '-')}-{arm}-{steps}"
    torch.manual_seed(SEED)  # engression's loss draws from the global state
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


@torch.no_grad()
def drawn_score(phi: DeepSTORM, sampler: Engression, scene: Scene) -> dict[str, float]:
    """Mean energy score of draws, as `localize` has them, on new frames of a scene; spread over error of the mass."""
    found, draw = {}, kde_sampler(sampler.eval())
    for k, density in enumerate(DENSITIES):
        batch = draw_batch(
            replace(scene, density=density), DRAWN_FRAMES, recipes.SMALL_FRAME, step_generator(SEED, 10 + k)
        )
        estimate, truth = phi(batch.electrons, batch.read_variance), batch.target(phi.factor, phi.sigma)[:, 0]
        y = draw(batch.electrons, batch.read_variance, estimate, DRAWS, step_generator(SEED, 20 + k))
        point = (estimate[:, 0] - truth).square().sum((1, 2)).sqrt().mean()
        masses = spread_skill(y.sum((2, 3)), truth.sum((1, 2)))
        found |= {
            f"energy, {density}": float(energy_score(y, truth).mean()), f"point, {density}": float(point),
            f"spread / error, {density}": masses,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("--only", nargs="*", choices=list(OTHERS), default=list(OTHERS))
    parser.add_argument("--tuned", type=int, nargs="*", default=list(TUNED), help="steps from the shipped weights")
    parser.add_argument("--anew", type=int, nargs="*", default=list(ANEW), help="steps from random weights")
    parser.add_argument("--drawn", type=int, default=0, help="steps of engression after the last of --tuned; 0, none")
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
            assert isinstance(network, DeepSTORM)
            rows.append(row | judged(network, scene))
        if given.drawn:
            tuned, _ = trained(name, scene, given.tuned[-1], True, given.folder)
            assert isinstance(tuned, DeepSTORM)
            sampler, minutes = trained(name, scene, given.drawn, True, given.folder, tuned)
            of = pretrained.load("engression-2d", kind=Engression)
            both = pretrained.load(), of
            for start, phi, x, where in (
                ("both shipped, in their own scene", *both, recipes.reference_scene()),
                ("both shipped", *both, scene),
                ("φ tuned", tuned, of, scene),
                ("both tuned", tuned, sampler, scene),
            ):
                assert isinstance(x, Engression)
                own = {"scene": name, "start": start, "steps": given.drawn * (x is sampler)}
                rows.append(own | {"minutes": minutes * (x is sampler)} | drawn_score(phi, x, where))
        for row in rows:
            if row["scene"] == name:
                print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
        if given.json:
            given.json.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
