"""How the shipped networks are trained: network, scenes, loss and settings, each in one place."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from . import data
from .camera import Camera
from .deepstorm import DeepSTORM
from .scenes import Scene, draw_batch
from .training import Batch, Draw, Loss, Settings

FRAME = (32, 32)  # camera pixels of a training frame
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
