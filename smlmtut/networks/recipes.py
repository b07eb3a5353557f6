"""How the shipped networks are trained: network, scenes, loss and settings, each in one place."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .. import data
from ..diffusion.schedule import NoiseSchedule
from ..imaging.camera import Camera
from ..imaging.scenes import Scene, draw_batch
from .cddpm import STEPS, ConditionalDiffusion, frame_input
from .deepstorm import DeepSTORM
from .precision import best_precision
from .training import Batch, Draw, Loss, Settings

FRAME = (32, 32)  # camera pixels of a training frame of DeepSTORM
SMALL_FRAME = (16, 16)  # of the diffusion model: 64 × 64 super-resolved pixels
SCALE = 100.0  # brings the mean squared error per super-resolved pixel to about 1 at the start


@dataclass(frozen=True)
class Recipe:
    """A network to train, made anew from its seed, what it sees, its loss, and how long it learns."""

    network: Callable[[int], nn.Module]  # seed -> network
    draw: Draw
    loss: Loss
    settings: Settings


def reference_scene(camera: Camera | None = None) -> Scene:
    """The scene of `deepstorm-2d`: 108 nm pixels, N 100–2000, b 0–20, σ 0.92–1.08 px, density 0.1–8 per µm².

    camera: None reads the real sCMOS calibration maps of `data.calibration_maps`; each frame is a part of them.
    """
    if camera is None:
        maps = {name: torch.as_tensor(m, dtype=torch.float32) for name, m in data.calibration_maps().items()}
        camera = Camera(maps["gain"], maps["offset"], maps["read_variance"])
    return Scene(camera=camera)


def deepstorm_2d(scene: Scene, settings: Settings | None = None, **architecture) -> Recipe:
    """DeepSTORM on a scene, by squared error: the minimum is the conditional mean E[y | x].

    settings: None: those of the shipped weights. architecture: arguments of DeepSTORM that differ from its own.
    """

    def network(seed: int) -> DeepSTORM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DeepSTORM(**architecture)

    shape = network(0)
    return Recipe(network, draw_frames(scene, FRAME, shape.factor, shape.sigma), squared_error, settings or SHIPPED)


SHIPPED = Settings(steps=13_000, batch=8, learning_rate=2e-3, warmup=200, ema=0.999, clip=20.0, seed=2026)


def cddpm_2d(scene: Scene, phi: DeepSTORM, settings: Settings | None = None, **architecture) -> Recipe:
    """The conditional diffusion model of y given phi's ŷ, and given the frame too in half of the rows.

    phi: trained, and left as it is. settings: None: those of the shipped weights. architecture: arguments of
        ConditionalDiffusion that differ from its own; form="published" for the published form.
    """

    def network(seed: int) -> ConditionalDiffusion:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ConditionalDiffusion(**architecture)

    frames = network(0).frame
    return Recipe(network, draw_estimates(scene, SMALL_FRAME, phi), Denoising(frames), settings or SHIPPED_DIFFUSION)


SHIPPED_DIFFUSION = Settings(steps=6_000, batch=32, learning_rate=1.5e-3, warmup=300, ema=0.999, clip=10.0, seed=2027)
PUBLISHED_DIFFUSION = replace(SHIPPED_DIFFUSION, clip=1.0)
PUBLISHED_FORM = {"form": "published", "kind": "noise", "frame": False}


def draw_frames(scene: Scene, shape: tuple[int, int], factor: int, sigma: float) -> Draw:
    """Frames, read variance and target KDE of a scene, for `training.train`."""

    def draw(batch: int, generator: torch.Generator) -> Batch:
        place = replace(scene, camera=scene.camera.to(generator.device))
        frames = draw_batch(place, batch, shape, generator)
        return frames.electrons, frames.read_variance, frames.target(factor, sigma)

    return draw


def squared_error(network: nn.Module, batch: Batch) -> Tensor:
    """SCALE · mean (ŷ − y)² over the super-resolved pixels."""
    electrons, variance, target = batch
    return SCALE * (network(electrons, variance).float() - target).square().mean()


def draw_estimates(scene: Scene, shape: tuple[int, int], phi: DeepSTORM) -> Draw:
    """What Denoising takes: y, ŷ, the frame as the network sees it, whether it may, γ and noise."""
    schedule = NoiseSchedule.cosine(STEPS)
    networks: dict[torch.device, DeepSTORM] = {}

    @torch.no_grad()
    def draw(batch: int, generator: torch.Generator) -> Batch:
        device = generator.device
        if device not in networks:
            networks[device] = copy.deepcopy(phi).to(device)
        frames = draw_batch(replace(scene, camera=scene.camera.to(device)), batch, shape, generator)
        y = frames.target(phi.factor, phi.sigma)
        with torch.autocast(device.type, torch.bfloat16, enabled=best_precision(device) == "bf16"):
            estimate = networks[device](frames.electrons, frames.read_variance).float()
        given = torch.rand(batch, generator=generator, device=device) < 0.5
        gamma = schedule.draw_gamma(batch, generator).float()
        noise = torch.randn(y.shape, generator=generator, device=device)
        return y, estimate, frame_input(frames.electrons, frames.read_variance), given, gamma, noise

    return draw


@dataclass(frozen=True)
class Denoising:
    """Mean of the denoiser's squared error and of what centre and scale get wrong. frames: whether it sees frames."""

    frames: bool

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        y, estimate, frame, given, gamma, noise = batch
        known = (estimate, frame, given) if self.frames else (estimate,)
        output, wanted, surprise, weight = network(y, known, gamma, noise)
        return (weight * ((output - wanted).square() + surprise)).mean()
