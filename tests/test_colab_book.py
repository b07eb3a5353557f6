"""The Colab edition as a whole: its numbers and links against a book that Sphinx built, its files, drift."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin

import nbformat
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from smlmtut import data
from tools.colab.__main__ import editions, main
from tools.colab.book import Book
from tools.colab.edition import Edition, write

ROOT = Path(__file__).resolve().parents[1]
SINK = ROOT / "tests" / "data" / "sink"
HEADER = SINK.joinpath("notebooks/02_second.md").read_text(encoding="utf-8").split("# Second")[0]
FIRST = HEADER.count("\n") + 1  # line of the first line after the header
BOOK = "https://example.github.io/sink"


@pytest.fixture
def book(tmp_path):
    """A copy of the small book, free to be changed."""
    return Path(shutil.copytree(SINK, tmp_path / "a book", ignore=shutil.ignore_patterns("_build")))


# ---- numbers and anchors against Sphinx ------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The small book as Jupyter Book builds it, without a warning."""
    book = shutil.copytree(SINK, tmp_path_factory.mktemp("site") / "sink", ignore=shutil.ignore_patterns("_build"))
    call = "from jupyter_book.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", call, "build", ".", "-n", "-W", "--keep-going", "-q"],
        cwd=book,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["notebooks/01_first", "notebooks/02_second", "book/intro", "book/glossary"]
    html = {name: (book / "_build" / "html" / f"{name}.html").read_text(encoding="utf-8") for name in names}
    return Book(book), {name: BeautifulSoup(text, "html.parser") for name, text in html.items()}


def printed(element, kind):
    """The number that the book prints at a labelled element."""
    if kind == "equation":
        return "Equation " + element.select_one(".eqno").get_text().strip("#()")
    if kind == "section":
        section = element.parent if element.name == "span" else element
        number = section.find(["h1", "h2", "h3"]).select_one(".section-number")
        return f"Section {number.get_text().strip().rstrip('.')}" if number else "Section"
    return element.select_one(".caption-number").get_text().strip()


def test_every_label_has_the_number_and_the_anchor_of_the_book(site):
    book, pages = site
    assert len(book.labels) >= 20
    for label in book.labels.values():
        element = pages[label.page].find(id=label.anchor)
        assert element is not None, label
        assert printed(element, label.kind) == label.name, label


def test_every_term_and_heading_has_an_anchor(site):
    book, pages = site
    for page, anchor in [
        *book.terms.values(),
        *((h.page, h.anchor) for h in book.headings.values() if h.page in pages),
    ]:
        assert pages[page].find(id=anchor) is not None, anchor


def links(html, base):
    """Text and whole address of each link in a piece of HTML."""
    soup = BeautifulSoup(html, "html.parser")
    return [(a.get_text(), urljoin(base, str(a["href"]))) for a in soup.select("a")]


def test_references_read_and_lead_as_in_the_book(site):
    book, pages = site
    base = f"{BOOK}/notebooks/02_second.html"
    (theirs,) = [p for p in pages["notebooks/02_second"].select("article p") if p.get_text().startswith("Back to")]
    ours = nbformat.reads(write(Edition(book, book.pages["notebooks/02_second"]).build()), as_version=4).cells[-1]
    (paragraph,) = [part for part in ours.source.split("\n\n") if part.startswith("Back to")]
    html = MarkdownIt().render(paragraph)
    assert BeautifulSoup(html, "html.parser").get_text().strip() == theirs.get_text().strip()
    assert links(html, base) == links(str(theirs), base)


# ---- the files -------------------------------------------------------------------------------------------


def test_same_source_same_bytes_and_valid(book):
    first, second = editions(book), editions(book)
    assert first == second
    for text in first.values():
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        ids = [cell.id for cell in notebook.cells]
        assert len(set(ids)) == len(ids)
        assert text.endswith("}\n")


def test_cell_ids_do_not_move_when_another_cell_changes(book):
    path = book / "notebooks" / "01_first.md"
    before = json.loads(editions(book)[path.with_suffix(".ipynb")])
    path.write_text(path.read_text().replace("# First chapter", "# First chapter, again\n\n+++\n"))
    after = json.loads(editions(book)[path.with_suffix(".ipynb")])
    changed = {cell["id"] for cell in after["cells"]} ^ {cell["id"] for cell in before["cells"]}
    assert 0 < len(changed) <= 3  # title and first text: one cell before, two after


def test_check_tells_drift_and_writes_nothing(book, capsys):
    notebook = book / "notebooks" / "01_first.ipynb"
    assert main(["--root", str(book), "--check"]) == 1
    assert "01_first.ipynb is missing" in capsys.readouterr().err
    assert not notebook.exists()
    assert main(["--root", str(book)]) == 0
    assert main(["--root", str(book), "--check"]) == 0
    capsys.readouterr()
    written = notebook.read_text()
    notebook.write_text(written.replace("The rate", "The speed"))
    assert main(["--root", str(book), "--check"]) == 1
    message = capsys.readouterr().err
    assert "01_first.ipynb differs in 2 lines" in message and "The speed" in message and "make colab" in message
    assert main(["--root", str(book)]) == 0
    assert notebook.read_text() == written


def test_a_notebook_whose_chapter_is_gone_is_told_and_removed(book, capsys):
    main(["--root", str(book)])
    mine = book / "notebooks" / "mine.ipynb"
    mine.write_text("{}")
    (book / "notebooks" / "09_gone.ipynb").write_bytes((book / "notebooks" / "02_second.ipynb").read_bytes())
    assert main(["--root", str(book), "--check"]) == 1
    assert "09_gone.ipynb has no chapter" in capsys.readouterr().err
    main(["--root", str(book)])
    assert not (book / "notebooks" / "09_gone.ipynb").exists()
    assert mine.exists()


def test_an_error_is_printed_not_raised(book, capsys):
    (book / "notebooks" / "02_second.md").write_text(HEADER + "{eq}`eq-none`\n")
    (book / "notebooks" / "01_first.md").write_text(HEADER + "# First\n")
    assert main(["--root", str(book)]) == 1
    assert f"notebooks/02_second.md:{FIRST}: the book has no label 'eq-none'" in capsys.readouterr().err


def check(*call):
    """What `python CALL --check` returns and prints, run in the root of the repository."""
    done = subprocess.run([sys.executable, *call, "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_folder_and_module_take_the_same_options(book):
    by_module, by_path = check("-m", "tools.colab", "--root", str(book)), check("tools/colab", "--root", str(book))
    assert by_module == by_path
    assert by_path[0] == 1 and "02_second.ipynb is missing" in by_path[1]


def test_the_edition_in_the_repository_is_in_step():
    assert check("-m", "tools.colab") == (0, "")


def test_the_first_cell_tells_every_download_and_its_size():
    """By their true sizes, which test_data holds against the files."""
    sizes = {name: f"{name}, {source.size / 1e6:.1f} MB" for name, source in data.SOURCES.items()}
    told = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cell = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        told[path.name[:2]] = {name for name, text in sizes.items() if f'print("  {text}")' in cell.source}
        assert 'print("Downloads: the package with its trained networks and exact posteriors, 12.3 MB")' in cell.source
    maps = {"gain.hdf5", "offset.hdf5", "readvar.hdf5"}
    movie = {"sptnet_af647_slb.tif"}
    every = {chapter: movie for chapter in ("03", "05", "07", "08")} | {chapter: maps for chapter in ("10", "11", "90")}
    assert told == every | {chapter: maps | movie for chapter in ("01", "02", "04", "06", "09", "12")}
