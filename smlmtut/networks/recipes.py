"""How the shipped networks are trained: network, batches, loss and settings."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .. import data
from ..diffusion.schedule import NoiseSchedule
from ..imaging.camera import Camera
from ..imaging.scenes import Scene, draw_batch
from .cddpm import STEPS, ConditionalDiffusion, DiffusionBatch, frame_input
from .condition import FitRange
from .deepstorm import DeepSTORM
from .engression import Engression
from .precision import best_precision
from .settings import Draw, Loss, TrainingSettings

FRAME = (32, 32)  # camera pixels of a training frame of DeepSTORM, larger than the 28 that one pixel of ŷ depends on
SMALL_FRAME = (16, 16)  # of what draws samples: 64 × 64 super-resolved pixels

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """What `training.train` needs: a network, made anew from its seed, its batches, its loss, and the settings."""

    network: Callable[[int], nn.Module]  # seed -> network
    draw: Draw
    loss: Loss
    settings: TrainingSettings


def reference_scene(camera: Camera | None = None) -> Scene:
    """The scene of `deepstorm-2d`: 108 nm pixels, N 100–2000, b 0–20, σ 0.92–1.08 px, density 0.1–8 per µm².

    camera: None takes the real sCMOS calibration maps of `data.calibration_maps`; each frame is a part of them.
    """
    if camera is None:
        maps = {name: torch.as_tensor(m, dtype=torch.float32) for name, m in data.calibration_maps().items()}
        camera = Camera(maps["gain"], maps["offset"], maps["read_variance"])
    return Scene(camera=camera)


class DeepSTORMBatch(NamedTuple):
    """Frames in photo-electrons (B, 1, H, W), their read variance (e⁻²) and the KDE of the truth (B, 1, fH, fW)."""

    electrons: Tensor
    read_variance: Tensor
    kde: Tensor


def deepstorm_2d(scene: Scene, settings: TrainingSettings | None = None, **architecture) -> Recipe:
    """DeepSTORM on a scene, by squared error: the minimum is the conditional mean E[y | x].

    settings: None: those of the shipped weights. architecture: arguments of DeepSTORM other than its defaults.
    """
    network = seeded(DeepSTORM, **architecture)
    shape = network(0)
    return Recipe(network, draw_frames(scene, FRAME, shape.factor, shape.sigma), squared_error, settings or SHIPPED)


SHIPPED = TrainingSettings(steps=13_000, batch=8, learning_rate=2e-3, warmup=200, ema=0.999, clip=20.0, seed=2026)


def cddpm_2d(scene: Scene, phi: DeepSTORM, settings: TrainingSettings | None = None, **architecture) -> Recipe:
    """The conditional diffusion model of y given a frame and phi's ŷ.

    phi: a trained network, which is not changed. settings: None: those of the shipped weights. architecture:
        arguments of ConditionalDiffusion other than its defaults; PUBLISHED_FORM for the published form. The range of
        its fit is the scene's unless given.
    """
    network = seeded(ConditionalDiffusion, **{"fit": FitRange.of(scene)} | architecture)
    return Recipe(network, draw_estimates(scene, SMALL_FRAME, phi), diffusion_loss, settings or SHIPPED_DIFFUSION)


def engression_2d(scene: Scene, phi: DeepSTORM, settings: TrainingSettings | None = None, **architecture) -> Recipe:
    """The network that draws y in one call. Arguments as in `cddpm_2d`; architecture: of Engression.

    Its loss draws from the global random state: seed that too.
    """
    network = seeded(Engression, **{"fit": FitRange.of(scene)} | architecture)
    return Recipe(network, draw_estimates(scene, SMALL_FRAME, phi), diffusion_loss, settings or SHIPPED_ENGRESSION)


def seeded(kind: Callable[..., Network], **architecture) -> Callable[[int], Network]:
    """The function that makes a network with the random weights of a seed."""

    def network(seed: int) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return kind(**architecture)

    return network


SHIPPED_DIFFUSION = TrainingSettings(
    steps=6_000, batch=32, learning_rate=1.5e-3, warmup=300, ema=0.999, clip=10.0, seed=2027
)
SHIPPED_ENGRESSION = replace(SHIPPED_DIFFUSION, seed=2101)
PUBLISHED_DIFFUSION = replace(SHIPPED_DIFFUSION, clip=1.0)
PUBLISHED_FORM = {"form": "published", "kind": "noise", "attention": True}


def draw_frames(scene: Scene, shape: tuple[int, int], factor: int, sigma: float) -> Draw:
    """Batches for DeepSTORM: frames of a scene and the KDEs of their truth."""

    def draw(batch: int, generator: torch.Generator) -> DeepSTORMBatch:
        place = replace(scene, camera=scene.camera.to(generator.device))
        frames = draw_batch(place, batch, shape, generator)
        return DeepSTORMBatch(frames.electrons, frames.read_variance, frames.target(factor, sigma))

    return draw


SCALE = 100.0  # the mean squared error of an estimate of 0 is some thousandths per super-resolved pixel


def squared_error(network: nn.Module, batch: DeepSTORMBatch) -> Tensor:
    """SCALE · mean (ŷ − y)² over the super-resolved pixels."""
    estimate = network(batch.electrons, batch.read_variance).float()
    return SCALE * (estimate - batch.kde).square().mean()


def draw_estimates(scene: Scene, shape: tuple[int, int], phi: DeepSTORM) -> Draw:
    """Batches for what draws samples: KDEs of a scene with phi's estimates, noise levels and noise."""
    schedule = NoiseSchedule.cosine(STEPS)
    networks: dict[torch.device, DeepSTORM] = {}

    @torch.no_grad()
    def draw(batch: int, generator: torch.Generator) -> DiffusionBatch:
        device = generator.device
        if device not in networks:
            networks[device] = copy.deepcopy(phi).to(device)
        frames = draw_batch(replace(scene, camera=scene.camera.to(device)), batch, shape, generator)
        kde = frames.target(phi.factor, phi.sigma)
        with torch.autocast(device.type, torch.bfloat16, enabled=best_precision(device) == "bf16"):
            estimate = networks[device](frames.electrons, frames.read_variance).float()
        gamma = schedule.draw_gamma(batch, generator).float()
        noise = torch.randn(kde.shape, generator=generator, device=device)
        frame = frame_input(frames.electrons, frames.read_variance)
        return DiffusionBatch(kde, estimate, frame, gamma, noise)

    return draw


def diffusion_loss(network: nn.Module, batch: DiffusionBatch) -> Tensor:
    """The loss that ConditionalDiffusion and the rivals compute themselves, reached through their forward."""
    return network(batch)
