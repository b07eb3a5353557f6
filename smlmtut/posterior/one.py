"""One emitter: the exact posterior, Bayes' rule on a grid that adapts to where the mass is.

The likelihood is the surrogate of Eq. 2 in photo-electrons: x' = x + r² is Poisson with rate ω' = ω + r².

1. `search`: drop the positions that cannot matter, those more than DEPTH nats below the best.
2. `grid`: a quadrature rule in every parameter over the box around the positions that are left.
3. `integral`: the likelihood at the nodes, and its sums.
4. Check: where the density at an end inside the prior is not below EDGE, start again with a larger DEPTH.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .._validate import (
    choice,
    cpu_generator,
    finite,
    image_shape,
    instance,
    non_negative,
    number,
    positive,
    tensor,
    whole,
)
from ..estimation.fit import PARAMETERS
from ..imaging.kde import kernel, to_super_resolved
from .grid import Axis, Cells, Grid
from .integral import integrate
from .search import TINY, FrameLikelihood, search

DEPTH = 18.0  # nats: a Gaussian is cut off beyond √(2 DEPTH) = 6 sd
EDGE = 1e-6  # largest allowed density at an end inside the prior, relative to the density's maximum
DRAWS = 4000  # smallest number of proposals of `sample`
MARGIN = 1.5  # `sample` takes this times the largest p/q seen as the bound on p/q


@dataclass(frozen=True)
class Prior:
    """The prior of the emitter: independent uniform densities.

    photons N (e⁻), background b (e⁻ per pixel), sigma σ (px): (low, high), or a number where it is known.
    position: None, the frame [−1/2, W − 1/2] × [−1/2, H − 1/2]; (u_low, u_high, v_low, v_high); or a disc,
        (u, v, radius).
    Raises ValueError where ends are swapped, not finite or negative, or sigma or an area is not positive.
    """

    photons: float | tuple[float, float] = (100.0, 2000.0)
    background: float | tuple[float, float] = (0.0, 20.0)
    sigma: float | tuple[float, float] = (0.92, 1.08)
    position: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, test in (("photons", non_negative), ("background", non_negative), ("sigma", positive)):
            value = getattr(self, name)
            ends = test(name, value if isinstance(value, tuple) else (value, value))
            if len(ends) != 2 or not (ends[0] < ends[1] or not isinstance(value, tuple)):
                raise ValueError(f"{name} must be a number or (low, high) with low < high, got {value}")
        if self.position is None:
            return
        if len(finite("position", self.position)) not in (3, 4):
            raise ValueError(f"position must be (u_low, u_high, v_low, v_high) or (u, v, radius), got {self.position}")
        left, right, top, bottom = self.rectangle((1, 1))
        if not (left < right and top < bottom):
            raise ValueError(f"position must have a positive area, got {self.position}")

    @property
    def disc(self) -> tuple[float, float, float] | None:
        """(u, v, radius) where the position is uniform over a disc."""
        return self.position if self.position is not None and len(self.position) == 3 else None  # type: ignore[return-value]

    def rectangle(self, shape: tuple[int, int]) -> tuple[float, float, float, float]:
        """(u_low, u_high, v_low, v_high): the smallest rectangle with all positions, for a frame of this shape."""
        if self.disc is not None:
            u, v, radius = self.disc
            return u - radius, u + radius, v - radius, v + radius
        if self.position is not None:
            return tuple(float(x) for x in self.position)  # type: ignore[return-value]
        return -0.5, shape[1] - 0.5, -0.5, shape[0] - 0.5

    def bounds(self, shape: tuple[int, int]) -> Tensor:
        """(5, 2) low and high in the order of fit.PARAMETERS, equal where a parameter is known."""
        left, right, top, bottom = self.rectangle(shape)
        rows = [(left, right), (top, bottom)]
        for value in (self.photons, self.background, self.sigma):
            rows.append(value if isinstance(value, tuple) else (value, value))
        return torch.tensor(rows, dtype=torch.float64)

    def log_density(self, shape: tuple[int, int]) -> float:
        """Log of the density where it is not 0; a known parameter contributes a factor 1."""
        width = (self.bounds(shape)[:, 1] - self.bounds(shape)[:, 0]).tolist()
        area = math.pi * self.disc[2] ** 2 if self.disc else width[0] * width[1]
        return -math.log(area) - sum(math.log(w) for w in width[2:] if w > 0)


@dataclass(frozen=True)
class Posterior:
    """p(u, v, N, b, σ | x) of one frame, by quadrature. All tensors are float64 and on the CPU.

    frame, read_variance: (H, W), e⁻ and e⁻². prior: that was used.
    u, v: (M,) positions of the grid. mass: (M, K) probability of each position and photon count.
    photons, background, sigma: the K, L and S nodes of the nuisances; nuisance_mass: (K, L, S) their probability.
    log_evidence: log ∫ p(x | θ) p(θ) dθ in nats, a density per photo-electron as surrogate_log_likelihood.
    """

    frame: Tensor
    read_variance: Tensor
    prior: Prior
    grid: Grid
    mass: Tensor
    nuisance_mass: Tensor
    log_evidence: float

    u = property(lambda self: self.grid.u)
    v = property(lambda self: self.grid.v)
    photons = property(lambda self: self.grid.axes[0])
    background = property(lambda self: self.grid.axes[1])
    sigma = property(lambda self: self.grid.axes[2])

    def mean(self) -> dict[str, float]:
        """Posterior mean of u, v (px), photons, background (e⁻), sigma (px)."""
        return {name: float((w * x).sum()) for name, (x, w) in self._marginals().items()}

    def sd(self) -> dict[str, float]:
        """Posterior standard deviation of the same; 0 where a parameter is known."""
        out = {}
        for name, (x, w) in self._marginals().items():
            out[name] = math.sqrt(float((w * (x - (w * x).sum()) ** 2).sum()))
        return out

    def kde_moments(self, factor: int = 4, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
        """E[y | x] and Var[y | x] of the emitter's kernel density estimate, as kde_image draws it with peak 1.

        factor, sigma: as there. Returns two (f·H, f·W) tensors.
        Raises ValueError where the kernel is too narrow for the grid: ask grid_posterior for a higher resolution then.
        """
        height, width = self.frame.shape
        narrowest = math.sqrt(2) * whole("factor", factor) * self.grid.spacing  # its square then has an sd of one step
        if number("sigma", sigma, positive) < narrowest:
            raise ValueError(
                f"sigma must be at least {narrowest:.3g} super-resolved pixels for this grid, got {sigma:g}; "
                "ask grid_posterior for a higher resolution"
            )
        along_u = kernel(to_super_resolved(self.u, factor), sigma, factor * width)  # (M, fW)
        along_v = kernel(to_super_resolved(self.v, factor), sigma, factor * height)  # (M, fH)
        weight = self.mass.sum(1)[:, None]  # (M, 1)
        mean = (weight * along_v).T @ along_u
        square = (weight * along_v**2).T @ along_u**2
        return mean, (square - mean**2).clamp(min=0)  # rounding may give −1e-17

    def credible_level(self, u: float, v: float) -> float:
        """Mass of the smallest highest-density region in (u, v) that holds a position; 1 outside the grid.

        Over frames drawn from the prior, the level of the true position is uniform on [0, 1].
        """
        where = self.grid.plane.coordinates(float(number("u", u)), float(number("v", v)))
        if where is None:
            return 1.0
        return self._cells.level(*where)

    def cdf(self, name: str, value: float | Tensor) -> Tensor:
        """P(parameter ≤ value | x), in the shape of value. name: one of fit.PARAMETERS that is not known."""
        from scipy.interpolate import CubicSpline  # here, since it takes 0.2 s to load

        at = tensor("value", finite("value", value)).to("cpu", torch.float64)
        choice("name", name, PARAMETERS)
        if name in ("u", "v"):
            cells = self._cells
            low, high = cells.edges[name]
            parts = []
            for part in at.reshape(-1, 1).split(64):  # bounds the memory
                share = ((part - low) / (high - low)).clamp(0, 1)  # of each cell, below value
                parts.append(share @ cells.mass)
            return torch.cat(parts).reshape(at.shape)
        axis: Axis = getattr(self, name)
        if len(axis) == 1:
            raise ValueError(
                f"name must be a parameter that the prior leaves open, got {name!r}, known: {axis.nodes[0]:g}"
            )
        log_density = (self._marginals()[name][1] / axis.weights).clamp(min=TINY).log().numpy()
        fine = np.linspace(float(axis.edges[0]), float(axis.edges[-1]), 64 * len(axis) + 1)
        middle = (fine[1:] + fine[:-1]) / 2
        steps = np.exp(CubicSpline(axis.nodes.numpy(), log_density)(middle))
        total = np.concatenate([[0], steps.cumsum()]) / steps.sum()
        return torch.from_numpy(np.interp(at.reshape(-1).numpy(), fine, total)).reshape(at.shape)

    def marginal(self, name: str, count: int = 200) -> tuple[Tensor, Tensor]:
        """The density of one parameter: (count,) values over the grid's range, and the mean density about each."""
        if choice("name", name, PARAMETERS) in ("u", "v"):
            lower, upper = self._cells.edges[name]
            low, high = float(lower.min()), float(upper.max())
        else:
            low, high = (float(getattr(self, name).edges[i]) for i in (0, -1))
        edges = torch.linspace(low, high, whole("count", count) + 1, dtype=torch.float64)
        return (edges[1:] + edges[:-1]) / 2, self.cdf(name, edges).diff() / edges.diff()

    def log_density(self, theta: Tensor) -> Tensor:
        """log p(x, θ) in nats, a density per photo-electron as log_evidence; −inf where the prior is 0.

        theta: (n, 5) in the order of fit.PARAMETERS. Returns (n,).
        """
        theta = tensor("theta", theta, 2).cpu().double()
        if theta.shape[1] != len(PARAMETERS):
            raise ValueError(f"theta must have {len(PARAMETERS)} columns, {PARAMETERS}, got {theta.shape[1]}")
        shape = (self.frame.shape[0], self.frame.shape[1])
        bounds = self.prior.bounds(shape)
        inside = ((theta >= bounds[:, 0]) & (theta <= bounds[:, 1])).all(1)
        if self.prior.disc is not None:
            u, v, radius = self.prior.disc
            inside &= torch.hypot(theta[:, 0] - u, theta[:, 1] - v) <= radius
        out = torch.full_like(theta[:, 0], -math.inf)
        likelihood = FrameLikelihood(self.frame, self.read_variance, bounds, self.prior.disc)
        out[inside] = likelihood.log_likelihood(theta[inside]) + likelihood.constant + self.prior.log_density(shape)
        return out

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 5) draws from the posterior, columns in the order of fit.PARAMETERS; seeded by generator, on the CPU.

        Rejection sampling. A proposal is a node of the grid, moved by about a step, and is kept with probability
        p/(c q): p is the posterior, q the density of the proposals, and c is MARGIN times the largest p/q among the
        proposals, of which there are at least DRAWS. q is wider than p, so that p/q is smooth and largest where most
        proposals are. Raises ValueError for n below 1 or a generator of another device.
        """
        whole("n", n)
        cpu_generator("generator", generator)
        theta, ratio, level = torch.zeros(0, 5), torch.zeros(0), torch.zeros(0)
        kept = theta
        while len(kept) < n:
            proposals, log_q = self.grid.propose(self.mass, self.nuisance_mass, max(DRAWS, 8 * n), generator)
            theta = torch.cat([theta, proposals])
            ratio = torch.cat([ratio, self.log_density(proposals) - log_q])
            level = torch.cat([level, torch.rand(len(proposals), generator=generator, dtype=torch.float64).log()])
            kept = theta[level <= ratio - ratio.max() - math.log(MARGIN)]
        return kept[:n]

    def _marginals(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Nodes of each parameter and their probabilities."""
        position = self.mass.sum(1)
        out = {"u": (self.u, position), "v": (self.v, position)}
        for i, name in enumerate(PARAMETERS[2:]):
            out[name] = (getattr(self, name).nodes, self.nuisance_mass.sum([k for k in range(3) if k != i]))
        return out

    @cached_property
    def _cells(self) -> Cells:
        return Cells.of(self.grid, self.mass.sum(1))


