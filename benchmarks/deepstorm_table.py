"""The table of the model card: how far the shipped DeepSTORM is from the exact answer, one emitter at a time.

    python benchmarks/deepstorm_table.py [--weights NAME|PATH] [--frames 100] [--spots 4000] [--threads 2]

First the network's ŷ against the exact E[y | x] of smlmtut.posterior under the prior of the training scenes, in
units of the exact sd[y | x], over the pixels where E > .05. Then the error of the positions read from ŷ against
the Cramér–Rao bound of (u, v, N, b). Scenes come from seeds that the training never uses. The read noise is that
of the real calibration maps, a random part of the sensor for each frame. Standard errors are from the bootstrap.
"""

import argparse

import torch

from smlmtut._random import step_generator
from smlmtut.estimation import fisher
from smlmtut.imaging import kde
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.psf import PSF, Emitters
from smlmtut.imaging.scenes import FrameBatch, Scene, expose_batch
from smlmtut.networks import pretrained, recipes
from smlmtut.posterior.one import Prior, grid_posterior

SEED = 770_077  # of these scenes; the training has 2026
SIZE, BACKGROUND, SIGMA, HALF = 16, 5.0, 1.0, 4.0  # px, e⁻ per px, px; positions lie within ±HALF of the centre
RESAMPLED = 500


def one_emitter(photons: float, many: int, seed: int) -> FrameBatch:
    """Frames with exactly one emitter, evenly over a square about the centre, on parts of the real sensor."""
    sensor = recipes.reference_scene().camera
    scene = Scene(background=BACKGROUND, sigma=SIGMA, camera=sensor)
    generator = step_generator(SEED, seed)
    u, v = (SIZE - 1) / 2 + HALF * (2 * torch.rand(2, many, 1, generator=generator) - 1)
    emitters = Emitters(u, v, torch.full_like(u, photons))
    return expose_batch(scene, emitters, (SIZE, SIZE), generator)


@torch.no_grad()
def against_posterior(network: torch.nn.Module, photons: float, many: int) -> tuple[float, float]:
    """rms(ŷ − E) / rms(sd) over frames and pixels with E > .05, and its standard error."""
    batch = one_emitter(photons, many, int(photons))
    estimate = network(batch.electrons, batch.read_variance)[:, 0].double()
    squares = []
    for x, variance, y in zip(
        batch.electrons[:, 0].double(), batch.read_variance[:, 0].double(), estimate, strict=True
    ):
        mean, spread = grid_posterior(x, variance, Prior()).kde_moments()
        core = mean > 0.05
        squares.append((float((y - mean)[core].square().sum()), float(spread[core].sum())))
    return ratio_of_rms(torch.tensor(squares, dtype=torch.float64))


@torch.no_grad()
def against_bound(network: torch.nn.Module, photons: float, many: int) -> dict[str, float]:
    """Errors of the positions: per-axis RMSE over the bound with its standard error, bias, share found."""
    batch = one_emitter(photons, many, 10_000 + int(photons))
    peaks = kde.to_coordinates(network(batch.electrons, batch.read_variance))
    truth = torch.cat([batch.emitters.u, batch.emitters.v], 1)[peaks.frame]  # (K, 2)
    error = torch.stack([peaks.u, peaks.v], 1) - truth
    near = error.norm(dim=1) < 250 / 108  # px: the tolerance of the EPFL challenge
    error, frame = error[near], peaks.frame[near]
    bounds = torch.stack([one_bound(batch, row) for row in range(many)])[frame]  # (K, 2)
    ratio, se = ratio_of_rms(torch.stack([error.square().sum(1), bounds.square().sum(1)], 1).double())
    bias = error.mean(0)
    return {
        "ratio": ratio, "se": se, "bias_u": float(bias[0]), "bias_v": float(bias[1]),
        "bias_se": float(error.std(0).max()) / len(error) ** 0.5, "found": len(frame.unique()) / many,
        "more": len(peaks) / many - 1,
    }  # fmt: skip


def one_bound(batch: FrameBatch, row: int) -> torch.Tensor:
    """Bound of (u, v) in px for a frame's own emitter and its own part of the sensor: (2,)."""
    emitter = Emitters(
        *(x[row : row + 1].double() for x in (batch.emitters.u, batch.emitters.v, batch.emitters.photons))
    )
    camera = Camera(read_variance=batch.read_variance[row, 0].double())
    return fisher.localization_bound(emitter, PSF(SIGMA), camera, (SIZE, SIZE), BACKGROUND)[0, :2]


def ratio_of_rms(squares: torch.Tensor) -> tuple[float, float]:
    """√(Σ first / Σ second) of (frames, 2) and its standard error by the bootstrap over frames."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(len(squares), (RESAMPLED, len(squares)), generator=generator)
    sums = squares[drawn].sum(1)
    first, second = squares.sum(0)
    return float((first / second).sqrt()), float((sums[:, 0] / sums[:, 1]).sqrt().std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="deepstorm-2d", help="name or path (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=100, help="frames for the exact posterior (default: %(default)s)")
    parser.add_argument("--spots", type=int, default=4000, help="frames for the bound (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    network = pretrained.load(given.weights)
    print("| N | rms(ŷ − E[y given x]) / rms(sd[y given x]) | per-axis RMSE / bound | bias u, v (px) | found |")
    print("|---|---|---|---|---|")
    for photons in (200.0, 500.0, 1000.0):
        exact, exact_se = against_posterior(network, photons, given.frames)
        row = against_bound(network, photons, given.spots)
        print(
            f"| {photons:.0f} | {exact:.3f} ± {exact_se:.3f} | {row['ratio']:.3f} ± {row['se']:.3f} "
            f"| {row['bias_u']:+.4f}, {row['bias_v']:+.4f} (± {row['bias_se']:.4f}) "
            f"| {100 * row['found']:.2f} %, {100 * row['more']:+.2f} % more |",
            flush=True,
        )


if __name__ == "__main__":
    main()
