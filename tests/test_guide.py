"""The guide for teachers: what it refers to is there, its minutes add up, its courses are complete, its code runs."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

import smlmtut
from tools import contract, course, durations, run_chapters
from tools.colab.book import Book
from tools.questions import bank

ROOT = run_chapters.ROOT
TEACHING = ROOT / "book" / "teaching"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEACHING.glob("*.md"))}
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in run_chapters.chapters()}
TAUGHT = [stem for stem in SOURCES if not stem.startswith(contract.APPENDIX)]
BANKS = {made.chapter: made for made in bank.read_all()}
QUESTIONS = {question.id: question for made in BANKS.values() for question in made.questions}

PARTS = ["Objectives", "Misconceptions", "On the board", "Live", "90 minutes", "Exercises"]
WITHIN = ("*They must know:*", "*Not on the board:*", "**Short of time?** Leave out")
CHAPTERS = "image|likelihood|fisher|fit|kde|deepstorm|posterior|diffusion|cddpm|bakeoff|fast|experiment"
QUESTION = re.compile(rf"`((?:{CHAPTERS})-[a-z0-9-]+)`")
HEADING = re.compile(r"\[([^\]]+)\]\(\.\./\.\./notebooks/(\w+)\.md#([^)]+)\)")
HERE = re.compile(r"\[([^\]]+)\]\(#([^)]+)\)")
ROLE = re.compile(r"\{(eq|numref|ref)\}`(?:([^`<]*)<)?([^`<>]+)>?`")
KINDS = {"eq": {"equation"}, "numref": {"figure"}, "ref": {"exercise", "section", "target"}}
STRING = re.compile(r"\b(?:slider|claim) \*([^*]+)\*")  # as it stands in the code of a chapter
MAKE = re.compile(r"`make ([a-z-]+)[^`]*`")
NAME = re.compile(rf"`((?:{'|'.join(smlmtut.MODULES)}|recipes|rivals)\.\w+)(?:\([^`]*\))?`")
CODE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def page_of(stem):
    """The page of a chapter."""
    return PAGES[f"chapter_{stem[:2]}"]


def rows(text):
    """The cells of all lines of tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def section(text, title):
    """What stands below a heading of second level."""
    return re.split(r"^## ", text.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def targets():
    """The commands of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def there(name):
    """Whether room.name, or networks' recipes.name and rivals.name, exists."""
    module, attribute = name.split(".")
    place = f"smlmtut.{'networks.' if module in ('recipes', 'rivals') else ''}{module}"
    return hasattr(import_module(place), attribute)


def unknown(book, name, text):
    """What a page of the guide refers to and that is not there."""
    wrong = [m[0] for m in QUESTION.finditer(text) if m[1] not in QUESTIONS]
    for title, stem, slug in HEADING.findall(text):
        label = book.headings.get((f"notebooks/{stem}", slug))
        wrong += [] if label and label.title == title else [f"{title} in {stem}"]
    wrong += [slug for _, slug in HERE.findall(text) if (f"book/teaching/{name}", slug) not in book.headings]
    for role, title, target in ROLE.findall(text):
        label = book.labels.get(target.lower())
        good = label and label.kind in KINDS[role]
        if good and label.kind == "exercise":  # by its title, without the difficulty
            good = re.sub(r" \([^()]*\)$", "", label.title) == title.strip()
        wrong += [] if good else [target]
    code = "".join(SOURCES.values())
    wrong += [found for found in STRING.findall(text) if f'"{found}"' not in code]
    wrong += [found for found in NAME.findall(text) if not there(found)]
    return wrong + [found for found in MAKE.findall(text) if found not in targets()]


@pytest.fixture(scope="module")
def book():
    return Book(ROOT)


# What the pages refer to


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_refers_to_is_there(book, name):
    assert unknown(book, name, PAGES[name]) == []


@pytest.mark.parametrize(
    "text",
    [
        "`image-hot-shares`",
        "[Two molecules](../../notebooks/01_image_formation.md#two-molecule)",
        "[Two spots](../../notebooks/01_image_formation.md#two-molecules)",
        "[a project](#no-such-project)",
        "{numref}`fig-image-none`",
        "{numref}`ex-image-budget`",
        "{ref}`Row 99 <errata-99>`",
        "{ref}`A photon count <ex-image-budget>`",
        "{eq}`eq-image-none`",
        "the slider *photon N*",
        "the claim *a claim of no chapter*",
        "`make coffee`",
        "`data.af647_film()`",
        "`rivals.Oracle`",
    ],
)
def test_a_wrong_reference_is_found(book, text):
    assert len(unknown(book, "projects", text)) == 1


@pytest.mark.parametrize("stem", TAUGHT)
def test_figures_and_exercises_on_a_chapters_page_are_its_own(book, stem):
    labels = [book.labels[target.lower()] for role, _, target in ROLE.findall(page_of(stem)) if role != "eq"]
    own = [label for label in labels if not label.page.endswith("90_errata")]
    assert {label.page for label in own} == {f"notebooks/{stem}"}
    assert {"figure", "exercise"} <= {label.kind for label in own}


# A page for each chapter


@pytest.mark.parametrize("stem", SOURCES)
def test_every_chapter_has_a_page_with_all_its_parts(stem):
    text = page_of(stem)
    assert re.findall(r"^## (.+)$", text, re.M) == PARTS
    assert f"{{doc}}`../../notebooks/{stem}`" in text
    assert [part for part in WITHIN if part not in text] == []
    assert 4 <= len(re.findall(r"^- ", section(text, "Objectives"), re.M)) <= 8
    assert re.search(r"^\d\. ", section(text, "On the board"), re.M)
    assert len(re.findall(r"\{numref\}|slider \*|\.md#", section(text, "Live"))) >= 2
    seconds = durations.MEASURED[stem]["AVX-512"]
    assert f"Its cells run in about {durations.in_words(seconds)}" in text
    assert len(HEADING.sub(r"\1", text).split()) <= 1000  # five minutes


def test_the_pages_are_in_the_table_of_contents_and_on_the_entrance():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    (entrance,) = [c for part in toc["parts"] for c in part["chapters"] if c["file"] == "book/teaching/index"]
    listed = [page["file"].removeprefix("book/teaching/") for page in entrance["sections"]]
    assert sorted([*listed, "index"]) == sorted(PAGES)
    named = re.findall(r"\{doc\}`(?:[^`<]*<)?(\w+)>?`", PAGES["index"])
    assert set(listed) <= set(named)


@pytest.mark.parametrize("stem", TAUGHT)
def test_a_page_meets_every_misconception_of_the_bank(stem):
    named = set(QUESTION.findall(section(page_of(stem), "Misconceptions")))
    of_chapter = {question.id: question.kind for question in BANKS[stem].questions}
    assert named <= set(of_chapter)
    assert {name for name, kind in of_chapter.items() if kind == "misconception"} <= named


@pytest.mark.parametrize("stem", TAUGHT)
def test_exercises_that_are_called_tested_have_a_test_cell(book, stem):
    solutions = course.Student(book, book.pages[f"notebooks/{stem}"]).code_of
    text = section(page_of(stem), "Exercises")
    found = re.findall(r"^- \{ref\}`[^`<]+<(ex-[\w-]+)>`( \(tested\))?", text, re.M)
    named = {label: bool(mark) for label, mark in found}
    assert set(named) == set(re.findall(r"^:label: (ex-[\w-]+)", SOURCES[stem], re.M))
    assert named == {label: bool(course.split(solutions.get(label, [])).test) for label in named}


# Minutes


def minutes(table):
    """The minutes of a table's rows, and its total; rows begin with a number."""
    numbers = [row for row in table if re.fullmatch(r"\*{0,2}\d+\*{0,2}", row[0])]
    *parts, total = numbers
    assert total[0].startswith("**")
    assert not any(row[0].startswith("**") for row in parts)
    return [(int(row[0]), row) for row in parts], int(total[0].strip("*"))


@pytest.mark.parametrize("stem", SOURCES)
def test_the_minutes_of_a_chapter_add_up_to_90(stem):
    parts, total = minutes(rows(section(page_of(stem), "90 minutes")))
    assert sum(part for part, _ in parts) == total == 90
    assert {how for _, row in parts for how in row[2].split(", ")} <= {"talk", "board", "live", "pairs", "exercise"}
    if stem in TAUGHT:  # the rest of the lecture's time is for exercises
        assert sum(part for part, row in parts if row[2] != "exercise") == durations.STUDY[stem]["lecture"]


@pytest.mark.parametrize(
    ("name", "title", "total"), [("courses", "One afternoon", 240), ("first_class", None, 15)], ids=str
)
def test_other_minutes_add_up(name, title, total):
    parts, stated = minutes(rows(section(PAGES[name], title) if title else PAGES[name]))
    assert sum(part for part, _ in parts) == stated == total


def test_hours_of_the_long_course_are_those_of_the_chapters():
    hours = {what: round(sum(times[what] for times in durations.STUDY.values()) / 60) for what in ("read", "exercises")}
    assert f"reading takes {hours['read']} hours in all and the exercises {hours['exercises']}" in PAGES["courses"]


def test_the_20_minute_paths_are_as_long_as_the_guide_says():
    ((low, high),) = re.findall(r"open text is between (\d+) and (\d+) words", PAGES["courses"])
    for stem in TAUGHT:
        cells = contract.shown(jupytext.reads(SOURCES[stem], fmt="md:myst"))
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        parts = re.split(r"^##+ .+$", text, flags=re.M)
        assert int(low) <= sum(len(part.split()) for part in parts if contract.PATH in part[:60]) <= int(high)


# Courses


@pytest.mark.parametrize(("title", "sessions"), [("Twelve weeks", 12), ("Five days", 10)])
def test_a_course_covers_every_chapter_and_asks_what_is_no_self_test(title, sessions):
    given, done = re.findall(r"(?:^\|.*\n)+", section(PAGES["courses"], title), re.M)
    (_, _, *given), (_, _, *done) = rows(given), rows(done)
    assert len(given) == sessions
    assert [row[0] for row in given] == [row[0] for row in done]
    covered = re.findall(r"\{doc\}`\.\./\.\./notebooks/(\w+)`", "".join("".join(row) for row in given + done))
    assert set(covered) == set(SOURCES)
    shown = {name for made in BANKS.values() for name in made.self_test}
    asked = QUESTION.findall("".join(row[-1] for row in done))
    assert asked
    assert not set(asked) & shown


def test_the_afternoon_says_which_chapters_it_leaves_out():
    text = section(PAGES["courses"], "One afternoon")
    taught, left = (set(re.findall(r"notebooks/(\w+)`", part)) for part in text.split("*Left out:*"))
    assert not taught & left
    assert taught | left == set(SOURCES)


# Projects, and the code of the guide


def test_code_fits_on_the_page():
    lines = [line for text in PAGES.values() for code in CODE.findall(text) for line in code.splitlines()]
    assert [line for line in lines if len(line) > contract.WIDEST] == []


PROJECTS = [
    pytest.param(title, text, id=title)
    for name in ("projects", "term_projects")
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGES[name], re.M | re.S)
]


