"""The course editions: what a solution is split into, that both keep the chapter's code, and that nothing leaks."""

import ast
import builtins
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import v4

from tools import contract, course, run_chapters
from tools.colab.blocks import Writer
from tools.colab.book import Book
from tools.course import NO_CHECK, NOT_APART, Instructor, Student, loads, split, stores

ROOT = run_chapters.ROOT
KEPT = [
    path
    for path in run_chapters.chapters()
    if not contract.is_appendix(path) and not contract.source_problems(path.read_text(encoding="utf-8"))
]
SHORT = ["02_likelihood", "03_fisher_information"]  # run here for real; the shortest in tools/durations.json
chapters = pytest.mark.parametrize("source", KEPT, ids=lambda path: path.stem)

# code of a solution: answer, test, names that the test needs
SPLITS = {
    "checks at the end": ("a = 1\ncheck('n', a, 0, 2)", "a = 1", "check('n', a, 0, 2)", ("a",)),
    "two cells": ("a = 1\n%%\ncheck('n', a, 0, 2)", "a = 1", "check('n', a, 0, 2)", ("a",)),
    "between": (
        "a = 1\ncheck('n', a, 0, 2)\nb = a\ncheck('m', b, 0, 2)",
        "a = 1\nb = a",
        "check('n', a, 0, 2)\ncheck('m', b, 0, 2)",
        ("a", "b"),
    ),
    "shown after": ("a = 1\ncheck('n', a, 0, 2)\na", "a = 1\na", "check('n', a, 0, 2)", ("a",)),
    "comment": ("a = 1\n# why\ncheck('n', a, 0, 2)", "a = 1", "# why\ncheck('n', a, 0, 2)", ("a",)),
    "range": (
        "a = 1\ne = a / 5\nlow, high = -e, e\ncheck('n', a, low, high)",
        "a = 1",
        "e = a / 5\nlow, high = -e, e\ncheck('n', a, low, high)",
        ("a",),
    ),
    "range that is printed": (
        "a = 1\nb = 2\nprint(b)\ncheck('n', a, 0, b)",
        "a = 1\nb = 2\nprint(b)",
        "check('n', a, 0, b)",
        ("a", "b"),
    ),
    "range that is also a value": (
        "a = 1\ncheck('n', a, 0, 2)\ncheck('m', 3, 0, a)",
        "a = 1",
        "check('n', a, 0, 2)\ncheck('m', 3, 0, a)",
        ("a",),
    ),
    "function": ("def f(x):\n    y = x\n    return y\ncheck('n', f(y), 0, 2)", None, "check('n', f(y), 0, 2)", ("f",)),
    "own name of a comprehension": (
        "k = 1\na = k\ncheck('n', a, *(k for k in (0, 2)))",
        "k = 1\na = k",
        "check('n', a, *(k for k in (0, 2)))",
        ("a",),
    ),
    "folded": (
        "a = 1\nwith run.folded():\n    n = 'n'\n    check(n, a, 0, 2)",
        "a = 1",
        "with run.folded():\n    n = 'n'\n    check(n, a, 0, 2)",
        ("a",),
    ),
}
WHOLE = {
    "no check": ("a = 1", NO_CHECK),
    "in a loop": ("for a in (1, 2):\n    check(f'{a}', a, 0, 2)", NOT_APART),
    "computed in the fold": ("with run.folded():\n    a = 1 + 1\n    check('n', a, 0, 2)", NOT_APART),
    "changed later": ("a = 1\ncheck('n', a, 0, 2)\na = 5\nprint(a)", NOT_APART),
    "nothing to define": ("print(1)\ncheck('n', 1, 0, 2)", NOT_APART),
}


@pytest.fixture(scope="module")
def book():
    return Book(ROOT)


@pytest.fixture(scope="module")
def built(book):
    """Builds an edition of a chapter once."""

    @cache
    def build(edition, name):
        return edition(book, book.pages[f"notebooks/{name}"]).build()

    return build


def page_of(book, source):
    return book.pages[f"notebooks/{source.stem}"]


def code(notebook):
    """The syntax of each code cell without the install cell: comments, and so form titles, do not count."""
    return [ast.dump(ast.parse(cell.source)) for cell in notebook.cells[2:] if cell.cell_type == "code"]


