"""Read MyST Markdown as a list of blocks, each with the line where it stands.

markdown-it, the parser of MyST, finds the directives, formulas, headings and targets; everything between
them stays the text that it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin

READER = MarkdownIt("commonmark").use(front_matter_plugin).use(myst_block_plugin).use(colon_fence_plugin)
READER.use(dollarmath_plugin).use(amsmath_plugin).disable("inline")
MATH = {"math_block", "math_block_label", "amsmath"}
INDENTED = {"fence", "colon_fence", *MATH}  # read in a list too
KINDS = {"heading_open": "heading", "myst_target": "target", "myst_block_break": "break"}
SKIPPED = {"front_matter", "myst_line_comment"}
DIRECTIVE = re.compile(r"\{(?P<name>[\w:.+-]+)\}[ \t]*(?P<argument>.*)")
OPTION = re.compile(r":([\w-]+):[ \t]*(.*)")
UNREAD = re.compile(r"^[ \t>*+-]*(`{3,}|:{3,})\{.*", re.M)  # meant as a directive, but none to Markdown
VERBATIM = {"code-cell", "code-block", "code", "sourcecode", "raw", "glossary", "toctree", "mermaid"}


class MystError(ValueError):
    """Something in a page that cannot be read or carried over; the message starts with file:line."""

    def __init__(self, path: Path | str, line: int, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}")


@dataclass(frozen=True)
class Block:
    """One block of a page.

    kind: "text", "code" (a fence that is no directive), "math", "heading", "target", "break" or "directive".
    line: its first line, from 1. indent: the white space before it, which is not part of text.
    text: the lines of text and code, the formula, the title, the label, or the body of a directive.
    label: of math. level: of a heading. name, argument, options: of a directive.
    body_line: first line of a directive's body. children: the blocks in it, unless it is code or the like.
    """

    kind: str
    line: int
    text: str = ""
    indent: str = ""
    label: str | None = None
    level: int = 0
    name: str = ""
    argument: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    body_line: int = 0
    children: tuple[Block, ...] = ()

    @property
    def tags(self) -> list[str]:
        """The tags of a code cell."""
        tags = self.options.get("tags") or []
        return [tags] if isinstance(tags, str) else list(tags)

    @property
    def figure(self) -> dict[str, Any]:
        """The figure that a code cell's output becomes: its name and caption; {} for none."""
        return (self.options.get("mystnb") or {}).get("figure") or {}


def read_page(path: Path, shown: Path | str) -> list[Block]:
    """The blocks of a page; shown is the path that messages name."""
    return parse(path.read_text(encoding="utf-8"), shown)


def parse(text: str, path: Path | str, line: int = 1) -> list[Block]:
    """The blocks of MyST text whose first line is number `line` of the file at path.

    Raises MystError for a fence that is not closed, a directive that Markdown does not read as one, and
    options that are not YAML.
    """
    lines, blocks, done = text.split("\n"), [], 0

    def add_text(end: int) -> None:
        """Add the lines before `end` that belong to no other block."""
        plain = "\n".join(lines[done:end])
        if found := UNREAD.search(plain):
            at = line + done + plain[: found.start()].count("\n")
            why = "backticks in the title of a ``` directive, or a list mark or > before it"
            raise MystError(path, at, f"Markdown reads no directive in {found[0].strip()!r}: {why}")
        if plain.strip():
            blocks.append(Block("text", line + done, plain))

    tokens = READER.parse(text)
    for k, token in enumerate(tokens):
        start, end = token.map or (0, 0)
        indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
        if token.type in INDENTED:
            if not lines[start].startswith(indent + token.markup):
                continue  # the first thing in a list item or a quotation
        elif token.type not in SKIPPED | KINDS.keys() or token.level:
            continue
        add_text(start)
        done = end = end + (token.type == "amsmath")  # its plugin leaves out the last line
        if token.type in MATH:
            formula = token.content if token.type != "amsmath" else _without_number(token)
            blocks.append(Block("math", line + start, formula.strip(), indent, token.info or None))
        elif token.type in INDENTED:
            closing = lines[end - 1].strip()
            if end == start + 1 or not closing.startswith(token.markup) or closing.strip(token.markup[0]):
                raise MystError(path, line + start, f"the fence {lines[start].strip()!r} is never closed")
            blocks.append(_fenced(token, indent, path, line + start))
        elif token.type not in SKIPPED:
            heading = token.type == "heading_open"
            text, level = (tokens[k + 1].content, int(token.tag[1])) if heading else (token.content, 0)
            blocks.append(Block(KINDS[token.type], line + start, text, level=level))
    add_text(len(lines))
    return blocks


def _fenced(token: Token, indent: str, path: Path | str, line: int) -> Block:
    """A fence that starts at a line: a directive, or code."""
    found = DIRECTIVE.fullmatch(token.info.strip())
    if not found:
        if token.markup[0] == ":" or token.info.startswith("{"):
            raise MystError(path, line, f"no directive in the fence {token.markup + token.info!r}")
        return Block("code", line, f"{token.markup}{token.info}\n{token.content}{token.markup}", indent)
    body = token.content.rstrip().split("\n")
    options, used = _options(body, path, line + 1)
    while used < len(body) and not body[used].strip():
        used += 1
    name, argument, text = found["name"], found["argument"].strip(), "\n".join(body[used:])
    if name == "math":
        return Block("math", line, f"{argument}\n{text}".strip(), indent, options.get("label"))
    at = line + 1 + used
    inner = () if name in VERBATIM else tuple(parse(text, path, at))
    return Block(
        "directive", line, text, indent, name=name, argument=argument, options=options, body_line=at, children=inner
    )


def _options(body: list[str], path: Path | str, line: int) -> tuple[dict[str, Any], int]:
    """Options of a directive, from a --- block of YAML or from :key: value lines, and the lines they take."""
    if body[0].strip() == "---":
        if "---" not in body[1:]:
            raise MystError(path, line, "the options' --- is never closed")
        end = body.index("---", 1)
        return _yaml("\n".join(body[1:end]), path, line), end + 1
    rows = list(takewhile(bool, map(OPTION.fullmatch, body)))
    options = {row[1]: row[2].strip() for row in rows if row}
    if "tags" in options:  # a code cell's tags are a YAML list
        options |= _yaml(f"tags: {options['tags']}", path, line)
    return options, len(rows)


def _yaml(text: str, path: Path | str, line: int) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise MystError(path, line, f"the options are not YAML: {error}") from error
    if not isinstance(values, dict):
        raise MystError(path, line, "the options must be key: value pairs")
    return values


def _without_number(token: Token) -> str:
    """An AMS environment as the form that stands inside $$ and is never numbered by itself."""
    name = token.meta["environment"]
    math = re.sub(r"^\s*\\begin\{[a-z]+\*?\}|\\end\{[a-z]+\*?\}\s*$", "", token.content).strip()
    if name == "equation":
        return math
    if name == "alignat":
        return rf"\begin{{alignedat}}{math}\end{{alignedat}}"
    inner = {"gather": "gathered", "multline": "gathered"}.get(name, "aligned")
    return f"\\begin{{{inner}}}\n{math}\n\\end{{{inner}}}"
