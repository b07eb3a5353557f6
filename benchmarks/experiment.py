"""A whole experiment: a simulated movie of 5,000 frames, localized with uncertainty, beside its truth.

    python benchmarks/experiment.py
    python benchmarks/experiment.py --picasso [PYTHON]       # then, find and fit by Picasso on the same two movies

Molecules on filaments and rings blink and bleach on a sample that drifts, on a part of the real sensor; a second, short
movie has 3 molecules per µm² all the time. `localize` writes one table for each, with standard deviations and
probabilities from samples of the engression. An interrupted run goes on where it was. Chapter 12 reads the result:
smlmtut/results/experiment.npz, the tables with the distance of each row to its molecule, and experiment.json.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.localize_vs_picasso import CHOICES
from benchmarks.picasso_side import picasso_localize, picasso_python
from smlmtut import data
from smlmtut._random import step_generator
from smlmtut.evaluation.localization import Points, match
from smlmtut.imaging.blinking import Flashes, Kinetics, blink, movie
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.distributions import Uniform
from smlmtut.imaging.psf import PSF
from smlmtut.imaging.structures import draw
from smlmtut.io.tables import read_localizations
from smlmtut.localize import SamplingSettings, localize_to_file, shipped_sampler
from smlmtut.networks import pretrained

ROOT = Path(__file__).resolve().parents[1]
SEED, PIXEL_NM, SHAPE, CORNER = 20261220, 108.0, (64, 64), (200, 300)  # CORNER: of the movie on the sensor
BACKGROUND, PHOTONS = 5.0, Uniform(500.0, 1500.0)
ON_TIME, OFF_TIME = 2.0, 620.0  # frames
DRIFT_NM, WALK_NM = (150.0, -90.0), 0.5  # of the whole movie; sd of a random step on top, along each axis and frame
THRESHOLD = 0.1  # lowest peak of ŷ: low, so that there is something to filter
PRACTICE = 0.05  # share of the frames, for Picasso's settings
TOLERANCE_NM = 100.0  # of a pair, as in benchmarks/filtering.py
MOVIES = {"movie": (5000, 1.2, 4.0), "dense": (100, 3.0, 1e9)}  # frames, molecules on at first per µm², flashes of each


@dataclass(frozen=True)
class Simulated:
    """A movie (T, H, W) ADU with its camera and truth. drift: (T, 2) px. u, v: (M,) px of all molecules, undrifted."""

    adu: np.ndarray
    camera: Camera
    flashes: Flashes
    drift: np.ndarray
    u: np.ndarray
    v: np.ndarray


def structure(many: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About so many molecules: two thirds on filaments across the frame, one on rings in a corner of 28 px."""
    places = []
    for name, share, shape in (("filaments", 2 / 3, SHAPE), ("rings", 1 / 3, (28, 28))):
        area = torch.tensor([share * many / shape[0] / shape[1]])
        u, v, present = draw(name, area, shape, generator)
        places.append(torch.stack([u[present], v[present]]) + (2.0 if name == "rings" else 0.0))
    u, v = torch.cat(places, 1).double()
    return u, v


def simulate(frames: int, density: float, flashes: float, seed: int = SEED) -> Simulated:
    """A movie that starts with so many molecules on per µm²; each emits so many times on average, then bleaches."""
    on = density * SHAPE[0] * SHAPE[1] * (PIXEL_NM / 1000) ** 2
    generator = step_generator(seed, 0)
    u, v = structure(on * (ON_TIME + OFF_TIME) / ON_TIME, generator)
    truth = blink(u, v, Kinetics(ON_TIME, OFF_TIME, flashes, PHOTONS), frames, generator)
    even = torch.linspace(-0.5, 0.5, frames)[:, None] * torch.tensor(DRIFT_NM)
    drift = (even + WALK_NM * torch.randn(frames, 2, generator=generator).cumsum(0)).double() / PIXEL_NM
    drift = drift - drift.mean(0)
    moved = drift[truth.frame]
    truth = replace(truth, u=truth.u + moved[:, 0], v=truth.v + moved[:, 1])
    sensor = Camera(**data.calibration_maps())  # type: ignore[arg-type]
    camera = replace(sensor.crop(*CORNER, SHAPE), integer=True, saturation=65535)
    adu = torch.cat(list(movie(truth, PSF(1.0), camera, SHAPE, BACKGROUND, frames, generator)))
    return Simulated(adu.clamp(min=0).numpy().astype(np.uint16), camera, truth, drift.numpy(), u.numpy(), v.numpy())


def localized(name: str, made: Simulated, samples: int, folder: Path) -> pd.DataFrame:
    """The table of a movie; the file of an earlier run with the same movie and settings is taken as it is."""
    path = folder / f"{name}-{len(made.adu)}-{samples}.csv"
    if not path.exists():
        sampler, sampler_name = shipped_sampler("engression-2d")
        localize_to_file(
            path, made.adu, replace(made.camera, integer=False), pretrained.load(), PIXEL_NM, THRESHOLD,
            sampler=sampler, sampler_name=sampler_name, settings=SamplingSettings(samples, SEED),
        )  # fmt: skip
    return read_localizations(path, PIXEL_NM)


