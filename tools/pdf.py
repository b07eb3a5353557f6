"""Write the whole book as one PDF, _build/pdf/smlmtut.pdf, from the chapters that `make book` ran: LaTeX by XeTeX.

Fails where something is missing in print: a letter that no font has, a reference that leads nowhere, a line that
sticks out. `tools/pdf_pages.py` tells what a print leaves out and why. It installs nothing: see PACKAGES.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import build_book

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "_build" / "latex"
PDF = ROOT / "_build" / "pdf" / "smlmtut.pdf"
OVERFULL = 5.0  # pt that a line may stick out: less than two letters of the text
LAST = 40.0  # pt of text, three lines, that the last page of a chapter must have
LINE = 12.0  # pt by which the pages of a chapter that ends on less get longer, twice at most
# Debian's packages, each with a program or a file by which it shows.
PACKAGES = {
    "latexmk": "latexmk",
    "texlive-xetex": "xelatex",
    "texlive-latex-recommended": "fancyvrb.sty",
    "texlive-latex-extra": "newunicodechar.sty",
    "texlive-fonts-recommended": "pzdr.tfm",
    "fonts-texgyre": "texgyrepagella-regular.otf",
    "fonts-texgyre-math": "texgyrepagella-math.otf",
    "fonts-dejavu": "DejaVuSansMono-Oblique.ttf",
}


def found(name: str) -> bool:
    """Whether a program or a file of TeX is there; fonts may lie where fontconfig finds them."""
    if shutil.which(name):
        return True
    if shutil.which("kpsewhich") and subprocess.run(["kpsewhich", name], capture_output=True).returncode == 0:
        return True
    if not (name.endswith(("ttf", "otf")) and shutil.which("fc-list")):
        return False
    listed = subprocess.run(["fc-list", ":", "file"], capture_output=True, text=True, check=True).stdout
    return f"/{name}:" in listed


def missing() -> list[str]:
    """The packages that this machine lacks."""
    return [package for package, name in PACKAGES.items() if not found(name)]


def problems(log: str) -> list[str]:
    """What a log of LaTeX says is wrong with the pages; lines of the log must not be broken."""
    lines = log.splitlines()
    wrong = [line for line in lines if line.startswith("!") or "Missing character" in line]
    wrong += [
        line
        for line in lines
        if "Warning" in line and ("undefined" in line or "multiply" in line or "too large" in line)
    ]
    for line in lines:
        wide = re.match(r"Overfull \\hbox \(([\d.]+)pt too wide\)", line)
        high = re.match(r"Overfull \\vbox \(([\d.]+)pt too high\)", line)
        wrong += [line] * any(match and float(match[1]) > OVERFULL for match in (wide, high))
    return wrong


def short_ends(log: str) -> list[int]:
    """The chapters, counted from 1, whose last page has less than LAST of text: the preamble logs it."""
    ends = {int(order): float(at) for order, at in re.findall(r"^chapter (\d+) ends at ([\d.]+)pt$", log, re.M)}
    return sorted(order for order, at in ends.items() if 0 < order and at < LAST)


def run_latex() -> tuple[list[str], str]:
    """Run LaTeX as often as it needs; what is wrong with the result, and the log."""
    command = ["latexmk", "-pdfxe", "-interaction=nonstopmode", "-halt-on-error", "-silent", "smlmtut.tex"]
    environment = {**os.environ, "max_print_line": "10000", "LATEXOPTS": "", "XINDYOPTS": ""}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True)
    log = (FOLDER / "smlmtut.log").read_text(encoding="utf-8", errors="replace")
    wrong = problems(log)
    return (wrong if done.returncode == 0 or wrong else [f"latexmk failed with {done.returncode}"]), log


def typeset() -> list[str]:
    """Typeset, anew with longer pages in chapters that end on a page of a line or two; what is wrong in the end."""
    longer: dict[int, float] = {}
    while True:
        lines = [f"\\longer{{{order}}}{{{points}pt}}\n" for order, points in sorted(longer.items())]
        (FOLDER / "longer.tex").write_text("".join(lines), encoding="utf-8")
        wrong, log = run_latex()
        short = short_ends(log)
        if wrong or not short:
            return wrong
        print(f"chapters that end on a page of a line or two: {', '.join(map(str, short))}")
        longer.update({order: longer.get(order, 0.0) + LINE for order in short})
        if max(longer.values()) > 2 * LINE:
            return [f"chapter {order} ends on a page of a line or two" for order in short]


def main() -> int:
    """Build; print the path of the PDF; 0 if all is well."""
    started = time.perf_counter()
    if lacking := missing():
        print("the PDF needs LaTeX. On Debian and Ubuntu:", file=sys.stderr)
        print(f"  apt-get install --no-install-recommends {' '.join(lacking)}", file=sys.stderr)
        return 1
    if build_book.build("latex"):
        return 1
    wrong = typeset()
    if (FOLDER / "smlmtut.pdf").exists():
        PDF.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FOLDER / "smlmtut.pdf", PDF)
    if wrong:
        print(f"{len(wrong)} faults, see {(FOLDER / 'smlmtut.log').relative_to(ROOT)}:", *wrong[:20], sep="\n  ")
        return 1
    print(f"typeset in {time.perf_counter() - started:.1f} s, no fault:")
    print(PDF)
    return 0


if __name__ == "__main__":
    sys.exit(main())
