"""Maximum likelihood for isolated spots: batched Fisher scoring with Levenberg-Marquardt damping.

The likelihood is the surrogate of Eq. 2 with the gain divided out: x' = x + var is Poisson with rate
ω' = ω + var, x and ω in photo-electrons, var in photo-electrons². A step solves

    (I + λ diag I) δ = s,    s_i = Σ_k (x'_k/ω'_k − 1) ∂ω_k/∂θ_i,    I_ij = Σ_k ∂ω_k/∂θ_i ∂ω_k/∂θ_j / ω'_k,

with the score s and the Fisher information I of Eq. 3. ∂ω/∂θ is a product of a function of the row and one of the
column, so both sums are taken column by column first. Inside, the batch is the last dimension: (h, w, B).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._memory import fitting
from .._validate import device_here, finite, floating, non_negative, number, positive, tensor, whole
from ..imaging.fast_psf import pixel_factors
from ..imaging.psf import AnyPSF
from . import spot_model

PARAMETERS = ("u", "v", "photons", "background", "sigma")

# What ∂ω/∂θ is made of along a row or column: the pixel integral, its derivatives by position and sigma, and one.
_E, _D, _S, _ONE = range(4)
# ∂ω/∂θ as a sum of products (factor of the row, factor of the column), to be multiplied by N for u, v and sigma.
_TERMS = {
    "u": [(_E, _D)], "v": [(_D, _E)], "photons": [(_E, _E)], "background": [(_ONE, _ONE)],
    "sigma": [(_E, _S), (_S, _E)],
}  # fmt: skip
_PAIRS = [(i, j) for i in range(4) for j in range(i, 4)]


@dataclass(frozen=True)
class Fit:
    """Maximum-likelihood estimates of B spots.

    parameters: names of the P fitted parameters, in the order of the columns of estimate and sd.
    estimate: (B, P): u, v in pixels from the centre of the spot's pixel (0, 0); photons in photo-electrons;
        background in photo-electrons per pixel; sigma, or sigma_u and sigma_v (if fitted), in pixels.
    sd: (B, P) claimed standard deviations, the Cramér–Rao bound at the estimate; inf where it does not exist.
    deviance: (B,) 2 Σ [x' log(x'/ω') − (x' − ω')]; a pixel with x' ≤ 0 adds 2 (ω' − x'), as likelihood.deviance.
    chi_square: (B,) Σ (x' − ω')²/ω', whose mean is the number of pixels minus P if the model holds.
    iterations: (B,) steps tried. converged: (B,) bool; the other rows are the best point found, not an estimate.
    """

    parameters: tuple[str, ...]
    estimate: Tensor
    sd: Tensor
    deviance: Tensor
    chi_square: Tensor
    iterations: Tensor
    converged: Tensor

    def __getattr__(self, name: str) -> Tensor:
        """fit.u, fit.photons, … and the claimed fit.u_sd, fit.photons_sd, …, each (B,)."""
        table, key = ("sd", name.removesuffix("_sd")) if name.endswith("_sd") else ("estimate", name)
        names = self.__dict__.get("parameters", ())  # absent while an instance is being unpickled
        if key not in names:
            raise AttributeError(f"Fit has no {name!r}; fitted parameters: {', '.join(names)}")
        return getattr(self, table)[:, names.index(key)]

    def __len__(self) -> int:
        return self.estimate.shape[0]


def fit_spots(
    spots: Tensor,
    sigma: float = 1.0,
    fit_sigma: bool = False,
    read_variance: float | Tensor = 0.0,
    *,
    psf: AnyPSF | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-2,
    max_iterations: int = 50,
    chunk: int | None = None,
    device: torch.device | str | None = None,
) -> Fit:
    """Fit one emitter and a flat background to every spot, with a round Gaussian PSF or the one given.

    spots: (B, h, w) photo-electrons, float32 or float64, which is also the type of the arithmetic.
    sigma: PSF standard deviation in pixels; where the search starts, if fit_sigma.
    read_variance: photo-electrons²: a float, (h, w) or (B, h, w) (a crop of the sensor's map for every spot).
    psf: another PSF, slower; sigma then does not count, and fit_sigma fits both widths of a PSF from those it has.
    start: (B, P) first guess; None: border mean, sum and centroid.
    tolerance: a fit has converged when its next step is below this share of the claimed sd in every parameter.
    chunk: number of spots fitted at a time, which bounds the memory: about 8 kB a spot in float32 for 11 × 11 pixels.
        None: 8192 on a CPU and 262144 elsewhere, fewer where they would not fit into the free memory of a GPU.
    device: where to compute; None: where spots is. Results come back to the device of spots.
    The search keeps ω' > 0: background ≥ −min(var)/2, photons > 0; 0.2 px ≤ sigma ≤ window; position at most
    one pixel outside the window. A fit that stops at a limit, but for the background, has not converged; nor has one
    whose claimed sd of u or v exceeds the window, in which no number has an sd of more than half its width: a flat
    spot says nothing about the place. With sigma known, that is below 0.01 % of the spots with N = 50 and b ≤ 10.
    Raises ValueError for a value that is not finite, a negative x' without read noise, or a wrong shape.
    """
    count, height, width = (spots := floating("spots", spots, 3)).shape
    if min(height, width) < 3:
        raise ValueError(f"spots must be at least 3 × 3 pixels, got {height} × {width}")
    sigma = float(number("sigma", sigma, positive))
    number("tolerance", tolerance, positive)
    whole("max_iterations", max_iterations)
    device = spots.device if device is None else device_here("device", device)
    each = spots.element_size() * (8 * height * width + 40 * (height + width) + 150)  # bytes a spot, at most
    own = fitting(8192 if device.type == "cpu" or psf is not None else 262144, each, device)
    chunk = whole("chunk", own if chunk is None else chunk)
    variance = tensor("read_variance", non_negative("read_variance", read_variance)).to(spots)
    if tuple(variance.shape) not in ((), (height, width), (count, height, width)):
        raise ValueError(
            f"read_variance must be a number or have shape {(height, width)} or {(count, height, width)}, "
            f"got {tuple(variance.shape)}"
        )
    model, widths = (sigma, [sigma] * bool(fit_sigma)) if psf is None else spot_model.checked(psf, fit_sigma)
    names = PARAMETERS[:4] + ((), PARAMETERS[4:], spot_model.WIDTHS)[len(widths)]
    start = None if start is None else finite("start", tensor("start", start))
    if start is not None and tuple(start.shape) != (count, len(names)):
        raise ValueError(f"start must have shape {(count, len(names))} for {names}, got {tuple(start.shape)}")

    fit = _empty(count, names, spots)
    for first in range(0, count, chunk):
        rows = slice(first, min(first + chunk, count))
        x = finite("spots", spots[rows].to(device))
        var = (variance[rows] if variance.ndim == 3 else variance).to(x.device)
        impossible = (x < 0) & (var == 0)
        if bool(impossible.any()):
            worst = x[impossible].min().item()
            raise ValueError(f"spots must not be negative where read_variance is 0, got {worst:g} photo-electrons")
        wide = x.new_tensor(widths).expand(len(x), -1)
        guess = torch.cat([first_guess(x, sigma, False), wide], 1) if start is None else start[rows].to(x)
        _fit_chunk(fit, first, x, var, guess, model, tolerance, max_iterations)
        counts = x + var  # x'
        if bool((counts < 0).any()):  # the search keeps the term x' log ω' there, the deviance leaves it out
            rate = _rate(fit.estimate[rows].to(x).T, _last(var, x), model)[0].permute(2, 0, 1)
            fit.deviance[rows] += 2 * (counts.clamp(max=0) * rate.log()).sum((1, 2)).to(fit.deviance.device)
    return fit


def first_guess(spots: Tensor, sigma: float, fit_sigma: bool) -> Tensor:
    """(B, P) start of the search: background from the border's mean, photons from the sum, centroid, given sigma."""
    height, width = (spots := floating("spots", spots, 3)).shape[1:]
    edge = torch.ones(height, width, dtype=torch.bool, device=spots.device)
    edge[1:-1, 1:-1] = False
    background = spots[:, edge].mean(1)  # (B,)
    excess = spots - background[:, None, None]
    signal = excess.clamp(min=0)
    rows, columns = (torch.arange(n, dtype=spots.dtype, device=spots.device) for n in (height, width))
    total = signal.sum((1, 2)).clamp(min=torch.finfo(spots.dtype).tiny)
    u, v = signal.sum(1) @ columns / total, signal.sum(2) @ rows / total
    guess = [u, v, excess.sum((1, 2)).clamp(min=1.0), background.clamp(min=1e-3), torch.full_like(u, sigma)]
    return torch.stack(guess[: 4 + fit_sigma], 1)


def _empty(count: int, names: tuple[str, ...], like: Tensor) -> Fit:
    zeros = lambda dtype, *more: torch.zeros(count, *more, dtype=dtype, device=like.device)  # noqa: E731
    (estimate, sd), (deviance, chi_square) = ([zeros(like.dtype, *n) for _ in range(2)] for n in ((len(names),), ()))
    return Fit(names, estimate, sd, deviance, chi_square, zeros(torch.int32), zeros(torch.bool))


def _fit_chunk(
    fit: Fit, first: int, spots: Tensor, variance: Tensor, guess: Tensor, psf: float | AnyPSF, tolerance: float,
    steps: int,
) -> None:  # fmt: skip
    """Damped Fisher scoring on one chunk; fills its rows of fit. A spot leaves the loop when it is done."""
    height, width = spots.shape[1:]
    var = _last(variance, spots)
    x = spots.permute(1, 2, 0) + var  # x' (h, w, B)
    low, high = (limit[: guess.shape[1]] for limit in spot_model.limits(var, height, width))  # (P, B) or (P, 1)
    todo = torch.arange(first, first + len(spots), device=fit.iterations.device)
    theta = guess.T.clamp(low, high)  # (P, B)
    state = (theta, *_evaluate(theta, x, var, psf))
    damping, total = torch.zeros_like(theta[0]), x.abs().sum((0, 1))
    for iteration in range(steps + 1):
        theta, deviance, chi_square, score, information = state
        step, sd = _solve(information, score, damping)
        trial = (theta + step).clamp(low, high)
        small = ((trial - theta).abs() * (1 + 10 * damping) <= tolerance * sd).all(0)  # (B,)
        done = small if iteration < steps else torch.ones_like(small)
        left = slice(None)
        if bool(done.any()):
            if bool((done & (damping > 0)).any()):
                sd = _solve(information, score, torch.zeros_like(damping))[1]  # the claimed sd is without damping
            inside = ((theta > low) & (theta < high))[[0, 1, 2, *range(4, len(theta))]].all(0)
            placed = (sd[0] <= width) & (sd[1] <= height)
            converged = small & inside & placed & sd.isfinite().all(0)
            sd = torch.where(converged, sd, math.inf)
            rows = todo[done.to(todo.device)]
            targets = (fit.estimate, fit.sd, fit.deviance, fit.chi_square, fit.converged)
            for target, value in zip(targets, (theta.T, sd.T, deviance, chi_square, converged), strict=True):
                target[rows] = value[done].to(target.device)
            fit.iterations[rows] = iteration
            if bool(done.all()):
                return
            left = (~done).nonzero()[:, 0]
            todo = todo[left.to(todo.device)]
            x, damping, trial, total = x[..., left], damping[left], trial[:, left], total[left]
            state = tuple(t[..., left] for t in state)
            if var.shape[2] > 1:
                var, low = var[..., left], low[:, left]
        new = (trial, *_evaluate(trial, x, var, psf))
        # the deviance has a rounding error of a few eps Σ|x' − ω'| ≤ eps √(χ² Σω')
        slack = 4 * torch.finfo(x.dtype).eps * (state[2] * total).sqrt()
        gained, predicted = state[1] - new[1] + slack, (step * score).sum(0)[left]  # fall of the deviance
        better = gained >= 0
        state = tuple(torch.where(better, after, before) for after, before in zip(new, state, strict=True))
        damping = _next_damping(damping, gained, predicted)


def _next_damping(damping: Tensor, gained: Tensor, predicted: Tensor) -> Tensor:
    """λ of the next step: smaller where the deviance fell about as predicted, larger where by less than half."""
    damping = torch.where(gained > 0.7 * predicted, torch.where(damping > 0.02, damping / 3, 0.0), damping)
    return torch.where(gained < 0.5 * predicted, (4 * damping).clamp(min=0.1), damping)


def _last(variance: Tensor, spots: Tensor) -> Tensor:
    """The read variance with the batch in the last dimension: (h, w, B) or (h, w, 1)."""
    shared = variance.expand(spots.shape[1:])[..., None] if variance.ndim < 3 else variance.permute(1, 2, 0)
    return shared.contiguous()


def _evaluate(theta: Tensor, x: Tensor, var: Tensor, psf: float | AnyPSF) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Deviance (B,), chi-square (B,), score (P, B) and Fisher information (P, P, B) at theta (P, B).

    Where x' ≤ 0 the deviance here keeps the term −2 x' log ω', so that −2 times the score is its gradient.
    """
    photons, (rate, columns, rows) = theta[2], _rate(theta, var, psf)
    weight = 1 / rate
    residual = x - rate
    excess = residual * weight  # x'/ω' − 1; its log1p keeps digits that log(x'/ω') loses in bright pixels
    deviance = 2 * (x * torch.log1p(torch.where(x > 0, excess, weight - 1)) - residual).sum((0, 1))
    chi_square = (residual * excess).sum((0, 1))
    if not isinstance(psf, float | int):
        gradient = spot_model.gradient(theta, rate, psf)  # (P, h, w, B)
        information = torch.einsum("phwb,qhwb->pqb", gradient * weight, gradient)
        return deviance, chi_square, (gradient * excess).sum((1, 2)), information
    by_column = _sum_columns(excess, columns)  # (4, h, B)
    pairs = torch.stack([columns[i] * columns[j] for i, j in _PAIRS])  # (10, w, B)
    weight_by_column = _sum_columns(weight, pairs)  # (10, h, B)
    score, information = torch.zeros_like(theta), theta.new_zeros(len(theta), *theta.shape)
    names = PARAMETERS[: len(theta)]
    for i, a in enumerate(names):
        for r, c in _TERMS[a]:
            score[i] += (rows[r] * by_column[c]).sum(0)
        for j, b in enumerate(names[: i + 1]):
            for r, c in _TERMS[a]:
                for q, d in _TERMS[b]:
                    pair = _PAIRS.index((min(c, d), max(c, d)))
                    information[i, j] += (rows[r] * rows[q] * weight_by_column[pair]).sum(0)
            information[j, i] = information[i, j]
    scale = torch.stack([photons if name in ("u", "v", "sigma") else torch.ones_like(photons) for name in names])
    return deviance, chi_square, score * scale, information * scale * scale[:, None]


def _rate(theta: Tensor, var: Tensor, psf: float | AnyPSF) -> tuple[Tensor, Tensor, Tensor]:
    """ω' (h, w, B), and for a round Gaussian the factors along a row (4, w, B) and a column (4, h, B): e, d, s, 1."""
    u, v, photons, background = theta[:4]
    if not isinstance(psf, float | int):
        return spot_model.rate(theta, var, psf), theta, theta
    spread = theta[4] if len(theta) == 5 else torch.full_like(u, psf)
    columns, rows = _factors(u, spread, var.shape[1]), _factors(v, spread, var.shape[0])
    return torch.addcmul(background + var, photons * rows[0][:, None], columns[0][None]), columns, rows


def _factors(position: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Pixel integral of Eq. 11, its derivatives by position and sigma, and ones: (4, size, B)."""
    factors = pixel_factors(position, sigma, size)
    return torch.stack([*factors, torch.ones_like(factors[0])])


def _sum_columns(image: Tensor, factors: Tensor) -> Tensor:
    """Σ_c image[r, c] factors[f, c]: (h, w, B) and (F, w, B) to (F, h, B)."""
    total = image[:, 0] * factors[:, None, 0]
    for c in range(1, image.shape[1]):
        total.addcmul_(image[:, c], factors[:, None, c])
    return total


def _solve(information: Tensor, score: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Step (P, B) of (I + λ diag I) δ = s and sd √diag((I + λ diag I)⁻¹), by a Cholesky factor of the scaled matrix.

    Where the matrix is not positive definite to rounding, the step is 0 and the sd inf.
    """
    size = len(score)
    scale = information.diagonal(dim1=0, dim2=1).T.clamp(min=torch.finfo(score.dtype).tiny).rsqrt()  # (P, B)
    a = information * scale * scale[:, None]
    singular = torch.zeros_like(damping, dtype=torch.bool)
    factor, inverse = torch.zeros_like(a), torch.zeros_like(a)  # L below its diagonal, and L⁻¹
    for k in range(size):
        for j in range(k):
            factor[k, j] = (a[k, j] - (factor[k, :j] * factor[j, :j]).sum(0)) * inverse[j, j]
        pivot = a[k, k] + damping - (factor[k, :k] ** 2).sum(0)
        singular |= ~(pivot > 4 * size * torch.finfo(a.dtype).eps)
        inverse[k, k] = pivot.clamp(min=torch.finfo(a.dtype).eps).rsqrt()
        for j in range(k):
            inverse[k, j] = -inverse[k, k] * (factor[k, j:k] * inverse[j:k, j]).sum(0)
    y = (inverse * (scale * score)).sum(1)  # L⁻¹ s
    step = scale * (inverse * y[:, None]).sum(0)
    sd = scale * (inverse**2).sum(0).sqrt()
    return torch.where(singular, 0.0, step), torch.where(singular, math.inf, sd)
