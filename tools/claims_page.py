"""Sphinx extension: the directive `claims` lists what every chapter claimed in the run that the page shows.

It reads the executed notebooks from Jupyter Book's cache once all pages are read, so it tells the same run
as the pages do, and it runs nothing itself.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

PAGES = "smlmtut_claims_pages"


class ClaimsTable(nodes.General, nodes.Element):
    """Stands for the tables until the chapters are known."""


class ClaimsDirective(SphinxDirective):
    """`{claims}`: one table a chapter, with name, value, allowed range."""

    def run(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname][PAGES] = True
        return [ClaimsTable()]


def pages_to_write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The pages with the directive: chapters may have changed since they were written."""
    return [page for page, metadata in env.metadata.items() if PAGES in metadata]


def fill_in(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the placeholder by a summary and the tables."""
    for place in list(doctree.findall(ClaimsTable)):
        found = claims_by_chapter(app)
        if not found:
            text = "The cache holds no run with claims: make book runs every chapter and fills in this page."
            place.replace_self(nodes.paragraph("", text))
            continue
        everything = [claim for claims in found.values() for claim in claims]
        held = sum(claim["holds"] for claim in everything if claim["enforced"])
        left = sum(not claim["enforced"] for claim in everything)
        profiles = ", ".join(sorted({claim["profile"] for claim in everything}))
        summary = f"{held} of {len(everything) - left} checked claims hold in profile {profiles}."
        if left:
            summary += f" Shown but not checked in this profile: {left}."
        made: list[nodes.Node] = [nodes.paragraph("", summary, classes=["claims-summary"])]
        for page, claims in found.items():
            made += [heading(app, docname, page), table(claims)]
        place.replace_self(made)


def claims_by_chapter(app: Sphinx) -> dict[str, list[dict[str, Any]]]:
    """Page name -> the claims in the outputs that the page shows, in the order of the book."""
    import jupytext
    from jupyter_cache import get_cache
    from run_chapters import claims_of  # this folder is on the path: see _config.yml

    root = Path(app.srcdir)
    cache = get_cache(app.config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")
    found: dict[str, list[dict[str, Any]]] = {}
    for page in sorted(app.env.found_docs):
        source = root / f"{page}.md"
        if page.startswith("notebooks/") and source.exists():
            try:
                record: Any = cache.match_cache_notebook(jupytext.read(source))
            except KeyError:
                continue
            if claims := claims_of(cache.get_cache_bundle(record.pk).nb):
                found[page] = claims
    return found


def heading(app: Sphinx, docname: str, page: str) -> nodes.Node:
    """A line with the chapter's title that links to the chapter."""
    title = app.env.titles[page].astext()
    link = nodes.reference("", title, refuri=app.builder.get_relative_uri(docname, page), internal=True)
    return nodes.paragraph("", "", nodes.strong("", "", link), classes=["claims-chapter"])


def table(claims: list[dict[str, Any]]) -> nodes.Node:
    """Claims as a table: mark, name, value, allowed range."""
    body, head = nodes.tbody(), ("Holds", "Claim", "Value", "Allowed")
    for claim in claims:
        mark = ("✓" if claim["holds"] else "✗") if claim["enforced"] else "–"
        body += row((mark, claim["name"], claim["shown"], claim["allowed"]))
    group = nodes.tgroup("", cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in (1, 12, 4, 5)]
    group += [nodes.thead("", row(head)), body]
    return nodes.table("", group, classes=["claims-table"])


def row(texts: tuple[str, ...]) -> nodes.row:
    """One row of plain texts."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in texts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_node(ClaimsTable)
    app.add_directive("claims", ClaimsDirective)
    app.connect("env-updated", pages_to_write_again)
    app.connect("doctree-resolved", fill_in)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
