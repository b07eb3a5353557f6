"""The training loop: a generator over steps that can be stopped, killed, resumed and spread over processes.

It works for any network and data: `draw` gives a batch for a generator, `loss` a number for a batch. The data of a
step depend on (seed, step, shard) alone. So a run that was killed continues bit by bit, and any number of processes
that share the shards of the global batch follow the same path.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import concatenate
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._files import held
from .._random import step_generator
from .checkpoint import Checkpoint
from .precision import best_precision
from .settings import Draw, Loss, TrainingSettings


@dataclass(frozen=True)
class State:
    """A finished step: its number from 1 on, loss, learning rate and norm of the gradient before clipping.

    samples_per_second and seconds_left: from the steps of this session alone. average: the network with averaged
    weights (EMA), the one to use; the next step changes it in place.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    seconds_left: float
    average: nn.Module


def train(
    network: nn.Module,
    draw: Draw,
    loss: Loss,
    settings: TrainingSettings,
    folder: str | Path | None = None,
    device: str | torch.device = "auto",
    about: dict[str, Any] | None = None,
) -> Iterator[State]:
    """Train, and yield the state after every step.

    network: trained in place. draw, loss: see their types in `settings`; draw gets a generator on the device. loss has
        to call the network itself, network(…): with several processes it gets a wrapper that averages the gradients
        over the processes, and a call of another method passes the wrapper by.
    folder: where checkpoint.pt and loss.csv are kept; a run found there continues, bit by bit on the CPU with the
        same number of threads. A generator that is closed early leaves a checkpoint of its last step.
    device: "auto": what accelerate finds; "cpu": the CPU even where there is a GPU.
    about: what else must be the same in a run that continues, such as the scene; what JSON can hold.
    Under `accelerate launch` each process draws its own shards. Dropout uses the global random state of its own
    process, so a network with dropout depends on the number of processes.
    Raises CheckpointMismatch (a ValueError) where the run in the folder had other settings or another network;
    ValueError where the shards are not a multiple of the processes, or for a device that is not available;
    FileInUse (a ValueError) where another run is training in the folder;
    FloatingPointError where the loss or its gradient is not finite, after keeping the last good step.
    """
    accelerator = _accelerator(device, settings.precision)
    shards = settings.shards or accelerator.num_processes
    if shards % accelerator.num_processes or settings.batch % shards:
        raise ValueError(
            f"shards must be a multiple of the {accelerator.num_processes} processes and divide the batch "
            f"{settings.batch}, got {shards}"
        )
    own = range(accelerator.process_index, shards, accelerator.num_processes)
    network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    checkpoint = Checkpoint(
        accelerator, settings, shards, network, average, optimizer, Path(folder) if folder else None, about or {}
    )
    model, optimizer = accelerator.prepare(network, optimizer)
    place = Path(folder) / "checkpoint.pt" if folder and accelerator.is_main_process else None
    if place:
        place.parent.mkdir(parents=True, exist_ok=True)
    with held(place) if place else nullcontext():
        done = checkpoint.resume()
        first, began, torn = done, time.perf_counter(), False
        try:
            while done < settings.steps:
                batch = _batch(draw, settings, shards, own, done, accelerator.device)
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate(done)
                number, norm = _backward(accelerator, model, loss, batch, settings.clip, done + 1)
                torn = True
                optimizer.step()
                optimizer.zero_grad()
                update_average(average, network, min(settings.ema, (done + 1) / (done + 10)))
                done += 1
                checkpoint.note(done, number, norm)
                torn = False
                speed = (done - first) / (time.perf_counter() - began)  # steps a second
                if done % settings.checkpoint_every == 0 or done == settings.steps:
                    checkpoint.save(done)
                left = (settings.steps - done) / speed
                yield State(done, number, settings.rate(done - 1), norm, speed * settings.batch, left, average)
        finally:
            if not torn:  # an interrupt during the update leaves weights that belong to no step
                for moved, kept in zip(network.buffers(), average.buffers(), strict=True):
                    moved.copy_(kept)  # a step that failed halfway has changed the statistics of BatchNorm
                checkpoint.save(done)  # does nothing where that step is saved already


def follow(states: Iterator[State], settings: TrainingSettings, title: str = "training") -> Iterator[State]:
    """Pass the states on and show a progress bar: loss, samples per second, time left."""
    bar = tqdm(total=settings.steps * settings.batch, unit="frame", desc=title, smoothing=0.05)
    smooth = None
    with bar:
        for state in states:
            if smooth is None:  # steps of an earlier session count as done, but not for the speed
                bar.initial = bar.n = bar.last_print_n = (state.step - 1) * settings.batch
            bar.update(state.step * settings.batch - bar.n)
            smooth = state.loss if smooth is None else smooth + (state.loss - smooth) / 50
            bar.set_postfix(loss=f"{smooth:.3g}", refresh=False)
            yield state


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Running mean of the weights: average ← decay · average + (1 − decay) · network; buffers are copied."""
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new.detach(), 1 - decay)
    for kept, new in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(new)


def _batch(draw: Draw, settings: TrainingSettings, shards: int, own: range, step: int, device: torch.device) -> Any:
    """The shards of a step's batch that belong to this process, joined into one batch of the same type."""
    rows = settings.batch // shards
    return concatenate([draw(rows, step_generator(settings.seed, step, shard, device)) for shard in own])


def _backward(
    accelerator: Accelerator, model: nn.Module, loss: Loss, batch: tuple[Tensor, ...], clip: float, step: int
) -> tuple[float, float]:
    """Compute and clip the gradient; returns the loss, a mean over all processes, and the norm before clipping."""
    with accelerator.autocast():
        value = loss(model, batch)
    number = torch.as_tensor(accelerator.reduce(value.detach().float(), "mean")).item()
    _check_finite("loss", step, number)
    accelerator.backward(value)
    norm = torch.as_tensor(accelerator.clip_grad_norm_(model.parameters(), clip)).item()
    if accelerator.scaler is None:  # a scaler skips a step that is not finite and lowers its scale
        _check_finite("gradient's norm", step, norm)
    return number, norm


def _check_finite(name: str, step: int, number: float) -> None:
    if not math.isfinite(number):
        raise FloatingPointError(f"the {name} of step {step} is {number}: lower learning_rate or precision")


def _accelerator(device: str | torch.device, precision: str) -> Accelerator:
    only_cpu = str(device) == "cpu"
    forget_accelerator()
    if precision == "auto":
        precision = best_precision(PartialState(cpu=only_cpu).device)  # type: ignore[arg-type]
    accelerator = Accelerator(mixed_precision=precision, cpu=only_cpu)
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would train in float32 and say nothing
        raise ValueError(f"precision must be 'no', 'bf16' or 'auto' on a CPU, got {precision!r}")
    if str(device) != "auto" and torch.device(device).type != accelerator.device.type:
        raise ValueError(f"device must be 'auto' or 'cpu' or what is there, {accelerator.device.type}, got {device}")
    return accelerator


def forget_accelerator() -> None:
    """Let the next Accelerator choose device and precision anew.

    accelerate keeps one state for the whole process and offers no public way to reset it. Without the private one, a
    second run in the process has to use the device and precision of the first; accelerate refuses anything else.
    """
    reset = getattr(AcceleratorState, "_reset_state", None)
    if reset is not None:
        reset(reset_partial_state=True)
