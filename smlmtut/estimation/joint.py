"""All emitters of a frame at once: the mode of their posterior for a known number of them, and its curvature.

Damped Fisher scoring as in `fit`, on the same likelihood, with the emitters' parameters, one background and one sigma
in one vector. Where molecules are apart it is the fit of each; where they overlap it is not.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validate import finite, floating, instance, non_negative, positive, tensor, whole
from ..imaging.fast_psf import pixel_factors
from ..imaging.psf import AnyPSF, Emitters, rate_gradient

Limits = tuple[float, float]
ROUNDINGS = 10  # by which a deviance may rise and count as not risen, in units of its rounding error
STEP = 0.5  # px: the largest change of a position in one step; beyond it the expansion of the image does not hold


@dataclass(frozen=True)
class JointFit:
    """The fit of B frames with up to E emitters each.

    emitters: at the mode, (B, E). background, sigma: (B,) photo-electrons per pixel, pixels. deviance: (B,) as in
    `fit.Fit`, without the terms of the data alone. information: (B, P, P) of Eq. 3 and of the prior, P = 3 E + 2, in
    the order u_1, v_1, N_1, u_2, …, b, sigma; the identity for an emitter that is not present. converged: (B,) bool.
    """

    emitters: Emitters
    background: Tensor
    sigma: Tensor
    deviance: Tensor
    information: Tensor
    converged: Tensor

    def covariance(self) -> Tensor:
        """Covariance of all parameters, the inverse of the information: (B, P, P)."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.information))

    def draw(self, samples: int, generator: torch.Generator, farthest: float | None = None) -> tuple[Tensor, Tensor]:
        """Positions u and v, (B, S, E) each, from the normal distribution with this mode and covariance.

        It is the posterior where that is normal (Laplace): for lone bright molecules, not for two that may be one.
        farthest: px, that no position's sd exceeds, as if it were known to so much beforehand; None: no such limit.
        Raises ValueError for a number of samples below 1 or a distance that is not positive.
        """
        size = (len(self.information), whole("samples", samples), self.information.shape[-1])
        noise = torch.randn(size, generator=generator, device=generator.device).to(self.information)
        information = self.information
        if farthest is not None:
            before = torch.zeros_like(information[0, 0])
            before[:-2].unflatten(0, (-1, 3))[:, :2] = positive("farthest", farthest) ** -2
            information = information + before.diag()
        factor = torch.linalg.cholesky(information)  # L Lᵀ = information, so L⁻ᵀ noise has the covariance
        moved = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT[..., :-2]
        u, v = (getattr(self.emitters, name)[:, None] for name in "uv")
        return u + moved[..., 0::3].to(u), v + moved[..., 1::3].to(v)


def fit_emitters(
    frames: Tensor,
    start: Emitters,
    read_variance: float | Tensor = 0.0,
    photons: Limits = (100.0, 2000.0),
    background: Limits = (0.0, 20.0),
    sigma: Limits = (0.92, 1.08),
    position: tuple[float, float, float, float] | None = None,
    *,
    psf: AnyPSF | None = None,
    tolerance: float = 1e-2,
    max_iterations: int = 30,
) -> JointFit:
    """Fit the emitters of every frame together, from where `start` has them.

    frames: (B, H, W) photo-electrons. start: (B, E); those not present are left alone. read_variance: e⁻², a number,
        (H, W) or (B, H, W). photons, background, sigma: limits of a uniform prior, which the mode keeps; the
        information has that of a normal prior with the same variance. position: (u_low, u_high, v_low, v_high); None:
        up to 3 px beyond the frame.
    psf: a known PSF instead of a Gaussian of one free sigma; the result's sigma then is NaN.
    tolerance: a frame has converged when no step is larger than this share of its sd. max_iterations: of each frame.
    Returns a JointFit in the type of frames, its information in float64.
    Raises ValueError for a value that is not finite, a wrong shape, or limits that are not increasing.
    """
    frames = finite("frames", floating("frames", frames, 3))
    if len(instance("start", start, Emitters)) != len(frames):
        raise ValueError(f"start must have a row for each of the {len(frames)} frames, got {len(start)}")
    variance = tensor("read_variance", non_negative("read_variance", read_variance)).to(frames)
    if tuple(variance.shape) not in ((), tuple(frames.shape[1:]), tuple(frames.shape)):
        raise ValueError(
            f"read_variance must be a number or have shape {tuple(frames.shape[1:])} or {tuple(frames.shape)}, "
            f"got {tuple(variance.shape)}"
        )
    for name, limits in (("photons", photons), ("background", background), ("sigma", sigma)):
        checked_limits(name, limits)
    height, width = frames.shape[1:]
    left, right, top, bottom = (-3.5, width + 2.5, -3.5, height + 2.5) if position is None else position
    if not (left < right and top < bottom):
        raise ValueError(f"position must be (u_low, u_high, v_low, v_high), increasing, got {position}")
    own = [(left, right), (top, bottom), photons] * start.u.shape[1]
    limits = frames.new_tensor([*own, background, sigma])
    psf = None if psf is None else instance("psf", psf, AnyPSF)
    model = _Model(frames, variance, start.to(frames.device, frames.dtype), limits, psf)
    return model.fit(tolerance, whole("max_iterations", max_iterations))


