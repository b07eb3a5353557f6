"""Write the course editions of every chapter: _build/course/NN_name_student.ipynb and NN_name_instructor.ipynb.

Student: no solutions; an answer cell below each exercise, and where the checks can be taken apart from the solution, a
test cell. Instructor: solutions open, and the claims that test each. A chapter that breaks the contract is left out.
"""

from __future__ import annotations

import argparse
import ast
import sys
from dataclasses import dataclass
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import contract
from tools.colab.blocks import Writer
from tools.colab.book import Book, Page
from tools.colab.edition import FOLDED, Edition, write
from tools.colab.myst import Block

ROOT = Path(__file__).resolve().parents[1]
INNER = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)  # bind names of their own
NO_CHECK = "the book's solution checks nothing"
NOT_APART = "the book's checks cannot be taken apart from its solution"


@dataclass(frozen=True)
class Solution:
    """The code of a solution: the answer, the test, and the names that the test reads and the answer assigns.

    claims: what the solution checks, names and values. untested: why there is no test; "" if there is one.
    """

    answer: str
    test: str = ""
    names: tuple[str, ...] = ()
    claims: tuple[tuple[str, str], ...] = ()
    untested: str = ""


def split(cells: list[str]) -> Solution:
    """Take the checks of a solution's code cells apart from the rest.

    The test gets the top-level statements that only check, and the assignments that only their ranges read.
    """
    nodes, texts = [], []
    for source in cells:
        lines, done = source.split("\n"), 0
        for node in ast.parse(source).body:
            nodes.append(node)
            texts.append("\n".join(lines[done : node.end_lineno]).strip("\n"))  # with the comments above it
            done = node.end_lineno or done
    code, claims = "\n".join(cells), tuple(claim for node in nodes for claim in claims_of(node))
    if not claims:
        return Solution(code, untested=NO_CHECK)
    tests = {k for k, node in enumerate(nodes) if only_checks(node)}
    tests |= ranges(nodes, tests)
    rest = [k for k in range(len(nodes)) if k not in tests]
    read = loads(*(nodes[k] for k in tests))
    names = dict.fromkeys(name for k in rest for name in sorted(stores(nodes[k])) if name in read)
    changed = any(stores(nodes[k]) & loads(nodes[t]) for t in tests for k in rest if k > t)  # after it was read
    if changed or not names or any(checks(nodes[k]) for k in rest):
        return Solution(code, claims=claims, untested=NOT_APART)
    answer, test = ("\n".join(texts[k] for k in chosen) for chosen in (rest, sorted(tests)))
    return Solution(answer, test, tuple(names), claims)


def checks(node: ast.AST) -> list[ast.Call]:
    """The calls of check in a statement."""
    calls = [found for found in ast.walk(node) if isinstance(found, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "check"]


def only_checks(node: ast.stmt) -> bool:
    """Whether a statement is a check, or a folded block of checks and of names for them."""
    match node:
        case ast.Expr(ast.Call(func=ast.Name("check"))):
            return True
        case ast.With(items=[ast.withitem(ast.Call(func=ast.Attribute(attr="folded")))], body=body):
            rest = [part for part in body if not only_checks(part)]
            return all(isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant) for part in rest)
    return False


def ranges(nodes: list[ast.stmt], tests: set[int]) -> set[int]:
    """Assignments whose names are read by nothing but the ranges of checks."""
    values = loads(*(argument for k in tests for call in checks(nodes[k]) for argument in call.args[:2]))
    found: set[int] = set()
    for k in reversed(range(len(nodes))):
        others = [node for j, node in enumerate(nodes) if j not in {k, *tests, *found}]
        elsewhere = values | loads(*others) | stores(*others)
        bound, bounds = stores(nodes[k]), loads(*(nodes[j] for j in tests | found))
        if isinstance(nodes[k], ast.Assign) and bound and bound <= bounds and not bound & elsewhere:
            found.add(k)
    return found


def loads(*nodes: ast.AST) -> set[str]:
    """The names that code reads, without those of its comprehensions."""
    every = [found for node in nodes for found in ast.walk(node)]
    own = stores(*(found.target for found in every if isinstance(found, ast.comprehension)))
    return {found.id for found in every if isinstance(found, ast.Name) and isinstance(found.ctx, ast.Load)} - own


def stores(*nodes: ast.AST) -> set[str]:
    """The names that code binds where it stands: not those within functions and comprehensions."""
    names: set[str] = set()
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(name=name, asname=other):
                names.add(other or name.partition(".")[0])
            case _ if not isinstance(node, INNER):
                names |= stores(*ast.iter_child_nodes(node))
    return names


def claims_of(node: ast.stmt) -> list[tuple[str, str]]:
    """The claims that a statement checks: their names, as f-strings where they are, and the code of their values."""
    known = {ast.unparse(s.targets[0]): s.value for s in ast.walk(node) if isinstance(s, ast.Assign)}
    found = []
    for name, value, *_ in (call.args for call in checks(node)):
        name = known.get(ast.unparse(name), name)
        title = name.value if isinstance(name, ast.Constant) else ast.unparse(name)[2:-1]  # an f-string
        found.append((str(title), ast.unparse(value)))
    return found


