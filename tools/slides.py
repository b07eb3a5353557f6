"""Write a deck of slides for every executed chapter: _build/slides/NN_name.html, with reveal.js and MathJax beside it.

A slide shows a figure with its caption, a slider, a labelled formula that the book refers to, a prediction (question
first, answer as a fragment), or the open claims of a section. Objectives, summary and exercises are a slide each. A
section without any gets its paragraphs' first sentences. Prose goes to the speaker notes; code, closed boxes and
solutions stay in the chapter. Two tags of code cells overrule this: `slide` shows the outputs, `no-slide` hides them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import contract, offline_math, run_chapters
from tools.colab.blocks import Writer
from tools.colab.book import Book, Page
from tools.colab.myst import Block

TEMPLATE = Path(__file__).with_name("slides.html")
WHOLE = ("What you will be able to do", "Summary")  # sections that are one slide
UNSHOWN = ("Before you start", "Further reading")  # sections for the notes
SENTENCE = re.compile(r"(?:(?<=[.!?:])|(?<=[.!?:]\*\*))\s+(?=[A-Z*$\[(])")
SHORT = 80  # characters: a sentence that leads to a formula and is shorter brings the one before along
KEY = re.compile(r"\*\*[^*]{25,}\*\*")  # a statement in bold; shorter ones are headings within the line
REFERENCE = re.compile(r"\{eq\}`([^`<>]+)`")


def tex(content: str, options: dict[str, Any]) -> str:
    """A formula as MathJax finds it."""
    return escape(rf"\[{content}\]" if options["display_mode"] else rf"\({content}\)")


MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKDOWN.use(dollarmath_plugin, double_inline=True, allow_digits=False, renderer=tex)


@dataclass
class Slide:
    """One slide: its heading and body as HTML, and Markdown for the speaker's notes."""

    heading: str
    body: str
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        notes = MARKDOWN.render("\n\n".join(self.notes))
        return f'<section>\n<h2>{self.heading}</h2>\n{self.body}\n<aside class="notes">{notes}</aside>\n</section>\n'


class Deck:
    """The slides of one chapter, from its source and the executed notebook."""

    def __init__(self, book: Book, page: Page, executed: nbformat.NotebookNode, key: set[str]) -> None:
        self.page, self.writer, self.key = page, Writer(book, page), key
        self.outputs = iter(outputs_of(page, executed))
        self.slides: list[Slide] = []
        self.heading, self.first = "", 0  # of the section, and the number of its first slide
        self.notes: list[str] = []  # prose for the slide that comes next
        self.claims: list[dict[str, Any]] = []  # open ones of the section
        self.before: Block | None = None

    def build(self) -> list[Slide]:
        """All slides, in the chapter's order."""
        solution = False
        for block in self.page.blocks:
            outputs = next(self.outputs) if block.name == "code-cell" else []
            if block.name in ("solution-start", "solution-end"):
                solution = block.name == "solution-start"
            elif not solution:
                self.take(block, outputs)
                self.before = block
        self.close()
        return self.slides

    def take(self, block: Block, outputs: list[dict[str, Any]]) -> None:
        """Add one top-level block."""
        match block.kind, block.name:
            case "heading", _:
                self.close()
                self.heading, self.first = self.html(block.text, block), len(self.slides)
                if block.level == 1:
                    self.heading = f"{self.page.number}. {self.heading}" if self.page.number else self.heading
                    self.add(f"<p>{escape(self.writer.book.config['title'])}</p>")
            case "math", _ if block.label in self.key:
                self.add(f"<p>{self.html(self.lead(), block)}</p>{MARKDOWN.render(self.writer.block(block))}")
            case "text", _:
                self.text(block)
            case "directive", "code-cell":
                self.code(block, outputs)
            case "directive", "exercise" | "exercise-start":
                self.notes.append(self.writer.block(block))
                title = self.html(block.argument, block)
                self.add(f"<ul><li>{title}</li></ul>", join=len(self.slides) > self.first)
            case "directive", "solution" | "dropdown":
                pass
            case "directive", _ if "predict" in str(block.options.get("class", "")).split():
                question, answer = (self.writer.body(part) for part in predict(block))
                title = f"<p><b>{self.html(block.argument, block)}</b></p>"
                self.add(f'{title}{MARKDOWN.render(question)}<div class="fragment">{MARKDOWN.render(answer)}</div>')
            case _:
                self.notes.append(self.writer.block(block))

    def text(self, block: Block) -> None:
        """Prose: notes, a slide of its own in some sections, and after a formula the end of its sentence."""
        written = self.writer.block(block)
        if self.heading in WHOLE:
            self.add(MARKDOWN.render(written), join=len(self.slides) > self.first)
            return
        start = SENTENCE.split(written.split("\n\n")[0].strip())
        if self.before and self.before.kind == "heading" and self.before.level == 1:
            self.slides[-1].body += MARKDOWN.render(" ".join(start[:3]))
        elif self.before and self.before.label in self.key and (start[0][:1].islower() or KEY.match(start[0])):
            self.slides[-1].body += MARKDOWN.render(start[0])
        self.notes.append(written)

    def lead(self) -> str:
        """The sentence that leads to a formula; where it is short, the one before, too."""
        before = self.before.text if self.before and self.before.kind == "text" else ""
        *others, last = SENTENCE.split(before.strip().split("\n\n")[-1])
        return f"{others[-1]} {last}" if others and len(last) < SHORT else last

    def code(self, block: Block, outputs: list[dict[str, Any]]) -> None:
        """The picture of a code cell, its slider, or what it shows where it is tagged; and its open claims."""
        for output in outputs:
            data, told = output.get("data", {}), output.get("metadata", {}).get("smlmtut", {})
            self.claims += [told["claim"]] if "claim" in told else []
            if told or "no-slide" in block.tags:
                continue
            page, png = data.get("text/html", ""), data.get("image/png", "").replace("\n", "")
            if block.figure and png:
                caption = self.html(self.writer.caption(block, block.figure.get("caption", "")), block)
                alt = escape((block.options["mystnb"].get("image") or {}).get("alt", ""))
                self.add(f'<img src="data:image/png;base64,{png}" alt="{alt}">\n<p class="caption">{caption}</p>')
            elif contract.SLIDER.search(page):
                self.add(page)
            elif "slide" in block.tags:
                plain = f"<pre>{escape(output.get('text', '') or data.get('text/plain', ''))}</pre>"
                self.add(self.points(2) + (page or plain))

    def add(self, body: str, join: bool = False) -> None:
        """A slide with the notes that wait; join puts it onto the last one."""
        if join:
            self.slides[-1].body += body
            self.slides[-1].notes += self.notes
        else:
            self.slides.append(Slide(self.heading, body, self.notes))
        self.notes = []

    def close(self) -> None:
        """End a section: a slide of its claims, or of its text where it has none, or notes for its last slide."""
        cells = [[escape(claim[key]) for key in ("name", "shown", "allowed")] for claim in self.claims]
        rows = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in cells)
        table = f"<table><tr><th>Checked</th><th>value</th><th>allowed</th></tr>{rows}</table>" if rows else ""
        bare = len(self.slides) == self.first and self.heading not in UNSHOWN
        points = self.points(5 - len(self.claims))
        if table or (bare and points.count("<li>") > 1):
            self.add(points + table)
        elif self.slides:
            self.slides[-1].notes += self.notes
        self.claims, self.notes = [], []

    def points(self, most: int) -> str:
        """The first sentence of each paragraph that no slide has yet, as a list."""
        parts = [SENTENCE.split(part.strip())[0] for note in self.notes for part in note.split("\n\n")]
        found = [part for part in parts if re.match(r"[A-Z*$]", part) and not part.startswith("$$")]
        return MARKDOWN.render("\n".join(f"- {' '.join(part.split())}" for part in found[: max(most, 1)]))

    def html(self, text: str, block: Block) -> str:
        """Running text as HTML."""
        return MARKDOWN.renderInline(self.writer.inline(" ".join(text.split()), block.line))


