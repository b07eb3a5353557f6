"""What are other ways to say how uncertain ŷ is worth? The rivals of `protocol.md`, trained and scored.

    python benchmarks/rivals.py train --folder runs/rivals --frames 96000              # all rivals, resumable
    python benchmarks/rivals.py train --folder runs/rivals --only gaussian --seed 2 3 4 5 --frames 96000
    python benchmarks/rivals.py score --folder runs/rivals

Frames, order of frames, U-Net, settings and budget are those of `ablation.py`. An ensemble is made of MEMBERS Gaussian
runs of the same length that follow each other in their seeds, 1–5, 6–10 and so on, which other weights and frames make
differ; its budget is MEMBERS times that of the others. The conformal intervals are those of each Gaussian run, with
factors from frames that no run was trained on.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import bakeoff
from benchmarks.ablation import run_name
from smlmtut._random import step_generator
from smlmtut.imaging.scenes import Scene
from smlmtut.networks import pretrained, recipes, training
from smlmtut.networks.cddpm import DiffusionBatch
from smlmtut.networks.checkpoint import read_average
from smlmtut.networks.conformal import Conformal
from smlmtut.networks.deepstorm import DeepSTORM
from smlmtut.networks.emitter_set import EmitterSet, draw_emitters
from smlmtut.networks.engression import Engression
from smlmtut.networks.rivals import SNGP, Dropout, Ensemble, Gaussian, Quantiles, Rival
from smlmtut.networks.settings import Draw, TrainingSettings

RIVALS: dict[str, Callable[[], Rival]] = {
    "gaussian": Gaussian,
    "quantiles": Quantiles,
    "dropout": Dropout,
    "sngp": SNGP,
    "set": EmitterSet,
    "engression": Engression,
}
MEMBERS = 5
HELD_OUT = 3100  # seed of the conformal frames; those of the runs are 2100 and the seed of the run
CALIBRATION = 64  # batches: 2048 frames
PRECISION = "precision.pt"  # of the weights of SNGP, beside its checkpoint
EVERY = 10  # the covariance of SNGP is found from every tenth batch of the run, which counts ten times


def settings_of(seed: int, frames: int) -> TrainingSettings:
    """Those of the ablation, and so of the shipped model, with another number of steps."""
    return replace(recipes.SHIPPED_DIFFUSION, steps=frames // 32, seed=2100 + seed)


def draw_of(name: str, scene: Scene, phi: DeepSTORM) -> Draw:
    """The same frames for every rival; the set of emitters gets its emitters too."""
    of = draw_emitters if name == "set" else recipes.draw_estimates
    return of(scene, recipes.SMALL_FRAME, phi)


def made(name: str, seed: int) -> Rival:
    """A rival as it is before training."""
    return recipes.seeded(RIVALS[name])(seed)


def train(folder: Path, names: list[str], seeds: list[int], frames: int, threads: int) -> None:
    """Train each rival with each seed; a run that ended is not begun again."""
    torch.set_num_threads(threads)
    scene, phi = recipes.reference_scene(), pretrained.load()
    for seed in seeds:
        for name in names:
            place, settings, network = (
                folder / run_name(name, seed, frames),
                settings_of(seed, frames),
                made(name, seed),
            )
            draw = draw_of(name, scene, phi)
            torch.manual_seed(seed)  # of the masks of dropout and the noise of engression
            for state in training.train(network, draw, recipes.diffusion_loss, settings, place, "cpu"):
                if state.step % 500 == 0:
                    speed = f"{state.samples_per_second:.0f} frames/s"
                    print(f"{place.name}: {state.step} of {settings.steps}, {speed}", flush=True)
            if isinstance(network, SNGP) and not (place / PRECISION).exists():
                torch.save(posterior(place, draw), place / PRECISION)


def posterior(folder: Path, draw: Draw) -> Tensor:
    """The precision of an SNGP run's weights from one pass over its own batches."""
    network, run = averaged(folder)
    assert isinstance(network, SNGP)
    for step in range(0, run["steps"], EVERY):
        batch = draw(run["batch"], step_generator(run["seed"], step))
        assert isinstance(batch, DiffusionBatch)
        network.accumulate(batch, min(EVERY, run["steps"] - step))
    return network.precision


def parts(name: str) -> tuple[str, int, str]:
    """Rival, seed and length of a run, from its name."""
    rival, seed, length = name.rsplit("-", 2)
    return rival, int(seed.removeprefix("seed")), length


def averaged(folder: Path) -> tuple[Rival, dict[str, Any]]:
    """The averaged weights of a run; its settings, and the step that it has reached."""
    rival, seed, _ = parts(folder.name)
    network = made(rival, seed)
    found = read_average(network, folder)
    return network.eval().requires_grad_(False), found["identity"] | {"step": found["step"]}


def trained(folder: Path) -> Rival | None:
    """A run ready to sample: the averaged weights, for SNGP with their covariance. None for one that has not ended."""
    network, run = averaged(folder)
    if isinstance(network, SNGP):
        if not (folder / PRECISION).exists():
            return None
        network.precision.copy_(torch.load(folder / PRECISION, weights_only=True))
    return network if run["step"] == run["steps"] else None


def held_out(draw: Draw) -> Iterator[DiffusionBatch]:
    """Batches of the training prior that no run was trained on."""
    for step in range(CALIBRATION):
        batch = draw(32, step_generator(HELD_OUT, step))
        assert isinstance(batch, DiffusionBatch)
        yield batch


def networks(folder: Path) -> dict[str, nn.Module]:
    """What can be scored: the runs that ended, the ensembles of them, and their conformal intervals."""
    read = {path.parent.name: trained(path.parent) for path in sorted(folder.glob("*/checkpoint.pt"))}
    runs = {name: network for name, network in read.items() if network is not None}
    found: dict[str, nn.Module] = dict(runs)
    kept = list(held_out(recipes.draw_estimates(recipes.reference_scene(), recipes.SMALL_FRAME, pretrained.load())))
    for name, network in runs.items():
        rival, seed, length = parts(name)
        if rival != "gaussian":
            continue
        assert isinstance(network, Gaussian)
        found[f"conformal-seed{seed}-{length}"] = mended = Conformal(network)
        mended.calibrate(kept)
        group = [f"gaussian-seed{seed + k}-{length}" for k in range(MEMBERS)]
        if seed % MEMBERS == 1 and all(member in runs for member in group):
            members = [runs[member] for member in group]
            found[f"ensemble-seed{seed // MEMBERS + 1}-{length}"] = Ensemble(members)  # type: ignore[arg-type]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["train", "score"])
    parser.add_argument("--folder", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--reference", type=Path, help="folder of the reference; none: the file that ships")
    parser.add_argument("--part", choices=["dev", "test", "held"], default="dev")
    parser.add_argument("--only", nargs="*", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--frames", type=int, default=96_000)
    parser.add_argument("--seed", type=int, nargs="*", default=[1])
    bakeoff.add_arguments(parser)
    given = parser.parse_args()
    if given.command == "train":
        train(given.folder, given.only, given.seed, given.frames, given.threads)
        return
    torch.set_num_threads(given.threads)
    methods = {name: bakeoff.rival(network) for name, network in networks(given.folder).items()}
    bakeoff.tell(methods, given.reference, given.part, given)


if __name__ == "__main__":
    main()
