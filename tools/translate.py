"""Build the book in another language, from catalogues of its texts in book/locale/LANGUAGE/LC_MESSAGES/PAGE.po.

    python -m tools.translate de                      # the book, as far as it is translated, in _build/de/_build/html
    python -m tools.translate de --update book/setup  # write or renew catalogues: of all that there are without a name

A text that has no translation stays English. A text that changed since it was translated is marked `fuzzy` by an
update, keeps its old translation for the translator, and is English in the book until somebody looks at it.
Chapters can be translated in the same way; their code, outputs and figures stay as they are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import yaml
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

if not __package__:  # called by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import build_book, mend

ROOT = Path(__file__).resolve().parents[1]
LOCALE = Path("book") / "locale"
WIDTH = 120
TEXTS = "texts"  # folder in _build where the texts of all pages are gathered


def configuration(root: Path, language: str, locale: Path, place: str) -> Path:
    """The configuration in a language, in _build/PLACE, with the chapters' run that `make book` kept."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config["execute"] |= {"cache": str(root / "_build" / ".jupyter_cache")}
    if place == TEXTS:
        config["execute"]["execute_notebooks"] = "off"
    config["sphinx"]["config"] |= {"language": language, "locale_dirs": [str(locale)], "gettext_compact": False}
    path = root / "_build" / place / "_config.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def build(root: Path, language: str, locale: Path, place: str, *options: str) -> None:
    """Run Jupyter Book into _build/PLACE/_build.

    Raises CalledProcessError, with its log, where it fails, and ValueError where it ran chapters: `make book` does.
    """
    config = configuration(root, language, locale, place)
    where = ["--config", str(config), "--path-output", str(config.parent)]
    done = subprocess.run(
        [sys.executable, "-c", build_book.CALL, "build", ".", *where, *options],
        cwd=root,
        env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(root / "tools")},  # its own extensions
        check=True,
        capture_output=True,
        text=True,
    )
    if ran := build_book.executed(done.stdout + done.stderr):
        raise ValueError(f"{', '.join(ran)} changed since `make book`: run it first")


def pages(root: Path, language: str) -> list[str]:
    """The pages that have a catalogue, such as book/intro."""
    home = root / LOCALE / language / "LC_MESSAGES"
    return sorted(path.relative_to(home).with_suffix("").as_posix() for path in home.rglob("*.po"))


def read(path: Path, language: str) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale=language)


def state(catalog: Catalog) -> tuple[int, int, int]:
    """How many texts are translated, changed since, and not translated."""
    texts = [message for message in catalog if message.id]
    old = sum(message.fuzzy for message in texts)
    done = sum(bool(message.string) and not message.fuzzy for message in texts)
    return done, old, len(texts) - done - old


def update(root: Path, language: str, names: list[str]) -> None:
    """Write the texts of pages into their catalogues, and keep what is translated."""
    build(root, "en", root / LOCALE, TEXTS, "--builder", "custom", "--custom-builder", "gettext")
    templates = root / "_build" / TEXTS / "_build" / "gettext"
    for name in names or pages(root, language):
        template = templates / f"{name}.pot"
        if not template.exists():
            raise ValueError(f"the book has no page {name}; pages are named as in _toc.yml")
        path = root / LOCALE / language / "LC_MESSAGES" / f"{name}.po"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = read(template, language)
        catalog = read(path, language) if path.exists() else Catalog(language, project="smlmtut", fuzzy=False)
        catalog.update(fresh)
        with path.open("wb") as file:  # without dates and lines of the page, which would change every time
            write_po(file, catalog, no_location=True, omit_header=True, width=WIDTH, ignore_obsolete=True)


def compiled(root: Path, language: str) -> Path:
    """Folder with the compiled catalogues, as gettext reads them; without texts that are `fuzzy`."""
    out = root / "_build" / language / "locale"
    for name in pages(root, language):
        path = out / language / "LC_MESSAGES" / f"{name}.mo"
        path.parent.mkdir(parents=True, exist_ok=True)
        catalog = read(root / LOCALE / language / "LC_MESSAGES" / f"{name}.po", language)
        with path.open("wb") as file:
            write_mo(file, catalog)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Update catalogues or build the book; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tools.translate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("language", help="its code, such as de")
    parser.add_argument("--update", nargs="*", metavar="PAGE", help="renew catalogues instead of building the book")
    given = parser.parse_args(arguments)
    try:
        if given.update is not None:
            update(ROOT, given.language, given.update)
        elif not pages(ROOT, given.language):
            raise ValueError(f"{LOCALE / given.language} has no catalogue: begin with --update book/intro")
        else:
            build(
                ROOT,
                given.language,
                compiled(ROOT, given.language),
                given.language,
                "--all",
                "-W",
                "-n",
                "--keep-going",
            )
            mend.mend_site(ROOT / "_build" / given.language / "_build" / "html")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(error.stdout[-3000:], error.stderr[-3000:], file=sys.stderr)
        return 1
    for name in pages(ROOT, given.language):
        catalog = read(ROOT / LOCALE / given.language / "LC_MESSAGES" / f"{name}.po", given.language)
        done, old, none = state(catalog)
        print(f"{name}: {done} translated, {old} changed since, {none} not translated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
