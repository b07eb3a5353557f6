"""The training loop: learning, averages and rates in closed form; killed, resumed and shared without a trace.

`main` is one training process: the tests start, kill and resume it.
"""

import contextlib
import inspect
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import accelerate
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import nn

from smlmtut._random import step_generator
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.networks import precision, training
from smlmtut.networks.cddpm import ConditionalDiffusion, DiffusionBatch, frame_input
from smlmtut.networks.checkpoint import CHECKPOINT, CURVE, CheckpointMismatch
from smlmtut.networks.precision import best_precision
from smlmtut.networks.recipes import diffusion_loss
from smlmtut.networks.settings import TrainingSettings
from smlmtut.networks.training import State, follow, train

SETTINGS = TrainingSettings(
    steps=12, batch=4, learning_rate=0.02, warmup=4, ema=0.7, checkpoint_every=5, log_every=3, seed=3
)
LONG = replace(SETTINGS, steps=400, shards=2, checkpoint_every=4, log_every=7)


class Tiny(nn.Module):
    """One layer of each kind whose state is hard to carry over: dropout's random numbers, BatchNorm's buffers."""

    def __init__(self, width: int = 3, dropout: float = 0.2, norm: bool = True):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            parts = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity()]
            self.body = nn.Sequential(*parts, nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(width, 1, 1))

    def forward(self, x):
        return self.body(x)


def draw(batch, generator):
    x, noise = torch.randn(2, batch, 1, 6, 6, generator=generator, device=generator.device)
    return x, 2 * x - 1, noise


def draw_double(batch, generator):
    return tuple(t.double() for t in draw(batch, generator))


def loss(network, batch):
    x, y, noise = batch
    return (network(x + 0.01 * noise) - y).square().mean()


def quiet_loss(network, batch):
    return (network(batch[0]) - batch[1]).square().mean()


def run(settings=SETTINGS, folder=None, network=None, **options) -> list[State]:
    torch.manual_seed(1)  # dropout's
    return list(train(network or Tiny(), options.pop("draw", draw), options.pop("loss", loss), settings, folder, "cpu"))


def load(folder):
    return torch.load(folder / CHECKPOINT, weights_only=True)


def flat(content, path=""):
    """Every leaf of a checkpoint with its place."""
    if isinstance(content, dict):
        return [leaf for key, value in content.items() for leaf in flat(value, f"{path}/{key}")]
    if isinstance(content, list | tuple):
        return [leaf for i, value in enumerate(content) for leaf in flat(value, f"{path}/{i}")]
    return [(path, content)]


def assert_same(folder, other):
    """Network, average, optimizer, random state, curve: all bits."""
    for (place, a), (other_place, b) in zip(flat(load(folder)), flat(load(other)), strict=True):
        assert place == other_place
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, place
    assert (folder / CURVE).read_bytes() == (other / CURVE).read_bytes()


# -- learning ----------------------------------------------------------------------------------------------


def test_it_learns_a_line():
    network = nn.Conv2d(1, 1, 1)
    # in bf16, "auto" where the CPU has it, a slope of 2 is known to 0.8 % only
    settings = TrainingSettings(
        steps=200, batch=4, learning_rate=0.1, warmup=10, weight_decay=0.0, ema=0.9, precision="no"
    )
    states = run(settings, network=network, loss=quiet_loss)
    assert [s.step for s in states] == list(range(1, 201))
    assert states[-1].loss < 1e-4 * states[0].loss
    average = states[-1].average
    assert isinstance(average, nn.Conv2d)
    # y = 2x − 1 has no noise: the minimum is exact, and Adam is near it to about its last rate, 0.001
    assert float(average.weight.detach()) == pytest.approx(2, abs=0.005)
    assert average.bias is not None and float(average.bias.detach()) == pytest.approx(-1, abs=0.005)
    assert not any(p.requires_grad for p in average.parameters())


