"""Run the chapters once with papermill; the executed result feeds both the tests and the book.

A chapter runs again only if its source, the package, the profile or the libraries changed. With several jobs the
longest chapters run first, and the jobs share the cores. A chapter that runs alone has all cores.
Executed notebooks go to _build/executed/PROFILE/, timings and claims to _build/timings.json.
"""

import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from tqdm import tqdm

if not __package__:  # called as `python tools/run_chapters.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import peak_memory
from tools.machine import machine

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "notebooks"
BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"
DURATIONS = Path(__file__).with_name("durations.json")
INJECTED = "injected-parameters"


@dataclass
class Report:
    """What one run of a chapter gave: its time, the time of each code cell, claims, error, and peak memory."""

    chapter: str
    profile: str
    seconds: float = 0.0
    cells: list[tuple[float, str]] = field(default_factory=list)  # seconds, first line
    claims: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    cached: bool = False
    threads: int = 0  # that the kernel computed with
    memory: dict[str, int] = field(default_factory=dict)  # bytes, see peak_memory.report


def chapters(names: list[str] | None = None) -> list[Path]:
    """The chapters' sources in order; names picks some by the start of their file name."""
    found = sorted(SOURCES.glob("[0-9][0-9]_*.md"))
    if not names:
        return found
    picked = [path for path in found if any(path.name.startswith(Path(name).name) for name in names)]
    if missing := [n for n in names if not any(p.name.startswith(Path(n).name) for p in found)]:
        raise SystemExit(f"no chapter is called {', '.join(missing)}; there are {[p.stem for p in found]}")
    return picked


HASHED = (".py", ".safetensors", ".json", ".csv")  # of the package: code, weights, tables


def fingerprint(source: Path, profile: str, device: str) -> str:
    """Hash of all that a run depends on: the chapter, the package and its data, profile, device, Python, libraries."""
    digest = hashlib.sha256(f"{profile} {device} {sys.version}".encode())
    for library in ("torch", "numpy", "scipy", "matplotlib", "pandas", "scikit-image"):
        digest.update(f"{library} {version(library)}".encode())
    package = (path for path in (ROOT / "smlmtut").rglob("*.*") if path.suffix in HASHED)
    for path in [source, *sorted(package)]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def threads() -> int:
    """The threads that a kernel started now computes with."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(first) if first.isdigit() else os.cpu_count() or 1


def known_seconds(profile: str) -> dict[str, float]:
    """How long each chapter takes: in its last run of this profile, else as tools/durations.json says."""
    committed = json.loads(DURATIONS.read_text(encoding="utf-8"))["chapters"]
    seconds = {name: measured["AVX-512"] for name, measured in committed.items() if measured["AVX-512"]}
    for stamp in (BUILD / "executed" / profile).glob("*.json"):
        seconds[stamp.stem] = json.loads(stamp.read_text(encoding="utf-8"))["report"]["seconds"]
    return seconds


def longest_first(sources: list[Path], seconds: dict[str, float]) -> list[Path]:
    """The chapters, longest first, so that none runs alone at the end; before them those of unknown length."""
    return sorted(sources, key=lambda source: -seconds.get(source.stem, math.inf))


def run_chapter(source: Path, profile: str, device: str, out: Path, progress: bool = False) -> Report:
    """Run one chapter; the executed notebook goes to out/NAME.ipynb. An error is told in the report."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    os.environ.pop("MPLBACKEND", None)  # the kernel must draw inline, whatever this process was told
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait do not spin: ten times on a busy machine
    out.mkdir(parents=True, exist_ok=True)
    report, started = Report(source.stem, profile, threads=threads()), time.perf_counter()
    bar: Any = {"desc": f"{source.stem:<24}", "leave": False} if progress else False
    with TemporaryDirectory(dir=out) as folder:
        raw, done = Path(folder) / "in.ipynb", Path(folder) / "out.ipynb"
        notebook = jupytext.read(source)
        peak_memory.add(notebook)
        nbformat.write(notebook, raw)
        try:
            papermill.execute_notebook(
                raw,
                done,
                parameters={"profile": profile, "device": device},
                cwd=source.parent,
                kernel_name="python3",
                progress_bar=bar,
                start_timeout=120,
                extra_arguments=["--log-level=CRITICAL"],  # else the kernel comments on ports and shutdown
                execution_timeout=3600 if profile == "full" else 600,
            )
        except papermill.PapermillExecutionError as error:
            trace = error.traceback or [f"{error.ename}: {error.evalue}"]
            report.error = describe(source, error.source, "\n".join(trace))
        except (CellTimeoutError, DeadKernelError) as error:
            report.error = f"{source.name}: {type(error).__name__}: {error}"
        report.seconds = time.perf_counter() - started
        if done.exists():  # a failed run leaves its notebook too, up to the cell that failed
            notebook = nbformat.read(done, as_version=4)
            report.memory = peak_memory.take(notebook)
            read_results(report, notebook)
            nbformat.write(notebook, out / f"{source.stem}.ipynb")
    return report


