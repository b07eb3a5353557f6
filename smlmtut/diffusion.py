"""Diffusion without a network: the forward process, its posterior, what a network may predict, and the loss.

Images y have shape (B, ...) of any rank; γ is one number for each row, (B,). The arithmetic on γ is done in γ's own
type, and the result has the images' type.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ._validate import between, choice, rank
from .schedule import NoiseSchedule, from_log_snr, log_snr

__all__ = [
    "KINDS", "NoiseSchedule", "denoising_loss", "from_log_snr", "log_snr", "loss_weight", "per_row", "q_posterior",
    "q_sample", "q_step", "target", "to_noise", "to_x0",
]  # fmt: skip

KINDS = ("noise", "x0", "v")
WEIGHTS = ("uniform", "min-snr")
SNR_CAP = 5.0  # of min-SNR weights (Hang 2023)

Weight = str | Callable[[Tensor], Tensor]  # log-SNR (B,) -> weight of the squared error (B,)


def q_step(y_before: Tensor, beta: Tensor, noise: Tensor) -> Tensor:
    """One step of the forward process, y_t ~ N(√(1 − β_t) y_{t−1}, β_t I) (Eq. 4): (B, ...).

    beta: (B,) in [0, 1]. noise: standard normal, like y_before. Raises ValueError for another shape or range.
    """
    return q_sample(y_before, 1 - between("beta", beta, 0, 1), noise)


def q_sample(y0: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """All steps at once, y_t ~ N(√γ y_0, (1 − γ) I) (Eq. 5 and 8): (B, ...).

    gamma: (B,) in [0, 1]. noise: standard normal, like y0. Raises ValueError for another shape or range.
    """
    signal, spread = _levels(gamma, y0, noise)
    return signal * y0 + spread * noise


def q_posterior(y0: Tensor, y_t: Tensor, gamma: Tensor, gamma_before: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance (B, 1, …) of q(y_{t−1} | y_t, y_0), by Bayes' rule from Eq. 4 and 5.

    gamma, gamma_before: (B,), γ_t < γ_{t−1} ≤ 1, of any two levels: they need not be neighbours.
    Raises ValueError for another shape or order.
    """
    between("gamma_before", gamma_before, 0, 1)
    if not bool((between("gamma", gamma, 0, 1) < gamma_before).all()):
        raise ValueError(f"gamma must be below gamma_before {gamma_before.tolist()}, got {gamma.tolist()}")
    _levels(gamma, y0, y_t)
    beta = (gamma_before - gamma) / gamma_before
    of_y0 = gamma_before.sqrt() * beta / (1 - gamma)
    of_y_t = (gamma / gamma_before).sqrt() * (1 - gamma_before) / (1 - gamma)
    variance = beta * (1 - gamma_before) / (1 - gamma)
    of_y0, of_y_t, variance = (per_row(x, y0) for x in (of_y0, of_y_t, variance))
    return of_y0 * y0 + of_y_t * y_t, variance


def target(kind: str, y0: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """What a network of this kind has to predict from y_t = √γ y_0 + √(1 − γ) ε: (B, ...).

    kind: "noise", ε; "x0", y_0; "v", √γ ε − √(1 − γ) y_0 (Salimans & Ho 2022). gamma: (B,) in [0, 1].
    Raises ValueError for another kind, shape or range.
    """
    choice("kind", kind, KINDS)
    signal, spread = _levels(gamma, y0, noise)
    if kind == "v":
        return signal * noise - spread * y0
    return noise if kind == "noise" else y0


def to_x0(kind: str, output: Tensor, y_t: Tensor, gamma: Tensor) -> Tensor:
    """The estimate of y_0 that an output of this kind amounts to: (B, ...).

    gamma: (B,) in [0, 1]; above 0 for "noise". Raises ValueError for another kind, shape or range.
    """
    choice("kind", kind, KINDS)
    signal, spread = _levels(gamma, y_t, output)
    if kind == "v":
        return signal * y_t - spread * output
    if kind == "x0":
        return output
    _exclude(gamma, 0, "y_0 does not follow from the noise at 0")
    return (y_t - spread * output) / signal


def to_noise(kind: str, output: Tensor, y_t: Tensor, gamma: Tensor) -> Tensor:
    """The estimate of ε that an output of this kind amounts to: (B, ...).

    gamma: (B,) in [0, 1]; below 1 for "x0". Raises ValueError for another kind, shape or range.
    """
    choice("kind", kind, KINDS)
    signal, spread = _levels(gamma, y_t, output)
    if kind == "v":
        return spread * y_t + signal * output
    if kind == "noise":
        return output
    _exclude(gamma, 1, "the noise does not follow from y_0 at 1")
    return (y_t - signal * output) / spread


def loss_weight(kind: str, log_snr: Tensor, weight: Weight = "uniform") -> Tensor:
    """Weight of the squared error of a kind's own target at these log-SNRs: (B,).

    weight: "uniform", 1; "min-snr", the error of y_0 times min(SNR, 5) (Hang 2023); or a function of the log-SNR.
    Raises ValueError for another kind or weight.
    """
    choice("kind", kind, KINDS)
    if callable(weight):
        return weight(log_snr)
    if choice("weight", weight, WEIGHTS) == "uniform":
        return torch.ones_like(log_snr)
    snr = log_snr.exp()
    capped = snr.clamp(max=SNR_CAP)
    # error of y_0 = error of the noise / √SNR = error of v / √(1 + SNR)
    return capped / {"noise": snr, "x0": torch.ones_like(snr), "v": 1 + snr}[kind]


def denoising_loss(
    kind: str, output: Tensor, y0: Tensor, noise: Tensor, gamma: Tensor, weight: Weight = "uniform"
) -> Tensor:
    """Mean over the batch of weight · mean over the pixels of (output − target)² (Eq. 9, erratum 11): ().

    output, y0, noise: (B, ...); gamma: (B,) in (0, 1). Raises ValueError for another kind, weight, shape or range.
    """
    if output.shape != y0.shape:  # subtraction would spread it
        raise ValueError(f"output must have the shape of y0, {tuple(y0.shape)}, got {tuple(output.shape)}")
    error = output - target(kind, y0, noise, gamma)
    row = error.square().reshape(len(error), -1).mean(1)  # (B,)
    return (loss_weight(kind, log_snr(gamma), weight).to(row.dtype) * row).mean()


def _levels(gamma: Tensor, images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """√γ and √(1 − γ) in a shape that multiplies images (B, ...)."""
    if others.shape != images.shape:
        raise ValueError(f"images must have one shape, got {tuple(images.shape)} and {tuple(others.shape)}")
    if rank("gamma", gamma, 1).shape != images.shape[:1]:
        raise ValueError(f"gamma must have shape ({len(images)},), one number an image, got {tuple(gamma.shape)}")
    between("gamma", gamma, 0, 1)
    return per_row(gamma.sqrt(), images), per_row((1 - gamma).sqrt(), images)


def per_row(numbers: Tensor, images: Tensor) -> Tensor:
    """(B,) as (B, 1, …), which multiplies images (B, ...), in the images' type."""
    return numbers.reshape(-1, *(1,) * (images.ndim - 1)).to(images.dtype)


def _exclude(gamma: Tensor, value: float, why: str) -> None:
    if bool((gamma == value).any()):
        raise ValueError(f"gamma must not be {value}: {why}")
