"""The book's plotting style and the few drawing helpers that several chapters share.

Figures stand on an opaque, nearly white card, so that they stay readable on a dark page and in print.
Lines use the Okabe-Ito colours, which survive colour blindness; images use cividis, which is also
monotonic in lightness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from ._slider import Slider

__all__ = [
    "CARD",
    "OKABE_ITO",
    "Slider",
    "add_scale_bar",
    "mark_positions",
    "show_image",
    "show_images",
    "use_style",
]

CARD = "#fcfcfc"  # figure background: opaque on purpose, see the module's docstring

OKABE_ITO = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
    "yellow": "#F0E442",
}  # Okabe and Ito (2008); yellow last, as it is faint on a light card

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.facecolor": CARD,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=list(OKABE_ITO.values())),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,  # 7 in are 770 px: the width of the book's text column
    "figure.facecolor": CARD,
    "figure.figsize": (7.0, 3.6),  # inches
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 10,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "image.origin": "upper",  # row 0 on top, as a camera reads out
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.facecolor": CARD,
}


def use_style() -> None:
    """Make the book's style the default of every figure drawn from here on."""
    mpl.rcParams.update(STYLE)


def show_image(
    ax: Axes,
    image: ArrayLike,
    *,
    unit: str | None = None,
    title: str | None = None,
    scale_bar: float | None = None,
    pixel_size_nm: float | None = None,
    colorbar: bool = True,
    **imshow: Any,
) -> AxesImage:
    """Draw an image in camera pixels, with a colour bar that carries the unit, and a scale bar.

    image: (H, W), array or tensor on any device. unit: what the colour means, "photo-electrons", say;
    required where there is a colour bar. scale_bar: its length in px, or in nm where pixel_size_nm (nm
    per px of this image) is given. Other keywords go to imshow (vmin, vmax, cmap, norm, extent).
    Raises ValueError for an image that is not 2-D, and for a colour bar without a unit.
    """
    pixels = _as_image("image", image)
    if colorbar and not unit:
        raise ValueError(f"unit={unit!r}: name what the colour bar shows, or pass colorbar=False")
    drawn = ax.imshow(pixels, **imshow)
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if title is not None:
        ax.set_title(title)
    if colorbar:
        _figure(ax).colorbar(drawn, ax=ax, label=unit, fraction=0.05, pad=0.03)
    if scale_bar is not None:
        add_scale_bar(ax, scale_bar, pixel_size_nm)
    return drawn


def show_images(
    axes: Sequence[Axes],
    images: Sequence[ArrayLike],
    titles: Sequence[str],
    *,
    unit: str,
    scale_bar: float | None = None,
    pixel_size_nm: float | None = None,
    **imshow: Any,
) -> list[AxesImage]:
    """Draw images side by side on one common colour scale with one colour bar.

    axes, images (each (H, W)) and titles: of one length, at least 1. vmin and vmax default to the extremes
    over all images. The scale bar stands in the first. Raises ValueError where the lengths differ.
    """
    pixels = [_as_image(f"images[{k}]", image) for k, image in enumerate(images)]
    if not len(axes) == len(pixels) == len(titles) or not pixels:
        raise ValueError(
            f"axes, images and titles have lengths {len(axes)}, {len(pixels)} and {len(titles)}; "
            "one length, at least 1, is needed"
        )
    if "norm" not in imshow:
        imshow.setdefault("vmin", min(float(np.nanmin(image)) for image in pixels))
        imshow.setdefault("vmax", max(float(np.nanmax(image)) for image in pixels))
    drawn = [
        show_image(ax, image, title=title, colorbar=False, **imshow)
        for ax, image, title in zip(axes, pixels, titles, strict=True)
    ]
    _figure(axes[0]).colorbar(drawn[-1], ax=list(axes), label=unit, fraction=0.05, pad=0.02)
    if scale_bar is not None:
        add_scale_bar(axes[0], scale_bar, pixel_size_nm)
    return drawn


def add_scale_bar(ax: Axes, length: float, pixel_size_nm: float | None = None) -> None:
    """Draw a scale bar in the lower left corner of an image.

    length: px, or nm where pixel_size_nm (nm per px) is given. Raises ValueError unless the bar is
    longer than 0 and shorter than the image.
    """
    if pixel_size_nm is not None and not pixel_size_nm > 0:
        raise ValueError(f"pixel_size_nm={pixel_size_nm!r}: a positive number of nm is needed")
    pixels = length if pixel_size_nm is None else length / pixel_size_nm
    left, right = sorted(ax.get_xlim())
    if not 0 < pixels < right - left:
        raise ValueError(f"scale bar of {pixels:g} px: longer than 0 and shorter than {right - left:g} px wide")
    text = f"{length:g} px" if pixel_size_nm is None else f"{length:g} nm"
    bottom, top = ax.get_ylim()  # bottom > top in an image with row 0 on top
    x, y = left + 0.05 * (right - left), bottom + 0.06 * (top - bottom)
    outline = [matplotlib.patheffects.withStroke(linewidth=3, foreground="black")]
    bar = {"color": "white", "path_effects": outline}
    ax.plot([x, x + pixels], [y, y], linewidth=2.5, solid_capstyle="butt", scalex=False, scaley=False, **bar)
    ax.annotate(text, (x, y), xytext=(0, 3), textcoords="offset points", fontsize="small", **bar)


def mark_positions(ax: Axes, u: ArrayLike, v: ArrayLike, *, label: str | None = None, **plot: Any) -> None:
    """Mark positions on an image with crosses that show on dark and on bright pixels alike.

    u, v: columns and rows in px, of one shape. Other keywords go to plot (marker, color).
    Raises ValueError where the shapes differ.
    """
    columns, rows = np.atleast_1d(_as_array(u)), np.atleast_1d(_as_array(v))
    if columns.shape != rows.shape:
        raise ValueError(f"u has shape {columns.shape} and v {rows.shape}; one shape is needed")
    style = {"marker": "+", "markersize": 9, "markeredgewidth": 1.5, "color": OKABE_ITO["vermillion"]} | plot
    outline = [matplotlib.patheffects.withStroke(linewidth=3, foreground="white")]
    ax.plot(
        columns.ravel(),
        rows.ravel(),
        linestyle="none",
        label=label,
        path_effects=outline,
        scalex=False,
        scaley=False,
        **style,
    )


def _as_array(values: Any) -> np.ndarray:
    """Values as a numpy array; a torch tensor leaves its device and its graph first."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def _as_image(name: str, image: Any) -> np.ndarray:
    pixels = _as_array(image)
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ValueError(f"{name} has shape {pixels.shape}; (H, W) with H, W >= 1 is needed")
    return pixels


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("the axes belong to no figure")
    return figure