def test_the_first_step_is_adams():
    network = nn.Conv2d(1, 1, 1)
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    batch = draw(4, step_generator(0, 0))
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(quiet_loss(network, batch), [*network.parameters()])])
    settings = TrainingSettings(
        steps=1, batch=4, learning_rate=0.01, warmup=0, weight_decay=0.1, clip=1e-3, precision="no"
    )
    (state,) = run(settings, network=network, loss=quiet_loss)
    after = torch.cat([p.detach().flatten() for p in network.parameters()])
    # the norm before clipping; Adam's first step is the sign of the gradient, and AdamW's decay is apart from it
    assert state.gradient_norm == pytest.approx(float(slope.norm()), rel=1e-5)
    torch.testing.assert_close(after, before * (1 - 0.01 * 0.1) - 0.01 * slope.sign(), rtol=0, atol=2e-6)
    assert state.loss == pytest.approx(float(quiet_loss_of(before, batch)), rel=1e-5)


def quiet_loss_of(weights, batch):
    return (weights[0] * batch[0] + weights[1] - batch[1]).square().mean()


def test_the_average_is_its_closed_form():
    network = Tiny()
    weights = [torch.cat([p.detach().flatten() for p in network.parameters()]).double()]
    averages = []
    for state in train(network, draw, loss, SETTINGS, device="cpu"):
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]).double())
        averages.append(torch.cat([p.flatten() for p in state.average.parameters()]).double())
        for kept, new in zip(state.average.buffers(), network.buffers(), strict=True):
            assert torch.equal(kept, new)
    decays = [min(0.7, k / (k + 9)) for k in range(1, 13)]
    assert decays[0] == 0.1 and decays[-1] < 0.7  # the ramp
    for n in range(1, 13):
        # a_n = Σ_k w_k (1 − d_k) d_{k+1} ⋯ d_n, and the start with d_1 ⋯ d_n
        share = [math.prod(decays[:n])] + [(1 - decays[k - 1]) * math.prod(decays[k:n]) for k in range(1, n + 1)]
        assert sum(share) == pytest.approx(1, abs=1e-12)
        wanted = sum(s * w for s, w in zip(share, weights, strict=False))
        torch.testing.assert_close(averages[n - 1], wanted, rtol=0, atol=1e-6)  # float32, a dozen steps


