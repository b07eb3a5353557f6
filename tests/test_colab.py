"""The Colab edition: every rule by a small oracle, the cells of a notebook, and what is an error."""

import shutil
from pathlib import Path

import nbformat
import pytest
import yaml

from tools.colab.__main__ import editions
from tools.colab.book import Book
from tools.colab.edition import Edition
from tools.colab.myst import MystError

ROOT = Path(__file__).resolve().parents[1]
SINK = ROOT / "tests" / "data" / "sink"
HEADER = SINK.joinpath("notebooks/02_second.md").read_text(encoding="utf-8").split("# Second")[0]
FIRST = HEADER.count("\n") + 1  # line of the first line after the header
BOOK = "https://example.github.io/sink"


@pytest.fixture
def book(tmp_path):
    """A copy of the small book, free to be changed."""
    return Path(shutil.copytree(SINK, tmp_path / "a book", ignore=shutil.ignore_patterns("_build")))


def convert(book, body, name="03_third"):
    """The Colab edition of a chapter with the given text, as a notebook."""
    path = book / "notebooks" / f"{name}.md"
    path.write_text(HEADER + body, encoding="utf-8")
    toc = yaml.safe_load((book / "_toc.yml").read_text())
    toc["parts"][1]["chapters"].append({"file": f"notebooks/{name}"})
    (book / "_toc.yml").write_text(yaml.safe_dump(toc))
    whole = Book(book)
    return Edition(whole, whole.pages[f"notebooks/{name}"]).build()


def markdown(book, body):
    """The Markdown of a chapter, without the header cell; cells are separated by an empty line."""
    cells = convert(book, body).cells
    return "\n\n".join(cell.source for cell in cells[1:] if cell.cell_type == "markdown")


# ---- one rule a row --------------------------------------------------------------------------------------