def predict(block: Block) -> Iterator[Block]:
    """The question and the answer of a box."""
    closed = [child for child in block.children if child.name == "dropdown"]
    yield Block("directive", block.line, children=tuple(child for child in block.children if child not in closed))
    yield Block("directive", block.line, children=tuple(part for child in closed for part in child.children))


def outputs_of(page: Page, executed: nbformat.NotebookNode) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell of a chapter. Raises ValueError where another source ran."""
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    ran = [cell for cell in ran if run_chapters.INJECTED not in cell.metadata.get("tags", [])]
    if [cell.source.strip("\n") for cell in ran] != [block.text for block in page.blocks if block.name == "code-cell"]:
        raise ValueError(f"{page.shown} is not the source of the executed notebook: run it again")
    return [cell.outputs for cell in ran]


def deck(book: Book, name: str, executed: nbformat.NotebookNode) -> tuple[str, int]:
    """A chapter's deck as HTML, and how many slides it has. Formulas are slides if any page refers to them, but
    those for teachers, which refer to nearly all."""
    page = book.pages[name]
    others = [p.path for p in book.pages.values() if not p.name.startswith("book/teaching/")]
    key = set(REFERENCE.findall("".join(path.read_text(encoding="utf-8") for path in others)))
    slides = Deck(book, page, executed, key).build()
    text = TEMPLATE.read_text(encoding="utf-8").replace("%TITLE%", escape(page.title))
    return text.replace("%SLIDES%", "".join(map(str, slides))), len(slides)


def assets(root: Path, out: Path) -> str:
    """Put reveal.js and MathJax beside the decks; "" if they are there, else why not."""
    for package in (offline_math.MATHJAX, offline_math.REVEAL):
        if why := offline_math.fetch(root, package):
            return why
    home = offline_math.package(root, offline_math.REVEAL)
    for part in ("dist", "plugin/notes"):
        shutil.copytree(home / part, out / "reveal" / part, dirs_exist_ok=True)
    offline_math.copy_parts(root, out / "mathjax")
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Write the decks; 0 if every chapter has one."""
    parser = argparse.ArgumentParser(prog="python -m tools.slides", description=__doc__)
    parser.add_argument("names", nargs="*", help="chapters, by the start of their file name; all if none")
    parser.add_argument("--profile", default="book", choices=["smoke", "book", "full"])
    args = parser.parse_args(arguments)
    root, book, failed = run_chapters.ROOT, Book(run_chapters.ROOT), 0
    out = run_chapters.BUILD / "slides"
    if why := assets(root, out):
        print(f"slides need reveal.js and MathJax: {why}", file=sys.stderr)
        return 1
    for source in (path for path in run_chapters.chapters(args.names) if not contract.is_appendix(path)):
        try:
            executed = nbformat.read(run_chapters.BUILD / "executed" / args.profile / f"{source.stem}.ipynb", 4)
            text, count = deck(book, f"notebooks/{source.stem}", executed)
        except (OSError, ValueError) as error:
            print(f"{source.stem}: no deck: {error}", file=sys.stderr)
            failed += 1
            continue
        (out / f"{source.stem}.html").write_text(text, encoding="utf-8")
        print(f"{source.stem:<28} {count} slides")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