def test_the_average_ends_its_ramp():
    network, average = nn.Linear(1, 1), nn.Linear(1, 1)
    before = average.weight.detach().clone()
    training.update_average(average, network, 0.75)
    torch.testing.assert_close(average.weight.detach(), 0.75 * before + 0.25 * network.weight.detach())


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_the_rate_is_torchs_cosine_after_a_line(warmup):
    settings = TrainingSettings(steps=50, warmup=warmup, learning_rate=0.4, final=0.05)
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50 - warmup, eta_min=0.05 * 0.4)
    for step in range(50):
        if step < warmup:
            assert settings.rate(step) == pytest.approx(0.4 * (step + 1) / warmup, rel=1e-12)
            continue
        assert settings.rate(step) == pytest.approx(cosine.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        cosine.step()
    assert settings.rate(50) == pytest.approx(0.02, rel=1e-12)
    assert max(map(settings.rate, range(50))) == 0.4


def test_states_and_curve_agree(tmp_path):
    states = run(SETTINGS, tmp_path)
    assert [s.learning_rate for s in states] == [SETTINGS.rate(k) for k in range(12)]
    curve = pd.read_csv(tmp_path / CURVE).to_dict("list")
    assert list(curve) == ["step", "loss", "gradient_norm", "learning_rate"] and curve["step"] == [3, 6, 9, 12]
    for i in range(4):
        part = states[3 * i : 3 * i + 3]
        assert curve["loss"][i] == pytest.approx(sum(s.loss for s in part) / 3, rel=1e-8)  # nine digits
        assert curve["gradient_norm"][i] == pytest.approx(sum(s.gradient_norm for s in part) / 3, rel=1e-8)
        assert curve["learning_rate"][i] == pytest.approx(part[-1].learning_rate, rel=1e-8)
    assert states[-1].seconds_left == 0 and states[0].samples_per_second > 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_batch_keeps_its_names_over_the_shards():
    seen = []

    def watching(network, batch):
        seen.append(batch)
        return diffusion_loss(network, batch)

    run(replace(SETTINGS, steps=1, shards=2), network=small_diffusion(), draw=draw_diffusion, loss=watching)
    parts = [draw_diffusion(2, step_generator(SETTINGS.seed, 0, shard)) for shard in (0, 1)]
    assert type(seen[0]) is DiffusionBatch
    for name in DiffusionBatch._fields:
        assert torch.equal(getattr(seen[0], name), torch.cat([getattr(part, name) for part in parts])), name


def test_data_follow_from_seed_step_and_shard():
    seen = []

    def recording(batch, generator):
        tensors = draw(batch, generator)
        seen.append((batch, float(tensors[0].sum())))
        return tensors

    run(replace(SETTINGS, shards=2), draw=recording)
    wanted = [float(draw(2, step_generator(3, step, shard))[0].sum()) for step in range(12) for shard in (0, 1)]
    assert seen == [(2, total) for total in wanted] and len(set(wanted)) == 24


# -- stopped and resumed in one process --------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 5, 7, 11])
def test_closed_early_it_goes_on_bit_by_bit(tmp_path, stop):
    run(SETTINGS, tmp_path / "whole")
    torch.manual_seed(1)
    states = train(Tiny(), draw, loss, SETTINGS, tmp_path / "parts", "cpu")
    for _ in range(stop):
        next(states)
    states.close()  # type: ignore[attr-defined]
    assert load(tmp_path / "parts")["step"] == stop
    torch.manual_seed(99)  # another session
    rest = list(train(Tiny(), draw, loss, SETTINGS, tmp_path / "parts", "cpu"))
    assert [s.step for s in rest] == list(range(stop + 1, 13))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_left_alone(tmp_path):
    network = Tiny()
    run(SETTINGS, tmp_path, network)
    before = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    again = Tiny()
    assert run(SETTINGS, tmp_path, again) == []
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == before
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)  # the caller has the trained weights


