"""The table of the model card: what the samples of a diffusion model claim, against the exact posterior and the truth.

    python benchmarks/cddpm_table.py [--weights NAME|PATH] [--frames 48] [--pairs 8] [--scenes 200] [--samples 32]

1. One emitter in 16 × 16 pixels, N = 200, 500, 1000, background 5, σ = 1 px, read noise of the real maps; pixels where
   the exact E[y | x] is above .05: rms sd of the samples over the exact one. The exact posterior is that of the grid
   (the number of emitters is known to be one) and that of the Markov chains (it is not). Correlations of the pixels' sd
   with the exact one, as found and without the noise of finitely many samples.
2. Two emitters 1 to 3 σ apart, their number unknown: correlation of the pixels' sd, p(K = 2).
3. Scenes of the training prior: coverage, spread over skill and CRPS by class of pixel, total mass.
4. Calls of the network: 20 against 100, and samples a second.

For the published form, which sees ŷ alone, the exact sd is replaced by the one that the decomposition
Var(y | ŷ) = E[Var(y | x) | ŷ] + Var(E[y | x] | ŷ) predicts. Scenes come from seeds that the training never uses. ± are
standard errors over frames, from the bootstrap.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial

import torch
from deepstorm_table import HALF, SIZE, one_emitter
from torch import Tensor

from smlmtut._random import step_generator
from smlmtut.diffusion.samplers import ancestral
from smlmtut.diffusion.schedule import NoiseSchedule
from smlmtut.evaluation import calibration
from smlmtut.imaging.psf import Emitters
from smlmtut.imaging.scenes import FrameBatch, Scene, draw_batch, expose_batch
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.cddpm import STEPS, ConditionalDiffusion, frame_input, sample_kde
from smlmtut.networks.precision import best_precision
from smlmtut.posterior.many import chain_posterior, count_prior
from smlmtut.posterior.one import Prior, grid_posterior

SEED = 880_088  # of scenes and samples; the training has 2027
APART = (1.0, 1.5, 2.0, 2.5, 3.0)  # σ, distance of the pairs
KERNEL = 2 * math.pi  # mass of one emitter's kernel of peak 1 and sd 1
RESAMPLED = 500
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]  # electrons, read variance, ŷ -> samples


class Model:
    """φ and the diffusion model, in the precision that pays on this machine."""

    def __init__(self, weights: str, samples: int) -> None:
        self.phi, self.samples = pretrained.load(), samples
        self.network = pretrained.load(weights, kind=ConditionalDiffusion)
        self.lower = best_precision(torch.device("cpu")) == "bf16"

    @torch.no_grad()
    def estimate(self, batch: FrameBatch) -> Tensor:
        return self.phi(batch.electrons, batch.read_variance)

    def draw(self, batch: FrameBatch, estimate: Tensor, samples: int | None = None, **how) -> Tensor:
        """(B, S, fH, fW)."""
        frame = frame_input(batch.electrons, batch.read_variance) if self.network.frame else None
        with torch.autocast("cpu", torch.bfloat16, enabled=self.lower):
            return sample_kde(self.network, estimate, samples or self.samples, step_generator(SEED, 1), frame, **how)

    def variance(self, estimate: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """What an ideal model's samples vary by, (B, fH, fW), where E and Var of y given x are known."""
        return variance if self.network.frame else variance + (estimate[: len(mean), 0].double() - mean).square()


def exact_one(batch: FrameBatch) -> tuple[Tensor, Tensor]:
    """E and Var of y where one emitter is known to be there: (B, fH, fW) each."""
    moments = [
        grid_posterior(x, v, Prior()).kde_moments()
        for x, v in zip(batch.electrons[:, 0].double(), batch.read_variance[:, 0].double(), strict=True)
    ]
    mean, variance = (torch.stack(m) for m in zip(*moments, strict=True))
    return mean, variance


def exact_many(batch: FrameBatch, seed: int, many: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """E and Var of y, and p(K | x), where the number of emitters is unknown; of all frames or the first ones."""
    draws = chain_posterior(
        batch.electrons[:many, 0].double(), count_prior(4, (SIZE, SIZE)), step_generator(SEED, seed, 7),
        batch.read_variance[:many, 0].double(),
    )  # fmt: skip
    mean, variance = draws.kde_moments()
    return mean, variance, draws.count_probability()


def standard_error(function: Callable[[Tensor], float], rows: int) -> float:
    """By the bootstrap: of a function of chosen rows."""
    generator = torch.Generator().manual_seed(SEED)
    values = [function(torch.randint(rows, (rows,), generator=generator)) for _ in range(RESAMPLED)]
    return float(torch.tensor(values).std())


def ratio(first: Tensor, second: Tensor) -> str:
    """√(Σ first / Σ second) of sums over frames (B,), with its standard error."""

    def value(rows: Tensor) -> float:
        return float((first[rows].sum() / second[rows].sum()).sqrt())

    return f"{value(torch.arange(len(first))):.3f} ± {standard_error(value, len(first)):.3f}"


def header(*names: str) -> None:
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")


def correlation(one: Tensor, two: Tensor, where: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one[where], two[where]]))[0, 1])


