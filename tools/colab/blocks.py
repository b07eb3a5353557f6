"""Write MyST blocks as plain Markdown: what Colab and Jupyter show without Sphinx.

Every directive has a rule here or is an error. Running text is written by `inline`.
"""

from __future__ import annotations

import re
from html import escape

from tools.colab.book import TABLES, Book, Page
from tools.colab.inline import Inline
from tools.colab.myst import Block

BOXES = ("note", "tip", "hint", "important", "warning", "caution", "attention", "danger", "error")
ADMONITIONS = {**{name: name.capitalize() for name in BOXES}, "seealso": "See also"}
TITLED = {"admonition", "margin", "sidebar", "topic", "epigraph"}
SILENT = {"index", "contents", "exercise-end"}


class Writer:
    """Writes the blocks of one page."""

    def __init__(self, book: Book, page: Page) -> None:
        self.book, self.page, self.inline = book, page, Inline(book, page)
        self.error = self.inline.error

    def body(self, block: Block) -> str:
        """The blocks inside a directive, with an empty line between them."""
        return "\n\n".join(text for child in block.children if (text := self.block(child)))

    def block(self, block: Block) -> str:
        """One block; "" where it leaves nothing to show."""
        match block.kind:
            case "text":
                text = self.text(block.text, block.line)
            case "code":
                text = block.text
            case "math":
                text = self.display(block)
            case "heading":
                number = self.page.labels[block.line].number
                words = [f"{number}."] if number else []
                text = " ".join(["#" * block.level, *words, self.inline(block.text, block.line)])
            case "target":
                text = f'<a name="{escape(block.text)}"></a>'
            case "directive":
                text = self.directive(block)
            case _:
                text = ""
        return indent(text.strip("\n"), block.indent)

    def text(self, text: str, line: int) -> str:
        """Paragraphs, lists and tables; definition lists become bullet lists."""
        if found := re.search(r"^(\[[^\]^][^\]]*\]:\s|:[\w -]+:(\s|$))", text, re.M):
            at = line + text[: found.start()].count("\n")
            raise self.error(at, f"no rule for {found[0].strip()!r}: a link definition or a field list")
        written = self.inline(text, line)
        return re.sub(r"^(\S.*)\n:[ \t]+", r"- **\1**: ", written, flags=re.M)

    def display(self, block: Block) -> str:
        """A display formula, numbered as in the book where it has a label."""
        math = self.inline.tex(block.text.strip())
        if re.search(r"\\begin\{(align|gather|multline|equation)\*?\}", math):
            raise self.error(block.line, "an AMS environment inside $$: use aligned, gathered or none")
        if r"\\" in math and not math.startswith((r"\begin{aligned}", r"\begin{gathered}")):  # as Sphinx does, in split
            math = f"\\begin{{aligned}}\n{math}\n\\end{{aligned}}"
        if block.label:
            math += f" \\tag{{{self.page.labels[block.line].number}}}"
        return f"$$\n{math}\n$$"

    def directive(self, block: Block) -> str:
        """One directive, by its rule."""
        match block.name:
            case name if name in ADMONITIONS or name in TITLED:
                return self.admonition(block)
            case name if name in ("exercise", "exercise-start") or name.startswith("prf:"):
                return self.statement(block)
            case name if name in TABLES:
                return self.table(block)
            case name if name in SILENT:
                return ""
            case "dropdown":
                return details(self.inline(block.argument or "More", block.line), self.body(block))
            case "tab-set":
                return self.body(block)
            case "tab-item":
                return f"**{self.inline(block.argument, block.line)}**\n\n{self.body(block)}"
            case "solution":
                return details(self.solution_title(block), self.body(block))
            case "figure" | "image":
                return self.figure(block)
            case "code-block" | "code" | "sourcecode":
                return self.listing(block)
            case "bibliography":
                return self.inline.bibliography()
            case "raw" if block.argument == "html":
                return block.text
        raise self.error(block.line, f"no rule for the directive {{{block.name}}}")

    def admonition(self, block: Block) -> str:
        """A box: a quotation under a bold title, or folded where its class asks for it."""
        title, text = block.argument, self.body(block)
        if block.name in ADMONITIONS:  # their argument is the first line of the text
            text = "\n\n".join(part for part in (self.inline(title, block.line), text) if part)
            title = ADMONITIONS[block.name]
        title, classes = self.inline(title, block.line), str(block.options.get("class", "")).split()
        if {"dropdown", "toggle"} & set(classes):
            return details(title, text)
        if "predict" in classes:  # its answer opens on a click, which a quotation does not show everywhere
            return f"**{title}**\n\n{text}"
        return quote(f"**{title}**\n\n{text}" if title else text)

    def statement(self, block: Block) -> str:
        """An exercise or a theorem with its number."""
        label = self.page.labels.get(block.line)
        title = f"**{label.name if label else block.name[4:].capitalize()}**"
        if block.argument:
            title += f" ({self.inline(block.argument, block.line)})"
        text = f"{title}\n\n{self.body(block)}".strip()
        return text if block.name == "exercise-start" else quote(text)

    def solution_title(self, block: Block) -> str:
        """Solution to Exercise 1.2 (its title)."""
        label = self.inline.find(block.argument, block.line, {"exercise"})
        title = f" ({self.inline(label.title, block.line)})" if label.title else ""
        return f"Solution to {label.name}{title}"

    def figure(self, block: Block) -> str:
        """A picture with its caption below."""
        alt = block.options.get("alt")
        if not alt:
            raise self.error(block.line, f"the {block.name} {block.argument} has no :alt: text")
        text = f"![{alt}]({self.inline.file(block.argument, block.line, raw=True)})"
        return f"{text}\n\n{self.caption(block, self.body(block))}" if block.text else text

    def caption(self, block: Block, text: str) -> str:
        """A caption, already plain Markdown, after the number of its figure, table or listing."""
        label = self.page.labels.get(block.line)
        return f"**{label.name}.** {text}" if label and label.number else text

    def table(self, block: Block) -> str:
        """A table under its title."""
        text = self.body(block) if block.name == "table" else self.listed(block)
        title = self.inline(block.argument, block.line)
        return f"{self.caption(block, title)}\n\n{text}" if title else text

    def listed(self, block: Block) -> str:
        """A list of lists as a table with bars."""
        rows: list[list[str]] = []
        for row in block.text.splitlines():
            if found := re.match(r"^(\*\s+|\s+)-(?:\s(.*)|)$", row):
                rows += [[]] if found[1].startswith("*") else []
                rows[-1].append((found[2] or "").strip())
            elif row.strip() and rows:
                rows[-1][-1] = f"{rows[-1][-1]} {row.strip()}".strip()
        if not rows or len({len(row) for row in rows}) != 1:
            raise self.error(block.line, "the rows of the list-table have different lengths")
        cells = [[self.inline(cell, block.line) for cell in row] for row in rows]
        cells = [[re.sub(r"(?<!\\)\|", r"\\vert " if "$" in cell else r"\|", cell) for cell in row] for row in cells]
        if str(block.options.get("header-rows", 0)) != "1":
            cells.insert(0, [""] * len(cells[0]))
        cells.insert(1, ["---"] * len(cells[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)

    def listing(self, block: Block) -> str:
        """Code to read, in a fence longer than any inside it, under its caption."""
        mark = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
        text = f"{mark}{block.argument}\n{block.text}\n{mark}"
        caption = self.inline(block.options.get("caption", ""), block.line)
        return f"{self.caption(block, caption)}\n\n{text}" if caption else text


def indent(text: str, space: str) -> str:
    """Text with white space before each line that is not empty."""
    return re.sub(r"^(?=.)", space, text, flags=re.M)


def quote(text: str) -> str:
    """Text as a block quotation; a display formula goes on one line, or its > signs would be read as TeX."""
    text = re.sub(
        r"^([ \t]*)\$\$\n(.*?)\n\s*\$\$$", lambda m: f"{m[1]}$$ {' '.join(m[2].split())} $$", text, flags=re.M | re.S
    )
    return "\n".join(f"> {row}".rstrip() for row in text.split("\n"))


def details(summary: str, text: str) -> str:
    """Text that opens on a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"
