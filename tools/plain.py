"""Write MyST blocks as plain Markdown: what Colab and Jupyter show without Sphinx.

Every directive and role has a rule here or is an error; every reference resolves to the number or title
that the book prints, and on another page to a link into the book.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from html import escape

from tools.citations import Citations
from tools.labels import TABLES, Book, Label, Page
from tools.myst import Block, MystError, parse

ADMONITIONS = {
    **{name: name.capitalize() for name in ("note", "tip", "hint", "important", "warning", "caution", "attention")},
    **{name: name.capitalize() for name in ("danger", "error")},
    "seealso": "See also",
}
TITLED = {"admonition", "margin", "sidebar", "topic", "epigraph"}
SILENT = {"index", "contents", "exercise-end"}

INLINE = re.compile(
    r"(?P<escaped>\\[^\w\s])"
    r"|(?:\{(?P<role>[\w:.+-]+)\})?(?P<ticks>`+)(?P<code>(?!`).+?)(?<!`)(?P=ticks)(?!`)"
    r"|(?P<math>\$\$.+?\$\$|(?<![\w$])\$(?![\s$])(?:\\.|[^$\\])*?(?<!\s)\$(?!\d))"
    r"|\[\^(?P<note>[^\]\s]+)\](?P<defines>:)?"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`|\[[^\]]*\])*)\]"
    r"\((?P<target><[^>\n]*>|(?:[^()\s]|\([^()\s]*\))*)(?:\s+\"[^\"]*\")?\)(?:\{[^}\n]*\})?"
    r"|(?P<foreign>\{\{.+?\}\}|\{[\w:.+-]+\}(?=`)|(?<=\])\{[.#:\w][^}\n]*\}|<(?:project|inv|path):[^>]*>)",
    re.S,
)


class Writer:
    """Writes the blocks of one page."""

    def __init__(self, book: Book, page: Page) -> None:
        self.book, self.page = book, page
        self.cite = Citations(book.bibliography)
        self.notes: dict[str, int] = {}

    def error(self, line: int, message: str) -> MystError:
        return MystError(self.page.shown, line, message)

    # ---- blocks ------------------------------------------------------------------------------------------

    def blocks(self, blocks: list[Block]) -> str:
        """All blocks, with an empty line between them."""
        return "\n\n".join(text for block in blocks if (text := self.block(block).strip("\n")))

    def body(self, block: Block) -> str:
        """What stands inside a directive."""
        return self.blocks(parse(block.text, self.page.shown, block.body_line))

    def block(self, block: Block) -> str:
        """One block; "" where it leaves nothing to show."""
        match block.kind:
            case "text":
                text = self.text(block.text, block.line)
            case "code":
                text = block.text
            case "math":
                text = self.display(block.text, block, block.label)
            case "heading":
                number = self.page.labels[block.line].number
                text = f"{'#' * block.level} {number} {self.inline(block.text, block.line)}".replace("  ", " ")
            case "target":
                text = f'<a name="{escape(block.text)}"></a>'
            case "directive":
                text = self.directive(block)
            case _:
                text = ""
        return "\n".join(block.indent + row if row else row for row in text.split("\n")) if block.indent else text

    def text(self, text: str, line: int) -> str:
        """Paragraphs, lists and tables; definition lists become bullet lists."""
        if found := re.search(r"^(\[[^\]^][^\]]*\]:\s|:[\w -]+:(\s|$))", text, re.M):
            at = line + text[: found.start()].count("\n")
            raise self.error(at, f"no rule for {found[0].strip()!r}: a link definition or a field list")
        text = re.sub(r"^(\S.*)\n:[ \t]+", r"- **\1**: ", text, flags=re.M)
        return self.inline(text, line)

    def display(self, math: str, block: Block, label: str | None) -> str:
        """A display formula, numbered as in the book where it has a label."""
        math = self.tex(math.strip())
        if re.search(r"\\begin\{(align|gather|multline|equation)\*?\}", math):
            raise self.error(block.line, "an AMS environment inside $$: use aligned, gathered or none")
        if r"\\" in math:  # Sphinx wraps such formulas in split
            math = f"\\begin{{aligned}}\n{math}\n\\end{{aligned}}"
        if label:
            math += f" \\tag{{{self.book.labels[label.lower()].number}}}"
        return f"$$\n{math}\n$$"

    def tex(self, math: str) -> str:
        """A formula without the book's own commands."""
        for name, meaning in self.book.macros.items():
            if not isinstance(meaning, str):
                raise ValueError(f"_config.yml: the macro {name} takes arguments, for which there is no rule")
            math = re.sub(rf"\\{name}(?![A-Za-z])", lambda _, meaning=meaning: f"{{{meaning}}}", math)
        return re.sub(r"\{(\\operatorname\{\w+\})\}", r"\1", math)

    # ---- directives --------------------------------------------------------------------------------------

    def directive(self, block: Block) -> str:
        """One directive, by its rule."""
        name, classes = block.name, str(block.options.get("class", "")).split()
        if name in ADMONITIONS or name in TITLED:
            return self.admonition(block, fold={"dropdown", "toggle"} & set(classes))
        if name in ("exercise", "exercise-start") or name.startswith("prf:"):
            return self.statement(block)
        if name in TABLES:
            return self.table(block)
        if name in SILENT:
            return ""
        if name == "dropdown":
            return details(self.inline(block.argument or "More", block.line), self.body(block))
        if name == "tab-set":
            return self.body(block)
        if name == "tab-item":
            return f"**{self.inline(block.argument, block.line)}**\n\n{self.body(block)}"
        if name == "solution":
            return details(self.solution_title(block), self.body(block))
        if name in ("figure", "image"):
            return self.figure(block)
        if name == "math":
            math = "\n".join(part for part in (block.argument, block.text) if part)
            return self.display(math, block, block.options.get("label"))
        if name in ("code-block", "code", "sourcecode"):
            return self.listing(block)
        if name == "bibliography":
            return self.cite.bibliography(self.cited())
        if name == "raw" and block.argument == "html":
            return block.text
        raise self.error(block.line, f"no rule for the directive {{{name}}}")

    def admonition(self, block: Block, fold: object) -> str:
        """A box, as a quotation under a bold title, or folded."""
        title, text = block.argument, self.body(block)
        if block.name in ADMONITIONS:  # their argument is the first line of the text
            text = "\n\n".join(part for part in (self.inline(title, block.line), text) if part)
            title = ADMONITIONS[block.name]
        title = self.inline(title, block.line)
        return details(title, text) if fold else quote(f"**{title}**\n\n{text}" if title else text)

    def statement(self, block: Block) -> str:
        """An exercise or a theorem with its number."""
        label = self.page.labels.get(block.line)
        title = f"**{label.name if label else block.name[4:].capitalize()}**"
        if block.argument:
            title += f" ({self.inline(block.argument, block.line)})"
        text = f"{title}\n\n{self.body(block)}"
        return text if block.name == "exercise-start" else quote(text)

    def solution_title(self, block: Block) -> str:
        """Solution to Exercise 1.2 (its title)."""
        label = self.find(block.argument, block.line, {"exercise"})
        title = f" ({self.inline(label.title, block.line)})" if label.title else ""
        return f"Solution to {label.name}{title}"

    def figure(self, block: Block) -> str:
        """A picture with its caption below."""
        alt = block.options.get("alt")
        if not alt:
            raise self.error(block.line, f"the {block.name} {block.argument} has no :alt: text")
        text = f"![{alt}]({self.file(block.argument, block.line, raw=True)})"
        return f"{text}\n\n{self.caption(self.page.labels[block.line], self.body(block))}" if block.text else text

    def caption(self, label: Label, text: str) -> str:
        """A caption behind the figure's or the table's number."""
        return f"**{label.name}.** {text}" if label.number else text

    def table(self, block: Block) -> str:
        """A table under its title."""
        text = self.body(block) if block.name == "table" else self.listed(block)
        if block.argument:
            title = self.caption(self.page.labels[block.line], self.inline(block.argument, block.line))
            text = f"{title}\n\n{text}"
        return text

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
        mark = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
        text = f"{mark}{block.argument}\n{block.text}\n{mark}"
        if "caption" in block.options:
            label = self.page.labels[block.line]
            text = f"{self.caption(label, self.inline(block.options['caption'], block.line))}\n\n{text}"
        return text

    # ---- inside a line -----------------------------------------------------------------------------------

    def inline(self, text: str, line: int) -> str:
        """Roles, references, links, footnotes and formulas in running text; line is where the text starts."""

        def write(found: re.Match[str]) -> str:
            at = line + text[: found.start()].count("\n")
            if found["math"]:
                return self.tex(found["math"])
            if found["role"]:
                return self.role(found["role"], found["code"].strip(), at)
            if found["note"]:
                number = self.notes.setdefault(found["note"], len(self.notes) + 1)
                return f"<sup>{number}</sup>"
            if found["target"] is not None:
                return self.link(found["image"], found["text"], found["target"].strip("<>"), at)
            if found["foreign"]:
                raise self.error(at, f"no rule for {found['foreign']!r}")
            return found[0]

        return INLINE.sub(write, text)

    def role(self, role: str, content: str, line: int) -> str:
        """One role, by its rule."""
        plain: dict[str, Callable[[str], str]] = {
            "sub": lambda text: f"<sub>{text}</sub>",
            "sup": lambda text: f"<sup>{text}</sup>",
            "kbd": lambda text: f"<kbd>{text}</kbd>",
            "code": lambda text: f"`{text}`",
            "math": lambda text: f"${self.tex(text)}$",
        }
        if role in plain:
            return plain[role](content)
        if role == "abbr":
            short, _, long = content.rstrip(")").partition(" (")
            return f'<abbr title="{escape(long)}">{short}</abbr>'
        if role == "cite" or role.startswith("cite:"):
            try:
                return self.cite.role(role, [key.strip() for key in content.split(",")])
            except KeyError as error:
                raise self.error(line, str(error.args[0])) from error
        explicit = re.fullmatch(r"(.+?)\s*<([^<>]+)>", content, re.S)
        words, target = (explicit[1], explicit[2]) if explicit else ("", content)
        if role == "doc":
            return self.document(words, target, line)
        if role == "term":
            if (term := self.book.terms.get(" ".join(target.split()).lower())) is None:
                raise self.error(line, f"the glossary has no term {target!r}")
            return f"[{words or target}]({self.book.url(*term)})"
        if role == "eq":
            label = self.find(target, line, {"equation"})
            return self.refer(label, f"({label.number})")
        if role == "numref":
            return self.numref(words, target, line)
        if role in ("ref", "prf:ref"):
            return self.ref(words, target, line, role)
        raise self.error(line, f"no rule for the role {{{role}}}")

    def find(self, target: str, line: int, kinds: set[str] | None = None) -> Label:
        """The label that a reference means; of one of the kinds, where they are given."""
        label = self.book.labels.get(target.strip().lower())
        if label is None:
            raise self.error(line, f"the book has no label {target!r}")
        if kinds and label.kind not in kinds:
            raise self.error(line, f"{target!r} labels {label.kind}, not {' or '.join(sorted(kinds))}")
        return label

    def refer(self, label: Label, words: str) -> str:
        """Words that point to a label: a link into the book unless it stands on this page."""
        if label.page != self.page.name:
            return f"[{words}]({self.book.url(label.page, label.anchor)})"
        return f"[{words}](#{label.anchor})" if label.kind in ("section", "target") else words

    def numref(self, words: str, target: str, line: int) -> str:
        label = self.find(target, line)
        if not label.number or label.kind == "equation":
            raise self.error(line, f"{target!r} is no figure, table, section or exercise with a number")
        for placeholder, text in (("%s", label.number), ("{number}", label.number), ("{name}", label.title)):
            words = words.replace(placeholder, text)
        return self.refer(label, self.inline(words, line) or label.name)

    def ref(self, words: str, target: str, line: int, role: str) -> str:
        label = self.find(target, line)
        numbered = label.kind not in ("section", "target", "figure", "table", "listing", "equation")
        if role == "prf:ref" and (not numbered or label.kind == "exercise"):
            raise self.error(line, f"{target!r} labels {label.kind}, not a theorem or the like")
        title = label.name if numbered else self.inline(label.title, label.line)
        if not words and (not title or label.kind == "equation"):
            raise self.error(line, f"{target!r} has no title to show: write words, or use another role")
        return self.refer(label, words or title)

    def document(self, words: str, target: str, line: int) -> str:
        name = self.resolve(target).removesuffix(".md")
        if name not in self.book.pages:
            raise self.error(line, f"the book has no page {name!r}")
        page = self.book.pages[name]
        return f"[{words or self.inline(page.title, line)}]({self.book.url(name)})"

    def link(self, image: str, text: str, target: str, line: int) -> str:
        """A Markdown link or picture; the ones inside the book lead to its pages."""
        path, _, anchor = target.partition("#")
        if image:
            if not text:
                raise self.error(line, f"the picture {target} has no alternative text")
            return f"![{text}]({self.file(target, line, raw=True)})"
        words = self.inline(text, line)
        if re.match(r"^(https?|mailto):", target):
            return f"[{words or target}]({target})"
        name = self.resolve(path).removesuffix(".md") if path else self.page.name
        if anchor and (name, anchor) in self.book.headings:
            heading = self.book.headings[name, anchor]
            words = words or self.inline(heading.title, line)
            return f"[{words}]({self.book.url(name, heading.anchor)})"
        if anchor and not path and anchor.lower() in self.book.labels:
            return self.ref(words, anchor, line, "ref")
        if not anchor and path.lower() in self.book.labels:
            return self.ref(words, path, line, "ref")
        if not anchor and name in self.book.pages:
            return self.document(words, path, line)
        if anchor:
            raise self.error(line, f"the link to {target!r} leads to no heading and no label")
        return f"[{words or target}]({self.file(target, line)})"

    def resolve(self, target: str) -> str:
        """A path in the repository from one that is relative to this page, or to the root with a slash."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.page.name), target)).lstrip("/")

    def file(self, target: str, line: int, raw: bool = False) -> str:
        """The address of a file of the repository; raw: of its bytes, for a picture."""
        if re.match(r"^https?:", target):
            return target
        path = self.resolve(target)
        if not (self.book.root / path).is_file():
            raise self.error(line, f"the repository has no file {path!r}")
        address = f"{self.book.repository}/blob/{self.book.branch}/{path}"
        if raw:
            address = address.replace("https://github.com/", "https://raw.githubusercontent.com/").replace("/blob/", "/", 1)
        return address.replace(" ", "%20")

    def cited(self) -> list[str]:
        """The keys that this page cites."""
        text = self.page.path.read_text(encoding="utf-8")
        found = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        return sorted({key.strip() for keys in found for key in keys.split(",")})


def quote(text: str) -> str:
    """Text as a block quotation; a display formula goes on one line, or its > signs would be read as TeX."""
    text = re.sub(r"^([ \t]*)\$\$\n(.*?)\n\s*\$\$$", lambda m: f"{m[1]}$$ {' '.join(m[2].split())} $$", text, flags=re.M | re.S)
    return "\n".join(f"> {row}".rstrip() for row in text.split("\n"))


def details(summary: str, text: str) -> str:
    """Text that opens on a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"