def corrected(y: Tensor, exact: Tensor, where: Tensor) -> float:
    """Correlation of the pixels' sd over samples y (B, S, fH, fW) with the exact one, less the noise of S samples.

    That of one half of the samples with the exact sd, over the root of that of the two halves (Spearman 1904).
    """
    halves = [y[:, first::2].std(1) for first in (0, 1)]
    both = (correlation(halves[0], exact, where) + correlation(halves[1], exact, where)) / 2
    return both / math.sqrt(max(1e-3, correlation(halves[0], halves[1], where)))


def summed(values: Tensor, where: Tensor) -> Tensor:
    """Sum over each frame's chosen pixels: (B,)."""
    return torch.where(where, values, 0.0).flatten(1).sum(1)


def single_emitters(model: Model, frames: int, chained: int) -> None:
    header(
        "N", "K = 1 known: sd / sd", "K unknown: sd / sd", "correlation of sds", "corrected",
        "sd of background", "CRPS / Gaussian", "CRPS / point", "mass",
    )  # fmt: skip
    for photons in (200.0, 500.0, 1000.0):
        batch = one_emitter(photons, frames, int(photons))
        truth = batch.target()[:, 0].double()
        mean, variance = exact_one(batch)
        mean_k, variance_k, _ = (
            exact_many(batch, int(photons), chained) if chained else (mean[:0], variance[:0], mean[:0])
        )
        estimate = model.estimate(batch)
        core, dark = mean > calibration.CORE, mean < calibration.BACKGROUND
        y = model.draw(batch, estimate).double()
        claimed = y.var(1)
        cells = [ratio(summed(claimed, core), summed(model.variance(estimate, mean, variance), core))]
        if chained:
            core_k, wanted_k = mean_k > calibration.CORE, model.variance(estimate, mean_k, variance_k)
            cells.append(ratio(summed(claimed[:chained], core_k), summed(wanted_k, core_k)))
        else:
            cells.append("–")
        cells.append(f"{correlation(claimed.sqrt(), variance.sqrt(), core):.3f}")
        cells.append(f"{corrected(y, variance.sqrt(), core):.3f}")
        cells.append(f"{float(claimed[dark].mean().sqrt()):.4f}")
        crps = calibration.crps(y, truth)[core].mean()
        gaussian = calibration.crps_normal(mean, variance.sqrt().clamp(min=1e-9), truth)[core].mean()
        point = calibration.crps_point(estimate[:, 0].double(), truth)[core].mean()
        cells += [f"{float(crps / gaussian):.3f}", f"{float(crps / point):.3f}"]
        mass = y.sum((2, 3)) / KERNEL
        cells.append(f"{float(mass.mean()):.3f} ± {float(mass.std(1).mean()):.3f}")
        print(f"| {photons:.0f} | " + " | ".join(cells) + " |", flush=True)


def pairs(model: Model, each: int) -> None:
    header(
        "apart (σ)",
        "correlation of sds",
        "corrected",
        "sd / sd",
        "p(K = 2): exact",
        "samples",
        "mean absolute difference",
    )
    differences: list[Tensor] = []
    for k, apart in enumerate(APART):
        batch = two_emitters(apart, each, k)
        mean, variance, p = exact_many(batch, 100 + k)
        estimate = model.estimate(batch)
        core = mean > calibration.CORE
        y = model.draw(batch, estimate).double()
        claimed, wanted = y.var(1), model.variance(estimate, mean, variance)
        count = (y.sum((2, 3)) / KERNEL).round()  # (B, S)
        two = (count == 2).double().mean(1)
        differences.append((two - p[:, 2]).abs())
        print(
            f"| {apart:.1f} | {correlation(claimed.sqrt(), variance.sqrt(), core):.3f} "
            f"| {corrected(y, variance.sqrt(), core):.3f} "
            f"| {ratio(summed(claimed, core), summed(wanted, core))} | {float(p[:, 2].mean()):.3f} "
            f"| {float(two.mean()):.3f} | {float(differences[-1].mean()):.3f} |",
            flush=True,
        )
    print(f"mean absolute difference of p(K = 2) over all pairs {float(torch.cat(differences).mean()):.3f}")


