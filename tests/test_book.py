"""The pages of the book: table of contents, notation, addresses, and the build of a small book."""

import dataclasses
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

import smlmtut
from tools import api_page, build_book, chapter_head, durations, mend, offline_math, run_chapters, symbols
from tools.contract import PARAMETERS, directives, is_appendix

ROOT = run_chapters.ROOT
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
LISTED = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [TOC["root"], *(page["file"] for chapter in LISTED for page in (chapter, *chapter.get("sections", [])))]
TAUGHT = [path for path in run_chapters.chapters() if not is_appendix(path)]
CODE_NAME = re.compile(r"`([\w.]+)(?:\((\w+)\))?`")


def test_table_of_contents_lists_what_is_there_once_and_the_chapters_in_order():
    assert len(PAGES) == len(set(PAGES))
    assert not [page for page in PAGES if not (ROOT / f"{page}.md").exists()]
    listed = [page for page in PAGES if page.startswith("notebooks/")]
    assert listed == [f"notebooks/{path.stem}" for path in run_chapters.chapters()]
    pages = {str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "book").rglob("*.md")}
    assert pages == {page for page in PAGES if page.startswith("book/")}


def test_the_landing_page_lists_every_chapter_in_its_order():
    text = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\d+)\. \{doc\}`\.\./(notebooks/\w+)`", text, re.M)
    taught = [f"notebooks/{path.stem}" for path in TAUGHT]
    assert [page for _, page in listed] == taught
    assert [int(number) for number, _ in listed] == list(range(1, len(taught) + 1))
    assert set(re.findall(r"\{doc\}`\.\./(notebooks/\w+)`", text)) == {p for p in PAGES if p.startswith("notebooks/")}
    captions = [
        part["caption"].partition(":")[2].strip() for part in TOC["parts"] if part["caption"].startswith("Part")
    ]
    assert [title for title in re.findall(r"^Part [IVX]+, (.+):$", text, re.M)] == captions


def test_the_pictures_of_the_landing_page_are_those_that_a_script_draws():
    text = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    shown = re.findall(r"_static/(smlm-[\w-]+\.png)", text)
    drawn = re.findall(r'save\(fig, "([\w-]+)"\)', (ROOT / "tools" / "landing.py").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(f"smlm-{name}.png" for name in drawn)
    assert all((ROOT / "book" / "_static" / name).is_file() for name in shown)


def notation() -> list[list[str]]:
    """The cells of each row of the table of symbols."""
    text = (ROOT / "book" / "notation.md").read_text(encoding="utf-8").partition("## Symbols")[2]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def resolve(name: str, argument: str | None = None) -> None:
    """Find smlmtut.NAME, and its argument; LookupError if it is not there."""
    module = "smlmtut"
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        if hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{part}"):
            module = f"{module}.{part}"
            found = importlib.import_module(module)
            continue
        fields = {f.name for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()
        if part not in fields and not hasattr(found, part):
            raise LookupError(f"smlmtut.{name}: no {part!r}")
        found = getattr(found, part, None)
    if argument and (not callable(found) or argument not in inspect.signature(found).parameters):
        raise LookupError(f"smlmtut.{name} has no argument {argument!r}")


@pytest.mark.parametrize("row", notation(), ids=lambda row: row[2].strip("`"))
def test_notation_names_what_the_code_has(row):
    symbol, meaning, code, shape, unit, equation = row
    assert symbol.startswith("$") and meaning and shape and unit
    names = CODE_NAME.findall(code)
    assert names
    for name, argument in names:
        resolve(name, argument or None)
    chapters = "".join(path.read_text(encoding="utf-8") for path in run_chapters.chapters())
    for label in re.findall(r"\{eq\}`([\w:-]+)`", equation):
        assert re.search(rf"^\$\$ *\({label}\)|label: {label}$", chapters, re.M), f"no equation {label}"


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("imaging.psf.Nothing", None),
        ("imaging.psf.PSF.width", None),
        ("imaging.psf.expected_photons", "gain"),
        ("imaging.psf.PSF.sigma", "x"),
    ],
)
def test_notation_test_can_fail(name, argument):
    with pytest.raises(LookupError):
        resolve(name, argument)


NOTATION = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", run_chapters.chapters(), ids=lambda path: path.stem)
def test_one_symbol_has_one_meaning(source):
    text = source.read_text(encoding="utf-8")
    found = [*symbols.conflicts(text, NOTATION), *symbols.logarithms(text)]
    assert found == []