RULES = {
    "equation": ("$$\na = b\n$$ (eq-x)\n", "$$\na = b \\tag{3.1}\n$$"),
    "equation on one line": ("$$ a $$ (eq-x)\n\nSee {eq}`eq-x`.", "$$\na \\tag{3.1}\n$$\n\nSee (3.1)."),
    "equation, later one first": (
        "{eq}`b`\n\n$$a$$ (a)\n\n$$b$$ (b)",
        "(3.2)\n\n$$\na \\tag{3.1}\n$$\n\n$$\nb \\tag{3.2}\n$$",
    ),
    "equation elsewhere": ("{eq}`eq-later`", f"[(1.2)]({BOOK}/notebooks/01_first.html#equation-eq-later)"),
    "equation on a page without number": ("{eq}`eq-front`", f"[(1)]({BOOK}/book/intro.html#equation-eq-front)"),
    "math directive": ("```{math}\n:label: eq-x\n\na\n```", "$$\na \\tag{3.1}\n$$"),
    "several lines": ("$$\na &= b \\\\\n&= c\n$$", "$$\n\\begin{aligned}\na &= b \\\\\n&= c\n\\end{aligned}\n$$"),
    "AMS environment": ("\\begin{gather}\na\n\\end{gather}", "$$\n\\begin{gathered}\na\n\\end{gathered}\n$$"),
    "macro": (r"$\E[\Var x] \Expo$", r"${\mathbb{E}}[\operatorname{Var} x] \Expo$"),
    "math is not read": (r"$a_b * c_d$ and `$\E$` {math}`\E`", r"$a_b * c_d$ and `$\E$` ${\mathbb{E}}$"),
    "money is not math": ("5$ and 6$", "5$ and 6$"),
    "figure elsewhere": ("{numref}`fig-box`", f"[Fig. 1.1]({BOOK}/notebooks/01_first.html#fig-box)"),
    "numref with words": ("{numref}`Figure %s <fig-box>`", f"[Figure 1.1]({BOOK}/notebooks/01_first.html#fig-box)"),
    "numref to a section": ("{numref}`sec-second`", f"[Section 2.1]({BOOK}/notebooks/02_second.html#sec-second)"),
    "ref to a section": ("{ref}`sec-second`", f"[Another section]({BOOK}/notebooks/02_second.html#sec-second)"),
    "ref with words": ("{ref}`see <sec-second>`", f"[see]({BOOK}/notebooks/02_second.html#sec-second)"),
    "ref to an exercise": ("{ref}`ex-one`", f"[Exercise 1.1]({BOOK}/notebooks/01_first.html#ex-one)"),
    "ref to a theorem": ("{prf:ref}`thm-two`", f"[Theorem 1.2]({BOOK}/notebooks/01_first.html#thm-two)"),
    "doc": ("{doc}`02_second`", f"[Second *chapter*]({BOOK}/notebooks/02_second.html)"),
    "doc from the root": ("{doc}`go </book/intro>`", f"[go]({BOOK}/book/intro.html)"),
    "term": ("{term}`psf`", f"[psf]({BOOK}/book/glossary.html#term-PSF)"),
    "term with words": ("{term}`it <Fisher information>`", f"[it]({BOOK}/book/glossary.html#term-Fisher-information)"),
    "link to a page": ("[](01_first.md)", f"[First chapter]({BOOK}/notebooks/01_first.html)"),
    "link to a heading": ("[x](02_second.md#a-part)", f"[x]({BOOK}/notebooks/02_second.html#a-part)"),
    "link to a label": ("[](#sec-second)", f"[Another section]({BOOK}/notebooks/02_second.html#sec-second)"),
    "link to a file": ("[x](../book/box.svg)", "[x](https://github.com/example/sink/blob/main/book/box.svg)"),
    "link outside": ("[x](https://e.org/a_(b)#c)", "[x](https://e.org/a_(b)#c)"),
    "picture": (
        "![A box.](../book/box.svg)",
        "![A box.](https://raw.githubusercontent.com/example/sink/main/book/box.svg)",
    ),
    "target": ("(sec-x)=\n## Here\n\n{ref}`sec-x`", '<a name="sec-x"></a>\n\n## 3.1. Here\n\n[Here](#sec-x)'),
    "one author": ("{cite:t}`gauss1809`", "[Gauss (1809)](https://doi.org/10.1000/gauss)"),
    "two authors": ("{cite:t}`bayes1763`", "Bayes and Price (1763)"),
    "three authors, an accent": ("{cite}`many1900`", "([Plançk et al., 1900](https://example.org/radiation))"),
    "two works": (
        "{cite:p}`bayes1763, many1900`",
        "(Bayes and Price, 1763; [Plançk et al., 1900](https://example.org/radiation))",
    ),
    "no author list, no year": (
        "{cite:t}`nobody`\n\n```{bibliography}\n```",
        "Anonymous (undated)\n\n- Anonymous: Work. (undated).",
    ),
    "and others": (
        "{cite:t}`long1950`\n\n```{bibliography}\n```",
        "Abel et al. (1950)\n\n- Abel N., Babel C. et al.: Long. *Acta* 3 (1950).",
    ),
    "note": ("```{note}\nText.\n\n- item\n```", "> **Note**\n>\n> Text.\n>\n> - item"),
    "note with its text in the first line": ("```{note} First.\nSecond.\n```", "> **Note**\n>\n> First.\n>\n> Second."),
    "seealso": (":::{seealso}\nText.\n:::", "> **See also**\n>\n> Text."),
    "admonition": (":::{admonition} A *title*\nText.\n:::", "> **A *title***\n>\n> Text."),
    "formula in a box": ("```{note}\n$$\na\n< b\n$$ (e)\n```", "> **Note**\n>\n> $$ a < b \\tag{3.1} $$"),
    "box in a box": ("::::{note}\n:::{tip}\nText.\n:::\n::::", "> **Note**\n>\n> > **Tip**\n> >\n> > Text."),
    "box in a list": ("1. One\n\n   ```{tip}\n   Text.\n   ```\n", "1. One\n\n   > **Tip**\n   >\n   > Text."),
    "folded box": (
        ":::{hint}\n:class: dropdown\nText.\n:::",
        "<details>\n<summary>Hint</summary>\n\nText.\n\n</details>",
    ),
    "a prediction": (
        "::::{admonition} Predict first\n:class: predict\nWhich?\n\n:::{dropdown} Answer\nThis.\n:::\n::::",
        "**Predict first**\n\nWhich?\n\n<details>\n<summary>Answer</summary>\n\nThis.\n\n</details>",
    ),
    "a badge": ("{bdg-secondary}`20-minute path`", "`20-minute path`"),
    "dropdown": (":::{dropdown} More\nText.\n:::", "<details>\n<summary>More</summary>\n\nText.\n\n</details>"),
    "tabs": ("::::{tab-set}\n:::{tab-item} A\na\n:::\n:::{tab-item} B\nb\n:::\n::::", "**A**\n\na\n\n**B**\n\nb"),
    "exercise": ("```{exercise} T\n:label: e\n\nDo.\n```", "> **Exercise 3.1** (T)\n>\n> Do."),
    "solution": (
        "```{solution} ex-one\nDone.\n```",
        "<details>\n<summary>Solution to Exercise 1.1 (A title)</summary>\n\nDone.\n\n</details>",
    ),
    "theorem": ("```{prf:theorem} T\n:label: t\n\nText.\n```", "> **Theorem 3.1** (T)\n>\n> Text."),
    "proof": ("```{prf:proof}\nText.\n```", "> **Proof**\n>\n> Text."),
    "figure": (
        "```{figure} ../book/box.svg\n:alt: A box.\n:name: f\n\nThe $x$.\n```",
        "![A box.](https://raw.githubusercontent.com/example/sink/main/book/box.svg)\n\n**Fig. 3.1.** The $x$.",
    ),
    "table": ("```{table} Sizes\n:name: t\n\n| a |\n|---|\n```", "**Table 3.1.** Sizes\n\n| a |\n|---|"),
    "list-table": (
        "```{list-table} T\n:header-rows: 1\n\n* - a\n  - b\n* - $|x|$\n  - c\n    d\n```",
        "**Table 3.1.** T\n\n| a | b |\n| --- | --- |\n| $\\vert x\\vert $ | c d |",
    ),
    "listing": ("```{code-block} bash\nls `a`\n```", "```bash\nls `a`\n```"),
    "fence": ("```python\n{eq}`x` $$\n```", "```python\n{eq}`x` $$\n```"),
    "literal role": ("`` {eq}`x` ``", "`` {eq}`x` ``"),
    "footnotes": ("b[^b] a[^a]\n\n[^a]: A\n[^b]: B", "b<sup>1</sup> a<sup>2</sup>\n\n<sup>2</sup> A\n<sup>1</sup> B"),
    "definition list": ("A\n: {eq}`eq-front`", f"- **A**: [(1)]({BOOK}/book/intro.html#equation-eq-front)"),
    "comment": ("a\n\n% no\n\nb", "a\n\nb"),
    "small roles": ("H{sub}`2`O {kbd}`Tab` {code}`x` {sup}`2`", "H<sub>2</sub>O <kbd>Tab</kbd> `x` <sup>2</sup>"),
    "abbreviation": ("{abbr}`MLE (maximum & so on)`", '<abbr title="maximum &amp; so on">MLE</abbr>'),
    "escape": (r"\$5, \{eq\}, \[x\](y)", r"\$5, \{eq\}, \[x\](y)"),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(book, rule):
    source, expected = RULES[rule]
    assert markdown(book, f"# Third\n\n{source}\n") == f"# 3. Third\n\n{expected}"


ERRORS = {
    "directive": ("a\n\n```{mermaid}\nx\n```", 3, r"no rule for the directive {mermaid}"),
    "directive in a directive": ("::::{note}\na\n:::{grid}\n:::\n::::", 3, r"no rule for the directive {grid}"),
    "raw LaTeX": ("```{raw} latex\n```", 1, r"no rule for the directive {raw}"),
    "role": ("a\nb {glue}`x`", 2, r"no rule for the role {glue}"),
    "role in a caption": ("```{figure} ../book/box.svg\n:alt: x\n\na {foo}`x`\n```", 4, r"no rule for the role {foo}"),
    "citation role": ("{cite:x}`gauss1809`", 1, r"no rule for the role {cite:x}"),
    "citation": ("{cite:t}`none`", 1, "no entry 'none'"),
    "equation": ("a\n\n{eq}`eq-none`", 3, "no label 'eq-none'"),
    "eq to a figure": ("{eq}`fig-box`", 1, "'fig-box' labels figure, not equation"),
    "numref to a section without number": ("{numref}`sec-deep`", 1, "no figure, table, section or exercise"),
    "numref": ("{numref}`fig-none`", 1, "no label 'fig-none'"),
    "numref to an equation": ("{numref}`eq-rate`", 1, "no figure, table, section or exercise"),
    "ref": ("{ref}`none`", 1, "no label 'none'"),
    "ref to an equation": ("{ref}`eq-rate`", 1, "'eq-rate' has no title"),
    "prf:ref to an exercise": ("{prf:ref}`ex-one`", 1, "'ex-one' labels exercise"),
    "doc": ("{doc}`none`", 1, "no page 'notebooks/none'"),
    "term": ("{term}`none`", 1, "no term 'none'"),
    "link to a file": ("[x](none.md)", 1, "no file 'notebooks/none.md'|no file 'notebooks/none'"),
    "link to a heading": ("[x](02_second.md#none)", 1, "leads to no heading"),
    "picture": ("![x](none.png)", 1, "no file 'notebooks/none.png'"),
    "picture without alt": ("![](../book/box.svg)", 1, "no alternative text"),
    "figure without alt": ("```{figure} ../book/box.svg\nx\n```", 1, "has no :alt: text"),
    "solution of nothing": ("```{solution} none\n```", 1, "no label 'none'"),
    "gate not closed": ("```{solution-start} ex-one\n```\n", 1, "no solution-end"),
    "gate not opened": ("```{solution-end}\n```\n", 1, "no solution is open"),
    "gate twice": ("```{solution-start} ex-one\n```\n" * 2, 3, "the solution of line"),
    "fence not closed": ("a\n```{note}\nb", 2, "is never closed"),
    "backticks in a title": ("```{note} `a`\nb\n```", 1, "backticks in the title"),
    "directive in a quotation": ("a\n\n> ```{note}\n> b\n> ```", 3, "Markdown reads no directive"),
    "directive right after a list mark": ("- ```{note}\n  b\n  ```", 1, "Markdown reads no directive"),
    "colons without a directive": ("a\n\n:::\nb\n:::", 3, "no directive in the fence ':::'"),
    "options": ("```{code-cell} ipython3\n---\na: [\n---\n```", 2, "not YAML"),
    "label twice": ("$$a$$ (eq-rate)", 1, "stands already at notebooks/01_first.md"),
    "substitution": ("{{ x }}", 1, "no rule for '{{ x }}'"),
    "attributes": ("a [b]{.c}", 1, "no rule for '{.c}'"),
    "project link": ("<project:x>", 1, "no rule for '<project:x>'"),
    "field list": (":a: b", 1, "no rule for ':a:'"),
    "AMS inside dollars": ("$$\n\\begin{align}a\\end{align}\n$$", 1, "an AMS environment"),
    "ragged list-table": ("```{list-table}\n* - a\n  - b\n* - c\n```", 1, "different lengths"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_carried_over_is_named_with_file_and_line(book, case):
    source, line, message = ERRORS[case]
    with pytest.raises(MystError, match=message) as error:
        convert(book, source)
    assert str(error.value).startswith(f"notebooks/03_third.md:{FIRST + line - 1}: ")


# ---- cells -----------------------------------------------------------------------------------------------

CELL = "```{{code-cell}} ipython3\n{options}x = 1\n```\n"


def test_notebook_starts_with_the_way_back_and_a_guarded_install(book):
    notebook = convert(book, "# Third\n")
    header, install = notebook.cells[:2]
    assert f"{BOOK}/notebooks/03_third.html" in header.source
    assert "colab.research.google.com/github/example/sink/blob/main/notebooks/03_third.ipynb" in header.source
    assert '%pip install -q "git+https://github.com/example/sink@main"' in install.source
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab.provenance == []
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("installed", [True, False])
def test_install_cell_calls_pip_only_where_the_package_is_missing(book, monkeypatch, installed):
    from IPython.core.inputtransformer2 import TransformerManager

    calls = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    code = TransformerManager().transform_cell(convert(book, "# Third\n").cells[1].source)
    shell = type("Shell", (), {"run_line_magic": lambda self, name, line: calls.append(f"{name} {line}")})()
    exec(code, {"get_ipython": lambda: shell})
    assert len(calls) == (not installed)


def test_parameters_cell_keeps_its_tag(book):
    (cell,) = [
        c for c in convert(book, CELL.format(options=":tags: [parameters]\n\n")).cells[2:] if c.cell_type == "code"
    ]
    assert cell.metadata == {"tags": ["parameters"]}
    assert cell.source == "x = 1"


@pytest.mark.parametrize("tag", ["hide-input", "hide-cell", "remove-input", "remove-cell"])
def test_hidden_input_becomes_a_form(book, tag):
    cell = convert(book, CELL.format(options=f":tags: [{tag}]\n\n")).cells[-1]
    assert cell.source == "# @title Code\nx = 1"
    assert cell.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [tag]}


def test_a_first_comment_becomes_the_form_title(book):
    cell = convert(book, CELL.format(options=":tags: [hide-input]\n\n# Draw it\n")).cells[-1]
    assert cell.source == "# @title Draw it\nx = 1"


def test_a_folded_cell_that_draws_is_named_after_its_figure(book):
    options = "---\ntags: [hide-input]\nmystnb:\n  figure:\n    name: fig-x\n    caption: A line.\n---\n"
    assert convert(book, CELL.format(options=options)).cells[2].source == "# @title Code of Fig. 3.1\nx = 1"


def test_figure_of_a_cell_has_its_caption_below(book):
    options = "---\nmystnb:\n  figure:\n    name: fig-x\n    caption: 'The {eq}`eq-front`.'\n---\n"
    cells = convert(book, CELL.format(options=options) + "\n{numref}`fig-x`").cells[2:]
    assert [cell.cell_type for cell in cells] == ["code", "markdown", "markdown"]
    assert cells[1].source == f"**Fig. 3.1.** The [(1)]({BOOK}/book/intro.html#equation-eq-front)."
    assert cells[2].source == "Fig. 3.1"


def test_gated_solution_hides_its_words_and_its_code(book):
    body = "```{solution-start} ex-one\n:class: dropdown\n```\nWords.\n\n%s\nMore.\n\n```{solution-end}\n```\nAfter.\n"
    words, code, more, after = convert(book, body % CELL.format(options="")).cells[2:]
    title = "Solution to Exercise 1.1 (A title)"
    assert words.source == f"<details>\n<summary>{title}</summary>\n\nWords.\n\n</details>"
    assert code.source.splitlines() == [f"# @title {title}: code, double-click to read it", "x = 1"]
    assert code.metadata["cellView"] == "form"
    assert more.source == f"<details>\n<summary>{title}, continued</summary>\n\nMore.\n\n</details>"
    assert after.source == "After."


def test_no_output_and_no_sphinx_syntax_is_left(book):
    left = (r"{eq}", r"{num", r"{cite", r"{term", "```{", ":::", "(sec-", "+++", "%%", r"\E", r"\Var")
    for text in editions(book).values():
        for cell in nbformat.reads(text, as_version=4).cells:
            if cell.cell_type == "code":
                assert cell.outputs == [] and cell.execution_count is None
            else:
                prose = cell.source.replace("``{eq}`x` ``", "")
                assert not [mark for mark in left if mark in prose], cell.source


def test_empty_lines_at_the_end_of_a_cell_do_not_matter(book):
    assert convert(book, "```{code-cell} ipython3\nx = 1\n\n\n```\n").cells[-1].source == "x = 1"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("::::{note}\n```{code-cell} ipython3\nx = 1\n```\n::::", "no rule for the directive {code-cell}"),
        ("- a\n\n  ```{code-cell} ipython3\n  x = 1\n  ```", "a code cell must not be indented"),
    ],
)
def test_a_code_cell_that_papermill_would_not_see_is_an_error(book, body, message):
    with pytest.raises(MystError, match=message):
        convert(book, body)
