"""Which number tells that a frame is not of the kind that the networks know? AUROC of each score for each oddity.

    python benchmarks/out_of_distribution.py --rivals runs/rivals --json smlmtut/results/out_of_distribution.json

A score sees what a user has: the frame, its read variance and what the networks make of them. AUROC is the probability
that an odd frame scores higher than an ordinary one; .5 is a coin. Ordinary frames are drawn from the training scene
at 0.5–4 molecules per µm²; odd ones from the same scene with one thing changed. What a score says "given x and ŷ" is of
the network that `localize` draws by; "given ŷ", of the published form, sampled in 100 calls as in its paper: that
takes most of the time. With the runs of `rivals.py`, two scores more: how far the members of the ensemble disagree, and
how far from its training data SNGP takes the features of a frame to be.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.reference_posteriors import SHAPE, camera_of
from smlmtut._random import step_generator
from smlmtut.diffusion.samplers import ancestral
from smlmtut.diffusion.schedule import NoiseSchedule
from smlmtut.estimation.likelihood import deviance
from smlmtut.evaluation.against_exact import bootstrap_error
from smlmtut.imaging.camera import Camera, expose, to_photoelectrons
from smlmtut.imaging.distributions import LogUniform, Uniform, draw
from smlmtut.imaging.kde import to_coordinates
from smlmtut.imaging.psf import PSF, Emitters, background_image, expected_photons
from smlmtut.imaging.scenes import BACKGROUND, SIGMA, Scene, draw_batch
from smlmtut.localize.check import fitted_rate
from smlmtut.localize.samples import KDESampler, shipped_sampler
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.cddpm import STEPS, ConditionalDiffusion, frame_input, sample_kde
from smlmtut.networks.condition import fitted_kde
from smlmtut.networks.deepstorm import DeepSTORM
from smlmtut.networks.rivals import SNGP, Ensemble

SEED = 20261130
FINE = 5  # places along each side of a pixel at which the Airy pattern is summed
THRESHOLD, HEIGHT = 0.25, 0.5  # lowest peak of ŷ, and of a sample, that counts as an emitter
BORDER = 3  # px, in which there is light of molecules that lie outside and have no peak
Pair = tuple[Tensor, Tensor]  # photo-electrons and read variance, (B, H, W) each


def ordinary() -> Scene:
    """The training scene at densities where each frame has something to see."""
    return replace(recipes.reference_scene(), density=LogUniform(0.5, 4.0))


def from_scene(scene: Scene) -> Callable[[int, torch.Generator], Pair]:
    def drawn(count: int, generator: torch.Generator) -> Pair:
        batch = draw_batch(scene, count, SHAPE, generator)
        return batch.electrons[:, 0], batch.read_variance[:, 0]

    return drawn


def with_image(image: Callable[[Emitters, torch.Generator], Tensor]) -> Callable[[int, torch.Generator], Pair]:
    """Frames of the ordinary scene whose light is spread over the pixels by `image` (B, H, W)."""

    def drawn(count: int, generator: torch.Generator) -> Pair:
        emitters = draw_batch(ordinary(), count, SHAPE, generator).emitters
        background = background_image(draw(BACKGROUND, (count,), generator), (count, *SHAPE), emitters.u)
        camera, _ = camera_of(count, generator)
        x = to_photoelectrons(expose(image(emitters, generator) + background, camera, generator), camera)
        return x, torch.as_tensor(camera.read_variance_electrons).expand_as(x)

    return drawn


def gaussian(emitters: Emitters, generator: torch.Generator) -> Tensor:
    """The ordinary PSF, by the path of the odd ones: a score that tells these from the ordinary frames is wrong."""
    sigma = draw(SIGMA, (len(emitters), 1), generator)
    return expected_photons(emitters, PSF(sigma), SHAPE)


def astigmatic(emitters: Emitters, generator: torch.Generator) -> Tensor:
    return expected_photons(emitters, PSF(1.25, 0.85), SHAPE)


def airy(emitters: Emitters, generator: torch.Generator) -> Tensor:
    """(2 J1(ar)/ar)² a²/4π, whose core has the second moment of a Gaussian of sd 1 px at a = 1.32 /px."""
    a, inner = 1.32, (torch.arange(FINE) + 0.5) / FINE - 0.5
    fine = [(torch.arange(n)[:, None] + inner).flatten() for n in SHAPE]
    photons, out = emitters.photons * emitters.mask, []
    for u, v, n in zip(emitters.u, emitters.v, photons, strict=True):
        r = torch.hypot(fine[1] - u[:, None, None], fine[0][:, None] - v[:, None, None])  # (E, 5H, 5W)
        disc = (2 * torch.special.bessel_j1(a * r) / (a * r).clamp(min=1e-6)).square() * a**2 / (4 * math.pi)
        light = torch.einsum("e,ehw->hw", n, disc) / FINE**2
        out.append(light.reshape(SHAPE[0], FINE, SHAPE[1], FINE).sum((1, 3)))
    return torch.stack(out)


def moving(emitters: Emitters, generator: torch.Generator) -> Tensor:
    """Each emitter goes 3 px in a random direction while the camera looks."""
    steps = torch.linspace(-1.5, 1.5, 13)
    angle = 2 * math.pi * torch.rand(emitters.u.shape, generator=generator)[..., None]
    u, v = emitters.u[..., None] + steps * angle.cos(), emitters.v[..., None] + steps * angle.sin()
    photons = (emitters.photons[..., None] / len(steps)).expand_as(u)
    there = emitters.mask[..., None].expand_as(u)
    return gaussian(Emitters(u.flatten(1), v.flatten(1), photons.flatten(1), there.flatten(1)), generator)


def wrong_gain(count: int, generator: torch.Generator) -> Pair:
    """The camera's gain is 1.3 times what the user believes."""
    x, variance = from_scene(ordinary())(count, generator)
    return 1.3 * x, variance


