"""What samples of whole frames cost, and whether they are as good: in one go, and in windows that are drawn apart.

    python benchmarks/whole_frames.py                                # a minute a row without bf16 units
    python benchmarks/whole_frames.py --samplers engression-2d --densities 1.5

The same frames and samplers both ways. Windows of 16 px, the size of the training's frames, see 3 px beyond their own
part, as `localize` drew until whole frames were drawn in one go. The energy score is against the truth, whole frame,
less is better; ± is a standard error of the difference to the first row of the density, frame by frame. Seconds are for
all samples of a frame, the fit and reading the draws as emitters included, ŷ not.
"""

import argparse
import time
from dataclasses import replace

import torch
from torch import Tensor

from smlmtut._random import step_generator
from smlmtut.evaluation import energy_score
from smlmtut.imaging.scenes import FrameBatch, draw_batch
from smlmtut.imaging.windows import windows
from smlmtut.localize import KDESampler, shipped_sampler
from smlmtut.networks import pretrained, recipes

SEED, SIDE, HALO, FACTOR = 20261202, 16, 3, 4


def in_one_go(sampler: KDESampler, given: tuple[Tensor, ...], samples: int, generator: torch.Generator) -> Tensor:
    """Samples (1, S, 4H, 4W) of one frame."""
    return sampler(*given, samples, generator)  # type: ignore[call-arg, arg-type]


def in_windows(sampler: KDESampler, given: tuple[Tensor, ...], samples: int, generator: torch.Generator) -> Tensor:
    """The same, put together from windows that are drawn apart."""
    height, width = given[0].shape[2:]
    places = windows((height, width), (SIDE, SIDE), HALO)
    cut = [torch.cat([x[:, :, *p.seen(f)] for p in places]) for x, f in zip(given, (1, 1, FACTOR), strict=True)]
    parts = sampler(*cut, samples, generator)  # type: ignore[call-arg, arg-type]
    out = torch.empty(1, samples, FACTOR * height, FACTOR * width)
    for place, part in zip(places, parts, strict=True):
        out[0, :, *place.own(FACTOR)] = part[:, *place.within(FACTOR)]
    return out


WAYS = {"in one go": in_one_go, "in windows": in_windows}


def frames_of(density: float, count: int, side: int) -> FrameBatch:
    """Frames of the training scene with one density, on one part of the sensor."""
    scene = recipes.reference_scene()
    scene = replace(scene, density=density, camera=scene.camera.crop(128, 256, (side, side)))
    return draw_batch(scene, count, (side, side), step_generator(SEED, round(100 * density)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--samplers", nargs="*", default=["engression-2d", "cddpm-2d"], help="names or files of weights"
    )
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--densities", type=float, nargs="*", default=[0.5, 1.5, 3.0], help="emitters per µm²")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="of a frame, px")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    phi, samplers = pretrained.load(), {name: shipped_sampler(name)[0] for name in given.samplers}
    print("| density | sampler | drawn | s a frame | over the first | energy score | minus the first |")
    print("|---|---|---|---|---|---|---|")
    for density in given.densities:
        batch = frames_of(density, given.frames, given.side)
        truth, first = batch.target()[:, 0], None
        inputs = [
            (
                batch.electrons[i : i + 1],
                batch.read_variance[i : i + 1],
                phi(batch.electrons[i : i + 1], batch.read_variance[i : i + 1]),
            )
            for i in range(given.frames)
        ]
        for name, sampler in samplers.items():
            for way in given.ways:
                WAYS[way](sampler, inputs[0], 2, step_generator(0, 0))  # the first call prepares
                began, drawn = time.perf_counter(), []
                for i, one in enumerate(inputs):
                    drawn.append(WAYS[way](sampler, one, given.samples, step_generator(0, i)))
                seconds = (time.perf_counter() - began) / given.frames
                score = energy_score(torch.cat(drawn), truth)
                first = first or (seconds, score)
                off = score - first[1]
                error = float(off.std()) / len(off) ** 0.5
                mean, more = float(score.mean()), float(off.mean())
                line = f"| {density:g} | {name} | {way} | {seconds:.2f} | {seconds / first[0]:.1f} | {mean:.3f}"
                print(f"{line} | {more:+.3f} ± {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
