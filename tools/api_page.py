"""Sphinx extension: the directive `api` lists what a room offers, with every docstring and a link to the source.

`{api} imaging` makes a table of the names on the room's face, then every public function and class of its modules, by
autodoc; sphinx.ext.viewcode adds the links. The docstrings here are plain text and no reStructuredText: all but their
first line is set as it stands in the source.
"""

import inspect
import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("imaging", "estimation", "posterior", "diffusion", "networks", "evaluation", "io", "localize")
TOP = ("notebook", "figures", "data", "example")  # modules beside the rooms


def modules(room: str) -> list[ModuleType]:
    """The public modules of a room, by name; or the module itself, if it is none."""
    face = import_module(f"smlmtut.{room}")
    found = pkgutil.iter_modules(getattr(face, "__path__", []))
    names = [f"{face.__name__}.{module.name}" for module in found if not module.name.startswith("_")]
    return [import_module(name) for name in names] or [face]


def public(module: ModuleType) -> list[str]:
    """The full names of the functions and classes that a module defines and does not hide."""
    found = (x for name, x in vars(module).items() if not name.startswith("_"))
    own = [x for x in found if (inspect.isfunction(x) or inspect.isclass(x)) and x.__module__ == module.__name__]
    return [f"{x.__module__}.{x.__qualname__}" for x in own]


def face(room: str) -> list[str]:
    """The full names of what a room's face offers: where each of them is defined."""
    module = import_module(f"smlmtut.{room}")
    offered = (getattr(module, name) for name in getattr(module, "__all__", ()))
    found = (x for x in offered if inspect.isfunction(x) or inspect.isclass(x))
    return [f"{x.__module__}.{x.__qualname__}" for x in found]


def text(room: str) -> str:
    """What the page shows of a room, in reStructuredText."""
    lines = []
    listed = {name for module in modules(room) for name in public(module)}
    if len(modules(room)) > 1 and (names := [name for name in face(room) if name in listed]):
        lines += [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   ~{name}" for name in names] + [""]
    for module in modules(room):
        if public(module):
            lines += [f".. rubric:: {module.__name__}", ""]
            lines += [f".. automodule:: {module.__name__}", "   :members:", "   :ignore-module-all:", ""]
    return "\n".join(lines)


class ApiDirective(SphinxDirective):
    """`{api} ROOM`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(f"```{{eval-rst}}\n{text(self.arguments[0])}\n```")


def plain(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """A docstring as text: its first line escaped, the rest as it stands."""
    if not lines or not name.startswith("smlmtut"):
        return
    first, rest = lines[0], lines[1:]
    while rest and not rest[0].strip():
        rest.pop(0)
    while rest and not rest[-1].strip():
        rest.pop()
    first = first.replace("Eq. ", "Eq.\u2060 ")  # a joiner: the table's summary would end at the full stop
    lines[:] = [re.sub(r"([*`|_\\])", r"\\\1", first), ""]
    if rest:
        lines += [".. code-block:: text", "", *(f"    {line}" for line in rest), ""]


def foreign(app: Sphinx, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what has no docstring of this book: the fields of named tuples, and torch's text on `forward`."""
    text = inspect.getdoc(item) or ""
    return True if text.startswith(("Alias for field number", "Define the computation performed at")) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive, and autodoc with it."""
    sys.path.insert(0, str(ROOT))  # the package of this book, and no other that is installed
    for extension in ("sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"):
        app.setup_extension(extension)
    app.add_directive("api", ApiDirective)
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-skip-member", foreign)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
