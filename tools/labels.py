"""What can be referred to in the book: labels, numbers, titles, terms and citations of every page.

Numbers follow Sphinx: chapters as in _toc.yml; equations, figures, tables, exercises and theorems each
count on their own within a chapter, as 2.1, 2.2; on a page without a number they count through the book.
A test holds them against a book that Sphinx built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from docutils.nodes import make_id
from sphinx.util.nodes import _make_id as make_term_id

from tools.myst import Block, MystError, parse, read_page

VERBATIM = {"code-cell", "code-block", "code", "sourcecode", "raw", "math", "glossary", "toctree", "mermaid"}
TABLES = {"table", "list-table"}


@dataclass(frozen=True)
class Label:
    """One thing that a page can refer to: where it is, its number ("" for none) and its title."""

    page: str  # path in the book without suffix
    kind: str  # equation, figure, table, section, exercise, solution, listing, target, or theorem and the like
    anchor: str
    number: str = ""
    title: str = ""  # MyST text
    line: int = 0

    @property
    def name(self) -> str:
        """Kind and number as the book prints them: Fig. 1.2, say."""
        words = {"figure": "Fig.", "listing": "Listing", "solution": "Solution to Exercise"}
        return f"{words.get(self.kind, self.kind.capitalize())} {self.number}".strip()


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
    """All pages of the book under root, read and numbered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
        self.pages: dict[str, Page] = {}
        self.labels: dict[str, Label] = {}  # by label in lower case
        self.headings: dict[tuple[str, str], Label] = {}  # by page and slug
        self.terms: dict[str, tuple[str, str]] = {}  # term in lower case: page, anchor
        self._counters: dict[str, Counter[str]] = {}
        for name, number, depth in self._toc():
            path = root / f"{name}.md"
            if name not in self.pages and path.exists():
                self.pages[name] = Page(name, path, number, depth, read_page(path, f"{name}.md"))
        for page in self.pages.values():
            _Collector(self, page).collect()

    @property
    def repository(self) -> str:
        """The repository's address, without a slash at its end."""
        return self.config["repository"]["url"].rstrip("/")

    @property
    def branch(self) -> str:
        """The branch that links point to."""
        return self.config["repository"]["branch"]

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
        counter = self._counters.setdefault(kind, Counter())
        counter[chapter] += 1
        return f"{chapter}.{counter[chapter]}" if chapter else str(counter[chapter])

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


class _Collector:
    """Walks one page in its order and numbers what it finds."""

    def __init__(self, book: Book, page: Page) -> None:
        self.book, self.page = book, page
        self.sections = [0] * 6
        self.slugs: Counter[str] = Counter()
        self.exercise: Label | None = None

    def collect(self) -> None:
        self.walk(self.page.blocks)

    def walk(self, blocks: list[Block]) -> None:
        targets: list[Block] = []
        for block in blocks:
            if block.kind == "target":
                targets.append(block)
                continue
            label = self.heading(block, targets) if block.kind == "heading" else self.numbered(block)
            if block.kind != "break":
                for target in targets:
                    self.target(target, label)
                targets = []
            if block.kind == "directive" and block.name == "glossary":
                self.glossary(block)
            elif block.kind == "directive" and block.name not in VERBATIM:
                self.walk(parse(block.text, self.page.shown, block.body_line))

    def add(self, block: Block, name: str | None, label: Label) -> Label:
        self.page.labels[block.line] = label
        if name:
            if known := self.book.labels.get(name.lower()):
                where = f"{known.page}.md:{known.line}"
                raise MystError(self.page.shown, block.line, f"the label {name!r} stands already at {where}")
            self.book.labels[name.lower()] = label
        return label

    def target(self, target: Block, label: Label | None) -> None:
        anchor, title = make_id(target.text), label.title if label else ""
        kind, number = ("section", label.number) if label and label.kind == "section" else ("target", "")
        self.add(target, target.text, Label(self.page.name, kind, anchor, number, title, target.line))

    def heading(self, block: Block, targets: list[Block]) -> Label:
        number = self.page.number
        if number and block.level > 1:
            self.sections[block.level - 2] += 1
            self.sections[block.level - 1 :] = [0] * (7 - block.level)
            number = ".".join([number, *(str(n) for n in self.sections[: block.level - 1])])
            number = number if block.level <= self.page.depth else ""
        text = re.sub(r"[`*]|\$[^$]*\$|\{[\w:]+\}", "", block.text)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        self.slugs[slug] += 1
        anchor = make_id(targets[-1].text) if targets else make_id(re.sub(r"[`*$]|\{[\w:]+\}", "", block.text))
        label = Label(self.page.name, "section", anchor, number, block.text, block.line)
        if self.slugs[slug] == 1:
            self.book.headings[self.page.name, slug] = label
        return self.add(block, None, label)

    def numbered(self, block: Block) -> Label | None:
        if block.kind == "math" and block.label:
            return self.equation(block, block.label)
        if block.kind != "directive":
            return None
        name, options = block.options.get("name"), block.options
        if block.name == "math" and options.get("label"):
            return self.equation(block, options["label"])
        if block.name == "code-cell":
            figure = block.figure
            if figure and not {"remove-output", "remove-cell"} & set(block.tags):
                return self.enumerate(block, "figure", figure.get("name"), figure.get("caption", ""))
        elif block.name == "figure" and (block.text or name):
            return self.enumerate(block, "figure", name, block.text.split("\n\n")[0])
        elif block.name in TABLES and (block.argument or name):
            return self.enumerate(block, "table", name, block.argument)
        elif block.name == "code-block" and "caption" in options:
            return self.enumerate(block, "listing", name, options["caption"])
        elif block.name in ("exercise", "exercise-start"):
            self.exercise = self.enumerate(block, "exercise", options.get("label"), block.argument, exact=True)
            return self.exercise
        elif block.name.startswith("prf:") and block.name != "prf:proof":
            return self.enumerate(block, block.name[4:], options.get("label"), block.argument, exact=True)
        return None

    def equation(self, block: Block, label: str) -> Label:
        number = self.book.count("equation", self.page.number)
        return self.add(
            block, label, Label(self.page.name, "equation", make_id(f"equation-{label}"), number, "", block.line)
        )

    def enumerate(self, block: Block, kind: str, name: str | None, title: str, exact: bool = False) -> Label:
        number = "" if "nonumber" in block.options else self.book.count(kind, self.page.number)
        anchor = (name if exact else make_id(name)) if name else ""
        return self.add(block, name, Label(self.page.name, kind, anchor, number, title, block.line))

    def glossary(self, block: Block) -> None:
        for row in block.text.splitlines():
            if row.strip() and not row[0].isspace():
                term = row.split(" : ")[0].strip()
                self.book.terms[term.lower()] = (self.page.name, make_term_id(f"term-{term}"))
