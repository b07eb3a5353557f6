"""The print: what it leaves out, moves and resizes, on small documents without LaTeX; and the built PDF itself."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from docutils import nodes
from PIL import Image
from sphinx import addnodes
from sphinx.builders.latex.nodes import math_reference
from sphinx.util.docutils import new_document
from sphinx_design.badges_buttons import sd_badge
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node

from smlmtut import figures, notebook
from smlmtut.networks.unet import SelfAttention
from tools import api_page, pdf, pdf_appendix, pdf_pages, pdf_tables, pdf_tree
from tools.run_chapters import ROOT


def document(*children: nodes.Node, page: str = "notebooks/01_a") -> Any:
    """A book of one page."""
    made = new_document("")
    made += addnodes.start_of_file("", *children, docname=page)
    return made


def cell(*tags: str) -> nodes.container:
    """A cell with an input and an output."""
    parts = [nodes.container("", nodes.paragraph("", f"{part} {tags}"), classes=[f"cell_{part}"]) for part in IO]
    return nodes.container("", *parts, classes=["cell", *(f"tag_{tag}" for tag in tags)])


IO = ("input", "output")


def bundle(**kinds: str) -> nodes.container:
    """An output in several formats: html and plain."""
    children = [
        nodes.container("", nodes.raw("", text, format="html"), mime_type=f"text/{kind}")
        for kind, text in kinds.items()
    ]
    return nodes.container("", *children, nb_element="mime_bundle")


def app(folder: Path) -> Any:
    """As much of Sphinx as the transforms use."""
    config = SimpleNamespace(root_doc="intro", html_baseurl="https://book.example/", html_title="The book")
    images = SimpleNamespace(add_file=lambda page, uri: None)
    env = SimpleNamespace(images=images, titles={"notebooks/01_a": nodes.title("", "A")}, toc_fignumbers={})
    return SimpleNamespace(config=config, env=env, srcdir=str(folder), outdir=str(folder))


def test_code_that_the_pages_hide_is_left_out_and_its_output_stays():
    tree = document(cell(), cell("hide-input"), cell("parameters"))
    pdf_pages.leave_out_code(tree)
    shown = [node.astext() for node in tree.findall(nodes.paragraph)]
    assert shown == ["input ()", "output ()", "output ('hide-input',)", "output ('parameters',)"]


def test_claims_become_one_line_each_and_a_box_its_title(tmp_path):
    run = notebook.start("smoke", "cpu")
    claim = notebook.Claim("a < b", 1.0, 0.0, 2.0, "px", "smoke", True)
    outputs = [shown._repr_mimebundle_()[0] for shown in (claim, notebook.Box((claim, claim)))]
    tree = document(*(bundle(html=kinds["text/html"], plain=kinds["text/plain"]) for kinds in outputs))
    pdf_pages.Outputs(app(tmp_path), tmp_path / "frames").convert(tree)
    assert [node.astext() for node in tree.findall(nodes.paragraph)] == [str(claim), "Checked here: 2 of 2"]
    assert not list(tree.findall(nodes.raw)) and run.claims == {}


def test_a_data_frame_becomes_a_table_and_a_wide_head_keeps_its_place():
    head = "<tr><th></th><th colspan='2'>both</th><th>c</th></tr>"
    made = pdf_tables.table(
        f"<table><thead>{head}</thead><tbody><tr><th>x</th><td>1</td><td>&lt;2</td><td>3</td></tr></tbody></table>"
    )
    rows = [[entry.astext() for entry in row] for row in made.findall(nodes.row)]
    assert rows == [["", "both", "", "c"], ["x", "1", "<2", "3"]]
    (thead,) = made.findall(nodes.thead)
    assert len(thead) == 1 and len(list(made.findall(nodes.colspec))) == 4


def rows_of(made: nodes.Element) -> list[list[str]]:
    """The texts of a table, row by row."""
    return [[entry.astext() for entry in row] for row in made.findall(nodes.row)]


@pytest.mark.parametrize(("corner", "heads"), [("", 1), ("columns", 2)])
def test_the_name_of_an_index_joins_the_head_unless_the_columns_have_a_name_too(corner, heads):
    head = f"<tr><th>{corner}</th><th>a</th></tr><tr><th>N</th><th></th></tr>"
    made = pdf_tables.table(f"<table><thead>{head}</thead><tbody><tr><th>5</th><td>1</td></tr></tbody></table>")
    joined = [["N", "a"], ["5", "1"]]
    assert rows_of(made) == (joined if heads == 1 else [["columns", "a"], ["N", ""], ["5", "1"]])
    (thead,) = made.findall(nodes.thead)
    assert len(thead) == heads


def words(*texts: str) -> list[nodes.paragraph]:
    """The cells of a row."""
    return [nodes.paragraph("", text) for text in texts]


def table(head: list[nodes.paragraph], *rows: list[nodes.paragraph]) -> nodes.table:
    """A table whose cells hold one paragraph each."""
    made = [nodes.row("", *(nodes.entry("", cell) for cell in cells)) for cells in (head, *rows)]
    parts = [nodes.colspec() for _ in head] + [nodes.thead("", made[0]), nodes.tbody("", *made[1:])]
    return nodes.table("", nodes.tgroup("", *parts, cols=len(head)))


def test_a_head_without_words_goes_and_a_cell_that_refers_to_a_formula_stays():
    reference = math_reference("", "", docname="a", target="eq-b")
    tree = document(table(words("", ""), [*words("0.9 ± 0.1"), nodes.paragraph("", "", reference)], words("", "x")))
    pdf_tables.tidy_tables(tree)
    assert not list(tree.findall(nodes.thead)) and list(tree.findall(math_reference)) == [reference]
    entries = list(tree.findall(nodes.entry))
    assert entries[0].astext() == "0.9\u00a0±\u00a00.1"
    assert [len(entry) for entry in entries] == [1, 1, 0, 1]


@pytest.mark.parametrize(("rows", "breaks"), [(5, False), (20, True)])
def test_only_long_tables_may_break_over_pages(rows, breaks):
    tree = document(table(words("a", "b"), *(words("1", "2") for _ in range(rows))))
    pdf_tables.tidy_tables(tree)
    (found,) = tree.findall(nodes.table)
    assert ("longtable" in found["classes"]) == breaks


def drawn(value):
    """A figure that differs with the value."""
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, value])
    return figure


def test_a_slider_becomes_its_first_middle_and_last_frame(tmp_path):
    figures.use_style()
    slider = figures.Slider(drawn, [1, 2, 3, 4, 5], "a & b", "a line", unit="px", initial=3)
    html = slider._repr_html_()
    found = pdf_pages.frames(html)
    assert [text for text, _ in found] == [f"a & b: {k}\N{NO-BREAK SPACE}px" for k in (1, 3, 5)]
    assert [png for _, png in found] == [slider.png(k) for k in (0, 2, 4)]
    tree = document(bundle(html=html, plain="text"))
    pdf_pages.Outputs(app(tmp_path), tmp_path / "frames").convert(tree)
    pictures = [tmp_path / node["uri"] for node in tree.findall(nodes.image)]
    assert [path.read_bytes() for path in pictures] == [slider.png(k) for k in (0, 2, 4)]
    (link,) = tree.findall(nodes.reference)
    assert link["refuri"] == "https://book.example/notebooks/01_a.html"
    told = [node.astext() for node in tree.findall(nodes.paragraph)]
    assert len(told) == 3 and told[-1].endswith("The slider moves online.")  # with the last frame, on its page


def dropdown(title: str, *children: nodes.Node) -> nodes.container:
    """A closed box."""
    return nodes.container("", nodes.rubric("", title), *children, design_component="dropdown")


def links(tree: Any) -> list[str]:
    """The places that references lead to."""
    return [node["refuri"] for node in tree.findall(nodes.reference)]


def labels(tree: Any) -> list[str]:
    """The places that references can lead to, as references name them."""
    found = [re.findall(r"\\label\{\\detokenize\{(.*?)\}\}", node.astext()) for node in tree.findall(nodes.raw)]
    return ["%" + "#".join(label.rsplit(":", 1)) for some in found for label in some]


def test_the_answers_of_a_self_test_stand_in_the_appendix_with_links_both_ways():
    question = dropdown("1. How?", nodes.paragraph("", "Text"), dropdown("Answer", nodes.paragraph("", "So")))
    tree = document(question, dropdown("Proof", nodes.paragraph("", "Long")))
    (answer,) = pdf_appendix.take_answers(tree, "notebooks/01_a")
    assert "So" in answer.astext() and "So" not in tree.astext()
    assert "1. How?" in tree.astext() and "Text" in tree.astext()
    assert links(tree) == labels(answer) and links(answer) == labels(tree)
    assert len(list(tree.findall(pdf_tree.is_dropdown))) == 1  # the proof is no question
    (asked,) = tree.findall(lambda node: pdf_tree.has(node, "question"))
    assert asked.astext() == "1. How?\n\nText\n\nAnswer, page \\pageref{\\detokenize{notebooks/01_a:pdf-answer-1}}"


def test_a_solution_stands_in_the_appendix_and_its_exercise_leads_there(tmp_path):
    exercise = exercise_enumerable_node("", nodes.title("", "Half"), label="ex-half")
    solution = solution_node(
        "", nodes.title("", "Solution"), nodes.paragraph("", "Four"), label="sol", target_label="ex-half"
    )
    tree = document(nodes.section("", exercise, solution), page="notebooks/01_a")
    pdf_appendix.add_appendix(app(tmp_path), tree)
    chapter, appendix, _ = tree.children
    assert "Four" not in chapter.astext() and "Four" in appendix.astext()
    assert links(exercise) == ["%notebooks/01_a#sol"] and "%notebooks/01_a#ex-half" in labels(chapter)
    assert exercise[-2].astext() == "\\nopagebreak"
    pdf_appendix.unbox_solutions(app(tmp_path), tree)
    assert labels(appendix) == ["%notebooks/01_a#sol"] and not list(tree.findall(solution_node))


def test_closed_boxes_stand_open():
    tree = document(dropdown("Proof", nodes.paragraph("", "Long")))
    pdf_pages.open_boxes(tree)
    (box,) = tree.findall(lambda node: pdf_tree.has(node, "folded"))
    assert [type(child) for child in box] == [nodes.paragraph, nodes.raw, nodes.paragraph]
    assert [child.astext() for child in box] == ["Proof", "\\nopagebreak", "Long"]


def test_a_badge_in_a_line_of_its_own_stays_with_what_follows():
    badges = [sd_badge("", nodes.Text("20-minute path")) for _ in range(2)]
    tree = document(nodes.paragraph("", "", badges[0]), nodes.paragraph("", "", nodes.Text("see "), badges[1]))
    pdf_pages.small_badges(tree)
    assert [node["classes"] for node in tree.findall(nodes.inline)] == [["badge"]] * 2
    assert [node.astext() for node in tree[0]] == ["20-minute path", "\\nopagebreak", "see 20-minute path"]


class Fields(NamedTuple):
    """Two fields."""

    first: int


@pytest.mark.parametrize(
    ("item", "left_out"),
    [
        (Fields.first, True),
        (SelfAttention.forward, True),
        (document, False),
    ],
)
def test_the_page_of_the_package_leaves_out_what_only_python_and_torch_wrote(item, left_out):
    assert bool(api_page.foreign(None, "", "", item, False, None)) == left_out  # type: ignore[arg-type]


def test_columns_hold_their_longest_words_and_fill_the_line_only_where_they_must():
    assert pdf_tables.widths([["a", "b"], ["c", "d"]]) == []
    long = ["word " * 30, "x"]
    narrow, wide = pdf_tables.widths([["a", "indivisible"], long], room=60)
    assert narrow == len("indivisible") + 3 and narrow + wide <= 60 and wide > narrow
    crowded = pdf_tables.widths([["x" * 40], ["y" * 40]], room=60)
    assert crowded == [43, 43]  # more than there is room for: both shrink alike
    assert pdf_tables.widths([["a"], ["word " * 20]]) != []  # longer than a column wants to be
    assert pdf_tables.widths([["mmmmmmmm"], long], room=60)[0] > pdf_tables.widths([["iiiiiiii"], long], room=60)[0]
    assert pdf_tables.widths([["0.9\u00a0±\u00a00.1"], long], room=60)[0] == len("0.9 ± 0.1") + 3


def test_a_name_in_code_may_break_after_points_and_underscores_only():
    literal = nodes.literal("", "posterior.grid_posterior(x)")
    pdf_pages.break_names(document(nodes.paragraph("", "", literal)))
    assert literal.astext().split("\u200b") == ["posterior.", "grid_", "posterior(", "x)"]


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r"p(y \mid \hat y)", "p(y | ŷ)"),
        (r"\hat{y} = \varphi(x)", "ŷ = (x)"),
        (r"\sigma^2", "σ2"),
        ("10 × 10", "10 × 10"),
    ],
)
def test_a_formula_in_a_heading_has_a_text_for_the_outline(formula, text):
    assert pdf_tree.plain(formula) == text


def test_pictures_keep_150_dots_an_inch_and_stay_within_the_text(tmp_path):
    for name, width in (("small", 600), ("wide", 1500)):
        Image.new("L", (width, 10)).save(tmp_path / f"{name}.png")
    pictures = [nodes.image(uri=f"{name}.png") for name in ("small", "wide")]
    pdf_pages.size_pictures(app(tmp_path), document(*pictures))
    assert [picture["width"] for picture in pictures] == ["4.00in", "100%"]


def test_parts_take_their_titles_and_their_numbering_from_the_contents(tmp_path):
    parts = [
        nodes.compound(
            "", addnodes.start_of_file("", nodes.paragraph("", name), docname=name), classes=["toctree-wrapper"]
        )
        for name in "ab"
    ]
    tree: Any = new_document("")
    tree += nodes.section("", nodes.title("", "First"), nodes.paragraph("", "hello"), *parts)
    fake = app(tmp_path)
    subtrees = [SimpleNamespace(caption="Before & after", numbered=False), SimpleNamespace(caption="One", numbered=2)]
    fake.env.external_site_map = SimpleNamespace(root=SimpleNamespace(subtrees=subtrees))
    pdf_pages.lay_out(fake, tree)
    (top,) = tree.children
    raw = [node.astext() for node in top.children if isinstance(node, nodes.raw)]
    expected = [r"\bookpart{Before \& after}\booknumbers{-2}", r"\bookpart{One}\booknumbers{1}"]
    assert raw == [r"\booknumbers{-2}", *expected]
    assert top[0].astext() == "The book" and top[2].astext() == "First\n\nhello"


def test_the_log_tells_what_is_wrong_with_the_pages():
    log = r"""Overfull \hbox (4.9pt too wide) in paragraph at lines 1--2