def solutions(book, source):
    """What each solution with code is split into, in order."""
    return [split(cells) for cells in Student(book, page_of(book, source)).code_of.values()]


@pytest.mark.parametrize("case", SPLITS)
def test_checks_are_taken_apart(case):
    source, answer, test, names = SPLITS[case]
    found = split(source.split("\n%%\n"))
    assert (found.test, found.names, found.untested) == (test, names, "")
    assert answer is None or found.answer == answer


@pytest.mark.parametrize("case", WHOLE)
def test_what_cannot_be_taken_apart_stays_whole(case):
    source, why = WHOLE[case]
    found = split([source])
    assert (found.answer, found.test, found.untested) == (source, "", why)


def test_claims_are_named():
    cells = [
        "check('one', a, 0, 1)\nfor k in (1, 2):\n    check(f'at {k}', k, 0, 1)",
        "with run.folded():\n    n = 'three'",
    ]
    cells[1] += "\n    check(n, a + 1, 0, 1)"
    assert split(cells).claims == (("one", "a"), ("at {k}", "k"), ("three", "a + 1"))


def test_every_chapter_that_keeps_the_contract_has_both_editions(monkeypatch):
    for edition in (Student, Instructor):
        monkeypatch.setattr(edition, "build", lambda self: v4.new_notebook(metadata={"of": self.page.name}))
    written, left_out = course.editions(ROOT)
    assert len(KEPT) >= 9
    assert list(written) == [f"{path.stem}_{kind}.ipynb" for path in KEPT for kind in ("student", "instructor")]
    taught = [path for path in run_chapters.chapters() if not contract.is_appendix(path)]
    assert len(left_out) == len(taught) - len(KEPT)


@chapters
def test_the_instructor_has_the_chapters_code_in_order(book, built, source):
    page = page_of(book, source)
    theirs = [ast.dump(ast.parse(block.text)) for block in page.blocks if block.name == "code-cell"]
    notebook = built(Instructor, source.stem)
    assert code(notebook) == theirs
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    exercises = sum(block.name == "exercise" for block in page.blocks)
    assert sum(text.startswith("*Claims that test Exercise") for text in words) == exercises
    assert sum(text.count("**Solution to Exercise") for text in words) == exercises
    assert not any("<summary>Solution" in text for text in words)


@chapters
def test_the_student_has_the_rest_of_the_code_and_no_more(book, built, source):
    """Answer cells assign … alone; a test is a guard and statements of the solution; together they are the solution."""
    page, gate, kept = page_of(book, source), False, []
    for block in page.blocks:
        gate = block.name == "solution-start" or (gate and block.name != "solution-end")
        kept += [ast.dump(ast.parse(block.text))] if block.name == "code-cell" and not gate else []
    notebook, parts = built(Student, source.stem), solutions(book, source)
    expected = [
        cell for part in parts for cell in (placeholders(part), part.test and statements(part.test)) if cell != ""
    ]
    assert [cell for cell in code(notebook) if cell in kept] == kept
    own = [cell for cell in notebook.cells if re.match(r"# Your code for|# @title Test of", cell.source)]
    assert len(kept) + len(own) == len(code(notebook))
    assert [last_statements(cell) for cell in own] == expected
    for part, cells in zip(parts, Student(book, page).code_of.values(), strict=True):
        whole = sorted(ast.dump(node) for cell in cells for node in ast.parse(cell).body)
        assert sorted(ast.dump(node) for node in ast.parse(f"{part.answer}\n{part.test}").body) == whole


def placeholders(part):
    return [ast.dump(node) for node in ast.parse("\n".join(f"{name} = ..." for name in part.names)).body]


def statements(source):
    return [ast.dump(node) for node in ast.parse(source).body]


def last_statements(cell):
    """The statements of an answer cell, or of a test cell without its guard of two."""
    body = ast.parse(cell.source).body
    return [ast.dump(node) for node in (body[2:] if "Test of" in cell.source else body)]


