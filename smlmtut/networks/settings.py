"""What a training run needs besides a network: how long and how fast, where its batches come from, and its loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._validate import between, choice, non_negative, positive, whole
from .precision import PRECISIONS

# number of rows, generator -> tensors with these many rows. All that is random in a step comes from here, the noise
# that the loss uses included. A NamedTuple keeps its names.
Draw = Callable[[int, torch.Generator], tuple[Tensor, ...]]
Loss = Callable[[nn.Module, Any], Tensor]  # network, batch from draw -> mean over the rows


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train.

    steps: in total. batch: frames per step, over all processes; shards: equal parts of the batch, each with its own
        random stream (None: one for each process). learning_rate: the highest one, reached after `warmup` steps
        and then lowered along a cosine to `final` times it. clip: largest norm of the gradient.
    ema: decay per step of the running mean of the weights, ramped up from 0. seed: of the weights and of all data.
    precision: "auto" takes what `best_precision` finds. checkpoint_every, log_every: in steps.
    Raises ValueError for a value out of its range, or a batch that is not a multiple of the shards.
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