@pytest.mark.parametrize(("title", "text"), PROJECTS)
def test_a_project_is_complete_and_its_first_step_runs(title, text):
    assert f"[{title}](#" in PAGES["projects"] + PAGES["term_projects"]
    assert [part for part in ("*Question.*", "*Data.*", "*Handed in.*", "*Stretch.*") if part not in text] == []
    head, _, *criteria = rows(text)
    assert head == ["Criterion", "2", "1", "0"]
    assert len(criteria) == 4
    assert all(len(row) == 4 and all(row) for row in criteria)
    (first_step,) = CODE.findall(text)
    exec(compile(first_step, title, "exec"), {})


def test_answers_are_graded_in_a_fresh_notebook(tmp_path):
    (script,) = [code for code in CODE.findall(section(PAGES["running"], "Grading"))]
    (tmp_path / "regrade.py").write_text(script, encoding="utf-8")
    marks = [f"Exercise {k} (A title (easy))" for k in (1, 2)]

    def notebook(name, answers, limits):
        cells = []
        for mark, answer, limit in zip(marks, answers, limits, strict=True):
            cells.append(new_code_cell(f"# Your code for {mark}\na = {answer}"))
            cells.append(new_code_cell(f"# @title Test of {mark}\nassert a < {limit}"))
        nbformat.write(new_notebook(cells=cells), tmp_path / name)

    notebook("fresh.ipynb", ("...", "..."), (2, 2))
    notebook("answers.ipynb", (1, 5), (9, 9))  # with tests that somebody made easier
    command = [sys.executable, "regrade.py", "fresh.ipynb", "answers.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"passes {marks[0]}", f"fails  {marks[1]}"]


def test_the_mark_by_which_answers_are_found_is_that_of_the_student_edition():
    text = Path(course.__file__).read_text(encoding="utf-8")
    (script,) = CODE.findall(section(PAGES["running"], "Grading"))
    for mark in ("# Your code for", "# @title Test of"):
        assert mark in text
        assert mark in script
