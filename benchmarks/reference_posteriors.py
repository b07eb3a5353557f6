"""Frames with draws from their exact posterior, made once and kept: what the bake-off of chapter 10 is judged by.

    python benchmarks/reference_posteriors.py make --folder runs/reference           # resumable; hours on one core
    python benchmarks/reference_posteriors.py make --folder runs/reference --part test
    python benchmarks/reference_posteriors.py make --folder runs/reference --share 0 2       # and 1 2: two processes
    python benchmarks/reference_posteriors.py make --part test --beside smlmtut/reference/posteriors.h5  # what it lacks
    python benchmarks/reference_posteriors.py make --folder runs/held --seed 12345   # a part that nobody has seen
    python benchmarks/reference_posteriors.py report --folder runs/reference         # kept, left out, certificates
    python benchmarks/reference_posteriors.py jumps                                  # what jumps to the modes buy

`benchmarks/protocol.md` says what the classes are and what a frame must fulfil to be kept. Each part of the folder is
one file of PART frames; a run that is killed goes on with the parts that it was drawing. `--together` of them share
their sweeps, which is faster, and their random numbers: another number of them gives the same frames and other draws.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from smlmtut import data
from smlmtut._files import replacing
from smlmtut._random import step_generator
from smlmtut.imaging.camera import Camera, expose, to_photoelectrons
from smlmtut.imaging.distributions import draw
from smlmtut.imaging.kde import kde_image, kernel, to_super_resolved
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.imaging.scenes import BACKGROUND, DENSITY, PHOTONS, SIGMA
from smlmtut.posterior import Draws, Prior, chain_posterior, count_prior, effective_size, grid_posterior, split_r_hat

SHAPE, PIXEL_NM, MARGIN = (16, 16), 108.0, 3.0  # px, nm, px beyond the border where emitters are drawn too
LEFT, RIGHT = -0.5 - MARGIN, SHAPE[1] - 0.5 + MARGIN
AREA = (RIGHT - LEFT) ** 2 * (PIXEL_NM / 1000) ** 2  # µm²
PART, CHAINS, KEPT = 8, 16, 64  # frames of a file; chains a frame; draws that are stored, the same number of each chain
TOGETHER = 4  # files that are drawn side by side
SEEN = ("adu", "gain", "offset", "read_variance")  # what the chains are given of a frame
R_HAT, SIZE, AGREE, CAP = 1.01, 400.0, 0.02, 1e-3  # the certificate, see protocol.md
SEEDS = {"dev": 20261127, "test": 20261128}  # named in protocol.md before anything was drawn


@dataclass(frozen=True)
class Kind:
    """A class of frames: how many of each part, the largest K of its chains, and the sweeps of the first attempt."""

    dev: int
    test: int
    most: int
    burn_in: int
    draws: int
    thin: int


KINDS = {
    "lone": Kind(56, 152, 12, 300, 400, 2),
    "pair": Kind(56, 152, 12, 400, 400, 5),
    "sparse": Kind(56, 152, 14, 400, 400, 3),
    "crowded": Kind(16, 32, 28, 1000, 600, 10),
}


def emitters_of(kind: str, count: int, generator: torch.Generator) -> Emitters:
    """Emitters (count, E) of frames of a class, drawn from the training prior until enough belong to it."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(found) < count:
        density = draw(DENSITY, (1,), generator) if kind != "crowded" else 1 + 1.5 * torch.rand(1, generator=generator)
        number = int(torch.poisson(density * AREA, generator=generator))
        if number > 4 and kind != "crowded":
            continue
        u, v = LEFT + (RIGHT - LEFT) * torch.rand(2, number, generator=generator)
        if belongs(kind, u, v, generator):
            found.append((u, v, draw(PHOTONS, (number,), generator)))
    most = max(1, *(len(u) for u, _, _ in found))
    padded = torch.zeros(3, count, most)
    present = torch.zeros(count, most, dtype=torch.bool)
    for i, values in enumerate(found):
        for row, value in zip(padded, values, strict=True):
            row[i, : len(value)] = value
        present[i, : len(values[0])] = True
    return Emitters(padded[0], padded[1], padded[2], present)


