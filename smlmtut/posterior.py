"""The exact posterior of one emitter in a frame: Bayes' rule on a grid that adapts to where the mass is.

The likelihood is the surrogate of Eq. 2 in photo-electrons: x' = x + r² is Poisson with rate ω' = ω + r². Three
steps, the first two over the whole support of the prior:

1. Search. The frame is tiled with cells of half a PSF sd. In each, the likelihood is maximized over N and b; a cell
   goes when even the best point it may hold (its value plus the loss that the Fisher information foresees between
   its centre and its corner, twice) lies DEPTH nats below the best cell. The rest is divided by 3, until a cell is
   as small as the posterior. Another mode can only be missed if it is exp(−DEPTH) as likely as the best one.
2. Grid. The box around what is left, in every parameter. An end that the prior sets gets a Gauss-Legendre rule, an
   end inside the prior, where the integrand has vanished, the trapezoidal rule, which then converges as fast.
3. Check. If the mass at an end inside the prior is not below EDGE, all starts again with a larger DEPTH.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from scipy.interpolate import CubicSpline, RectBivariateSpline
from torch import Tensor

from ._validate import choice, finite, image_shape, non_negative, positive, rank, whole
from .camera import Camera
from .fisher import fisher_information
from .fit import PARAMETERS
from .kde import to_super_resolved
from .likelihood import surrogate_log_likelihood
from .psf import PSF, Emitters, pixel_integral, pixel_integral_gradient, rate_gradient

DEPTH = 18.0  # nats: a Gaussian is left out beyond √(2 DEPTH) = 6 sd
GAUSS = 1.25  # nodes of the Gauss-Legendre rule per step of the trapezoidal one
EDGE = 1e-6  # largest density at an end that the prior does not set, relative to the density's maximum
STEP = 1.0  # of the trapezoidal rule, in sd: its error is 2 exp(−2π²/STEP²) = 5e-9 for a Gaussian
WIDEST = 0.14  # px: longest step in u and v, enough for the square of the kernel of kde, sd 0.25/√2 px
FINER = 8  # cells per node and axis of the interpolated position density
NODES = 1 << 25  # most nodes in (u, v, N): 256 MB
SCORING_STEPS = 5  # of the search
TINY = 1e-300


@dataclass(frozen=True)
class Prior:
    """What is known of the emitter before the frame is seen: independent uniform densities.

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
        """(u_low, u_high, v_low, v_high) that just holds all positions, for a frame of this shape."""
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
        """Log of the density, the same wherever it is not 0; known parameters count 1."""
        width = (self.bounds(shape)[:, 1] - self.bounds(shape)[:, 0]).tolist()
        area = math.pi * self.disc[2] ** 2 if self.disc else width[0] * width[1]
        return -math.log(area) - sum(math.log(w) for w in width[2:] if w > 0)


@dataclass(frozen=True)
class Axis:
    """Nodes of a quadrature rule, their weights, and the edges of the cells they stand for; one node if known."""

    nodes: Tensor
    weights: Tensor
    edges: Tensor

    @classmethod
    def over(cls, low: float, high: float, step: float, cut: bool) -> "Axis":
        """[low, high] by Gauss-Legendre if the prior cuts the density at an end, else by the trapezoidal rule."""
        if low == high:
            return cls(*(torch.tensor(x, dtype=torch.float64) for x in ([low], [1.0], [low, low])))
        length = high - low
        if cut:  # π/2 more nodes than equal steps would resolve the middle as well as the trapezoidal rule does
            nodes, weights = np.polynomial.legendre.leggauss(math.ceil(GAUSS * length / step) + 4)
            x, w = low + length * (torch.from_numpy(nodes) + 1) / 2, length / 2 * torch.from_numpy(weights)
            return cls(x, w, low + torch.cat([w.new_zeros(1), w.cumsum(0)]))
        count = max(math.ceil(length / step), 4) + 1
        x = torch.linspace(low, high, count, dtype=torch.float64)
        h = length / (count - 1)
        return cls(x, torch.full_like(x, h), torch.cat([x - h / 2, x[-1:] + h / 2]))

    def __len__(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True)