ODD: dict[str, Callable[[int, torch.Generator], Pair]] = {
    "nothing": with_image(gaussian),
    "PSF 1.3 px": from_scene(replace(ordinary(), sigma=1.3)),
    "astigmatism": with_image(astigmatic),
    "Airy PSF": with_image(airy),
    "motion blur": with_image(moving),
    "gradient": from_scene(replace(ordinary(), background=20.0, gradient=Uniform(1.0, 2.0))),
    "gain × 1.3": wrong_gain,
    "lines": from_scene(replace(ordinary(), layout="filaments", density=60.0, photons=40.0)),
    "N = 20–80": from_scene(replace(ordinary(), photons=Uniform(20.0, 80.0))),
    "N = 4000–8000": from_scene(replace(ordinary(), photons=Uniform(4000.0, 8000.0))),
    "8–16 per µm²": from_scene(replace(ordinary(), density=LogUniform(8.0, 16.0))),
}


def misfit(x: Tensor, variance: Tensor, images: Tensor, height: float) -> Tensor:
    """Mean deviance of a frame's inner pixels under the peaks of each image (S, 1, 4H, 4W), brightness fitted: (S,)."""
    inner = (slice(BORDER, -BORDER),) * 2
    peaks, camera, out = to_coordinates(images, 4, 1.0, height), Camera(read_variance=variance), []
    for s in range(len(images)):
        mine = peaks.frame == s
        rate, _ = fitted_rate(x, variance, peaks.u[mine], peaks.v[mine], (SIGMA.low + SIGMA.high) / 2)
        out.append(deviance(x, rate, camera)[inner].mean())
    return torch.stack(out)


