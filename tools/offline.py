"""Put all that a class without a network needs into one archive: _build/offline/smlmtut-offline.zip.

The built book, the course notebooks, slides and questions, the PDF if there is one, the sources with the weights, the
data files, and the list of the packages to install, each with its SHA-256; with `--wheels`, the packages themselves.
What the list names is for the Python and the system of the machine that writes it: write it on one like the class's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smlmtut import data
from tools import offline_math

ROOT = Path(__file__).resolve().parents[1]
NAME = "smlmtut-offline"
BUILT = {"html": "book", "course": "notebooks", "slides": "slides", "questions": "questions"}  # _build/… -> archive
NEEDS = [".[test]", "jupyterlab", "flit_core", "pip"]  # what a class runs, and what builds the package
UNTRACKED = ("_build", "runs", "dist")  # never part of the sources
TEXT = """\
From one photon to a calibrated posterior: everything for a class without a network
===================================================================================

book/index.html   the book: open it in a browser. Formulas and sliders need no network.
notebooks/        for each chapter a notebook for students and one with solutions
slides/           a deck for each chapter: open the .html in a browser; S shows the speaker's notes
questions/        the question bank for Moodle (.gift), Canvas (.qti.zip) and Jupyter (.json)
source/           the repository: chapters, package, weights of the networks, tests
data/             the data files, with their licences in data/SOURCES.txt
wheels.txt        the Python packages with their SHA-256, for {system}
{wheels}
Install on a machine without a network, in this folder. It needs Python {python}, with venv and pip:

    {venv}
    {pip} install --no-index --find-links wheels --require-hashes -r wheels.txt
    {pip} install --no-index --find-links wheels --no-deps --no-build-isolation ./source
    {setting}
    {lab} notebooks

The variable tells the chapters where the data are: set it in every new terminal. For the book's own commands,
`make book` and `make test` in source/, set PIP_NO_INDEX=1 and PIP_FIND_LINKS to the path of wheels/ as well.
"""


def missing(root: Path) -> list[str]:
    """The parts that are not built yet, by the command that builds them."""
    return [
        f"make {'book' if part == 'html' else part}" for part in BUILT if not any((root / "_build" / part).glob("*"))
    ]


def sources(root: Path) -> list[Path]:
    """The files of the repository, relative to it: those that git does not ignore, or in a copy without git all but
    hidden ones and what a build leaves."""
    if (root / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted(Path(name) for name in names if name and (root / name).is_file())
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        path
        for path in found
        if path.parts[0] not in UNTRACKED and not any(x.startswith(".venv") or x == "__pycache__" for x in path.parts)
    )


def requirements(report: dict) -> str:
    """The packages of pip's installation report, as a requirements file with hashes, one a line.

    Raises ValueError for a package without a hash, unless it is the book's own.
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if name == "smlmtut":
            continue
        if "sha256" not in hashes:
            raise ValueError(f"pip gives no SHA-256 for {name} {version}")
        lines.append(f"{name}=={version} --hash=sha256:{hashes['sha256']}")
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def resolved(root: Path) -> str:
    """What pip would install on a fresh machine, in the versions of constraints.txt."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", "constraints.txt", *NEEDS]
        subprocess.run(command, cwd=root, check=True)
        return requirements(json.loads(report.read_text(encoding="utf-8")))


def download(wheels: str, folder: Path) -> None:
    """The packages of a list, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list.txt").write_text(wheels, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--dest", str(folder), "-r", str(folder / "list.txt")], check=True)
    (folder / "list.txt").unlink()


def instructions(wheels: bool) -> str:
    """The archive's README, for the system of this machine."""
    windows = sys.platform == "win32"
    scripts = r".venv\Scripts\python" if windows else ".venv/bin/python"
    note = "wheels/           these packages\n"
    fetch = "python -m pip download --no-deps --require-hashes -d wheels -r wheels.txt"
    return TEXT.format(
        system=f"{sys.platform}, Python {sys.version_info.major}.{sys.version_info.minor}",
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        wheels=note if wheels else f"                  fetch them once, where there is a network: {fetch}\n",
        venv="python -m venv .venv" if windows else "python3 -m venv .venv",
        pip=f"{scripts} -m pip",
        setting=f"set {data.FOLDER_VARIABLE}=%CD%\\data" if windows else f'export {data.FOLDER_VARIABLE}="$PWD/data"',
        lab=f"{scripts} -m jupyterlab",
    )


def licences() -> str:
    """Origin, licence and hash of each data file."""
    return "\n\n".join(
        f"{s.name}: {s.title}\n  {s.url}\n  licence {s.licence}; SHA-256 {s.sha256}\n  unknown: {s.unknown}"
        for s in data.SOURCES.values()
    )


def contents(root: Path, wheels: str, folder: Path | None) -> Iterator[tuple[str, Path | str]]:
    """Name in the archive, and file or text, of everything in it."""
    yield "README.txt", instructions(folder is not None)
    yield "wheels.txt", wheels
    yield "data/SOURCES.txt", licences() + "\n"
    for name in data.SOURCES:
        yield f"data/{name}", data.fetch(name)
    for part, place in BUILT.items():
        for path in sorted((root / "_build" / part).rglob("*")):
            if path.is_file():
                yield f"{place}/{path.relative_to(root / '_build' / part).as_posix()}", path
    if (pdf := root / "_build" / "pdf" / "smlmtut.pdf").exists():
        yield pdf.name, pdf
    for path in sources(root):
        yield f"source/{path.as_posix()}", root / path
    for name in (offline_math.MATHJAX, offline_math.REVEAL):  # so that the book can be built again
        home = offline_math.package(root, name)
        for path in sorted(home.rglob("*")) if home.exists() else ():
            if path.is_file():
                yield f"source/{path.relative_to(root).as_posix()}", path
    for path in sorted(folder.iterdir()) if folder else ():
        yield f"wheels/{path.name}", path


def write(target: Path, entries: Iterator[tuple[str, Path | str]]) -> int:
    """Write the archive whole or not at all; the number of its files. What is compressed already is only stored."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new, count = target.with_suffix(".new"), 0
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, found in entries:
            info = zipfile.ZipInfo(f"{NAME}/{name}", (2020, 1, 1, 0, 0, 0))  # the same bytes for the same files
            packed = Path(name).suffix in (".whl", ".png", ".woff", ".woff2", ".zip", ".gz")
            info.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            with archive.open(info, "w") as out:
                if isinstance(found, str):
                    out.write(found.encode())
                else:
                    with found.open("rb") as source:
                        shutil.copyfileobj(source, out)
            count += 1
    new.replace(target)
    return count


def main(arguments: list[str] | None = None) -> int:
    """Write the archive; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tools.offline", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheels", action="store_true", help="put the packages themselves in: some hundred MB")
    given = parser.parse_args(arguments)
    if lacking := missing(ROOT):
        print(f"not built yet: run {', '.join(lacking)}", file=sys.stderr)
        return 1
    out, folder = ROOT / "_build" / "offline", None
    try:
        wheels = resolved(ROOT)
        if given.wheels:
            folder = out / "wheels"
            shutil.rmtree(folder, ignore_errors=True)
            download(wheels, folder)
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"the list of packages could not be made: {error}", file=sys.stderr)
        return 1
    target = out / f"{NAME}.zip"
    count = write(target, contents(ROOT, wheels, folder))
    print(f"{target.relative_to(ROOT)}: {count} files, {target.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
