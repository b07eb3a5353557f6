"""The folder of a training run: a checkpoint from which the run continues bit by bit, and its loss curve."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from .._files import replacing
from .settings import TrainingSettings

CHECKPOINT, CURVE = "checkpoint.pt", "loss.csv"


class CheckpointMismatch(ValueError):
    """A folder that holds a run with other settings or another network."""


@dataclass
class Checkpoint:
    """Everything that a run needs to continue, and where it is kept.

    shards: of the batch. average: the network with averaged weights. folder: None keeps nothing. about: of
    `training.train`. saved: step of the last checkpoint. curve: rows of the loss curve; pending: loss and gradient norm
    of the steps since its last row.
    """

    accelerator: Accelerator
    settings: TrainingSettings
    shards: int
    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    folder: Path | None
    about: dict[str, Any] = field(default_factory=dict)
    saved: int = 0

    def __post_init__(self) -> None:
        self.curve: list[tuple[int, float, float, float]] = []
        self.pending: list[tuple[float, float]] = []
        self.torch_rng = torch.get_rng_state()

    def note(self, step: int, loss: float, norm: float) -> None:
        """Add a finished step to the loss curve."""
        self.pending.append((loss, norm))
        # For networks with dropout. Taken here and not when saving, since a step that fails has drawn from it by then.
        self.torch_rng = torch.get_rng_state()
        if step % self.settings.log_every == 0 or step == self.settings.steps:
            means = [sum(column) / len(self.pending) for column in zip(*self.pending, strict=True)]
            self.curve.append((step, means[0], means[1], self.settings.rate(step - 1)))
            self.pending = []

    def identity(self) -> dict[str, Any]:
        """The settings and shapes that must be the same when a run continues."""
        kept = {f.name for f in fields(self.settings)} - {"checkpoint_every", "precision"}
        numbers = {name: value for name, value in asdict(self.settings).items() if name in kept} | self.about
        shapes = {name: list(p.shape) for name, p in self.network.state_dict().items()}
        return numbers | {"shards": self.shards, "mixed": self.accelerator.mixed_precision, "shapes": shapes}

    def save(self, step: int) -> None:
        """Write checkpoint and loss curve, unless this step is saved already."""
        if self.folder is None or step == self.saved or not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        scaler = self.accelerator.scaler
        content = {
            "step": step,
            "identity": self.identity(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "torch_rng": self.torch_rng,
            "curve": self.curve,
            "pending": self.pending,
        }
        # The curve first: a run that is killed between the two writes its last rows again and never lacks them.
        with replacing(self.folder / CURVE) as path, open(path, "w") as file:
            file.write("step,loss,gradient_norm,learning_rate\n")
            file.writelines(f"{s},{a:.9g},{n:.9g},{r:.9g}\n" for s, a, n, r in self.curve)
        with replacing(self.folder / CHECKPOINT) as path:
            torch.save(content, path)
        self.saved = step

    def resume(self) -> int:
        """Continue the run in the folder, if there is one; returns the number of finished steps."""
        if self.folder is not None and self.accelerator.is_main_process:
            for name in (CHECKPOINT, CURVE):
                for left in self.folder.glob(f".{name}.*.part"):
                    left.unlink(missing_ok=True)  # from a run that was killed while writing
        found = self.folder is not None and (self.folder / CHECKPOINT).exists()
        found = broadcast_object_list([found])[0] if self.accelerator.num_processes > 1 else found
        if not found:
            return 0
        assert self.folder is not None
        # Loaded to the CPU, where the optimizer's step counters belong; everything else is copied to its device.
        content = _read(self.folder)
        before, now = content["identity"], self.identity()
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            shown = ", ".join(
                name if name == "shapes" else f"{name} {before.get(name)} → {now[name]}" for name in other
            )
            raise CheckpointMismatch(f"folder {self.folder} holds a run with other settings or network: {shown}")
        self.network.load_state_dict(content["network"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.torch_rng = content["torch_rng"]
        torch.set_rng_state(self.torch_rng)
        self.curve = [tuple(row) for row in content["curve"]]  # type: ignore[misc]
        self.pending = [tuple(row) for row in content["pending"]]  # type: ignore[misc]
        self.saved = content["step"]
        return self.saved


def read_average(network: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Load the averaged weights of a run into a network; returns {"step": finished steps, "identity": its settings}.

    Raises FileNotFoundError where the folder holds no run, RuntimeError where the weights belong to another network.
    """
    content = _read(Path(folder))
    network.load_state_dict(content["average"])
    return {name: content[name] for name in ("step", "identity")}


def _read(folder: Path) -> dict[str, Any]:
    return torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
