"""One emitter, step 2: the grid, a product of quadrature rules over the box that the search leaves.

Along an axis where the prior cuts the posterior off, the rule is Gauss-Legendre. Where the posterior vanishes at both
ends, it is the trapezoidal rule, which then converges as fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..estimation.fisher import fisher_information
from ..estimation.fit import PARAMETERS
from ..imaging.psf import PSF, Emitters, rate_gradient
from .search import TINY, Found, FrameLikelihood

if TYPE_CHECKING:
    from scipy.interpolate import RectBivariateSpline

GAUSS = 1.25  # nodes of the Gauss-Legendre rule for each step of the trapezoidal one
STEP = 1.0  # of the trapezoidal rule, in sd: its error is 2 exp(−2π²/STEP²) = 5e-9 for a Gaussian
WIDEST = 0.14  # px: longest step in u and v; it resolves the square of a KDE's kernel, whose sd is 0.25/√2 px
BLUR = 0.7  # sd of the proposals about a node, in mean steps: their density has ripples of 2 exp(−2π² BLUR²) = 1e-4
FINER = 8  # cells of the interpolated position density for each node, along each axis
AT_ONCE = 1 << 22  # entries of a temporary: 32 MB
NODES = 1 << 25  # largest number of nodes in (u, v, N): 256 MB


@dataclass(frozen=True)
class Axis:
    """Nodes of a quadrature rule, their weights, and the edges of their cells; a single node where a value is known."""

    nodes: Tensor
    weights: Tensor
    edges: Tensor

    @classmethod
    def over(cls, low: float, high: float, step: float, cut: bool) -> Axis:
        """[low, high] by Gauss-Legendre if the prior cuts the density off at an end, else by the trapezoidal rule."""
        if low == high:
            return cls(*(torch.tensor(x, dtype=torch.float64) for x in ([low], [1.0], [low, low])))
        length = high - low
        if cut:  # in the middle the nodes are π/2 times farther apart than equal steps; GAUSS makes up for most of that
            nodes, weights = np.polynomial.legendre.leggauss(math.ceil(GAUSS * length / step) + 4)
            x, w = low + length * (torch.from_numpy(nodes) + 1) / 2, length / 2 * torch.from_numpy(weights)
            return cls(x, w, low + torch.cat([w.new_zeros(1), w.cumsum(0)]))
        count = max(math.ceil(length / step), 4) + 1
        x = torch.linspace(low, high, count, dtype=torch.float64)
        h = length / (count - 1)
        return cls(x, torch.full_like(x, h), torch.cat([x - h / 2, x[-1:] + h / 2]))

    def __len__(self) -> int:
        return len(self.nodes)

    def near(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Draws (n,) about the nodes of these indices: Gaussian, reflected at the ends."""
        if len(self) == 1:
            return self.nodes[index]
        low, high, sd = self._blur()
        x = self.nodes[index] + sd * torch.randn(len(index), generator=generator, dtype=torch.float64)
        x = torch.where(x < low, 2 * low - x, x)
        return torch.where(x > high, 2 * high - x, x)

    def kernel(self, x: Tensor) -> Tensor:
        """Density of the draws about each node, (n, K), at points x (n,)."""
        if len(self) == 1:
            return torch.ones_like(x)[:, None]
        low, high, sd = self._blur()
        images = [torch.exp(-(((y[:, None] - self.nodes) / sd) ** 2) / 2) for y in (x, 2 * low - x, 2 * high - x)]
        return torch.stack(images).sum(0) / (math.sqrt(2 * math.pi) * sd)

    def _blur(self) -> tuple[float, float, float]:
        low, high = float(self.edges[0]), float(self.edges[-1])
        return low, high, BLUR * (high - low) / len(self)