class _Plane:
    """Coordinates (s, t) of the positions in the box: u and v themselves, or, in a box that a disc (u_0, v_0, R) cuts,
    u = u_0 + R sin s and v = low(s) + t (high(s) − low(s)) along the chord, both smooth up to the rim."""

    s: Axis
    t: Axis
    box: tuple[float, float, float, float]
    disc: tuple[float, float, float] | None

    def chord(self, s: Tensor) -> tuple[Tensor, Tensor]:
        if self.disc is None:
            return torch.zeros_like(s), torch.ones_like(s)
        _, v, radius = self.disc
        half = radius * s.cos()
        return (v - half).clamp(*self.box[2:]), (v + half).clamp(*self.box[2:])

    def positions(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, v and the area element |∂(u, v)/∂(s, t)|."""
        low, high = self.chord(s)
        u = s if self.disc is None else self.disc[0] + self.disc[2] * s.sin()
        slope = 1.0 if self.disc is None else self.disc[2] * s.cos()
        return u, low + (high - low) * t, (high - low) * slope

    def coordinates(self, u: float, v: float) -> tuple[float, float] | None:
        """(s, t) of a position, None where it lies outside the box or the disc."""
        if not (self.box[0] <= u <= self.box[1] and self.box[2] <= v <= self.box[3]):
            return None
        if self.disc is None:
            return u, v
        if math.hypot(u - self.disc[0], v - self.disc[1]) >= self.disc[2]:
            return None
        s = math.asin((u - self.disc[0]) / self.disc[2])
        low, high = (float(x) for x in self.chord(torch.tensor(s, dtype=torch.float64)))
        return s, (v - low) / (high - low)


@dataclass(frozen=True)
class _Cells:
    """Fine cells of the plane, flat: mass and log-density at the middle, (s, t) of the middle, edges along u and v."""

    mass: Tensor
    log_density: Tensor
    middle: tuple[Tensor, Tensor]
    size: tuple[float, float]
    edges: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Posterior:
    """p(u, v, N, b, σ | x) of one frame, by quadrature. All tensors float64.

    frame, read_variance: (H, W) what was seen, in e⁻ and e⁻². prior: before it was seen.
    u, v: (M,) positions of the grid. mass: (M, K) probability of each position and photon count.
    photons, background, sigma: the K, L and S nodes of the nuisances; nuisance_mass: (K, L, S) their probability.
    log_evidence: log ∫ p(x | θ) p(θ) dθ in nats, per photo-electron as likelihood.surrogate_log_likelihood.
    """

    frame: Tensor
    read_variance: Tensor
    prior: Prior
    u: Tensor
    v: Tensor
    mass: Tensor
    photons: Axis
    background: Axis
    sigma: Axis
    nuisance_mass: Tensor
    log_evidence: float
    plane: _Plane
    weight: Tensor  # (M,) of the positions in the rule
    node: Tensor  # (M,) place of each in the grid of the plane, row by row along t

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
        """E[y | x] and Var[y | x] of the kernel density estimate of the emitter, as kde.kde draws it with peak 1.

        factor, sigma: as there. Returns two (f·H, f·W) tensors.
        Raises ValueError where the kernel is too narrow for the grid: ask `posterior` for a higher resolution then.
        """
        height, width = self.frame.shape
        narrowest = math.sqrt(2) * whole("factor", factor) * self._spacing  # so that its square spans a step
        if positive("sigma", sigma) < narrowest:
            raise ValueError(
                f"sigma must be at least {narrowest:.3g} super-resolved pixels for this grid, got {sigma:g}; "
                "ask posterior for a higher resolution"
            )
        along_u = _kernel(to_super_resolved(self.u, factor), sigma, factor * width)  # (M, fW)
        along_v = _kernel(to_super_resolved(self.v, factor), sigma, factor * height)  # (M, fH)
        weight = self.mass.sum(1)[:, None]  # (M, 1)
        mean = (weight * along_v).T @ along_u
        square = (weight * along_v**2).T @ along_u**2
        return mean, (square - mean**2).clamp(min=0)  # rounding may give −1e-17

    def credible_level(self, u: float, v: float) -> float:
        """Mass of the smallest highest-density region in (u, v) that holds a position.

        Over frames drawn from the prior, that of the true position is uniform on [0, 1]. 1 outside the grid.
        """
        where = self.plane.coordinates(float(finite("u", u)), float(finite("v", v)))
        if where is None:
            return 1.0
        cells = self._cells
        return float(cells.mass[cells.log_density > float(self._log_density(*where)[0, 0])].sum())

    def cdf(self, name: str, value: float | Tensor) -> Tensor:
        """P(parameter ≤ value | x), in the shape of value. name: one of fit.PARAMETERS that is not known."""
        at = torch.as_tensor(finite("value", value), dtype=torch.float64)
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
        """The density of one parameter: (count,) values over the grid's range, and the mean density around each."""
        if choice("name", name, PARAMETERS) in ("u", "v"):
            lower, upper = self._cells.edges[name]
            low, high = float(lower.min()), float(upper.max())
        else:
            low, high = (float(getattr(self, name).edges[i]) for i in (0, -1))
        edges = torch.linspace(low, high, whole("count", count) + 1, dtype=torch.float64)
        return (edges[1:] + edges[:-1]) / 2, self.cdf(name, edges).diff() / edges.diff()

    def log_density(self, theta: Tensor) -> Tensor:
        """log p(x, θ) in nats, up to the surrogate's constant in x as in log_evidence; −inf where the prior is 0.

        theta: (n, 5) in the order of fit.PARAMETERS. Returns (n,).
        """
        theta = rank("theta", theta, 2).double()
        shape = (self.frame.shape[0], self.frame.shape[1])
        bounds = self.prior.bounds(shape)
        inside = ((theta >= bounds[:, 0]) & (theta <= bounds[:, 1])).all(1)
        if self.prior.disc is not None:
            u, v, radius = self.prior.disc
            inside &= torch.hypot(theta[:, 0] - u, theta[:, 1] - v) <= radius
        out = torch.full_like(theta[:, 0], -math.inf)
        scene = _Scene(self.frame, self.read_variance, self.prior)
        parts = [scene.log_likelihood(part) for part in theta[inside].split(4096)]
        out[inside] = torch.cat([*parts, theta.new_zeros(0)]) + scene.constant + self.prior.log_density(shape)
        return out

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 5) draws from the posterior, columns in the order of fit.PARAMETERS; seeded by generator, on the CPU.

        Rejection: a draw spread over its grid cell is kept with probability p/(c q), q its density under the grid
        (position and nuisances apart) and c the largest p/q among at least 4000 draws.
        """
        whole("n", n)
        kept, missing = [], n
        cells, axes = self._cells, (self.photons, self.background, self.sigma)
        size = torch.tensor([len(axis) for axis in axes])
        while missing > 0:
            count = max(4000, 16 * missing)
            pick = lambda mass: torch.multinomial(mass, count, replacement=True, generator=generator)  # noqa: B023, E731
            spread = torch.rand(count, 5, generator=generator, dtype=torch.float64)
            at, nuisance = pick(cells.mass), pick(self.nuisance_mass.flatten())
            s, t = (
                middle[at] + (spread[:, i] - 0.5) * size
                for i, (middle, size) in enumerate(zip(cells.middle, cells.size, strict=True))
            )
            u, v, area = self.plane.positions(s, t)
            log_q = (cells.mass[at] / (area * math.prod(cells.size))).log() + self.nuisance_mass.flatten()[
                nuisance
            ].log()
            columns = [u, v]
            for i, index in enumerate(np.unravel_index(nuisance.numpy(), tuple(size.tolist()))):
                axis, k = axes[i], torch.from_numpy(index)
                columns.append(axis.edges[k] + spread[:, 2 + i] * (axis.edges[k + 1] - axis.edges[k]))
                log_q = log_q - axis.weights[k].log()
            theta = torch.stack(columns, 1)
            ratio = self.log_density(theta) - log_q
            top = ratio.max()
            accept = torch.rand(count, generator=generator, dtype=torch.float64).log() <= ratio - top
            kept.append(theta[accept])
            missing -= int(accept.sum())
        return torch.cat(kept)[:n]

    @property
    def _spacing(self) -> float:
        """Mean distance of the nodes along u or v, whichever is longer, px."""
        left, right, top, bottom = self.plane.box
        return max((right - left) / len(self.plane.s), (bottom - top) / len(self.plane.t))

    def _marginals(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Nodes and their probabilities."""
        position = self.mass.sum(1)
        out = {"u": (self.u, position), "v": (self.v, position)}
        for i, name in enumerate(PARAMETERS[2:]):
            out[name] = (getattr(self, name).nodes, self.nuisance_mass.sum([k for k in range(3) if k != i]))
        return out

    @cached_property
    def _log_density(self) -> RectBivariateSpline:
        """log p(u, v | x) over (s, t), 40 nats below the highest where a node was left out."""
        s, t = self.plane.s.nodes, self.plane.t.nodes
        log_density = (self.mass.sum(1) / self.weight).clamp(min=TINY).log()
        grid = torch.full((len(s) * len(t),), float(log_density.max()) - 40, dtype=torch.float64)
        grid[self.node] = torch.maximum(log_density, grid[0])
        return RectBivariateSpline(s.numpy(), t.numpy(), grid.reshape(len(s), len(t)).numpy())

    @cached_property
    def _cells(self) -> _Cells:
        """The (s, t) box in FINER cells per node and axis."""
        edges = [
            torch.linspace(float(axis.edges[0]), float(axis.edges[-1]), FINER * len(axis) + 1, dtype=torch.float64)
            for axis in (self.plane.s, self.plane.t)
        ]
        s, t = ((e[1:] + e[:-1]) / 2 for e in edges)
        size = tuple(float(e[1] - e[0]) for e in edges)
        log_density = torch.from_numpy(self._log_density(s.numpy(), t.numpy())).flatten()
        grid_s, grid_t = (x.flatten() for x in torch.meshgrid(s, t, indexing="ij"))
        area = self.plane.positions(grid_s, grid_t)[2]
        mass = log_density.exp() * area
        ends = [self.plane.positions(grid_s + f * size[0] / 2, grid_t)[0] for f in (-1, 1)]
        tops = [self.plane.positions(grid_s, grid_t + f * size[1] / 2)[1] for f in (-1, 1)]
        return _Cells(
            mass / mass.sum(),
            log_density,
            (grid_s, grid_t),
            size,  # type: ignore[arg-type]
            {"u": (ends[0], ends[1]), "v": (tops[0], tops[1])},
        )


