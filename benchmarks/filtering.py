"""What does it buy to throw away the localizations that the samples doubt?

    python benchmarks/filtering.py --json smlmtut/results/filtering.json

Molecules blink on three filaments, at 3 per µm² in every frame. The localizations are the peaks of ŷ;
samples of the network that `localize` draws by give each a probability and a standard deviation, a plain filter has
its height and its mass. Every row is kept, so that any filter can be tried on it; truth decides which rows have a
molecule.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.reference_posteriors import PIXEL_NM, SHAPE, camera_of
from smlmtut._random import step_generator
from smlmtut.evaluation.localization import Pairs, Points, match
from smlmtut.evaluation.resolution import fourier_ring_correlation, tapered
from smlmtut.imaging.camera import Camera, expose
from smlmtut.imaging.distributions import draw
from smlmtut.imaging.kde import render
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, present_mask
from smlmtut.imaging.scenes import PHOTONS
from smlmtut.imaging.structures import draw as draw_structure
from smlmtut.localize.samples import SamplingSettings, shipped_sampler
from smlmtut.localize.uncertainty import localize_with_uncertainty
from smlmtut.networks import pretrained

SEED, MOLECULES, FILAMENTS, BACKGROUND = 20261202, 4000, 3, 5.0
THRESHOLD = 0.1  # lowest peak of ŷ: low, so that there is something to filter
TOLERANCE_NM = 100.0  # within the challenge's 250 nm there is a molecule nearly everywhere on a filament
KEEP = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the localizations


def movie(frames: int, density: float) -> tuple[Tensor, Camera, Emitters]:
    """ADU (T, H, W), the camera, and the molecules that are on in each frame."""
    generator = step_generator(SEED, 0)
    area = torch.full((FILAMENTS,), MOLECULES / FILAMENTS / SHAPE[0] / SHAPE[1])
    u, v, present = draw_structure("filaments", area, SHAPE, generator)
    u, v = u[present], v[present]
    counts = torch.poisson(torch.full((frames,), density * SHAPE[0] * SHAPE[1] * (PIXEL_NM / 1000) ** 2), generator)
    on = present_mask(counts)
    which = torch.randint(len(u), on.shape, generator=generator)
    emitters = Emitters(u[which], v[which], draw(PHOTONS, on.shape, generator), on)
    cameras, _ = camera_of(1, generator)
    gain, offset, variance = (torch.as_tensor(getattr(cameras, n))[0] for n in ("gain", "offset", "read_variance"))
    camera = Camera(gain, offset, variance, integer=True, saturation=65535)
    return expose(expected_photons(emitters, PSF(1.0), SHAPE, BACKGROUND), camera, generator), camera, emitters


def localizations(frames: int, density: float, samples: int) -> tuple[pd.DataFrame, Points]:
    """The table with `error` in nm, NaN where a row has no molecule; and the molecules inside the frames."""
    adu, camera, emitters = movie(frames, density)
    (sampler, _), settings = shipped_sampler(), SamplingSettings(samples, SEED)
    blocks = localize_with_uncertainty(
        adu.numpy(), replace(camera, integer=False), pretrained.load(), sampler, settings, THRESHOLD
    )
    table = pd.concat([rows for _, rows, _ in blocks], ignore_index=True)
    inside = (emitters.u > -0.5) & (emitters.u < SHAPE[1] - 0.5) & (emitters.v > -0.5) & (emitters.v < SHAPE[0] - 0.5)
    frame, place = (emitters.mask & inside).nonzero(as_tuple=True)
    truth = Points(frame.numpy(), emitters.u[frame, place].double().numpy(), emitters.v[frame, place].double().numpy())
    pairs = matched(table, truth)
    error = np.full(len(table), math.nan)
    error[pairs.found.numpy()] = PIXEL_NM * pairs.distance.numpy()
    return table.assign(error=error), truth


def matched(table: pd.DataFrame, truth: Points) -> Pairs:
    """The localizations of a table and their molecules."""
    return match(Points(*(table[name].to_numpy() for name in ("frame", "u", "v"))), truth, PIXEL_NM, TOLERANCE_NM)


def by_chance(table: pd.DataFrame, truth: Points) -> float:
    """Share of the localizations that find a molecule when each frame is held against the molecules of the next one,
    which lie on the same filaments."""
    moved = replace(truth, frame=(truth.frame - 1) % (int(truth.frame.max()) + 1))
    return len(matched(table, moved).found) / len(table)


def filters(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What a localization may be judged by: the larger, the better."""
    sd = np.nan_to_num(np.hypot(table["u_sd"].to_numpy(), table["v_sd"].to_numpy()), nan=np.inf)
    return {
        "probability": table["probability"].to_numpy(),
        "sd of the samples": -sd,
        "height of ŷ": table["height"].to_numpy(),
        "mass of ŷ": -np.abs(table["mass"].to_numpy() - 1),
    }


def kept_scores(some: pd.DataFrame, molecules: int) -> dict[str, float]:
    """Scores of the rows that a filter keeps, and the length in nm at which their ring correlation falls below 1/7."""
    right = int(np.isfinite(some["error"].to_numpy()).sum())
    u, v, odd = some["u"].to_numpy(), some["v"].to_numpy(), some["frame"].to_numpy() % 2 == 1
    halves = [tapered(render(u[half], v[half], SHAPE, 16)) for half in (~odd, odd)]
    frequency, correlation, _ = fourier_ring_correlation(halves[0], halves[1])
    below = (correlation < 1 / 7).nonzero()
    first = float(frequency[below[0, 0]]) if len(below) else math.nan
    return {
        "precision": right / len(some),
        "recall": right / molecules,
        "Jaccard": right / (len(some) + molecules - right),
        "RMSE, nm": float(np.sqrt((some["error"] ** 2).mean())),
        "FRC, nm": PIXEL_NM / 16 / first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--density", type=float, default=3.0, help="molecules per µm² and frame")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--json", type=Path, help="file that keeps the localizations")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table, truth = localizations(given.frames, given.density, given.samples)
    molecules = len(truth.frame)
    rows = {}
    for name, values in filters(table).items():
        order = np.argsort(-values, kind="stable")
        for share in KEEP:
            some = table.iloc[order[: round(share * len(table))]]
            rows[name, f"{share:.0%}"] = kept_scores(some, molecules)
    print(f"{len(table)} localizations of {molecules} molecules")
    print(f"{by_chance(table, truth):.1%} of them have a molecule in the frame after, where none belongs to them")
    print(pd.DataFrame(rows).T.round(3).to_string())
    if given.json:
        columns = {name: [None if x != x else float(f"{x:.4g}") for x in table[name]] for name in table}
        given.json.write_text(
            json.dumps({"molecules": molecules, "by chance": by_chance(table, truth), "rows": columns}) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