def test_the_same_network_can_go_on(tmp_path):
    network = Tiny()
    torch.manual_seed(1)
    with contextlib.closing(train(network, draw, loss, SETTINGS, tmp_path / "a", "cpu")) as states:  # type: ignore[type-var]
        next(states)
    list(train(network, draw, loss, SETTINGS, tmp_path / "a", "cpu"))
    run(SETTINGS, tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_before_it_spoils_it(tmp_path, bad, where):
    calls = itertools.count(1)

    def failing(network, batch):
        value = loss(network, batch)
        if next(calls) < 8:
            return value
        if where == "loss":
            return value * bad
        network.body[0].weight.register_hook(lambda g: g * bad)
        return value

    network = Tiny()
    with pytest.raises(FloatingPointError, match=r"step 8 is (nan|inf)"):
        run(SETTINGS, tmp_path / "parts", network, loss=failing)
    content = load(tmp_path / "parts")
    assert content["step"] == 7
    assert all(torch.isfinite(x).all() for _, x in flat(content) if isinstance(x, torch.Tensor))
    assert all(torch.isfinite(p).all() for p in network.parameters())
    # and from there a sound loss ends where it would have ended
    list(train(Tiny(), draw, loss, SETTINGS, tmp_path / "parts", "cpu"))
    run(SETTINGS, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("place", "saved"), [("draw", 7), ("loss", 7), ("update", 5)])
def test_an_interrupt_leaves_a_whole_step(tmp_path, monkeypatch, place, saved):
    """Within the update the weights belong to no step: the last checkpoint stays, that of step 5."""
    calls = itertools.count(1)

    def interrupted(function):
        def wrapped(*args):
            result = function(*args)
            if next(calls) == 8:
                raise KeyboardInterrupt
            return result

        return wrapped

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if place == "update":
            patch.setattr(training, "update_average", interrupted(training.update_average))
        run(
            SETTINGS,
            tmp_path / "parts",
            **({place: interrupted({"draw": draw, "loss": loss}[place])} if place != "update" else {}),
        )
    assert load(tmp_path / "parts")["step"] == saved
    list(train(Tiny(), draw, loss, SETTINGS, tmp_path / "parts", "cpu"))
    run(SETTINGS, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("settings", "network", "says"),
    [
        (replace(SETTINGS, learning_rate=0.03), Tiny(), "learning_rate 0.02 → 0.03"),
        (replace(SETTINGS, steps=20), Tiny(), "steps 12 → 20"),
        (replace(SETTINGS, shards=4), Tiny(), "shards 1 → 4"),
        (replace(SETTINGS, precision="bf16"), Tiny(), "mixed no → bf16"),
        (SETTINGS, Tiny(width=4), "shapes"),
        (SETTINGS, Tiny(norm=False), "shapes"),
    ],
)
def test_another_run_is_not_overwritten(tmp_path, settings, network, says):
    run(replace(SETTINGS, precision="no"), tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(CheckpointMismatch, match=says):
        run(settings if settings.precision == "bf16" else replace(settings, precision="no"), tmp_path, network)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_how_often_to_save_may_change(tmp_path):
    with contextlib.closing(train(Tiny(), draw, loss, SETTINGS, tmp_path, "cpu")) as states:  # type: ignore[type-var]
        next(states)
    assert len(run(replace(SETTINGS, checkpoint_every=2), tmp_path)) == 11


# -- killed ------------------------------------------------------------------------------------------------


PROCESSES = multiprocessing.get_context("forkserver")  # imports once for all of them
PROCESSES.set_forkserver_preload(["smlmtut.networks.training", "smlmtut.networks.recipes", "pytest"])


def start(*arguments):
    process = PROCESSES.Process(target=main, args=arguments)
    process.start()
    return process


def watch(folder: Path) -> int:
    """What a reader sees at any moment is whole. Returns the checkpoint's step, 0 before the first."""
    try:
        step = load(folder)["step"]
    except FileNotFoundError:
        return 0
    text = (folder / CURVE).read_text()
    assert text.endswith("\n") and all(len(line.split(",")) == 4 for line in text.splitlines())
    assert len(text.splitlines()) - 1 >= step // LONG.log_every  # the curve comes first
    return step


def test_killed_five_times_it_ends_where_it_would_have(tmp_path):
    run(LONG, tmp_path / "whole")
    folder, chance, kills, step = tmp_path / "killed", random.Random(7), 0, 0
    while True:
        process = start("long", folder)
        began, deadline, limit = step, math.inf, 0.3 * chance.random()
        while process.is_alive():
            step = watch(folder)
            if deadline == math.inf and step > began:
                deadline = time.monotonic() + limit
            if kills < 5 and (time.monotonic() > deadline or step > began + LONG.steps // 8):
                process.kill()
            process.join(0.02)
        assert process.exitcode in (0, -signal.SIGKILL)
        step = watch(folder)
        if process.exitcode == 0:
            break
        kills += 1
    assert kills == 5 and step == LONG.steps
    assert_same(tmp_path / "whole", folder)
    assert sorted(p.name for p in folder.iterdir()) == [CHECKPOINT, CURVE]


@pytest.mark.parametrize("save", [1, 2])
def test_killed_while_it_writes(tmp_path, save):
    """The checkpoint's number `save` is written by half, then the process is gone."""
    folder = tmp_path / "killed"
    process = start("half", folder, save)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [p for p in folder.iterdir() if p.name.endswith(".part")]
    assert len(left) == 1 and left[0].stat().st_size > 0
    if save == 1:
        assert not (folder / CHECKPOINT).exists()
    else:
        assert load(folder)["step"] == 5
    assert len(run(SETTINGS, folder)) == (12 if save == 1 else 7)
    run(SETTINGS, tmp_path / "whole")
    assert_same(tmp_path / "whole", folder)
    assert sorted(p.name for p in folder.iterdir()) == [CHECKPOINT, CURVE]


# -- several processes -------------------------------------------------------------------------------------


def shared_settings():
    return replace(SETTINGS, shards=2, precision="no")


def small_diffusion():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = ConditionalDiffusion(channels=(4, 8))
        torch.nn.init.normal_(network.unet.head.weight, std=0.1)  # with zeros, no other layer has a gradient at first
    return network


def draw_diffusion(batch, generator):
    u, v = 1 + 5 * torch.rand(2, batch, 1, generator=generator)
    truth = Emitters(u, v, torch.full_like(u, 900.0))
    frame = torch.poisson(expected_photons(truth, PSF(1.0), (8, 8), 5.0), generator=generator)[:, None]
    estimate, gamma = kde_image(truth, (8, 8)), torch.rand(batch, generator=generator).clamp(0.1, 0.9)
    other, noise = torch.randn(2, *estimate.shape, generator=generator)
    return DiffusionBatch(estimate + 0.05 * other, estimate, frame_input(frame, 2.0), gamma, noise)


SHARED = {
    "tiny": (lambda: Tiny(dropout=0.0, norm=False).double(), draw_double, loss),
    "diffusion": (small_diffusion, draw_diffusion, diffusion_loss),
}


# In double precision only the order of sums differs: 1e-16 of numbers near 1, times 12 steps and the slope of
# Adam's division by a root, 1/ε = 1e8 at most where a gradient is 0. The losses are reported in single precision.
# The diffusion model computes in single precision, 1e-7 of a loss. A weight whose gradient is as small as Adam's ε ends
# its first step 2e-4 apart, and steps of .02 double a distance or more. Measured on 2026-11-29, when the model had got
# two more inputs: losses 1e-7 and norms 1e-6 apart in the first four steps, 7e-4 and 7e-2 in the worst of twelve. So
# it is held to the first four, at 1e-5; without averaging, the second one would differ.
@pytest.mark.parametrize(
    ("kind", "steps", "losses", "norms", "weights"),
    [("tiny", 12, 1e-6, 1e-9, 1e-8), ("diffusion", 4, 1e-5, 1e-5, math.inf)],
)
def test_two_processes_are_one_with_two_shards(tmp_path, kind, steps, losses, norms, weights):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [start("shared", tmp_path, rank, port, kind) for rank in "01"]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    network, drawn, value = SHARED[kind]
    one = run(shared_settings(), network=network(), draw=drawn, loss=value)
    two = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
    assert not set(two[0]["data"]) & set(two[1]["data"]) and len(two[0]["data"]) == 12
    for other in two:
        assert other["losses"][:steps] == pytest.approx([s.loss for s in one[:steps]], rel=losses)
        assert other["norms"][:steps] == pytest.approx([s.gradient_norm for s in one[:steps]], rel=norms)
        found = torch.tensor(other["average"], dtype=torch.float64)
        wanted = torch.cat([p.flatten() for p in one[-1].average.parameters()]).double()
        torch.testing.assert_close(found, wanted, rtol=0, atol=weights)
    assert two[0]["average"] == two[1]["average"]  # to the bit: both took the same averaged gradients
    # the folder that two processes left goes on in one
    assert load(tmp_path / "run")["step"] == 12


def test_shards_must_fit_the_processes():
    with pytest.raises(ValueError, match=r"shards must divide the batch 4, got 3"):
        replace(SETTINGS, shards=3)


# -- precision and device ----------------------------------------------------------------------------------


def test_best_precision_is_what_the_hardware_has():
    cpu = best_precision(torch.device("cpu"))
    flags = Path("/proc/cpuinfo")
    if flags.exists():
        assert (cpu == "bf16") == ("avx512_bf16" in flags.read_text())
    assert cpu in ("bf16", "no")
    assert best_precision(torch.device("mps")) == "no"
    if torch.cuda.is_available():
        assert best_precision(torch.device("cuda")) == (
            "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
        )


def test_torch_still_has_its_private_question_about_the_cpu(monkeypatch):
    """`precision.cpu_has_bf16` calls torch.cpu._is_avx512_bf16_supported, which torch may rename at any time."""
    assert hasattr(torch.cpu, "_is_avx512_bf16_supported"), (
        f"torch {torch.__version__} has no torch.cpu._is_avx512_bf16_supported any more: no CPU would use bf16. "
        "Find its successor (torch.cpu.get_capabilities?) and change precision.cpu_has_bf16"
    )
    for answer in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=answer: answer)
        assert precision.cpu_has_bf16() is answer
        assert best_precision(torch.device("cpu")) == ("bf16" if answer else "no")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert best_precision(torch.device("cpu")) == "no"


def test_accelerate_can_still_forget_its_state(monkeypatch):
    """`training.forget_accelerator` calls AcceleratorState._reset_state, which accelerate may rename at any time."""
    reset = getattr(AcceleratorState, "_reset_state", None)
    assert reset is not None and "reset_partial_state" in inspect.signature(reset).parameters, (
        f"accelerate {accelerate.__version__} has no AcceleratorState._reset_state(reset_partial_state) any more: a "
        "second run in one process cannot change device or precision. Find its successor and change "
        "training.forget_accelerator"
    )
    run(replace(SETTINGS, steps=1, precision="bf16"))
    training.forget_accelerator()
    assert not AcceleratorState._shared_state and not PartialState._shared_state
    # without it, the first run of a process works, and another one with the same precision
    monkeypatch.delattr(AcceleratorState, "_reset_state")
    for _ in range(2):
        assert len(run(replace(SETTINGS, steps=1, precision="no"))) == 1
    with pytest.raises(ValueError, match="already been initialized"):
        run(replace(SETTINGS, steps=1, precision="bf16"))


def test_a_network_is_used_without_accelerate():
    """Nor does a recipe load it; training does."""
    modules = "smlmtut.networks, smlmtut.networks.pretrained, smlmtut.networks.recipes"
    code = f"import sys, {modules}; print('accelerate' in sys.modules, 'smlmtut.networks.training' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


def test_precisions_follow_each_other_in_one_session():
    dtypes = []

    def watching(network, batch):
        value = (network(batch[0]) - batch[1]).square().mean()
        dtypes.append(torch.is_autocast_enabled("cpu"))
        return value

    for name in ("no", "bf16", "no"):
        states = run(replace(SETTINGS, steps=2, precision=name), loss=watching)
        assert all(p.dtype == torch.float32 for p in states[-1].average.parameters())
    assert dtypes == [False] * 2 + [True] * 2 + [False] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp16_scales_its_loss_and_resumes(tmp_path):
    settings = replace(SETTINGS, precision="fp16")
    with contextlib.closing(train(Tiny(), draw, loss, settings, tmp_path, "cuda")) as states:  # type: ignore[type-var]
        for _ in range(6):
            next(states)
    assert load(tmp_path)["scaler"]["scale"] > 0
    rest = list(train(Tiny(), draw, loss, settings, tmp_path, "cuda"))
    assert [s.step for s in rest] == list(range(7, 13)) and math.isfinite(rest[-1].loss)


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="precision must be 'no', 'bf16' or 'auto' on a CPU, got 'fp16'"):
        next(train(Tiny(), draw, loss, replace(SETTINGS, precision="fp16"), device="cpu"))


def test_two_runs_do_not_share_a_folder(tmp_path):
    first = train(Tiny(), draw, loss, SETTINGS, tmp_path, "cpu")
    with contextlib.closing(first):  # type: ignore[type-var]
        next(first)
        with pytest.raises(ValueError, match=r"checkpoint.pt is being written by process \d+"):
            next(train(Tiny(), draw, loss, SETTINGS, tmp_path, "cpu"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "loss.csv"]
    assert [s.step for s in train(Tiny(), draw, loss, SETTINGS, tmp_path, "cpu")] == list(range(2, 13))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device must be 'auto' or 'cpu' or what is there, .*, got cuda"):
        next(train(Tiny(), draw, loss, SETTINGS, device="cuda"))


# -- progress ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 4])
def test_the_bar_counts_what_was_done_before(monkeypatch, done):
    bars = []

    class Bar(training.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, file=open(os.devnull, "w"))
            bars.append(self)

    monkeypatch.setattr(training, "tqdm", Bar)
    average = nn.Identity()
    states = [State(step, 1.0, 0.1, 1.0, 10.0, 1.0, average) for step in range(done + 1, 13)]
    numbers = []
    for state, given in zip(follow(iter(states), SETTINGS), states, strict=True):
        assert state is given
        numbers.append(bars[0].n)
    assert numbers == [4 * step for step in range(done + 1, 13)]
    assert bars[0].total == 48 and bars[0].initial == 4 * done  # the speed counts from there
    bars[0].fp.close()


def test_closing_the_bar_closes_the_run(tmp_path, capsys):
    states = follow(train(Tiny(), draw, loss, SETTINGS, tmp_path, "cpu"), SETTINGS)
    for _ in range(7):
        next(states)
    states.close()  # type: ignore[attr-defined]
    assert load(tmp_path)["step"] == 7
    assert "training" in capsys.readouterr().err


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 1.5), ("batch", 0), ("shards", 3), ("shards", 0), ("learning_rate", 0),
        ("learning_rate", math.nan), ("warmup", -1), ("final", 1.1), ("final", -0.1), ("weight_decay", -1),
        ("clip", 0), ("ema", 1.5), ("ema", math.nan), ("seed", -1), ("precision", "fp8"), ("checkpoint_every", 0),
        ("log_every", 0),
    ],
)  # fmt: skip
def test_bad_settings(name, value):
    with pytest.raises(ValueError, match=f"^{name} .*{value}"):
        replace(SETTINGS, **{name: value})