def posterior(
    frame: Tensor, read_variance: float | Tensor = 0.0, prior: Prior | None = None, resolution: float = 1.0
) -> Posterior:
    """The posterior of the one emitter in a frame.

    frame: (H, W) photo-electrons, camera.to_photoelectrons. read_variance: e⁻², a number or (H, W).
    prior: None stands for Prior(), what the networks of the book are trained on.
    resolution: nodes per axis relative to the standard grid; 2 shows what the grid leaves out.
    Raises ValueError for a wrong shape, a value that is not finite, x' < 0 without read noise, or a posterior so
    wide that the grid would not fit into memory (NODES), such as that of a large frame without an emitter.
    """
    rank("frame", finite("frame", frame), 2)
    shape = image_shape("frame", (frame.shape[0], frame.shape[1]))
    variance = torch.as_tensor(non_negative("read_variance", read_variance), dtype=torch.float64)
    if tuple(variance.shape) not in ((), shape):
        raise ValueError(f"read_variance must be a number or have shape {shape}, got {tuple(variance.shape)}")
    frame, variance = frame.detach().cpu().double(), variance.detach().cpu().expand(shape)
    if bool(((frame < 0) & (variance == 0)).any()):
        raise ValueError(f"frame must not be negative where read_variance is 0, got {frame[variance == 0].min():g}")
    positive("resolution", resolution)
    scene = _Scene(frame, variance, Prior() if prior is None else prior)
    for widening in range(5):
        result, edge = _on_grid(scene, DEPTH * 1.5**widening, resolution)
        if edge < EDGE:
            return result
    raise ValueError(f"frame: the posterior does not vanish at the ends of the grid, {edge:g} of its maximum is left")