def read_results(report: Report, notebook: nbformat.NotebookNode) -> None:
    """Fill in cell times and claims from an executed notebook.

    Two claims of one name are an error, and so is a cell with a caption that shows no picture.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            report.cells.append((cell.metadata.get("papermill", {}).get("duration") or 0.0, first))
    report.claims = claims_of(notebook)
    names = [claim["name"] for claim in report.claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        report.error += f"{report.chapter}: claims need names of their own, but these stand twice: {twice}"
    if not report.error and (blank := blank_figures(notebook)):
        report.error += f"{report.chapter}: these figures have a caption but no picture: {blank}"


def blank_figures(notebook: nbformat.NotebookNode) -> list[str]:
    """Names of the figures whose cell has no picture among its outputs."""
    figures = [(c.metadata.get("mystnb", {}).get("figure"), c) for c in notebook.cells if c.cell_type == "code"]
    shown = [any("image/png" in o.get("data", {}) for o in c.get("outputs", [])) for _, c in figures]
    return [f.get("name", "without a name") for (f, _), png in zip(figures, shown, strict=True) if f and not png]


def claims_of(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    """The claims that the code cells of an executed notebook recorded, in order."""
    outputs = (o for cell in notebook.cells if cell.cell_type == "code" for o in cell.get("outputs", []))
    records = (o.get("metadata", {}).get("smlmtut", {}) for o in outputs)
    return [dict(claim) for r in records for claim in [*r.get("claims", []), r.get("claim")] if claim]


def describe(source: Path, cell_source: str, trace: str) -> str:
    """The failing cell: chapter, number among the code cells, line in the .md, source, error."""
    cells = [cell.source for cell in jupytext.read(source).cells if cell.cell_type == "code"]
    count = f"code cell {cells.index(cell_source) + 1} of {len(cells)}" if cell_source in cells else "a cell"
    before = source.read_text(encoding="utf-8").partition(cell_source)[0]
    bar, plain = "-" * 78, re.sub(r"\x1b\[[0-9;]*m", "", trace)
    where = f"{source.name}, {count}, line {before.count(chr(10)) + 1}"
    return f"{where}\n{bar}\n{cell_source}\n{bar}\n{plain}"


def seed_cache(source: Path, executed: nbformat.NotebookNode, cache: Path = CACHE) -> None:
    """Put the outputs of a run into Jupyter Book's cache, so that the build reuses them.

    The cache matches by code cells with all their metadata, so the entry is made from the source's own
    cells. Raises ValueError where they differ from the cells that ran.
    """
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    notebook = jupytext.read(source)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    ran = [cell for cell in ran if INJECTED not in cell.metadata.get("tags", [])]
    if [cell.source for cell in cells] != [cell.source for cell in ran]:
        raise ValueError(f"{source.name} is not the source of the executed notebook: run it again")
    for cell, done in zip(cells, ran, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    if "widgets" in executed.metadata:
        notebook.metadata["widgets"] = executed.metadata["widgets"]
    seconds = sum(cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in ran)
    bundle = CacheBundleIn(notebook, str(source), data={"execution_seconds": seconds})
    get_cache(cache).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def unchanged(source: Path, profile: str, device: str) -> Report | None:
    """The report of the last run, if that had the same fingerprint and no error."""
    out = BUILD / "executed" / profile
    stamp = out / f"{source.stem}.json"
    if stamp.exists() and (out / f"{source.stem}.ipynb").exists():
        saved = json.loads(stamp.read_text(encoding="utf-8"))
        if saved["fingerprint"] == fingerprint(source, profile, device):
            return Report(**{**saved["report"], "cached": True})
    return None


def run_and_keep(source: Path, profile: str, device: str, progress: bool) -> Report:
    """Run a chapter, and keep its report if it had no error."""
    out = BUILD / "executed" / profile
    stamp, key = out / f"{source.stem}.json", fingerprint(source, profile, device)
    stamp.unlink(missing_ok=True)
    report = run_chapter(source, profile, device, out, progress)
    if not report.error:
        stamp.write_text(json.dumps({"fingerprint": key, "report": asdict(report)}), encoding="utf-8")
    return report


def tell(report: Report) -> None:
    """Print the line of a chapter, its slowest cells, and its error."""
    held = sum(claim["holds"] for claim in report.claims if claim["enforced"])
    checked = sum(claim["enforced"] for claim in report.claims)
    state = "unchanged" if report.cached else ("FAILED" if report.error else "ran")
    print(f"{report.chapter:<24} {state:<9} {report.seconds:7.1f} s   {held} of {checked} claims hold")
    if not report.cached:
        for seconds, line in sorted(report.cells, reverse=True)[:3]:
            if seconds >= 0.5:
                print(f"{'':<34} {seconds:7.1f} s   {line[:60]}")
    if report.error:
        print(f"\nFAILED: {report.error}\n", file=sys.stderr)
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run the chapters; 0 if none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="chapters, by the start of their file name; all if none")
    parser.add_argument("--profile", default="book", choices=["smoke", "book", "full"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--jobs", type=int, default=1, help="chapters at once, which share the cores")
    parser.add_argument("--force", action="store_true", help="run unchanged chapters too")
    parser.add_argument("--seed-cache", action="store_true", help="put the outputs into Jupyter Book's cache")
    args = parser.parse_args(arguments)
    sources, started = chapters(args.names), time.perf_counter()
    reports: dict[str, Report] = {}
    for source in sources:
        if not args.force and (report := unchanged(source, args.profile, args.device)):
            reports[source.stem] = report
            tell(report)
    waiting = [source for source in sources if source.stem not in reports]
    jobs = min(args.jobs, len(waiting))
    job = (args.profile, args.device, jobs == 1 and sys.stderr.isatty())
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        waiting = longest_first(waiting, known_seconds(args.profile))
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            running = [pool.submit(run_and_keep, source, *job) for source in waiting]
            bar = tqdm(as_completed(running), "chapters", len(running), leave=False, disable=not sys.stderr.isatty())
            for future in bar:
                reports[future.result().chapter] = future.result()
                with bar.external_write_mode():
                    tell(future.result())
    else:
        for source in waiting:
            reports[source.stem] = run_and_keep(source, *job)
            tell(reports[source.stem])
    ordered = [reports[source.stem] for source in sources]
    BUILD.mkdir(exist_ok=True)
    timings = {"machine": machine(), "profile": args.profile, "chapters": [asdict(r) for r in ordered]}
    (BUILD / "timings.json").write_text(json.dumps(timings, indent=1), encoding="utf-8")
    failed = [report.chapter for report in ordered if report.error]
    if args.seed_cache and not failed:
        for source in sources:
            path = BUILD / "executed" / args.profile / f"{source.stem}.ipynb"
            seed_cache(source, nbformat.read(path, as_version=4))
    wall, ran = time.perf_counter() - started, sum(not report.cached for report in ordered)
    print(f"profile {args.profile}: {ran} of {len(ordered)} chapters ran in {wall:.1f} s", end="")
    print(f"; FAILED: {', '.join(failed)}" if failed else "; no cell failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