def two_emitters(apart: float, many: int, seed: int) -> FrameBatch:
    """Pairs of N = 1000 at a random angle about a random place, σ = 1 px, background 5."""
    scene = Scene(background=5.0, sigma=1.0, camera=recipes.reference_scene().camera)
    generator = step_generator(SEED, seed, 3)
    middle = (SIZE - 1) / 2 + HALF * (torch.rand(2, many, 1, generator=generator) - 0.5)
    angle = 2 * math.pi * torch.rand(many, 1, generator=generator)
    half = apart / 2 * torch.cat([torch.ones(many, 1), -torch.ones(many, 1)], 1)
    u, v = middle[0] + half * angle.cos(), middle[1] + half * angle.sin()
    return expose_batch(scene, Emitters(u, v, torch.full_like(u, 1000.0)), (SIZE, SIZE), generator)


def training_scenes(model: Model, many: int) -> None:
    batch = draw_batch(recipes.reference_scene(), many, (SIZE, SIZE), step_generator(SEED, 0, 5))
    truth, estimate = batch.target()[:, 0], model.estimate(batch)
    columns = ["rms_sd", "spread_skill", "coverage_50", "coverage_80", "coverage_95"]
    header("pixels", *(c.replace("_", " ") for c in columns), "CRPS / point")
    classes = calibration.pixel_class(estimate[:, 0])
    y = model.draw(batch, estimate)
    table = calibration.summary(y, truth, estimate[:, 0])
    point = calibration.crps_point(estimate[:, 0], truth)
    for i, pixels in enumerate(calibration.CLASSES):
        row = table.loc[pixels]
        against = float(row["crps"]) / float(point[classes == i].mean())
        print(f"| {pixels} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + f" | {against:.3f} |")
    mass, true = y.sum((2, 3)) / KERNEL, truth.sum((1, 2)) / KERNEL
    print(
        f"mass of a sample over the truth's {float(mass.mean() / true.mean()):.3f}, "
        f"spread–skill of the mass {calibration.spread_skill(mass, true):.3f}",
        flush=True,
    )


def calls(model: Model, many: int) -> None:
    """CRPS on pixels with something in them, and samples a second, for several ways of sampling."""
    batch = draw_batch(recipes.reference_scene(), many, (SIZE, SIZE), step_generator(SEED, 1, 5))
    truth, estimate = batch.target()[:, 0], model.estimate(batch)
    seen = calibration.pixel_class(estimate[:, 0]) > 0
    cosine = NoiseSchedule.cosine(STEPS).trained()
    ways = {
        "ancestral, β, 100 calls": {"schedule": cosine, "sampler": partial(ancestral, variance="beta")},
        "ancestral, β̃, 100 calls": {"schedule": cosine, "sampler": partial(ancestral, variance="posterior")},
        "DPM-Solver++(2M), 20 calls": {},
        "DPM-Solver++(2M), 10 calls": {"schedule": cosine.resample(10, "log-snr")},
    }
    header("sampler", "CRPS over that of the first", "spread–skill", "samples a second")
    first = None
    model.draw(batch, estimate, 16)  # the first calls of a shape are slow
    for name, how in ways.items():
        began = time.perf_counter()
        y = model.draw(batch, estimate, 16, **how)
        speed = 16 * many / (time.perf_counter() - began)
        crps = calibration.crps(y, truth)[seen].mean()
        first = crps if first is None else first
        skill = calibration.spread_skill(y.movedim(1, -1)[seen], truth[seen])
        print(f"| {name} | {float(crps / first):.3f} | {skill:.3f} | {speed:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="cddpm-2d", help="name or path (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=48, help="single emitters of each N (default: %(default)s)")
    parser.add_argument("--chained", type=int, default=16, help="of these with K unknown too (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="of each distance (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=200, help="of the training prior (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=32, help="of each frame (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = Model(given.weights, given.samples)
    print(f"{given.weights}, given {'x and ŷ' if model.network.frame else 'ŷ'}")
    single_emitters(model, given.frames, given.chained)
    if given.pairs:
        pairs(model, given.pairs)
    if given.scenes:
        training_scenes(model, given.scenes)
        calls(model, max(4, given.scenes // 8))


if __name__ == "__main__":
    main()
