"""What does the whitening buy? The same U-Net on the same frames, as one diffusion model after the other.

    python benchmarks/ablation.py train --folder runs/ablation --frames 96000          # all variants, resumable
    python benchmarks/ablation.py train --folder runs/ablation --only v-reader --seed 2 --frames 288000
    python benchmarks/ablation.py score --folder runs/ablation --reference runs/reference --most 16 --json screen.json
    python benchmarks/ablation.py table --json screen.json --write smlmtut/results/ablation.json

A variant is a pair: what is predicted, and at which noise levels; and what y is shifted and scaled by. Of the first
there are only two kinds. With α = √γ, s = √(1 − γ) and z_t = α z + s ε, for data of unit variance:

- EDM's preconditioned network F (Karras 2022) has to predict −v, with weight 1: it differs from v by its levels alone;
- flow matching (Lipman 2023) on (1 − t) z + t ε predicts ε − z = (s − α) z_t + (α + s) v: it is v at the levels of
  a uniform t, with the weight (α + s)².

Both are proved in the tests, from the formulas of their papers. So all run through the same code.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import bakeoff
from smlmtut.diffusion.schedule import NoiseSchedule
from smlmtut.estimation.joint import JointFit, fit_emitters
from smlmtut.imaging.first_guess import peak_emitters
from smlmtut.imaging.kde import kde_image, to_super_resolved
from smlmtut.networks import pretrained, recipes, training
from smlmtut.networks.cddpm import MOLECULES, STEPS, ConditionalDiffusion, DiffusionBatch, LossTerms
from smlmtut.networks.checkpoint import read_average
from smlmtut.networks.deepstorm import Convolution
from smlmtut.networks.inputs import input_electrons
from smlmtut.networks.settings import Draw, TrainingSettings
from smlmtut.networks.unet import UNet
from smlmtut.networks.whitening import SCALE_AT_START

DATA_SD = 0.034  # rms of y − ŷ over the training frames: the constant scale
# EDM's ln σ is N(−1.2, 1.2²) for data of sd 0.5, so for data of sd 1 it is
EDM_MEAN, EDM_SD = -1.2 - math.log(0.5), 1.2
PREDICTED = ("noise", "v", "edm", "flow")
SCALES = ("constant", "convolution", "reader")
LOCAL = "v-constant-local"  # without attention: no pixel sees farther than the convolutions reach, about 7 px
FITTED = "v-constant-fit"  # sees the fit of the peaks of ŷ to the frame beside ŷ: as a KDE, and its sd by the curvature
ABOUT_FIT = "v-fit"  # sees the fit too, and is centred on it and scaled by its sd
BOTH = "v-both"  # the same, with a scale that is no less than the distance of fit and ŷ, and without attention
VARIANTS = [*(f"{p}-{s}" for p in PREDICTED for s in SCALES), LOCAL, FITTED, ABOUT_FIT, BOTH]
FIT_FLOOR = 0.02  # scale where the fit knows of nothing: about the sd of the halo of a lone molecule
LOWEST_PEAK, FIT_STEPS = 0.25, 12  # of ŷ that is fitted; of the fit
MEAN_PHOTONS = 1050.0


def draw_levels(predicted: str, batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels γ to train at, (B,)."""
    device = generator.device
    if predicted == "edm":
        log_sigma = EDM_MEAN + EDM_SD * torch.randn(batch, generator=generator, device=device)
        return torch.sigmoid(-2 * log_sigma)  # 1/(1 + σ²)
    if predicted == "flow":
        t = torch.rand(batch, generator=generator, device=device).clamp(1e-3, 1 - 1e-3)
        return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    return NoiseSchedule.cosine(STEPS).draw_gamma(batch, generator).float()


def level_weight(predicted: str, gamma: Tensor) -> Tensor:
    """Weight of the squared error of the network's output at these levels, (B, 1, 1, 1)."""
    weight = (gamma.sqrt() + (1 - gamma).sqrt()).square() if predicted == "flow" else torch.ones_like(gamma)
    return weight[:, None, None, None]


