"""The tool that runs the chapters: what runs again, and what it tells about a cell that fails."""

import json
import shutil

import nbformat
import pytest

from benchmarks import compare_claims
from tools import run_chapters
from tools.run_chapters import Report

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

```{code-cell} ipython3
:tags: [parameters]
profile = "book"
device = "auto"
```
"""
kernel = pytest.mark.filterwarnings("default")  # the Jupyter libraries' own warnings


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two chapters and a package, in a folder whose name has a space."""
    root = tmp_path / "a project"
    for folder in ("notebooks", "smlmtut"):
        (root / folder).mkdir(parents=True)
    (root / "smlmtut" / "psf.py").write_text("x = 1\n")
    for name in ("01_one", "02_two"):
        (root / "notebooks" / f"{name}.md").write_text(HEADER)
    monkeypatch.setattr(run_chapters, "ROOT", root)
    monkeypatch.setattr(run_chapters, "SOURCES", root / "notebooks")
    monkeypatch.setattr(run_chapters, "BUILD", root / "_build")
    return root


@pytest.fixture
def ran(monkeypatch):
    """Which chapters ran, in a stand-in that needs no kernel."""
    names = []

    def stand_in(source, profile, device, out, progress=False):
        names.append(source.stem)
        out.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(), out / f"{source.stem}.ipynb")
        failed = "BROKEN" in source.read_text()
        return Report(source.stem, profile, error="a cell failed" if failed else "")

    monkeypatch.setattr(run_chapters, "run_chapter", stand_in)
    return names


def test_a_second_run_runs_nothing(project, ran, capsys):
    assert run_chapters.main([]) == 0
    assert run_chapters.main([]) == 0
    assert ran == ["01_one", "02_two"]
    assert "0 of 2 chapters ran" in capsys.readouterr().out
    timings = json.loads((project / "_build" / "timings.json").read_text())
    assert [report["cached"] for report in timings["chapters"]] == [True, True]
    assert timings["profile"] == "book" and timings["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda root: (root / "notebooks" / "02_two.md").write_text(HEADER + "\nMore.\n"), ["02_two"]),
        (lambda root: (root / "smlmtut" / "psf.py").write_text("x = 2\n"), ["01_one", "02_two"]),
        (lambda root: (root / "smlmtut" / "new.py").write_text(""), ["01_one", "02_two"]),
        (lambda root: (root / "smlmtut" / "new.safetensors").write_text(""), ["01_one", "02_two"]),
        (lambda root: (root / "smlmtut" / "psf.py").rename(root / "smlmtut" / "p.py"), ["01_one", "02_two"]),
        (lambda root: shutil.rmtree(root / "_build" / "executed"), ["01_one", "02_two"]),
        (lambda root: (root / "_build" / "executed" / "book" / "01_one.ipynb").unlink(), ["01_one"]),
    ],
)
def test_what_changed_runs_again(project, ran, change, again):
    run_chapters.main([])
    ran.clear()
    change(project)
    run_chapters.main([])
    assert ran == again


def test_another_profile_or_device_and_force_run_again(project, ran):
    for arguments in (["01"], ["01", "--profile", "smoke"], ["01", "--device", "cpu"], ["01", "--device", "cpu"]):
        run_chapters.main(arguments)
    assert len(ran) == 3
    run_chapters.main(["01", "--device", "cpu", "--force"])
    assert ran == ["01_one"] * 4


def test_a_chapter_that_failed_runs_again_and_the_others_still_run(project, ran, capsys):
    (project / "notebooks" / "01_one.md").write_text(HEADER + "\nBROKEN\n")
    assert run_chapters.main([]) == 1
    assert ran == ["01_one", "02_two"]
    assert "FAILED: 01_one" in capsys.readouterr().out
    assert run_chapters.main([]) == 1
    assert ran == ["01_one", "02_two", "01_one"]


def test_an_unknown_chapter_is_named(project):
    with pytest.raises(SystemExit, match="no chapter is called 07; there are .*01_one"):
        run_chapters.main(["07"])