class CourseEdition(Edition):
    """What both editions share: the code of each solution, and a place below its exercise."""

    kind = ""

    def __init__(self, book: Book, page: Page) -> None:
        super().__init__(book, page)
        self.code_of: dict[str, list[str]] = {}  # by the label of the exercise
        label = self.label = ""
        for block in page.blocks:
            if block.name in ("solution-start", "solution-end"):
                label = block.argument
            elif label and block.name == "code-cell":
                self.code_of.setdefault(label, []).append(block.text)

    def take(self, block: Block) -> None:
        """Add one top-level block, and below an exercise what belongs there."""
        super().take(block)
        self.label = block.options.get("label", self.label) if block.name.startswith("exercise") else self.label
        if block.name in ("exercise", "exercise-end"):
            self.flush()
            title = self.writer.solution_title(Block("directive", block.line, argument=self.label))
            self.below(title.removeprefix("Solution to "), split(self.code_of.get(self.label, [])))

    def below(self, name: str, solution: Solution) -> None:
        """Add what stands below an exercise."""
        raise NotImplementedError

    def header(self) -> str:
        """What this is and where it comes from, without a badge: that would lead to the solutions."""
        title, page = self.book.config["title"], self.book.url(self.page.name)
        return f"*{title}.* {self.kind.capitalize()} edition. [Read this chapter in the book]({page})."


class OpenWriter(Writer):
    """Writes solutions under their titles instead of folded."""

    def directive(self, block: Block) -> str:
        """One directive, by its rule."""
        if block.name in ("solution", "solution-start"):
            return f"**{self.solution_title(block)}**\n\n{self.body(block)}"
        return "" if block.name == "solution-end" else super().directive(block)


class Instructor(CourseEdition):
    """Everything, with solutions open."""

    kind = "instructor"

    def __init__(self, book: Book, page: Page) -> None:
        super().__init__(book, page)
        self.writer = OpenWriter(book, page)

    def take(self, block: Block) -> None:
        """Add one block; a gated solution is only a title and what follows."""
        if block.name in ("solution-start", "solution-end"):
            self.flush()
            self.pending += filter(None, [self.writer.block(block)])
        else:
            super().take(block)

    def below(self, name: str, solution: Solution) -> None:
        """The claims that test the exercise."""
        claims = "".join(f"\n- {claim}" for claim, _ in solution.claims)
        self.cells.append(new_markdown_cell(f"*Claims that test {name}:*{claims or ' none.'}"))


class Student(CourseEdition):
    """No solutions, but cells for answers and tests."""

    kind = "student"
    gate = False  # within a solution

    def take(self, block: Block) -> None:
        """Add one block, unless it belongs to a solution."""
        if block.name in ("solution-start", "solution-end"):
            self.flush()
            self.gate = block.name == "solution-start"
        elif not self.gate and block.name != "solution":
            super().take(block)

    def below(self, name: str, solution: Solution) -> None:
        """Cells for words and, where the solution has code, for code; and a test that stops where names are missing."""
        self.cells.append(new_markdown_cell(f"*Your answer to {name}:*"))
        lines = [f"# Your code for {name}", f"# No test follows: {solution.untested}."]
        if solution.test:  # tells no claim's name: it may give the answer away
            lines[1] = f"# The test below needs: {', '.join(solution.names)}. It checks"
            lines += [*(f"#   {value}" for _, value in solution.claims), *(f"{name} = ..." for name in solution.names)]
        if solution.answer:
            self.cells.append(new_code_cell("\n".join(lines)))
        if solution.test:
            guard = (
                f"_missing = [name for name in {solution.names} if globals().get(name, ...) is ...]\n"
                f"assert not _missing, {f'{name} is open: the cell above must define '!r} + ', '.join(_missing)\n"
            )
            test = f"# @title Test of {name}\n{guard}{solution.test}"
            self.cells.append(new_code_cell(test, metadata=dict(FOLDED)))


def editions(root: Path, pin: str = "") -> tuple[dict[str, str], list[str]]:
    """The notebooks by file name, and the chapters that are left out with the first thing that they lack."""
    book, written, left_out = Book(root, pin), {}, []
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.md")):
        if contract.is_appendix(path):
            continue
        if problems := contract.source_problems(path.read_text(encoding="utf-8")):
            left_out.append(f"{path.name} is left out: {problems[0]}")
            continue
        for edition in (Student, Instructor):
            notebook = edition(book, book.pages[f"notebooks/{path.stem}"]).build()
            written[f"{path.stem}_{edition.kind}.ipynb"] = write(notebook)
    return written, left_out


def main(arguments: list[str] | None = None) -> int:
    """Write the editions; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tools.course", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pin", default="", help="a release such as v0.2.0: links and installation point to it")
    given = parser.parse_args(arguments)
    out = ROOT / "_build" / "course"
    try:
        written, left_out = editions(ROOT, given.pin)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.ipynb"):
        old.unlink()
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    print(*left_out, f"{len(written)} notebooks in {out.relative_to(ROOT)}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
