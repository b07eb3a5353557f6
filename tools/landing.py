"""Draw the pictures of the landing page: SMLM in five steps, and a super-resolved image with its uncertainty.

python tools/landing.py writes book/_static/smlm-*.png. One simulated movie of two filaments 1.5 px apart and a ring.
"""

import math
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Ellipse, Rectangle
from torch import Tensor

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smlmtut import figures
from smlmtut.estimation import cut_spots, find_spots, fit_spots
from smlmtut.imaging import PSF, Camera, Emitters, expected_photons, expose, kde, to_photoelectrons

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
SIZE, FRAMES, PER_FRAME = 32, 3000, 2.0  # px, frames, molecules that shine in one
PIXEL_NM, BACKGROUND, WIDTH = 108.0, 8.0, 1.0  # nm, e⁻ per pixel, px
CAMERA = Camera(gain=2.0, offset=100.0, read_variance=8.0)
RED = figures.OKABE_ITO["vermillion"]


def molecules(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions (count,) on two filaments, 1.5 px apart, and on a ring of 1.6 px radius."""
    along, which = torch.rand(2, count, generator=generator, dtype=torch.float64)
    u = 1 + along * 29
    v = 21 - 0.35 * u + 2.2 * torch.sin(u / 4.5)
    v = torch.where(which < 0.4, v, v + 1.5)
    angle, ring = 2 * math.pi * along, which > 0.8
    u = torch.where(ring, 23 + 1.6 * angle.cos(), u)
    v = torch.where(ring, 24 + 1.6 * angle.sin(), v)
    return u, v


def movie(seed: int = 7) -> tuple[Tensor, Tensor]:
    """Raw frames (FRAMES, SIZE, SIZE) in ADU, and the expected light of all of them together (SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((FRAMES,), PER_FRAME), generator=generator).long()
    present = torch.arange(int(counts.max())) < counts[:, None]
    u, v = (x.reshape(present.shape) for x in molecules(present.numel(), generator))
    light = 100 - 300 * torch.rand(present.shape, generator=generator, dtype=torch.float64).clamp(min=1e-6).log()
    rate = expected_photons(Emitters(u, v, light, present), PSF(WIDTH), (SIZE, SIZE), BACKGROUND)
    return expose(rate, CAMERA, generator), rate.sum(0)


def localize(frames: Tensor) -> dict[str, Tensor]:
    """Localizations of isolated spots with the errors that their fits claim: frame, u, v, sd, by name."""
    electrons = to_photoelectrons(frames, CAMERA)
    found = find_spots(electrons, WIDTH, 6.0, border=2)
    spots, corners = cut_spots(electrons, found, 9)
    fit = fit_spots(spots, WIDTH, read_variance=CAMERA.read_variance / CAMERA.gain**2)
    good = fit.converged & (fit.chi_square < 130) & (fit.u_sd < 0.4)  # 81 pixels: χ² is about 77 ± 12
    kept = {
        "frame": found[:, 0],
        "u": fit.u + corners[:, 1],
        "v": fit.v + corners[:, 0],
        "sd": (fit.u_sd + fit.v_sd) / 2,
    }
    return {name: x[good] for name, x in kept.items()}


def axes(width: float, panels: int = 1):
    """A figure with square panels side by side."""
    fig, all_axes = plt.subplots(1, panels, figsize=(width, width / panels + 0.25), squeeze=False)
    return fig, all_axes[0]


def save(fig, name: str) -> None:
    """Write a picture, the same bytes on every machine with these libraries."""
    fig.savefig(STATIC / f"smlm-{name}.png", dpi=130, metadata={"Software": None})
    plt.close(fig)


def rendered(table: dict[str, Tensor]) -> Tensor:
    """All localizations as an image, each as wide as its error; bright places are cut."""
    return kde.render(table["u"], table["v"], (SIZE, SIZE), 8, table["sd"]).clamp(max=2.0)


def five(frames: Tensor, total: Tensor, table: dict[str, Tensor]) -> None:
    """The five pictures: all at once, one frame, one spot, some localizations, all of them."""
    side, bar = (-0.5, SIZE - 0.5), {"scale_bar": 1000, "pixel_size_nm": PIXEL_NM}
    fig, (ax,) = axes(2.6)
    figures.show_image(ax, total, colorbar=False, **bar)
    save(fig, "1-all-at-once")
    shown = 18
    fig, (ax,) = axes(2.6)
    figures.show_image(ax, frames[shown], colorbar=False, **bar)
    save(fig, "2-one-frame")
    inside = (table["u"] > 6) & (table["u"] < 26) & (table["v"] > 6) & (table["v"] < 26)
    here = int(torch.where(inside, (table["sd"] - 0.15).abs(), math.inf).argmin())  # a dim one, whose error shows
    frame = int(table["frame"][here])
    u, v, sd = (float(table[name][here]) for name in ("u", "v", "sd"))
    row, column = round(v) - 5, round(u) - 5
    fig, (ax,) = axes(2.6)
    figures.show_image(ax, frames[frame, row : row + 11, column : column + 11], colorbar=False)
    place = (u - column, v - row)
    ax.add_patch(Ellipse(place, 4 * sd, 4 * sd, fill=False, color=RED, lw=2))
    ax.plot(*place, "+", color=RED, ms=9, mew=1.5)
    save(fig, "3-one-spot")
    fig, (ax,) = axes(2.6)
    some = table["frame"] < 150
    ax.plot(table["u"][some], table["v"][some], ".", ms=3, color=figures.OKABE_ITO["blue"])
    ax.set(xlim=side, ylim=side[::-1], xticks=[], yticks=[], aspect="equal")
    ax.grid(False)
    save(fig, "4-some")
    fig, (ax,) = axes(2.6)
    figures.show_image(
        ax, kde.render(table["u"], table["v"], (SIZE, SIZE), 8, table["sd"]).clamp(max=2.0), colorbar=False
    )
    save(fig, "5-all")


def with_uncertainty(total: Tensor, table: dict[str, Tensor]) -> None:
    """All light, the super-resolved image, and a part of it with a circle of one standard deviation a localization."""
    fig, (left, middle, right) = axes(7.4, 3)
    figures.show_image(left, total, colorbar=False, title="all light", scale_bar=1000, pixel_size_nm=PIXEL_NM)
    figures.show_image(middle, rendered(table), colorbar=False, title="all localizations")
    low_u, low_v, across = 20.5, 21.5, 5.0
    corner, side = (8 * (low_u + 0.5) - 0.5, 8 * (low_v + 0.5) - 0.5), 8 * across
    middle.add_patch(Rectangle(corner, side, side, fill=False, color="white", lw=1))
    for u, v, sd in zip(*(table[name][:600].tolist() for name in ("u", "v", "sd")), strict=True):
        right.add_patch(Ellipse((u, v), 2 * sd, 2 * sd, fill=False, color=figures.OKABE_ITO["blue"], lw=0.7))
    right.set(xlim=(low_u, low_u + across), ylim=(low_v + across, low_v), xticks=[], yticks=[], aspect="equal")
    right.set_title("some of them, with their errors")
    right.grid(False)
    right.spines[:].set_visible(True)
    right.plot([low_u + 0.2, low_u + 0.2 + 100 / PIXEL_NM], [low_v + across - 0.25] * 2, color="black", lw=3)
    right.text(low_u + 0.2, low_v + across - 0.4, "100 nm", size="small")
    save(fig, "uncertainty")


def main() -> None:
    """Simulate, localize, draw."""
    figures.use_style()
    frames, total = movie()
    table = localize(frames)
    five(frames, total, table)
    with_uncertainty(total, table)
    nm = PIXEL_NM * table["sd"]
    low, middle, high = (float(nm.quantile(q)) for q in (0.05, 0.5, 0.95))
    print(f"{len(nm)} localizations, claimed sd {low:.1f} / {middle:.1f} / {high:.1f} nm (5, 50, 95 %)")


if __name__ == "__main__":
    main()