def scores(
    pair: Pair,
    phi: DeepSTORM,
    sampler: KDESampler,
    published: ConditionalDiffusion,
    samples: int,
    seed: int,
    others: list[Ensemble | SNGP],
) -> dict[str, Tensor]:
    """Each score of each frame, (B,). Variances and squared distances are summed over the image, for each molecule that
    ŷ holds.
    """
    x, variance = pair
    with torch.no_grad():
        y = phi(x[:, None], variance[:, None])
    molecules = 1 + y.clamp(min=0).sum((1, 2, 3)) / (2 * math.pi)
    frame, generator = frame_input(x[:, None], variance[:, None]), step_generator(seed, 1)
    given = sampler(x[:, None], variance[:, None], y, samples, generator).double()
    schedule = NoiseSchedule.cosine(STEPS).trained()
    alone = sample_kde(published, y, samples, generator, schedule=schedule, sampler=ancestral).double()
    centre, _ = fitted_kde(y, frame)
    x, variance = x.double(), variance.double()
    mean, spread = alone.mean(1), alone.var(1).sum((1, 2))
    # what S samples miss of their mean adds spread / S
    distance = (y[:, 0].double() - mean).square().sum((1, 2)) - spread / samples
    return {
        "misfit of the peaks of ŷ": torch.stack(
            [misfit(x[i], variance[i], y[i, None].double(), THRESHOLD)[0] for i in range(len(x))]
        ),
        "misfit of the samples": torch.stack(
            [misfit(x[i], variance[i], given[i, :, None], HEIGHT).mean() for i in range(len(x))]
        ),
        "spread given x and ŷ": given.var(1).sum((1, 2)) / molecules,
        "spread given ŷ": spread / molecules,
        "‖ŷ − mean given ŷ‖": distance / molecules,
        "‖fit − ŷ‖": (centre - y).double().square().sum((1, 2, 3)) / molecules,
    } | {
        "disagreement of an ensemble" if isinstance(network, Ensemble) else "distance by SNGP":
            unsure(network, y, frame).double().sum((1, 2)) / molecules
        for network in others
    }  # fmt: skip


@torch.no_grad()
def unsure(network: Ensemble | SNGP, y: Tensor, frame: Tensor) -> Tensor:
    """What the network does not know for want of training, without the noise that it claims: variances (B, 4H, 4W)."""
    if isinstance(network, Ensemble):
        return network.each(y, frame)[0].var(1)
    (_, scale, _), phi, _ = network.features(y, frame)
    root = torch.linalg.cholesky(network.precision)
    white = torch.linalg.solve_triangular(root, phi.double().movedim(1, 0).flatten(1), upper=False)
    return scale[:, 0].square() * white.square().sum(0).reshape(len(phi), *y.shape[2:])


def auroc(ordinary_: Tensor, odd: Tensor) -> tuple[float, float]:
    """P(odd > ordinary), ties as one half, and its standard error by bootstrap over the frames."""

    def area(i: Tensor) -> float:
        a, b = ordinary_[i[i < len(ordinary_)]], odd[i[i >= len(ordinary_)] - len(ordinary_)]
        if not len(a) or not len(b):
            return 0.5
        return float(((b[:, None] > a).double() + 0.5 * (b[:, None] == a).double()).mean())

    many = len(ordinary_) + len(odd)
    return area(torch.arange(many)), bootstrap_error(area, many)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=30, help="of each kind")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rivals", type=Path, help="folder with the runs of rivals.py; none: without their scores")
    parser.add_argument("--json", type=Path, help="file that keeps the scores of all frames")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    phi, (sampler, _) = pretrained.load(), shipped_sampler()
    published = pretrained.load("cddpm-2d-published", kind=ConditionalDiffusion)
    runs = {} if given.rivals is None else rivals.networks(given.rivals)
    others = [network for network in runs.values() if isinstance(network, (Ensemble, SNGP))]
    found: dict[str, dict[str, Tensor]] = {}
    for k, (name, drawn) in enumerate([("ordinary", from_scene(ordinary())), *ODD.items()]):
        pair = drawn(given.frames, step_generator(SEED, k))
        found[name] = scores(pair, phi, sampler, published, given.samples, SEED + k, others)
        print(name, {key: f"{float(value.median()):.3g}" for key, value in found[name].items()}, flush=True)
    areas = {
        odd: {
            score: "{:.2f} ± {:.2f}".format(*auroc(found["ordinary"][score], values)) for score, values in row.items()
        }
        for odd, row in found.items()
        if odd != "ordinary"
    }
    print(pd.DataFrame(areas).T.to_string())
    if given.json:
        kept = {odd: {score: [float(f"{x:.4g}") for x in v] for score, v in row.items()} for odd, row in found.items()}
        given.json.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