Overfull \hbox (5.1pt too wide) in paragraph at lines 3--4
Overfull \vbox (30.0pt too high) has occurred while \output is active []
Underfull \hbox (badness 10000) in paragraph at lines 5--6
Missing character: There is no ŷ ("177) in font DejaVu!
LaTeX Warning: Reference `a' on page 1 undefined on input line 7.
LaTeX Warning: Label `b' multiply defined.
! Undefined control sequence.
LaTeX Warning: Float too large for page by 3pt on input line 9."""
    kept = [line for k, line in enumerate(log.splitlines()) if k not in (0, 3)]
    assert sorted(pdf.problems(log)) == sorted(kept)
    assert pdf.problems("") == []


def test_a_chapter_that_ends_on_a_line_or_two_is_typeset_anew_with_longer_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pdf, "FOLDER", tmp_path)

    def run(fits: dict[int, int]) -> tuple[list[str], list[str]]:
        """Chapters that end on 22 pt until their pages are so many lines longer; faults, and what LaTeX was given."""
        given: list[str] = []

        def latex() -> tuple[list[str], str]:
            given.append((tmp_path / "longer.tex").read_text(encoding="utf-8"))
            grown = {
                int(k): float(pt) / pdf.LINE for k, pt in re.findall(r"\\longer\{(\d+)\}\{([\d.]+)pt\}", given[-1])
            }
            ends = {k: 600.0 if grown.get(k, 0) >= need else 22.0 for k, need in fits.items()}
            return [], "".join(f"x\nchapter {k} ends at {at}pt\ny\n" for k, at in ends.items())

        monkeypatch.setattr(pdf, "run_latex", latex)
        return pdf.typeset(), given

    assert run({1: 0, 2: 0}) == ([], [""])
    assert run({1: 0, 2: 1, 12: 2}) == (
        [],
        ["", "\\longer{2}{12.0pt}\n\\longer{12}{12.0pt}\n", "\\longer{2}{12.0pt}\n\\longer{12}{24.0pt}\n"],
    )
    faults, given = run({1: 0, 7: 3})
    assert faults == ["chapter 7 ends on a page of a line or two"] and len(given) == 3
    assert "a line or two: 2, 12" in capsys.readouterr().out
    assert pdf.short_ends("chapter 0 ends at 9.0pt\nchapter 3 ends at 39.9pt\nchapter 4 ends at 40.0pt\n") == [3]


def test_without_latex_the_message_names_the_packages_and_nothing_is_built(monkeypatch, capsys):
    monkeypatch.setattr(pdf, "found", lambda name: name == "latexmk")
    monkeypatch.setattr(pdf.build_book, "build", lambda builder: pytest.fail("it built"))
    assert pdf.main() == 1
    told = capsys.readouterr().err
    assert "texlive-xetex" in told and "latexmk" not in told and "apt-get install" in told


# The built PDF

TITLE = re.compile(r"^# (.+)$", re.M)
AUX = ROOT / "_build" / "latex" / "smlmtut.aux"


def first(pattern: str | re.Pattern[str], text: str) -> str:
    """The first group of the first match, which must be there."""
    match = re.search(pattern, text)
    assert match, f"{pattern} is not in {text[:80]!r}"
    return match[1]


def output(*command: str) -> str:
    """What a program of Poppler tells of the PDF."""
    return subprocess.run([*command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def text():
    """The words of the PDF. Without it the tests skip, but fail where CI is set."""
    lacking = [name for name in ("pdftotext", "pdfimages", "pdftohtml", "pdftoppm") if not shutil.which(name)]
    if lacking or not pdf.PDF.exists():
        why = f"{', '.join(lacking)} of poppler-utils" if lacking else "the PDF: make pdf"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"lacking: {why}")
    return output("pdftotext", "-layout", str(pdf.PDF), "-")


def pages() -> list[str]:
    """The pages of the book, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(page["file"] for chapter in listed for page in (chapter, *chapter.get("sections", [])))]