@kernel
def test_a_failing_cell_is_told_with_its_place_source_and_error(project, tmp_path):
    source = project / "notebooks" / "01_one.md"
    cell = "```{code-cell} ipython3\nhere = __import__('os').getcwd()\nprint(profile, device, here)\n```\n"
    bad = "```{code-cell} ipython3\ntotal = 1\ntotal / 0  # here\n```\n"
    source.write_text(HEADER + "\nWords.\n\n" + cell + "\n" + bad)
    report = run_chapters.run_chapter(source, "smoke", "cpu", tmp_path / "out")
    line = source.read_text().splitlines().index("total = 1") + 1
    assert report.error.startswith(f"01_one.md, code cell 3 of 3, line {line}\n")
    assert "total / 0  # here" in report.error and "ZeroDivisionError: division by zero" in report.error
    assert "\x1b" not in report.error
    notebook = nbformat.read(tmp_path / "out" / "01_one.ipynb", as_version=4)
    printed = [o.text for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert printed == [f"smoke cpu {project / 'notebooks'}\n"]


@kernel
def test_a_kernel_that_dies_is_an_error(project, tmp_path):
    source = project / "notebooks" / "01_one.md"
    source.write_text(HEADER + "\n```{code-cell} ipython3\n__import__('os')._exit(3)\n```\n")
    report = run_chapters.run_chapter(source, "smoke", "cpu", tmp_path / "out")
    assert "01_one.md: DeadKernelError" in report.error


def test_claims_are_read_and_a_name_that_stands_twice_is_an_error():
    v, claim = nbformat.v4, {"name": "ratio", "holds": True, "enforced": True}
    output = v.new_output("display_data", data={}, metadata={"smlmtut": {"claim": claim}})
    other = v.new_output("display_data", data={}, metadata={"other": 1})
    cells = [v.new_markdown_cell("x"), v.new_code_cell("\nfirst\nsecond", outputs=[other, output])]
    report = Report("01_one", "book")
    run_chapters.read_results(report, v.new_notebook(cells=cells))
    assert report.claims == [claim] and report.cells == [(0.0, "first")] and not report.error
    twice = v.new_code_cell("again", outputs=[output])
    run_chapters.read_results(report, v.new_notebook(cells=[*cells, twice]))
    assert "these stand twice: ['ratio']" in report.error


@kernel
def test_a_figure_is_drawn_whatever_backend_the_shell_names(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")  # which would leave the notebook without pictures
    source = project / "notebooks" / "01_one.md"
    head = "```{code-cell} ipython3\n---\nmystnb:\n  figure:\n    caption: One line.\n    name: fig-one\n---\n"
    draw = "import matplotlib.pyplot as plt\nplt.plot([0, 1]);\n```\n"
    source.write_text(HEADER + "\n" + head + draw)
    assert not run_chapters.run_chapter(source, "smoke", "cpu", tmp_path / "out").error
    source.write_text(HEADER + "\n" + head + "1 + 1\n```\n")
    report = run_chapters.run_chapter(source, "smoke", "cpu", tmp_path / "out")
    assert "these figures have a caption but no picture: ['fig-one']" in report.error


def test_two_files_of_one_name_are_told_apart(project):
    """Two rooms may hold one name: exchanging their contents changes what a chapter depends on."""
    for room, text in (("imaging", "x = 1"), ("posterior", "x = 2")):
        (project / "smlmtut" / room).mkdir()
        (project / "smlmtut" / room / "grid.py").write_text(text)
    source = project / "notebooks" / "01_one.md"
    before = run_chapters.fingerprint(source, "smoke", "cpu")
    (project / "smlmtut" / "imaging" / "grid.py").write_text("x = 2")
    (project / "smlmtut" / "posterior" / "grid.py").write_text("x = 1")
    assert run_chapters.fingerprint(source, "smoke", "cpu") != before


def test_a_last_run_is_remembered_before_the_table(project, ran):
    table = run_chapters.DURATIONS[run_chapters.MACHINES[0]]
    assert run_chapters.remembered("09_conditional_diffusion", "book") == table["09_conditional_diffusion"]
    assert run_chapters.remembered("99_new", "book") == 60
    run_chapters.main([])
    assert run_chapters.remembered("01_one", "book") == 0  # the stand-in takes no time


def makespan(seconds: list[float], jobs: int) -> float:
    """When the last of the chapters ends that start in this order, each as soon as one of the workers is free."""
    free = [0.0] * jobs
    for each in seconds:
        free[free.index(min(free))] += each
    return max(free)


def test_the_longest_first_ends_earlier():
    seconds = list(run_chapters.DURATIONS[run_chapters.MACHINES[0]].values())
    longest = sorted(seconds, reverse=True)
    assert makespan(longest, 2) <= 1.05 * max(sum(seconds) / 2, longest[0])  # no order can be better than that
    assert makespan(longest, 2) < 0.85 * makespan(seconds, 2)


def test_the_table_of_durations_knows_every_chapter():
    names = [path.stem for path in run_chapters.chapters()]
    for kind in run_chapters.MACHINES:
        assert list(run_chapters.DURATIONS[kind]) == names


@pytest.mark.parametrize("source", run_chapters.chapters(), ids=lambda path: path.stem)
def test_a_chapter_states_the_time_that_was_measured(source):
    assert run_chapters.running_time(source.stem) in source.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"1": {"a": "2.0"}}, []),
        ({"1": {"a": "2.1"}}, ["1: a was 2.0, is 2.1"]),
        ({"1": {}}, ["1: a was 2.0, is missing"]),
        ({"1": {"a": "2.0", "b": "1"}}, ["1: b is new, 1"]),
    ],
)
def test_claims_are_compared_by_their_printed_digits(now, told):
    assert compare_claims.differences({"1": {"a": "2.0"}}, now) == told
