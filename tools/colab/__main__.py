"""Write the Colab edition: notebooks/NN_name.ipynb from notebooks/NN_name.md, or --check that it is in step."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

if not __package__:  # called as `python tools/colab`
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.colab.book import Book
from tools.colab.edition import MARK, Edition, write

ROOT = Path(__file__).resolve().parents[2]


def editions(root: Path) -> dict[Path, str]:
    """Path and text of the Colab edition of every chapter."""
    book, written = Book(root), {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.md")):
        page = book.pages[f"notebooks/{path.stem}"]
        written[path.with_suffix(".ipynb")] = write(Edition(book, page).build())
    return written


def stale(root: Path, kept: dict[Path, str]) -> list[Path]:
    """Notebooks that this tool wrote and whose chapter is gone."""
    others = sorted(set((root / "notebooks").glob("*.ipynb")) - set(kept))
    return [path for path in others if f'"{MARK}": ' in path.read_text(encoding="utf-8")]


def drift(path: Path, text: str) -> str:
    """How a notebook on disk differs from what it should be; "" if it does not."""
    if not path.exists():
        return f"{path.name} is missing"
    found = path.read_text(encoding="utf-8")
    if found == text:
        return ""
    diff = difflib.unified_diff(found.splitlines(), text.splitlines(), "on disk", "from the .md", n=0, lineterm="")
    lines = list(diff)
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    shown = "\n".join(f"    {line[:110]}" for line in lines[:12])
    return f"{path.name} differs in {len(changed)} lines:\n{shown}" + ("\n    …" if len(lines) > 12 else "")


def main(arguments: list[str] | None = None) -> int:
    """Write or check; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tools.colab", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the edition is out of step")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the book")
    args = parser.parse_args(arguments)
    try:
        wanted = editions(args.root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    left_over = stale(args.root, wanted)
    drifted = [message for path, text in wanted.items() if (message := drift(path, text))]
    drifted += [f"{path.name} has no chapter" for path in left_over]
    if args.check:
        if drifted:
            print(*drifted, "the Colab edition is out of step: run `make colab`", sep="\n", file=sys.stderr)
        return bool(drifted)
    for path in left_over:
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(wanted)} notebooks, {len(drifted)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
