"""Sphinx extension: under each chapter's title, a row that launches it on Colab and tells its version and its time."""

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx

if not __package__:  # as an extension
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import release


def launch_links(repository: str, branch: str, page: str) -> list[tuple[str, str, str]]:
    """(text, address, CSS class) of each link; page is the chapter's path without its suffix."""
    owner_and_name = repository.removeprefix("https://github.com/").strip("/")
    on_colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/{branch}/{page}.ipynb"
    return [
        ("Open in Colab", on_colab, "launch-colab"),
        ("Notebook", f"{repository.rstrip('/')}/blob/{branch}/{page}.ipynb", "launch-notebook"),
        ("Source", f"{repository.rstrip('/')}/blob/{branch}/{page}.md", "launch-source"),
    ]


def add_row(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Insert the row after the title of a chapter."""
    title = next(iter(doctree.findall(nodes.title)), None)
    is_chapter = docname.startswith("notebooks/") and Path(app.env.doc2path(docname)).suffix == ".md"
    if title is None or not is_chapter or app.builder.format != "html":
        return
    theme = app.config.html_theme_options
    row = nodes.paragraph(classes=["launch-row"])
    for text, address, name in launch_links(theme["repository_url"], theme["repository_branch"], docname):
        row += nodes.reference("", text, refuri=address, classes=[name])
    if version := release.version_of(Path(app.srcdir), Path(docname).name):
        row += nodes.inline("", f"Chapter version {version}.", classes=["launch-time"])
    if seconds := run_seconds(app, docname):
        row += nodes.inline("", f"This page ran in {seconds:.0f} s.", classes=["launch-time"])
    title.parent.insert(title.parent.index(title) + 1, row)


def run_seconds(app: Sphinx, docname: str) -> float | None:
    """The time of the run that the page shows, as the cache recorded it."""
    env: Any = app.env
    record = NbMetadataCollector.get_exec_data(env, docname)
    return record["runtime"] if record else None


def setup(app: Sphinx) -> dict[str, object]:
    """Register the row."""
    app.connect("doctree-resolved", add_row)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
