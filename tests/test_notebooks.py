"""Every chapter keeps the contract and runs from end to end in profile smoke; and the contract can be broken."""

import jupytext
import nbformat
import pytest

from tools import contract, run_chapters

CHAPTERS = run_chapters.chapters()

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""
START = f"""
```{{code-cell}} ipython3
:tags: [parameters]
{contract.PARAMETERS}
```

```{{code-cell}} ipython3
run = notebook.start(profile, device, seed=1)
check = run.check
```
"""
GOOD = (
    HEADER
    + """
# A chapter

## What you will be able to do

- see
- say
- do

## Before you start

{bdg-secondary}`20-minute path`

Time: a minute. Hardware: any. Prerequisites: none.
"""
    + START
    + """
```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-line
    caption: The line rises.
  image:
    alt: A straight line from lower left to upper right.
---
plt.plot([1, 2]);
```

::::{admonition} Predict first
:class: predict
Does it rise?

:::{dropdown} Answer
Yes.
:::
::::

## Summary

{bdg-secondary}`20-minute path`

Done.

## Exercises

```{exercise} One
:label: ex-one
Do it.
```

```{solution} ex-one
:class: dropdown
Done.
```

```{exercise} Two
:label: ex-two
Do it.
```

````{solution} ex-two
:label: sol-two
:class: dropdown

```python
# Not a heading
```
````

```{exercise} Three
:label: ex-three
Code it.
```

```{solution-start} ex-three
:class: dropdown
```

```{code-cell} ipython3
check("three", 3, 3, 3)
```

```{solution-end}
```

## Further reading

{cite}`someone2020` is a start.
"""
)
BROKEN = {
    "no header": (HEADER, "---\ntitle: x\n---\n", "format_name: myst"),
    "no kernel": ("name: python3", "name: julia", "kernelspec"),
    "two titles": ("## Summary", "# Another\n\n## Summary", "one # title"),
    "section missing": ("## Summary", "## The end", "must stand in this order"),
    "sections swapped": ("## Before you start", "## Further reading", "must stand in this order"),
    "two objectives": ("- do\n", "", "3 to 5 objectives as a list, got 2"),
    "no time": ("Time: a minute", "Quick", "does not tell the time"),
    "no hardware": ("Hardware: any", "", "does not tell the hardware"),
    "no prerequisites": ("Prerequisites: none", "", "does not tell the prerequisites"),
    "left open": ("Time: a minute", "Time: TODO", "left open: TODO"),
    "no reading": ("{cite}`someone2020`", "The paper", "cites nothing"),
    "no parameters": (":tags: [parameters]\n", "", "tagged parameters"),
    "other default": ('profile = "book"', 'profile = "full"', "tagged parameters"),
    "no start": ("notebook.start(profile, device, seed=1)", "None", "notebook.start"),
    "no claim": ('check("three", 3, 3, 3)', "three = 3", "no cell checks a claim"),
    "long cell": ("plt.plot([1, 2]);", "plt.plot([1, 2]);\n" * 19, "a cell has 19 lines"),
    "wide line": ("plt.plot([1, 2]);", f"plt.plot([1, 2])  # {'a' * 80}", "characters, more than 95"),
    "many imports": ("plt.plot([1, 2]);", "from smlmtut import io\n" * 7, "imported in 7 statements, more than 6"),
    "late imports": (
        "plt.plot([1, 2]);",
        "def f():\n" + "    import smlmtut.io\n" * 7,
        "imported in 7 statements, more than 6",
    ),
    "magic": ("plt.plot([1, 2]);", "%pip install x", "not Python"),
    "no answer": (":::{dropdown} Answer\nYes.\n:::\n", "", "must hold a question and one {dropdown}"),
    "open answer": (":::{dropdown} Answer", ":::{note}", "must hold a question and one {dropdown}"),
    "no question": ("Does it rise?\n\n", "", "must hold a question and one {dropdown}"),
    "path of one": ("## Summary\n\n{bdg-secondary}`20-minute path`", "## Summary", "headings of two sections or more"),
    "path in a text": ("Done.\n", "Done. {bdg-secondary}`20-minute path`\n", "right below the headings"),
    "no caption": ("    caption: The line rises.\n", "", "fig-line: a figure needs a name, and a caption"),
    "caption no sentence": ("The line rises.", "The line", "a caption that is a sentence"),
    "no figure name": ("    name: fig-line\n", "", "needs a name"),
    "no alt": ("    alt: A straight line from lower left to upper right.\n", "    width: 9\n", "alt text"),
    "alt is caption": ("A straight line from lower left to upper right.", "The line rises.", "alt text"),
    "two exercises": ("```{exercise} Two\n:label: ex-two\nDo it.\n```\n", "", "3 to 6 exercises, got 2"),
    "no label": (":label: ex-one\n", "", "do not pair up"),
    "no solution": ("{solution} ex-one", "{note} ex-one", "do not pair up"),
    "open solution": ("{solution} ex-one\n:class: dropdown", "{solution} ex-one", "ex-one does not start closed"),
    "open gate": ("{solution-start} ex-three\n:class: dropdown", "{solution-start} ex-three", "start closed"),
    "code unchecked": ('check("three", 3, 3, 3)', "check = 3", "no solution between"),
}


