"""The few words in which the modules of the print speak of a document."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from docutils import nodes
from sphinx import addnodes


def latex(text: str) -> nodes.raw:
    """Text for LaTeX as it stands."""
    return nodes.raw("", text, format="latex")


def has(node: nodes.Node, name: str) -> bool:
    """Whether an element has a class."""
    return isinstance(node, nodes.Element) and name in node.get("classes", [])


def every(tree: nodes.Node, condition: Any) -> list[Any]:
    """All elements of a class, or of which a condition is true; a list, since the tree changes on the way."""
    return list(tree.findall(condition))


def drop(node: nodes.Element) -> None:
    """Take an element out of its parent."""
    assert node.parent is not None
    node.parent.remove(node)


def plain(formula: str) -> str:
    """A short formula as text, for the outline of the PDF: ŷ and σ for \\hat y and \\sigma."""
    text = re.sub(r"\\(?:hat|tilde)\s*\{?(\w)\}?", lambda found: found[1] + "\u0302", formula)
    for name in re.findall(r"\\([a-z]+)", text):
        with suppress(KeyError):
            text = text.replace(f"\\{name}", unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}"))
    text = text.replace("\\mid", "|")
    return unicodedata.normalize("NFC", re.sub(r"\\[a-zA-Z]+|[\\{}$^_]", "", text))


def files(tree: nodes.Element) -> Iterator[addnodes.start_of_file]:
    """The chapters in the assembled book, in order."""
    yield from tree.findall(addnodes.start_of_file)


def page_of(node: nodes.Node, root: str) -> str:
    """The page that an element comes from: that of the file around it, else the book's first."""
    while node.parent is not None:
        if isinstance(node, addnodes.start_of_file):
            return node["docname"]
        node = node.parent
    return root


def is_component(node: nodes.Node, kind: str) -> bool:
    """Whether an element is a component of sphinx-design, of one kind."""
    return isinstance(node, nodes.container) and node.get("design_component") == kind


def is_dropdown(node: nodes.Node) -> bool:
    """Whether an element is a closed box."""
    return is_component(node, "dropdown")
