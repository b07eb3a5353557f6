"""The forward and the reverse process, what a denoiser may predict, and its loss.

Images y have shape (B, ...) of any rank; γ is one number for each row, (B,). The arithmetic on γ is done in γ's own
type, and the result has the images' type.

Forward (Eq. 4 and 5): `q_step`, `q_sample`, and by Bayes' rule `q_posterior`. Reverse (Eq. 6 and 7): `reverse_step`,
mean and variance of p(y_{t−1} | y_t) for any estimate of y_0. The mean follows from the estimate alone. The variance
is a choice, and since the steps' variances add up to the spread of the samples, it is a choice of the uncertainty that
the method reports.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._validate import between, choice, non_negative, rank
from .schedule import log_snr

KINDS = ("noise", "x0", "v")
WEIGHTS = ("uniform", "min-snr")
VARIANCES = ("beta", "posterior", "optimal")
SNR_CAP = 5.0  # of the min-SNR weights, the value that Hang 2023 recommends

Weight = str | Callable[[Tensor], Tensor]  # log-SNR (B,) -> weight of the squared error (B,)
# y_t (B, ...), γ (B,), condition -> estimate of y_0 (B, ...)
Denoise = Callable[[Tensor, Tensor, Any], Tensor]
# y_t, estimate of y_0, γ_t, γ_{t−1}, condition -> variance of y_{t−1}, in a shape that multiplies y_t
ReverseVariance = Callable[[Tensor, Tensor, Tensor, Tensor, Any], Tensor]
# a number, a tensor that multiplies y_t, or a function of y_t, γ_t and the condition
DataVariance = float | Tensor | Callable[[Tensor, Tensor, Any], Tensor]


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
    """What a denoiser of this kind has to predict from y_t = √γ y_0 + √(1 − γ) ε: (B, ...).

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


def denoising_error(kind: str, output: Tensor, y0: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """(output − target)², the squared norm of Eq. 9 pixel by pixel: (B, ...).

    output, y0, noise: (B, ...); gamma: (B,) in [0, 1]. Raises ValueError for another kind, shape or range.
    """
    if output.shape != y0.shape:  # broadcasting would hide it
        raise ValueError(f"output must have the shape of y0, {tuple(y0.shape)}, got {tuple(output.shape)}")
    return (output - target(kind, y0, noise, gamma)).square()


def denoising_loss(
    kind: str, output: Tensor, y0: Tensor, noise: Tensor, gamma: Tensor, weight: Weight = "uniform"
) -> Tensor:
    """Mean over the batch of weight · mean over the pixels of `denoising_error` (Eq. 9, erratum 11): ().

    output, y0, noise: (B, ...); gamma: (B,) in (0, 1). Raises ValueError for another kind, weight, shape or range.
    """
    error = denoising_error(kind, output, y0, noise, gamma)
    row = error.reshape(len(error), -1).mean(1)  # (B,)
    return (loss_weight(kind, log_snr(gamma), weight).to(row.dtype) * row).mean()


def reverse_step(
    y_t: Tensor,
    estimate: Tensor,
    gamma: Tensor,
    gamma_before: Tensor,
    cond: Any = None,
    variance: str | ReverseVariance = "beta",
    data_variance: DataVariance | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance, in a shape that multiplies it, of p(y_{t−1} | y_t) (Eq. 6 and 7).

    The mean is that of q(y_{t−1} | y_t, y_0) with the estimate in the place of y_0, which is Eq. 7 written with y_0.
    gamma, gamma_before: (B,), γ_t < γ_{t−1} ≤ 1. cond: the condition, handed to variance and data_variance.
    variance: "beta", β_t, right for data of variance 1; "posterior", β̃_t, right for variance 0; "optimal",
        β̃_t + (√γ_{t−1} β_t/(1 − γ_t))² Var(y_0 | y_t), that of q(y_{t−1} | y_t) (Bao 2022); or a function,
        for a variance that was learned.
    data_variance: needed for "optimal". A function (y_t, gamma, cond) gives Var(y_0 | y_t) itself. A number or a
        tensor that multiplies y_t is the prior variance v of y_0; then Var(y_0 | y_t) is v (1 − γ)/(γ v + 1 − γ),
        the error of the best linear estimate: exact where pixels are independent and Gaussian, otherwise at least
        the mean of the true one.
    Raises ValueError for another variance, one that is negative or not finite, or data_variance with another variance.
    """
    if not callable(variance):
        choice("variance", variance, VARIANCES)
    if (variance == "optimal") != (data_variance is not None):
        raise ValueError(f"data_variance must be given where variance is 'optimal' and only there, got {data_variance}")
    mean, tilde = q_posterior(estimate, y_t, gamma, gamma_before)
    if callable(variance):
        return mean, non_negative("variance", variance(y_t, estimate, gamma, gamma_before, cond))
    if variance == "posterior":
        return mean, tilde
    beta = (gamma_before - gamma) / gamma_before
    if data_variance is None:
        return mean, per_row(beta, y_t)
    left = posterior_variance(data_variance, y_t, gamma, cond)
    return mean, tilde + per_row(gamma_before * (beta / (1 - gamma)).square(), y_t) * left


def posterior_variance(data_variance: DataVariance, y_t: Tensor, gamma: Tensor, cond: Any = None) -> Tensor:
    """Var(y_0 | y_t) by the rule that `reverse_step` states, in a shape that multiplies y_t.

    Raises ValueError where it, or the data's variance, is negative or not finite.
    """
    if callable(data_variance):
        return non_negative("data_variance", data_variance(y_t, gamma, cond))
    v = non_negative("data_variance", data_variance)
    left = per_row(1 - gamma, y_t)
    return v * left / (per_row(gamma, y_t) * v + left)


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
