"""Sphinx extension: the book as a reader of a print wants it. It does nothing for other builders than LaTeX.

Left out: the code that the pages hide, which draws figures and runs folded checks, since it interrupts the argument and
nobody types it in from paper; each folded box of claims becomes its one line, since all claims stand in a table at the
end. Opened, in small type: every other closed box. Moved to the appendix: solutions and answers to the self-tests, so
that nobody reads them by accident; links lead both ways. A slider becomes three of its frames. Numbers of figures and
formulas are those of the pages.
"""

import base64
import hashlib
import json
import os
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_design.badges_buttons import sd_badge

if not __package__:  # as an extension
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smlmtut import __version__
from tools.pdf_appendix import add_appendix, unbox_solutions
from tools.pdf_tables import size_tables, table, tidy_tables
from tools.pdf_tree import drop, every, files, has, is_component, is_dropdown, latex, page_of, plain

PREAMBLE = Path(__file__).with_name("pdf_preamble.tex")
DPI = 150  # at least, of every picture
TEXT_WIDTH = 6.3  # inches, see geometry in latex_elements
HIDDEN = {"tag_hide-input", "tag_hide-cell", "tag_remove-input", "tag_remove-cell", "tag_parameters"}
BESIDE = ("\\begin{beside}", "\\besidetext", "\\end{beside}")  # see pdf_preamble.tex
FRAMES = re.compile(r"const data = (\{.*?\});\n", re.S)
SHOWN = re.compile(r'<img src="data:image/png;base64,([^"]*)"')
LABEL = re.compile(r"<label[^>]*>(.*?)</label>", re.S)


# Cells


def leave_out_code(tree: nodes.Element) -> None:
    """Remove the input of cells that hide it, and the cell of parameters."""
    for cell in every(tree, lambda node: has(node, "cell")):
        if HIDDEN & set(cell["classes"]):
            for part in [child for child in cell.children if has(child, "cell_input")]:
                cell.remove(part)
        cell["classes"] = []
        if not cell.children:
            drop(cell)


