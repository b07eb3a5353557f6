"""Draw the logo: one emitter's photons on seven by seven pixels, and the ellipse of its bound."""

import math
from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
CIVIDIS = [(0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56)]


def colour(level: float) -> str:
    """A level in [0, 1] as a colour of the map cividis."""
    place = level * (len(CIVIDIS) - 1)
    i = min(int(place), len(CIVIDIS) - 2)
    mixed = (a + (b - a) * (place - i) for a, b in zip(CIVIDIS[i], CIVIDIS[i + 1], strict=True))
    return "#" + "".join(f"{round(x):02x}" for x in mixed)


def logo(size: int = 7, sigma: float = 1.25, u: float = 3.3, v: float = 2.8) -> str:
    """The logo as SVG."""
    step, cells = 10, []
    for row in range(size):
        for column in range(size):
            level = math.exp(-((column - u) ** 2 + (row - v) ** 2) / (2 * sigma**2))
            cells.append(
                f'<rect x="{column * step + 0.5:g}" y="{row * step + 0.5:g}" width="9" height="9" rx="2" '
                f'fill="{colour(0.06 + 0.94 * level)}"/>'
            )
    x, y = (u + 0.5) * step, (v + 0.5) * step
    mark = (
        f'<g fill="none" stroke="#d55e00" stroke-width="2.4"><ellipse cx="{x:g}" cy="{y:g}" rx="9" ry="9"/>'
        f'<path d="M{x - 14:g} {y:g}h10m8 0h10M{x:g} {y - 14:g}v10m0 8v10"/></g>'
    )
    side = size * step
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {side + 4} {side + 4}" role="img">'
    back = f'<rect x="-2" y="-2" width="{side + 4}" height="{side + 4}" rx="8" fill="#00142f"/>'
    title = "<title>Photons of one molecule on a grid of pixels, and its position with error bar</title>"
    return "\n".join([head, title, back, *cells, mark, "</svg>", ""])


if __name__ == "__main__":
    for name in ("logo.svg", "favicon.svg"):
        (STATIC / name).write_text(logo(), encoding="utf-8")
