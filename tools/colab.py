"""Write the Colab edition: notebooks/NN_name.ipynb from notebooks/NN_name.md, or --check that it is in step.

The notebook needs nothing of Sphinx: directives, roles and numbers become plain Markdown, solutions fold
away, and a first cell installs the package where it is missing. Same source, same bytes.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

if __package__ is None:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.labels import Book, Page
from tools.myst import Block, MystError
from tools.plain import Writer, details

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # on Colab, in JupyterLab
MARK = "generated from"  # in the metadata of every notebook written here
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "accelerator": "GPU",
    "colab": {"provenance": [], "gpuType": "T4", "toc_visible": True},
}


class Edition:
    """The Colab edition of one chapter."""

    def __init__(self, book: Book, page: Page) -> None:
        self.book, self.page, self.writer = book, page, Writer(book, page)
        self.cells: list[dict[str, Any]] = []
        self.pending: list[str] = []  # Markdown that is not in a cell yet
        self.solution = ""  # title of the gated solution that is open
        self.opened = 0  # line of the open gate
        self.parts = 0  # Markdown cells of the open solution so far

    def build(self) -> nbformat.NotebookNode:
        """The notebook. Raises MystError, with file and line, for what cannot be carried over."""
        self.cells += [new_markdown_cell(self.header()), new_code_cell(self.install(), metadata=dict(FOLDED))]
        for block in self.page.blocks:
            self.take(block)
        self.flush()
        if self.solution:
            raise MystError(self.page.shown, self.opened, "the solution-start has no solution-end")
        self.compare()
        seen: Counter[str] = Counter()
        for cell in self.cells:
            seen[cell["source"]] += 1
            text = f"{cell['cell_type']}\n{cell['source']}\n{seen[cell['source']]}"
            cell["id"] = hashlib.sha256(text.encode()).hexdigest()[:12]
        metadata = {**METADATA, "smlmtut": {MARK: self.page.shown}}
        return new_notebook(cells=self.cells, metadata=metadata, nbformat_minor=5)

    def take(self, block: Block) -> None:
        """Add one top-level block."""
        if block.kind == "break":
            self.flush()
        elif block.kind == "directive" and block.name == "code-cell":
            self.code(block)
        elif block.kind == "directive" and block.name == "solution-start":
            self.flush()
            if self.solution:
                raise MystError(self.page.shown, block.line, f"the solution of line {self.opened} is still open")
            self.solution, self.opened, self.parts = self.writer.solution_title(block), block.line, 0
            self.pending += [text] if (text := self.writer.body(block)) else []
        elif block.kind == "directive" and block.name == "solution-end":
            if not self.solution:
                raise MystError(self.page.shown, block.line, "no solution is open here")
            self.flush()
            self.solution = ""
        else:
            if block.kind == "heading" and not (self.pending and self.pending[-1].startswith("<a name")):
                self.flush()
            self.pending += [text] if (text := self.writer.block(block)) else []

    def code(self, block: Block) -> None:
        """Add a code cell, and its figure's caption below."""
        self.flush()
        source = block.text
        metadata: dict[str, Any] = {}
        if block.indent:
            raise MystError(self.page.shown, block.line, "a code cell must not be indented")
        if self.solution or HIDDEN & set(block.tags):
            title = f"{self.solution}: code, double-click to read it" if self.solution else self.code_of(block)
            source, metadata = titled(source, title), dict(FOLDED)
        if block.tags:
            metadata["tags"] = block.tags
        self.cells.append(new_code_cell(source, metadata=metadata))
        if caption := block.figure.get("caption"):
            label = self.page.labels.get(block.line)
            text = self.writer.inline(caption, block.line)
            self.pending.append(self.writer.caption(label, text) if label else text)
            self.flush()

    def code_of(self, block: Block) -> str:
        """Title of a folded cell that draws a figure; "" for another cell."""
        label = self.page.labels.get(block.line)
        return f"Code of {label.name}" if label and label.number else ""

    def flush(self) -> None:
        """Put the pending Markdown into a cell; inside a solution it is folded."""
        text = "\n\n".join(self.pending).strip()
        self.pending.clear()
        if text and self.solution:
            self.parts += 1
            text = details(self.solution + (", continued" if self.parts > 1 else ""), text)
        if text:
            self.cells.append(new_markdown_cell(text))

    def compare(self) -> None:
        """Make sure that the code is what jupytext, and so papermill and the book, reads."""
        theirs = [cell.source.strip("\n") for cell in jupytext.read(self.page.path).cells if cell.cell_type == "code"]
        mine = [block for block in self.page.blocks if block.name == "code-cell"]
        if len(theirs) != len(mine):
            message = (
                f"jupytext reads {len(theirs)} code cells, this tool {len(mine)}: one may stand inside a directive"
            )
            raise MystError(self.page.shown, 1, message)
        for source, block in zip(theirs, mine, strict=True):
            if source != block.text:
                raise MystError(self.page.shown, block.line, "jupytext reads another text in this code cell")

    def header(self) -> str:
        """Where this comes from, a link to the page and the Colab badge."""
        slug = self.book.repository.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{slug}/blob/{self.book.branch}/{self.page.name}.ipynb"
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
        return (
            f"{badge}\n\n*{self.book.config['title']}.* [Read this chapter in the book]"
            f"({self.book.url(self.page.name)}), with its figures. For a GPU choose *Runtime*, *Change runtime type*."
        )

    def install(self) -> str:
        """The cell that installs the package where it is missing."""
        return (
            "# @title Install the book's package where it is missing\n"
            "import importlib.util\n\n"
            'if importlib.util.find_spec("smlmtut") is None:\n'
            f'    %pip install -q "git+{self.book.repository}@{self.book.branch}"\n'
            "    importlib.invalidate_caches()"
        )


