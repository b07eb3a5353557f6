"""One symbol, one meaning, as far as a program can tell: the notation page against the definitions in the chapters.

A definition is a sentence such as "write $X$ for the …", "let $X$ be the …" or "where $X$ is the …". Where X stands in
the table of the notation page, such a sentence has to share a word with the meaning there.
"""

import re
from collections.abc import Iterator
from pathlib import Path

CELL = re.compile(r"^(`{3,}|~{3,})\{code-cell\}.*?^\1\s*$|^---\n.*?^---\n", re.M | re.S)
DISPLAY = re.compile(r"^\$\$.*?^\$\$.*?$", re.M | re.S)
FENCE = re.compile(r"^[`:]{3,}.*$|^:\w+:.*$", re.M)
WORDS = r"([^.;:$]{3,80})"
DEFINES = (
    re.compile(rf"\b[Ww]rite \$([^$]+)\$ for {WORDS}"),
    re.compile(rf"\b[Ll]et \$([^$]+)\$ be {WORDS}"),
    re.compile(rf"\b(?:where|and|[Hh]ere) \$([^$]+)\$ is ((?:the|a|an) {WORDS[1:-1]})"),
    re.compile(rf"\bwith \$([^$]+)\$ ((?:the|a|an) {WORDS[1:-1]})"),
)
ALSO = {  # other words for the same thing
    "\\omega": "rate light expected image",
    "x": "data value reading",
    "N": "photons light brightness",
    "\\hat\\theta": "maximum",
    "\\mathcalC": "known",
    "\\sigma_t^2": "choice",
    "\\varphi": "function",
}
VALUE = re.compile(r"\d|an? few |about |at most |at least |below |above |small|large")  # says how large, not what


def prose(text: str) -> str:
    """A chapter without code cells, displayed formulas and the lines of directives."""
    for pattern in (CELL, DISPLAY, FENCE):
        text = pattern.sub("\n", text)
    return text


def plain(symbol: str) -> str:
    """A symbol without spacing and without the braces around one letter."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s+|\\[,;!]", "", symbol))


def table(page: str) -> list[tuple[str, str]]:
    """(symbol, meaning) of every row of the notation page; a row may name several symbols."""
    rows = re.findall(r"^\| (\$.+?) \| (.+?) \| `", page.partition("## Symbols")[2], re.M)
    return [(plain(symbol), meaning) for cell, meaning in rows for symbol in re.findall(r"\$([^$]+)\$", cell)]


def stems(text: str) -> set[str]:
    """The beginnings of the words of a text, by which they are compared."""
    return {word[:5].lower() for word in re.findall(r"[A-Za-z]{4,}", text)}


def definitions(text: str) -> Iterator[tuple[str, str]]:
    """(symbol, words) of what a chapter defines in prose."""
    running = " ".join(prose(text).split())
    for pattern in DEFINES:
        found = ((plain(match[1]), match[2].strip()) for match in pattern.finditer(running))
        yield from ((symbol, words) for symbol, words in found if not VALUE.match(words))


def conflicts(text: str, page: str) -> list[str]:
    """The definitions of a chapter that give a symbol of the notation page another meaning."""
    meanings = dict(table(page))
    found = []
    for symbol, words in definitions(text):
        meaning = meanings.get(symbol)
        if meaning and not stems(words) & stems(f"{meaning} {ALSO.get(symbol, '')}"):
            found.append(f"${symbol}$ is “{words}” here and “{meaning}” on the notation page")
    return found


def logarithms(text: str) -> list[str]:
    r"""The formulas of a chapter that write \log: the book writes \ln."""
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", CELL.sub("", text), re.S)
    return [" ".join(formula.split())[:80] for formula in formulas if "\\log" in formula]


def main() -> None:
    """Print what the chapters say against the notation page."""
    root = Path(__file__).resolve().parents[1]
    page = (root / "book" / "notation.md").read_text(encoding="utf-8")
    for path in sorted((root / "notebooks").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for line in [*conflicts(text, page), *(f"log in {f}" for f in logarithms(text))]:
            print(f"{path.name}: {line}")


if __name__ == "__main__":
    main()
