"""The chapter contract, as CONTRIBUTING.md tells it: what is wrong with a chapter's source, or with a run of it."""

import re
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import jupytext
import nbformat
import yaml

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.colab.myst import Block, parse

PARAMETERS = 'profile = "book"  # "smoke", "book" or "full"\ndevice = "auto"  # "auto", "cpu", "cuda" or "mps"'
SECTIONS = ("What you will be able to do", "Before you start", "Summary", "Exercises", "Further reading")
APPENDIX = "90_"  # an appendix is looked up, not studied: it has no objectives, no summary and no exercises
APPENDIX_SECTIONS = ("Before you start", "Further reading")
LONGEST_CELL = 18  # lines
WIDEST = 95  # characters of a line of code that fit on a page of 1280 px; two fewer in a solution
MOST_IMPORTS = 6  # of the package: one from each room that the chapter uses
PATH = "{bdg-secondary}`20-minute path`"  # stands below the headings of what a reader in a hurry reads
MOST_VISIBLE = 35_000  # characters of text and code that a reader meets with all boxes closed
MOST_CLAIMS = 8  # rows of claims that stand open, without those of solutions
HIDDEN = {"hide-cell", "hide-input", "remove-cell", "remove-input"}
GATE = re.compile(r"^`{3,}\{solution-(start|end)\}.*?^`{3,}[ ]*$", re.M | re.S)
SLIDER = re.compile(r"""<input\b[^>]*\btype=["']?range""")


def is_appendix(source: Path) -> bool:
    """Whether a chapter is an appendix, by its file name."""
    return source.name.startswith(APPENDIX)


def source_problems(text: str, appendix: bool = False) -> list[str]:
    """What the source of a chapter, or of an appendix, lacks; empty if nothing."""
    notebook = jupytext.reads(text, fmt="md:myst")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = [*header_problems(text), *start_problems(code), *section_problems(prose, appendix)]
    found += [*figure_problems(code), *prediction_problems(prose), *path_problems(prose)]
    found += [] if appendix else exercise_problems(notebook)
    if left := re.search(r"\b(?:TODO|FIXME|XXX|RUNTIME)\b", text):
        found.append(f"something is left open: {left[0]}")
    imports = sum(len(re.findall(r"^\s*(?:from|import) smlmtut\b", cell.source, re.M)) for cell in code)
    if imports > MOST_IMPORTS:
        found.append(f"smlmtut is imported in {imports} statements, more than {MOST_IMPORTS}: import from the rooms")
    for cell in code:
        lines, first = len(cell.source.splitlines()), cell.source.strip().partition("\n")[0]
        if lines > LONGEST_CELL:
            found.append(f"a cell has {lines} lines, more than {LONGEST_CELL}: {first!r}")
        wide = [line for line in cell.source.splitlines() if len(line) > WIDEST]
        if wide and not HIDDEN & set(cell.metadata.get("tags", [])):
            found.append(f"a line of code has {len(wide[0])} characters, more than {WIDEST}: {wide[0]!r}")
        if re.search(r"^\s*[%!]", cell.source, re.M):
            found.append(f"a cell uses a magic or a shell command, which is not Python: {first!r}")
    return found


def header_problems(text: str) -> list[str]:
    """jupytext's MyST header and the kernelspec: without both, Jupyter Book takes the page for plain text."""
    match = re.match(r"---\n(.*?)^---\n", text, re.M | re.S)
    header, found = (yaml.safe_load(match[1]) if match else {}), []
    if header.get("jupytext", {}).get("text_representation", {}).get("format_name") != "myst":
        found.append("the header has no jupytext text_representation with format_name: myst")
    if header.get("kernelspec", {}).get("name") != "python3":
        found.append("the header has no kernelspec with name: python3")
    return found


