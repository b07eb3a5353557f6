"""Style, image helpers and the static slider: what a reader sees, and what a wrong call is told."""

# matplotlib's annotations are wider than what it returns here:
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false

import base64
import io
import json
import re
from html.parser import HTMLParser

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from smlmtut import figures

mpl.use("Agg")


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        figures.use_style()
        yield
        left_open = plt.get_fignums()
        plt.close("all")
    assert not left_open, "a test, or the code under it, left figures open"


def bar(value):
    """One bar of a given height, on fixed limits."""
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.bar([0], [value])
    ax.set_ylim(0, 10)
    return fig


def slider(**changes):
    arguments = {"draw": bar, "values": [1, 5, 9], "label": "height h", "alt": "A bar of height {value}."}
    return figures.Slider(**(arguments | changes))


class Page(HTMLParser):
    """Tags with their attributes, and the text inside each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)

    def one(self, name):
        (attributes,) = [attributes for tag, attributes in self.tags if tag == name]
        return attributes

    def data(self):
        return json.loads(re.search(r"const data = (.*);\n", "".join(self.text["script"]))[1])


def pixels(uri):
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def rgb(image):
    return np.asarray(image.convert("RGB"), dtype=float)


# ---- style -----------------------------------------------------------------------------------------------


def relative_luminance(colour):
    """WCAG 2 relative luminance of a colour, 0 (black) to 1 (white)."""
    channels = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_card_is_opaque_and_its_text_has_the_contrast_of_wcag_aaa():
    assert mpl.colors.to_rgba(mpl.rcParams["figure.facecolor"])[3] == 1
    card, ink = (relative_luminance(mpl.rcParams[key]) for key in ("figure.facecolor", "text.color"))
    assert (card + 0.05) / (ink + 0.05) >= 7  # WCAG 2.2, success criterion 1.4.6


def test_lines_cycle_through_okabe_and_ito():
    published = "000000 E69F00 56B4E9 009E73 F0E442 0072B2 D55E00 CC79A7".split()  # Okabe and Ito (2008)
    cycle = [entry["color"].lstrip("#") for entry in mpl.rcParams["axes.prop_cycle"]]
    assert sorted(cycle) == sorted(published)


def test_frames_keep_their_size_under_the_style():
    assert mpl.rcParams["savefig.bbox"] is None
    assert mpl.rcParams["image.cmap"] == "cividis"


# ---- images ----------------------------------------------------------------------------------------------


def test_show_image_draws_the_values_puts_pixel_0_0_at_0_0_and_names_the_unit():
    image = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    fig, ax = plt.subplots()
    drawn = figures.show_image(ax, image, unit="photo-electrons", title="x")
    np.testing.assert_array_equal(drawn.get_array(), image.detach().numpy())
    left, right, bottom, top = drawn.get_extent()
    assert (left, right, bottom, top) == (-0.5, 3.5, 2.5, -0.5)
    assert fig.axes[1].get_ylabel() == "photo-electrons"
    plt.close(fig)


@pytest.mark.parametrize(("length", "pixel_size_nm", "width"), [(5, None, 5), (500, 100, 5), (150, 60, 2.5)])
def test_scale_bar_has_the_asked_length_inside_the_image(length, pixel_size_nm, width):
    fig, ax = plt.subplots()
    figures.show_image(ax, np.zeros((20, 30)), colorbar=False, scale_bar=length, pixel_size_nm=pixel_size_nm)
    (line,) = ax.get_lines()
    x, y = line.get_data()
    assert x[1] - x[0] == pytest.approx(width)
    assert -0.5 < min(x) and max(x) < 29.5 and 10 < y[0] == y[1] < 19.5  # lower left
    assert ax.texts[0].get_text() == f"{length} {'px' if pixel_size_nm is None else 'nm'}"
    assert ax.get_xlim() == (-0.5, 29.5)
    plt.close(fig)


def test_show_images_shares_one_scale():
    fig, axes = plt.subplots(1, 2)
    low, high = figures.show_images(
        axes, [np.full((4, 4), 1.0), np.full((4, 4), 7.0)], ["a", "b"], unit="e", scale_bar=2
    )
    assert low.get_clim() == high.get_clim() == (1.0, 7.0)
    assert len(fig.axes) == 3  # two images, one colour bar
    plt.close(fig)


def test_mark_positions_leaves_the_view_alone():
    fig, ax = plt.subplots()
    figures.show_image(ax, np.zeros((8, 8)), colorbar=False)
    figures.mark_positions(ax, torch.tensor([[1.0, 20.0]]), torch.tensor([[2.0, 3.0]]))
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), [[1, 2], [20, 3]])
    assert ax.get_xlim() == (-0.5, 7.5)
    plt.close(fig)


BAD_IMAGES = {
    "rank": (lambda ax: figures.show_image(ax, np.zeros((1, 4, 4)), unit="e"), r"image has shape \(1, 4, 4\)"),
    "empty": (lambda ax: figures.show_image(ax, np.zeros((0, 4)), unit="e"), r"image has shape \(0, 4\)"),
    "no unit": (lambda ax: figures.show_image(ax, np.zeros((4, 4))), "unit=None"),
    "bar too long": (
        lambda ax: figures.show_image(ax, np.zeros((4, 4)), unit="e", scale_bar=4),
        "scale bar of 4 px",
    ),
    "bar of 0": (lambda ax: figures.add_scale_bar(ax, 0), "scale bar of 0 px"),
    "pixel size": (lambda ax: figures.add_scale_bar(ax, 1, pixel_size_nm=0), "pixel_size_nm=0"),
    "marks": (lambda ax: figures.mark_positions(ax, [1, 2], [1]), r"u has shape \(2,\) and v \(1,\)"),
    "lengths": (lambda ax: figures.show_images([ax], [], [], unit="e"), "lengths 1, 0 and 0"),
    "one of many": (
        lambda ax: figures.show_images([ax], [np.zeros(3)], ["a"], unit="e"),
        r"images\[0\] has shape \(3,\)",
    ),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_named(case):
    call, message = BAD_IMAGES[case]
    fig, ax = plt.subplots()
    with pytest.raises(ValueError, match=message):
        call(ax)
    plt.close(fig)


# ---- the slider ------------------------------------------------------------------------------------------


def test_slider_starts_at_the_initial_frame_and_says_so_to_everyone():
    page = Page(slider(initial=1, unit="px", caption="It grows & grows.")._repr_html_())
    img, control, label, output = (page.one(tag) for tag in ("img", "input", "label", "output"))
    assert img["alt"] == "A bar of height 5\N{NO-BREAK SPACE}px."
    assert (control["type"], control["min"], control["max"], control["value"]) == ("range", "0", "2", "1")
    assert control["aria-valuetext"] == "5\N{NO-BREAK SPACE}px" == page.text["output"][0]
    assert label["for"] == control["id"] == output["for"]
    assert page.text["label"] == ["height h"]
    assert page.text["figcaption"] == ["It grows & grows."]
    assert "hidden" in next(attributes for tag, attributes in page.tags if tag == "div")  # until scripts run


def test_slider_needs_nothing_from_elsewhere():
    text = slider()._repr_html_()
    assert not re.search(r"https?:|src=\"(?!data:)|<link|import\(", text)


def test_every_frame_shows_the_figure_drawn_at_its_value():
    figure_slider = slider()
    page = Page(figure_slider._repr_html_())
    data, first = page.data(), page.one("img")["src"]
    assert data["texts"] == ["1", "5", "9"]
    for value, which in zip([1, 5, 9], data["order"], strict=True):
        shown = pixels(data["frames"][which] or first)
        fig = bar(value)
        fig.canvas.draw()
        exact = np.asarray(fig.canvas.buffer_rgba())[..., :3].astype(float)
        plt.close(fig)
        assert shown.mode == "P"
        assert np.abs(rgb(shown) - exact).max() <= 16  # few colours: the palette is nearly exact


def test_equal_frames_are_stored_once():
    page = Page(slider(draw=lambda value: bar(min(value, 5)), values=[1, 5, 6, 7])._repr_html_())
    assert page.data()["order"] == [0, 1, 1, 1]
    assert len(page.data()["frames"]) == 2
    assert page.data()["frames"][0] is None  # the frame already in the page is not repeated


def test_ids_are_unique_when_the_same_slider_is_shown_twice():
    figure_slider = slider()
    ids = re.findall(r' id="([^"]+)"', figure_slider._repr_html_() + figure_slider._repr_html_())
    assert len(ids) == len(set(ids)) == 4


def test_text_from_the_caller_cannot_break_the_page():
    nasty = "</script><b>\"%DATA%\" & 'x'"
    page = Page(slider(label=nasty, alt=nasty, caption=nasty, fmt=lambda v: f"{v}{nasty}")._repr_html_())
    assert "b" not in [tag for tag, _ in page.tags]
    assert page.one("img")["alt"] == nasty
    assert page.data()["texts"][0] == "1" + nasty


def test_mimebundle_serves_pages_print_and_plain_text():
    figure_slider = slider(initial=2)
    bundle = figure_slider._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]) == figure_slider.png(2)
    assert bundle["text/plain"] == "A bar of height 9. [height h: 1, 5, 9]"


def test_nine_frames_of_a_noisy_image_and_curves_take_about_190_kilobytes():
    rng = np.random.default_rng(0)

    def draw(value):
        fig, (left, right) = plt.subplots(1, 2)
        figures.show_image(left, rng.poisson(value, (32, 32)), unit="photo-electrons", scale_bar=5)
        right.plot(np.sin(np.linspace(0, value / 5, 200)[:, None] + [0, 1, 2]))
        return fig

    page = slider(draw=draw, values=range(10, 100, 10))._repr_html_()
    assert len(page) < 250_000  # the plan's 190 KB, and a third for figures busier than its own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1]}, "values has length 1"),
        ({"values": []}, "values has length 0"),
        ({"initial": 3}, "initial=3: an index from 0 to 2"),
        ({"initial": -1}, "initial=-1"),
        ({"initial": 1.0}, "initial=1.0"),
        ({"initial": True}, "initial=True"),
        ({"label": " "}, "label=' '"),
        ({"label": None}, "label=None"),
        ({"alt": ""}, "alt=''"),
        ({"draw": 3}, "draw=3"),
        ({"draw": lambda value: None}, r"draw\(1\) returned NoneType"),
        ({"values": [1.01, 1.02], "fmt": "{:.1f}"}, r"values read the same, \['1.0'\]"),
        ({"values": ["a", "b"]}, "fmt='{:g}' cannot write the value 'a'"),
        ({"draw": lambda value: plt.figure(figsize=(value, 2))}, "frames have sizes"),
        ({"draw": lambda value: plt.figure(facecolor="none")}, r"draw\(1\) is transparent"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        slider(**changes)


def test_interact_draws_the_chosen_value_live(monkeypatch):
    widgets = pytest.importorskip("ipywidgets")
    shown, built = [], []
    interact = widgets.interact
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: shown.extend(args))
    monkeypatch.setattr(widgets, "interact", lambda f, **kw: built.append((f, kw["index"])) or interact)
    drawn = []
    live = slider(draw=lambda value: drawn.append(value) or bar(value), initial=1, unit="px")
    drawn.clear()
    live.interact()
    function, widget = built[0]
    assert isinstance(widget, widgets.SelectionSlider)
    assert (widget.label, widget.description) == ("5\N{NO-BREAK SPACE}px", "height h")
    function(widget.value)
    assert drawn == [5] and len(shown) == 1
    live.interact([2, 3])
    function, widget = built[1]
    widget.index = 1
    function(widget.value)
    assert drawn == [5, 3]
    with pytest.raises(ValueError, match="values is empty"):
        live.interact([])