@dataclass(frozen=True)
class Plane:
    """Coordinates (s, t) of the positions in the box.

    They are u and v themselves, unless a disc (u_0, v_0, R) cuts the box: then u = u_0 + R sin s, and
    v = low(s) + t (high(s) − low(s)) along the chord at u. Both are smooth up to the rim of the disc.
    """

    s: Axis
    t: Axis
    box: tuple[float, float, float, float]
    disc: tuple[float, float, float] | None

    @classmethod
    def over(cls, s: Axis, t: Axis, box: tuple[float, float, float, float], steps: list[float], disc) -> Plane:
        """The box with its axes, or, where a corner lies outside the disc, with those of the chords."""
        corners = [(x, y) for x in box[:2] for y in box[2:]]
        if disc is None or all(math.hypot(x - disc[0], y - disc[1]) <= disc[2] for x, y in corners):
            return cls(s, t, box, None)
        ends = [math.asin(min(1.0, max(-1.0, (x - disc[0]) / disc[2]))) for x in box[:2]]
        s = Axis.over(ends[0], ends[1], steps[0] / disc[2], True)
        return cls(s, Axis.over(0.0, 1.0, steps[1] / (box[3] - box[2]), True), box, disc)

    def chord(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Ends in v of the positions at s; (0, 1) without a disc, so that t is v itself."""
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
class Grid:
    """The M positions in use and the rules of N, b and σ."""

    plane: Plane
    node: Tensor  # (M,) index of a position in the plane, row by row along t
    u: Tensor  # (M,) px
    v: Tensor  # (M,) px
    weight: Tensor  # (M,) of the positions in the rule
    axes: list[Axis]  # of N, b, σ
    free: list[tuple[bool, bool]]  # for each of the five parameters, whether its ends lie inside the prior

    @classmethod
    def over(cls, likelihood: FrameLikelihood, found: Found, resolution: float) -> Grid:
        """The box around all cells that the search left, without the positions in dropped cells if that saves half."""
        steps = [h / resolution for h in _steps(likelihood, found.best)]
        steps[:2] = (min(h, WIDEST / resolution) for h in steps[:2])
        cells, prior = found.cells, likelihood.bounds.tolist()
        low, high = found.origin + cells.amin(0) * found.size, found.origin + (cells.amax(0) + 1) * found.size
        corners = zip(low.tolist(), high.tolist(), prior[:2], strict=True)
        ranges = [(max(a, p), min(b, q)) for a, b, (p, q) in corners] + found.ranges
        rounding = [1e-9 * (q - p) for p, q in prior]
        free = [(a > p + e, b < q - e) for (a, b), (p, q), e in zip(ranges, prior, rounding, strict=True)]
        axes = [Axis.over(a, b, h, not all(f)) for (a, b), h, f in zip(ranges, steps, free, strict=True)]
        plane = Plane.over(axes[0], axes[1], (*ranges[0], *ranges[1]), steps, likelihood.disc)
        if plane.disc is not None:  # the prior sets the rim of the disc
            free[:2] = [(False, False)] * 2
        u, v, area = (
            x.flatten() for x in plane.positions(*torch.meshgrid(plane.s.nodes, plane.t.nodes, indexing="ij"))
        )
        weight = (plane.s.weights[:, None] * plane.t.weights).flatten() * area
        place = ((torch.stack([u, v], 1) - found.origin) / found.size).floor().long()
        most = int(max(place.max(), cells.max())) + 2
        inside = (weight > 0) & torch.isin(place[:, 0] * most + place[:, 1], cells[:, 0] * most + cells[:, 1])
        if inside.double().mean() > 0.5:  # the box of one mode: its corners cost little, and it interpolates well
            inside = weight > 0
        node = inside.nonzero()[:, 0]
        if len(node) * len(axes[2]) > NODES:
            raise ValueError(
                f"frame: the posterior spreads over {len(node)} positions × {len(axes[2])} photon counts, "
                f"more than {NODES}: a prior or a frame with less room is needed"
            )
        return cls(plane, node, u[node], v[node], weight[node], axes[2:], free)

    @property
    def spacing(self) -> float:
        """Mean distance of the nodes along u or v, whichever is longer, px."""
        left, right, top, bottom = self.plane.box
        return max((right - left) / len(self.plane.s), (bottom - top) / len(self.plane.t))

    def edge(self, mass: Tensor, nuisance: Tensor) -> float:
        """Largest density at an end that the prior does not set, relative to the density's maximum."""
        position = torch.zeros(len(self.plane.s) * len(self.plane.t), dtype=torch.float64)
        position[self.node] = mass.sum(1) / self.weight
        position = position.reshape(len(self.plane.s), len(self.plane.t))
        densities = [position.amax(1), position.amax(0)]
        densities += [nuisance.sum([k for k in range(3) if k != i]) / a.weights for i, a in enumerate(self.axes)]
        edge = 0.0
        for density, ends in zip(densities, self.free, strict=True):
            for end, free in zip((density[0], density[-1]), ends, strict=True):
                edge = max(edge, float(end / density.max()) if free else 0.0)
        return edge

    def propose(self, mass: Tensor, nuisance: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Parameters (count, 5) spread about nodes drawn by their mass, and the log of the proposals' density.

        (b, σ) is drawn given N: the proposals lack only its correlation with the position.
        """
        rules = [self.plane.s, self.plane.t, *self.axes]
        rand = torch.rand(2, count, generator=generator, dtype=torch.float64)
        columns, (_, levels, widths) = len(self.plane.t), nuisance.shape
        total = mass.flatten().cumsum(0)
        position, k = _divmod(torch.searchsorted(total, rand[0] * total[-1]).clamp(max=len(total) - 1), mass.shape[1])
        total = torch.cat([nuisance.new_zeros(1), nuisance.flatten().cumsum(0)])
        ends = total[:: levels * widths]  # of each N
        pick = torch.searchsorted(total[1:], ends[k] + rand[1] * (ends[k + 1] - ends[k]))
        level, width = _divmod(pick % (levels * widths), widths)
        x = [
            rule.near(i, generator)
            for rule, i in zip(rules, (*_divmod(self.node[position], columns), k, level, width), strict=True)
        ]
        u, v, area = self.plane.positions(x[0], x[1])
        by_s, by_t, by_photons, by_level, by_width = (rule.kernel(y) for rule, y in zip(rules, x, strict=True))
        row, column = _divmod(self.node, columns)
        size = max(1, AT_ONCE // len(row))
        parts = zip(by_s.split(size), by_t.split(size), strict=True)
        density = torch.cat([(part_s[:, row] * part_t[:, column]) @ mass for part_s, part_t in parts])  # (n, K)
        given = nuisance / nuisance.sum((1, 2), keepdim=True).clamp(min=TINY)
        density = density * by_photons * torch.einsum("nl,ns,kls->nk", by_level, by_width, given)
        return torch.stack([u, v, *x[2:]], 1), (density.sum(1) / area).log()


@dataclass(frozen=True)
class Cells:
    """p(u, v | x) between the nodes: a spline of its logarithm over (s, t), and the mass of FINER² cells a node."""

    spline: RectBivariateSpline
    log_density: Tensor  # at the middle of a cell
    mass: Tensor
    edges: dict[str, tuple[Tensor, Tensor]]  # along u and v

    @classmethod
    def of(cls, grid: Grid, position: Tensor) -> Cells:
        """From the probability (M,) of each position. Nodes that were left out count as 40 nats below the highest."""
        from scipy.interpolate import RectBivariateSpline  # here, since it takes 0.2 s to load

        plane = grid.plane
        log_density = (position / grid.weight).clamp(min=TINY).log()
        values = torch.full((len(plane.s) * len(plane.t),), float(log_density.max()) - 40, dtype=torch.float64)
        values[grid.node] = torch.maximum(log_density, values[0])
        values = values.reshape(len(plane.s), len(plane.t))
        spline = RectBivariateSpline(plane.s.nodes.numpy(), plane.t.nodes.numpy(), values.numpy())
        edges = [
            torch.linspace(float(axis.edges[0]), float(axis.edges[-1]), FINER * len(axis) + 1, dtype=torch.float64)
            for axis in (plane.s, plane.t)
        ]
        s, t = ((e[1:] + e[:-1]) / 2 for e in edges)
        half_s, half_t = (float(e[1] - e[0]) / 2 for e in edges)
        fine = torch.from_numpy(spline(s.numpy(), t.numpy())).flatten()
        s, t = (x.flatten() for x in torch.meshgrid(s, t, indexing="ij"))
        mass = fine.exp() * plane.positions(s, t)[2]
        along_u = plane.positions(s - half_s, t)[0], plane.positions(s + half_s, t)[0]
        along_v = plane.positions(s, t - half_t)[1], plane.positions(s, t + half_t)[1]
        return cls(spline, fine, mass / mass.sum(), {"u": along_u, "v": along_v})

    def level(self, s: float, t: float) -> float:
        """Mass of the cells that are denser than a point of the plane."""
        return float(self.mass[self.log_density > float(self.spline(s, t)[0, 0])].sum())


def _steps(likelihood: FrameLikelihood, best: Tensor) -> list[float]:
    """Step of each axis from the posterior's covariance near its mode, with posterior and prior taken as Gaussian.

    For the trapezoidal rule on a Gaussian with correlation matrix R, the largest error comes from the vector n ≠ 0 of
    whole numbers with the smallest nᵀ R n. Where that is below 1, the steps of the axes with n_i ≠ 0 are shortened.
    """
    names = ("u", "v", "photons", "sigma", "background")
    order = [names.index(name) for name in PARAMETERS]
    emitter = Emitters(*best[:3, None, None])
    gradient = rate_gradient(emitter, PSF(float(best[4])), likelihood.shape, names)[:, order]
    rate = best[2] * likelihood.share(best[:1], best[1:2], best[4:]) + best[3] + likelihood.var
    information = fisher_information(gradient, 1 / rate.clamp(min=1e-6).reshape(1, *likelihood.shape))[0]
    width = (likelihood.bounds[:, 1] - likelihood.bounds[:, 0]).clamp(min=1e-6)
    covariance = (information + torch.diag(12 / width**2)).inverse()
    sd = covariance.diagonal().sqrt()
    correlation = covariance / (sd[:, None] * sd)
    n = torch.cartesian_prod(*[torch.arange(-1.0, 2.0, dtype=torch.float64)] * 5)
    n = n[n.abs().sum(1) > 0]
    form = torch.einsum("ki,ij,kj->k", n, correlation, n).clamp(0.05, 1).sqrt()  # (242,)
    shorter = [float(form[n[:, i] != 0].min()) for i in range(5)]
    return [STEP * float(s) * f for s, f in zip(sd, shorter, strict=True)]


def _divmod(place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return place.div(size, rounding_mode="floor"), place % size
