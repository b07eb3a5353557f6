"""Read MyST Markdown as a list of blocks, each with the line where it stands.

Only what the book uses, and strictly: whatever looks like MyST and is not understood is an error that
names the file and the line, here or where the blocks are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
DIRECTIVE = re.compile(r"^\{(?P<name>[\w:.+-]+)\}[ \t]*(?P<argument>.*)$")
DISPLAY = re.compile(r"^(?P<indent>[ \t]*)\$\$(?P<math>.+?)\$\$[ \t]*(?:\((?P<label>[^()\n]+)\))?[ \t]*$", re.M | re.S)
AMS = re.compile(
    r"^(?P<indent>[ \t]*)\\begin\{(?P<env>(?:equation|align|gather|multline|eqnarray|alignat|flalign)\*?)\}"
    r"(?P<math>.*?)\\end\{(?P=env)\}[ \t]*$",
    re.M | re.S,
)
HEADING = re.compile(r"^(?P<marks>#{1,6})[ \t]+(?P<title>.+?)[ \t#]*$")
TARGET = re.compile(r"^\((?P<label>[^()\n]+)\)=[ \t]*$")
OPTION = re.compile(r"^:(?P<key>[\w-]+):[ \t]*(?P<value>.*)$")


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
    label: of math. level: of a heading. name, argument, options, body_line: of a directive.
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
    text = path.read_text(encoding="utf-8")
    front = re.match(r"---\n.*?\n---\n", text, re.S)
    skipped = front[0].count("\n") if front else 0
    return parse(text[front.end() :] if front else text, shown, skipped + 1)


def parse(text: str, path: Path | str, line: int = 1) -> list[Block]:
    """The blocks of MyST text whose first line is number `line` of the file at path."""
    lines, blocks, plain, i = text.split("\n"), [], [], 0

    def add(*found: Block) -> None:
        """Close the text gathered so far, then add what was found."""
        if any(part.strip() for part in plain):
            blocks.append(Block("text", line + i - len(plain), "\n".join(plain)))
        plain.clear()
        blocks.extend(found)

    while i < len(lines):
        here, at = lines[i], line + i
        if (fence := FENCE.match(here)) and not _inline_code(fence, path, at):
            end = _closing(lines, i, fence)
            if end is None:
                raise MystError(path, at, f"the fence {here.strip()!r} is never closed")
            inner = [_dedent(row, len(fence["indent"])) for row in lines[i + 1 : end]]
            add(_fenced(fence, inner, path, at))
            i = end + 1
        elif (math := _block_math("\n".join(lines[i:]))) is not None:
            add(Block("math", at, math[0], math[1], math[2]))
            i += math[3]
        elif heading := HEADING.match(here):
            add(Block("heading", at, heading["title"], level=len(heading["marks"])))
            i += 1
        elif target := TARGET.match(here):
            add(Block("target", at, target["label"]))
            i += 1
        elif re.match(r"^\+\+\+(\s|$)", here):
            add(Block("break", at))
            i += 1
        elif here.startswith("%"):  # a comment
            add()
            i += 1
        else:
            plain.append(here)
            i += 1
    add()
    return blocks


def _inline_code(fence: re.Match[str], path: Path | str, line: int) -> bool:
    """Whether a line that starts like a fence is none, since backticks may not follow in it."""
    if fence["mark"][0] == ":":
        return not DIRECTIVE.match(fence["info"].strip())
    if fence["mark"][0] != "`" or "`" not in fence["info"]:
        return False
    if fence["info"].lstrip().startswith("{"):
        raise MystError(path, line, "backticks in the title of a ``` directive: write it with ::: instead")
    return True


def _closing(lines: list[str], start: int, fence: re.Match[str]) -> int | None:
    mark = fence["mark"]
    close = re.compile(rf"^[ \t]*{re.escape(mark[0])}{{{len(mark)},}}[ \t]*$")
    return next((k for k in range(start + 1, len(lines)) if close.match(lines[k])), None)


def _dedent(row: str, width: int) -> str:
    return row[width:] if not row[:width].strip() else row.lstrip()


def _fenced(fence: re.Match[str], inner: list[str], path: Path | str, line: int) -> Block:
    found = DIRECTIVE.match(fence["info"].strip())
    if not found:
        text = "\n".join([fence["mark"] + fence["info"], *inner, fence["mark"]])
        return Block("code", line, text, fence["indent"])
    options, used = _options(inner, path, line + 1)
    body = inner[used:]
    while body and not body[0].strip():
        body, used = body[1:], used + 1
    return Block(
        "directive",
        line,
        "\n".join(body).rstrip(),
        fence["indent"],
        name=found["name"],
        argument=found["argument"].strip(),
        options=options,
        body_line=line + 1 + used,
    )


def _options(inner: list[str], path: Path | str, line: int) -> tuple[dict[str, Any], int]:
    """Options of a directive, from a --- block of YAML or from :key: value lines, and the lines they take."""
    if inner and inner[0].strip() == "---":
        end = next((k for k in range(1, len(inner)) if inner[k].strip() == "---"), None)
        if end is None:
            raise MystError(path, line, "the options' --- is never closed")
        return _yaml("\n".join(inner[1:end]), path, line), end + 1
    rows = []
    while len(rows) < len(inner) and (option := OPTION.match(inner[len(rows)])):
        rows.append(option)
    values = {row["key"]: row["value"].strip() for row in rows}
    if "tags" in values:  # a code cell's tags are a YAML list
        values["tags"] = _yaml(f"tags: {values['tags']}", path, line)["tags"]
    return values, len(rows)


def _yaml(text: str, path: Path | str, line: int) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise MystError(path, line, f"the options are not YAML: {error}") from error
    if not isinstance(values, dict):
        raise MystError(path, line, "the options must be key: value pairs")
    return values


def _block_math(rest: str) -> tuple[str, str, str | None, int] | None:
    """(formula, indent, label, lines used) of a display formula at the start of rest, or None."""
    if found := DISPLAY.match(rest):
        if "$$" not in found["math"]:
            return found["math"].strip(), found["indent"], found["label"], found[0].count("\n") + 1
    elif found := AMS.match(rest):
        return _plain_environment(found), found["indent"], None, found[0].count("\n") + 1
    return None


def _plain_environment(found: re.Match[str]) -> str:
    """An AMS environment as the form that stands inside $$ and is never numbered by itself."""
    name, math = found["env"].rstrip("*"), found["math"].strip()
    if name == "equation":
        return math
    if name == "alignat":
        return rf"\begin{{alignedat}}{math}\end{{alignedat}}"
    inner = {"gather": "gathered", "multline": "gathered"}.get(name, "aligned")
    return f"\\begin{{{inner}}}\n{math}\n\\end{{{inner}}}"
