"""Two public stacks with a truth, which nothing here was made by: shipped weights, fine-tuned ones, and Picasso.

    pip install openpyxl
    python benchmarks/public_stacks.py --folder runs/public-stacks [--picasso PYTHON]         # resumable

Movies of 64 × 64 pixels of 100 nm from the repository of Deep-STORM (Nehme et al. 2018, Optica 5:458; MIT licence),
with 5 to 6 molecules per µm²: "tubes", 361 frames of bundled tubes of the EPFL challenge of 2013, and "uniform", 20
frames of ThunderSTORM's simulator that its authors trained on. Files are looked for in SMLMTUT_DATA, then downloaded.

Of the camera nothing is stated. The offset is taken to be 100 ADU, and the gain is the one at which pixels that are
never lit vary as their light: an EMCCD doubles that variance, as if half of the photons were lost. Two scenes to
train on have PSF and background of the settings that the second stack tells, and a wide range of densities. "wide":
N within a factor of ten, as if nothing were known of it; "told": N within 30 % of the mean of the second stack, which
is its light over the number of its molecules. `measure_movie` is asked, too, and its verdict printed. Settings of
Picasso's side are the best of all on the first frames of each stack, which are not scored; ours has none. Scores as in
the challenge of 2016. The last line is the least, of the stacks, of our Jaccard index after the longest training on the
scene "told" over Picasso's.
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import tifffile
import torch

from benchmarks import fine_tuning
from benchmarks.localize_vs_picasso import CHOICES, SHAPE, Scene, Side, compare, learned, peer
from benchmarks.picasso_side import picasso_localize, picasso_python, picasso_version
from smlmtut import imaging
from smlmtut.evaluation.localization import Points
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.distributions import LogUniform, Uniform
from smlmtut.localize.measure import measure_movie
from smlmtut.networks import pretrained

ORIGIN = "https://raw.githubusercontent.com/EliasNehme/Deep-STORM/89eb61e15c7b14a761c434ee7ed936d6231b324b/"
DEMO = "demo%201%20-%20Simulated%20Microtubules/"
FILES = {  # name here: SHA-256, name there
    "deepstorm_tubes.tif": (
        "a7a63a49c06b1f1f100e7a3dfdb50f6609a89224aada673589fbac5da0bb3349",
        "testStack_SimulatedMicrotubules.tif",
    ),
    "deepstorm_tubes.xlsx": (
        "4738ed5001d46adce65c45f93b5e81957747277c186bf1e8b1b970b339fab34a",
        "Positions_Bundeld_Tubulin_Recreated.xlsx",
    ),
    "deepstorm_uniform.tif": (
        "94cf07e9bfcfca43fe90aac953a858df03ec5273760086654577c4041a5b098b",
        "ArtificialDataset_demo1.tif",
    ),
    "deepstorm_uniform.csv": (
        "e3cdb551c42ecabca06b45989844ff3cf66c5459db49d802875488855262ac3d",
        "positions_demo1.csv",
    ),
}
HEAD = "| stack | molecules per µm² | side | Jaccard | precision | recall | RMSE, nm |\n|---|---|---|---|---|---|---|"
PIXEL_NM, OFFSET, DARK = 100.0, 100.0, 0.05  # DARK: share of the pixels that are never lit
PRACTICE = {"tubes": 61, "uniform": 5}  # first frames, for Picasso's settings
SIGMA, WIDE, DENSITY = Uniform(1.05, 1.16), LogUniform(300.0, 3000.0), LogUniform(0.5, 15.0)  # px, e⁻, per µm²
TOLD = 0.3  # half of the range of N over its middle


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--picasso", help="Python interpreter of an environment with picassosr")
    parser.add_argument("--folder", type=Path, default=Path("runs/public-stacks"), help="of the fine-tuning")
    parser.add_argument("--steps", type=int, nargs="+", default=(1000, 4000), help="of the fine-tuning")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    python = picasso_python(given.picasso)
    with tempfile.TemporaryDirectory() as folder:
        adu = tifffile.imread(fetched("deepstorm_tubes.tif")).astype(np.float32)
        camera, background = photon_transfer(adu)
        print(f"gain {camera.gain:.2f} ADU/e⁻, background {background:.1f} e⁻; `measure` of the tubes:", flush=True)
        print("; ".join(measure_movie(adu, camera, PIXEL_NM).problems) or "no problem")
        sides = [Side("shipped", [()], partial(learned, pretrained.load()))]
        mean = brightness(camera, background)
        for name, photons in (("wide", WIDE), ("told", Uniform((1 - TOLD) * mean, (1 + TOLD) * mean))):
            scene = imaging.Scene(
                density=DENSITY, photons=photons, background=Uniform(background / 2, 1.5 * background), sigma=SIGMA,
                pixel_size_nm=PIXEL_NM, camera=camera,
            )  # fmt: skip
            for steps in given.steps:
                network, minutes = fine_tuning.trained(f"stacks {name}", scene, steps, True, given.folder)
                side = Side(f"{name}, {steps} steps, {minutes:.1f} min", [()], partial(learned, network))
                sides.append(side)
        maps = (float(x) for x in (camera.gain, camera.offset, camera.read_variance))
        with picasso_localize(python, folder, PIXEL_NM, *maps) as picasso:
            sides.append(Side(f"Picasso {picasso_version(python)}", CHOICES, partial(peer, picasso)))
            print(HEAD)
            leads = [of_stack(name, camera, sides, folder) for name in PRACTICE]
    print(f"Jaccard index over Picasso's, least of the stacks: {min(leads):.2f}")


def of_stack(name: str, camera: Camera, sides: list[Side], folder: str) -> float:
    """Print a row for each side; the Jaccard index of the last but one over that of the last, Picasso."""
    adu, truth = stack(name)
    first = PRACTICE[name]
    practice = part(f"{folder}/{name}-practice.npy", adu, truth, 0, first, camera)
    scored = part(f"{folder}/{name}-scored.npy", adu, truth, first, len(adu), camera)
    density = len(truth) / len(adu) / (SHAPE[0] * SHAPE[1] * (PIXEL_NM / 1000) ** 2)
    rows = [compare(side, density, practice, scored) for side in sides]
    for row in rows:
        print(
            f"| {name} | {density:.1f} | {row['side']} | {row['jaccard']:.3f} ± {row['jaccard_se']:.3f} "
            f"| {row['precision']:.3f} | {row['recall']:.3f} | {row['rmse_nm']:.1f} |",
            flush=True,
        )
    return rows[-2]["jaccard"] / rows[-1]["jaccard"]


def part(path: str, adu: np.ndarray, truth: np.ndarray, start: int, stop: int, camera: Camera) -> Scene:
    """Frames start to stop - 1 of a stack, saved under path for Picasso."""
    np.save(path, adu[start:stop].astype(np.uint16))
    rows = truth[(truth[:, 0] >= start) & (truth[:, 0] < stop)]
    points = Points(*(torch.as_tensor(x) for x in (rows[:, 0].astype(int) - start, rows[:, 1], rows[:, 2])))
    return Scene(torch.from_numpy(adu[start:stop]), points, path, camera, PIXEL_NM)


def stack(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W), ADU, and the truth (M, 3): frame, u, v. Frames count from 0, u and v in px."""
    adu = tifffile.imread(fetched(f"deepstorm_{name}.tif")).astype(np.float32)
    if name == "tubes":
        table = pd.read_excel(fetched("deepstorm_tubes.xlsx"))
    else:
        table = pd.read_csv(fetched("deepstorm_uniform.csv"))
    frame, x, y = (table[column].to_numpy(float) for column in ("frame", "x [nm]", "y [nm]"))
    return adu, np.stack([frame - 1, x / PIXEL_NM - 0.5, y / PIXEL_NM - 0.5], 1)


