"""One step back: mean and variance of p(y_{t−1} | y_t), for any estimate of y_0 (Eq. 6 and 7).

The mean follows from the estimate alone. The variance is a choice, and since the steps' variances add up to the spread
of the samples, it is a choice of the uncertainty that the method reports.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._validate import choice, non_negative
from .diffusion import per_row, q_posterior

# y_t (B, ...), γ (B,), what is known -> estimate of y_0 (B, ...)
Denoise = Callable[[Tensor, Tensor, Any], Tensor]
# y_t, estimate of y_0, γ_t, γ_{t−1}, what is known -> variance of y_{t−1} that multiplies y_t
ReverseVariance = Callable[[Tensor, Tensor, Tensor, Tensor, Any], Tensor]
# a number, a tensor that multiplies y_t, or a function of y_t, γ_t and what is known
DataVariance = float | Tensor | Callable[[Tensor, Tensor, Any], Tensor]

VARIANCES = ("beta", "posterior", "optimal")


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
    gamma, gamma_before: (B,), γ_t < γ_{t−1} ≤ 1.
    variance: "beta", β_t, right for data of variance 1; "posterior", β̃_t, right for variance 0; "optimal",
        β̃_t + (√γ_{t−1} β_t/(1 − γ_t))² Var(y_0 | y_t), that of q(y_{t−1} | y_t) (Bao 2022); or a function,
        for a variance that was learned.
    data_variance: what "optimal" needs. A function (y_t, gamma, cond) gives Var(y_0 | y_t) itself. A number or a
        tensor that multiplies y_t is the variance v of y_0 before y_t is seen; then Var(y_0 | y_t) is
        v (1 − γ)/(γ v + 1 − γ), exact for pixels that are independent and Gaussian, else no less than the mean of the
        true one (it is what the best linear estimate leaves).
    Raises ValueError for another variance, one that is negative or not finite, or data_variance without its use.
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