def belongs(kind: str, u: Tensor, v: Tensor, generator: torch.Generator) -> bool:
    """Whether emitters at these places make a frame of this class."""
    inside = bool(((u > -0.5) & (u < SHAPE[1] - 0.5) & (v > -0.5) & (v < SHAPE[0] - 0.5)).all())
    if kind == "lone":
        return len(u) == 1 and inside
    if kind == "pair":
        return len(u) == 2 and inside and 0.6 <= math.hypot(float(u[0] - u[1]), float(v[0] - v[1])) <= 2.0
    return True


def camera_of(count: int, generator: torch.Generator) -> tuple[Camera, Tensor]:
    """A part of the real sensor for each frame, in whole ADU, and its (row, column) on the maps: (count, 2)."""
    maps = {name: torch.as_tensor(m, dtype=torch.float32) for name, m in data.calibration_maps().items()}
    sensor = Camera(maps["gain"], maps["offset"], maps["read_variance"], integer=True, saturation=65535)
    assert sensor.shape is not None
    free = [full - size + 1 for full, size in zip(sensor.shape, SHAPE, strict=True)]
    corner = torch.stack([torch.randint(n, (count,), generator=generator) for n in free], 1)
    return sensor.crops(corner[:, 0], corner[:, 1], SHAPE), corner


def make_part(kind: str, count: int, generator: torch.Generator, most: int | None = None) -> dict[str, np.ndarray]:
    """`count` frames of a class as the camera reports them, and everything that is known of them."""
    emitters = emitters_of(kind, count, generator)
    background, sigma = draw(BACKGROUND, (count,), generator), draw(SIGMA, (count,), generator)
    camera, corner = camera_of(count, generator)
    adu = expose(expected_photons(emitters, PSF(sigma[:, None]), SHAPE, background), camera, generator).clamp(min=0)
    maps = {name: torch.as_tensor(getattr(camera, name)).numpy() for name in ("gain", "offset", "read_variance")}
    truth = {
        "u": emitters.u,
        "v": emitters.v,
        "photons": emitters.photons * emitters.mask,
        "count": emitters.mask.sum(1),
    }
    out = {"adu": adu.numpy().astype(np.uint16), "corner": corner.numpy(), **maps}
    out |= {"background": background.numpy(), "sigma": sigma.numpy()}
    return out | {f"truth_{name}": x.numpy() for name, x in truth.items()}


def prior() -> Prior:
    """The training prior of one emitter, up to MARGIN beyond the border."""
    ends = [(float(x.low), float(x.high)) for x in (PHOTONS, BACKGROUND, SIGMA)]
    return Prior(ends[0], ends[1], ends[2], (LEFT, RIGHT, LEFT, RIGHT))


def run_chains(
    frames: dict[str, np.ndarray], kind: Kind, longer: int, generator: torch.Generator, jumps: bool = True
) -> Draws:
    gain, offset, read_variance = (torch.from_numpy(frames[name]) for name in ("gain", "offset", "read_variance"))
    camera = Camera(gain, offset, read_variance)
    electrons = to_photoelectrons(torch.from_numpy(frames["adu"].astype(np.float64)), camera)
    numbers = count_prior(kind.most, SHAPE, DENSITY, PIXEL_NM, MARGIN)
    variance = torch.as_tensor(camera.read_variance_electrons, dtype=torch.float64)
    return chain_posterior(
        electrons, numbers, generator, variance, prior(), CHAINS, kind.draws, longer * kind.thin, longer * kind.burn_in,
        jumps=jumps,
    )  # fmt: skip


# -- the certificate ---------------------------------------------------------------------------------------


def inside_count(draws: Draws, i: int) -> Tensor:
    """How many emitters lie inside the frame, (C, S)."""
    u, v, there = draws.u[i], draws.v[i], draws.photons[i] > 0
    inside = (u > -0.5) & (u < SHAPE[1] - 0.5) & (v > -0.5) & (v < SHAPE[0] - 0.5)
    return (inside & there).sum(-1)


def moments(draws: Draws, i: int) -> tuple[Tensor, Tensor]:
    """E[y | x] and sd[y | x] of frame i, (64, 64)."""
    emitters, first, second = draws.emitters(i), 0.0, 0.0
    for part in torch.arange(len(emitters)).split(512):
        y = kde_image(Emitters(*(x[part] for x in (emitters.u, emitters.v, emitters.photons, emitters.mask))), SHAPE)
        first, second = first + y.sum(0)[0], second + (y**2).sum(0)[0]
    mean = torch.as_tensor(first) / len(emitters)
    return mean, (torch.as_tensor(second) / len(emitters) - mean**2).clamp(min=0).sqrt()


