"""Seconds a frame of `localize --uncertainty` by diffusion and by exact chains, and how many groups the chains answer.

    python benchmarks/localize_exact.py [--frames 64] [--diffused 4] [--threads 2]

Frames of 64 × 64 pixels of the book's reference scene, 0.5 emitters per µm², on a part of the real sensor. Both modes
see the same frames in one run, in blocks as `localize` does: `--frames` of them with chains, with the diffusion model
for what these leave, and the first `--diffused` with the diffusion model alone. The aim, set before the first run: at
most 5 s a frame on two cores, and an answer by the chains in at least 95 % of the groups.

The CPU seconds are the fairer figure where other work runs beside, and one thread needs fewer of them than two. Then,
of each mode: the share of the emitters within 1.96 sd along an axis, of rows with an emitter within 1 px and a
probability of 0.5 or more; and for each range of probability the share of rows that have such an emitter, beside the
mean probability. The sds are about the mean of the draws and the positions are the peaks of ŷ, so that somewhat fewer
than 0.95 of the emitters lie within 1.96 sd.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from smlmtut._random import step_generator
from smlmtut.evaluation import localization
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.scenes import FrameBatch, draw_batch
from smlmtut.localize import SamplingSettings, exact, localize_with_uncertainty, shipped_sampler
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.deepstorm import DeepSTORM, estimate_kde

SEED, SHAPE, PIXEL_NM, CORNER = 880_126, (64, 64), 108.0, (128, 256)
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.01)  # ends of the ranges of probability


def main() -> None:
    """Print a row for each mode, then what their answers are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=64, help="with chains (default: %(default)s)")
    parser.add_argument("--diffused", type=int, default=4, help="with the diffusion model alone, 0 for none")
    parser.add_argument("--density", type=float, default=0.5, help="emitters per µm² (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    network, scene = pretrained.load("deepstorm-2d"), recipes.reference_scene()
    scene = replace(scene, camera=scene.camera.crop(*CORNER, SHAPE), density=given.density)
    batch = draw_batch(scene, given.frames, SHAPE, step_generator(SEED, 0))
    camera = Camera(read_variance=batch.read_variance[0, 0])
    sampler, _ = shipped_sampler()

    def run(count: int, chains: exact.ExactSettings | None) -> pd.DataFrame:
        found = localize_with_uncertainty(
            batch.electrons[:count, 0], camera, network, sampler, exact=chains, precision="auto"
        )
        return pd.concat([table for _, table, _ in found], ignore_index=True)

    print("| mode | frames | seconds a frame | CPU seconds a frame |\n|---|---|---|---|")
    tables = {"exact": timed("exact", given.frames, lambda: run(given.frames, exact.ExactSettings()))}
    if given.diffused:
        tables["diffusion"] = timed("diffusion", given.diffused, lambda: run(given.diffused, None))
    print(f"\n{answered(tables['exact'], batch, camera, network)}")
    for name, table in tables.items():
        print(f"\n{name}: {worth(table, batch)}")


def answered(table: pd.DataFrame, batch: FrameBatch, camera: Camera, network: DeepSTORM) -> str:
    """How many groups, of those with a localization, the chains answer; and how many localizations."""
    y = estimate_kde(network, batch.electrons[:, 0], camera)[:, 0]
    groups, by_chains = 0, 0
    for i, rows in table.groupby("frame"):
        for v, u in exact.boxes(y[int(str(i))], network.factor, SamplingSettings().dark):
            inside = rows["u"].between(u.start - 0.5, u.stop - 0.5) & rows["v"].between(v.start - 0.5, v.stop - 0.5)
            groups, by_chains = groups + bool(inside.any()), by_chains + bool(rows["exact"][inside].any())
    return (
        f"{groups} groups, {by_chains / groups:.1%} by chains; "
        f"{len(table)} localizations, {table['exact'].mean():.1%} by chains"
    )


def worth(table: pd.DataFrame, batch: FrameBatch) -> str:
    """Coverage of the intervals, and calibration of the probabilities, of rows whose frames are in the table."""
    found = localization.Points(table["frame"], table["u"], table["v"])
    truth = localization.Points.of(batch.emitters)
    kept = truth.frame <= table["frame"].max()
    pairs = localization.match(
        found, localization.Points(*(x[kept] for x in (truth.frame, truth.u, truth.v))), 1.0, 1.0
    )
    real = np.zeros(len(table), dtype=bool)
    real[pairs.found] = True
    sure = table.iloc[pairs.found]["probability"].to_numpy() >= 0.5
    z = np.concatenate([
        (d.numpy() / table.iloc[pairs.found][name].to_numpy())[sure]
        for d, name in ((pairs.du, "u_sd"), (pairs.dv, "v_sd"))
    ])  # fmt: skip
    lines = [f"{np.mean(np.abs(z) < 1.96):.3f} of {len(z)} coordinates within 1.96 sd"]
    p = table["probability"].to_numpy()
    for low, high in pairwise(LEVELS):
        some = (p >= low) & (p < high)
        if some.any():
            lines.append(f"probability {p[some].mean():.3f}: {real[some].mean():.3f} of {some.sum()} are real")
    return "\n  ".join(lines)


def timed(name: str, frames: int, run: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """What `run` returns; prints a row of the first table."""
    wall, cpu = time.perf_counter(), time.process_time()
    table = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {name} | {frames} | {wall / frames:.2f} | {cpu / frames:.2f} |", flush=True)
    return table


if __name__ == "__main__":
    main()