def test_whole_numbers_become_integers():
    settings = TrainingSettings(steps=10.0, batch=8.0, warmup=2.0)  # type: ignore[arg-type]
    assert all(type(x) is int for x in (settings.steps, settings.batch, settings.warmup))


# -- one process -------------------------------------------------------------------------------------------


def main(task: str, folder: Path, *more) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    if task == "long":
        torch.manual_seed(1)
        for _ in train(Tiny(), draw, loss, LONG, folder, "cpu"):
            pass
    if task == "half":
        whole_save, calls = torch.save, itertools.count(1)

        def half(content, path):
            whole_save(content, path)
            if next(calls) == more[0]:
                os.truncate(path, Path(path).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        run(SETTINGS, folder)
    if task == "shared":
        (rank, port, kind), data = more, []
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}

        def recording(batch, generator):
            tensors = drawn(batch, generator)
            data.append(float(tensors[-1].sum()))
            return tensors

        network, drawn, value = SHARED[kind]
        states = run(shared_settings(), folder / "run", network(), draw=recording, loss=value)
        result = {
            "data": data,
            "losses": [s.loss for s in states],
            "norms": [s.gradient_norm for s in states],
            "average": torch.cat([p.flatten() for p in states[-1].average.parameters()]).tolist(),
        }
        (folder / f"rank{rank}.json").write_text(json.dumps(result))
        torch.distributed.destroy_process_group()