def grid_posterior(
    frame: Tensor, read_variance: float | Tensor = 0.0, prior: Prior | None = None, resolution: float = 1.0
) -> Posterior:
    """The posterior of a frame that holds exactly one emitter.

    frame: (H, W) photo-electrons, as from camera.to_photoelectrons. read_variance: e⁻², a number or (H, W).
    prior: None stands for Prior(), which the networks of the book are trained on.
    resolution: nodes per axis relative to the standard grid; the change from 1 to 2 shows the error of the grid.
    Raises ValueError for a wrong shape, a value that is not finite, x' < 0 without read noise, or a posterior so
    wide that the grid would not fit into memory (NODES), such as that of a large frame without an emitter.
    """
    frame = tensor("frame", finite("frame", frame), 2)
    shape = image_shape("frame", (frame.shape[0], frame.shape[1]))
    variance = tensor("read_variance", non_negative("read_variance", read_variance)).to(torch.float64)
    if tuple(variance.shape) not in ((), shape):
        raise ValueError(f"read_variance must be a number or have shape {shape}, got {tuple(variance.shape)}")
    frame, variance = frame.detach().cpu().double(), variance.detach().cpu().expand(shape)
    if bool(((frame < 0) & (variance == 0)).any()):
        raise ValueError(f"frame must not be negative where read_variance is 0, got {frame[variance == 0].min():g}")
    number("resolution", resolution, positive)
    prior = Prior() if prior is None else instance("prior", prior, Prior)
    likelihood = FrameLikelihood(frame, variance, prior.bounds(shape), prior.disc)
    edge = 1.0
    for widening in range(5):
        found = search(likelihood, DEPTH * 1.5**widening)
        grid = Grid.over(likelihood, found, resolution)
        mass, nuisance = integrate(likelihood, grid, found.log_likelihood)
        edge = grid.edge(mass, nuisance)
        if edge < EDGE:
            total = mass.sum()
            log_evidence = float(total.log()) + found.log_likelihood + likelihood.constant + prior.log_density(shape)
            return Posterior(frame, variance, prior, grid, mass / total, nuisance / total, log_evidence)
    raise ValueError(f"frame: the posterior does not vanish at the ends of the grid, {edge:g} of its maximum is left")
