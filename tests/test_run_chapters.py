"""The tool that runs the chapters: what runs again, and what it tells about a cell that fails."""

import json
import shutil

import nbformat
import pytest

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
    assert [report["cached"] for report in json.loads((project / "_build" / "timings.json").read_text())] == [
        True,
        True,
    ]


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
