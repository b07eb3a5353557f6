"""What do centre and scale buy? The same U-Net on the same frames, as one diffusion model after the other.

    python benchmarks/ablation.py train --folder runs/ablation --frames 96000          # all variants, resumable
    python benchmarks/ablation.py train --folder runs/ablation --only v-reader --seed 2 --frames 288000
    python benchmarks/ablation.py score --folder runs/ablation --most 16 --json screen.json
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
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import bakeoff
from benchmarks.reader import SCALE_AT_START, Reader
from smlmtut.diffusion.process import denoising_error, q_sample
from smlmtut.diffusion.schedule import NoiseSchedule
from smlmtut.networks import pretrained, recipes, training
from smlmtut.networks.cddpm import STEPS, ConditionalDiffusion, DiffusionBatch, LossTerms, pixel_weight
from smlmtut.networks.checkpoint import read_average
from smlmtut.networks.condition import FACTOR, FLOOR, Condition, fitted_kde
from smlmtut.networks.convolution import Convolution
from smlmtut.networks.settings import Draw, TrainingSettings
from smlmtut.networks.unet import UNet

DATA_SD = 0.034  # rms of y − ŷ over the training frames: the constant scale
# EDM's ln σ is N(−1.2, 1.2²) for data of sd 0.5, so for data of sd 1 it is
EDM_MEAN, EDM_SD = -1.2 - math.log(0.5), 1.2
PREDICTED = ("noise", "v", "edm", "flow")
SCALES = ("constant", "convolution", "reader")
LOCAL = "v-constant-local"  # without attention: no pixel sees farther than the convolutions reach, 8.5 px
FITTED = "v-constant-fit"  # sees the fit of the peaks of ŷ to the frame beside ŷ: as a KDE, and its sd by the curvature
ABOUT_FIT = "v-fit"  # sees the fit too, and is centred on it and scaled by its sd
# The same, with a scale that is no less than the distance of fit and ŷ, and without attention. It is the form that
# ships, which gets neither the fit's images twice nor the reader's start of the random weights.
BOTH = "v-both"
VARIANTS = [*(f"{p}-{s}" for p in PREDICTED for s in SCALES), LOCAL, FITTED, ABOUT_FIT, BOTH]
INPUTS, FEATURES, CHANNELS = 4, 64, (32, 64)  # images of the condition; features of the reader, and of the U-Net


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
        variance = sd.square() + FLOOR**2
        if self.both:
            variance = variance + (centre - condition[:, :1]).square()
        return centre, variance.sqrt()


class Variant(ConditionalDiffusion):
    """One of VARIANTS; everything but what its name says is the same in all."""

    def __init__(self, name: str) -> None:
        self.predicted, self.scaled = name.split("-")[:2]
        super().__init__(kind="noise" if self.predicted == "noise" else "v")
        self.reader = {
            "constant": lambda: Constant(image=self.predicted == "noise"),
            "convolution": lambda: PlainScale(INPUTS, FEATURES, FLOOR),
            "reader": lambda: Reader(INPUTS, FEATURES, FLOOR),
        }.get(self.scaled, lambda: FitScale(self.scaled == "both"))()
        self.fitted = name in (FITTED, ABOUT_FIT, BOTH)
        inputs = 1 + INPUTS + 3 + 2 * self.fitted  # z_t; √ŷ, centre and scale; the fit's KDE and its sd
        self.unet = UNet(inputs, 1, CHANNELS, attention=name not in (LOCAL, BOTH))

    def condition(self, estimate: Tensor, frame: Tensor | None = None) -> Condition:
        assert frame is not None
        fine = F.interpolate(frame, scale_factor=float(FACTOR), mode="bicubic")
        known = torch.cat([estimate, fine, torch.ones_like(estimate)], 1)
        if self.fitted:
            known = torch.cat([known, *fitted_kde(estimate, frame)], 1)
        centre, scale = self.reader(known)
        root = estimate.clamp(min=0).sqrt()
        images = [known, root, centre.detach(), scale.detach() / SCALE_AT_START]
        return Condition(centre, scale, torch.cat(images, 1))

    def loss_terms(self, batch: DiffusionBatch) -> LossTerms:
        """The squared error of ν, and what a trained centre and scale need beside it: −ln N(y; centre, scale²)."""
        condition = self.condition(batch.estimate, batch.frame)
        z = (batch.kde - condition.centre) / condition.scale
        surprise = condition.scale.log() + z.square() / 2
        known = condition._replace(centre=condition.centre.detach(), scale=condition.scale.detach())
        z_t = q_sample(z.detach(), batch.gamma, batch.noise)
        output = self._predict(z_t, batch.gamma, known.inputs)
        error = denoising_error(self.kind, output, z.detach(), batch.noise, batch.gamma)
        weight = pixel_weight(batch.estimate, known.scale)
        if self.scaled == "constant":  # whose size would only change the learning rate
            weight = pixel_weight(batch.estimate, torch.full_like(z, SCALE_AT_START))
        return LossTerms(error * level_weight(self.predicted, batch.gamma) + surprise, weight)


def batches(name: str, base: Draw) -> Draw:
    """The frames of the shipped recipe, at the noise levels of the variant."""

    def draw(batch: int, generator: torch.Generator) -> DiffusionBatch:
        drawn = base(batch, generator)
        assert isinstance(drawn, DiffusionBatch)
        gamma = draw_levels(name.split("-")[0], batch, generator)
        return drawn._replace(gamma=gamma)

    return draw


def made(name: str, seed: int) -> Variant:
    """The variant as it is before training: the U-Net starts with the same weights in all of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Reader(INPUTS, FEATURES, FLOOR)  # takes its random numbers before the U-Net, as it did when it shipped
        start = UNet(1 + INPUTS + 3, 1, CHANNELS, attention=True).state_dict()
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
    parser.add_argument("--reference", type=Path, help="folder of the reference; none: the file that ships")
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
