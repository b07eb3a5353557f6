"""Tables of the print: data frames as tables, columns as wide as their texts ask for, pages that break well."""

import re
from html.parser import HTMLParser

from docutils import nodes
from sphinx import addnodes
from sphinx.builders.latex.nodes import math_reference

from tools.pdf_tree import drop, every, has, latex, plain

ROOM = 98  # letters that a line of a table holds


class _Rows(HTMLParser):
    """The cells of an HTML table, row by row, and how many rows are its head."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.head, self.inside, self.span = 0, False, 1

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside, self.span = True, int(dict(attrs).get("colspan") or 1)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1] += [""] * (self.span - 1)
            self.inside = False
        if tag == "thead":
            self.head = len(self.rows)

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def table(html: str) -> nodes.table:
    """A data frame's HTML as a table."""
    parser = _Rows()
    parser.feed(html)
    if parser.head > 1:
        above, last = parser.rows[parser.head - 2 : parser.head]
        if not above[0].strip() and not any(last[1:]):  # the name of the index, which has a row of its own
            above[0] = last[0]
            parser.head -= 1
            del parser.rows[parser.head]
    width = max(len(row) for row in parser.rows)
    full = [row + [""] * (width - len(row)) for row in parser.rows]
    rows = [nodes.row("", *(nodes.entry("", nodes.paragraph("", text.strip())) for text in row)) for row in full]
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in range(width)), cols=width)
    group += [nodes.thead("", *rows[: parser.head]), nodes.tbody("", *rows[parser.head :])]
    return nodes.table("", group)


def tidy_tables(tree: nodes.Element) -> None:
    """Empty cells hold no empty line, a head without words goes, no line ends at ±, and long tables may break."""
    for found in every(tree, nodes.table):
        for entry in every(found, nodes.entry):
            for text in every(entry, nodes.Text):
                text.parent.replace(text, nodes.Text(text.replace(" ± ", "\u00a0±\u00a0")))
            if not every(entry, lambda node: not isinstance(node, nodes.entry | nodes.paragraph)):
                entry.children = []
        for head in every(found, nodes.thead):
            if not any(entry.children for entry in every(head, nodes.entry)):
                drop(head)
        if len(every(found, nodes.row)) > 12:
            found["classes"].append("longtable")
    for spec in every(tree, addnodes.tabular_col_spec):  # names and what they do
        spec["spec"] = r"\X{3}{10}\X{7}{10}"
    for title in every(tree, lambda node: has(node, "claims-chapter")):
        title.parent.insert(title.parent.index(title), latex("\\roomfor{9}"))


def letters(word: str) -> int:
    """How wide a word is, in letters: some are wider than others."""
    return len(word) + sum(letter in "mwMW%" for letter in word) // 2


def widths(columns: list[list[str]], room: int = ROOM) -> list[int]:
    """Letters for each column of a table, given its texts; [] where the table fits the page as it is.

    No column is narrower than its longest word; what is left of room goes to those that have more text.
    """
    least = [max(letters(word) for text in texts for word in re.split(r"[ \n]", text)) + 3 for texts in columns]
    full = [max(low, max(map(len, texts)) + 3) for low, texts in zip(least, columns, strict=True)]
    if sum(full) <= 0.8 * room:
        return []
    wish = [max(low, min(60, high)) for low, high in zip(least, full, strict=True)]
    left, more = max(0, room - sum(least)), max(1, sum(wish) - sum(least))
    return [low + left * (high - low) // more for low, high in zip(least, wish, strict=True)]


def shown(entry: nodes.Node) -> str:
    """The text of a cell as it counts for its width: formulas are shorter than their source."""
    if any(True for _ in every(entry, math_reference)):
        return "(10.10)"
    text = entry.astext().replace("\u200b", " ")
    for formula in every(entry, nodes.math):
        text = text.replace(formula.astext(), plain(formula.astext()))
    return text


def size_tables(tree: nodes.Element) -> None:
    """Columns as wide as their texts ask for, so that long words break nothing."""
    for found in every(tree, nodes.table):
        specs = every(found, nodes.colspec)
        rows = [row.children for row in every(found, nodes.row) if len(row) == len(specs)]
        chosen = widths([[shown(entry) for entry in column] for column in zip(*rows, strict=True)])
        for spec, width in zip(specs, chosen, strict=False):
            spec["colwidth"] = width
        found["classes"] = [name for name in found["classes"] if name != "colwidths-given"]
        found["classes"] += ["colwidths-given"] * bool(chosen)