def start_problems(code: list[nbformat.NotebookNode]) -> list[str]:
    """The parameters cell, then the cell that starts the run, and a claim somewhere."""
    found = []
    if not code or "parameters" not in code[0].metadata.get("tags", []) or code[0].source != PARAMETERS:
        found.append(f"the first code cell is not the one tagged parameters that holds\n{PARAMETERS}")
    if not any("notebook.start(profile, device" in cell.source for cell in code[1:3]):
        found.append("no cell right after the parameters calls notebook.start(profile, device, …)")
    if not any("check(" in cell.source for cell in code):
        found.append("no cell checks a claim")
    return found


def section_problems(prose: str, appendix: bool = False) -> list[str]:
    """One title; the sections in their order; objectives; time, hardware, prerequisites; references."""
    sections = APPENDIX_SECTIONS if appendix else SECTIONS
    plain = re.sub(r"^(`{3,}).*?^\1\s*$", "", prose, flags=re.M | re.S)
    titles = re.findall(r"^# (.+)$", plain, re.M)
    headings = re.findall(r"^## (.+?)\s*$", plain, re.M)
    found = [] if len(titles) == 1 else [f"there must be one # title, got {titles}"]
    if [heading for heading in headings if heading in SECTIONS] != list(sections):
        return [*found, f"the sections {sections} must stand in this order, got {headings}"]
    bodies = dict(zip(headings, re.split(r"^## .+$", plain, flags=re.M)[1:], strict=True))
    if not appendix:
        objectives = len(re.findall(r"^(?:[-*]|\d+\.) ", bodies[SECTIONS[0]], re.M))
        if not 3 <= objectives <= 5:
            found.append(f"there must be 3 to 5 objectives as a list, got {objectives}")
    for words in (("time",), ("hardware",), ("prerequisites", "you need")):
        if not any(word in bodies["Before you start"].lower() for word in words):
            found.append(f"'Before you start' does not tell the {words[0]}")
    if "{cite" not in bodies["Further reading"]:
        found.append("'Further reading' cites nothing")
    return found


def figure_problems(code: list[nbformat.NotebookNode]) -> list[str]:
    """A caption that is a sentence, a name, and alt text that is not the caption."""
    found = []
    for cell in code:
        mystnb = cell.metadata.get("mystnb", {})
        if "figure" in mystnb:
            caption = str(mystnb["figure"].get("caption") or "").strip()
            alt = str(mystnb.get("image", {}).get("alt") or "").strip()
            name = mystnb["figure"].get("name") or "a figure without name"
            if not mystnb["figure"].get("name") or not caption.endswith((".", "!", "?")):
                found.append(f"{name}: a figure needs a name, and a caption that is a sentence")
            if len(alt) < 15 or alt == caption:
                found.append(f"{name}: a figure needs alt text that says what is to be seen")
    return found


def exercise_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """3 to 6 exercises, each with one solution that starts closed; one solution is code with a check."""
    tasks, solutions, checked, gate = [], [], False, False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            checked |= gate and "check(" in cell.source
            continue
        for directive in directives(cell.source):
            gate = (gate or directive.name == "solution-start") and directive.name != "solution-end"
            if directive.name in ("exercise", "exercise-start"):
                tasks.append(directive.options.get("label", ""))
            elif directive.name in ("solution", "solution-start"):
                solutions.append(directive)
    found = [] if 3 <= len(tasks) <= 6 else [f"there must be 3 to 6 exercises, got {len(tasks)}"]
    if Counter(tasks) != Counter(solution.argument for solution in solutions) or "" in tasks:
        found.append(f"exercises {tasks} and solutions {[s.argument for s in solutions]} do not pair up")
    for solution in solutions:
        if "dropdown" not in solution.options.get("class", "").split():
            found.append(f"the solution of {solution.argument} does not start closed: add :class: dropdown")
    if not checked:
        found.append("no solution between solution-start and solution-end has code with a check")
    return found