def posteriors(
    frames: Tensor, read_variance: float | Tensor = 0.0, prior: Prior | None = None, resolution: float = 1.0
) -> Iterator[Posterior]:
    """The posterior of each of B frames, (B, H, W), one after the other: one at a time is in memory.

    read_variance: e⁻², a number, (H, W) or (B, H, W). The rest and the errors: as for `posterior`.
    """
    rank("frames", frames, 3)
    variance = torch.as_tensor(read_variance)
    if variance.ndim == 3 and len(variance) != len(frames):
        raise ValueError(f"read_variance must have the batch of frames, {len(frames)}, got {len(variance)}")
    for i, frame in enumerate(frames):
        yield posterior(frame, variance[i] if variance.ndim == 3 else variance, prior, resolution)


@dataclass(frozen=True)
class _Profile:
    """The likelihood maximized over N and b, each field (n,): N, b, their sd with all else known, and the Fisher
    information about u, v and σ alone."""

    log_likelihood: Tensor
    photons: Tensor
    background: Tensor
    photons_sd: Tensor
    background_sd: Tensor
    information: Tensor  # (3, n)


class _Scene:
    """A frame and its prior, with the pixels in one row."""

    def __init__(self, frame: Tensor, variance: Tensor, prior: Prior) -> None:
        self.frame, self.variance, self.prior = frame, variance, prior
        self.shape = (frame.shape[0], frame.shape[1])
        self.var = variance.reshape(-1)
        self.counts = frame.reshape(-1) + self.var  # x'
        self.bounds = prior.bounds(self.shape)
        unit = surrogate_log_likelihood(frame, 1.0, Camera(read_variance=variance)).sum()
        self.constant = float(unit - (torch.xlogy(self.counts, 1 + self.var) - 1 - self.var).sum())  # −Σ log Γ(x' + 1)

    def share(self, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """Share of the light in each pixel, (n, P)."""
        along_u, along_v = pixel_integral(u, sigma, self.shape[1]), pixel_integral(v, sigma, self.shape[0])
        return (along_v[:, :, None] * along_u[:, None, :]).flatten(1)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Σ x' log ω' − ω', (n,); without the constant."""
        u, v, photons, background, sigma = theta.T
        return self._poisson(photons[:, None] * self.share(u, v, sigma) + background[:, None] + self.var)

    def _poisson(self, rate: Tensor) -> Tensor:
        return rate.clamp(min=TINY).log() @ self.counts - rate.sum(1)

    def profile(self, u: Tensor, v: Tensor, sigma: Tensor) -> _Profile:
        """Fisher scoring in N and b, within the prior: weighted least squares with the weights of the step before."""
        share, signal = self.share(u, v, sigma), self.counts - self.var
        (n_low, n_high), (b_low, b_high) = self.bounds[2:4].tolist()
        best: list[Tensor] = []
        weight = torch.ones_like(share)
        for _ in range(SCORING_STEPS):
            weighted = share * weight
            a, c, d = (share * weighted).sum(1).clamp(min=TINY), weighted.sum(1), weight.sum(1)
            p, q = weighted @ signal, weight @ signal
            photons = ((p * d - q * c) / (a * d - c * c).clamp(min=TINY)).clamp(n_low, n_high)
            background = ((q - c * photons) / d).clamp(b_low, b_high)
            photons = ((p - c * background) / a).clamp(n_low, n_high)
            rate = torch.addcmul((background[:, None] + self.var), photons[:, None], share).clamp(min=TINY)
            now = [self._poisson(rate), photons, background]
            best = [torch.where(now[0] > best[0], x, y) for x, y in zip(now, best, strict=True)] if best else now
            weight = 1 / rate.clamp(min=1e-6)
        weight = 1 / (best[1][:, None] * share + best[2][:, None] + self.var).clamp(min=1e-6)
        weighted = share * weight
        a, c, d = (share * weighted).sum(1).clamp(min=TINY), weighted.sum(1), weight.sum(1)
        left = (1 - c * c / (a * d)).clamp(min=1e-6)
        information = []
        (eu, du, su), (ev, dv, sv) = (
            (pixel_integral(x, sigma, n), *pixel_integral_gradient(x, sigma, n))
            for x, n in zip((u, v), self.shape[::-1], strict=True)
        )
        weight = weight.reshape(-1, *self.shape)
        for rows, columns in (
            ((ev**2,), (du**2,)),
            ((dv**2,), (eu**2,)),
            ((ev**2, sv**2, 2 * ev * sv), (su**2, eu**2, eu * su)),
        ):
            terms = [torch.einsum("nhw,nh,nw->n", weight, r, c) for r, c in zip(rows, columns, strict=True)]
            information.append(best[1] ** 2 * torch.stack(terms).sum(0))
        return _Profile(
            best[0], best[1], best[2], 1 / (a * left).sqrt(), 1 / (d * left).sqrt(), torch.stack(information)
        )


@dataclass(frozen=True)
class _Found:
    """What the search leaves: cells, and the ranges of N, b and σ."""

    cells: Tensor  # (n, 2) whole numbers: place on the lattice
    size: tuple[float, float]
    origin: tuple[float, float]
    best: Tensor  # (5,)
    log_likelihood: float
    ranges: list[tuple[float, float]]


def _search(scene: _Scene, depth: float) -> _Found:
    """Step 1 of the module's head."""
    low, high = scene.bounds[:2, 0], scene.bounds[:2, 1]
    sigma_low, sigma_high = scene.bounds[4].tolist()
    spread = math.log(sigma_high / sigma_low)
    first = ((high - low) / (0.5 * sigma_low)).ceil()  # cells along u and v
    size = (high - low) / first
    cells = torch.cartesian_prod(*(torch.arange(int(n)) for n in first))  # (M, 2)
    disc = scene.prior.disc
    panels = max(1, math.ceil(spread / 0.16))
    while True:
        middle = low + (cells + 0.5) * size
        if disc is not None:
            reach = disc[2] + float(size.norm()) / 2
            near = (middle - torch.tensor(disc[:2])).norm(dim=1) <= reach
            cells, middle = cells[near], middle[near]
        edges = sigma_low * torch.linspace(0, spread, panels + 1, dtype=torch.float64).exp()
        sigma = (edges[1:] + edges[:-1]) / 2
        rows = [m.repeat_interleave(panels, 0) for m in middle.T]
        rows.append(sigma.repeat(len(middle)))
        chunk = max(1, (1 << 20) // len(scene.counts))
        parts = [scene.profile(*block) for block in zip(*(r.split(chunk) for r in rows), strict=True)]
        every = _Profile(**{f.name: torch.cat([getattr(p, f.name) for p in parts], -1) for f in fields(_Profile)})
        half = (
            torch.stack([size[0].expand(len(rows[0])), size[1].expand(len(rows[0])), edges.diff().repeat(len(middle))])
            / 2
        )
        slack = (half**2 * every.information).sum(0)  # twice the foreseen loss
        top = int(every.log_likelihood.argmax())
        missing = every.log_likelihood[top] - every.log_likelihood  # nats
        alive = (missing - slack <= depth).reshape(-1, panels)
        sd = 1 / every.information[:, top].sqrt().clamp(min=1e-6)  # u, v, σ
        cells = cells[alive.any(1)]
        if bool((size <= 1.2 * sd[:2]).all()):
            break
        cells = (3 * cells[:, None] + torch.cartesian_prod(torch.arange(3), torch.arange(3))).reshape(-1, 2)
        size = size / 3
        if spread:
            panels = min(3 * panels, max(panels, math.ceil((sigma_high - sigma_low) / (1.2 * float(sd[2])))))
    budget = depth - missing
    keep = budget > 0
    sds = (2 * budget[keep]).sqrt() + 0.5  # as far as the likelihood may still fall
    ranges = []
    for x, sd_x, (least, most) in zip(
        (every.photons, every.background),
        (every.photons_sd, every.background_sd),
        scene.bounds[2:4].tolist(),
        strict=True,
    ):
        ends = float((x[keep] - sds * sd_x[keep]).min()), float((x[keep] + sds * sd_x[keep]).max())
        ranges.append((max(ends[0], least), min(ends[1], most)))
    some = alive.any(0).nonzero()[:, 0]
    ranges.append((float(edges[some[0]]), float(edges[some[-1] + 1])))
    best = torch.stack([rows[0][top], rows[1][top], every.photons[top], every.background[top], rows[2][top]])
    return _Found(cells, tuple(size.tolist()), tuple(low.tolist()), best, float(every.log_likelihood[top]), ranges)  # type: ignore[arg-type]


def _steps(scene: _Scene, best: Tensor) -> list[float]:
    """Step of each axis from the posterior's covariance near its mode, as if it and the prior were Gaussian.

    In the trapezoidal rule on a Gaussian with correlations R, the largest error stems from the whole numbers n ≠ 0 with
    the smallest nᵀ R n: where that is below 1, the steps of the axes in n get shorter.
    """
    names = ("u", "v", "photons", "sigma", "background")
    order = [names.index(name) for name in PARAMETERS]
    emitter = Emitters(*best[:3, None, None])
    gradient = rate_gradient(emitter, PSF(float(best[4])), scene.shape, names)[:, order]
    rate = best[2] * scene.share(best[:1], best[1:2], best[4:]) + best[3] + scene.var
    information = fisher_information(gradient, 1 / rate.clamp(min=1e-6).reshape(1, *scene.shape))[0]
    width = (scene.bounds[:, 1] - scene.bounds[:, 0]).clamp(min=1e-6)
    covariance = (information + torch.diag(12 / width**2)).inverse()
    sd = covariance.diagonal().sqrt()
    correlation = covariance / (sd[:, None] * sd)
    n = torch.cartesian_prod(*[torch.arange(-1.0, 2.0, dtype=torch.float64)] * 5)
    n = n[n.abs().sum(1) > 0]
    form = torch.einsum("ki,ij,kj->k", n, correlation, n).clamp(0.05, 1).sqrt()  # (242,)
    shorter = [float(form[n[:, i] != 0].min()) for i in range(5)]
    return [STEP * float(s) * f for s, f in zip(sd, shorter, strict=True)]


def _on_grid(scene: _Scene, depth: float, resolution: float) -> tuple[Posterior, float]:
    """Steps 1 and 2; with the posterior, its largest relative density at an end inside the prior."""
    found = _search(scene, depth)
    steps = [h / resolution for h in _steps(scene, found.best)]
    steps[0], steps[1] = (min(h, WIDEST / resolution) for h in steps[:2])
    origin, size = torch.tensor(found.origin, dtype=torch.float64), torch.tensor(found.size, dtype=torch.float64)
    corners = torch.stack([origin + found.cells.amin(0) * size, origin + (found.cells.amax(0) + 1) * size], 1)  # (2, 2)
    prior = scene.bounds.tolist()
    ranges = [(max(a, p), min(b, q)) for (a, b), (p, q) in zip(corners.tolist(), prior[:2], strict=True)] + found.ranges
    rounding = [1e-9 * (q - p) for p, q in prior]
    free = [(a > p + e, b < q - e) for (a, b), (p, q), e in zip(ranges, prior, rounding, strict=True)]
    axes = [Axis.over(a, b, h, not all(f)) for (a, b), h, f in zip(ranges, steps, free, strict=True)]
    plane = _plane(axes[0], axes[1], ranges, steps, scene.prior.disc)
    s, t = torch.meshgrid(plane.s.nodes, plane.t.nodes, indexing="ij")
    u, v, area = (x.flatten() for x in plane.positions(s, t))
    weight = (plane.s.weights[:, None] * plane.t.weights).flatten() * area
    place = ((torch.stack([u, v], 1) - origin) / size).floor().long()
    most = int(max(place.max(), found.cells.max())) + 2
    inside = (weight > 0) & torch.isin(place[:, 0] * most + place[:, 1], found.cells[:, 0] * most + found.cells[:, 1])
    if inside.double().mean() > 0.5:  # the box of one mode: its corners cost little, and it interpolates well
        inside = weight > 0
    node = inside.nonzero()[:, 0]
    if len(node) * len(axes[2]) > NODES:
        raise ValueError(
            f"frame: the posterior spreads over {len(node)} positions × {len(axes[2])} photon counts, "
            f"more than {NODES}: a prior or a frame with less room is needed"
        )
    u, v, weight = u[node], v[node], weight[node]
    photons, background, sigma = axes[2:]
    mass, nuisance = _integrate(scene, u, v, weight, axes[2:], found.log_likelihood)
    total = mass.sum()
    result = Posterior(
        scene.frame,
        scene.variance,
        scene.prior,
        u,
        v,
        mass / total,
        photons,
        background,
        sigma,
        nuisance / total,
        float(total.log()) + found.log_likelihood + scene.constant + scene.prior.log_density(scene.shape),
        plane,
        weight,
        node,
    )
    edge = 0.0
    position = torch.zeros(len(plane.s) * len(plane.t), dtype=torch.float64)
    position[node] = result.mass.sum(1) / weight
    position = position.reshape(len(plane.s), len(plane.t))
    densities = [position.amax(1), position.amax(0)]
    densities += [
        w / axis.weights for axis, (_, w) in zip(axes[2:], list(result._marginals().values())[2:], strict=True)
    ]
    if plane.disc is not None:  # the rim of a disc is an end that the prior sets
        free[:2] = [(False, False)] * 2
    for density, ends in zip(densities, free, strict=True):
        for end, open_end in zip((density[0], density[-1]), ends, strict=True):
            if open_end:
                edge = max(edge, float(end / density.max()))
    return result, edge


def _plane(u: Axis, v: Axis, ranges: list[tuple[float, float]], steps: list[float], disc) -> _Plane:
    box = (*ranges[0], *ranges[1])
    corners = [(x, y) for x in ranges[0] for y in ranges[1]]
    if disc is None or all(math.hypot(x - disc[0], y - disc[1]) <= disc[2] for x, y in corners):
        return _Plane(u, v, box, None)
    ends = [math.asin(min(1.0, max(-1.0, (x - disc[0]) / disc[2]))) for x in ranges[0]]
    return _Plane(
        Axis.over(ends[0], ends[1], steps[0] / disc[2], True),
        Axis.over(0.0, 1.0, steps[1] / (box[3] - box[2]), True),
        box,
        disc,
    )


def _integrate(
    scene: _Scene, u: Tensor, v: Tensor, weight: Tensor, axes: list[Axis], reference: float
) -> tuple[Tensor, Tensor]:
    """exp(log L − reference) times the weights, summed over (b, σ): (M, K), and over the positions: (K, L, S).

    log ω' = log(b + r²) + log(1 + N e/(b + r²)). In a pixel whose light is faint beside b + r² the second term is a
    power series in N: a matrix product over those pixels for each power instead of a logarithm for each node.
    """
    photons, background, sigma = axes
    floor = (background.nodes[:, None] + scene.var).clamp(min=TINY)  # (L, P)
    everywhere = background.nodes * len(scene.counts) + scene.var.sum()  # Σ (b + r²), (L,)
    powers = [photons.nodes**j * (-1) ** (j + 1) / j for j in range(1, 10)]
    mass = u.new_zeros(len(u), len(photons))
    nuisance = u.new_zeros(len(photons), len(background), len(sigma))
    inner = photons.weights[:, None] * background.weights  # (K, L)
    tile = torch.stack([u, v]).div(2, rounding_mode="floor").T  # positions of a block share their bright pixels
    blocks = torch.unique(tile, dim=0, return_inverse=True)[1]
    for block in range(int(blocks.max()) + 1):
        rows = (blocks == block).nonzero()[:, 0]
        for k, (width, width_weight) in enumerate(zip(sigma.nodes, sigma.weights, strict=True)):
            share = scene.share(u[rows], v[rows], width.expand(len(rows)))  # (m, P)
            ratio = photons.nodes[-1] * share.amax(0) / floor.amin(0)  # (P,) largest N e/(b + r²)
            log_l = -share.sum(1)[:, None, None] * photons.nodes[:, None]  # (m, K, 1)
            weak = ratio < 0.1
            log_l = log_l + floor[:, weak].log() @ scene.counts[weak] - everywhere
            # the first term left out: x' ratio^(J + 1)/(J + 1) < 1e-10 x', nearly always far less
            for least, below, terms in ((1e-16, 1e-4, 3), (1e-4, 1e-2, 5), (1e-2, 0.1, 9)):
                pixels = ((ratio >= least) & (ratio < below)).nonzero()[:, 0]
                if len(pixels) == 0:
                    continue
                e, r = share[:, pixels], 1 / floor[:, pixels]
                e_j, r_j = torch.ones_like(e), scene.counts[pixels] * torch.ones_like(r)
                for j in range(terms):
                    e_j, r_j = e_j * e, r_j * r
                    log_l += powers[j][:, None] * (e_j @ r_j.T)[:, None, :]
            log_l += _bright(share[:, ~weak], floor[:, ~weak], photons.nodes, scene.counts[~weak])
            value = (log_l - reference).exp_() * (inner * width_weight) * weight[rows, None, None]  # (m, K, L)
            mass[rows] += value.sum(2)
            nuisance[:, :, k] += value.sum(0)
    return mass, nuisance


def _bright(share: Tensor, floor: Tensor, photons: Tensor, counts: Tensor) -> Tensor:
    """Σ x' log ω' over the bright pixels, (m, K, L), in blocks that stay in the cache."""
    size = max(1, (1 << 16) // max(1, len(photons) * floor.numel()))
    out = share.new_empty(len(share), len(photons), len(floor))
    for start in range(0, len(share), size):
        light = share[start : start + size, None, :] * photons[:, None]  # (c, K, P)
        out[start : start + size] = (light[:, :, None] + floor).log_() @ counts
    return out


def _kernel(position: Tensor, sigma: float, size: int) -> Tensor:
    """exp(−(k − position)²/2 sigma²) for k = 0 … size − 1: (M, size)."""
    return torch.exp(-(((torch.arange(size, dtype=torch.float64) - position[:, None]) / sigma) ** 2) / 2)
