"""Versions of the book and of its chapters, so that a course can name what it teaches from.

    python -m tools.release 0.2.0      # make a release of what is here: the command ends with what git has to do

A chapter's version is that of the first release with its present text; a chapter that changed since has a plus behind
it. They are kept in book/versions.json: of each release its date and the SHA-256 of the chapters' sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+")
KEPT = Path("book") / "versions.json"
UNRELEASED = "## Unreleased\n"


def chapters(root: Path) -> dict[str, str]:
    """SHA-256 of each chapter's source, by its name."""
    found = {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.md")):
        found[path.stem] = hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    return found


def releases(root: Path) -> dict[str, Any]:
    """All releases, the oldest first."""
    path = root / KEPT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def version_of(root: Path, chapter: str) -> str:
    """The version of a chapter, such as 0.2.0 or 0.2.0+; "" where there was no release with it yet."""
    now, since, held = chapters(root).get(chapter), "", None
    for name, made in releases(root).items():
        if made["chapters"].get(chapter) != held:
            since, held = name, made["chapters"].get(chapter)
    return since + ("+" if held and held != now else "") if held else ""


def replaced(root: Path, name: str, pattern: str, text: str) -> tuple[Path, str]:
    """A file with one line of it replaced. Raises ValueError where the line is not there exactly once."""
    path = root / name
    new, count = re.subn(pattern, lambda _: text, path.read_text(encoding="utf-8"), flags=re.M)
    if count != 1:
        raise ValueError(f"{name} must have one line {pattern!r}, got {count}")
    return path, new


def release(root: Path, version: str, day: date) -> None:
    """Write a version into all files that state it.

    Raises ValueError, and writes nothing, for a version that is none or not above the last one, for a chapter whose
    Colab edition is not there, and for a changelog that has nothing new.
    """
    known = releases(root)
    if not VERSION.fullmatch(version):
        raise ValueError(f"the version must be three numbers such as 0.2.0, got {version!r}")
    last = list(known)[-1] if known else "0.0.0"
    if [int(n) for n in version.split(".")] <= [int(n) for n in last.split(".")]:
        raise ValueError(f"the version must be above the last release, {last}, got {version}")
    log = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^{UNRELEASED}\s*(?!## )\S", log, re.M):
        raise ValueError(f"CHANGELOG.md must tell what is new below {UNRELEASED.strip()!r}, got nothing there")
    known[version] = {"date": day.isoformat(), "chapters": chapters(root)}
    written = [
        replaced(root, "smlmtut/__init__.py", r'^__version__ = ".*"$', f'__version__ = "{version}"'),
        replaced(root, "CHANGELOG.md", rf"^{UNRELEASED}", f"{UNRELEASED}\n## {version} ({day.isoformat()})\n"),
        replaced(root, ".zenodo.json", r'^  "version": ".*",$', f'  "version": "{version}",'),
    ]
    path, cff = replaced(root, "CITATION.cff", r"^version: .*$", f"version: {version}")
    cff = re.sub(r"^date-released: .*\n", "", cff, flags=re.M)
    written += [
        (path, cff.replace(f"version: {version}\n", f"version: {version}\ndate-released: {day.isoformat()}\n")),
        (root / KEPT, json.dumps(known, indent=1) + "\n"),
    ]
    for path, text in written:
        path.write_text(text, encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> int:
    """Make a release; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="three numbers")
    given = parser.parse_args(arguments)
    try:
        release(ROOT, given.version, date.today())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"now: make colab test, then git commit -am 'Version {given.version}' and git tag v{given.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