def frames(html: str) -> list[tuple[str, bytes]]:
    """Three frames of a slider, its first, middle and last value: (label and value, PNG)."""
    data = json.loads(FRAMES.search(html)[1])  # type: ignore[index]
    label = unescape(LABEL.search(html)[1].strip())  # type: ignore[index]
    order, shown = data["order"], SHOWN.search(html)[1]  # type: ignore[index]
    picked = sorted({0, (len(order) - 1) // 2, len(order) - 1})
    pictures = [(data["frames"][order[k]] or shown).rpartition(",")[2] for k in picked]
    return [(f"{label}: {data['texts'][k]}", base64.b64decode(png)) for k, png in zip(picked, pictures, strict=True)]


def claims(text: str) -> nodes.container:
    """A row of a claim, or the title of a box of claims, as one small line."""
    return nodes.container("", nodes.paragraph("", text.partition("\n")[0]), classes=["claim"])


class Outputs:
    """Puts the outputs of cells into their printed form, and writes the frames of sliders to a folder."""

    def __init__(self, app: Sphinx, folder: Path) -> None:
        self.app, self.folder = app, folder
        folder.mkdir(parents=True, exist_ok=True)

    def convert(self, tree: nodes.Element) -> None:
        """Replace each bundle of formats where the one that Sphinx would choose is not the best."""
        for bundle in every(tree, lambda node: _is_bundle(node)):
            kinds = {child["mime_type"]: child for child in bundle.children}
            html = kinds["text/html"].astext() if "text/html" in kinds else ""
            if "smlmtut-slider" in html:
                bundle.replace_self(self.slider(html, page_of(bundle, self.app.config.root_doc)))
            elif 'class="claim' in html:
                bundle.replace_self(claims(kinds["text/plain"].astext()))
            elif "<table" in html and "image/png" not in kinds:
                bundle.replace_self(table(html))

    def slider(self, html: str, page: str) -> list[nodes.Node]:
        """Three frames, one below the other, and where the live one is."""
        made: list[nodes.Node] = []
        told = nodes.paragraph()
        for text, png in frames(html):
            path = self.folder / f"{hashlib.sha256(png).hexdigest()[:16]}.png"
            path.write_bytes(png)
            uri = Path(os.path.relpath(path, self.app.srcdir)).as_posix()
            self.app.env.images.add_file(page, uri)
            told = nodes.paragraph("", text)
            made += [nodes.image(uri=uri, candidates={"*": uri}, classes=["frame"])]
            made += [nodes.container("", told, classes=["frametext"])]
        link = nodes.reference("", "online", refuri=f"{self.app.config.html_baseurl}{page}.html")
        told += [latex("\\\\*"), nodes.Text("The slider moves "), link, nodes.Text(".")]
        return made


def _is_bundle(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "mime_bundle"


# Boxes


def open_boxes(tree: nodes.Element) -> None:
    """Closed boxes stand open in small type, below their title."""
    for box in every(tree, is_dropdown):
        if box.children and isinstance(box[0], nodes.rubric):
            title = box[0]
            box[0] = nodes.paragraph("", "", nodes.strong("", "", *title.children), ids=title["ids"])
            box.insert(1, latex("\\nopagebreak"))
        box["classes"] = ["folded"]


def beside(tree: nodes.Element) -> None:
    """Each item of a grid: its picture to the left, its text to the right."""
    for item in every(tree, lambda node: is_component(node, "grid-item")):
        pictures = every(item, nodes.image)
        for picture in pictures:
            drop(picture)
            picture["width"] = "100%"
        left, middle, right = (latex(text) for text in BESIDE)
        item.replace_self([left, *pictures, middle, *item.children, right])


# The book


def name_formulas(tree: nodes.Element) -> None:
    """Give each formula in a heading a text for the outline of the PDF."""
    for title in every(tree, nodes.title):
        for formula in every(title, nodes.math) if isinstance(title.parent, nodes.section) else []:
            text = formula.astext()
            formula.replace_self(latex(f"\\texorpdfstring{{\\({text}\\)}}{{{escape(plain(text))}}}"))


def lay_out(app: Sphinx, tree: nodes.Element) -> None:
    """The first page becomes a chapter, and each part of the contents gets its title and its way of numbering."""
    top = next(iter(tree.findall(nodes.section)))
    parts = [child for child in every(top, nodes.compound) if has(child, "toctree-wrapper")]
    parts = [part for part in parts if page_of(part, "") == ""]
    for part in parts:
        drop(part)
    first = nodes.section("", *top.children, ids=["pdf-first"])
    top.children = []
    top += [nodes.title("", app.config.html_title), latex("\\booknumbers{-2}"), first]
    for part, subtree in zip(parts, app.env.external_site_map.root.subtrees, strict=True):  # type: ignore[attr-defined]
        depth = 1 if subtree.numbered else -2
        top += [latex(f"\\bookpart{{{escape(subtree.caption)}}}\\booknumbers{{{depth}}}"), *part.children]


def number(app: Sphinx, page: str, kind: str, names: list[str]) -> str:
    """The number that the page gives a figure or a formula, as 3.1; "" if it has none."""
    numbers = app.env.toc_fignumbers.get(page, {}).get(kind, {})
    return next((".".join(map(str, numbers[name])) for name in names if name in numbers), "")


def take_numbers(app: Sphinx, tree: nodes.Element) -> None:
    """Give figures and formulas the numbers of the pages."""
    kinds = (
        ("figure", "figure", nodes.figure),
        ("displaymath", "equation", nodes.math_block),
        ("table", "table", nodes.table),
    )
    for kind, counter, node_class in kinds:
        for node in every(tree, node_class):
            found = number(app, page_of(node, app.config.root_doc), kind, node["ids"])
            if found:
                raw = latex(f"\\gdef\\the{counter}{{{found}}}")
                node.parent.insert(node.parent.index(node), raw)


def escape(text: str) -> str:
    """Text for LaTeX, without commands."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def size_pictures(app: Sphinx, tree: nodes.Element) -> None:
    """Every picture as wide as its pixels allow at DPI, but never wider than the text."""
    for picture in every(tree, nodes.image):
        path = Path(app.srcdir) / picture["uri"]
        if path.suffix == ".png" and path.exists() and "width" not in picture:
            with Image.open(path) as opened:
                inches = opened.size[0] / (1.2 * DPI if has(picture, "frame") else DPI)
            picture["width"] = f"{inches:.2f}in" if inches < TEXT_WIDTH else "100%"
        picture["align"] = "center"


def break_names(tree: nodes.Element) -> None:
    """Let long names in code break after a point, an underscore or a bracket: a space of no width stands there."""
    for literal in every(tree, nodes.literal):
        for text in every(literal, nodes.Text):
            broken = re.sub(r"([._/(,=\[:-])(?=\w)", "\\1\u200b", str(text))
            if broken != str(text):
                text.parent.replace(text, nodes.Text(broken))


def small_badges(tree: nodes.Element) -> None:
    """Badges have a form of their own in LaTeX."""
    for badge in every(tree, sd_badge):
        line = badge.parent
        badge.replace_self(nodes.inline("", "", *badge.children, classes=["badge"]))
        if len(line) == 1:  # it belongs to the heading above, and no page ends after it
            line.parent.insert(line.parent.index(line) + 1, latex("\\nopagebreak"))


def small_api(tree: nodes.Element) -> None:
    """The docstrings of the page of the package are lines of up to 120 letters, which should not be broken."""
    for file in files(tree):
        if file["docname"] == "book/api":
            file.insert(0, latex("\\fvset{fontsize=\\scriptsize}"))
            file.append(latex("\\fvset{fontsize=\\footnotesize}"))


class Print(SphinxPostTransform):
    """All of the above that must come before Sphinx chooses the formats of outputs."""

    default_priority = 3
    formats = ("latex",)

    def run(self, **options: Any) -> None:
        tree = self.document
        for file in files(tree):  # Sphinx leaves their children with the parents that they had
            for child in file.children:
                child.parent = file
        lay_out(self.app, tree)
        leave_out_code(tree)
        Outputs(self.app, Path(self.app.outdir) / "frames").convert(tree)
        add_appendix(self.app, tree)
        open_boxes(tree)
        beside(tree)
        small_badges(tree)
        small_api(tree)


def finish(app: Sphinx, tree: nodes.document, docname: str) -> None:
    """What needs the references resolved and the claims filled in."""
    if app.builder.format == "latex":
        take_numbers(app, tree)
        unbox_solutions(app, tree)
        name_formulas(tree)
        size_pictures(app, tree)
        break_names(tree)
        tidy_tables(tree)
        size_tables(tree)


def macros(config: Any) -> str:
    """The commands of the formulas, as MathJax has them."""
    found = config.mathjax3_config["tex"]["macros"]
    return "".join(
        f"\\providecommand{{\\{name}}}{{}}\\renewcommand{{\\{name}}}{{{text}}}\n" for name, text in found.items()
    )


def configure(app: Sphinx, config: Any) -> None:
    """What LaTeX needs to know: paper, fonts, the macros of the formulas, title."""
    config.latex_engine, config.latex_theme = "xelatex", "manual"
    config.latex_toplevel_sectioning = "chapter"
    config.latex_domain_indices = False
    config.latex_table_style = ["booktabs", "nocolorrows"]
    config.latex_documents = [(config.root_doc, "smlmtut.tex", config.html_title, config.author, "manual", False)]
    config.latex_elements = {
        "papersize": "a4paper",
        "pointsize": "10pt",
        "classoptions": ",oneside,openany",
        "geometry": r"\usepackage[hmargin=25mm,top=25mm,bottom=28mm]{geometry}",
        "fncychap": "",
        "fontpkg": "",
        "fvset": r"\fvset{fontsize=\footnotesize}",
        "extrapackages": r"\usepackage{newunicodechar}",
        "preamble": PREAMBLE.read_text(encoding="utf-8")
        + macros(config)
        + rf"\AtBeginDocument{{\release{{{__version__}}}}}",
        "releasename": "Version",
        "makeindex": "",
        "printindex": "",
        "figure_align": "htbp",
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transforms."""
    app.add_post_transform(Print)
    app.connect("config-inited", configure, priority=900)
    app.connect("doctree-resolved", finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