def prediction_problems(prose: str) -> list[str]:
    """A question to think about has one answer, which is closed."""
    found = []
    for box in directives(prose):
        if "predict" in str(box.options.get("class", "")).split():
            answers = [child for child in box.children if child.kind == "directive" and child.name == "dropdown"]
            if len(answers) != 1 or not any(child.kind == "text" for child in box.children):
                found.append(f"{box.argument!r} must hold a question and one {{dropdown}} with its answer")
    return found


def path_problems(prose: str) -> list[str]:
    """The badge of the 20-minute path stands right below headings, of two sections or more."""
    marked = len(re.findall(rf"^#{{2,3}} .+\n\n{re.escape(PATH)}$", prose, re.M))
    if prose.count(PATH) != marked or marked == 1:
        return [f"the badge {PATH} must stand alone right below the headings of two sections or more"]
    return []


def shown(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that a reader meets with all boxes closed; code whose input is hidden counts without its source.

    Left out: text within a closed box ({dropdown}, or an option :class: dropdown), and all between solution-start and
    solution-end.
    """
    cells, gate = [], False
    for cell in notebook.cells:
        kept = cell.copy()
        if cell.cell_type == "code":
            kept.source = "" if HIDDEN & set(cell.metadata.get("tags", [])) else cell.source
            cells += [] if gate else [kept]
            continue
        parts: list[str] = []
        for text, mark in zip_longest(GATE.split(cell.source)[::2], GATE.findall(cell.source)):
            parts += [] if gate else [text]
            gate = mark == "start" if mark else gate
        kept.source = without_closed("".join(parts))
        cells.append(kept)
    return cells


def without_closed(text: str) -> str:
    """A text without the bodies of its closed boxes, whose titles stay."""
    for box in directives(text):
        closed = box.name == "dropdown" or "dropdown" in str(box.options.get("class", "")).split()
        if closed:
            text = text.replace(box.text.strip("\n"), "", 1)
    return text


def visible_size(text: str) -> int:
    """Characters of a chapter's source that a reader meets with all boxes closed."""
    return sum(len(cell.source) for cell in shown(jupytext.reads(text, fmt="md:myst")))


def visible_claims(notebook: nbformat.NotebookNode) -> int:
    """Rows of claims of an executed chapter that stand open."""
    from smlmtut.notebook import METADATA_KEY  # here: it loads torch, which the source needs not

    outputs = [output for cell in shown(notebook) for output in cell.get("outputs", [])]
    return sum("claim" in output.get("metadata", {}).get(METADATA_KEY, {}) for output in outputs)


def directives(text: str) -> list[Block]:
    """The directives of a text in order, nested ones too."""
    found, blocks = [], parse(text, "the chapter")
    while blocks:
        block = blocks.pop(0)
        found += [block] if block.kind == "directive" else []
        blocks[:0] = block.children
    return found


def run_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What an executed chapter shows that it must not: text on stderr, a picture without caption and alt text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"{cell.source.partition(chr(10))[0]!r} prints to stderr: {output.text[:200]!r}")
            elif any(kind.startswith("image/") for kind in data) and not SLIDER.search(data.get("text/html", "")):
                if "figure" not in cell.metadata.get("mystnb", {}):
                    first = cell.source.partition("\n")[0]
                    found.append(f"{first!r} shows a picture without caption and alt text")
    return found


def main() -> int:
    """Print what is wrong with the chapters that are named; 1 if anything is."""
    bad = 0
    for name in sys.argv[1:]:
        path = Path(name)
        text = path.read_text(encoding="utf-8")
        found = source_problems(text, is_appendix(path)) + size_problems(text)
        for problem in found:
            print(f"{name}: {problem}")
            bad = 1
    return bad


def size_problems(text: str) -> list[str]:
    """A chapter that is longer than a reader finishes."""
    size = visible_size(text)
    return [f"{size} characters stand open, more than {MOST_VISIBLE}"] if size > MOST_VISIBLE else []


if __name__ == "__main__":
    sys.exit(main())