@chapters
def test_an_exercise_needs_no_other_exercise(book, source):
    """With all others open, a solution finds every name; none of them is one that an open exercise sets to …."""
    gate, outside = False, set()
    for block in page_of(book, source).blocks:
        gate = block.name == "solution-start" or (gate and block.name != "solution-end")
        if block.name == "code-cell" and not gate:
            outside |= stores(ast.parse(block.text))
    placeholders = set()
    for part in solutions(book, source):
        tree = ast.parse(f"{part.answer}\n{part.test}")
        own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        own |= stores(tree) | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        needed = loads(tree) - own
        assert needed <= outside | set(dir(builtins))
        assert not needed & placeholders
        placeholders |= set(part.names)


def sentences(book, source):
    """The sentences and lines of code of a chapter's solutions, raw and as Markdown; without what a test cell shows."""
    page, gate, words, lines = page_of(book, source), False, [], set()
    writer = Writer(book, page)
    for block in page.blocks:
        gate = block.name == "solution-start" or (gate and block.name != "solution-end")
        if block.name == "solution":
            words += [block.text, writer.body(block)]
        elif gate and block.kind in ("text", "math"):
            words += [block.text, writer.block(block)]
    for part in solutions(book, source):
        lines |= {line.strip() for line in part.answer.split("\n") if len(line.strip()) > 15}
    parts = {" ".join(part.split()) for text in words for part in re.split(r"(?<=[.!?:])\s|\n\n|\n", text)}
    return {part for part in parts if len(part) > 25} | lines


@chapters
def test_no_solution_leaks(book, built, source):
    text = source.read_text(encoding="utf-8")
    for box in contract.directives(text):
        text = text.replace(box.text, "") if box.name == "solution" else text
    text = re.sub(r"^`{3,}\{solution-start\}.*?^`{3,}\{solution-end\}", "", text, flags=re.M | re.S)
    student, instructor = (
        " ".join("\n".join(cell.source for cell in built(edition, source.stem).cells).split())
        for edition in (Student, Instructor)
    )
    secret = {part for part in sentences(book, source) if part not in " ".join(text.split())}
    assert len({part for part in secret if part in instructor}) > 5  # they would be found
    assert [part for part in secret if part in student] == []


@pytest.mark.filterwarnings("default")  # the Jupyter libraries' own
@pytest.mark.parametrize("name", SHORT)
def test_the_instructors_notebook_runs(built, name, tmp_path):
    path = tmp_path / f"{name}_instructor.ipynb"
    nbformat.write(built(Instructor, name), path)
    report = run_chapters.run_chapter(path, "smoke", "auto", tmp_path / "out")
    assert not report.error, report.error
    assert report.claims and all(claim["holds"] for claim in report.claims if claim["enforced"])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SHORT)
def test_the_students_notebook_fails_at_open_tests_alone_and_passes_once_they_are_answered(book, built, name):
    """The same kernel runs the student's notebook, and then each answer of the book before its test."""
    notebook = deepcopy(built(Student, name))
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('"book"', '"smoke"', 1)
    tests = [cell for cell in notebook.cells if "# @title Test of" in cell.source]
    parts = [part for part in solutions(book, Path(f"{name}.md")) if part.test]
    first = len(notebook.cells)
    for part, test in zip(parts, tests, strict=True):
        notebook.cells += [v4.new_code_cell(part.answer), v4.new_code_cell(test.source)]
    client = NotebookClient(notebook, allow_errors=True, kernel_name="python3", resources={"metadata": {"path": ROOT}})
    client.execute()
    failed = {
        k: [output for output in cell.outputs if output.output_type == "error"]
        for k, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and any(output.output_type == "error" for output in cell.outputs)
    }
    assert [notebook.cells[k].source for k in failed] == [test.source for test in tests]
    assert all(k < first for k in failed)
    for errors, part in zip(failed.values(), parts, strict=True):
        message = f"is open: the cell above must define {', '.join(part.names)}"
        assert errors[0].ename == "AssertionError" and re.fullmatch(rf"Exercise .* {message}", errors[0].evalue)
    for cell, part in zip(notebook.cells[first + 1 :: 2], parts, strict=True):
        shown = [output.get("metadata", {}).get("smlmtut", {}) for output in cell.outputs]
        claims = [claim for entry in shown for claim in [*entry.get("claims", []), entry.get("claim")] if claim]
        assert len(claims) == len(part.claims) and all(claim["holds"] for claim in claims if claim["enforced"])
