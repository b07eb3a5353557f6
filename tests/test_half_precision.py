"""float16, which a T4 takes: both networks trained and sampled under autocast on the CPU, with its gradient scaler.

Aims, stated before the first run: float16 has 11 significant bits, so a result of a few dozen operations is off by some
thousandths. After STEPS steps the weights have moved by less than a fiftieth of a unit each, and so has their
difference: ŷ and samples differ from those of float32 by at most FAR of a kernel's peak, losses by at most 2 %.
Changed after it: the diffusion model's loss crosses 0, where a share means nothing, so below 1 it is 0.02; and the
scale of the loss, at which the scaler skipped steps in float16 alone.
"""

import math

import pytest
import torch
from table import small_deepstorm, small_diffusion
from torch import Tensor, nn

from smlmtut._random import step_generator
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.scenes import Scene
from smlmtut.networks import recipes
from smlmtut.networks.cddpm import sample_kde
from smlmtut.networks.settings import TrainingSettings

STEPS, FAR = 20, 0.02
SCALE = 2.0**6  # of the loss: from 2^16, the default, the scaler would skip the first steps, and the paths would part
SCENE = Scene(density=2.0, camera=Camera(2.0, 100.0, 4.0))
SETTINGS = TrainingSettings(steps=STEPS, batch=4)


def made(name: str) -> tuple[nn.Module, recipes.Recipe]:
    if name == "deepstorm":
        return small_deepstorm(), recipes.deepstorm_2d(SCENE, SETTINGS)
    return small_diffusion(), recipes.cddpm_2d(SCENE, small_deepstorm(), SETTINGS)


def trained(name: str, half: bool) -> tuple[nn.Module, list[float], torch.amp.GradScaler]:
    """The network after STEPS steps in float16 or float32, as `training.train` takes them, its losses, the scaler."""
    network, recipe = made(name)
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.99))
    scaler, losses = torch.amp.GradScaler("cpu", enabled=half, init_scale=SCALE), []
    for step in range(STEPS):
        batch = recipe.draw(4, step_generator(3, step))
        with torch.autocast("cpu", torch.float16, enabled=half):
            loss = recipe.loss(network, batch)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    return network.eval(), losses, scaler


@pytest.mark.parametrize("name", ["deepstorm", "cddpm"])
def test_training_in_float16_follows_that_in_float32(name):
    half, full = trained(name, True), trained(name, False)
    assert all(map(math.isfinite, half[1]))
    worst = max(abs(a - b) / max(1, abs(b)) for a, b in zip(half[1], full[1], strict=True))
    assert 0 < worst < 0.02, "equal losses would mean that nothing was computed in float16"
    assert half[2].get_scale() == SCALE, "a step was skipped: a gradient was infinite"
    moved = [
        float((a - b).detach().abs().max()) for a, b in zip(half[0].parameters(), full[0].parameters(), strict=True)
    ]
    assert all(bool(torch.isfinite(p).all()) for p in half[0].parameters()) and max(moved) < 0.02


def both(compute) -> tuple[Tensor, Tensor]:
    """What it gives in float16 and in float32."""
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        half = compute().float()
    with torch.no_grad():
        return half, compute()


def test_the_estimate_in_float16():
    network, recipe = made("deepstorm")
    batch = recipe.draw(4, step_generator(3, 0))
    half, full = both(lambda: network(batch[0], batch[1]))
    assert 0 < float((half - full).abs().max()) < FAR * max(1.0, float(full.abs().max()))


def test_samples_in_float16():
    """The same noise through 20 calls of the network: they differ, by little, and are finite."""
    network, recipe = made("cddpm")
    batch = recipe.draw(3, step_generator(3, 0))
    estimate, frame = batch.estimate, batch.frame  # type: ignore[attr-defined]
    half, full = both(lambda: sample_kde(network, estimate, 4, torch.Generator().manual_seed(0), frame))  # type: ignore
    assert bool(torch.isfinite(half).all())
    assert 0 < float((half - full).abs().max()) < FAR * max(1.0, float(full.abs().max()))


def test_what_a_t4_would_overflow_is_seen():
    """float16 ends at 65504: a gradient scaled beyond it is infinite, and the scaler skips the step and halves."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
    with torch.autocast("cpu", torch.float16):
        loss = (torch.ones(1, 1).half() @ weight.half()[None] * 10).float().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert float(weight.detach()) == 1 and scaler.get_scale() == 2.0**14