class Constant(nn.Module):
    """Centre and scale that depend on nothing: y in [−1, 1] as published, or y − ŷ over its rms."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.image = image

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        estimate = condition[:, :1]
        if self.image:
            half = torch.full_like(estimate, 0.5)
            return half, half
        return estimate, torch.full_like(estimate, DATA_SD)


class PlainScale(nn.Module):
    """Centre and scale by dilated convolutions and nothing else: a mean–variance network."""

    def __init__(self, inputs: int, features: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.stem = nn.Conv2d(4 * (inputs + 1), features, 3, padding=1)
        self.layers = nn.ModuleList(Convolution(features, features, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.head = nn.Conv2d(features, 8, 1)
        nn.init.zeros_(self.head.weight)
        self.head.bias = nn.Parameter(torch.tensor([0.0, -1.0]).repeat_interleave(4))

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        estimate = condition[:, :1]
        seen = torch.cat([condition, estimate.clamp(min=0).sqrt()], 1)
        h = F.silu(self.stem(F.pixel_unshuffle(seen, 2)))
        for layer in self.layers:
            h = h + F.silu(layer(h))
        shift, scale = F.pixel_shuffle(self.head(h), 2).float().chunk(2, 1)
        return estimate + SCALE_AT_START * shift, (self.floor**2 + (SCALE_AT_START * F.softplus(scale)).square()).sqrt()


class FitScale(nn.Module):
    """Centre and scale that the fit gives: its KDE, and the KDE's sd by the curvature; nothing is trained.

    both: the scale has the distance from ŷ too. Where the fit is wrong, ŷ tells: it was trained to be right on average.
    """

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        centre, sd = condition[:, -2:].float().chunk(2, 1)
        variance = sd.square() + FIT_FLOOR**2
        if self.both:
            variance = variance + (centre - condition[:, :1]).square()
        return centre, variance.sqrt()


class Variant(ConditionalDiffusion):
    """One of VARIANTS; everything but what its name says is that of the shipped model."""

    def __init__(self, name: str, **architecture: Any) -> None:
        self.predicted, self.scaled = name.split("-")[:2]
        super().__init__("whitened", "noise" if self.predicted == "noise" else "v", **architecture)
        assert self.reader is not None
        shipped = self.architecture
        if self.scaled == "constant":
            self.reader = Constant(image=self.predicted == "noise")  # type: ignore[assignment]
        elif self.scaled == "convolution":
            self.reader = PlainScale(4 if self.frame else 1, shipped["reading"], self.floor)  # type: ignore[assignment]
        elif self.scaled in ("fit", "both"):
            self.reader = FitScale(self.scaled == "both")  # type: ignore[assignment]
        self.fitted = name in (FITTED, ABOUT_FIT, BOTH)
        if self.fitted:
            self.unet = UNet(self.unet.architecture["inputs"] + 2, 1, tuple(shipped["channels"]), shipped["blocks"])
        if name in (LOCAL, BOTH):
            self.unet.attention = nn.Identity()  # type: ignore[assignment]

    def condition(self, estimate: Tensor, frame: Tensor | None = None, frame_given: Tensor | None = None) -> Tensor:
        condition = super().condition(estimate, frame, frame_given)
        if not self.fitted:
            return condition
        assert frame is not None
        return torch.cat([condition, *fit_images(estimate, frame)], 1)

    def loss_terms(self, batch: DiffusionBatch) -> LossTerms:
        terms = super().loss_terms(batch)
        weight = terms.weight
        if self.scaled == "constant":  # whose size would only change the learning rate
            molecules = batch.estimate.clamp(min=0).sum((1, 2, 3), keepdim=True) / (2 * torch.pi)
            weight = (MOLECULES / (1 + molecules)).expand_as(weight)
        return LossTerms(terms.squared_error * level_weight(self.predicted, batch.gamma), terms.nll, weight)


@torch.no_grad()
def fit_images(estimate: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The KDE of the emitters that fit the frame best, searched from the peaks of ŷ, and its sd; (B, 1, fH, fW)."""
    with torch.autocast(estimate.device.type, enabled=False):
        electrons, variance = input_electrons(frame)
        start = peak_emitters(estimate, threshold=LOWEST_PEAK, photons=MEAN_PHOTONS)
        fit = fit_emitters(electrons, start, variance, max_iterations=FIT_STEPS)
        return kde_image(fit.emitters, (frame.shape[2], frame.shape[3])), kde_sd(fit, frame.shape[2:])


