"""A figure with a slider that works in a static page: pictures drawn beforehand and one range input.

It needs no kernel, no library and no network, so it behaves the same in the rendered book, on Colab, in
Jupyter and from a file on disk. Where a kernel is live, `Slider.interact` draws anew at every value instead.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

_COLOURS = 256  # palette of a frame: a PNG of a third of the size, with no difference to be seen
_serial = itertools.count(1)  # makes the ids unique where a notebook shows the same slider twice


class Slider:
    """One figure at several values of a parameter, with a slider that chooses among them.

    draw: draw(value) -> Figure; called once a value; the figure is closed after. Fix the axis and colour
        limits inside, or the frames cannot be compared.
    values: the parameter's values, at least 2, in the slider's order.
    label: plain text that names the parameter, "photons N", say. unit: its unit, "" for none.
    alt: what the picture shows, for those who do not see it; "{value}" in it becomes the value.
    caption: plain text below the picture; None where the cell's `mystnb` metadata carries the caption.
    initial: index into values; the frame shown first, in print, and where scripts do not run.
    fmt: format of a value, as "{:.2g}", or a function value -> text.
    Raises ValueError for bad input, and where the frames differ in size.

    Shown at the end of a cell it is always the static form, on Colab and in Jupyter too.
    """

    def __init__(
        self,
        draw: Callable[[Any], Figure],
        values: Iterable[Any],
        label: str,
        alt: str,
        caption: str | None = None,
        initial: int = 0,
        *,
        unit: str = "",
        fmt: str | Callable[[Any], str] = "{:g}",
    ) -> None:
        self.draw, self.values, self.caption, self.unit = draw, list(values), caption, unit
        self.label, self.alt = _required("label", label), _required("alt", alt)
        if not callable(draw):
            raise ValueError(f"draw={draw!r}: a function of one value that returns a Figure is needed")
        if len(self.values) < 2:
            raise ValueError(f"values has length {len(self.values)}; a slider needs at least 2")
        if isinstance(initial, bool) or not isinstance(initial, int) or not 0 <= initial < len(self.values):
            raise ValueError(f"initial={initial!r}: an index from 0 to {len(self.values) - 1} is needed")
        self.initial, self._fmt = initial, fmt
        self.texts = [self.text(value) for value in self.values]
        if repeated := sorted({text for text in self.texts if self.texts.count(text) > 1}):
            raise ValueError(f"values read the same, {repeated}: leave one out, or choose a finer fmt={fmt!r}")
        self._frames, self._order = _distinct([self._frame(value) for value in self.values])

    def text(self, value: Any) -> str:
        """The value as the slider shows it, with its unit."""
        try:
            number = self._fmt(value) if callable(self._fmt) else self._fmt.format(value)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ValueError(f"fmt={self._fmt!r} cannot write the value {value!r}: {error}") from error
        return f"{number}\N{NO-BREAK SPACE}{self.unit}" if self.unit else number

    def interact(self, values: Iterable[Any] | None = None) -> None:
        """Show the live form: ipywidgets calls draw at each value, or at those given, a finer set perhaps.

        Needs a running kernel and ipywidgets 7.7 or newer; in a static page it shows nothing that moves.
        """
        import ipywidgets  # only the live form needs it
        from IPython.display import display

        choices = self.values if values is None else list(values)
        if not choices:
            raise ValueError("values is empty; the live slider needs at least 1")
        start = self.values[self.initial] if values is None else choices[0]

        def show(value: Any) -> None:
            figure = self._figure(value)
            display(figure)
            plt.close(figure)  # or the inline backend would show it a second time

        options = [(self.text(value), k) for k, value in enumerate(choices)]
        widget = ipywidgets.SelectionSlider(
            options=options,
            value=next((k for k, value in enumerate(choices) if value is start), 0),
            description=self.label,
            style={"description_width": "initial"},
            layout={"width": "95%"},
        )
        ipywidgets.interact(lambda index: show(choices[index]), index=widget)

    def png(self, index: int | None = None) -> bytes:
        """The frame at an index into values, the initial one by default, as a PNG."""
        return self._frames[self._order[self.initial if index is None else index]]

    def _figure(self, value: Any) -> Figure:
        figure = self.draw(value)
        if not isinstance(figure, Figure):
            raise ValueError(f"draw({value!r}) returned {type(figure).__name__}; it must return its Figure")
        return figure

    def _frame(self, value: Any) -> Image.Image:
        figure = self._figure(value)
        canvas = FigureCanvasAgg(figure)  # not savefig: its tight box differs from frame to frame
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba())  # (H, W, 4)
        plt.close(figure)
        if pixels[..., 3].min() < 255:
            raise ValueError(f"draw({value!r}) is transparent; call figures.use_style() for an opaque figure")
        return Image.fromarray(pixels[..., :3])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The same picture for each kind of output: HTML for pages, PNG for print, text for the rest."""
        return {
            "text/html": self._repr_html_(),
            "image/png": base64.b64encode(self.png()).decode(),
            "text/plain": f"{self.alt_text(self.initial)} [{self.label}: {', '.join(self.texts)}]",
        }

    def alt_text(self, index: int) -> str:
        """The alternative text of the frame at an index into values."""
        return self.alt.replace("{value}", self.texts[index])

    def _repr_html_(self) -> str:
        uris = ["data:image/png;base64," + base64.b64encode(frame).decode() for frame in self._frames]
        shown = self._order[self.initial]
        digest = hashlib.sha256("".join([self.label, *uris]).encode()).hexdigest()[:8]
        width, height = Image.open(io.BytesIO(self.png())).size
        script = {
            "frames": [None if k == shown else uri for k, uri in enumerate(uris)],  # that one is in the page
            "order": self._order,
            "texts": self.texts,
            "alts": [self.alt_text(k) for k in range(len(self.values))],
        }
        parts = {
            "ID": f"slider-{digest}-{next(_serial)}",
            "SRC": uris[shown],
            "ALT": html.escape(self.alt_text(self.initial)),
            "WIDTH": str(width),
            "HEIGHT": str(height),
            "LABEL": html.escape(self.label),
            "LAST": str(len(self.values) - 1),
            "INITIAL": str(self.initial),
            "LONGEST": str(max(map(len, self.texts))),  # characters; else the control would change its width
            "TEXT": html.escape(self.texts[self.initial]),
            "CAPTION": f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else "",
            "DATA": json.dumps(script, ensure_ascii=True).replace("<", "\\u003c"),  # no </script> inside
        }
        return re.sub("%([A-Z]+)%", lambda found: parts[found[1]], _PAGE)