def test_a_symbol_stands_once_on_the_notation_page():
    names = [name for name, _ in symbols.table(NOTATION)]
    assert len(names) > 60 and len(names) == len(set(names))


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("Let $s$ be the standard deviation of the data.", True),
        ("Let $s$ be the\nindex on the fine grid.", False),
        ("It follows, where $\\kappa$ is the curvature of the curve.", True),
        ("with $\\kappa$ the width of the kernel", False),
        ("Write $\\lambda_t$ for the ratio of two rates", True),
        ("where $K$ is the number of pixels", False),  # shares the word "number": what a program cannot tell
        ("where $K$ is the size of the window", True),
        ("Let $h$ be the height of a wall.", False),  # not in the table
        ("Let $K$ be 2.", False),  # a value
        ("```{code-cell} ipython3\n# where $s$ is the sum\n```", False),
    ],
)
def test_a_second_meaning_is_found(sentence, wrong):
    assert bool(symbols.conflicts(sentence, NOTATION)) == wrong


def test_log_in_a_formula_is_found():
    assert symbols.logarithms("Take $\\log x$, not $\\ln x$ or `log`.\n\n$$\n\\log y\n$$ (eq-a)") == [
        "$\\log x$",
        "$$ \\log y $$",
    ]
    assert symbols.logarithms("```{code-cell} ipython3\nlabel = r'$\\log x$'\n```") == []


PROSE = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING")),
    *(path for folder in ("book", "notebooks", "smlmtut/weights") for path in sorted((ROOT / folder).rglob("*.md"))),
]
DOTTED = re.compile(r"(?<![\w/.])smlmtut\.(\w+(?:\.\w+)*)")
FILE = re.compile(r"(?<![\w/.])(?:smlmtut|tools|tests|benchmarks)/[\w/.-]+\.\w+")