def kde_sd(fit: JointFit, shape: Sequence[int]) -> Tensor:
    """Standard deviation of the fit's KDE, to first order in the errors of the positions: (B, 1, fH, fW)."""
    f, covariance = ConditionalDiffusion.factor, fit.covariance().float()
    u, v = (to_super_resolved(place, f)[..., None] for place in (fit.emitters.u, fit.emitters.v))  # (B, E, 1)
    off_v, off_u = (torch.arange(f * n, dtype=torch.float32) - place for n, place in zip(shape, (v, u), strict=True))
    k_v, k_u = (-off_v.square()).exp(), (-off_u.square()).exp()  # squares of the kernel's factors, of sd 1
    uu, vv, uv = (
        f**2 * covariance[:, i:-2:3, j:-2:3].diagonal(dim1=1, dim2=2) * fit.emitters.mask
        for i, j in ((0, 0), (1, 1), (0, 1))
    )  # (B, E) in super-resolved pixels²
    terms = [(uu, k_v, off_u**2 * k_u), (vv, off_v**2 * k_v, k_u), (2 * uv, off_v * k_v, off_u * k_u)]
    variance = sum(torch.einsum("be,beh,bew->bhw", weight, rows, columns) for weight, rows, columns in terms)
    return variance.clamp(min=0).sqrt()[:, None]  # type: ignore[union-attr]


def batches(name: str, base: Draw) -> Draw:
    """The frames of the shipped recipe, always given, at the noise levels of the variant."""

    def draw(batch: int, generator: torch.Generator) -> DiffusionBatch:
        drawn = base(batch, generator)
        assert isinstance(drawn, DiffusionBatch)
        gamma = draw_levels(name.split("-")[0], batch, generator)
        return drawn._replace(gamma=gamma, frame_given=torch.ones_like(drawn.frame_given))

    return draw


def made(name: str, seed: int) -> Variant:
    """The variant as it is before training: the U-Net starts with the same weights in all of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = ConditionalDiffusion().unet.state_dict()
        network = Variant(name)
    own = network.unet.state_dict()
    network.unet.load_state_dict({key: start[key] if start[key].shape == x.shape else x for key, x in own.items()})
    return network


def run_name(name: str, seed: int, frames: int) -> str:
    return f"{name}-seed{seed}-{frames // 1000}k"


def train(folder: Path, names: list[str], seed: int, frames: int, threads: int) -> None:
    """Train each of the variants on the same frames in the same order; a run that ended is not begun again."""
    torch.set_num_threads(threads)
    phi = pretrained.load()
    base = recipes.cddpm_2d(recipes.reference_scene(), phi).draw
    for name in names:
        settings: TrainingSettings = replace(recipes.SHIPPED_DIFFUSION, steps=frames // 32, seed=2100 + seed)
        place, network = folder / run_name(name, seed, frames), made(name, seed)
        states = training.train(network, batches(name, base), recipes.diffusion_loss, settings, place, "cpu")
        last = None
        for last in states:
            if last.step % 500 == 0:
                print(
                    f"{place.name}: {last.step} of {settings.steps}, {last.samples_per_second:.0f} frames/s", flush=True
                )


def trained(folder: Path) -> Variant | None:
    """The averaged weights of a run; None for one that has not ended."""
    name, seed, _ = folder.name.rsplit("-", 2)
    network = made(name, int(seed.removeprefix("seed")))
    found = read_average(network, folder)
    return network.eval().requires_grad_(False) if found["step"] == found["identity"]["steps"] else None


def networks(folder: Path) -> dict[str, Variant]:
    """The runs of a folder that ended, by their names."""
    found = {path.parent.name: trained(path.parent) for path in sorted(folder.glob("*/checkpoint.pt"))}
    return {name: network for name, network in found.items() if network is not None}


def write_table(scores: Path, output: Path) -> None:
    """Of the scores of runs, what chapter 9 compares frame by frame: of one run of each form, the energy regret."""
    wanted, found = {"frames": ("energy excess", "energy scale")}, {}
    for kind, methods in json.loads(scores.read_text(encoding="utf-8")).items():
        runs = {name.split("-seed")[0]: entry for name, entry in methods.items() if "-seed1-" in name}
        found[kind] = {
            form: {part: {name: entry[part][name] for name in names} for part, names in wanted.items()}
            for form, entry in runs.items()
        }
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["train", "score", "table"])
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--reference", type=Path, default=Path("runs/reference"))
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--frames", type=int, default=96_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, default=Path("smlmtut/results/ablation.json"))
    bakeoff.add_arguments(parser)
    given = parser.parse_args()
    if given.command == "table":
        write_table(given.json, given.write)
        return
    if given.command == "train":
        train(given.folder, given.only, given.seed, given.frames, given.threads)
        return
    torch.set_num_threads(given.threads)
    methods = {name: bakeoff.diffusion(network) for name, network in networks(given.folder).items()}
    bakeoff.tell(methods, given.reference, "dev", given)


if __name__ == "__main__":
    main()