def numbers(kind: str) -> dict[str, str]:
    """Label -> number, as LaTeX set it: of formulas, or of figures."""
    found = re.findall(
        r"\\newlabel\{(?:equation:)?([^{}]*):((?:eq|fig)-[^{}]*)\}\{\{([\d.]*)\}", AUX.read_text(encoding="utf-8")
    )
    return {label: number for _, label, number in found if label.startswith(kind)}


@pytest.mark.pdf
def test_the_outline_has_every_page_in_order(text):
    written = output("pdftohtml", "-xml", "-i", "-stdout", str(pdf.PDF)).partition("<outline>")[2]
    items = BeautifulSoup(written, "html.parser").find_all("item")
    told = iter(" ".join(item.get_text().split()) for item in items)
    titles = [first(TITLE, (ROOT / f"{page}.md").read_text(encoding="utf-8")) for page in pages()]
    assert [title for title in titles if title not in told] == []  # each after the one before


@pytest.mark.pdf
def test_nothing_in_the_text_is_left_undone(text):
    signs = (
        "??",
        "undefined",
        "<div",
        "<span",
        "{ref}",
        "{eq}",
        "```",
        ".. note::",
        "Alias for field",
        "overridden by",
    )
    for sign in signs:
        assert sign not in text
    assert all(page.split() for page in text.rstrip("\f").split("\f"))  # no blank page


