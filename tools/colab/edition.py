"""One chapter as a notebook for Colab, which needs nothing of Sphinx.

A first cell installs the package where it is missing. Solutions and hidden code fold away.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from smlmtut import data
from tools import release
from tools.colab.blocks import Writer, details
from tools.colab.book import Book, Page
from tools.colab.myst import Block, MystError

HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # on Colab, in JupyterLab
# code of a chapter: the files of `smlmtut.data` that it fetches
FETCHES = {
    r"calibration_maps\(|reference_scene\(": ("gain.hdf5", "offset.hdf5", "readvar.hdf5"),
    r"af647_movie\(|running_example\(": ("sptnet_af647_slb.tif",),
}
WEIGHTS = Path(data.__file__).parent / "weights"
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
        match block.name:
            case "code-cell":
                self.code(block)
            case "solution-start":
                self.flush()
                if self.solution:
                    raise MystError(self.page.shown, block.line, f"the solution of line {self.opened} is still open")
                self.solution, self.opened, self.parts = self.writer.solution_title(block), block.line, 0
                self.pending += filter(None, [self.writer.body(block)])
            case "solution-end":
                if not self.solution:
                    raise MystError(self.page.shown, block.line, "no solution is open here")
                self.flush()
                self.solution = ""
            case _:
                after_target = self.pending and self.pending[-1].startswith("<a name")
                if block.kind == "break" or (block.kind == "heading" and not after_target):
                    self.flush()
                self.pending += filter(None, [self.writer.block(block)])

    def code(self, block: Block) -> None:
        """Add a code cell, and its figure's caption below."""
        self.flush()
        if block.indent:
            raise MystError(self.page.shown, block.line, "a code cell must not be indented")
        source, metadata = block.text, {}
        if self.solution or HIDDEN & set(block.tags):
            label = self.page.labels.get(block.line)
            title = f"Code of {label.name}" if label and label.number else ""
            title = f"{self.solution}: code, double-click to read it" if self.solution else title
            source, metadata = titled(source, title), dict(FOLDED)
        if block.tags:
            metadata["tags"] = block.tags
        self.cells.append(new_code_cell(source, metadata=metadata))
        if caption := block.figure.get("caption"):
            self.pending.append(self.writer.caption(block, self.writer.inline(caption, block.line)))
            self.flush()

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
        for source, block in zip_longest(theirs, mine):
            if not block or source != block.text:
                message = "jupytext reads other code cells from here on: does one stand inside a directive?"
                raise MystError(self.page.shown, block.line if block else 1, message)

    def header(self) -> str:
        """Where this comes from, a link to the page and the Colab badge."""
        slug = self.book.repository.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{slug}/blob/{self.book.branch}/{self.page.name}.ipynb"
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
        version = release.version_of(self.book.root, Path(self.page.name).name)
        return (
            f"{badge}\n\n*{self.book.config['title']}.* [Read this chapter in the book]"
            f"({self.book.url(self.page.name)}), with its figures. For a GPU choose *Runtime*, *Change runtime type*."
            + (f" Chapter version {version}." if version else "")
        )

    def install(self) -> str:
        """The cell that installs the package where it is missing, and tells what will be downloaded."""
        told = "".join(f"    print({json.dumps(line)})\n" for line in self.downloads())
        return (
            "# @title Install the book's package where it is missing\n"
            "import importlib.util\n\n"
            'if importlib.util.find_spec("smlmtut") is None:\n'
            f"{told}"
            f'    %pip install -q "git+{self.book.repository}@{self.book.branch}"\n'
            "    importlib.invalidate_caches()"
        )

    def downloads(self) -> list[str]:
        """What a reader who has nothing yet will download for this chapter, and how large it is, a line each."""
        code = "\n".join(block.text for block in self.page.blocks if block.name == "code-cell")
        files = [name for pattern, names in FETCHES.items() if re.search(pattern, code) for name in names]
        large = [*WEIGHTS.glob("*.safetensors"), data.POSTERIORS]
        size = sum(path.stat().st_size for path in large)
        first = f"Downloads: the package with its trained networks and exact posteriors, {size / 1e6:.1f} MB"
        return [first, *(f"  {name}, {data.SOURCES[name].size / 1e6:.1f} MB" for name in files)]


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
