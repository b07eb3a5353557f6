"""How likely a raw pixel value is: the exact Poisson-Gaussian mixture and its surrogate (Eq. 1 and 2).

A pixel reads x = g q + o + noise ADU, with q ~ Poisson(ω) photo-electrons and noise ~ Normal(0, var). All
functions act element by element on shapes that broadcast, in float64, and work in photo-electrons inside:
z = (x − o)/g and v = var/g². None of them models rounding to whole ADU (it adds about 1/12 ADU² to var) or
saturation (leave such pixels out).
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._validate import between, finite, instance, non_negative, tensor
from ..imaging.camera import Camera
from .mixture import SCORE_TOLERANCE, electrons, mixture, score

Value = float | Tensor
EDGE = -0.5  # below this x', the surrogate's log Γ(x' + 1) is replaced by its tangent: half-way to its pole at −1
SLOPE = -1.9635100260214235  # of that tangent: ψ(1/2) = −γ − 2 log 2


def exact_log_likelihood(x: Value, rate: Value, camera: Camera, tolerance: float = 1e-10) -> Tensor:
    """Log-density of the Poisson-Gaussian mixture, Eq. 1 with its exponent squared and A = 1 (erratum 1).

    log p(x | ω) = log Σ_q Poisson(q; ω) Normal(x; g q + o, var), in nats, density per ADU.

    x: ADU; rate: ω ≥ 0 in photo-electrons. Returns their broadcast shape with the camera's maps, float64.
    tolerance: largest relative error of the sum from leaving out terms, proven in `mixture`. Rounding adds a
        few units in the last place of the result: below 1e-10 where |log p| < 1e5.
    Differentiable once, in x and in rate.
    Raises ValueError where x or rate is not finite, rate is negative, shapes do not broadcast, or the read
    variance is 0: x then has no density, and (x − o)/g is a Poisson count, whose exact log-probability is
    surrogate_log_likelihood.
    """
    between("tolerance", tolerance, 1e-300, 0.5)
    x, rate, gain, offset, variance = _arguments(x, rate, camera)
    _noisy(variance)
    return _ExactLogLikelihood.apply(x, rate, gain, offset, variance, tolerance)  # type: ignore[return-value]


def exact_score(x: Value, rate: Value, camera: Camera) -> Tensor:
    """∂ log p(x | ω)/∂ω of the mixture: E[q | x]/ω − 1, per photo-electron.

    Arguments, shapes and errors as exact_log_likelihood. At ω = 0 it is the limit,
    p(x | q = 1)/p(x | q = 0) − 1, which is inf where it exceeds the largest float64.
    """
    x, rate, gain, offset, variance = _arguments(x, rate, camera)
    _noisy(variance)
    with torch.no_grad():
        z, rest, v = electrons(x, gain, offset, variance)
        return score(mixture(z, rest, rate, v, SCORE_TOLERANCE)[1], z, rate, v)


def surrogate_counts(x: Value, camera: Camera) -> Tensor:
    """The shifted counts x' = (x − o)/g + var/g², Eq. 2 with the gain (erratum 2).

    Their mean and their variance are both ω + var/g².
    x: ADU. Returns photo-electrons, float64. Values below 0 stay: setting them to 0 would bias the mean.
    """
    x, _, gain, offset, variance = _arguments(x, 0.0, camera)
    return (x - offset) / gain + variance / gain**2


def surrogate_log_likelihood(x: Value, rate: Value, camera: Camera) -> Tensor:
    """Log-likelihood of x' as if it were Poisson(ω + var/g²), Eq. 2 with the gain.

    x' log ω' − ω' − log Γ(x' + 1), in nats, per photo-electron (subtract log g for a density per ADU).

    x: ADU; rate: ω ≥ 0 in photo-electrons. Returns the broadcast shape, float64; differentiable.
    Γ has poles at x' = −1, −2, …: below x' = −1/2, log Γ(x' + 1) is replaced by its tangent there. That term does
    not depend on ω, so score and information do not change. Where ω' = 0 the result is −inf except at x' = 0.
    Raises ValueError where x or rate is not finite, rate is negative, or shapes do not broadcast.
    """
    counts, rate = _surrogate(x, rate, camera)
    log_rate = torch.where(rate > 0, rate, 1.0).log()
    data = torch.where(rate > 0, counts * log_rate, torch.where(counts == 0, 0.0, -torch.inf))
    constant = torch.lgamma(counts.clamp(min=EDGE) + 1) + SLOPE * (counts - EDGE).clamp(max=0)
    return data - rate - constant


def surrogate_score(x: Value, rate: Value, camera: Camera) -> Tensor:
    """∂/∂ω of surrogate_log_likelihood: x'/ω' − 1, per photo-electron.

    Arguments, shapes and errors as there. Where ω' = 0: −1 for x' = 0 and ±inf otherwise.
    """
    counts, rate = _surrogate(x, rate, camera)
    return torch.where(counts == 0, 0.0, counts / rate) - 1


def deviance(x: Value, rate: Value, camera: Camera) -> Tensor:
    """Poisson deviance of a pixel, 2 [x' log(x'/ω') − (x' − ω')]: about 1 on average where the rate is right.

    x: ADU; rate: ω ≥ 0 in photo-electrons. Returns the broadcast shape, float64, ≥ 0.
    Where x' ≤ 0 the logarithmic term is left out, as its limit at 0 is 0: 2 (ω' − x'), continuous and growing
    with −x' (Laurence and Chromy 2010, Nature Methods 7:338, do so at 0). Where ω' = 0: inf for x' > 0.
    Raises ValueError where x or rate is not finite, rate is negative, or shapes do not broadcast.
    """
    counts, rate = _surrogate(x, rate, camera)
    excess = torch.where(rate > 0, (counts - rate) / torch.where(rate > 0, rate, 1.0), torch.inf)
    above = rate * torch.special.xlog1py(1 + excess, excess) - (counts - rate)
    above = torch.where(rate > 0, above, torch.inf)
    return 2 * torch.where(counts > 0, above, rate - counts).clamp(min=0)  # rounding may give −1e-17


class _ExactLogLikelihood(torch.autograd.Function):
    """The mixture's log-density with its closed-form derivatives, so that autograd does not go through the sum."""

    @staticmethod
    def forward(ctx, x, rate, gain, offset, variance, tolerance):
        z, rest, v = electrons(x, gain, offset, variance)
        wanted = any(ctx.needs_input_grad[:2])
        log_density, excess = mixture(z, rest, rate, v, SCORE_TOLERANCE if wanted else tolerance)
        if wanted:
            by_x = ((rate - z) - rest + excess) / (v * gain)  # −E[z − q | z]/v, per ADU
            ctx.save_for_backward(by_x, score(excess, z, rate, v))
        return log_density - gain.log()

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[override]
        by_x, by_rate = ctx.saved_tensors
        return grads[0] * by_x, grads[0] * by_rate, None, None, None, None


def _surrogate(x: Value, rate: Value, camera: Camera) -> tuple[Tensor, Tensor]:
    """x' and ω', broadcast."""
    x, rate, gain, offset, variance = _arguments(x, rate, camera)
    v = variance / gain**2
    return (x - offset) / gain + v, rate + v


def _noisy(variance: Tensor) -> None:
    if not bool((variance > 0).all()):
        count = int((variance == 0).sum())
        raise ValueError(
            f"camera.read_variance must be positive for the exact mixture, got 0 in {count} pixels "
            "asked for; without read noise (x - offset)/gain is a Poisson count and the surrogate is exact"
        )


def _arguments(x: Value, rate: Value, camera: Camera) -> tuple[Tensor, ...]:
    """x, rate, gain, offset and read variance: checked, broadcast, float64, on the device of x or of rate."""
    device = next((t.device for t in (x, rate) if isinstance(t, Tensor)), None)
    instance("camera", camera, Camera)
    values = {"x": finite("x", x), "rate": non_negative("rate", rate)}
    values |= {name: getattr(camera, name) for name in ("gain", "offset", "read_variance")}
    tensors = [tensor(name, value).to(device, torch.float64) for name, value in values.items()]
    try:
        return torch.broadcast_tensors(*tensors)  # type: ignore[return-value]
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(values, tensors, strict=True))
        raise ValueError(f"x, rate and the camera's maps must have shapes that broadcast, got {shapes}") from error