def with_errors(table: pd.DataFrame, made: Simulated, frames: int) -> tuple[pd.DataFrame, int]:
    """The table with `error`, nm, NaN where a row has no molecule within reach; and the number of emitters to be found.

    Emitters of the first so many frames count that lie inside the frame and give it 100 photons or more, the fewest in
    training.
    """
    f = made.flashes
    seen = (f.photons >= 100) & (f.u > -0.5) & (f.u < SHAPE[1] - 0.5) & (f.v > -0.5) & (f.v < SHAPE[0] - 0.5)
    seen &= f.frame < frames
    truth = Points(*(x[seen].numpy() for x in (f.frame, f.u, f.v)))
    found = Points(*(table[x].to_numpy() for x in ("frame", "u", "v")))
    pairs = match(found, truth, PIXEL_NM, TOLERANCE_NM)
    error = np.full(len(table), np.nan)
    error[pairs.found.numpy()] = PIXEL_NM * pairs.distance.numpy()
    return table.assign(error=error), int(seen.sum())


def beside(name: str, made: Simulated, table: pd.DataFrame, python: str, folder: Path) -> None:
    """Print Jaccard index, recall, wrong ones and RMSE of the table, whole and filtered, and of Picasso.

    Picasso's settings are those with the best Jaccard index on the first frames, PRACTICE of all; ours `localize`'s.
    """
    practice, every = max(1, round(PRACTICE * len(made.adu))), len(made.adu)
    for frames in (practice, every):
        np.save(folder / f"{name}-{frames}.npy", made.adu[:frames])
    camera = [np.asarray(getattr(made.camera, k)).tolist() for k in ("gain", "offset", "read_variance")]
    with tempfile.TemporaryDirectory() as place, picasso_localize(python, place, PIXEL_NM, *camera) as picasso:

        def peer(box: int, fit: str, least: float, frames: int) -> pd.DataFrame:
            found = picasso(str(folder / f"{name}-{frames}.npy"), box, fit)
            return pd.DataFrame(found[found[:, 3] > least, :3], columns=["frame", "u", "v"]).astype({"frame": int})

        best = max(CHOICES, key=lambda choice: np.nan_to_num(judged(peer(*choice, practice), made, practice)[0]))
        sides = {"all rows": table, "probability ≥ ½": table[table["probability"] >= 0.5]}
        for side, rows in (sides | {f"Picasso, {best}": peer(*best, every)}).items():
            jaccard, recall, wrong, rmse = judged(rows, made, every)
            print(f"{name}, {side}: Jaccard {jaccard:.3f}, recall {recall:.3f}, wrong {wrong:.3f}, RMSE {rmse:.1f} nm")


def judged(table: pd.DataFrame, made: Simulated, frames: int) -> tuple[float, float, float, float]:
    """Jaccard index, recall, share of wrong ones and RMSE (nm) in the first so many frames."""
    found, molecules = with_errors(table, made, frames)
    right = int(found["error"].notna().to_numpy().sum())
    rmse = float(np.sqrt((found["error"] ** 2).mean()))
    return right / (len(found) + molecules - right), right / molecules, 1 - right / max(1, len(found)), rmse


def packed(table: pd.DataFrame, samples: int) -> dict[str, np.ndarray]:
    """The columns as small whole numbers, see `data.PACKED`."""
    columns = table.assign(probability=table["probability"] * samples, error=table["error"].fillna(255))
    for name in ("u_sd", "v_sd"):  # 0 stands for none
        columns[name] = columns[name].clip(lower=1 / data.PACKED[name][1]).fillna(0)
    return {
        name: ((columns[name] + offset) * scale).round().clip(0, np.iinfo(kind).max).to_numpy().astype(kind)
        for name, (offset, scale, kind) in data.PACKED.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=MOVIES["movie"][0], help="of the long movie")
    parser.add_argument("--dense", type=int, default=MOVIES["dense"][0], help="frames of the dense one")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=ROOT / "_build" / "experiment", help="for what a run leaves")
    parser.add_argument("--picasso", nargs="?", const="", help="beside; Python interpreter with picassosr, or none")
    parser.add_argument("--out", type=Path, default=ROOT / "smlmtut" / "results", help="for experiment.json and .npz")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    told: dict[str, dict] = {}
    for name, frames in (("dense", given.dense), ("movie", given.frames)):
        start = time.process_time()
        made = simulate(frames, *MOVIES[name][1:])
        table, molecules = with_errors(localized(name, made, given.samples, given.folder), made, frames)
        if given.picasso is not None:
            beside(name, made, table, picasso_python(given.picasso), given.folder)
        arrays |= {f"{name} {column}": x for column, x in packed(table, given.samples).items()}
        told[name] = {"frames": frames, "samples": given.samples, "emitters": molecules}
        if name == "movie":
            for axis, x in (("u", made.u), ("v", made.v)):
                arrays[f"truth {axis}"] = (100 * (x + 0.5)).round().clip(0, 6400).astype(np.uint16)
            arrays["drift"] = made.drift.astype(np.float16)
        right = table["error"].notna()
        seconds = time.process_time() - start
        print(
            f"{name}: {len(table)} localizations of {molecules} emitters in {frames} frames, {seconds:.0f} s of CPU; "
            f"recall {right.sum() / molecules:.3f}, wrong {1 - right.mean():.3f}, "
            f"RMSE {np.sqrt((table['error'] ** 2).mean()):.1f} nm"
        )
    np.savez_compressed(given.out / "experiment.npz", **arrays)  # type: ignore[arg-type]
    (given.out / "experiment.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
