"""Running text: MyST roles, references, links, footnotes and formulas as plain Markdown.

A reference becomes the number or title that the book prints, and where it leads to another page, a link
into the book. What has no rule, or leads nowhere, is an error with its line.
"""

from __future__ import annotations

import posixpath
import re
from html import escape

from tools.colab.book import Book, Label, Page
from tools.colab.citations import Citations
from tools.colab.myst import MystError

INLINE = re.compile(
    r"(?P<escaped>\\[^\w\s])"
    r"|(?:\{(?P<role>[\w:.+-]+)\})?(?P<ticks>`+)(?P<code>(?!`).+?)(?<!`)(?P=ticks)(?!`)"
    r"|(?P<math>\$\$.+?\$\$|(?<![\w$])\$(?![\s$])(?:\\.|[^$\\])*?(?<!\s)\$(?!\d))"
    r"|\[\^(?P<note>[^\]\s]+)\]:?"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`|\[[^\]]*\])*)\]"
    r"\((?P<target><[^>\n]*>|(?:[^()\s]|\([^()\s]*\))*)(?:\s+\"[^\"]*\")?\)(?:\{[^}\n]*\})?"
    r"|(?P<foreign>\{\{.+?\}\}|\{[\w:.+-]+\}(?=`)|(?<=\])\{[.#:\w][^}\n]*\}|<(?:project|inv|path):[^>]*>)",
    re.S,
)
TITLED = {"section", "target", "figure", "table", "listing", "equation"}  # what {ref} shows by its title


class Inline:
    """Writes the running text of one page: inline(text, line)."""

    def __init__(self, book: Book, page: Page) -> None:
        self.book, self.page = book, page
        self.cite = Citations(book.bibliography)
        self.notes: dict[str, int] = {}  # footnotes by name, numbered as they come

    def error(self, line: int, message: str) -> MystError:
        """An error at a line of this page."""
        return MystError(self.page.shown, line, message)

    def __call__(self, text: str, line: int) -> str:
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
            if found["image"]:
                return self.picture(found["text"], found["target"].strip("<>"), at)
            if found["target"] is not None:
                return self.link(self(found["text"], at), found["target"].strip("<>"), at)
            if found["foreign"]:
                raise self.error(at, f"no rule for {found['foreign']!r}")
            return found[0]

        return INLINE.sub(write, text)

    def role(self, role: str, content: str, line: int) -> str:
        """One role, by its rule."""
        explicit = re.fullmatch(r"(.+?)\s*<([^<>]+)>", content, re.S)
        words, target = (explicit[1], explicit[2]) if explicit else ("", content)
        match role:
            case "sub" | "sup" | "kbd":
                return f"<{role}>{content}</{role}>"
            case "code" | "bdg-secondary":
                return f"`{content}`"
            case "math":
                return f"${self.tex(content)}$"
            case "abbr":
                short, _, long = content.rstrip(")").partition(" (")
                return f'<abbr title="{escape(long)}">{short}</abbr>'
            case "doc":
                return self.document(words, target, line)
            case "term":
                if (term := self.book.terms.get(" ".join(target.split()).lower())) is None:
                    raise self.error(line, f"the glossary has no term {target!r}")
                return f"[{words or target}]({self.book.url(*term)})"
            case "eq":
                label = self.find(target, line, {"equation"})
                return self.refer(label, f"({label.number})")
            case "numref":
                return self.numref(words, target, line)
            case "ref" | "prf:ref":
                return self.ref(words, target, line, role)
        if role.startswith("cite"):
            try:
                return self.cite.role(role, [key.strip() for key in content.split(",")])
            except KeyError as error:
                raise self.error(line, str(error.args[0])) from error
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
        """Kind and number of what a label names, or words with the number in them."""
        label = self.find(target, line)
        if not label.number or label.kind == "equation":
            raise self.error(line, f"{target!r} is no figure, table, section or exercise with a number")
        for placeholder, text in (("%s", label.number), ("{number}", label.number), ("{name}", label.title)):
            words = words.replace(placeholder, text)
        return self.refer(label, self(words, line) or label.name)

    def ref(self, words: str, target: str, line: int, role: str = "ref") -> str:
        """The title of what a label names, or kind and number of an exercise or a theorem."""
        label = self.find(target, line)
        by_title = label.kind in TITLED
        if role == "prf:ref" and (by_title or label.kind == "exercise"):
            raise self.error(line, f"{target!r} labels {label.kind}, not a theorem or the like")
        words = words or (self(label.title, label.line) if by_title else label.name)
        if not words:
            raise self.error(line, f"{target!r} has no title to show: write words, or use another role")
        return self.refer(label, words)

    def document(self, words: str, target: str, line: int) -> str:
        """A link to a page, by its title unless there are words."""
        name = self.resolve(target).removesuffix(".md")
        if name not in self.book.pages:
            raise self.error(line, f"the book has no page {name!r}")
        return f"[{words or self(self.book.pages[name].title, line)}]({self.book.url(name)})"

    def picture(self, text: str, target: str, line: int) -> str:
        """A picture, shown from the repository."""
        if not text:
            raise self.error(line, f"the picture {target} has no alternative text")
        return f"![{text}]({self.file(target, line, raw=True)})"

    def link(self, words: str, target: str, line: int) -> str:
        """A Markdown link: to another site, a heading, a label, a page of the book, or a file of the repository."""
        if re.match(r"^(https?|mailto):", target):
            return f"[{words or target}]({target})"
        path, _, anchor = target.partition("#")
        name = self.resolve(path).removesuffix(".md") if path else self.page.name
        if anchor and (heading := self.book.headings.get((name, anchor))):
            return f"[{words or self(heading.title, line)}]({self.book.url(name, heading.anchor)})"
        label = "" if path and anchor else path or anchor
        if label.lower() in self.book.labels:
            return self.ref(words, label, line)
        if anchor:
            raise self.error(line, f"the link to {target!r} leads to no heading and no label")
        if name in self.book.pages:
            return self.document(words, path, line)
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
            host = "https://raw.githubusercontent.com/"
            address = address.replace("https://github.com/", host).replace("/blob/", "/", 1)
        return address.replace(" ", "%20")

    def bibliography(self) -> str:
        """The list of all references that this page cites."""
        found = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", self.page.path.read_text(encoding="utf-8"))
        return self.cite.bibliography({key.strip() for keys in found for key in keys.split(",")})

    def tex(self, math: str) -> str:
        """A formula without the book's own commands."""
        for name, meaning in self.book.macros.items():
            if not isinstance(meaning, str):
                raise ValueError(f"_config.yml: the macro {name} takes arguments, for which there is no rule")
            math = re.sub(rf"\\{name}(?![A-Za-z])", lambda _, meaning=meaning: f"{{{meaning}}}", math)
        return re.sub(r"\{(\\operatorname\{\w+\})\}", r"\1", math)
