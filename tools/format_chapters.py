"""Let ruff format the code cells of the chapters, in the .md files themselves.

ruff reads notebooks, not MyST, and `make lint` checks the Colab edition, which holds the same cells. This
writes what ruff would make of each cell back into the source.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

if __package__ is None:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.colab.myst import read_page

ROOT = Path(__file__).resolve().parents[1]


def ruff(notebook: str, *command: str) -> str:
    """A notebook's JSON after one ruff command; rules for notebooks/ apply. Raises CalledProcessError."""
    call = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", "notebooks/chapter.ipynb", "-"]
    return subprocess.run(call, input=notebook, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def formatted(sources: list[str]) -> list[str]:
    """The code cells as ruff formats them."""
    cells = [new_code_cell(source, id=f"cell-{k}") for k, source in enumerate(sources)]
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = nbformat.writes(new_notebook(cells=cells, metadata=metadata))
    notebook = ruff(ruff(notebook, "check", "--fix-only", "--select", "I"), "format")  # I: imports in order
    return [cell.source for cell in nbformat.reads(notebook, as_version=4).cells]


def format_chapter(path: Path) -> bool:
    """Format one chapter in place; whether it changed."""
    text = path.read_text(encoding="utf-8")
    cells = [block for block in read_page(path, path.name) if block.name == "code-cell"]
    lines = text.split("\n")
    for block, source in reversed(list(zip(cells, formatted([cell.text for cell in cells]), strict=True))):
        start = block.body_line - 1
        lines[start : start + block.text.count("\n") + 1] = source.split("\n")
    changed = "\n".join(lines) != text
    if changed:
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return changed


def main() -> int:
    """Format every chapter and name the ones that changed."""
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.md")):
        if format_chapter(path):
            print(f"formatted {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
