"""The tool that runs the chapters: what runs again, in which order, and what it tells about a cell that fails."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
import torch

from tools import peak_memory, run_chapters
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
    assert timings["machine"].keys() == {"cores", "avx512", "bf16"} and timings["machine"]["cores"] == os.cpu_count()


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


def test_a_fingerprint_knows_which_folder_a_file_is_in_but_not_where_the_project_lies(project, tmp_path, monkeypatch):
    def fingerprint(root):
        monkeypatch.setattr(run_chapters, "ROOT", root)
        return run_chapters.fingerprint(root / "notebooks" / "01_one.md", "smoke", "cpu")

    rooms = [project / "smlmtut" / room / "progress.py" for room in ("io", "localize")]
    for path, text in zip(rooms, ("x = 1\n", "x = 2\n"), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    before = fingerprint(project)
    assert fingerprint(shutil.copytree(project, tmp_path / "elsewhere")) == before
    for path, text in zip(rooms, ("x = 2\n", "x = 1\n"), strict=True):
        path.write_text(text)
    swapped = fingerprint(project)
    rooms[0].parent.rename(project / "smlmtut" / "imaging")  # the same names and contents in the same order
    assert len({before, swapped, fingerprint(project)}) == 3


def makespan(seconds, jobs):
    """When the last chapter ends, if each chapter starts in turn as soon as one of so many jobs is free."""
    free = [0.0] * jobs
    for each in seconds:
        free[free.index(min(free))] += each
    return max(free)


def test_every_chapter_has_a_duration_and_the_longest_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(run_chapters, "BUILD", tmp_path)  # a fresh clone
    sources, seconds = run_chapters.chapters(), run_chapters.known_seconds("book")
    assert [source.stem for source in sources] == sorted(seconds)
    ordered = [seconds[source.stem] for source in run_chapters.longest_first(sources, seconds)]
    assert ordered == sorted(seconds.values(), reverse=True)
    for jobs in (2, 3, 4):  # two jobs: 373 s, in the order of the book 525 s, and no order is faster than 368 s
        assert makespan(ordered, jobs) <= makespan((seconds[source.stem] for source in sources), jobs)


def test_durations_of_the_last_run_go_before_the_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(run_chapters, "BUILD", tmp_path)
    stamps = tmp_path / "executed" / "book"
    stamps.mkdir(parents=True)
    first, *others = run_chapters.chapters()
    (stamps / f"{first.stem}.json").write_text(json.dumps({"report": {"seconds": 1e4}}))
    assert run_chapters.known_seconds("book")[first.stem] == 1e4 != run_chapters.known_seconds("smoke")[first.stem]
    new = first.with_name("99_new.md")  # nobody knows how long: the worst would be to start it last
    assert run_chapters.longest_first([*others, first, new], run_chapters.known_seconds("book"))[:2] == [new, first]


@pytest.mark.parametrize(
    ("changed", "order", "threads"),
    [
        (["01_one", "02_two", "03_three"], ["03_three", "02_two", "01_one"], 2),
        (["02_two", "01_one"], ["02_two", "01_one"], 2),
        (["02_two"], ["02_two"], 4),  # alone
        ([], [], None),
    ],
)
def test_jobs_take_the_longest_first_and_share_the_cores(project, ran, monkeypatch, changed, order, threads):
    (project / "notebooks" / "03_three.md").write_text(HEADER)
    run_chapters.main([])
    ran.clear()
    for seconds, name in enumerate(("01_one", "02_two", "03_three"), start=1):
        stamp = project / "_build" / "executed" / "book" / f"{name}.json"
        saved = json.loads(stamp.read_text())
        saved["report"]["seconds"] = seconds
        stamp.write_text(json.dumps(saved))
    for name in changed:
        (project / "notebooks" / f"{name}.md").write_text(HEADER + "\nMore.\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is put back after the test
    monkeypatch.setattr(run_chapters.os, "cpu_count", lambda: 4)
    seen, one_by_one = [], ThreadPoolExecutor(1)
    monkeypatch.setattr(run_chapters, "ProcessPoolExecutor", lambda jobs, mp_context: one_by_one)
    stand_in = run_chapters.run_chapter
    monkeypatch.setattr(run_chapters, "run_chapter", lambda *a: seen.append(run_chapters.threads()) or stand_in(*a))
    assert run_chapters.main(["--jobs", "2"]) == 0
    assert ran == order and set(seen) == ({threads} if threads else set())


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
    assert report.threads == run_chapters.threads() >= 1
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


def test_the_claims_of_a_box_are_read_too():
    v, claims = nbformat.v4, [{"name": str(k), "holds": True, "enforced": True} for k in range(3)]
    outputs = [
        v.new_output("display_data", data={}, metadata={"smlmtut": content})
        for content in ({"claims": claims[:2]}, {"claim": claims[2]})
    ]
    report = Report("01_one", "book")
    run_chapters.read_results(report, v.new_notebook(cells=[v.new_code_cell("x", outputs=outputs)]))
    assert report.claims == claims


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


@kernel
def test_the_peak_memory_is_that_of_the_kernel_and_leaves_no_cell(project, tmp_path):
    source = project / "notebooks" / "01_one.md"
    source.write_text(HEADER + "\n```{code-cell} ipython3\nheld = bytearray(300_000_000)\n```\n")
    large = run_chapters.run_chapter(source, "smoke", "cpu", tmp_path / "out")
    done = nbformat.read(tmp_path / "out" / "01_one.ipynb", as_version=4)
    run_chapters.seed_cache(source, done, tmp_path / "cache")  # compares the cells with those of the source
    source.write_text(HEADER)
    small = run_chapters.run_chapter(source, "smoke", "cpu", tmp_path / "out")
    assert not large.error and not small.error
    assert [first for _, first in large.cells][-1].startswith("held = ")
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak of a process's memory")
    assert large.memory.keys() == small.memory.keys() == {"host"}  # a kernel without CUDA says nothing of a GPU
    # bytearray fills its pages; what else the kernels need differs by less than a fifth of that
    assert large.memory["host"] - small.memory["host"] == pytest.approx(300e6, rel=0.2)


@kernel
def test_a_chapter_that_fails_tells_no_peak_memory(project, tmp_path):
    source = project / "notebooks" / "01_one.md"
    source.write_text(HEADER + "\n```{code-cell} ipython3\n1 / 0\n```\n")
    report = run_chapters.run_chapter(source, "smoke", "cpu", tmp_path / "out")
    assert "ZeroDivisionError" in report.error and report.memory == {}
    done = nbformat.read(tmp_path / "out" / "01_one.ipynb", as_version=4)
    assert not [cell for cell in done.cells if peak_memory.TAG in cell.metadata.get("tags", [])]


def test_what_torch_says_of_the_gpu_is_what_is_told(monkeypatch):
    told = []
    monkeypatch.setattr("IPython.display.display", lambda *_, metadata, raw: told.append(metadata))
    for name, value in {
        "is_available": True,
        "is_initialized": True,
        "max_memory_allocated": 5,
        "max_memory_reserved": 7,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    peak_memory.report()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    peak_memory.add(notebook)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", data={}, metadata=told[0])]
    peak = peak_memory.take(notebook)
    assert (peak["allocated"], peak["reserved"]) == (5, 7)
    assert [cell.source for cell in notebook.cells] == ["x = 1"] and peak_memory.take(notebook) == {}