def photon_transfer(adu: np.ndarray) -> tuple[Camera, float]:
    """The camera, and the background in e⁻, of a movie some of whose pixels are never lit."""
    mean, variance = adu.mean(0), adu.var(0, ddof=1)
    dark = mean <= np.quantile(mean, DARK)
    light = float(mean[dark].mean()) - OFFSET
    gain = float(variance[dark].mean()) / light
    return Camera(gain, OFFSET, 0.0, integer=True, saturation=65535), light / gain


def brightness(camera: Camera, background: float) -> float:
    """Mean N, e⁻, of the molecules of the second stack."""
    adu, truth = stack("uniform")
    light = (adu - OFFSET) / camera.gain - background
    inside = (truth[:, 1:] > -0.5).all(1) & (truth[:, 1] < SHAPE[1] - 0.5) & (truth[:, 2] < SHAPE[0] - 0.5)
    return float(light.sum() / inside.sum())


def fetched(name: str) -> Path:
    """Path of one of FILES on this machine, its SHA-256 verified."""
    sha256, there = FILES[name]
    folder = os.environ.get("SMLMTUT_DATA", "")
    if (Path(folder) / name).is_file():
        assert pooch.file_hash(Path(folder) / name) == sha256, f"{name} is another file"
        return Path(folder) / name
    return Path(pooch.retrieve(ORIGIN + DEMO + there, known_hash=f"sha256:{sha256}", fname=name))


if __name__ == "__main__":
    main()
