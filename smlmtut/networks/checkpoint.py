"""What a training run leaves in its folder: a checkpoint from which it goes on bit by bit, and its loss curve."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from .._files import replacing

if TYPE_CHECKING:
    from .training import Settings

CHECKPOINT, CURVE = "checkpoint.pt", "loss.csv"


class CheckpointMismatch(ValueError):
    """A folder that holds a run of other settings or of another network."""


@dataclass
class Run:
    """What a checkpoint holds, and the rows of the loss curve since the last one."""

    accelerator: Accelerator
    settings: "Settings"
    shards: int
    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    folder: Path | None
    saved: int = 0

    def __post_init__(self) -> None:
        self.curve: list[tuple[int, float, float, float]] = []
        self.pending: list[tuple[float, float]] = []
        self.torch_rng = torch.get_rng_state()

    def note(self, step: int, loss: float, norm: float) -> None:
        self.pending.append((loss, norm))
        self.torch_rng = torch.get_rng_state()  # for networks with dropout; a step that fails has used some
        if step % self.settings.log_every == 0 or step == self.settings.steps:
            means = [sum(column) / len(self.pending) for column in zip(*self.pending, strict=True)]
            self.curve.append((step, means[0], means[1], self.settings.rate(step - 1)))
            self.pending = []

    def identity(self) -> dict[str, Any]:
        """What must not change in a run that goes on."""
        kept = {f.name for f in fields(self.settings)} - {"checkpoint_every", "precision"}
        numbers = {name: value for name, value in asdict(self.settings).items() if name in kept}
        shapes = {name: list(p.shape) for name, p in self.network.state_dict().items()}
        return numbers | {"shards": self.shards, "mixed": self.accelerator.mixed_precision, "shapes": shapes}

    def save(self, step: int) -> None:
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
        # the curve first: killed between the two, a run draws its last rows again, but never lacks them
        with replacing(self.folder / CURVE) as path, open(path, "w") as file:
            file.write("step,loss,gradient_norm,learning_rate\n")
            file.writelines(f"{s},{a:.9g},{n:.9g},{r:.9g}\n" for s, a, n, r in self.curve)
        with replacing(self.folder / CHECKPOINT) as path:
            torch.save(content, path)
        self.saved = step

    def resume(self) -> int:
        """Take up the folder's run; returns the steps that are done."""
        if self.folder is not None and self.accelerator.is_main_process:
            for name in (CHECKPOINT, CURVE):
                for left in self.folder.glob(f".{name}.*.part"):
                    left.unlink(missing_ok=True)  # of a run that was killed while it wrote
        found = self.folder is not None and (self.folder / CHECKPOINT).exists()
        found = broadcast_object_list([found])[0] if self.accelerator.num_processes > 1 else found
        if not found:
            return 0
        assert self.folder is not None
        # on the CPU first: the optimizer's step counters stay there, all else is copied to its place
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


def read_curve(folder: str | Path) -> dict[str, list[float]]:
    """The loss curve of a run: columns step, loss (mean since the row before), gradient_norm, learning_rate."""
    with open(Path(folder) / CURVE) as file:
        names, *rows = (line.strip().split(",") for line in file)
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}


def read_average(network: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Fill a network with a run's averaged weights; returns {"step": steps done, "identity": its settings}.

    Raises FileNotFoundError where the folder holds no run, RuntimeError where the weights are of another network.
    """
    content = _read(Path(folder))
    network.load_state_dict(content["average"])
    return {name: content[name] for name in ("step", "identity")}


def _read(folder: Path) -> dict[str, Any]:
    return torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