def checked_limits(name: str, limits: Limits) -> Limits:
    """The limits of photons, background or sigma; ValueError where they do not increase from 0 on, sigma's above it."""
    if not 0 <= limits[0] < limits[1] or (name == "sigma" and limits[0] == 0):
        least = "above 0" if name == "sigma" else "of at least 0"
        raise ValueError(f"{name} must be two increasing limits {least}, got {limits}")
    return limits


class _Model:
    """Frames, limits, and which parameters there are. theta: (B, P)."""

    def __init__(self, frames: Tensor, variance: Tensor, start: Emitters, limits: Tensor, psf: AnyPSF | None) -> None:
        self.variance = variance.expand_as(frames)
        self.counts, self.start, self.psf = frames + self.variance, start, psf
        self.low, self.high = limits.T
        first = torch.stack([start.u, start.v, start.photons], -1).flatten(1)
        batch = len(frames)
        self.theta = torch.cat([first, limits[-2:].mean(1).expand(batch, 2)], 1).clamp(self.low, self.high)
        present = start.mask.repeat_interleave(3, 1)
        self.free = torch.cat([present, present.new_tensor([True, psf is None]).expand(batch, 2)], 1)  # (B, P)
        self.prior = 12 / (self.high - self.low).double().square()  # of a uniform distribution's variance

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deviance (B,) up to what the data alone have, score (B, P) and information (B, P, P)."""
        batch, emitters = len(theta), self.start.u.shape[1]
        u, v, photons = theta[:, :-2].reshape(batch, emitters, 3).unbind(-1)
        photons = photons * self.start.mask
        if self.psf is not None:
            shape, found = (self.counts.shape[1], self.counts.shape[2]), Emitters(u, v, photons, self.start.mask)
            own = rate_gradient(found, self.psf, shape, ("u", "v", "photons", "background"))
            gradient = torch.cat([own, torch.zeros_like(own[:, :1])], 1)
            return self._compared(theta, self.psf.image(found, shape, (0, 0)), gradient)
        width = theta[:, -1:].expand_as(u).flatten()
        height_size, width_size = self.counts.shape[1:]
        along_u, along_v = (
            [part.T.unflatten(0, (batch, emitters)) for part in pixel_factors(x.flatten(), width, size)]
            for x, size in ((u, width_size), (v, height_size))
        )  # E, ∂E/∂position, ∂E/∂sigma: (B, E, W) and (B, E, H)
        outer = lambda rows, columns: rows[..., :, None] * columns[..., None, :]  # noqa: E731
        light = outer(along_v[0], along_u[0]) * self.start.mask[..., None, None]  # (B, E, H, W)
        by_place = [outer(along_v[0], along_u[1]), outer(along_v[1], along_u[0])]
        scale = photons[..., None, None]
        own = torch.stack([scale * by_place[0], scale * by_place[1], light], 2).flatten(1, 2)  # (B, 3E, H, W)
        by_sigma = (scale * (outer(along_v[0], along_u[2]) + outer(along_v[2], along_u[0]))).sum(1, keepdim=True)
        return self._compared(theta, (scale * light).sum(1), torch.cat([own, torch.ones_like(by_sigma), by_sigma], 1))

    def _compared(self, theta: Tensor, light: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As evaluate, of the emitters' light (B, H, W) and its gradient (B, P, H, W)."""
        gradient = gradient.flatten(2)  # (B, P, HW)
        rate = (light + theta[:, -2, None, None] + self.variance).clamp(min=1e-3).flatten(1)
        counts = self.counts.flatten(1)
        deviance = 2 * (rate - counts * rate.log()).sum(1)
        score = torch.einsum("bpk,bk->bp", gradient, counts / rate - 1)
        information = torch.einsum("bpk,bqk->bpq", gradient / rate[:, None], gradient).double()
        return deviance, score.double(), information

    def with_prior(self, information: Tensor) -> Tensor:
        """The information with the prior's, and the identity where there is no emitter."""
        free = self.free.double()
        kept = information * free[:, :, None] * free[:, None] + torch.diag_embed(self.prior * free)
        return kept + torch.diag_embed(1 - free)

    def fit(self, tolerance: float, steps: int) -> JointFit:
        """Damped Fisher scoring; a parameter at a limit that the score pushes it over is held, a frame that has
        converged is done."""
        state = [self.theta, *self.evaluate(self.theta)]  # theta, deviance, score, information
        best, converged = [x.clone() for x in state], torch.zeros_like(state[1], dtype=torch.bool)
        model, rows, damping = self, torch.arange(len(converged), device=converged.device), state[1].double() * 0 + 0.01
        for _ in range(steps):
            theta, deviance, score, information = state
            step, sd = model.step(theta, score, information, damping)
            trial = (theta + step).clamp(self.low, self.high)
            small = ((trial - theta).abs() * (1 + 10 * damping[:, None]) <= tolerance * sd).all(1)
            converged[rows[small]] = True
            if bool(small.any()):
                left = (~small).nonzero()[:, 0]
                if not len(left):
                    break
                model, rows, damping, trial = model.part(left), rows[left], damping[left], trial[left]
                state = [x[left] for x in state]
            new = [trial, *model.evaluate(trial)]
            deviance = state[1]
            better = new[1] <= deviance + ROUNDINGS * torch.finfo(trial.dtype).eps * deviance.abs()
            for k, (after, before) in enumerate(zip(new, state, strict=True)):
                state[k] = torch.where(better.reshape(-1, *[1] * (after.ndim - 1)), after, before)
                best[k][rows] = state[k]
            damping = torch.where(better, damping / 4, (damping * 8).clamp(min=0.1))
        theta, deviance, _, information = best
        u, v, photons = theta[:, :-2].unflatten(1, (-1, 3)).unbind(-1)
        found = Emitters(u, v, photons * self.start.mask, self.start.mask)
        sigma = theta[:, -1] if self.psf is None else torch.full_like(theta[:, -1], torch.nan)
        return JointFit(found, theta[:, -2], sigma, deviance, self.with_prior(information), converged)

    def part(self, rows: Tensor) -> "_Model":
        """The same for some of the frames."""
        new = copy.copy(self)
        for name in ("variance", "counts", "free"):
            setattr(new, name, getattr(self, name)[rows])
        start = self.start
        new.start = Emitters(start.u[rows], start.v[rows], start.photons[rows], start.mask[rows])
        return new

    def step(self, theta: Tensor, score: Tensor, information: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        """The next step, with positions moved by STEP at most, and each parameter's sd if all others were known."""
        held = ((theta <= self.low) & (score < 0)) | ((theta >= self.high) & (score > 0)) | ~self.free
        moving = (~held).double()
        kept = self.with_prior(information) * moving[:, :, None] * moving[:, None] + torch.diag_embed(1 - moving)
        own = kept.diagonal(dim1=1, dim2=2)
        factor = torch.linalg.cholesky(kept + torch.diag_embed(damping[:, None] * own))
        step = torch.cholesky_solve((score * moving)[..., None], factor)[..., 0].to(theta)
        step[:, :-2].unflatten(1, (-1, 3))[..., :2].clamp_(-STEP, STEP)
        return step, own.rsqrt().to(theta)
