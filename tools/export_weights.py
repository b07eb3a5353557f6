"""Turn a finished training run into the weights that the package ships.

    python tools/export_weights.py runs/deepstorm-2d deepstorm-2d --commit HASH

Writes smlmtut/weights/NAME.safetensors from the averaged weights (EMA) of the run's last checkpoint, and prints the
SHA-256 that belongs into smlmtut/networks/pretrained.py. --commit: the commit whose `smlmtut train` made the run.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from smlmtut.networks import pretrained, recipes
from smlmtut.networks.cddpm import ConditionalDiffusion
from smlmtut.networks.checkpoint import read_average
from smlmtut.networks.deepstorm import DeepSTORM
from smlmtut.networks.emitter_set import EmitterSet
from smlmtut.networks.engression import Engression
from smlmtut.networks.rivals import Gaussian
from smlmtut.networks.settings import TrainingSettings

Make = Callable[[], DeepSTORM | ConditionalDiffusion | Gaussian | EmitterSet | Engression]
RIVALS = replace(recipes.SHIPPED_DIFFUSION, steps=1500, seed=2101)  # of `benchmarks/rivals.py train --frames 48000`
RUNS: dict[str, tuple[Make, TrainingSettings]] = {
    "deepstorm-2d": (DeepSTORM, recipes.SHIPPED),
    "cddpm-2d": (ConditionalDiffusion, recipes.SHIPPED_DIFFUSION),
    "cddpm-2d-published": (
        lambda: ConditionalDiffusion(**recipes.PUBLISHED_FORM),
        recipes.PUBLISHED_DIFFUSION,
    ),
    "gaussian-2d": (Gaussian, RIVALS),
    "emitters-2d": (EmitterSet, RIVALS),
    "engression-2d": (Engression, recipes.SHIPPED_ENGRESSION),
}


def export(
    folder: Path, target: Path, commit: str, settings: TrainingSettings | None = None, name: str = "deepstorm-2d"
) -> str:
    """Write the weights of a finished run of RUNS[name]; returns their SHA-256.

    settings: None: those of RUNS. Raises ValueError where the run is not finished or had other settings.
    """
    make, shipped = RUNS[name]
    network, settings = make(), settings or shipped
    content = read_average(network, folder)
    if content["step"] != settings.steps:
        raise ValueError(f"folder {folder} must hold a finished run of {settings.steps} steps, got {content['step']}")
    wanted = asdict(settings)
    other = [name for name, value in content["identity"].items() if name in wanted and value != wanted[name]]
    other = [name for name in other if name != "shards"]  # None stands for the number of processes
    if other:
        raise ValueError(f"folder {folder} must hold a run of the shipped settings, these differ: {', '.join(other)}")
    metadata = {"settings": wanted, "commit": commit, "frames": settings.steps * settings.batch}
    return pretrained.save(network, target, metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--commit", required=True)
    given = parser.parse_args()
    target = pretrained.FOLDER / f"{given.name}{pretrained.SUFFIX}"
    digest = export(given.folder, target, given.commit, name=given.name)
    print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB\n    {given.name!r}: {digest!r},")


if __name__ == "__main__":
    main()