def wrong_names(text: str) -> list[str]:
    """The files, and the names in the package, that a text mentions and that are not there."""
    wrong = [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    for name in DOTTED.findall(text):
        try:
            resolve(name)
        except LookupError:
            wrong.append(f"smlmtut.{name}")
    return wrong


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_pages_name_what_is_there(path):
    assert wrong_names(path.read_text(encoding="utf-8")) == []


def test_a_name_from_before_the_rooms_is_found():
    text = "`smlmtut.psf` and smlmtut/psf.py, not `smlmtut.imaging.psf.PSF.sigma`, smlmtut.io or tools/colab/myst.py"
    assert wrong_names(text) == ["smlmtut/psf.py", "smlmtut.psf"]


def test_the_example_of_the_readme_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("source", TAUGHT, ids=lambda path: path.stem)
def test_the_page_for_teachers_counts_the_exercises(source):
    text = (ROOT / "book" / "teaching" / "index.md").read_text(encoding="utf-8")
    row = re.search(rf"^\|.*/{source.stem}` \|.*\|.*\| (\d+) \|", text, re.M)
    names = [directive.name for directive in directives(source.read_text(encoding="utf-8"))]
    assert row and int(row[1]) == names.count("exercise") + names.count("exercise-start")


@pytest.mark.parametrize("source", TAUGHT, ids=lambda path: path.stem)
def test_a_chapter_and_the_page_for_teachers_state_the_same_times(source):
    text = source.read_text(encoding="utf-8")
    page = durations.TEACHING.read_text(encoding="utf-8")
    assert durations.row(source.stem, durations.exercises(text)) in page.splitlines()
    assert durations.written(source.stem, text) == text
    assert durations.study(source.stem) in text


def test_times_are_written_where_they_belong():
    source = TAUGHT[-1]
    written = durations.written(source.stem, source.read_text(encoding="utf-8"))
    assert durations.study(source.stem) in written
    assert durations.written(source.stem, written) == written
    old = written.replace(durations.study(source.stem), "a day.")
    assert durations.written(source.stem, old) == written
    assert durations.HEAD in durations.TEACHING.read_text(encoding="utf-8")


@pytest.mark.parametrize("source", run_chapters.chapters(), ids=lambda path: path.stem)
def test_a_chapter_states_the_running_time_that_was_measured(source):
    start = source.read_text(encoding="utf-8").partition("## Before you start")[2].partition("```{code-cell}")[0]
    text, sentence = " ".join(start.split()), durations.sentence(durations.MEASURED[source.stem])
    assert text.count(sentence) == 1
    assert not re.findall(r"\b(?:seconds?|minutes?)\b", text.replace(sentence, ""))  # and no other


ERRATA = ROOT / "notebooks" / "90_errata.md"


def test_every_row_of_the_errata_has_a_label_and_a_claim():
    text = ERRATA.read_text(encoding="utf-8")
    rows = re.split(r"^\(errata-(\d+)\)=\n", text.partition("## All rows at a glance")[0], flags=re.M)[1:]
    assert [int(number) for number in rows[::2]] == list(range(1, 19))
    for number, section in zip(rows[::2], rows[1::2], strict=True):
        assert re.match(rf"## {number}\. ", section)
        named = re.findall(r'(?:check\(f?|name = )"(\d+): ', section)
        assert named and set(named) == {number}, f"row {number} claims {named}"


def test_mentions_of_errata_are_rows_that_exist():
    for path in [*TAUGHT, *(ROOT / "smlmtut").rglob("*.py")]:
        numbers = re.findall(r"\berrat(?:um|a) (\d+)", path.read_text(encoding="utf-8"))
        assert all(1 <= int(number) <= 18 for number in numbers), path


@pytest.mark.parametrize(
    ("fast", "slow", "expected"),
    [
        (18, None, "about 20 seconds on one CPU core with AVX-512."),
        (2, None, "about 5 seconds on one CPU core with AVX-512."),
        (64, 128, "about 65 seconds on one CPU core with AVX-512, in about 2 minutes without."),
        (363, 793, "about 6 minutes on one CPU core with AVX-512, in about 13 minutes without."),
    ],
)
def test_running_times_in_words(fast, slow, expected):
    assert durations.sentence({"AVX-512": fast, "AVX2 only": slow}) == f"The cells run in {expected}"


def test_one_address_of_the_repository():
    url, pages = CONFIG["repository"]["url"], CONFIG["html"]["baseurl"].rstrip("/")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["urls"] == {"Repository": url, "Book": pages}
    assert (citation["repository-code"], citation["url"]) == (url, pages)
    owner_and_name = url.removeprefix("https://github.com/")
    branch = CONFIG["repository"]["branch"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"https://colab\.research\.google\.com/github/([^)\s]+)", readme)
    wanted = [f"{owner_and_name}/blob/{branch}/notebooks/{path.stem}.ipynb" for path in run_chapters.chapters()]
    assert badges == wanted


def test_launch_row_follows_the_address():
    links = chapter_head.launch_links("https://github.com/who/what/", "trunk", "notebooks/01_x")
    assert [address for _, address, _ in links] == [
        "https://colab.research.google.com/github/who/what/blob/trunk/notebooks/01_x.ipynb",
        "https://github.com/who/what/blob/trunk/notebooks/01_x.ipynb",
        "https://github.com/who/what/blob/trunk/notebooks/01_x.md",
    ]


CHAPTER = f"""---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A small chapter, with $x$

```{{code-cell}} ipython3
:tags: [parameters]
{PARAMETERS}
```

```{{code-cell}} ipython3
print("never run")
```
"""


def executed(source: Path) -> nbformat.NotebookNode:
    """The chapter as a run would leave it, made without a kernel, with one claim."""
    notebook = run_chapters.jupytext.read(source)
    claim = {
        "name": "a <ratio>",
        "enforced": True,
        "holds": True,
        "profile": "book",
        "shown": "1.01 px",
        "allowed": "0.97 … 1.03 px",
    }
    output = nbformat.v4.new_output("display_data", data={"text/plain": "row"}, metadata={"smlmtut": {"claim": claim}})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[1].outputs, code[1].execution_count = [output], 2
    injected = nbformat.v4.new_code_cell("x = 1", metadata={"tags": [run_chapters.INJECTED]})
    notebook.cells.insert(2, injected)
    return notebook


API = ("book/api", "book/package", "book/notation")


@pytest.fixture
def small_book(tmp_path):
    """A book of one chapter, in a folder whose name has a space."""
    site = tmp_path / "a small book"
    (site / "notebooks").mkdir(parents=True)
    (site / "notebooks" / "01_small.md").write_text(CHAPTER, encoding="utf-8")
    shutil.copytree(ROOT / "book", site / "book")
    shutil.copytree(ROOT / "tools", site / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for page in ("intro", "package", "notation"):  # the true ones refer to chapters
        (site / "book" / f"{page}.md").write_text(f"# {page}\n", encoding="utf-8")
    (site / "_config.yml").write_text((ROOT / "_config.yml").read_text(encoding="utf-8"), encoding="utf-8")
    pages = [{"file": page} for page in ("notebooks/01_small", "book/claims", "book/setup", *API)]
    toc = {"format": "jb-book", "root": "book/intro", "chapters": pages}
    (site / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    return site


def build(site: Path) -> tuple[int, str]:
    """Build strictly; the exit code and the log."""
    command = [sys.executable, "-c", build_book.CALL, "build", ".", "--all", "-W", "-n", "--keep-going"]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_seeded_book_builds_from_the_cache_and_lists_its_claims(small_book):
    source = small_book / "notebooks" / "01_small.md"
    run_chapters.seed_cache(source, executed(source), small_book / "_build" / ".jupyter_cache")
    code, log = build(small_book)
    assert code == 0, log
    assert build_book.executed(log) == []
    html = small_book / "_build" / "html"
    claims = (html / "book" / "claims.html").read_text(encoding="utf-8")
    assert "1 of 1 checked claims hold in profile book." in claims
    assert "a &lt;ratio&gt;" in claims and 'href="../notebooks/01_small.html"' in claims
    chapter = (html / "notebooks" / "01_small.html").read_text(encoding="utf-8")
    assert "/blob/main/notebooks/01_small.ipynb" in chapter and "launch-row" in chapter
    assert "cdn.jsdelivr.net/npm/mathjax" in chapter and not (html / "_static" / "mathjax").exists()
    faults = set(mend.problems(chapter))  # of a build as it comes
    assert "a form has no button that sends it" in faults
    mend.mend_site(html)
    assert mend.problems((html / "notebooks" / "01_small.html").read_text(encoding="utf-8")) == []
    assert not missing_from_api((html / "book" / "api.html").read_text(encoding="utf-8"))


def missing_from_api(page: str) -> list[str]:
    """The public functions and classes of the package that have no entry with a link to their source."""
    soup = BeautifulSoup(page, "html.parser")
    wanted = [
        n for room in (*api_page.ROOMS, *api_page.TOP) for m in api_page.modules(room) for n in api_page.public(m)
    ]
    assert len(wanted) > 250
    entries = {name: soup.find(id=name) for name in wanted}
    return [name for name, entry in entries.items() if not (entry and entry.select('a[href*="_modules/"]'))]


def test_every_room_is_on_the_api_page():
    assert {*api_page.ROOMS, "cli"} == set(smlmtut.ROOMS)  # the commands have --help
    text = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{api\} (\w+)$", text, re.M) == [*api_page.ROOMS, *api_page.TOP]
    for room in api_page.ROOMS:
        shown = {name for module in api_page.modules(room) for name in api_page.public(module)}
        hidden = set(api_page.face(room)) - shown
        assert all("._" in name for name in hidden), hidden


def test_a_book_with_its_own_mathjax_needs_no_network(tmp_path, monkeypatch):
    source, target = offline_math.package(tmp_path) / "es5", tmp_path / "_build" / "html"
    for part in offline_math.PARTS:
        name = part if part.endswith(".js") else f"{part}/file.js"
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("//", encoding="utf-8")
    config = SimpleNamespace(mathjax_path="https://cdn")
    app = SimpleNamespace(srcdir=tmp_path, outdir=target, config=config, builder=SimpleNamespace(format="html"))
    offline_math.take_own(app, config)  # type: ignore[arg-type]
    offline_math.copy_own(app, None)  # type: ignore[arg-type]
    assert config.mathjax_path == "mathjax/tex-mml-chtml.js"
    assert (target / "_static" / config.mathjax_path).is_file()
    assert (target / "_static/mathjax/output/chtml/fonts/woff-v2/file.js").is_file()
    monkeypatch.setattr(offline_math.shutil, "which", lambda name: None)
    assert offline_math.fetch(tmp_path) == ""  # it is there
    assert "no npm" in offline_math.fetch(tmp_path / "elsewhere")


def test_an_unseeded_book_still_builds_and_the_log_tells_that_a_chapter_ran(small_book):
    code, log = build(small_book)
    assert code == 0, log
    assert build_book.executed(log) == ["01_small.md"]
    claims = (small_book / "_build" / "html" / "book" / "claims.html").read_text(encoding="utf-8")
    assert "The cache holds no run with claims" in claims


def test_a_run_of_another_source_does_not_seed_the_cache(small_book):
    source = small_book / "notebooks" / "01_small.md"
    ran = executed(source)
    source.write_text(CHAPTER.replace("never run", "changed since"), encoding="utf-8")
    with pytest.raises(ValueError, match="01_small.md is not the source of the executed notebook"):
        run_chapters.seed_cache(source, ran, small_book / "_build" / ".jupyter_cache")
    assert not (small_book / "_build").exists()
