"""The book: its pages, and the labels, numbers, titles and terms that a chapter can refer to.

The numbers are those of Sphinx. Chapters are numbered as in _toc.yml. Equations, figures, tables, exercises
and theorems each count on their own within a chapter: 2.1, 2.2; on a page without a number they count
through the whole book. A test compares them with a book that Sphinx built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from docutils.nodes import make_id
from mdit_py_plugins.anchors.index import slugify
from sphinx.util.nodes import _make_id as make_term_id

from tools.colab.myst import Block, MystError, read_page

TABLES = {"table", "list-table"}


@dataclass(frozen=True)
class Label:
    """One thing that a page can refer to: where it is, its number ("" for none) and its title."""

    page: str  # path in the book without suffix
    kind: str  # equation, figure, table, section, exercise, listing, target, or theorem and the like
    anchor: str
    number: str = ""
    title: str = ""  # MyST text
    line: int = 0

    @property
    def name(self) -> str:
        """Kind and number as the book prints them: Fig. 1.2, say."""
        kind = "Fig." if self.kind == "figure" else self.kind.capitalize()
        return f"{kind} {self.number}".strip()


@dataclass
class Page:
    """One page of the book: its blocks, its chapter number ("" for none), and what its blocks are numbered."""

    name: str  # path in the book without suffix
    path: Path
    number: str
    depth: int  # headings deeper than this have no number
    blocks: list[Block]
    labels: dict[int, Label] = field(default_factory=dict)  # by the line of the block

    @property
    def shown(self) -> str:
        """The path that messages name."""
        return f"{self.name}.md"

    @property
    def title(self) -> str:
        """The first heading."""
        return next((block.text for block in self.blocks if block.kind == "heading"), self.name)


class Book:
    """All pages of the book under root, read and numbered. pin: a tag of a release that links point to, instead of the
    branch that _config.yml names."""

    def __init__(self, root: Path, pin: str = "") -> None:
        if pin and not re.fullmatch(r"v\d+\.\d+\.\d+", pin):
            raise ValueError(f"pin must be a tag such as v0.2.0, got {pin!r}")
        self.root = root
        self.config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
        self.pin = pin
        self.pages: dict[str, Page] = {}
        self.labels: dict[str, Label] = {}  # by label in lower case
        self.headings: dict[tuple[str, str], Label] = {}  # by page and slug
        self.terms: dict[str, tuple[str, str]] = {}  # term in lower case: page, anchor
        self._counts: Counter[tuple[str, str]] = Counter()  # by kind and chapter number
        for name, number, depth in self._toc():
            path = root / f"{name}.md"
            if name not in self.pages and path.exists():
                self.pages[name] = Page(name, path, number, depth, read_page(path, f"{name}.md"))
        for page in self.pages.values():
            _Numbering(self, page).walk(page.blocks)

    @property
    def repository(self) -> str:
        """The repository's address, without a slash at its end."""
        return self.config["repository"]["url"].rstrip("/")

    @property
    def branch(self) -> str:
        """The branch, or the tag of a release, that links point to."""
        return self.pin or self.config["repository"]["branch"]

    @property
    def macros(self) -> dict[str, str]:
        """The book's own TeX commands; Colab knows none of them."""
        config = self.config.get("sphinx", {}).get("config", {})
        return config.get("mathjax3_config", {}).get("tex", {}).get("macros", {})

    @cached_property
    def bibliography(self) -> dict[str, Any]:
        """The entries of the bibliography, by key."""
        from pybtex.database import parse_file

        entries = {}
        for path in self.config.get("bibtex_bibfiles", []):
            entries.update(parse_file(str(self.root / path)).entries)
        return entries

    def url(self, page: str, anchor: str = "") -> str:
        """The address of a page of the rendered book."""
        base = self.config["html"]["baseurl"].rstrip("/")
        return f"{base}/{page}.html" + (f"#{anchor}" if anchor else "")

    def count(self, kind: str, chapter: str) -> str:
        """The next number of a kind in a chapter."""
        self._counts[kind, chapter] += 1
        return f"{chapter}.{self._counts[kind, chapter]}".lstrip(".")

    def _toc(self) -> Iterator[tuple[str, str, int]]:
        """(page, chapter number, depth of numbers) in the book's order; then chapters that it does not list yet."""
        toc = yaml.safe_load((self.root / "_toc.yml").read_text(encoding="utf-8"))
        through, number = self.config.get("html", {}).get("use_multitoc_numbering", True), 0
        yield toc["root"], "", 0
        for part in toc.get("parts", [{**toc, **toc.get("options", {})}]):
            numbered = part.get("numbered", False)
            number, depth = number if through else 0, 6 if numbered is True else int(numbered)
            for chapter in part.get("chapters", []):
                number += bool(numbered)
                yield chapter["file"], str(number) if numbered else "", depth
                for section in chapter.get("sections", []):
                    if numbered:
                        raise ValueError(
                            f"_toc.yml: {section['file']}: pages below a numbered chapter are not supported"
                        )
                    yield section["file"], "", 0
        for path in sorted((self.root / "notebooks").glob("[0-9][0-9]_*.md")):
            yield f"notebooks/{path.stem}", "", 0


