"""The noise schedule: how much signal is left at each step of diffusion, and what follows from that."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validate import between, choice, finite, non_negative, positive, rank, whole

BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Signal levels 1 = γ_0 > γ_1 > … > γ_T > 0 of the forward process (Eq. 5).

    gammas: (T + 1,), kept in float64 on the CPU. In every property below except `gammas` and `log_snr`, index t
    belongs to step t + 1, the one from y_t to y_{t+1}.
    Raises ValueError where they do not start at 1, do not fall at every step or do not stay above 0.
    """

    gammas: Tensor

    def __post_init__(self) -> None:
        gammas = torch.as_tensor(finite("gammas", self.gammas)).detach().to("cpu", torch.float64, copy=True)
        positive("gammas", rank("gammas", gammas, 1))
        if len(gammas) < 2 or gammas[0] != 1 or bool((gammas.diff() >= 0).any()):
            raise ValueError(f"gammas must be two or more that start at 1 and fall at each step, got {gammas}")
        object.__setattr__(self, "gammas", gammas)

    @classmethod
    def from_betas(cls, betas: Tensor) -> "NoiseSchedule":
        """From the variances (T,) that each step adds: γ_t = Π (1 − β_s). ValueError where one is not in (0, 1)."""
        betas = torch.as_tensor(positive("betas", betas)).to("cpu", torch.float64)
        if bool((rank("betas", betas, 1) >= 1).any()):
            raise ValueError(f"betas must be below 1, got {betas.max():g}")
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)]))

    @classmethod
    def linear(cls, steps: int, first: float, last: float) -> "NoiseSchedule":
        """β_t evenly spaced from first to last (Ho 2020)."""
        return cls.from_betas(torch.linspace(first, last, whole("steps", steps), dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int, offset: float = 0.008, cap: float = 0.999) -> "NoiseSchedule":
        """γ_t ∝ cos²(½π (t/T + offset)/(1 + offset)), β_t at most cap (Nichol & Dhariwal 2021)."""
        share = torch.arange(whole("steps", steps) + 1, dtype=torch.float64) / steps
        level = ((share + non_negative("offset", offset)) / (1 + offset) * (math.pi / 2)).cos().square()
        return cls.from_betas((1 - level[1:] / level[:-1]).clamp(max=between("cap", cap, 0, 1)))

    @classmethod
    def sigmoid(cls, steps: int, start: float = -3.0, end: float = 3.0, last: float = 1e-6) -> "NoiseSchedule":
        """γ_t falls from 1 to last along σ(−s), s evenly spaced from start to end.

        After Jabri 2023, who clips γ at 1e-9 instead of ending at `last`.
        """
        if not finite("start", start) < finite("end", end):
            raise ValueError(f"end must be above start {start:g}, got {end:g}")
        level = torch.linspace(start, end, whole("steps", steps) + 1, dtype=torch.float64).neg().sigmoid()
        return cls(last + (1 - positive("last", last)) * (level - level[-1]) / (level[0] - level[-1]))

    @classmethod
    def log_linear(cls, steps: int, first: float = 10.0, last: float = -12.0) -> "NoiseSchedule":
        """Log-SNRs evenly spaced from first at t = 1 to last at t = T, after γ_0 = 1."""
        ends = finite("first", first), finite("last", last)
        levels = torch.linspace(*ends, whole("steps", steps), dtype=torch.float64)
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), from_log_snr(levels)]))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.gammas) - 1

    @property
    def alphas(self) -> Tensor:
        """α_t = γ_t / γ_{t−1}, the share of the signal that step t leaves: (T,)."""
        return self.gammas[1:] / self.gammas[:-1]

    @property
    def betas(self) -> Tensor:
        """β_t = 1 − α_t, the variance that step t adds: (T,)."""
        return -self.gammas.diff() / self.gammas[:-1]

    @property
    def posterior_variance(self) -> Tensor:
        """β̃_t = β_t (1 − γ_{t−1}) / (1 − γ_t), the variance of q(y_{t−1} | y_t, y_0): (T,), 0 at t = 1."""
        return self.betas * (1 - self.gammas[:-1]) / (1 - self.gammas[1:])

    @property
    def log_snr(self) -> Tensor:
        """λ_t = ln γ_t / (1 − γ_t): (T + 1,), inf at t = 0."""
        return log_snr(self.gammas)

    def prior_kl(self, second_moment: float) -> float:
        """KL(q(y_T | y_0) ‖ N(0, 1)) at y_0² = second_moment, in bits per dimension.

        It is linear in y_0², so its mean over the data is its value at the mean of y_0².
        The paper's schedule has 0.665 at second_moment = 1 (erratum 12).
        Raises ValueError where second_moment is negative or not finite.
        """
        last = self.gammas[-1]
        nats = (last * (non_negative("second_moment", second_moment) - 1) - torch.log1p(-last)) / 2
        return float(nats) / math.log(2)

    def resample(self, steps: int, spacing: str = "time", first: float | None = None) -> "NoiseSchedule":
        """A schedule of fewer steps from γ_0 to γ_T, for a denoiser that takes γ as an input.

        spacing: "time", γ_0 and then γ_t at whole t, evenly spaced from t = 1 to T; "log-snr", γ_0 and then γ with
            evenly spaced log-SNRs. A single step is γ_0, γ_T.
        first: log-SNR of the first step where the spacing is "log-snr"; None, that of γ_1.
        Raises ValueError where steps is not in 1 … T, or first is not above the log-SNR of γ_T.
        """
        choice("spacing", spacing, ("time", "log-snr"))
        between("steps", whole("steps", steps), 1, self.steps)
        ends = self.gammas[[0, -1]]
        if steps == 1:
            return NoiseSchedule(ends)
        if spacing == "time":
            chosen = torch.linspace(0, self.steps - 1, steps, dtype=torch.float64).round().long() + 1
            return NoiseSchedule(torch.cat([ends[:1], self.gammas[chosen]]))
        highest, lowest = self.log_snr[1].item() if first is None else first, self.log_snr[-1].item()
        if not finite("first", highest) > lowest:
            raise ValueError(f"first must be above the log-SNR {lowest:g} of the last step, got {first:g}")
        between_ends = from_log_snr(torch.linspace(highest, lowest, steps, dtype=torch.float64))[:-1]
        return NoiseSchedule(torch.cat([ends[:1], between_ends, ends[1:]]))

    def trained(self) -> "NoiseSchedule":
        """The same schedule with γ_T replaced by (γ_{T−1} + γ_T)/2, a level that occurs in training.

        `draw_gamma` draws uniformly from the last interval. In the log-SNR that interval may be very long (7 units in
        the cosine schedule of 100 steps), and then hardly any draw comes near γ_T, where sampling would start.
        """
        return NoiseSchedule(torch.cat([self.gammas[:-1], self.gammas[-2:].mean()[None]]))

    def draw_gamma(self, batch: int, generator: torch.Generator) -> Tensor:
        """Levels to train at: t uniform on 1 … T, then γ uniform on (γ_t, γ_{t−1}) (erratum 11).

        Returns (batch,) float64 on the generator's device, at most 1 − 2⁻²⁴, so that the log-SNR is finite after γ
        is rounded to float32 as well. Raises ValueError where batch is not a whole number of at least 1.
        """
        device = generator.device
        t = torch.randint(1, self.steps + 1, (whole("batch", batch),), generator=generator, device=device)
        share = torch.rand(batch, generator=generator, device=device, dtype=widest(device))
        gammas = self.gammas.to(device, share.dtype)
        return torch.lerp(gammas[t], gammas[t - 1], share).clamp(max=BELOW_ONE)


def log_snr(gamma: Tensor) -> Tensor:
    """λ = ln γ/(1 − γ), the logarithm of the signal-to-noise ratio at y_0² = 1: any shape, inf at γ = 1."""
    return between("gamma", gamma, 0, 1).logit()


def from_log_snr(log_snr: Tensor) -> Tensor:
    """γ = 1/(1 + exp(−λ)): any shape."""
    return log_snr.sigmoid()


def widest(device: torch.device) -> torch.dtype:
    """The widest real type of a device: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64