def test_a_chapter_that_keeps_the_contract_has_no_problem():
    assert contract.source_problems(GOOD) == []


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_of_the_contract_can_be_broken(case):
    old, new, message = BROKEN[case]
    assert GOOD.count(old) >= 1
    assert any(message in problem for problem in contract.source_problems(GOOD.replace(old, new, 1)))


def without_sections(text, *titles):
    """A text without some of its ## sections."""
    for title in titles:
        head, _, rest = text.partition(f"## {title}\n")
        text = head + rest[rest.index("\n## ") + 1 :]
    return text


def test_an_appendix_has_no_objectives_summary_nor_exercises_and_keeps_the_rest():
    claim = '\n```{code-cell} ipython3\ncheck("a", 1, 1, 1)\n```\n\n## Further reading'
    text = without_sections(GOOD, "What you will be able to do", "Summary", "Exercises")
    text = text.replace("{bdg-secondary}`20-minute path`\n\n", "").replace("\n## Further reading", claim)
    assert contract.source_problems(text, appendix=True) == []
    assert any("must stand in this order" in problem for problem in contract.source_problems(text))
    assert any("must stand in this order" in problem for problem in contract.source_problems(GOOD, appendix=True))
    assert contract.source_problems(text.replace("Hardware: any", ""), appendix=True)
    assert contract.source_problems(text.replace(claim, "\n## Further reading"), appendix=True) == [
        "no cell checks a claim"
    ]


def test_code_before_the_gate_is_not_a_solution():
    moved = GOOD.replace("```{solution-start} ex-three\n:class: dropdown\n```\n", "").replace(
        "```{solution-end}\n```", "```{solution-start} ex-three\n:class: dropdown\n```\n\n```{solution-end}\n```"
    )
    assert contract.source_problems(moved) == [
        "no solution between solution-start and solution-end has code with a check"
    ]


def test_a_run_must_not_print_to_stderr_nor_show_a_bare_picture():
    v = nbformat.v4
    noise = v.new_output("stream", name="stderr", text="UserWarning: no")
    picture = v.new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"})
    slider = v.new_output("display_data", data={"image/png": "", "text/html": '<input id="a" type="range">'})
    cells = [v.new_code_cell(f"cell {i}", outputs=[output]) for i, output in enumerate([noise, picture, slider])]
    captioned = v.new_code_cell("cell 3", outputs=[picture], metadata={"mystnb": {"figure": {"caption": "x"}}})
    problems = contract.run_problems(v.new_notebook(cells=[*cells, captioned]))
    assert [problem.partition("'")[2].partition("'")[0] for problem in problems] == ["cell 0", "cell 1"]


GATES = """
seen 1

```{solution-start} a
:class: dropdown
```

hidden 1

```{code-cell} ipython3
hidden 2
```

```{solution-end}
```

seen 2

```{solution-start} b
```

```{code-cell} ipython3
hidden 3
```

```{solution-end}
```

```{code-cell} ipython3
:tags: [hide-input]
hidden 4
```

```{dropdown} title
hidden 5
```
"""


def test_what_stands_open_is_what_no_box_hides():
    notebook = jupytext.reads(HEADER + GATES, fmt="md:myst")
    assert " ".join(" ".join(cell.source for cell in contract.shown(notebook)).split()).startswith("seen 1 seen 2 ")
    assert not any("hidden" in cell.source for cell in contract.shown(notebook))
    assert contract.visible_size(HEADER + GATES) < 60


def test_open_claims_are_counted_where_they_stand():
    """One claim in a cell, three in a box, and one in a solution: one is open."""
    notebook, v = jupytext.reads(HEADER + GATES, fmt="md:myst"), nbformat.v4
    claim = v.new_output("display_data", metadata={"smlmtut": {"claim": {}}})
    box = v.new_output("display_data", metadata={"smlmtut": {"claims": [{}, {}, {}]}})
    solution, other, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    solution.outputs, other.outputs, last.outputs = [claim], [claim], [claim, box]
    assert contract.visible_claims(notebook) == 1


def test_a_long_chapter_is_told():
    assert contract.size_problems(HEADER + "a" * contract.MOST_VISIBLE + "b")
    assert not contract.size_problems(HEADER + "a" * 100)


def test_there_are_chapters():
    assert CHAPTERS


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_contract(source):
    text = source.read_text(encoding="utf-8")
    assert contract.source_problems(text, contract.is_appendix(source)) + contract.size_problems(text) == []


@pytest.mark.filterwarnings("default")  # the Jupyter libraries' own; what a chapter warns of is checked below
@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs(source, tmp_path):
    report = run_chapters.run_chapter(source, "smoke", "auto", tmp_path)
    assert not report.error, report.error
    assert report.claims and all(claim["holds"] for claim in report.claims if claim["enforced"])
    executed = nbformat.read(tmp_path / f"{source.stem}.ipynb", as_version=4)
    assert contract.run_problems(executed) == []
    assert contract.visible_claims(executed) <= contract.MOST_CLAIMS