def _required(name: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name}={text!r}: a text that is not empty is needed")
    return text


def _distinct(images: Sequence[Image.Image]) -> tuple[list[bytes], list[int]]:
    """The different frames as PNGs, and which of them belongs to each value."""
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"the frames have sizes {sorted(sizes)} px; draw must return figures of one size")
    frames: dict[bytes, int] = {}
    order = [frames.setdefault(_png(image), len(frames)) for image in images]
    return list(frames), order


def _png(image: Image.Image) -> bytes:
    """A frame as a small PNG: its own colours where they are few, else the best 256 of them."""
    if image.getcolors(_COLOURS) is None:
        image = image.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    else:
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=_COLOURS)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


# The control is hidden until the script runs, so that print and pages without scripts show the picture only.
# Colours are the page's own (currentColor), so that light and dark themes both fit.
_PAGE = """\
<figure class="smlmtut-slider" id="%ID%" style="margin:0 0 1rem;max-width:%WIDTH%px">
<style>
.smlmtut-slider img{display:block;width:100%;height:auto}
.smlmtut-slider .control{display:flex;flex-wrap:wrap;align-items:center;gap:.25rem .75rem;padding:.4rem 0}
.smlmtut-slider .control[hidden]{display:none}
.smlmtut-slider input{flex:1 1 10rem;min-width:0;height:1.75rem;accent-color:#0072B2}
.smlmtut-slider input:focus-visible{outline:2px solid currentColor;outline-offset:2px}
.smlmtut-slider output{font-variant-numeric:tabular-nums;font-weight:600}
@media print{.smlmtut-slider .control{display:none}}
</style>
<img src="%SRC%" alt="%ALT%" width="%WIDTH%" height="%HEIGHT%">
<div class="control" hidden>
<label for="%ID%-input">%LABEL%</label>
<input type="range" id="%ID%-input" min="0" max="%LAST%" step="1" value="%INITIAL%" \
aria-valuetext="%TEXT%" autocomplete="off">
<output for="%ID%-input" style="min-width:%LONGEST%ch">%TEXT%</output>
</div>
%CAPTION%
<script>
(function () {
  const data = %DATA%;
  const root = document.getElementById("%ID%");
  const img = root.querySelector("img"), input = root.querySelector("input");
  const output = root.querySelector("output"), first = img.src;
  input.addEventListener("input", function () {
    const k = Number(input.value);
    img.src = data.frames[data.order[k]] || first;
    img.alt = data.alts[k];
    output.value = data.texts[k];
    input.setAttribute("aria-valuetext", data.texts[k]);
  });
  root.querySelector(".control").hidden = false;
})();
</script>
</figure>
"""