@pytest.mark.pdf
def test_the_log_has_no_fault_and_every_picture_its_150_dots(text):
    assert pdf.problems((AUX.with_suffix(".log")).read_text(encoding="utf-8", errors="replace")) == []
    rows = [row.split() for row in output("pdfimages", "-list", str(pdf.PDF)).splitlines()[2:]]
    assert min(int(row[12]) for row in rows) >= 149  # it rounds


@pytest.mark.pdf
def test_formulas_and_figures_have_the_numbers_of_the_pages(text):
    formulas, shown = {}, {}
    for page in pages():
        soup = BeautifulSoup((ROOT / "_build" / "html" / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
        for div in soup.select("div.math[id^=equation-]"):
            formulas[str(div["id"]).removeprefix("equation-")] = first(r"\(([\d.]+)\)", div.get_text())
        for figure in soup.select("figure[id^=fig-]"):
            shown[figure["id"]] = first(r"([\d.]*\d)", figure.select(".caption-number")[0].get_text())
    labelled = re.findall(
        r"^\$\$ \((eq-[\w-]+)\)", "\n".join(p.read_text(encoding="utf-8") for p in ROOT.glob("notebooks/*.md")), re.M
    )
    assert len(labelled) > 100 and set(labelled) <= set(formulas)
    assert numbers("eq") == formulas
    assert numbers("fig") == shown
    assert len(re.findall(r"\((?:\d+\.)?\d+\)$", text, re.M)) >= len(labelled)


def sheets(text: str) -> list[list[str]]:
    """The lines of each page; the last is its foot."""
    return [[line.strip() for line in page.splitlines() if line.strip()] for page in text.rstrip("\f").split("\f")]


@pytest.mark.pdf
def test_the_contents_are_called_so_and_tables_without_a_number_have_none(text):
    assert sheets(text)[1][0] == "Contents"
    assert "continued" in text and not re.search(r"Table\s+[\d.]+\W+continued", text)


@pytest.mark.pdf
def test_no_title_stands_at_the_foot_of_a_page(text):
    sources = [(ROOT / f"{page}.md").read_text(encoding="utf-8") for page in pages()]
    found = [title for page in sources for title in re.findall(r"^(?:#+|:+\{dropdown\}) (.+)$", page, re.M)]
    titles = {*(title.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}") for title in found), "20-minute path", "Answer"}
    last = [re.sub(r"^[\d.]+\s+", "", lines[-2]) for lines in sheets(text) if len(lines) > 4]
    assert len(last) > 100 and [line for line in last if line in titles] == []


@pytest.mark.pdf
def test_no_line_of_a_docstring_is_broken(text):
    described = [lines for lines in sheets(text) if any(re.match(r"(class )?smlmtut\.\w+\.", line) for line in lines)]
    assert len(described) > 20 and not [
        line for lines in described for line in lines if "\N{RIGHTWARDS ARROW WITH HOOK}" in line
    ]


@pytest.mark.pdf
def test_only_the_end_of_a_chapter_leaves_a_page_half_empty(text):
    data = subprocess.run(["pdftoppm", "-r", "20", "-gray", str(pdf.PDF)], capture_output=True, check=True).stdout
    size = re.match(rb"P5\s(\d+) (\d+)\s255\s", data)
    assert size
    width, height, start = int(size[1]), int(size[2]), size.end()
    grey = np.frombuffer(data, np.uint8).reshape(-1, start + width * height)[:, start:].reshape(-1, height, width)
    whole = np.min(grey, axis=2) < 215  # rows with ink
    body = whole[:, int(0.075 * height) : int(0.905 * height)]
    filled = [(np.flatnonzero(rows)[-1] + 1) / len(rows) for rows in body]
    ends = [not rows[: height // 10].any() for rows in whole[1:]] + [True]  # a chapter's first page has no head
    first_of_text = next(k for k, lines in enumerate(sheets(text)) if len(lines) > 1 and lines[-1] == "1")
    assert [k + 1 for k, end in enumerate(ends) if k > first_of_text and not end and filled[k] < 0.6] == []
    assert min(filled[first_of_text:]) > 0.05  # and no chapter ends on a page of one or two lines
    log = AUX.with_suffix(".log").read_text(encoding="utf-8", errors="replace")  # every chapter told where it ends
    chapters = [int(order) for order in re.findall(r"^chapter (\d+) ends at", log, re.M) if order != "0"]
    assert sorted({*chapters, 1}) == [*range(1, max(chapters) + 1)] and len(chapters) > 20
