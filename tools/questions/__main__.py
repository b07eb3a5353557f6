"""Write the question bank for Moodle (GIFT), Canvas (QTI 1.2) and jupyterquiz; --chapters: the chapters' self-tests."""

import argparse
import sys
from pathlib import Path

from tools.colab.book import Book
from tools.questions import gift, jupyter, qti, selftest
from tools.questions.bank import FOLDER, ROOT, Bank, read_all


def pointers(book: Book, bank: Bank) -> dict[str, str]:
    """HTML that points to the section of each question in the rendered book. Raises ValueError for an unknown one."""
    page = book.pages[f"notebooks/{bank.chapter}"]
    anchors = {label.title: label.anchor for label in page.labels.values() if label.kind == "section"}
    made = {}
    for question in bank.questions:
        section = question.fields["section"]
        if section not in anchors:
            raise ValueError(f"{bank.chapter}.yml: {question.id}: the chapter has no section {section!r}")
        made[question.id] = f'<a href="{book.url(page.name, anchors[section])}">Read again: {section}</a>'
    return made


def write(folder: Path, book: Book, banks: list[Bank]) -> list[Path]:
    """Write three files for each chapter into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for bank in banks:
        reread, page = pointers(book, bank), book.pages[f"notebooks/{bank.chapter}"]
        texts = {"gift": gift.write(bank, reread), "json": jupyter.write(bank, reread)}
        for suffix, text in texts.items():
            written.append(folder / f"{bank.chapter}.{suffix}")
            written[-1].write_text(text, encoding="utf-8", newline="\n")
        written.append(folder / f"{bank.chapter}.qti.zip")
        written[-1].write_bytes(qti.write(bank, f"Chapter {page.number}: {page.title}", reread))
    return written


def write_chapters(folder: Path, banks: list[Bank]) -> list[str]:
    """Bring the self-tests up to date, and return the names of the chapters that changed."""
    changed = []
    for bank in banks:
        path = folder / f"{bank.chapter}.md"
        before = path.read_text(encoding="utf-8")
        if (after := selftest.updated(before, bank)) != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            changed.append(path.name)
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Write; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tools.questions", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the files, three for each chapter")
    parser.add_argument("--chapters", action="store_true", help="write the self-tests into notebooks/*.md")
    args = parser.parse_args(arguments)
    if not (args.output or args.chapters):
        parser.error("say where to: -o DIR, --chapters, or both")
    try:
        banks, book = read_all(FOLDER), Book(ROOT)
        if args.output:
            print(f"{len(write(args.output, book, banks))} files in {args.output}")
        if args.chapters:
            print("self-tests changed:", *(write_chapters(ROOT / "notebooks", banks) or ["none"]))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
