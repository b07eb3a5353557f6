"""The training loop: a generator over steps that can be stopped, killed, resumed and spread over processes.

It knows no network and no data: `draw` gives a batch for a generator, `loss` a number for a batch. A step's data
follow from (seed, step, shard) alone, so a run that was killed goes on with the same bits, and any number of
processes that share the shards of the global batch follow the same path.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._random import step_generator
from .._validate import between, choice, non_negative, positive, whole
from .checkpoint import Run
from .precision import PRECISIONS, best_precision

Batch = tuple[Tensor, ...]
# frames to draw, generator -> tensors with these many rows: all that is random in a step, noise for the loss too
Draw = Callable[[int, torch.Generator], Batch]
Loss = Callable[[nn.Module, Batch], Tensor]  # network, batch -> mean over the rows


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    steps: in total. batch: frames a step, over all processes; shards: equal parts of the batch with a random
        stream each (None: one for each process). learning_rate: the highest one, reached after `warmup` steps
        and then lowered along a cosine to `final` times it. clip: largest norm of the gradient.
    ema: decay of the weights' running mean in steps, ramped up from 0. seed: of the weights and of all data.
    precision: "auto" takes what `best_precision` finds. checkpoint_every, log_every: steps.
    Raises ValueError for a value out of its range, or a batch that the shards do not divide.
    """

    steps: int
    batch: int = 8
    shards: int | None = None
    learning_rate: float = 2e-3
    warmup: int = 200
    final: float = 0.01
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = "auto"
    checkpoint_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "log_every"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))  # 8.0 becomes 8
        for name in ("warmup", "seed"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0))
        if self.shards is not None and self.batch % whole("shards", self.shards):
            raise ValueError(f"shards must divide the batch {self.batch}, got {self.shards}")
        positive("learning_rate", self.learning_rate)
        positive("clip", self.clip)
        non_negative("weight_decay", self.weight_decay)
        between("final", self.final, 0, 1)
        between("ema", self.ema, 0, 1)
        choice("precision", self.precision, PRECISIONS)

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, …: linear warm-up, then half a cosine."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class State:
    """A step that was done: its number from 1 on, loss, learning rate and gradient's norm before clipping.

    samples_per_second and seconds_left: from this session's own steps. average: the network with averaged
    weights (EMA), the one to use; it changes with the next step.
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
    settings: Settings,
    folder: str | Path | None = None,
    device: str | torch.device = "auto",
) -> Iterator[State]:
    """Train, and yield the state after every step.

    network: trained in place. draw, loss: see their types above; draw gets a generator on the device.
    folder: where checkpoint.pt and loss.csv are kept; a run found there goes on where it was, bit by bit on the
        CPU with the same number of threads. A generator that is closed early leaves a checkpoint of its last step.
    device: "auto": what accelerate finds; "cpu": not a GPU even where there is one.
    Under `accelerate launch` each process draws its own shards, and gradients are averaged over them.
    Dropout in the network draws from each process's own global state, which no number of processes shares.
    Raises CheckpointMismatch (a ValueError) where the folder's run had other settings or another network, ValueError
    where the processes do not divide the shards, or for a device that is not there, FloatingPointError where the loss
    or its gradient is not finite: the last good step is kept.
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
    run = Run(accelerator, settings, shards, network, average, optimizer, Path(folder) if folder else None)
    model, optimizer = accelerator.prepare(network, optimizer)
    done = run.resume()
    first, began, torn = done, time.perf_counter(), False
    try:
        while done < settings.steps:
            batch = _batch(draw, settings, shards, own, done, accelerator.device)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(done)
            with accelerator.autocast():
                value = loss(model, batch)
            number = torch.as_tensor(accelerator.reduce(value.detach().float(), "mean")).item()
            _check_finite("loss", done + 1, number)
            accelerator.backward(value)
            norm = torch.as_tensor(accelerator.clip_grad_norm_(model.parameters(), settings.clip)).item()
            if accelerator.scaler is None:  # which leaves such a step out by itself and lowers its scale
                _check_finite("gradient's norm", done + 1, norm)
            torn = True
            optimizer.step()
            optimizer.zero_grad()
            update_average(average, network, min(settings.ema, (done + 1) / (done + 10)))
            done += 1
            run.note(done, number, norm)
            torn = False
            speed = (done - first) / (time.perf_counter() - began)  # steps a second
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                run.save(done)
            left = (settings.steps - done) / speed
            yield State(
                done, number, settings.rate(done - 1), norm, speed * settings.batch, left, average
            )  # fmt: skip
    finally:
        if not torn:  # an interrupt within the update leaves weights of no step
            for moved, kept in zip(network.buffers(), average.buffers(), strict=True):
                moved.copy_(kept)  # BatchNorm's, which a step that failed halfway has moved
            run.save(done)  # does nothing where that step is saved


def follow(states: Iterator[State], settings: Settings, title: str = "training") -> Iterator[State]:
    """Pass the states on and show a progress bar: loss, samples a second, time left."""
    bar = tqdm(total=settings.steps * settings.batch, unit="frame", desc=title, smoothing=0.05)
    smooth = None
    with bar:
        for state in states:
            if smooth is None:  # what an earlier session did counts as done, but not for the speed
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


def _batch(draw: Draw, settings: Settings, shards: int, own: range, step: int, device: torch.device) -> Batch:
    """This process's part of a step's batch, shard by shard."""
    parts = [draw(settings.batch // shards, step_generator(settings.seed, step, shard, device)) for shard in own]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def _check_finite(name: str, step: int, number: float) -> None:
    if not math.isfinite(number):
        raise FloatingPointError(f"the {name} of step {step} is {number}: lower learning_rate or precision")


def _accelerator(device: str | torch.device, precision: str) -> Accelerator:
    only_cpu = str(device) == "cpu"
    # accelerate keeps one state for the whole process: a second run could choose neither device nor precision
    AcceleratorState._reset_state(reset_partial_state=True)
    if precision == "auto":
        kind = "cpu" if only_cpu or not torch.cuda.is_available() else "cuda"
        precision = best_precision(torch.device(kind))
    accelerator = Accelerator(mixed_precision=precision, cpu=only_cpu)
    if str(device) != "auto" and torch.device(device).type != accelerator.device.type:
        raise ValueError(f"device must be 'auto' or 'cpu' or what is there, {accelerator.device.type}, got {device}")
    return accelerator