def looked_at(mean: Tensor, sd: Tensor) -> list[int]:
    """The brightest, the least sure and the least sure halo pixel, which depend on the frame alone."""
    halo = torch.where((mean > 0.01) & (mean < 0.1), sd, 0.0)
    return [int(x.argmax()) for x in (mean, sd, halo)]


def traces(draws: Draws, i: int, mean: Tensor, sd: Tensor) -> Tensor:
    """What must have converged, (5, C, S): number inside, mass, y at its brightest, least sure and halo pixel."""
    along_u = kernel(to_super_resolved(draws.u[i], 4), 1.0, 4 * SHAPE[1])  # (C, S, E, 64)
    along_v = kernel(to_super_resolved(draws.v[i], 4), 1.0, 4 * SHAPE[0])
    there = (draws.photons[i] > 0).double()
    mass = (along_u.sum(-1) * along_v.sum(-1) * there).sum(-1)
    at = [(along_v[..., p // 64] * along_u[..., p % 64] * there).sum(-1) for p in looked_at(mean, sd)]
    return torch.stack([inside_count(draws, i).double(), mass, *at])


def certificate(draws: Draws, i: int, mean: Tensor, sd: Tensor) -> dict[str, float]:
    """The numbers that decide whether frame i is kept."""
    seen = traces(draws, i, mean, sd)
    number, half, most = seen[0], CHAINS // 2, len(draws.count_prior) - 1
    p = torch.stack([(number == k).double().mean(1) for k in range(most + 1)])  # (K, C)
    few, many = p[:, :half].mean(1), p[:, half:].mean(1)
    likely = p.mean(1) > 0.01
    return {
        "r_hat": float(split_r_hat(seen).max()),
        "size": float(effective_size(seen).min()),
        "disagreement": float((few - many)[likely].square().mean().sqrt()),
        "at_cap": float((draws.count[i] == most).double().mean()),
    }


def why_not(numbers: dict[str, float]) -> str:
    """Why a frame is not kept; empty where it is."""
    limits = {"r_hat": R_HAT, "disagreement": AGREE, "at_cap": CAP}
    failed = [f"{name} {numbers[name]:.3g} > {limit:g}" for name, limit in limits.items() if not numbers[name] <= limit]
    if not numbers["size"] >= SIZE:
        failed.append(f"size {numbers['size']:.0f} < {SIZE:g}")
    return "; ".join(failed)


def against_grid(frames: dict[str, np.ndarray], i: int, draws: Draws) -> dict[str, float]:
    """The draws with K = 1 against the grid posterior of one emitter: difference of the means over the largest sd, and
    ratio of the rms sds; both near 0 and 1. n: how many such draws there are.
    """
    exact_mean, variance = grid_posterior(draws.frames[i], draws.read_variance[i], prior()).kde_moments()
    emitters, one = draws.emitters(i), draws.count[i].flatten() == 1
    y = kde_image(Emitters(*(x[one] for x in (emitters.u, emitters.v, emitters.photons, emitters.mask))), SHAPE)[:, 0]
    bright = exact_mean > 0.05
    ratio = y.var(0)[bright].mean().sqrt() / variance[bright].mean().sqrt()
    off = float((y.mean(0) - exact_mean).abs().max() / variance.max().sqrt())
    return {"grid_off": off, "grid_ratio": float(ratio), "grid_n": float(one.sum())}


def solve_part(
    frames: dict[str, np.ndarray], kind: Kind, generator: torch.Generator, attempts: int = 2, grid: bool = False
) -> dict:
    """Draws, moments and certificates of the frames; those that fail get chains four times as long, once.

    grid: hold them against the grid posterior of one emitter, too.
    """
    count = len(frames["adu"])
    out: dict[str, list] = {"draws": [None] * count, "mean": [None] * count, "sd": [None] * count, "p": [None] * count}
    notes: list[dict] = [{} for _ in range(count)]
    todo = list(range(count))
    for attempt in range(attempts):
        some = {key: x[todo] for key, x in frames.items()}
        draws = run_chains(some, kind, 4**attempt, generator)
        for k, i in enumerate(todo):
            mean, sd = moments(draws, k)
            notes[i] = certificate(draws, k, mean, sd) | {"attempt": attempt + 1}
            if grid:
                notes[i] |= against_grid(some, k, draws)
            notes[i]["why_not"] = why_not(notes[i])
            number = inside_count(draws, k)
            out["p"][i] = torch.stack([(number == n).double().mean() for n in range(kind.most + 1)]).numpy()
            out["mean"][i], out["sd"][i] = mean.numpy(), sd.numpy()
            out["draws"][i] = thinned(draws, k)
        todo = [i for i in todo if notes[i]["why_not"]]
        if not todo:
            break
    return {**{key: np.stack(x) for key, x in out.items()}, "notes": notes}


def thinned(draws: Draws, i: int) -> np.ndarray:
    """KEPT draws of frame i, as many of each chain, evenly spaced: (KEPT, 3 E + 2) of u, v, N and then b, σ."""
    each, length = KEPT // CHAINS, draws.u.shape[2]
    at = torch.linspace(length / each - 1, length - 1, each).round().long()
    parts = [x[i][:, at].flatten(0, 1) for x in (draws.u, draws.v, draws.photons)]  # (KEPT, E)
    rest = [x[i][:, at].flatten()[:, None] for x in (draws.background, draws.sigma)]
    return torch.cat([*parts, *rest], 1).numpy().astype(np.float32)


# -- the commands ------------------------------------------------------------------------------------------


def jobs(seed: int | None) -> list[tuple[str, str, int, int]]:
    """(part, class, number of the file, seed): *dev* first, which models are chosen by; classes take turns."""
    seeds = SEEDS if seed is None else {"held": seed}
    out = []
    for part, own in seeds.items():
        for name, kind in KINDS.items():
            count = kind.test if part == "held" else getattr(kind, part)
            out += [(part, k / count * PART, name, k, own) for k in range(-(-count // PART))]
    return [(part, *rest) for part, _, *rest in sorted(out)]


def groups(
    seed: int | None,
    only: str | None,
    share: tuple[int, int] = (0, 1),
    kinds: Sequence[str] = tuple(KINDS),
    together: int = TOGETHER,
) -> list[list[tuple]]:
    """Files of one class that are drawn side by side, of one part or all; every n-th group from the i-th."""
    all_jobs = [job for job in jobs(seed) if only in (None, job[0]) and job[1] in kinds]
    out = []
    while all_jobs:
        some = [job for job in all_jobs if job[:2] == all_jobs[0][:2]][:together]
        all_jobs = [job for job in all_jobs if job not in some]
        out.append(some)
    return out[share[0] :: share[1]]


def make(
    folder: Path,
    seed: int | None,
    threads: int,
    only: str | None = None,
    share: tuple[int, int] = (0, 1),
    kinds: Sequence[str] = tuple(KINDS),
    beside: Path | None = None,
    together: int = TOGETHER,
) -> None:
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    here = [] if beside is None else files_in(beside)
    missing = [
        [job for job in some if not path_of(folder, job).exists() and path_of(folder, job).stem not in here]
        for some in groups(seed, only, share, kinds, together)
    ]
    missing = [some for some in missing if some]
    for number, some in enumerate(missing):
        name = some[0][1]
        began = time.perf_counter()
        places = [1000 * list(KINDS).index(name) + k for _, _, k, _ in some]
        own = some[0][3]
        frames = [make_part(name, PART, step_generator(own, place)) for place in places]
        seen = {key: np.concatenate([part[key] for part in frames]) for key in SEEN}
        solved = solve_part(seen, KINDS[name], step_generator(own, places[0], 1), grid=name == "lone")
        notes = solved.pop("notes")
        spent = (time.perf_counter() - began) / len(notes)
        left = sum(map(len, missing[number + 1 :]))
        for i, (job, known) in enumerate(zip(some, frames, strict=True)):
            of = slice(i * PART, (i + 1) * PART)
            part = {key: values[of] for key, values in solved.items()}
            path = path_of(folder, job)
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, notes=json.dumps(notes[of]), **known, **part)
            good = sum(not note["why_not"] for note in notes[of])
            print(f"{path.name}, {good} of {PART} kept, {spent:.1f} s a frame; {left} to do", flush=True)


def files_in(path: Path) -> list[str]:
    """The names PART-CLASS-NUMBER of the files that `reference_file.py` has packed into one."""
    with h5py.File(path) as file:
        return [
            f"{part}-{name}-{k:02d}"
            for part in SEEDS
            for name in KINDS
            if isinstance(group := file.get(f"{part}/{name}"), h5py.Group)
            for k in files_of(group)
        ]


def files_of(group: h5py.Group) -> list[int]:
    """The numbers of the files that a class of a part was made of; a file without them has the first ones."""
    frames = len(group["adu"]) + sum(json.loads(str(group.attrs["left_out"])).values())  # type: ignore[arg-type]
    return [int(k) for k in group.attrs.get("files", range(frames // PART))]


def path_of(folder: Path, job: tuple[str, str, int, int]) -> Path:
    """The file of a job."""
    part, name, k, _ = job
    return folder / f"{part}-{name}-{k:02d}.npz"


def what_jumps_are_worth(kinds: list[str]) -> None:
    """The chains of the first attempt without and with jumps, on the first dev frames of a class, in one run."""
    print("| class | effective size per CPU second, with jumps over without: median, least, most | kept | p(K) apart |")
    print("|---|---|---|---|")
    for name in kinds:
        place = 1000 * list(KINDS).index(name)
        frames = make_part(name, PART, step_generator(SEEDS["dev"], place))
        speed, good, shares = [], [], []
        for jumps in (False, True):
            began = time.process_time()
            draws = run_chains(frames, KINDS[name], 1, step_generator(0, place), jumps)
            spent = time.process_time() - began
            notes = [certificate(draws, i, *moments(draws, i)) for i in range(PART)]
            speed.append(np.array([note["size"] / spent for note in notes]))
            good.append(sum(not why_not(note) for note in notes))
            number = torch.stack([inside_count(draws, i).flatten() for i in range(PART)])
            shares.append(torch.stack([(number == k).double().mean(1) for k in range(KINDS[name].most + 1)], 1))
        ratio = speed[1] / speed[0]
        apart = float((shares[1] - shares[0]).abs().amax(1).square().mean().sqrt())
        middle = f"{np.median(ratio):.1f}, {ratio.min():.1f}, {ratio.max():.1f}"
        print(f"| {name} | {middle} | {good[0]} and {good[1]} of {PART} | {apart:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["make", "report", "jumps"])
    parser.add_argument("--folder", type=Path, default=Path("runs/reference"))
    parser.add_argument("--seed", type=int, help="of a held part; none: dev and test")
    parser.add_argument("--part", choices=list(SEEDS), help="the only one that is made; none: both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", type=Path, help="file of reference_file.py, whose frames are not made again")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="process I of N")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), help="classes of frames")
    parser.add_argument("--together", type=int, default=TOGETHER, help="files that share their sweeps (as above)")
    given = parser.parse_args()
    if given.command == "jumps":
        torch.set_num_threads(given.threads)
        what_jumps_are_worth(given.kinds)
    elif given.command == "make":
        make(
            given.folder,
            given.seed,
            given.threads,
            given.part,
            tuple(given.share),
            given.kinds,
            given.beside,
            given.together,
        )
    else:
        report(given.folder)


def report(folder: Path) -> None:
    """What a folder holds: frames kept and left out, and why; the certificates; the grid against the chains."""
    for part in ("dev", "test", "held"):
        for name in KINDS:
            notes = [
                note
                for path in sorted(folder.glob(f"{part}-{name}-*.npz"))
                for note in json.loads(str(np.load(path)["notes"]))
            ]
            if not notes:
                continue
            kept = [note for note in notes if not note["why_not"]]
            line = f"{part} {name}: {len(kept)} of {len(notes)} kept"
            if kept:
                worst = [
                    f"{key} {f(note[key] for note in kept):.4g}"
                    for key, f in (("r_hat", max), ("size", min), ("disagreement", max), ("at_cap", max))
                ]
                rms = math.sqrt(sum(note["disagreement"] ** 2 for note in kept) / len(kept))
                line += f"; worst: {', '.join(worst)}; rms disagreement {rms:.4f}"
            if name == "lone" and kept:
                ratio = np.array([note["grid_ratio"] for note in kept])
                line += f"; sd over the grid's {ratio.mean():.4f} ± {ratio.std() / math.sqrt(len(ratio)):.4f}"
            print(line)
            for note in notes:
                if note["why_not"]:
                    print(f"    left out: {note['why_not']}")


if __name__ == "__main__":
    main()
