"""Jaccard index, RMSE and efficiency over density: smlmtut against Picasso's find-and-fit, on the same frames.

    python benchmarks/localize_vs_picasso.py [--picasso PYTHON] [--weights NAME|PATH|none] [--json PATH]

Frames of 64 × 64 pixels of 108 nm, σ = 1 px, N = 1000, b = 5, an sCMOS camera with 2.3 e⁻ of read noise that
reports whole ADU; scores as in the EPFL challenge of 2016. Each side's settings but the network's are those with
the best Jaccard index on other frames of the same density. The last line is the smallest lead in Jaccard of the
last of our sides over the better of Picasso's, over all densities.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.picasso_side import Localize, picasso_localize, picasso_python, picasso_version
from smlmtut.estimation.fit import fit_spots
from smlmtut.estimation.spots import cut_spots, find_spots
from smlmtut.evaluation import localization
from smlmtut.evaluation.localization import Points
from smlmtut.imaging import simulate
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.psf import PSF

SHAPE, PIXEL_NM, PHOTONS, BACKGROUND, SIGMA = (64, 64), 108.0, 1000.0, 5.0, 1.0
GAIN, OFFSET, READ_VARIANCE = 2.035, 113.34, 22.3  # ADU/e⁻, ADU, ADU²: medians of real maps
CAMERA = Camera(GAIN, OFFSET, READ_VARIANCE, saturation=65535, integer=True)
DENSITIES = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)  # per µm²
BOXES, FITS = (3, 5, 7, 9), ("gaussmle-spherical", "gausslq-spherical")  # of Picasso
MIN_NET_GRADIENTS = (0, 50, 100, 150, 200, 300, 400, 600, 800, 1000, 1300, 1600, 2000, 2500, 3000, 4000)
CHOICES = [(box, fit, least) for box in BOXES for fit in FITS for least in MIN_NET_GRADIENTS]
THRESHOLDS, WINDOWS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0), (3, 5, 7, 9)  # of find_spots and cut_spots


def main() -> None:
    """Localize with every side, print the table and the smallest lead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picasso", help="Python interpreter of an environment with picassosr")
    parser.add_argument("--weights", default="deepstorm-2d", help="name or file of the network, or none")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES, help="emitters per µm²")
    parser.add_argument("--frames", type=int, default=500, help="frames that are scored, at each density")
    parser.add_argument("--practice", type=int, default=100, help="other frames, to choose the settings by")
    parser.add_argument("--json", type=Path, help="where to write the table, too")
    args = parser.parse_args()
    python = picasso_python(args.picasso)
    version = picasso_version(python)
    print(f"{args.frames} frames at each density, picassosr {version}, settings chosen on {args.practice} other frames")
    rows = []
    camera = (PIXEL_NM, GAIN, OFFSET, READ_VARIANCE)
    with tempfile.TemporaryDirectory() as folder, picasso_localize(python, folder, *camera) as localize:
        sides = all_sides(localize, args.weights)
        heads = ("per µm²", "Jaccard", "± se", "precis.", "recall", "RMSE nm", "E %")
        print(" ".join(f"{head:>8}" for head in heads), " side: settings")
        for density in args.densities:
            seed = 2 * round(1000 * density)
            practice = draw(density, args.practice, seed, f"{folder}/{seed}.npy")
            scored = draw(density, args.frames, seed + 1, f"{folder}/{seed + 1}.npy")
            for side in sides:
                row = compare(side, density, practice, scored)
                values = (row[k] for k in ("jaccard", "jaccard_se", "precision", "recall", "rmse_nm", "efficiency"))
                formats = ("8.4f", "8.4f", "8.3f", "8.3f", "8.1f", "8.1f")
                cells = " ".join(format(x, f) for x, f in zip(values, formats, strict=True))
                print(f"{density:8g} {cells}  {row['side']}: {row['settings']}", flush=True)
                rows.append(row)
    if args.json:
        text = json.dumps({"picassosr": version, "frames": args.frames, "rows": rows}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    ours = [side.name for side in sides if not side.name.startswith("Picasso")][-1]
    leads = []
    for density in args.densities:
        at = {row["side"]: row["jaccard"] for row in rows if row["density"] == density}
        leads.append(at[ours] - max(x for name, x in at.items() if name.startswith("Picasso")))
    print(f"smallest lead in Jaccard of {ours} over Picasso: {min(leads):.4f}")


@dataclass(frozen=True, eq=False)  # so that it can be a key of a cache
class Scene:
    """Frames (T, H, W) in ADU of (64, 64) pixels, the emitters in them, and the file that the frames are in."""

    adu: Tensor
    truth: Points
    path: str
    camera: Camera = CAMERA
    pixel_nm: float = PIXEL_NM


@dataclass(frozen=True)
class Side:
    """A way to localize a scene, and the settings that it is tried with."""

    name: str
    settings: Sequence[tuple]
    localize: Callable[..., Points]


def draw(density: float, frames: int, seed: int, path: str) -> Scene:
    """Emitters spread evenly, density per µm², and their frames, which are saved under path for Picasso."""
    generator = torch.Generator().manual_seed(seed)
    per_pixel = density * (PIXEL_NM / 1000) ** 2
    emitters = simulate.uniform_in_frame(frames, SHAPE, PHOTONS, generator, density=per_pixel)
    adu = simulate.frames(emitters, PSF(SIGMA), CAMERA, SHAPE, BACKGROUND, generator).float()
    np.save(path, adu.numpy().astype(np.uint16))
    return Scene(adu, Points.of(emitters), path)


def all_sides(picasso: Localize, weights: str) -> list[Side]:
    """Picasso with its customary box and with any, our classical side, and the network unless weights is none."""

    sides = [
        Side("Picasso, box 7", [choice for choice in CHOICES if choice[0] == 7], partial(peer, picasso)),
        Side("Picasso, any box", CHOICES, partial(peer, picasso)),
        Side("smlmtut, find and fit", [(t, w) for t in THRESHOLDS for w in WINDOWS], classical),
    ]
    if weights != "none":
        from smlmtut.networks import pretrained

        sides.append(Side(f"smlmtut, {Path(weights).stem}", [()], partial(learned, pretrained.load(weights))))
    return sides


def peer(picasso: Localize, scene: Scene, box: int, fit: str, least: float) -> Points:
    """Picasso's way, the fits of local maxima with a net gradient above least."""
    table = picasso(scene.path, box, fit)  # its fits do not depend on one another, so it is enough to leave out
    frame, u, v, _ = table[table[:, 3] > least].T
    return Points(frame, u, v)


def classical(scene: Scene, threshold: float, window: int) -> Points:
    """Chapter 4's way: local maxima of a matched filter, each fitted by maximum likelihood with σ known."""
    electrons, found = candidates(scene, threshold)
    spots, corners = cut_spots(electrons, found, window)
    fit = fit_spots(spots, SIGMA, read_variance=float(scene.camera.read_variance_electrons))
    keep = fit.converged
    return Points(found[keep, 0], (corners[:, 1] + fit.u)[keep], (corners[:, 0] + fit.v)[keep])


@cache
def candidates(scene: Scene, threshold: float) -> tuple[Tensor, Tensor]:
    """The frames in photo-electrons and the spots found in them."""
    electrons = to_photoelectrons(scene.adu, scene.camera)
    return electrons, find_spots(electrons, SIGMA, threshold)


def learned(network, scene: Scene) -> Points:
    """The network's KDE, and its peaks above the threshold that to_coordinates has by default."""
    from smlmtut.imaging import kde
    from smlmtut.networks import deepstorm

    frame, u, v = [], [], []
    for first in range(0, len(scene.adu), 32):  # bounds the memory
        y = deepstorm.estimate_kde(network, scene.adu[first : first + 32], scene.camera)
        found = kde.to_coordinates(y, network.factor, network.sigma)
        frame.append(found.frame + first)
        u.append(found.u)
        v.append(found.v)
    return Points(torch.cat(frame), torch.cat(u), torch.cat(v))


def compare(side: Side, density: float, practice: Scene, scored: Scene) -> dict:
    """The side's scores with the settings that are best on the practice frames."""
    best = side.settings[0]
    if len(side.settings) > 1:
        jaccard = {s: challenge(side.localize(practice, *s), practice).jaccard for s in side.settings}
        best = max(jaccard, key=lambda s: np.nan_to_num(jaccard[s]))
    found = side.localize(scored, *best)
    row: dict = {"density": density, "side": side.name, "settings": list(best)}
    row |= asdict(challenge(found, scored))
    return row | {"jaccard_se": jaccard_se(found, scored)}


def challenge(found: Points, scene: Scene) -> localization.Scores:
    """Scores as in the challenge: 250 nm, greedy, 450 nm of border left out."""
    return localization.score(found, scene.truth, scene.pixel_nm, SHAPE, localization.BORDER_NM)


def jaccard_se(found: Points, scene: Scene) -> float:
    """Standard error of the Jaccard index, a ratio of two sums over independent frames."""
    pixel_nm, border = scene.pixel_nm, localization.BORDER_NM
    found, truth = (localization.inside(x, SHAPE, pixel_nm, border) for x in (found, scene.truth))
    pairs = localization.match(found, truth, pixel_nm)
    paired, f, t = (
        np.bincount(x, minlength=len(scene.adu)) for x in (found.frame[pairs.found], found.frame, truth.frame)
    )
    union = f + t - paired
    return float(np.sqrt(np.square(paired - paired.sum() / union.sum() * union).sum()) / union.sum())


if __name__ == "__main__":
    main()
