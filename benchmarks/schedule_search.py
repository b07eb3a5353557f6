"""How many calls of the network does a sample need, and by which solver? Energy regret on the dev frames.

    python benchmarks/schedule_search.py --json smlmtut/results/schedule_search.json      # resumable

Every solver runs the shipped model on the same frames with the same noise; its draws are scored as they are and read as
emitters and drawn again. A Fréchet distance, by which the paper searches, does not see whether the spread is right; the
regret does. Rows that the file has are not run again.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import bakeoff
from smlmtut.diffusion import samplers
from smlmtut.diffusion.schedule import NoiseSchedule
from smlmtut.networks import pretrained
from smlmtut.networks.cddpm import STEPS, ConditionalDiffusion

SOLVERS: dict[str, tuple[Callable, str]] = {  # sampler, spacing of its levels
    "DPM-Solver++": (samplers.dpm_solver, "log-snr"),
    "DDIM": (samplers.ddim, "log-snr"),
    "DDIM, even in time": (samplers.ddim, "time"),
    "ancestral, β̃": (partial(samplers.ancestral, variance="posterior"), "log-snr"),
    "ancestral, β": (partial(samplers.ancestral, variance="beta"), "log-snr"),
}
CALLS = (2, 4, 6, 8, 12, 20, 50, 100)
KEPT = ("energy regret", "energy regret ±", "spread / exact", "CRPS core", "CRPS halo", "error bar bias", "s a frame")


def method(network: ConditionalDiffusion, solver: str, calls: int) -> bakeoff.Method:
    """The model, sampled in this way."""
    sampler, spacing = SOLVERS[solver]
    return bakeoff.diffusion(network, NoiseSchedule.cosine(STEPS).trained().resample(calls, spacing), sampler)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of the reference; none: the file that ships")
    parser.add_argument("--kinds", nargs="*", default=["pair", "sparse"])
    parser.add_argument("--solvers", nargs="*", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument("--calls", type=int, nargs="*", default=list(CALLS))
    parser.add_argument("--most", type=int, default=16, help="frames of each class")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    phi, network = pretrained.load(), pretrained.load("cddpm-2d", kind=ConditionalDiffusion)
    frames = {kind: bakeoff.read_class(given.folder, "dev", kind, phi) for kind in given.kinds}
    found = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else {}
    for calls in given.calls:
        for solver in given.solvers:
            for kind, some in frames.items():
                if some is None or str(calls) in found.get(solver, {}).get(kind, {}):
                    continue
                some = some.part(slice(given.most))
                rows = bakeoff.judged_as_kdes(solver, method(network, solver, calls), some, kind)
                for name, (row, _) in rows.items():
                    kept = {key: float(f"{row[key]:.4g}") for key in KEPT if key in row}
                    found.setdefault(name, {}).setdefault(kind, {})[str(calls)] = kept
                    print(f"{name}, {calls} calls, {kind}: {kept}", flush=True)
                given.json.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
