"""Markdown with TeX, as the questions are written, as HTML for Moodle, Canvas and Jupyter."""

import re
from collections.abc import Callable
from html import escape
from urllib.parse import quote

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

Math = Callable[[str, bool], str]  # TeX, and whether it is displayed


def to_html(text: str, math: Math) -> str:
    """Markdown as HTML on one line, but for the lines of code; math writes a formula."""
    reader = MarkdownIt("commonmark").use(dollarmath_plugin, double_inline=True)
    for name, displayed in (("math_inline", False), ("math_inline_double", True), ("math_block", True)):
        reader.add_render_rule(name, _rule(math, displayed))
    html = reader.render(text).strip()
    if html.count("<p>") == 1 and html.startswith("<p>") and html.endswith("</p>"):
        html = html[3:-4]
    parts = re.split(r"(<pre>.*?</pre>)", html, flags=re.S)
    return "".join(part if part.startswith("<pre>") else part.replace("\n", " ") for part in parts).strip()


def _rule(math: Math, displayed: bool) -> Callable[..., str]:
    return lambda self, tokens, k, options, env: math(tokens[k].content.strip(), displayed)


def mathjax(tex: str, displayed: bool) -> str:
    """A formula as Moodle's MathJax filter reads it."""
    return escape(rf"\[{tex}\]" if displayed else rf"\({tex}\)", quote=False)


def dollars(tex: str, displayed: bool) -> str:
    """A formula as jupyterquiz reads it."""
    return escape(f"$${tex}$$" if displayed else f"${tex}$", quote=False)


def canvas(tex: str, displayed: bool) -> str:
    """A formula as Canvas writes it: a picture that its server draws, with the TeX beside it for MathJax."""
    shown, address = escape(tex), quote(quote(tex, safe=""), safe="")
    return (
        f'<img class="equation_image" title="{shown}" src="/equation_images/{address}?scale=1" '
        f'alt="LaTeX: {shown}" data-equation-content="{shown}">'
    )