def titled(source: str, title: str) -> str:
    """Code with a form title; by default its first comment becomes one."""
    if source.startswith("%%"):  # a cell magic must stay first
        return source
    if not title and (comment := re.match(r"# ?(?!@)(.+)\n?", source)):
        return f"# @title {comment[1]}\n{source[comment.end() :]}"
    return f"# @title {title or 'Code'}\n{source}"


def write(notebook: nbformat.NotebookNode) -> str:
    """The notebook as text, the same for the same notebook."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


def editions(root: Path) -> dict[Path, str]:
    """Path and text of the Colab edition of every chapter."""
    book, written = Book(root), {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.md")):
        page = book.pages[f"notebooks/{path.stem}"]
        written[path.with_suffix(".ipynb")] = write(Edition(book, page).build())
    return written


def stale(root: Path, kept: dict[Path, str]) -> list[Path]:
    """Notebooks written by this tool whose chapter is gone."""
    others = sorted(set((root / "notebooks").glob("*.ipynb")) - set(kept))
    return [path for path in others if f'"{MARK}": ' in path.read_text(encoding="utf-8")]


def drift(path: Path, text: str) -> str:
    """How a notebook on disk differs from what it should be; "" if it does not."""
    if not path.exists():
        return f"{path.name} is missing"
    found = path.read_text(encoding="utf-8")
    if found == text:
        return ""
    lines = list(
        difflib.unified_diff(found.splitlines(), text.splitlines(), "on disk", "from the .md", n=0, lineterm="")
    )
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    shown = "\n".join(f"    {line[:110]}" for line in lines[:12])
    return f"{path.name} differs in {len(changed)} lines:\n{shown}" + ("\n    …" if len(lines) > 12 else "")


def main(arguments: list[str] | None = None) -> int:
    """Write or check; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the edition is out of step")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the book")
    args = parser.parse_args(arguments)
    try:
        wanted = editions(args.root)
    except (MystError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    drifted = [message for path, text in wanted.items() if (message := drift(path, text))]
    drifted += [f"{path.name} has no chapter" for path in stale(args.root, wanted)]
    if args.check:
        for message in drifted:
            print(message, file=sys.stderr)
        if drifted:
            print("the Colab edition is out of step with the chapters: run `make colab`", file=sys.stderr)
        return bool(drifted)
    for path in stale(args.root, wanted):
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(wanted)} notebooks, {len(drifted)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
