"""Fisher information and Cramér-Rao bounds of localization (Eq. 3), from the pixel to the emitter."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._validate import finite, instance, non_negative, tensor
from ..imaging.camera import Camera, check_frame_size
from ..imaging.psf import AnyPSF, Emitters, expected_photons, rate_gradient
from .closed_forms import mortensen_least_squares, mortensen_mle, rieger_stallinga, thompson
from .mixture import mixture

__all__ = [
    "bound",
    "exact_pixel_information",
    "fisher_information",
    "localization_bound",
    "mortensen_least_squares",
    "mortensen_mle",
    "rieger_stallinga",
    "surrogate_pixel_information",
    "thompson",
]

TAIL_DEPTH = 30.0  # the quadrature leaves out about exp(−30), 1e-13, of its integrand
STEP_DEPTH = 25.0  # the steps are chosen so that their error is about exp(−25), by the rough estimate in `_steps`
AGREEMENT = 1e-4  # required between a full sum and its halves; the error of a full sum is about the square of it
NODES = 1 << 18  # quadrature nodes in memory: some 2 MB for each of their tensors
DARK = 1e-150  # a derivative smaller than this has a square of 0: the pixel does not depend on the parameter
FAINTEST = 1e-290  # smallest rate of the quadrature, e-
SINGULAR = 1e-13  # pivot, relative to the diagonal, below which a Cholesky factor is rounding noise


def surrogate_pixel_information(rate: float | Tensor, camera: Camera) -> Tensor:
    """Information of one pixel about ω under the surrogate: 1/ω' = 1/(ω + var/g²), which is 1/Var(x').

    rate: ω ≥ 0 in photo-electrons. Returns the shape it broadcasts to with the camera's maps, e-⁻², float64;
    inf where ω' = 0. By Cauchy-Schwarz it never exceeds exact_pixel_information (erratum 3).
    Raises ValueError where the rate is negative, not finite, or has another size than the camera's maps.
    """
    rate, v = _rate_and_variance(rate, camera)
    return 1 / (rate + v)


def exact_pixel_information(rate: float | Tensor, camera: Camera) -> Tensor:
    """Information of one pixel about ω under the mixture of Eq. 1: E[(∂ log p(x | ω)/∂ω)²].

    Arguments, shape and errors as surrogate_pixel_information. Relative error below 1e-9 (see `_integrate`).
    Limits: (exp(1/v) − 1) e-⁻² at ω = 0, v = var/g² (inf where that overflows), and 1/ω without read noise.
    """
    rate, v = _rate_and_variance(rate, camera)
    information = torch.where(v > 0, torch.expm1(1 / v), 1 / rate)
    noisy = (rate > 0) & (v > 0)
    if bool(noisy.any()):
        information[noisy] = _integrate(rate[noisy].clamp(min=FAINTEST), v[noisy])
    return information


def fisher_information(gradient: Tensor, pixel_information: Tensor) -> Tensor:
    """Fisher information of the parameters, Eq. 3: I_ij = Σ_k ∂ω_k/∂θ_i ∂ω_k/∂θ_j I_k.

    gradient: (B, P, H, W) ∂ω/∂θ; pixel_information: I_k, (B, H, W) or (H, W), from one of the two functions above.
    Returns (B, P, P), float64, symmetric. A pixel that no parameter moves adds nothing, even at ω' = 0.
    Raises ValueError where ranks or sizes differ, an entry is not finite or negative, or the information of a
    pixel that a parameter moves is infinite (a rate of 0 and no read noise: leave such an emitter out).
    """
    gradient = tensor("gradient", finite("gradient", gradient), 4)
    pixel_information = tensor("pixel_information", pixel_information, 2, 3)
    if pixel_information.shape[-2:] != gradient.shape[-2:] or (
        pixel_information.ndim == 3 and pixel_information.shape[0] not in (1, gradient.shape[0])
    ):
        raise ValueError(
            f"pixel_information must have the batch and the size of gradient, {tuple(gradient.shape)}, "
            f"got {tuple(pixel_information.shape)}"
        )
    g = gradient.to(torch.float64)
    weight = pixel_information.to(g).expand(g.shape[0], *g.shape[-2:])
    if bool((torch.isnan(weight) | (weight < 0)).any()):
        raise ValueError("pixel_information must not be negative or NaN")
    moved = (g.abs() > DARK).any(1)  # (B, H, W)
    endless = (torch.isinf(weight) & moved).flatten(1).any(1)
    if bool(endless.any()):
        raise ValueError(
            f"pixel_information must be finite where a parameter moves a pixel, got inf in batch entry "
            f"{int(endless.nonzero()[0])}: a rate of 0 without read noise"
        )
    weight = torch.where(torch.isinf(weight), 0.0, weight)
    half = (g * weight.sqrt()[:, None]).flatten(2)  # (B, P, H W)
    information = half @ half.mT  # (B, P, P)
    return (information + information.mT) / 2  # by rounding, the product is not exactly symmetric


def bound(information: Tensor) -> Tensor:
    """Cramér-Rao bound on the standard deviation of unbiased estimators: √ diag I⁻¹ (erratum 4).

    information: (B, P, P) or (P, P), symmetric. Returns (B, P) or (P,), each in the unit of its parameter.
    The matrix is first scaled to a unit diagonal, so that parameters of very different units do no harm.
    Raises ValueError where the matrix is not symmetric, or singular: a parameter without information, or
    parameters that the image cannot tell apart, such as two emitters at the same place.
    """
    matrix = tensor("information", finite("information", information), 2, 3).to(torch.float64)
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"information must be square, got {tuple(matrix.shape)}")
    shape, matrix = matrix.shape, matrix[None] if matrix.ndim == 2 else matrix  # (B, P, P)
    diagonal = matrix.diagonal(dim1=1, dim2=2)  # (B, P)
    if not bool((diagonal > 0).all()):
        entry, parameter = (int(i) for i in (~(diagonal > 0)).nonzero()[0])
        raise ValueError(
            f"information is singular in batch entry {entry}: parameter {parameter} has none; "
            "the emitter is absent, has no photons, or lies far outside the window"
        )
    scale = diagonal.rsqrt()
    scaled = scale[:, :, None] * matrix * scale[:, None, :]
    if not torch.allclose(scaled, scaled.mT, rtol=0, atol=1e-8):
        raise ValueError("information must be symmetric")
    factor, failed = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=1, dim2=2) ** 2
    bad = (failed > 0) | (pivots < SINGULAR * matrix.shape[-1]).any(1)
    if bool(bad.any()):
        entry = int(bad.nonzero()[0])
        direction = torch.linalg.eigh(scaled[entry])[1][:, 0].abs()  # that the image does not determine
        names = direction.gt(0.1 * direction.max()).nonzero().flatten().tolist()
        raise ValueError(
            f"information is singular in batch entry {entry}: the image does not tell parameters {names} apart "
            "(two emitters at the same place, or more parameters than pixels)"
        )
    inverse = torch.linalg.solve_triangular(factor, torch.eye(matrix.shape[-1]).to(scaled), upper=False)
    deviations = inverse.square().sum(1).sqrt() * scale  # diag I⁻¹ = column norms of L⁻¹
    return deviations.reshape(shape[:-1])


def localization_bound(
    emitters: Emitters,
    psf: AnyPSF,
    camera: Camera,
    shape: tuple[int, int],
    background: float | Tensor = 0.0,
    parameters: Sequence[str] = ("u", "v", "photons", "background"),
    exact: bool = False,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """Cramér-Rao bound of every parameter of every emitter in a frame, all estimated together.

    emitters, psf, shape, background, parameters, origin: as for psf.expected_photons and psf.rate_gradient. All
    other quantities count as known. Intensities are photons at the sensor: the camera's quantum efficiency
    turns them into photo-electrons. exact: of the mixture (Eq. 1) instead of the surrogate (Eq. 2).
    Returns (B, P) standard deviations, float64, in rate_gradient's order: (u_1, v_1, N_1, u_2, …, b), px and
    photons; inf for the parameters of emitters that are not present.
    Raises ValueError as bound and the functions of psf do.
    """
    emitters = instance("emitters", emitters, Emitters).to(dtype=torch.float64)
    instance("camera", camera, Camera)
    rate = camera.quantum_efficiency * expected_photons(emitters, psf, shape, background, origin)  # (B, H, W)
    gradient = camera.quantum_efficiency * rate_gradient(emitters, psf, shape, parameters, origin)
    pixel = exact_pixel_information if exact else surrogate_pixel_information
    information = fisher_information(gradient, pixel(rate, camera))  # (B, P, P)
    shared = int("background" in parameters)
    own = (information.shape[-1] - shared) // max(1, emitters.u.shape[1])
    absent = ~emitters.mask.repeat_interleave(own, dim=1)  # (B, E · own)
    absent = torch.nn.functional.pad(absent, (0, shared))  # (B, P)
    deviations = bound(information + torch.diag_embed(absent.to(information)))  # absent rows are zero: decouple
    return torch.where(absent, torch.inf, deviations)


# The quadrature. Let F = p · score² on the axis of z, which p(z | ω) makes a lattice of bumps of width √v, one per
# whole number, under an envelope of width √(ω + v). ∫F = ∫_0^1 Σ_q F(q + ε) dε over whole q. The inner sum has
# period 1 in ε, so M equal steps in ε converge exponentially; at a fixed ε the terms follow the smooth envelope,
# so every J-th q is enough, with J about half its width. Both errors fall like exp(−const/step): the nearest
# singularities of F are the zeros of p, at a height π v above the points where two neighbouring bumps cross,
# which gives exp(−2π² v M), times the size of F there. Each sum is compared with its halves, every second
# phase and every second q; where they differ by more than AGREEMENT the nodes are doubled.


def _integrate(rate: Tensor, v: Tensor) -> Tensor:
    """E[score²] for 1-D tensors of rates > 0 and variances > 0 (e-²), with its error controlled."""
    phases, stride = _steps(rate, v)
    result, todo = torch.empty_like(rate), torch.arange(rate.numel(), device=rate.device)
    for _ in range(5):
        sums = _sums(rate[todo], v[todo], phases[todo], stride[todo])  # (n, 3): full and two halves
        rough = (sums[:, 1:] / sums[:, :1] - 1).abs() > AGREEMENT  # (n, 2)
        result[todo] = sums[:, 0]
        todo, rough = todo[rough.any(1)], rough[rough.any(1)]
        if not len(todo):
            return result
        phases[todo] *= 1 + rough[:, 0].long()
        stride[todo] //= 1 + rough[:, 1].long()
    raise ValueError(
        f"rate: the information did not converge for a rate of {rate[todo[0]]:g} e- "
        f"and a read variance of {v[todo[0]]:g} e-²"
    )


def _steps(rate: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """M and J: phases in a unit cell, and the stride over whole numbers of electrons."""
    crossing = (0.5 - v * (-rate.log()).clamp(min=0)).clamp(min=0)  # distance of the bumps' crossing from a bump
    depth = (STEP_DEPTH - crossing**2 / (2 * v)).clamp(min=1e-3)
    step = torch.minimum(2 * math.pi**2 * v / depth, (0.5 * v).sqrt())
    phases = torch.where(step >= 1, 1, 2 * (0.5 / step).ceil()).long()
    return phases, (0.5 * (rate + v).sqrt()).long().clamp(min=1)


def _sums(rate: Tensor, v: Tensor, phases: Tensor, stride: Tensor) -> Tensor:
    width = rate + v  # variance of z; beyond these ends Bernstein's inequality bounds the tails
    low = (rate - (2 * TAIL_DEPTH * width).sqrt()).floor() - 2
    high = rate + 4 + TAIL_DEPTH / 3 + (TAIL_DEPTH**2 / 9 + 2 * TAIL_DEPTH * width).sqrt()
    nodes = phases * (((high - low) / stride).ceil().long() + 1)
    out = []
    for block in _blocks(nodes.tolist()):
        count = nodes[block]
        pixel = torch.repeat_interleave(count)  # (nodes,)
        index = torch.arange(len(pixel), device=rate.device) - (count.cumsum(0) - count)[pixel]
        p = phases[block][pixel]
        jump, phase = index // p, index % p
        z = low[block][pixel] + stride[block][pixel] * jump + phase.to(v) / p
        w = rate[block][pixel]
        log_density, excess = mixture(z, torch.zeros_like(z), w, v[block][pixel])
        integrand = torch.exp(log_density + 2 * (excess / w).abs().log()) * stride[block][pixel] / p
        even_phase = torch.where(p == 1, integrand, 2 * integrand * (phase % 2 == 0))
        even_jump = torch.where(stride[block][pixel] == 1, integrand, 2 * integrand * (jump % 2 == 0))
        parts = torch.stack([integrand, even_phase, even_jump], 1)  # (nodes, 3)
        out.append(torch.zeros(len(count), 3).to(parts).index_add_(0, pixel, parts))
    return torch.cat(out)


def _blocks(sizes: list[int]):
    """Slices of consecutive pixels with at most NODES nodes together (or one pixel)."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > NODES:
            yield slice(start, i)
            start, total = i, 0
        total += size
    yield slice(start, len(sizes))


def _rate_and_variance(rate: float | Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """ω and v = var/g² in photo-electrons, broadcast, float64."""
    rate = tensor("rate", non_negative("rate", rate)).to(torch.float64)
    if rate.ndim >= 2:
        check_frame_size("rate", rate, camera)
    variance = instance("camera", camera, Camera).read_variance_electrons
    variance = torch.as_tensor(variance, dtype=torch.float64, device=rate.device)
    if rate.ndim == 1 and variance.ndim == 2:
        raise ValueError(
            f"rate must be a number or (..., H, W) where the camera has maps, got shape {tuple(rate.shape)}"
        )
    shape = torch.broadcast_shapes(rate.shape, variance.shape)
    return rate.expand(shape), variance.expand(shape)