class _Numbering:
    """Goes through one page from top to bottom, and numbers and labels what it finds."""

    def __init__(self, book: Book, page: Page) -> None:
        self.book, self.page = book, page
        self.sections = [0] * 6  # the number of the current section at each level below the title

    def walk(self, blocks: Iterable[Block]) -> None:
        """Label these blocks and the ones inside them. A target belongs to the block that follows it."""
        targets: list[Block] = []
        for block in blocks:
            if block.kind == "break":
                continue
            if block.kind == "target":
                targets.append(block)
                continue
            label = self.heading(block, targets) if block.kind == "heading" else self.numbered(block)
            for target in targets:
                self.target(target, label)
            targets = []
            if block.name == "glossary":
                self.glossary(block)
            self.walk(block.children)

    def add(self, block: Block, name: str | None, kind: str, anchor: str, number: str, title: str) -> Label:
        """Label a block; name is what references call it, None for nothing."""
        label = self.page.labels[block.line] = Label(self.page.name, kind, anchor, number, title, block.line)
        if name and (known := self.book.labels.setdefault(name.lower(), label)) is not label:
            where = f"{known.page}.md:{known.line}"
            raise MystError(self.page.shown, block.line, f"the label {name!r} stands already at {where}")
        return label

    def target(self, target: Block, label: Label | None) -> None:
        """Label a (target)=: a section before a heading, else a mere place."""
        kind, number = ("section", label.number) if label and label.kind == "section" else ("target", "")
        self.add(target, target.text, kind, make_id(target.text), number, label.title if label else "")

    def heading(self, block: Block, targets: list[Block]) -> Label:
        """Number a heading, and let links find it by its slug."""
        number = self.page.number
        if number and block.level > 1:
            self.sections[block.level - 2] += 1
            self.sections[block.level - 1 :] = [0] * (7 - block.level)
            number = ".".join([number, *map(str, self.sections[: block.level - 1])])
            number = number if block.level <= self.page.depth else ""
        words = re.sub(r"[`*]|\{[\w:]+\}", "", block.text)
        anchor = make_id(targets[-1].text if targets else words.replace("$", ""))
        label = self.add(block, None, "section", anchor, number, block.text)
        self.book.headings.setdefault((self.page.name, slugify(re.sub(r"\$[^$]*\$", "", words))), label)
        return label

    def numbered(self, block: Block) -> Label | None:
        """Number an equation, figure, table, listing, exercise or theorem; None for anything else."""
        options, name = block.options, block.options.get("name")
        if block.kind == "math" and block.label:
            number = self.book.count("equation", self.page.number)
            return self.add(block, block.label, "equation", make_id(f"equation-{block.label}"), number, "")
        if block.name == "code-cell" and block.figure and not {"remove-output", "remove-cell"} & set(block.tags):
            kind, name, title = "figure", block.figure.get("name"), block.figure.get("caption", "")
        elif block.name == "figure" and (block.text or name):
            kind, title = "figure", block.text.split("\n\n")[0]
        elif block.name in TABLES and (block.argument or name):
            kind, title = "table", block.argument
        elif block.name == "code-block" and "caption" in options:
            kind, title = "listing", options["caption"]
        elif block.name in ("exercise", "exercise-start"):
            kind, name, title = "exercise", options.get("label"), block.argument
        elif block.name.startswith("prf:") and block.name != "prf:proof":
            kind, name, title = block.name[4:], options.get("label"), block.argument
        else:
            return None
        number = "" if "nonumber" in options else self.book.count(kind, self.page.number)
        anchor = name or ""
        if "label" not in options:  # sphinx-exercise and sphinx-proof keep a label as it is
            anchor = make_id(anchor)
        return self.add(block, name, kind, anchor, number, title)

    def glossary(self, block: Block) -> None:
        """Note the terms: the lines that are not indented."""
        for row in block.text.splitlines():
            if row.strip() and not row[0].isspace():
                term = row.split(" : ")[0].strip()
                self.book.terms[term.lower()] = (self.page.name, make_term_id(f"term-{term}"))
